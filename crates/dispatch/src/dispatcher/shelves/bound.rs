//! Accounts whose rows are being given up, since rows without an endpoint take too much of the tables.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::shelf::Page;
use super::{Row, Shelves};
use walhook_core::event::AccountId;
use walhook_core::persist::UnroutedPurge;
use walhook_core::tick::Tick;

/// How late the server's statistics may tell of rows that were removed.
const STATISTICS_LAG: Duration = Duration::from_secs(15);

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Bound {
    accounts: BTreeSet<AccountId>,
    /// A size that was measured before may not show what was removed.
    trusts_from: Tick,
}

impl Bound {
    /// Whether the account's rows are being given up.
    pub(super) fn gives_up(&self, account: &AccountId) -> bool {
        self.accounts.contains(account)
    }
}

impl Shelves {
    /// The rows of the account that has most of them are given up from now on. Returns its rows in memory, which
    /// stand in the table as well. None where some are given up already, or may not be shown by what was measured, or
    /// where there are none.
    pub(in super::super) fn give_up_most(
        &mut self,
        now: Tick,
    ) -> Option<(AccountId, VecDeque<Row>)> {
        if !self.bound.accounts.is_empty() || now < self.bound.trusts_from {
            return None;
        }
        let held = self.accounts.iter().map(|(account, shelf)| (shelf.in_table, account));
        let (_, account) = held.max().filter(|(rows, _)| *rows > 0)?;
        let account = account.clone();
        self.bound.accounts.insert(account.clone());
        let shelf = self.of(&account);
        let mut forgotten = VecDeque::new();
        if let Page::Read(rows) = &mut shelf.page {
            forgotten = std::mem::take(rows);
            shelf.page = Page::None;
            self.pages -= 1;
        }
        Some((account, forgotten))
    }

    /// What is to be removed, up to `rows` of each account. What is routed already goes by itself, and counts in no
    /// gap.
    pub(in super::super) fn purges(&self, rows: u32) -> Vec<UnroutedPurge> {
        let is_quiet = |account: &&AccountId| {
            let shelf = self.accounts.get(*account);
            shelf.is_none_or(|shelf| shelf.going == 0 && matches!(shelf.page, Page::None))
        };
        let quiet = self.bound.accounts.iter().filter(is_quiet);
        quiet.map(|account| UnroutedPurge { account: account.clone(), rows }).collect()
    }

    /// So many rows of the account were removed; `all`: none is left, and what comes is stored again.
    pub(in super::super) fn purged(
        &mut self,
        account: &AccountId,
        rows: u64,
        all: bool,
        now: Tick,
    ) {
        if let Some(shelf) = self.accounts.get_mut(account) {
            shelf.in_table = if all { 0 } else { shelf.in_table.saturating_sub(rows) };
            shelf.rows = shelf.in_table + shelf.storing.len() as u64;
            shelf.unread = shelf.in_table;
            let storing = shelf.storing.iter().filter(|(_, is_old)| *is_old).count() as u64;
            shelf.old = if all { storing } else { shelf.old.saturating_sub(rows).max(storing) };
            shelf.cursor = None;
        }
        self.outdate(account);
        if all {
            self.bound.accounts.remove(account);
            self.bound.trusts_from = now + STATISTICS_LAG;
            self.join_line(account);
        }
    }
}
