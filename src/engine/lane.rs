//! A lane: one account's pending deliveries, with a queue for each of its endpoints.
//!
//! A queue hands out its deliveries in stream order, but of those that share an ordering key only
//! the oldest: the others wait until it is settled. A delivery whose row changed its key holds both
//! keys. So the events of one row reach one endpoint in commit order, while other rows pass.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::attempt::DeliveryId;
use super::event::{AccountId, EndpointId, Event, RowKeys};
use super::schedule::{AdaptiveLimit, HoldEstimate, Pool};
use super::tick::Tick;
use super::tracker::TxnSeq;

/// Requests in flight to one endpoint at most, where its row does not say: a quarter of the fast
/// slots.
pub const DEFAULT_MAX_IN_FLIGHT: u32 = 64;

/// Where a pending delivery came from, and so what settling it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The stream.
    Stream {
        /// The transaction that waits for it.
        txn: TxnSeq,
        /// Which delivery to this endpoint it is, in stream order.
        ordinal: u64,
    },
    /// An operator's retry of a dead letter.
    Retry {
        /// The dead letter's id.
        dead_letter: i64,
        /// The job that asked.
        job: i64,
    },
}

/// Where a new delivery comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The stream: this transaction waits for it.
    Stream(TxnSeq),
    /// An operator's retry.
    Retry {
        /// The dead letter's id.
        dead_letter: i64,
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

/// An event while any of its deliveries is pending. Dropping the last one frees its memory.
#[derive(Debug)]
pub struct Held {
    /// The event.
    pub event: Arc<Event>,
}

/// A delivery in memory.
#[derive(Debug)]
pub struct Pending {
    /// Its handle; grows in stream order along one queue.
    pub id: DeliveryId,
    /// The event, shared with its other deliveries.
    pub held: Arc<Held>,
    /// Where it came from.
    pub origin: Origin,
    /// Attempts made.
    pub attempts: u32,
    /// When it was queued, or became due again.
    pub queued_at: Tick,
}

/// Where a queued delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Behind `n` older deliveries that hold one of its keys.
    Behind(usize),
    /// May be sent.
    Ready,
    /// Being sent.
    InFlight,
    /// Failed, and not due yet. Holds its keys.
    BackingOff,
    /// A dead letter that is not stored yet. Holds its keys: what follows must not overtake it, for
    /// after a crash it would be sent again.
    Dying,
}

#[derive(Debug)]
struct Entry {
    pending: Pending,
    keys: RowKeys,
    stage: Stage,
}

/// One endpoint's pending deliveries.
#[derive(Debug)]
pub struct Queue {
    entries: HashMap<DeliveryId, Entry>,
    /// For each ordering key its deliveries, oldest first; the first holds the key.
    keys: HashMap<u64, VecDeque<DeliveryId>>,
    ready: BTreeSet<DeliveryId>,
    in_flight: u32,
    dying: usize,
    next_ordinal: u64,
    /// No request before then: the endpoint's own rate limit.
    not_before: Tick,
    /// How long its requests hold a slot.
    pub hold: HoldEstimate,
    /// How many it takes at once.
    pub limit: AdaptiveLimit,
    /// The pool in whose ring of the lane it stands.
    ring: Option<Pool>,
}

impl Queue {
    fn new(first_ordinal: u64) -> Self {
        Self {
            entries: HashMap::new(),
            keys: HashMap::new(),
            ready: BTreeSet::new(),
            in_flight: 0,
            dying: 0,
            next_ordinal: first_ordinal,
            not_before: Tick(0),
            hold: HoldEstimate::new(),
            limit: AdaptiveLimit::new(DEFAULT_MAX_IN_FLIGHT),
            ring: None,
        }
    }

    fn take_ordinal(&mut self) -> u64 {
        self.next_ordinal += 1;
        self.next_ordinal - 1
    }

    fn push(&mut self, pending: Pending, keys: RowKeys) {
        let id = pending.id;
        let mut behind = 0;
        for key in &keys {
            let holders = self.keys.entry(*key).or_default();
            behind += usize::from(!holders.is_empty());
            holders.push_back(id);
        }
        let stage = if behind == 0 { Stage::Ready } else { Stage::Behind(behind) };
        if stage == Stage::Ready {
            self.ready.insert(id);
        }
        self.entries.insert(id, Entry { pending, keys, stage });
    }

    /// The oldest delivery that may be sent.
    #[must_use]
    pub fn first_ready(&self) -> Option<&Pending> {
        let id = self.ready.first()?;
        self.entries.get(id).map(|entry| &entry.pending)
    }

    /// Marks a ready delivery as being sent, and spaces the next one by the row's rate limit.
    pub fn start(&mut self, id: DeliveryId, now: Tick, rate_per_second: Option<f64>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        debug_assert_eq!(entry.stage, Stage::Ready, "only what is ready is sent");
        entry.stage = Stage::InFlight;
        entry.pending.attempts += 1;
        self.ready.remove(&id);
        self.in_flight += 1;
        if let Some(rate) = rate_per_second.filter(|rate| *rate > 0.0) {
            let spacing = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX);
            self.not_before = self.not_before.max(now) + spacing;
        }
    }

    /// A delivery in flight failed and will be tried again; it keeps its keys.
    pub fn back_off(&mut self, id: DeliveryId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            debug_assert_eq!(entry.stage, Stage::InFlight, "only what was sent can fail");
            entry.stage = Stage::BackingOff;
            self.in_flight = self.in_flight.saturating_sub(1);
        }
    }

    /// A delivery ends as a dead letter. It keeps its keys until that is stored and it is removed.
    pub fn die(&mut self, id: DeliveryId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        match std::mem::replace(&mut entry.stage, Stage::Dying) {
            Stage::InFlight => self.in_flight = self.in_flight.saturating_sub(1),
            Stage::Ready => _ = self.ready.remove(&id),
            Stage::Behind(_) | Stage::BackingOff => {}
            Stage::Dying => debug_assert!(false, "a delivery dies once"),
        }
        self.dying += 1;
    }

    /// The deliveries that are neither in flight nor dying, in stream order.
    #[must_use]
    pub fn idle(&self) -> Vec<DeliveryId> {
        let others = usize::try_from(self.in_flight).unwrap_or(usize::MAX) + self.dying;
        if self.entries.len().saturating_sub(others) == self.ready.len() {
            return self.ready.iter().copied().collect();
        }
        let idle = |entry: &&Entry| !matches!(entry.stage, Stage::InFlight | Stage::Dying);
        let mut ids: Vec<_> = self.entries.values().filter(idle).map(|e| e.pending.id).collect();
        ids.sort_unstable();
        ids
    }

    /// A delivery that backed off is due.
    pub fn due(&mut self, id: DeliveryId, now: Tick) {
        if let Some(entry) = self.entries.get_mut(&id)
            && entry.stage == Stage::BackingOff
        {
            entry.stage = Stage::Ready;
            entry.pending.queued_at = now;
            self.ready.insert(id);
        }
    }

    /// Looks at a delivery.
    #[must_use]
    pub fn get(&self, id: DeliveryId) -> Option<&Pending> {
        self.entries.get(&id).map(|entry| &entry.pending)
    }

    fn remove(&mut self, id: DeliveryId) -> Option<Pending> {
        let entry = self.entries.remove(&id)?;
        match entry.stage {
            Stage::InFlight => self.in_flight = self.in_flight.saturating_sub(1),
            Stage::Ready => _ = self.ready.remove(&id),
            Stage::Dying => self.dying -= 1,
            Stage::Behind(_) | Stage::BackingOff => {}
        }
        for key in &entry.keys {
            self.release(*key, id);
        }
        Some(entry.pending)
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Whether something may be sent at this moment.
    #[must_use]
    pub fn is_sendable(&self, now: Tick) -> bool {
        !self.ready.is_empty() && self.in_flight < self.limit.current() && self.not_before <= now
    }

    /// When the rate limit lets the next request go, where only that holds it.
    #[must_use]
    pub fn rate_limited_until(&self, now: Tick) -> Option<Tick> {
        let held = !self.ready.is_empty() && self.not_before > now;
        held.then_some(self.not_before)
    }

    fn release(&mut self, key: u64, id: DeliveryId) {
        let Some(holders) = self.keys.get_mut(&key) else { return };
        let was_first = holders.front() == Some(&id);
        if was_first {
            holders.pop_front();
        } else {
            holders.retain(|other| *other != id);
        }
        let Some(next) = holders.front().copied() else {
            self.keys.remove(&key);
            return;
        };
        if !was_first {
            return;
        }
        let Some(entry) = self.entries.get_mut(&next) else { return };
        match entry.stage {
            Stage::Behind(1) => {
                entry.stage = Stage::Ready;
                self.ready.insert(next);
            }
            Stage::Behind(n) => entry.stage = Stage::Behind(n - 1),
            // It died while it was behind.
            Stage::Dying => {}
            Stage::Ready | Stage::InFlight | Stage::BackingOff => {
                debug_assert!(false, "a delivery went ahead of the one that held its key");
            }
        }
    }
}

/// One account's pending deliveries.
#[derive(Debug)]
pub struct Lane {
    /// The account.
    pub account: AccountId,
    queues: HashMap<EndpointId, Queue>,
    /// For each pool the endpoints to take in turn. May name some that have become unsendable.
    fast: VecDeque<EndpointId>,
    slow: VecDeque<EndpointId>,
    pending: usize,
    /// The delivery after which it became idle last.
    pub last: DeliveryId,
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
            last: DeliveryId(0),
            unrouted: false,
        }
    }

    /// Adds a delivery behind those to the same endpoint that hold one of `keys`.
    ///
    /// `keys` must not name a key twice. Ids must grow from call to call.
    pub fn push(&mut self, endpoint: &EndpointId, new: New, keys: RowKeys) {
        let id = new.id;
        // A queue that was forgotten and made anew must not continue its ordinals: ids are above
        // all ordinals given out so far, and never next to one.
        let queue = self
            .queues
            .entry(endpoint.clone())
            .or_insert_with(|| Queue::new(id.0.saturating_add(1)));
        let origin = match new.source {
            Source::Stream(txn) => Origin::Stream { txn, ordinal: queue.take_ordinal() },
            Source::Retry { dead_letter, job } => Origin::Retry { dead_letter, job },
        };
        let pending = Pending { id, held: new.held, origin, attempts: 0, queued_at: new.now };
        queue.push(pending, keys);
        self.pending += 1;
    }

    /// Takes a delivery out, whatever its stage, and lets the next ones of its keys go.
    pub fn remove(&mut self, endpoint: &EndpointId, id: DeliveryId) -> Option<Pending> {
        let pending = self.queues.get_mut(endpoint)?.remove(id)?;
        self.pending -= 1;
        Some(pending)
    }

    /// The endpoint's queue, where there is one.
    #[must_use]
    pub fn queue(&self, endpoint: &EndpointId) -> Option<&Queue> {
        self.queues.get(endpoint)
    }

    /// The endpoint's queue, where there is one.
    pub fn queue_mut(&mut self, endpoint: &EndpointId) -> Option<&mut Queue> {
        self.queues.get_mut(endpoint)
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
