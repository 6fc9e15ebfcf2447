//! Whose events an open transaction may come to, told as its changes are received: no condition is evaluated.
//!
//! Which columns name the account follows from the rules and the description of the table that a row came with, and
//! both are the same when the row makes its events at the commit. Where something about a table is still to be
//! learned, where its rows may invalidate routes, and where no rule fits it any more, all accounts are named.

use std::sync::Arc;

use smallvec::SmallVec;

use super::bind::{Identity, key_text};
use super::{Account, Rules, message};
use crate::row::RowView;
use crate::turns::Accounts;
use walhook_decode::change::{MessageContent, Rows};
use walhook_decode::pgoutput::{Message, Relation};

/// A table as a transaction describes it, and where its rows name their accounts.
#[derive(Debug)]
pub(super) struct Summary {
    relation: Arc<Relation>,
    /// Rules, by their places, with the columns that hold the account where one does.
    reads: SmallVec<[(usize, Option<usize>); 2]>,
}

impl Rules {
    /// Adds the accounts that a message of an open transaction may make events of. `described`: the table with
    /// this OID as the transaction describes it at that place, where it does.
    pub fn note_accounts<'r>(
        &mut self,
        message: Message<'_>,
        described: impl Fn(u32) -> Option<&'r Arc<Relation>>,
        accounts: &mut Accounts,
    ) {
        if accounts.is_all() {
            return;
        }
        match message {
            Message::Insert { relation, new } => {
                self.note_row(described(relation), &Rows::Insert { new }, accounts);
            }
            Message::Update { relation, old, new } => {
                self.note_row(described(relation), &Rows::Update { old, new }, accounts);
            }
            Message::Delete { relation, old } => {
                self.note_row(described(relation), &Rows::Delete { old }, accounts);
            }
            Message::Oversize { relation, operation, bytes } => {
                self.note_row(described(relation), &Rows::Oversize { operation, bytes }, accounts);
            }
            Message::Truncate { relations } => {
                for relation in relations {
                    self.note_row(described(relation), &Rows::Truncate, accounts);
                }
            }
            Message::Logical { transactional: true, prefix, content, .. } => {
                let content = MessageContent::Read(content);
                message::note_accounts(&self.messages, prefix, content, accounts);
            }
            Message::OversizeLogical { prefix, bytes, .. } => {
                let content = MessageContent::TooLarge { bytes };
                message::note_accounts(&self.messages, prefix, content, accounts);
            }
            Message::Begin { .. }
            | Message::Commit { .. }
            | Message::Relation(_)
            | Message::Logical { transactional: false, .. }
            | Message::Type { .. }
            | Message::Ignored => {}
        }
    }

    fn note_row(
        &mut self,
        relation: Option<&Arc<Relation>>,
        rows: &Rows<'_>,
        accounts: &mut Accounts,
    ) {
        let Some(relation) = relation.filter(|relation| self.summarize(relation)) else {
            return accounts.become_all();
        };
        let Some(summary) = self.summaries.get(&relation.oid) else { return };
        let view = RowView::new(relation, rows);
        for (rule, column) in &summary.reads {
            let Some(rule) = self.rules.get(*rule) else { continue };
            match (&rule.account, column) {
                (Account::Fixed(account), _) => accounts.add(account),
                (Account::Named(_), Some(column)) => {
                    // Where it is not known, or null, the change is unroutable, and nothing waits for it.
                    if let Some(text) = view.current(*column).text() {
                        accounts.add(key_text(&self.catalog.types, relation, *column, text));
                    }
                }
                (Account::Named(_), None) => {}
            }
        }
    }

    /// Sees to it that the table's summary is of this description; none: no rule covers it. False: whose events
    /// its rows make cannot be told.
    fn summarize(&mut self, relation: &Arc<Relation>) -> bool {
        let known = self.summaries.get(&relation.oid).map(|summary| &summary.relation);
        if known.is_some_and(|known| Arc::ptr_eq(known, relation) || known == relation) {
            return true;
        }
        self.summaries.remove(&relation.oid);
        if self.lacks(relation).is_some() {
            return false;
        }
        let Some(table) = self.table(relation) else { return true };
        let Ok(binding) = self.bind(table, relation, Identity::Restored) else { return false };
        let Some(binding) = binding else { return true };
        if binding.invalidates.is_some() {
            return false;
        }
        let reads = binding.rules.iter().map(|bound| (bound.rule, bound.account)).collect();
        self.summaries.insert(relation.oid, Summary { relation: Arc::clone(relation), reads });
        true
    }
}
