//! The dispatcher: owns lanes, scheduler and tracker, and decides everything right of the boundary
//! between event and route.
//!
//! ```text
//!              ┌───────────────────────── Dispatcher ─────────────────────────┐
//! handle_item ─┤ route ─► lane ─► schedule ├─ poll_attempt ─► (HTTP) ─► handle_outcome
//!              │   ▲                       │                                   │
//!              │   └ poll_lookup/handle_lookup (SQL)          settle ◄─────────┘
//!              │                                                 │
//!              │                          tracker ◄──────────────┤
//!              └───────── poll_persist ─► (SQL) ─► handle_persisted ─► flush LSN
//! ```
//!
//! Entry points are `handle_*`, exits are `poll_*`; `now` comes in, nothing is awaited. One task
//! drives it, without a mutex. The same code runs in the simulation by seed.
//!
//! # What it promises
//!
//! - A transaction's deliveries are counted in the tracker before its end is: an event whose routes
//!   are not known yet counts as one. So the frontier never passes what is not settled.
//! - A dead letter counts as settled only when [`Dispatcher::handle_persisted`] says that it is
//!   stored.
//! - At most [`UNPERSISTED_MAX`] outcomes are not durable, beside what is in flight: beyond that, and
//!   while a state transaction takes longer than [`PERSIST_SLOW`], nothing is sent.
//! - Memory: each pending event is counted once, each delivery of it by a constant. At the limit
//!   [`Dispatcher::wants_input`] says no.

mod durable;
mod input;
mod send;
#[cfg(test)]
mod simulation;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;

use super::attempt::DeliveryId;
use super::event::{AccountId, EndpointId, Event};
use super::lane::{Held, Lane};
use super::lsn::Lsn;
use super::persist::{BacklogRow, DisableEndpoint, SettledRange};
use super::route::Router;
use super::schedule::{LaneId, Pool, Scheduler};
use super::settle::SettlePolicy;
use super::settled::{Ahead, Recovered};
use super::tick::Tick;
use super::tracker::{Tracker, TxnSeq};

use durable::Durable;
use input::Parked;
use send::InFlight;
pub use send::{Dispatch, Settled};

/// Outcomes that may be lost by a crash, and so sent twice, beside what is in flight.
pub const UNPERSISTED_MAX: usize = 4_096;

/// A state transaction that takes longer stops sending until it is done.
pub const PERSIST_SLOW: Duration = Duration::from_secs(1);

/// What a queued delivery takes beside its event: its entry, its keys, its place in the maps.
const DELIVERY_BYTES: usize = 320;

/// Lanes kept although nothing is pending in them, for what they know of their endpoints.
const IDLE_LANES: usize = 4_096;

/// What is delivered in order to one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordering {
    /// The events of one row; of tables without a primary key, those of the account.
    Row,
    /// All events of the account.
    Account,
    /// Nothing.
    None,
}

/// What the configuration decides here.
#[derive(Debug, Clone)]
pub struct Settings {
    /// For pending events and cached routes together, in bytes.
    pub memory_limit: usize,
    /// Requests in flight to endpoints that answer within a second.
    pub fast_slots: u32,
    /// Requests in flight beside those, to slower endpoints.
    pub slow_slots: u32,
    /// What is delivered in order.
    pub ordering: Ordering,
    /// What an outcome means.
    pub settle: SettlePolicy,
}

/// Where an earlier leader left off.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// The checkpoint.
    pub frontier: Lsn,
    /// What is settled ahead of it.
    pub settled: Vec<SettledRange>,
    /// The endpoints that walhook has switched off.
    pub disabled: Vec<DisableEndpoint>,
    /// The queues that have deferred rows.
    pub backlog: Vec<BacklogRow>,
}

/// An operator's retry of one dead letter.
#[derive(Debug, Clone)]
pub struct Retry {
    /// The dead letter's id.
    pub dead_letter: i64,
    /// The job that asked.
    pub job: i64,
    /// What to send.
    pub event: Arc<Event>,
    /// Where to.
    pub endpoint: EndpointId,
}

/// What happened so far, for metrics. Each only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Deliveries that an endpoint took.
    pub delivered: u64,
    /// Deliveries (and unroutable changes) that became dead letters.
    pub dead: u64,
    /// Deliveries whose endpoint was removed.
    pub dropped: u64,
}

/// How things stand, for metrics and `/readyz`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Lanes with a delivery that waits for nothing but a slot.
    pub lanes_ready: usize,
    /// Lanes whose pending deliveries all wait for something else.
    pub lanes_waiting: usize,
    /// Bytes that pending events and deliveries take.
    pub queued_bytes: usize,
    /// Requests in flight to fast endpoints.
    pub in_flight_fast: u32,
    /// Requests in flight to slow endpoints.
    pub in_flight_slow: u32,
    /// When the oldest transaction that is not settled was read.
    pub oldest_unsettled: Option<Tick>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Dispatcher {
    settings: Settings,
    rng: SmallRng,
    router: Router,
    tracker: Tracker,
    scheduler: Scheduler,
    lane_of: HashMap<AccountId, LaneId>,
    lanes: HashMap<LaneId, Lane>,
    /// Lanes in the order in which they became idle, with the delivery that was their last; some
    /// are active again.
    idle: VecDeque<(LaneId, DeliveryId)>,
    /// Events whose account's routes are being looked up, in stream order.
    parked: HashMap<AccountId, VecDeque<Parked>>,
    in_flight: HashMap<DeliveryId, InFlight>,
    /// Requests from the fast pool by their start; some have ended.
    aging: VecDeque<(Tick, DeliveryId)>,
    timers: BinaryHeap<Reverse<Timer>>,
    disabled: HashMap<EndpointId, String>,
    recovered: Recovered,
    ahead: Ahead,
    durable: Durable,
    /// The transaction that is being read.
    reading: Option<TxnSeq>,
    /// Transactions that changed a watched table and that no look-up has been known to see: each
    /// holds the frontier (see [`super::route`]).
    unseen: Vec<(u32, TxnSeq)>,
    next_id: u64,
    bytes: usize,
    counters: Counters,
    stopping: bool,
}

/// Something that becomes possible at a moment.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Timer {
    due: Tick,
    lane: LaneId,
    endpoint: EndpointId,
    /// A delivery that backed off; else the endpoint's rate limit lets the next one go.
    delivery: Option<DeliveryId>,
}

impl Dispatcher {
    /// A dispatcher that goes on where `start` says.
    #[must_use]
    pub fn new(settings: Settings, start: Start, rng: SmallRng) -> Self {
        // An eighth of the memory caches routes of accounts that have nothing pending.
        let cache_bytes = settings.memory_limit / 8;
        let disabled = start.disabled.into_iter().map(|d| (d.endpoint, d.reason)).collect();
        Self {
            rng,
            router: Router::new(cache_bytes as u64),
            tracker: Tracker::new(start.frontier),
            scheduler: Scheduler::new(settings.fast_slots, settings.slow_slots),
            lane_of: HashMap::new(),
            lanes: HashMap::new(),
            idle: VecDeque::new(),
            parked: HashMap::new(),
            in_flight: HashMap::new(),
            aging: VecDeque::new(),
            timers: BinaryHeap::new(),
            disabled,
            recovered: Recovered::from_ranges(start.settled),
            ahead: Ahead::new(),
            durable: Durable::new(start.frontier),
            reading: None,
            unseen: Vec::new(),
            next_id: 0,
            bytes: cache_bytes,
            counters: Counters::default(),
            stopping: false,
            settings,
        }
    }

    /// Whether there is room for more of the stream.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        let bookkeeping = self.tracker.open_transactions() * 64;
        !self.stopping
            && self.bytes + bookkeeping < self.settings.memory_limit
            && !self.router.is_full()
    }

    /// Ends the sending: what is in flight may end, and what is settled may be stored.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// After [`Dispatcher::stop`]: whether nothing is in flight or still to be stored.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.in_flight.is_empty() && self.durable.is_clean(self.tracker.frontier())
    }

    /// When something may have become possible although nothing else happens.
    #[must_use]
    pub fn deadline(&self, now: Tick) -> Option<Tick> {
        let timer = self.timers.peek().map(|Reverse(timer)| timer.due);
        // Where the slow pool is full, only an outcome lets an old request move.
        let room = self.scheduler.in_flight(Pool::Slow) < self.settings.slow_slots;
        let aging = self.aging.front().filter(|_| room).map(|(start, _)| *start + send::FAST_HOLD);
        let persist = self.durable.deadline(self.tracker.frontier(), self.stopping);
        let lookup = self.router.deadline();
        let next = [timer, aging, persist, lookup].into_iter().flatten().min();
        next.map(|tick| tick.max(now))
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Everything before this is settled; it may not be stored yet.
    #[must_use]
    pub fn frontier(&self) -> Lsn {
        self.tracker.frontier()
    }

    /// How things stand.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        let active = self.lanes.values().filter(|lane| lane.pending() > 0);
        let (ready, waiting): (Vec<&Lane>, Vec<&Lane>) = active.partition(|lane| lane.is_ready());
        Gauges {
            lanes_ready: ready.len(),
            lanes_waiting: waiting.len(),
            queued_bytes: self.bytes,
            in_flight_fast: self.scheduler.in_flight(Pool::Fast),
            in_flight_slow: self.scheduler.in_flight(Pool::Slow),
            oldest_unsettled: self.tracker.oldest_unsettled(),
        }
    }

    /// The account's lane, made when there is none.
    fn lane(&mut self, account: &AccountId, weight: f64) -> LaneId {
        if let Some(id) = self.lane_of.get(account) {
            return *id;
        }
        let id = self.scheduler.add_lane(weight);
        self.lane_of.insert(account.clone(), id);
        self.lanes.insert(id, Lane::new(account.clone()));
        self.router.pin(account);
        id
    }

    /// Tells the scheduler from which pools the lane could send.
    fn sync(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get(&id) else { return };
        for pool in [Pool::Fast, Pool::Slow] {
            self.scheduler.set_ready(id, pool, lane.is_ready_in(pool));
        }
    }

    /// A lane in which nothing is pending is kept for a while, for what it knows of its endpoints.
    fn rest_if_idle(&mut self, id: LaneId, last: DeliveryId) {
        let Some(lane) = self.lanes.get_mut(&id).filter(|lane| lane.pending() == 0) else { return };
        lane.last = last;
        self.idle.push_back((id, last));
        if self.idle.len() <= IDLE_LANES {
            return;
        }
        let Some((oldest, last)) = self.idle.pop_front() else { return };
        // It may be active again, gone, or stand further back in the line as well.
        if self.lanes.get(&oldest).is_some_and(|lane| lane.pending() == 0 && lane.last == last)
            && let Some(lane) = self.lanes.remove(&oldest)
        {
            self.lane_of.remove(&lane.account);
            self.scheduler.remove_lane(oldest);
            self.router.unpin(&lane.account);
        }
    }

    /// Forgets one holder of an event, and its memory with the last.
    fn let_go(&mut self, held: Arc<Held>) {
        if let Some(held) = Arc::into_inner(held) {
            self.bytes = self.bytes.saturating_sub(held.event.size_bytes());
        }
    }
}
