//! Events that cannot be routed, since their account's endpoints cannot be looked up: stored as rows
//! without an endpoint, when they have waited in memory for as long, or take as much of it, as anything
//! may.
//!
//! ```text
//! stream ─► fan_out's Waiting ─► shelf (rows of `unrouted`) ─► page ─► rows of `deferred`, or nothing
//! ```
//!
//! An account that has such rows has a *shelf*. The row, the settled range of (account, no endpoint) and
//! the frontier are stored in one state transaction; only then does the tracker count the event as settled.
//! So what is read again after a crash is recognised by that range, whatever is known of routes by then.
//!
//! Order: while an account has a shelf, its later events go behind it: into it while its routes are not
//! known, else they wait in memory until it is empty. The rows are read back from the first on, and routed
//! as they come; each delivery becomes a deferred row, in the state transaction that says how far its event
//! has been routed, and that removes it at last. From there they are sent like all that is deferred.
//!
//! Who gets an event: the endpoints of the moment when it is routed, but for those that had it before
//! a crash, as the settled ranges said (they are kept with the shelf), and those that joined
//! after it was committed (see [`super::shelves`]).
//!
//! Rows on the shelf of an earlier leader can be older than deferred rows of their account: that leader
//! had settled the one and not the other. So while such a row is left nothing deferred of the account is
//! read back.

mod bound;
mod routing;

use std::sync::Arc;

use super::super::lane::{DELIVERY_BYTES, LEAVING_BYTES, SharedEvent};
use super::super::tracker::TxnSeq;
use super::Dispatcher;
use super::outbox::{Leaves, Leaving};
use walhook_core::event::{AccountId, EndpointId, Event, Invalidation};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{
    Defer, DeferReason, EventKey, Joined, PersistBatch, QueueId, Routed, RowId, RowKey,
    SettledRange, Tried, UnroutedAccount, UnroutedKey,
};
use walhook_core::tick::Tick;

impl Dispatcher {
    /// Goes on with the rows that an earlier leader left.
    pub(super) fn recover_shelves(
        &mut self,
        accounts: Vec<UnroutedAccount>,
        joined: Vec<Joined>,
        settled: &[SettledRange],
    ) {
        if self.routing.shelves.recover(accounts, joined, settled) {
            self.outbox.touch();
        }
    }

    /// Whether an earlier leader has made a row of the event.
    pub(super) fn was_shelved(&self, event: &Event) -> bool {
        self.progress.was_settled(event, self.routing.shelves.nowhere())
    }

    /// The event becomes a row without an endpoint. The transaction waits for it, and the memory budget
    /// counts it as a delivery.
    pub(super) fn shelve(&mut self, held: Arc<SharedEvent>, txn: TxnSeq) {
        let event = Arc::clone(&held.event);
        let account = event.account.clone();
        // Above all ordinals of an earlier shelf, and never next to one.
        self.queues.skip_deliveries(1);
        if !self.routing.shelves.has(&account) {
            self.queues.skip_deliveries(2);
            let mut settled = self.progress.settled_of(&account);
            settled.retain(|range| range.endpoint != *self.routing.shelves.nowhere());
            self.routing.shelves.open(&account, self.queues.coming_delivery().0, settled);
        }
        let is_old = self.progress.may_be_known(event.position.commit_lsn());
        let key = EventKey::of(&event);
        let coming = self.queues.coming_delivery().0;
        let ordinal = self.routing.shelves.put(&account, key.clone(), is_old, coming);
        self.queues.skip_deliveries_to(ordinal);
        self.door.reports.unrouted();
        let endpoint = self.routing.shelves.nowhere().clone();
        let queue = QueueId { account, endpoint };
        let id = RowId { queue, key: RowKey { event: key, replay: None }, event: event.id };
        self.memory.take(LEAVING_BYTES - DELIVERY_BYTES);
        let bytes = LEAVING_BYTES + event.size_bytes();
        let row = Defer { id, event, reason: DeferReason::Unrouted, tried: Tried::default() };
        let (txn, kind, counted) = (Some(txn), Leaves::Unrouted, LEAVING_BYTES);
        self.outbox.leave(Leaving { row, held, txn, ordinal, kind, counted, bytes, routed: None });
    }

    /// What is to be stored of the shelves. Call after the batch's rows are handed out. Returns the rows
    /// that go.
    pub(super) fn hand_out_shelves(&mut self, batch: &mut PersistBatch) -> Vec<UnroutedKey> {
        let (rows, handed_out) = (self.outbox.rows_max(), self.outbox.handed_out());
        let gone = self.routing.shelves.take_gone(rows, handed_out);
        batch.routed.extend(gone.iter().map(|row| Routed { row: row.clone(), to: None }));
        // Of a row that goes nothing else need be said.
        batch.routed.sort_by(|a, b| (&a.row, a.to.is_some()).cmp(&(&b.row, b.to.is_some())));
        batch.routed.dedup_by(|a, b| a.row == b.row);
        self.hand_out_unrouted_purges(batch);
        self.routing.shelves.hand_out(batch, self.routing.waiting.is_empty());
        gone
    }

    /// The row's dead letter is in the batch that is handed out.
    pub(super) fn unrouted_died(&mut self, row: &UnroutedKey, batch: &mut PersistBatch) {
        self.routing.shelves.taken_out(&row.account);
        batch.routed.push(Routed { row: row.clone(), to: None });
    }

    /// These rows are durably gone.
    pub(super) fn handle_rows_routed(&mut self, gone: Vec<UnroutedKey>, now: Tick) {
        if !gone.is_empty() {
            self.touch_starts();
        }
        for UnroutedKey { account, event } in gone {
            let is_old = self.progress.may_be_known(event.position.commit_lsn());
            self.routing.shelves.removed(&account, is_old);
            self.clear_shelf(&account, now);
        }
    }

    /// Whether an event that commits there was committed before the endpoint joined.
    pub(super) fn joined_after(&self, endpoint: &EndpointId, commit_lsn: Lsn) -> bool {
        self.routing.shelves.keeps_out(endpoint, commit_lsn)
    }

    /// The stream shows a change of endpoints.
    pub(super) fn note_joined(&mut self, invalidation: &Invalidation) {
        let waits = !self.routing.shelves.is_empty() || !self.routing.waiting.is_empty();
        self.routing.shelves.note_joined(invalidation, self.progress.place(), waits);
    }

    /// Rows have left the shelf. With none left, what waited behind it goes on.
    fn clear_shelf(&mut self, account: &AccountId, now: Tick) {
        let is_over = self.routing.shelves.forget_if_over(account);
        self.read_on(account);
        if !is_over {
            return;
        }
        self.resume_waiting(account, now);
        self.unpin_if_idle(account);
    }
}

#[cfg(test)]
mod tests;
