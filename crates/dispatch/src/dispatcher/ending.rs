//! How deliveries end: delivered, dropped, or as a dead letter, which keeps its place until it is stored.

use std::sync::Arc;

use super::super::lane::{DELIVERY_BYTES, Held, Origin};
use super::super::schedule::LaneId;
use super::super::tracker::TxnSeq;
use super::Dispatcher;
use super::durable::{Body, Dying, RowChange};
use walhook_core::attempt::DeliveryId;
use walhook_core::event::{EndpointId, Unroutable};
use walhook_core::persist::{DeadLetter, DeadReason, QueueId, RowId};
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
    pub(super) fn die_unroutable(&mut self, unroutable: Unroutable, txn: TxnSeq) {
        let Unroutable { event, reason: _, detail } = unroutable;
        self.bytes += DELIVERY_BYTES;
        self.counters.dead += 1;
        let letter = DeadLetter {
            event: Arc::clone(&event),
            endpoint: None,
            reason: DeadReason::Unroutable,
            detail,
            attempts: 0,
            last_status: None,
            history: Vec::new(),
            replay: 0,
        };
        let body = Body::Unroutable { txn, held: Arc::new(Held { event }) };
        self.durable.die(Dying { letter, body });
    }

    /// A delivery ends without success.
    pub(super) fn die(
        &mut self,
        id: LaneId,
        endpoint: &EndpointId,
        delivery: DeliveryId,
        end: End,
    ) {
        let Some(queue) = self.queue_id(id, endpoint) else { return };
        let Some(in_memory) = self.lanes.get_mut(&id).and_then(|lane| lane.queue_mut(endpoint))
        else {
            return;
        };
        let Some(pending) = in_memory.get_mut(delivery) else { return };
        let End { reason, detail, last_status } = end;
        let tried = pending.tried.take().unwrap_or_default();
        let letter = DeadLetter {
            event: Arc::clone(&pending.held.event),
            endpoint: Some(endpoint.clone()),
            reason,
            detail,
            attempts: pending.attempts,
            last_status: last_status.or(tried.last_status),
            history: tried.history,
            replay: pending.row_key().replay,
        };
        let (key, origin) = (pending.row_key(), pending.origin);
        let body = match origin {
            Origin::Stream { txn, ordinal } => {
                Body::Delivery { txn, ordinal, lane: id, endpoint: endpoint.clone(), id: delivery }
            }
            Origin::Deferred { insertion, .. } => {
                let row = RowId { queue, key, event: letter.event.id };
                Body::Row { row, insertion, lane: id, id: delivery }
            }
            Origin::Retry { dead_letter, job } => {
                self.end_retry(dead_letter, job, Some(letter));
                self.forget(id, endpoint, delivery);
                return;
            }
        };
        in_memory.die(delivery);
        self.counters.dead += 1;
        self.durable.die(Dying { letter, body });
    }

    /// A delivery ends with a 2xx, or because its endpoint was removed.
    pub(super) fn settle(
        &mut self,
        id: LaneId,
        endpoint: &EndpointId,
        delivery: DeliveryId,
        ended: Ended,
    ) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let Some(removed) = lane.remove(endpoint, delivery) else { return };
        let account = lane.account.clone();
        let pending = removed.pending;
        let event = &pending.held.event;
        match pending.origin {
            Origin::Stream { txn, ordinal } => {
                self.ahead.push(&account, endpoint, ordinal, event, txn);
                self.tracker.complete(txn);
                self.durable.touch();
            }
            Origin::Deferred { insertion, .. } => {
                let queue = QueueId { account, endpoint: endpoint.clone() };
                let row = RowId { key: pending.row_key(), event: event.id, queue };
                self.detour(&row.queue).backlog.resolve(&row.key);
                self.outdate(&row.queue);
                let change = match ended {
                    Ended::Delivered => RowChange::Remove,
                    Ended::Dropped => RowChange::Drop,
                };
                self.durable.change(row, insertion, change);
            }
            Origin::Retry { dead_letter, job } => self.end_retry(dead_letter, job, None),
        }
        self.free(pending.held, pending.counted);
    }

    /// What died is stored: its transaction no longer waits, and what waited for its keys goes on.
    pub(super) fn bury(&mut self, dying: Dying, now: Tick) {
        match dying.body {
            Body::Unroutable { txn, held } => {
                self.tracker.complete(txn);
                self.free(held, DELIVERY_BYTES);
            }
            Body::Unrouted { held, .. } => self.free(held, DELIVERY_BYTES),
            Body::Delivery { txn, lane, endpoint, id, .. } => {
                self.tracker.complete(txn);
                self.leave_room(lane, &endpoint, id, now);
            }
            Body::Row { row, lane, id, .. } => {
                let backlog = &mut self.detour(&row.queue).backlog;
                backlog.resolve(&row.key);
                backlog.removed(&row.key);
                self.outdate(&row.queue);
                self.leave_room(lane, &row.queue.endpoint, id, now);
            }
        }
    }

    fn leave_room(&mut self, id: LaneId, endpoint: &EndpointId, delivery: DeliveryId, now: Tick) {
        self.forget(id, endpoint, delivery);
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.refresh(endpoint, now);
        }
        self.sync(id);
        let queue = self.queue_id(id, endpoint);
        self.rest_if_idle(id, endpoint, delivery);
        if let Some(queue) = queue {
            self.look_after(&queue, now);
        }
    }

    pub(super) fn forget(&mut self, id: LaneId, endpoint: &EndpointId, delivery: DeliveryId) {
        let lane = self.lanes.get_mut(&id);
        if let Some(removed) = lane.and_then(|lane| lane.remove(endpoint, delivery)) {
            self.free(removed.pending.held, removed.pending.counted);
        }
    }

    /// Gives a delivery's memory back.
    pub(super) fn free(&mut self, held: Arc<Held>, counted: usize) {
        debug_assert!(counted <= self.bytes, "more memory is given back than was taken");
        self.bytes = self.bytes.saturating_sub(counted);
        self.let_go(held);
    }
}
