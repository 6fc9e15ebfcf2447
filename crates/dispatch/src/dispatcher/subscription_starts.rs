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

use std::collections::{BTreeMap, VecDeque};

use super::super::lane::Insertion;
use super::Dispatcher;
use super::queues::QueueNo;
use walhook_core::attempt::DeliveryId;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{EventKey, QueueId, SettledRange};
use walhook_core::position::Position;
use walhook_core::tick::Tick;

/// The joins that the stored checkpoint has not passed.
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
#[derive(Debug)]
struct First {
    id: DeliveryId,
    position: Position,
    /// The last row that had to be inserted when no older delivery was left in the queue.
    last_insertion: Option<Insertion>,
}

impl SubscriptionStarts {
    /// The endpoint has joined. More joins before the next event are one.
    fn expect(&mut self, queue: QueueNo, received: Lsn) {
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

    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// How many queues have some.
    pub(super) fn len(&self) -> usize {
        self.queues.len()
    }
}

impl Dispatcher {
    /// The queue's endpoint has joined its account: it gets what is routed from now on.
    pub(super) fn join(&mut self, account: &AccountId, endpoint: &EndpointId) {
        let queue = self.queues.intern(account, endpoint);
        self.queues.keep(queue, true);
        self.routing.starts.expect(queue, self.progress.received());
    }

    /// The next delivery is routed to the queue: the first after a join, perhaps.
    pub(super) fn begin_subscription(&mut self, queue: QueueNo, position: Position) {
        let Some(joins) = self.routing.starts.queues.get_mut(&queue) else { return };
        // What an earlier leader left on a shelf is routed before older events that are read again.
        for first in joins.iter_mut().filter_map(|join| join.first.as_mut()) {
            first.position = first.position.min(position);
        }
        let Some(join) = joins.back_mut() else { panic!("a queue without a start has a place") };
        if join.first.is_none() {
            let id = self.queues.coming_delivery();
            join.first = Some(First { id, position, last_insertion: None });
            self.outbox.touch();
        }
    }

    /// Older events are out of the way: ranges of joins may be stored.
    pub(super) fn touch_starts(&mut self) {
        if !self.routing.starts.is_empty() {
            self.outbox.touch();
        }
    }

    /// The ranges of joins that can be stored. Call after the batch's rows are handed out.
    pub(super) fn hand_out_starts(&mut self) -> Vec<SettledRange> {
        let mut ranges = Vec::new();
        for (queue, joins) in &mut self.routing.starts.queues {
            let it = self.queues.at(*queue);
            let QueueId { account, endpoint } = it.id();
            let Some(join) = joins.front_mut() else {
                panic!("a queue without a start has a place")
            };
            let Some(first) = &mut join.first else { continue };
            let waits = self.routing.waiting.first_position(account);
            if waits.is_some_and(|waits| waits < first.position)
                || self.routing.shelves.holds_back(account)
            {
                // An older event may yet come to the queue.
                continue;
            }
            if first.last_insertion.is_none()
                && it.pending().is_some_and(|in_memory| in_memory.owes_before(first.id))
            {
                continue;
            }
            let last_insertion = first.last_insertion.get_or_insert(self.outbox.insertions());
            if *last_insertion <= self.outbox.handed_out() {
                join.is_storing = true;
                ranges.push(SettledRange {
                    account: account.clone(),
                    endpoint: endpoint.clone(),
                    from: EventKey::before_all_at(Position::FIRST),
                    to: EventKey::before_all_at(first.position),
                });
            }
        }
        ranges
    }

    /// A batch is stored, and with it the checkpoint at `frontier`: joins whose range was in it, and
    /// those that need none any more, let their queues go.
    pub(super) fn end_starts(&mut self, frontier: Lsn, now: Tick) {
        let mut let_go = Vec::new();
        self.routing.starts.queues.retain(|queue, joins| {
            let before = joins.len();
            while joins.front().is_some_and(|join| join.is_storing || join.received < frontier) {
                joins.pop_front();
            }
            if joins.len() < before {
                let_go.push(*queue);
            }
            !joins.is_empty()
        });
        let_go.sort_unstable_by(|a, b| self.queues.id(*a).cmp(self.queues.id(*b)));
        for queue in let_go {
            self.queues.keep(queue, self.routing.starts.queues.contains_key(&queue));
            let held_from = self.routing.starts.held_from(queue);
            if let Some(in_memory) = self.queues.pending_mut(queue) {
                in_memory.hold_from(held_from);
            }
            self.queues.refresh(queue, now);
            self.sync(queue);
        }
    }
}
