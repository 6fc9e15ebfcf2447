//! How deliveries end: delivered, dropped, or as a dead letter, which keeps its place until it is stored.

use std::sync::Arc;

use super::super::lane::{DELIVERY_BYTES, Origin, SharedEvent};
use super::super::tracker::TxnSeq;
use super::deferred_queue::Dropped;
use super::outbox::{Body, Dying, RowChange};
use super::queues::QueueNo;
use super::{Dispatcher, EndpointChange};
use walhook_core::attempt::DeliveryId;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{DeadLetter, DeadReason, QueueId, Retried, RowId};
use walhook_core::tick::Tick;

/// How a delivery ends without success.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) reason: DeadReason,
    /// The last error, for a person.
    pub(super) detail: String,
    pub(super) last_status: Option<u16>,
}

/// How a delivery ends of which nothing is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// With a 2xx.
    Delivered,
    /// Its endpoint was removed.
    Dropped,
}

impl Dispatcher {
    /// A change without endpoint becomes a dead letter.
    pub(super) fn dead_letter_unroutable(
        &mut self,
        held: Arc<SharedEvent>,
        detail: String,
        txn: TxnSeq,
    ) {
        self.memory.take(DELIVERY_BYTES);
        self.door.reports.died();
        let letter = DeadLetter {
            event: Arc::clone(&held.event),
            endpoint: None,
            reason: DeadReason::Unroutable,
            detail,
            attempts: 0,
            last_status: None,
            history: Vec::new(),
            replay: None,
        };
        self.outbox.die(Dying { letter, body: Body::Unroutable { txn, held } }, false);
    }

    /// A delivery ends without success.
    pub(super) fn die(&mut self, queue: QueueNo, delivery: DeliveryId, end: End, now: Tick) {
        let QueueId { endpoint, .. } = self.queues.id(queue).clone();
        let in_memory = self.queues.in_use(queue);
        let pending = in_memory.held_mut(delivery);
        let End { reason, detail, last_status } = end;
        let tried = pending.tried.take().unwrap_or_default();
        let letter = DeadLetter {
            event: Arc::clone(&pending.held.event),
            endpoint: Some(endpoint),
            reason,
            detail,
            attempts: pending.attempts,
            last_status: last_status.or(tried.last_status),
            history: tried.history,
            replay: pending.row_key().replay,
        };
        let (key, origin) = (pending.row_key(), pending.origin);
        let (attempted, body) = match origin {
            Origin::Stream { txn, ordinal } => {
                (in_memory.die(delivery), Body::Delivery { txn, ordinal, queue, id: delivery })
            }
            Origin::Deferred { insertion, .. } => {
                let attempted = in_memory.die(delivery);
                let id = self.queues.id(queue).clone();
                let row = RowId { queue: id, key, event: letter.event.id };
                (attempted, Body::Row { row, insertion, queue, id: delivery })
            }
            Origin::Retry { dead_letter, job } => {
                self.log_dead(&letter, origin.asked(), now);
                self.outbox.retried(Retried { dead_letter, job, error: Some(letter) });
                self.forget(queue, delivery);
                return;
            }
            Origin::Replay(replay) => {
                self.log_dead(&letter, origin.asked(), now);
                self.end_replay(replay, Some(letter));
                self.forget(queue, delivery);
                return;
            }
        };
        self.door.reports.died();
        self.outbox.die(Dying { letter, body }, attempted);
    }

    /// A delivery ends with a 2xx, or because its endpoint was removed.
    pub(super) fn settle(&mut self, queue: QueueNo, delivery: DeliveryId, ended: Ended, now: Tick) {
        if ended == Ended::Dropped {
            self.log_dropped(queue, delivery, now);
        }
        let pending = self.queues.remove(queue, delivery).pending;
        let event = &pending.held.event;
        match pending.origin {
            Origin::Stream { txn, ordinal } => {
                self.progress.settle(self.queues.id(queue), ordinal, event, txn);
                self.outbox.touch();
            }
            Origin::Deferred { insertion, .. } => {
                let id = self.queues.id(queue).clone();
                let row = RowId { key: pending.row_key(), event: event.id, queue: id };
                self.queues.with_row(queue).backlog_mut().resolve(&row.key);
                self.tell_dropped(queue, event.position.commit_lsn(), ended);
                self.outdate(queue);
                let change = match ended {
                    Ended::Delivered => RowChange::Remove,
                    Ended::Dropped => RowChange::Drop,
                };
                self.outbox.change(row, insertion, change);
            }
            Origin::Retry { dead_letter, job } => {
                self.outbox.retried(Retried { dead_letter, job, error: None });
            }
            Origin::Replay(replay) => self.end_replay(replay, None),
        }
        self.free(pending.held, pending.counted);
    }

    /// What was dropped of the queue's rows is told once, with the last of them, or when the endpoint is back.
    fn tell_dropped(&mut self, queue: QueueNo, commit: Lsn, ended: Ended) {
        let deferred = self.queues.with_row(queue);
        if ended == Ended::Dropped {
            deferred.note_dropped(commit);
        }
        let Some(dropped) = deferred.take_dropped(ended == Ended::Delivered) else { return };
        let Dropped { deliveries, first, last } = *dropped;
        let QueueId { account, endpoint } = self.queues.id(queue).clone();
        let detail = format!(
            "dropped {deliveries} deferred deliveries: once it is back, `walhook replay start --from {first} --to {} \
             --endpoint {endpoint} --account {account}` sends them again",
            Lsn(last.0.saturating_add(1))
        );
        self.tell_of(&QueueId { account, endpoint }, EndpointChange::Removed, detail);
    }

    /// What died is stored: its transaction no longer waits, and what waited for its keys goes on.
    pub(super) fn handle_letter_stored(&mut self, dying: Dying, now: Tick) {
        match dying.body {
            Body::Unroutable { txn, held } => {
                self.progress.complete(txn);
                self.free(held, DELIVERY_BYTES);
            }
            Body::Unrouted { held, .. } => self.free(held, DELIVERY_BYTES),
            Body::Delivery { txn, queue, id, .. } => {
                self.progress.complete(txn);
                self.leave_room(queue, id, now);
            }
            Body::Row { row, queue, id, .. } => {
                let backlog = self.queues.with_row(queue).backlog_mut();
                backlog.resolve(&row.key);
                backlog.removed(&row.key);
                self.outdate(queue);
                self.leave_room(queue, id, now);
            }
        }
    }

    fn leave_room(&mut self, queue: QueueNo, delivery: DeliveryId, now: Tick) {
        self.forget(queue, delivery);
        self.queues.refresh(queue, now);
        self.sync(queue);
        self.queues.rest_if_idle(queue);
        self.look_after(queue, now);
    }

    pub(super) fn forget(&mut self, queue: QueueNo, delivery: DeliveryId) {
        let removed = self.queues.remove(queue, delivery);
        self.free(removed.pending.held, removed.pending.counted);
    }

    /// Gives a delivery's memory back.
    pub(super) fn free(&mut self, held: Arc<SharedEvent>, counted: usize) {
        self.memory.give_back(counted);
        self.memory.let_go(held);
    }
}
