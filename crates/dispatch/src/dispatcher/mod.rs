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
//! There is one way in and one way out, see the module `door`; `now` comes in, nothing is awaited. One task
//! drives it, without a mutex. The same code runs in the simulation by seed.
//!
//! # What it promises
//!
//! - A transaction's deliveries are counted in the tracker before its end is: an event whose routes
//!   are not known yet counts as one. So the frontier never passes what is not settled.
//! - A dead letter counts as settled only when [`Input::Stored`] says that it is.
//! - The same holds for a delivery that is deferred: see the module `defer`. That is the one way out of memory
//!   without an end.
//! - So it does for an event whose account's endpoints cannot be looked up: see the module `unrouted`.
//! - While its endpoint is suspended it is counted in a gap instead: see the module `suspend`.
//! - At most [`UNPERSISTED_MAX`] outcomes are not durable, beside what is in flight: beyond that, and
//!   while a state transaction takes longer than [`PERSIST_SLOW`], nothing is sent.
//! - Memory: each pending event is counted once, each delivery of it by a constant. At three quarters
//!   of the limit the longest queues are deferred. At the limit [`Dispatcher::wants_input`] says no,
//!   until what is deferred is stored: the stream waits for the state database, never for an endpoint.

mod changes;
mod defer;
mod door;
mod durable;
mod ending;
mod failing;
mod fan_out;
mod held;
mod input;
mod join;
mod memory;
mod operator;
mod outcome;
mod outgoing;
mod queues;
mod refill;
mod replay;
#[cfg(test)]
mod rig;
mod send;
mod settings;
#[cfg(test)]
mod simulation;
mod stop;
mod suspend;
mod unrouted;
mod unseen;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use rand::rngs::SmallRng;

use super::route::Router;
use super::schedule::{LaneId, Pool, Scheduler};
use super::settled::{Ahead, Recovered};
use super::tracker::{Tracker, TxnSeq};
use walhook_core::attempt::DeliveryId;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::lsn::Lsn;
use walhook_core::notice::Notices;
use walhook_core::settled::last_commit_lsn;
use walhook_core::tick::Tick;

use defer::Detour;
use door::Door;
use durable::Durable;
use failing::Failures;
use fan_out::Waiting;
use join::Joins;
use queues::{Lane, QueueNo, Queues};
use refill::Refills;
use replay::Replays;
use send::InFlight;
use suspend::Suspensions;
use unrouted::Shelves;
use unseen::Unseen;

pub use changes::{EndpointChange, EndpointChanged};
pub use door::{Effect, Input, LookUpAnswer};
pub use operator::OperatorInput;
pub use outcome::Settled;
pub use replay::{Replay, ReplayInput};
pub use send::Dispatch;
pub use settings::{Counters, Gauges, Ordering, Retry, Settings, Start};

/// Outcomes that may be lost by a crash, and so sent twice, beside what is in flight.
pub const UNPERSISTED_MAX: usize = 4_096;

/// A state transaction that takes longer stops sending until it is done.
pub const PERSIST_SLOW: Duration = Duration::from_secs(1);

/// See the module's documentation.
#[derive(Debug)]
pub struct Dispatcher {
    settings: Settings,
    rng: SmallRng,
    router: Router,
    tracker: Tracker,
    scheduler: Scheduler,
    queues: Queues,
    waiting: Waiting,
    joins: Joins,
    in_flight: HashMap<DeliveryId, InFlight>,
    /// Requests from the fast pool by their start; some have ended.
    aging: VecDeque<(Tick, DeliveryId)>,
    /// Requests to be given up.
    aborting: VecDeque<DeliveryId>,
    timers: BinaryHeap<Reverse<Timer>>,
    disabled: HashMap<EndpointId, String>,
    /// Those that an operator stopped, with since when: microseconds since 1970-01-01 UTC.
    paused: HashMap<EndpointId, i64>,
    suspensions: Suspensions,
    refills: Refills,
    failures: Failures,
    replays: Replays,
    shelves: Shelves,
    /// Since when a look-up has not been answered.
    asked_at: Option<Tick>,
    /// The frontier is not looked at again before then.
    next_release: Tick,
    recovered: Recovered,
    ahead: Ahead,
    durable: Durable,
    /// What has changed about endpoints and nobody has polled for.
    changes: VecDeque<EndpointChanged>,
    notices: Notices,
    /// The transaction that is being read.
    reading: Option<TxnSeq>,
    unseen: Unseen,
    bytes: usize,
    /// Below this, making room was tried and did not help.
    relieve_above: usize,
    counters: Counters,
    unix_us_at_zero: i64,
    stopping: bool,
    /// What connections to endpoints hold.
    answer_bytes: usize,
    door: Door,
}

/// Something that becomes possible at a moment.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Timer {
    due: Tick,
    wake: Wake,
}

/// What becomes possible.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wake {
    /// A delivery that backed off is due.
    Delivery(QueueNo, DeliveryId),
    /// The endpoint's own rate limit lets the next request go.
    RateLimit(QueueNo),
    /// A row in the table is due.
    Detour(QueueNo),
}

impl Dispatcher {
    /// A dispatcher that goes on where `start` says.
    #[must_use]
    pub fn new(settings: Settings, start: Start, rng: SmallRng) -> Self {
        // An eighth of the memory caches routes of accounts that have nothing pending.
        let cache_bytes = settings.memory_limit / 8;
        let disabled = start.disabled.into_iter().map(|d| (d.endpoint, d.reason)).collect();
        let paused = start.paused.into_iter().map(|p| (p.endpoint, p.since_us)).collect();
        let known_from = last_commit_lsn(&start.settled).unwrap_or_default();
        let mut dispatcher = Self {
            rng,
            router: Router::new(cache_bytes),
            tracker: Tracker::new(start.frontier),
            scheduler: Scheduler::new(settings.fast_slots, settings.slow_slots),
            queues: Queues::new(),
            waiting: Waiting::default(),
            joins: Joins::default(),
            in_flight: HashMap::new(),
            aging: VecDeque::new(),
            aborting: VecDeque::new(),
            timers: BinaryHeap::new(),
            disabled,
            paused,
            suspensions: Suspensions::default(),
            failures: Failures::new(settings.memory_limit, start.failing, Tick(0)),
            refills: Refills::new(settings.memory_limit, known_from),
            replays: Replays::default(),
            shelves: Shelves::new(),
            asked_at: None,
            next_release: Tick(0),
            recovered: Recovered::from_ranges(start.settled.iter().cloned()),
            ahead: Ahead::new(),
            durable: Durable::new(start.frontier),
            changes: VecDeque::new(),
            notices: Notices::new(settings.notifies),
            reading: None,
            unseen: Unseen::default(),
            bytes: 0,
            relieve_above: 0,
            counters: Counters::default(),
            unix_us_at_zero: start.unix_us_at_zero,
            stopping: false,
            answer_bytes: 0,
            door: Door::default(),
            settings,
        };
        dispatcher.recover_detours(start.backlog);
        dispatcher.recover_unseen(start.unseen);
        dispatcher.recover_shelves(start.unrouted, start.joined, &start.settled);
        dispatcher.recover_suspensions(start.suspended);
        dispatcher
    }

    /// Whether there is room for more of the stream.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        !self.stopping && self.used_bytes() < self.settings.memory_limit
    }

    /// Ends the sending: what is in flight may end, and what is settled may be stored.
    fn stop(&mut self) {
        self.stopping = true;
    }

    /// After [`Input::Stop`]: whether nothing is in flight or still to be stored.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.in_flight.is_empty() && self.durable.is_clean(self.tracker.frontier())
    }

    /// When something may have become possible although nothing else happens.
    fn deadline_at(&self, now: Tick) -> Option<Tick> {
        let timer = self.timers.peek().map(|Reverse(timer)| timer.due);
        // Where the slow pool is full, only an outcome lets an old request move; or it is given up.
        let room = self.scheduler.in_flight(Pool::Slow) < self.settings.slow_slots
            || self.scheduler.is_pressed();
        let aging = self.aging.front().filter(|_| room).map(|(start, _)| *start + send::FAST_HOLD);
        let persist = self.durable.deadline(self.tracker.frontier(), self.stopping);
        let lookup = self.router.deadline();
        let release = self.release_deadline();
        let replays = self.replays.deadline();
        let slice = self.waiting.is_ready().then_some(now);
        let stall = self.stall_deadline(now);
        let next = [timer, aging, persist, lookup, release, replays, slice, stall];
        let next = next.into_iter().flatten().min();
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

    /// Deliveries in memory that are neither in flight nor in a table.
    #[must_use]
    pub fn queued(&self) -> usize {
        let pending = self.queues.lanes().map(Lane::pending).sum::<usize>();
        pending.saturating_sub(self.in_flight.len())
    }

    /// How things stand.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        let active = self.queues.lanes().filter(|lane| lane.pending() > 0);
        let (ready, waiting): (Vec<&Lane>, Vec<&Lane>) = active.partition(|lane| lane.is_ready());
        let deferred = || self.queues.all_deferred().map(|(_, _, deferred)| deferred);
        Gauges {
            lanes_ready: ready.len(),
            lanes_waiting: waiting.len(),
            queued_bytes: self.bytes,
            kept_bytes: self.kept_bytes(),
            deferred: deferred().map(Detour::rows).sum(),
            backlogs: self.queues.with_rows(),
            unrouted: self.shelves.rows(),
            unrouted_accounts: self.shelves.len(),
            breakers_open: deferred().filter(|d| d.breaker.is_some()).count(),
            endpoints_disabled: self.disabled.len(),
            endpoints_paused: self.paused.len(),
            endpoints_invalid: self.router.invalid(),
            queues_suspended: deferred().filter(|d| d.is_suspended()).count(),
            in_flight_fast: self.scheduler.in_flight(Pool::Fast),
            in_flight_slow: self.scheduler.in_flight(Pool::Slow),
            oldest_unsettled: self.tracker.oldest_unsettled(),
        }
    }

    /// The queue with this name, made where there is none, with a lane.
    fn queue(&mut self, account: &AccountId, endpoint: &EndpointId, weight: f64) -> QueueNo {
        let queue = self.queues.intern(account, endpoint);
        self.give_lane(queue, weight);
        queue
    }

    /// Sees to it that the queue's account has a lane.
    fn give_lane(&mut self, queue: QueueNo, weight: f64) {
        if self.queues.lane_id(queue).is_none() {
            self.queues.add_lane(queue, self.scheduler.add_lane(weight));
            self.router.pin(&self.queues.id(queue).account);
        }
    }

    /// Tells the scheduler from which pools the queue's lane could send.
    fn sync(&mut self, queue: QueueNo) {
        if let Some(id) = self.queues.lane_id(queue) {
            self.sync_lane(id);
        }
    }

    fn sync_lane(&mut self, id: LaneId) {
        let (_, lane) = self.queues.lane(id);
        for pool in [Pool::Fast, Pool::Slow] {
            self.scheduler.set_ready(id, pool, lane.is_ready_in(pool));
        }
    }

    /// What the state database's clock would say, in microseconds since 1970-01-01 UTC, had nobody set
    /// it since tick 0.
    fn unix_us(&self, tick: Tick) -> i64 {
        self.unix_us_at_zero.saturating_add_unsigned(tick.0)
    }

    /// When that clock says `unix_us`, but never later than a retry may be: it may have been set
    /// back since that was written.
    fn tick_at(&self, unix_us: i64, now: Tick) -> Tick {
        let us = u64::try_from(unix_us.saturating_sub(self.unix_us_at_zero)).unwrap_or(0);
        Tick(us).min(now + self.settings.settle.retry.cap())
    }
}
