//! An endpoint that joins an account in mid-stream gets no event from before, also after a crash.
//!
//! After a crash the stream is read again from the checkpoint, and routed to the endpoints of then. An
//! endpoint that had joined behind the checkpoint would get the events between the two, after newer
//! ones of the same rows, which it has received already. So, before the first event is sent to it, it
//! is stored that everything before that event is settled for it: a settled range like any other. That
//! takes one state transaction, for which the endpoint's deliveries wait. The first event may also come from
//! a row without an endpoint (see [`super::unrouted`]): its deferred deliveries wait as well.
//!
//! It must be true, too. An endpoint that was there before (its row was switched on again, or moved, or
//! wants more types) may have older deliveries in memory. Those end first: delivered, dead or deferred. Nor is
//! anything stored while an older event of the account has not been routed: rows of an earlier leader's are
//! routed before events that are read again.
//!
//! # Invariants
//!
//! - A queue is known here as long as one of its joins is; the dispatcher keeps it for as long.
//! - A queue's joins stand in the order in which they happened; only the last one may wait for its first event.

use std::collections::{BTreeMap, VecDeque};

use super::super::lane::Insertion;
use super::queues::QueueNo;
use walhook_core::attempt::DeliveryId;
use walhook_core::lsn::Lsn;
use walhook_core::position::Position;

/// See the module's documentation: the joins that the stored checkpoint has not passed.
#[derive(Debug, Default)]
pub(super) struct SubscriptionStarts {
    /// Of each queue in the order in which they happened; none is left without one. The first holds
    /// the queue, once it has a first event.
    queues: BTreeMap<QueueNo, VecDeque<SubscriptionStart>>,
}

#[derive(Debug)]
struct SubscriptionStart {
    /// How far the stream was read then. Once the checkpoint is beyond, nothing from before will be
    /// read again.
    received: Lsn,
    first: Option<First>,
    /// Its range is in the state transaction under way.
    is_storing: bool,
}

/// The first delivery after a join.
#[derive(Debug, Clone, Copy)]
pub(super) struct First {
    pub(super) queue: QueueNo,
    pub(super) id: DeliveryId,
    pub(super) position: Position,
    /// The last row that had to be inserted when no older delivery was left in the queue.
    pub(super) last_insertion: Option<Insertion>,
}

impl SubscriptionStarts {
    /// The endpoint has joined. More joins before the next event are one.
    pub(super) fn expect(&mut self, queue: QueueNo, received: Lsn) {
        let joins = self.queues.entry(queue).or_default();
        match joins.back_mut().filter(|join| join.first.is_none()) {
            Some(join) => join.received = received,
            None => joins.push_back(SubscriptionStart { received, first: None, is_storing: false }),
        }
    }

    /// From which delivery on the queue is held back.
    pub(super) fn held_from(&self, queue: QueueNo) -> Option<DeliveryId> {
        let first = self.queues.get(&queue)?.front()?.first.as_ref()?;
        Some(first.id)
    }

    /// Whether none is known.
    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// How many queues have some.
    pub(super) fn len(&self) -> usize {
        self.queues.len()
    }

    /// Whether the queue has some.
    pub(super) fn has(&self, queue: QueueNo) -> bool {
        self.queues.contains_key(&queue)
    }

    /// A delivery with this handle is routed to the queue, of an event at this position. True: it is the first after
    /// a join.
    pub(super) fn begin(&mut self, queue: QueueNo, id: DeliveryId, position: Position) -> bool {
        let Some(joins) = self.queues.get_mut(&queue) else { return false };
        // What an earlier leader left on a shelf is routed before older events that are read again.
        for first in joins.iter_mut().filter_map(|join| join.first.as_mut()) {
            first.position = first.position.min(position);
        }
        let Some(join) = joins.back_mut() else { panic!("a queue without a start has a place") };
        let is_first = join.first.is_none();
        if is_first {
            join.first = Some(First { queue, id, position, last_insertion: None });
        }
        is_first
    }

    /// The deliveries that hold their queues, in the order of these.
    pub(super) fn firsts(&self) -> impl Iterator<Item = First> {
        self.queues.values().filter_map(|joins| joins.front()?.first)
    }

    /// No older delivery is left in the queue that is not among the insertions up to `last`; `is_storing`: the
    /// range of its join is in the batch that is handed out.
    pub(super) fn note_last(&mut self, queue: QueueNo, last: Insertion, is_storing: bool) {
        let join = self.queues.get_mut(&queue).and_then(VecDeque::front_mut);
        let Some(join) = join else { panic!("a join is stored of a queue that has none") };
        if let Some(first) = &mut join.first {
            first.last_insertion = Some(last);
        }
        join.is_storing |= is_storing;
    }

    /// A batch is stored, and with it the checkpoint at `frontier`: joins whose range was in it, and those that
    /// need none any more, are over. Returns their queues.
    pub(super) fn end(&mut self, frontier: Lsn) -> Vec<QueueNo> {
        let mut over = Vec::new();
        self.queues.retain(|queue, joins| {
            let before = joins.len();
            while joins.front().is_some_and(|join| join.is_storing || join.received < frontier) {
                joins.pop_front();
            }
            if joins.len() < before {
                over.push(*queue);
            }
            !joins.is_empty()
        });
        over
    }
}

#[cfg(test)]
mod tests;
