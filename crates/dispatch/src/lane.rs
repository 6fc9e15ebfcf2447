//! A lane: one account's pending deliveries, with a queue for each of its endpoints.
//!
//! A queue hands out its deliveries in stream order, but of those that share an ordering key only
//! the oldest: the others wait until it is settled. A delivery whose row changed its key holds both
//! keys. So the events of one row reach one endpoint in commit order, while other rows pass.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::schedule::Pool;
use super::tracker::TxnSeq;
use walhook_core::attempt::DeliveryId;
use walhook_core::event::{AccountId, EndpointId, RowKeys};
use walhook_core::persist::Tried;
use walhook_core::tick::Tick;

mod queue;

pub use queue::{DELIVERY_BYTES, Held, Origin, Pending, QUEUE_BYTES, Queue, Removed};

/// Requests in flight to one endpoint at most, where its row does not say: a quarter of the fast
/// slots.
pub const DEFAULT_MAX_IN_FLIGHT: u32 = 64;

/// Where a new delivery comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The stream: this transaction waits for it.
    Stream(TxnSeq),
    /// The table `deferred`.
    Deferred {
        /// The replay that it belongs to; 0: none.
        replay: i64,
        /// What was tried before.
        tried: Box<Tried>,
    },
    /// An operator's retry or replay.
    Retry {
        /// The dead letter's id; none: a replay's.
        dead_letter: Option<i64>,
        /// The job that asked.
        job: i64,
    },
}

/// A delivery to be queued.
#[derive(Debug)]
pub struct New {
    /// Its handle, above all earlier ones.
    pub id: DeliveryId,
    /// The event.
    pub held: Arc<Held>,
    /// Where it comes from.
    pub source: Source,
    /// This moment.
    pub now: Tick,
}

/// One account's pending deliveries.
#[derive(Debug)]
pub struct Lane {
    /// The account.
    pub account: AccountId,
    queues: HashMap<EndpointId, Box<Queue>>,
    /// For each pool the endpoints to take in turn. May name some that have become unsendable.
    fast: VecDeque<EndpointId>,
    slow: VecDeque<EndpointId>,
    pending: usize,
    /// Waits for its routes: nothing is sent meanwhile.
    pub unrouted: bool,
}

impl Lane {
    /// An empty lane.
    #[must_use]
    pub fn new(account: AccountId) -> Self {
        Self {
            account,
            queues: HashMap::new(),
            fast: VecDeque::new(),
            slow: VecDeque::new(),
            pending: 0,
            unrouted: false,
        }
    }

    /// Adds a delivery behind those to the same endpoint that hold one of `keys`.
    ///
    /// `keys` must not name a key twice. Ids must grow from call to call.
    pub fn push(&mut self, endpoint: &EndpointId, new: New, keys: RowKeys) {
        let New { id, held, source, now } = new;
        let queue = self.queue_at(endpoint, id);
        let (origin, tried) = match source {
            Source::Stream(txn) => (Origin::Stream { txn, ordinal: queue.take_ordinal() }, None),
            Source::Deferred { replay, tried } => {
                (Origin::Deferred { replay, insertion: 0 }, Some(tried))
            }
            Source::Retry { dead_letter, job } => (Origin::Retry { dead_letter, job }, None),
        };
        let attempts = tried.as_ref().map_or(0, |tried| tried.attempts);
        let (since, queued_at, counted) = (now, now, DELIVERY_BYTES);
        let pending = Pending { id, held, origin, attempts, tried, since, queued_at, counted };
        queue.push(pending, keys);
        self.pending += 1;
    }

    /// The next ordinal of the endpoint's queue, for a delivery that is deferred without being
    /// queued. `id` is one that a delivery might have had.
    pub fn take_ordinal(&mut self, endpoint: &EndpointId, id: DeliveryId) -> u64 {
        self.queue_at(endpoint, id).take_ordinal()
    }

    fn queue_at(&mut self, endpoint: &EndpointId, id: DeliveryId) -> &mut Queue {
        // A queue that was forgotten and made anew must not continue its ordinals: ids are above
        // all ordinals given out so far, and never next to one.
        let first_ordinal = id.0.saturating_add(1);
        self.queues.entry(endpoint.clone()).or_insert_with(|| Box::new(Queue::new(first_ordinal)))
    }

    /// Takes a delivery out, whatever its stage, and lets the next ones of its keys go.
    pub fn remove(&mut self, endpoint: &EndpointId, id: DeliveryId) -> Option<Removed> {
        let removed = self.queues.get_mut(endpoint)?.remove(id)?;
        self.pending -= 1;
        Some(removed)
    }

    /// The endpoint's queue, where there is one.
    #[must_use]
    pub fn queue(&self, endpoint: &EndpointId) -> Option<&Queue> {
        self.queues.get(endpoint).map(|queue| &**queue)
    }

    /// The endpoint's queue, where there is one.
    pub fn queue_mut(&mut self, endpoint: &EndpointId) -> Option<&mut Queue> {
        self.queues.get_mut(endpoint).map(|queue| &mut **queue)
    }

    /// Forgets an endpoint's queue, in which nothing is pending. False: it has a turn, and stays.
    pub fn forget(&mut self, endpoint: &EndpointId) -> bool {
        let has_turn = self.queues.get(endpoint).is_some_and(|queue| queue.ring.is_some());
        if !has_turn && let Some(queue) = self.queues.remove(endpoint) {
            debug_assert!(queue.is_empty(), "a queue with deliveries is forgotten");
        }
        !has_turn
    }

    /// Whether it has no queues.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// The endpoints' queues, in no order.
    pub fn queues(&self) -> impl Iterator<Item = (&EndpointId, &Queue)> {
        self.queues.iter().map(|(endpoint, queue)| (endpoint, &**queue))
    }

    /// The endpoints that have a queue.
    pub fn endpoints(&self) -> impl Iterator<Item = &EndpointId> {
        self.queues.keys()
    }

    /// The deliveries pending, in whatever stage.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Puts the endpoint into the ring of its pool if something may be sent to it.
    ///
    /// Returns the pool whose ring it now stands in.
    pub fn refresh(&mut self, endpoint: &EndpointId, now: Tick) -> Option<Pool> {
        let queue = self.queues.get_mut(endpoint)?;
        if queue.ring.is_none() && queue.is_sendable(now) {
            let pool = queue.hold.pool(now);
            queue.ring = Some(pool);
            self.ring_mut(pool).push_back(endpoint.clone());
            return Some(pool);
        }
        queue.ring
    }

    /// The endpoint whose turn it is in this pool; it goes to the ring's end.
    ///
    /// `None` leaves the ring empty: every endpoint in it had become unsendable or changed pools.
    pub fn take_turn(&mut self, pool: Pool, now: Tick) -> Option<EndpointId> {
        while let Some(endpoint) = self.ring_mut(pool).pop_front() {
            let Some(queue) = self.queues.get_mut(&endpoint) else { continue };
            queue.ring = None;
            if queue.is_sendable(now) && queue.hold.pool(now) == pool {
                return Some(endpoint);
            }
            self.refresh(&endpoint, now);
        }
        None
    }

    /// Whether something of it waits for nothing but a slot of this pool.
    #[must_use]
    pub fn is_ready_in(&self, pool: Pool) -> bool {
        let ring = match pool {
            Pool::Fast => &self.fast,
            Pool::Slow => &self.slow,
        };
        !self.unrouted && !ring.is_empty()
    }

    /// Whether something of it waits for nothing but a slot.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_ready_in(Pool::Fast) || self.is_ready_in(Pool::Slow)
    }

    fn ring_mut(&mut self, pool: Pool) -> &mut VecDeque<EndpointId> {
        match pool {
            Pool::Fast => &mut self.fast,
            Pool::Slow => &mut self.slow,
        }
    }
}

#[cfg(test)]
mod tests;
