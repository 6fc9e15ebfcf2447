//! The one way out of memory for a delivery that has not ended: into the table `deferred`.
//!
//! Deferred are: what its quick attempts did not bring through, what memory has no room for (see the module
//! `relief`), what holds the frontier back for too long, and all that must not overtake any of
//! these. The row, its body, the settled range and the frontier are stored in one state transaction;
//! only then does the tracker count the delivery as settled. So a crash in between changes nothing.
//!
//! Order: a delivery that shares a key with a deferred one joins the table. Those that stand behind
//! it in memory leave with it; those that come later are blocked (see [`super::super::backlog`]). While nothing is
//! sent to the endpoint, and where memory has no room, all that comes joins the table; when that is over, again only
//! what may share a key with a row (see [`super::deferred_keys`]); and when no row is left, nothing.

use std::sync::Arc;

use super::super::lane::{DELIVERY_BYTES, LEAVING_BYTES, Origin, Removed, SharedEvent};
use super::super::tracker::TxnSeq;
use super::Dispatcher;
use super::deferred_queue::DeferredQueue;
use super::outbox::{Leaves, Leaving, RowChange};
use super::queues::QueueNo;
use walhook_core::attempt::DeliveryId;
use walhook_core::event::RowKeys;
use walhook_core::id::ReplayId;
use walhook_core::persist::{
    BacklogRow, Defer, DeferReason, EventKey, RowId, RowKey, Tried, UnroutedKey,
};
use walhook_core::tick::Tick;

/// A time that is worth a row of each queue: where it is not told at once, a leader that ends soon loses it.
const LONG_US: i64 = 60_000_000;

/// Why deliveries leave memory.
#[derive(Debug, Clone, Copy)]
pub(super) enum Exit {
    /// This one failed and is not tried before then. The others stand behind it.
    Failed(DeliveryId, Tick),
    /// The same of a probe that nobody asked to wait: its row stays as it is.
    Probed(DeliveryId, Tick),
    /// None of them failed just now.
    Other(DeferReason),
}

impl Dispatcher {
    /// Goes on with the deferred rows that an earlier leader left, and with the breakers that were open. Nobody has sent
    /// anything for `stood_us`: the queues' clocks stood still meanwhile, as those of paused endpoints do anyway.
    pub(super) fn recover_deferred(&mut self, rows: Vec<BacklogRow>, stood_us: i64) {
        let (now, now_us) = (Tick(0), self.door.unix_us_at_zero());
        for mut row in rows {
            row.blocked = self.settings.ordering.unmarked(row.blocked);
            let (rows, was_open) = (row.rows, row.open_until_us.is_some());
            let (queue, mut deferred) = DeferredQueue::recovered(row);
            if !self.endpoints.is_paused(&queue.endpoint) {
                deferred.stand_still(stood_us, stood_us, now_us);
                if was_open && rows > 0 {
                    deferred.recover_breaker(now, now_us, self.door.rng());
                }
            }
            let queue = self.queues.intern(&queue.account, &queue.endpoint);
            self.queues.set_deferred(queue, Box::new(deferred));
            if rows == 0 || stood_us > LONG_US {
                // Its first rows were never stored; or this leader may end before anything else happens to it.
                self.outdate(queue);
            }
            if rows > 0 {
                self.look_after(queue, now);
            }
        }
    }

    /// Why a delivery that arrives now must join the queue's deferred rows, if it must.
    pub(super) fn why_defer(&self, queue: QueueNo, keys: &RowKeys) -> Option<DeferReason> {
        let it = self.queues.at(queue);
        let deferred = it.deferred();
        if deferred.is_some_and(DeferredQueue::is_suspended) {
            return Some(DeferReason::Overflow);
        }
        if self.endpoints.is_paused(&it.id().endpoint) {
            return Some(DeferReason::Paused);
        }
        if let Some(deferred) = deferred {
            if deferred.suspension().is_some() {
                // What was counted in its gap is not stored yet.
                return Some(DeferReason::Behind);
            }
            return deferred.why_behind(queue, keys, &self.deferral.keys);
        }
        None
    }

    /// Defers a delivery that has just been routed, without queueing it. The queue has a lane.
    pub(super) fn defer_arrival(
        &mut self,
        queue: QueueNo,
        held: Arc<SharedEvent>,
        txn: TxnSeq,
        keys: &RowKeys,
        reason: DeferReason,
    ) {
        let id = self.queues.next_delivery();
        let ordinal = self.queues.take_ordinal(queue, id);
        self.memory.take(DELIVERY_BYTES);
        let key = RowKey { event: EventKey::of(&held.event), replay: None };
        let deferred = self.queues.deferred_or_new(queue);
        if reason == DeferReason::Overflow {
            deferred.backlog_mut().block_all(reason);
        }
        let (tried, counted) = (Tried::default(), DELIVERY_BYTES);
        let kept = Kept { held, txn: Some(txn), ordinal, counted, routed: None };
        let leave = Leave { reason, tried, due: None, behind: false };
        self.defer_or_skip(queue, key, keys, kept, leave);
        self.queues.rest_if_idle(queue);
    }

    /// Defers what a row without an endpoint becomes for one.
    pub(super) fn defer_routed(
        &mut self,
        queue: QueueNo,
        held: Arc<SharedEvent>,
        keys: &RowKeys,
        row: UnroutedKey,
    ) {
        self.memory.take(DELIVERY_BYTES);
        let key = RowKey { event: EventKey::of(&held.event), replay: None };
        let kept = Kept { held, txn: None, ordinal: 0, counted: DELIVERY_BYTES, routed: Some(row) };
        let (reason, tried) = (DeferReason::Unrouted, Tried::default());
        let leave = Leave { reason, tried, due: None, behind: false };
        self.defer_or_skip(queue, key, keys, kept, leave);
    }

    /// Takes deliveries out of a queue in memory into the table, oldest first. What is in the table
    /// already is just forgotten here, and operators' retries stay: they are dead letters meanwhile.
    pub(super) fn leave(&mut self, queue: QueueNo, ids: &[DeliveryId], exit: Exit, now: Tick) {
        for id in ids {
            let pending = self.queues.pending(queue).and_then(|in_memory| in_memory.get(*id));
            let is_letter = |origin| matches!(origin, Origin::Retry { .. });
            if pending.is_none_or(|pending| is_letter(pending.origin)) {
                continue;
            }
            let removed = self.queues.remove(queue, *id);
            self.take_over(queue, *id, removed, exit);
        }
        self.queues.refresh(queue, now);
        self.sync(queue);
        if !ids.is_empty() {
            self.queues.rest_if_idle(queue);
        }
        self.look_after(queue, now);
    }

    fn take_over(&mut self, queue: QueueNo, id: DeliveryId, removed: Removed, exit: Exit) {
        let Removed { pending, keys, due } = removed;
        let counted = pending.counted;
        let (due, behind, reason) = match exit {
            Exit::Failed(failed, due) | Exit::Probed(failed, due) if failed == id => {
                (Some(due), false, DeferReason::Failed)
            }
            Exit::Failed(..) | Exit::Probed(..) => (due, true, DeferReason::Behind),
            Exit::Other(reason) => (due, false, reason),
        };
        let key = pending.row_key();
        let mut tried = pending.tried.map(|tried| *tried).unwrap_or_default();
        tried.attempts = pending.attempts;
        tried.due_us = due.map(|due| self.unix_us(due));
        match pending.origin {
            Origin::Stream { txn, ordinal } => {
                let (held, txn, routed) = (pending.held, Some(txn), None);
                let kept = Kept { held, txn, ordinal, counted, routed };
                self.defer_or_skip(queue, key, &keys, kept, Leave { reason, tried, due, behind });
            }
            Origin::Replay(replay) => {
                self.replays.leave_memory();
                if self.replays.is_known(replay) {
                    let (held, txn, routed) = (pending.held, None, None);
                    let kept = Kept { held, txn, ordinal: 0, counted, routed };
                    let leave = Leave { reason, tried, due, behind };
                    self.defer_or_skip(queue, key, &keys, kept, leave);
                } else {
                    // Cancelled meanwhile.
                    self.replays.count_dropped(replay);
                    self.free(pending.held, counted);
                }
            }
            Origin::Deferred { insertion, .. } => {
                let deferred = self.queues.with_row(queue);
                if deferred.is_suspended() {
                    deferred.backlog_mut().unload(&key, &keys, false);
                } else if let Some(due) = due {
                    deferred.backlog_mut().fail(&key, &keys, &tried, due);
                    if matches!(exit, Exit::Probed(..)) {
                        self.free(pending.held, counted);
                        return;
                    }
                    let event = pending.held.event.id;
                    let row = RowId { queue: self.queues.id(queue).clone(), key, event };
                    self.outbox.change(row, insertion, RowChange::Retime(tried));
                    self.outdate(queue);
                } else {
                    deferred.backlog_mut().unload(&key, &keys, behind);
                }
                self.free(pending.held, counted);
            }
            Origin::Retry { .. } => {
                unreachable!("an operator's retry is a dead letter meanwhile, and is not deferred");
            }
        }
    }

    /// Gives a delivery in flight a row in the table, so that the frontier can pass it. The request
    /// goes on; its outcome will resolve the row or set its next time.
    pub(super) fn keep_in_flight(&mut self, queue: QueueNo, id: DeliveryId) {
        if self.is_suspended(queue) {
            // Nothing new is sent to it, so it holds the frontier no longer than one request takes.
            return;
        }
        let insertion = self.outbox.next_insertion();
        let in_memory = self.queues.in_use(queue);
        let keys = in_memory.keys(id).cloned().unwrap_or_default();
        let pending = in_memory.held_mut(id);
        let (txn, ordinal) = match pending.origin {
            Origin::Stream { txn, ordinal } => (Some(txn), ordinal),
            Origin::Replay(replay) if self.replays.is_known(replay) => (None, 0),
            Origin::Retry { .. } | Origin::Replay(_) | Origin::Deferred { .. } => return,
        };
        let key = pending.row_key();
        let pending = self.queues.give_row(queue, id, key.replay, insertion);
        let held = Arc::clone(&pending.held);
        let mut tried = pending.tried.as_deref().cloned().unwrap_or_default();
        tried.attempts = pending.attempts;
        // The row tells of them now.
        pending.tried = Some(Box::new(Tried { history: Vec::new(), ..tried.clone() }));
        if txn.is_none() {
            self.replays.leave_memory();
        }
        let counted = DELIVERY_BYTES + tried.size_bytes();
        self.memory.take(counted);
        let filter = self.deferral.keys.add(queue, &keys);
        self.queues.deferred_or_new(queue).backlog_for(filter).keep(&key, &keys);
        let kept = Kept { held, txn, ordinal, counted, routed: None };
        self.store_row(queue, key, kept, DeferReason::Held, tried, false);
    }

    /// A delivery of a replay is deferred under the replay's id, without being queued. Its event counts in
    /// the memory budget already.
    pub(super) fn defer_replayed(
        &mut self,
        queue: QueueNo,
        held: Arc<SharedEvent>,
        replay: ReplayId,
        reason: DeferReason,
    ) {
        self.memory.take(DELIVERY_BYTES);
        let key = RowKey { event: EventKey::of(&held.event), replay: Some(replay) };
        let counted = DELIVERY_BYTES;
        let kept = Kept { held, txn: None, ordinal: 0, counted, routed: None };
        let leave = Leave { reason, tried: Tried::default(), due: None, behind: false };
        self.defer_or_skip(queue, key, &RowKeys::new(), kept, leave);
    }

    /// A delivery of the stream, or of a replay, leaves memory: into the table, or, while its queue is suspended, into
    /// the gap.
    fn defer_or_skip(
        &mut self,
        queue: QueueNo,
        key: RowKey,
        keys: &RowKeys,
        kept: Kept,
        leave: Leave,
    ) {
        let Leave { reason, tried, due, behind } = leave;
        let deferred = self.queues.deferred_or_new(queue);
        let skip = deferred.is_suspended();
        if !skip {
            let filter = self.deferral.keys.add(queue, keys);
            deferred.backlog_for(filter).defer(&key, keys, &tried, due, behind);
        }
        self.store_row(queue, key, kept, reason, tried, skip);
    }

    fn store_row(
        &mut self,
        queue: QueueNo,
        key: RowKey,
        kept: Kept,
        reason: DeferReason,
        tried: Tried,
        skip: bool,
    ) {
        let Kept { held, txn, ordinal, counted, routed } = kept;
        let more = LEAVING_BYTES - DELIVERY_BYTES;
        self.memory.take(more);
        let counted = counted + more;
        let event = Arc::clone(&held.event);
        let id = RowId { queue: self.queues.id(queue).clone(), key, event: event.id };
        if !skip {
            self.door.reports.deferred(reason);
        }
        let row = Defer { id, event, reason, tried };
        let bytes = LEAVING_BYTES + held.event.size_bytes();
        let kind = if skip { Leaves::Skipped(queue) } else { Leaves::Deferred(queue) };
        self.outbox.leave(Leaving { row, held, txn, ordinal, kind, routed, counted, bytes });
        self.outdate(queue);
    }

    /// What the table `backlog` says of the queue is to be stored anew.
    pub(super) fn outdate(&mut self, queue: QueueNo) {
        if let Some(deferred) = self.queues.deferred_mut(queue)
            && deferred.outdate()
        {
            self.outbox.outdated(queue);
        }
    }

    /// Now on the queue's own clock, which stands still while the queue is stopped.
    pub(super) fn active_us(&self, queue: QueueNo, now: Tick) -> i64 {
        let it = self.queues.at(queue);
        let stopped_us = it.deferred().map_or(0, |deferred| deferred.stopped_us(now));
        let paused_us = self.paused_us(&it.id().endpoint, now);
        self.unix_us(now).saturating_sub(stopped_us).saturating_sub(paused_us)
    }
}

/// What remains in memory of a delivery until its row is stored.
struct Kept {
    held: Arc<SharedEvent>,
    /// The transaction that waits for it; none waits for a replay's, nor for what was a row
    /// before it was routed.
    txn: Option<TxnSeq>,
    ordinal: u64,
    counted: usize,
    /// The row that it was.
    routed: Option<UnroutedKey>,
}

/// How a delivery leaves memory.
struct Leave {
    reason: DeferReason,
    tried: Tried,
    /// It failed, and is not tried before then.
    due: Option<Tick>,
    /// It only leaves because one that failed does.
    behind: bool,
}
