//! The bound of what cannot be routed: a quarter of what the state tables may take. There the account that
//! holds most becomes a gap: its rows are removed some at a time, each time in a state transaction that
//! counts them in the account's record, which a replay can send. What comes for the account meanwhile goes
//! the same way; afterwards it is stored again.

use super::super::super::lane::DELIVERY_BYTES;
use super::super::Dispatcher;
use walhook_core::persist::{PersistBatch, UnroutedPurged};
use walhook_core::room::{Measured, share};
use walhook_core::tick::Tick;

/// Of the bound of the state tables.
const UNROUTED_PERCENT: u64 = 25;

impl Dispatcher {
    /// Takes what the rows without an endpoint were measured to take.
    pub(in super::super) fn bound_unrouted(&mut self, Measured { size, .. }: &Measured, now: Tick) {
        if size.unrouted_bytes < share(self.settings.state_max, UNROUTED_PERCENT) {
            return;
        }
        let Some((account, rows)) = self.routing.shelves.give_up_most(now) else { return };
        for row in rows {
            self.free(row.held, DELIVERY_BYTES);
        }
        self.clear_shelf(&account, now);
        self.outbox.touch();
    }

    pub(super) fn hand_out_unrouted_purges(&mut self, batch: &mut PersistBatch) {
        let rows = u32::try_from(self.outbox.rows_max()).unwrap_or(u32::MAX);
        batch.unrouted_purges = self.routing.shelves.purges(rows);
    }

    pub(in super::super) fn handle_unrouted_purged(
        &mut self,
        purged: &[UnroutedPurged],
        now: Tick,
    ) {
        for UnroutedPurged { account, rows, all } in purged {
            self.door.reports.went_into_gaps(*rows);
            self.outbox.touch();
            self.routing.shelves.purged(account, *rows, *all, now);
            self.clear_shelf(account, now);
        }
    }
}
