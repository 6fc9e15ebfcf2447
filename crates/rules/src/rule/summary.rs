//! What an open transaction may come to, told as its changes are received: no condition is evaluated.
//!
//! Which columns name the account, or an endpoint, follows from the rules and the description of the table that a row
//! came with, and both are the same when the row makes its events at the commit. Where something about a table is
//! still to be learned, and where no rule fits it any more, anything may come.

use std::sync::Arc;

use smallvec::SmallVec;

use super::bind::{Demand, Invalidates, key_text};
use super::{Account, Rules, build, message};
use crate::row::RowView;
use crate::turns::Foreseen;
use walhook_decode::change::{MessageContent, Rows};
use walhook_decode::pgoutput::{Message, Relation};

/// A table as a transaction describes it, and where its rows name their accounts.
#[derive(Debug)]
pub(super) struct Summary {
    relation: Arc<Relation>,
    invalidates: Option<Invalidates>,
    /// Rules, by their places, with the columns that hold the account where one does.
    reads: SmallVec<[(usize, Option<usize>); 2]>,
}

impl Rules {
    /// Foresees what a message of the open transaction `xid` may make. `described`: the table with this OID as the
    /// transaction describes it at that place, where it does.
    pub fn foresee<'r>(
        &mut self,
        xid: u32,
        message: Message<'_>,
        described: impl Fn(u32) -> Option<&'r Arc<Relation>>,
        foreseen: &mut Foreseen,
    ) {
        if foreseen.is_anything() {
            return;
        }
        let mut row = |relation, rows: &Rows<'_>| {
            self.foresee_row(xid, described(relation), rows, foreseen);
        };
        match message {
            Message::Insert { relation, new } => row(relation, &Rows::Insert { new }),
            Message::Update { relation, old, new } => row(relation, &Rows::Update { old, new }),
            Message::Delete { relation, old } => row(relation, &Rows::Delete { old }),
            Message::Oversize { relation, operation, bytes } => {
                row(relation, &Rows::Oversize { operation, bytes });
            }
            Message::Truncate { relations } => {
                relations.into_iter().for_each(|relation| row(relation, &Rows::Truncate));
            }
            Message::Logical { transactional: true, prefix, content, .. } => {
                let content = MessageContent::Read(content);
                message::foresee(&self.messages, prefix, content, foreseen);
            }
            Message::OversizeLogical { prefix, bytes, .. } => {
                let content = MessageContent::TooLarge { bytes };
                message::foresee(&self.messages, prefix, content, foreseen);
            }
            Message::Begin { .. }
            | Message::Commit { .. }
            | Message::Relation(_)
            | Message::Logical { transactional: false, .. }
            | Message::Type { .. }
            | Message::Ignored => {}
        }
    }

    fn foresee_row(
        &mut self,
        xid: u32,
        relation: Option<&Arc<Relation>>,
        rows: &Rows<'_>,
        foreseen: &mut Foreseen,
    ) {
        let Some(relation) = relation.filter(|relation| self.summarize(relation)) else {
            *foreseen = Foreseen::anything();
            return;
        };
        let Some(summary) = self.summaries.get(&relation.oid) else { return };
        let (view, types) = (RowView::new(relation, rows), &self.catalog.types);
        if let Some(invalidates) = &summary.invalidates {
            for invalidation in build::invalidations(invalidates, xid, &view, types, relation) {
                foreseen.add_invalidation(invalidation);
            }
        }
        for (rule, column) in &summary.reads {
            let Some(rule) = self.rules.get(*rule) else { continue };
            match (&rule.account, column) {
                (Account::Fixed(account), _) => foreseen.add_account(account),
                (Account::Named(_), Some(column)) => {
                    // Where it is not known, or null, the change is unroutable, and nothing waits for it.
                    if let Some(text) = view.current(*column).text() {
                        foreseen.add_account(key_text(types, relation, *column, text));
                    }
                }
                (Account::Named(_), None) => {}
            }
        }
    }

    /// Sees to it that the table's summary is of this description; none: no rule covers it. False: what its rows
    /// make cannot be told.
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
        let Ok(binding) = self.bind(table, relation, Demand::Columns) else { return false };
        let Some(binding) = binding else { return true };
        let reads = binding.rules.iter().map(|bound| (bound.rule, bound.account)).collect();
        let (relation, invalidates) = (Arc::clone(relation), binding.invalidates);
        self.summaries.insert(relation.oid, Summary { relation, invalidates, reads });
        true
    }
}
