//! The bound of what cannot be routed: a quarter of what the state tables may take. There the account that
//! holds most becomes a gap: its rows are removed some at a time, each time in a state transaction that
//! counts them in the account's record, which a replay can send. What comes for the account meanwhile goes
//! the same way; afterwards it is stored again.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::super::lane::DELIVERY_BYTES;
use super::super::Dispatcher;
use super::routing::Page;
use walhook_core::event::AccountId;
use walhook_core::persist::{PersistBatch, UnroutedPurge, UnroutedPurged};
use walhook_core::room::{Measured, share};
use walhook_core::tick::Tick;

/// Of the bound of the state tables.
const UNROUTED_PERCENT: u64 = 25;

/// How late the server's statistics may tell of rows that were removed.
const STATISTICS_LAG: Duration = Duration::from_secs(15);

/// Accounts whose rows are being given up.
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

impl Dispatcher {
    /// Takes what the rows without an endpoint were measured to take.
    pub(in super::super) fn bound_unrouted(&mut self, Measured { size, .. }: &Measured, now: Tick) {
        let most = share(self.settings.state_max, UNROUTED_PERCENT);
        let bound = &self.routing.shelves.bound;
        if size.unrouted_bytes < most || !bound.accounts.is_empty() || now < bound.trusts_from {
            return;
        }
        let accounts = self.routing.shelves.accounts.iter();
        let held = accounts.map(|(account, shelf)| (shelf.in_table, account));
        let Some((_, account)) = held.max().filter(|(rows, _)| *rows > 0) else { return };
        let account = account.clone();
        self.routing.shelves.bound.accounts.insert(account.clone());
        self.forget_page(&account, now);
        self.outbox.touch();
    }

    /// What of the account is in memory is forgotten: it stands in the table.
    fn forget_page(&mut self, account: &AccountId, now: Tick) {
        let Some(shelf) = self.routing.shelves.accounts.get_mut(account) else { return };
        let Page::Read(rows) = &mut shelf.page else { return };
        let rows = std::mem::take(rows);
        shelf.page = Page::None;
        self.routing.shelves.pages -= 1;
        for row in rows {
            self.free(row.held, DELIVERY_BYTES);
        }
        self.clear_shelf(account, now);
    }

    pub(super) fn hand_out_unrouted_purges(&mut self, batch: &mut PersistBatch) {
        let rows = u32::try_from(self.outbox.rows_max()).unwrap_or(u32::MAX);
        for account in &self.routing.shelves.bound.accounts {
            // What is routed already goes by itself, and counts in no gap.
            let shelf = self.routing.shelves.accounts.get(account);
            if shelf.is_none_or(|shelf| shelf.going == 0 && matches!(shelf.page, Page::None)) {
                batch.unrouted_purges.push(UnroutedPurge { account: account.clone(), rows });
            }
        }
    }

    pub(in super::super) fn handle_unrouted_purged(
        &mut self,
        purged: &[UnroutedPurged],
        now: Tick,
    ) {
        for UnroutedPurged { account, rows, all } in purged {
            self.door.reports.went_into_gaps(*rows);
            self.outbox.touch();
            if let Some(shelf) = self.routing.shelves.accounts.get_mut(account) {
                shelf.in_table = if *all { 0 } else { shelf.in_table.saturating_sub(*rows) };
                shelf.rows = shelf.in_table + shelf.storing.len() as u64;
                shelf.unread = shelf.in_table;
                shelf.old = shelf.old.saturating_sub(*rows);
                (shelf.cursor, shelf.old) = (None, if *all { 0 } else { shelf.old });
            }
            self.routing.shelves.outdate(account);
            if *all {
                self.routing.shelves.bound.accounts.remove(account);
                self.routing.shelves.bound.trusts_from = now + STATISTICS_LAG;
                self.clear_shelf(account, now);
                self.routing.shelves.join_line(account);
            }
        }
    }
}
