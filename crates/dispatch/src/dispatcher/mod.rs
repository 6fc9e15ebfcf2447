//! The dispatcher: decides everything right of the boundary between event and route.
//!
//! ```text
//!          ┌────────────────────────────── Dispatcher ──────────────────────────────┐
//! Items ──►│ routing ─► queues (pending ◄─► deferred) ─► sending ──────────────────►│──► Send
//! Routes ─►│                                   ▲                                    │──► LookUp
//! pages ──►│                deferral ──────────┘         outcome, ending            │──► ReadDeferred, ReadUnrouted
//! Outcome ►│                                                    │                   │
//! Stored ─►│            progress ◄──────────────────────────────┴──► outbox ───────►│──► Store, Flush
//!          └────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! There is one way in and one way out, see the module `door`; `now` comes in, nothing is awaited. One task
//! drives it, without a mutex. The same code runs in the simulation by seed.
//!
//! # Components
//!
//! Each has private fields, and states its invariant in its own file. Here is only said which of them has its
//! turn, in files that are named after what happens (`fan_out`, `defer`, `refill`, `send`, `outcome`, `ending`,
//! `store`, `operator`, ...).
//!
//! | Component | Knows |
//! |---|---|
//! | `routing` | accounts' endpoints, events that wait for them, subscriptions that start |
//! | `queues` | names, interned once; one entity for each endpoint queue: pending, deferred, breaker, limits |
//! | `deferral` | queues that want a page of their rows, those that are suspended, and those that are cleared |
//! | `sending` | slots, requests in flight, those that have become old, hosts that hang, timers |
//! | `progress` | transactions that are not settled, what is settled ahead of the first of them |
//! | `endpoint_states` | endpoints that are off, paused, or fail |
//! | `outbox` | what is to be stored, and what is in the state transaction under way |
//! | `journal` | the delivery log's lines that are to be stored with it |
//! | `memory_budget` | what is pending, in bytes, and when there is no room |
//! | `rooms` | what large events in flight may take of that, and who waits for room |
//! | `replay` | replays that are fed, and their counts |
//! | `door` | whose turn it is, and what is told outside |
//!
//! What must be there is asserted, in release too: the process ends, and the next one goes on from the tables.
//! What was read from a database, a receiver or an operator asserts nothing (see the tests in `tables`).
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
//!   while a state transaction takes longer than [`PERSIST_SLOW`], nothing is sent. The last sixteenth is for
//!   accounts with nothing in flight and little that waits.
//! - What dies without having been sent is no outcome: see the module `letters`.
//! - Memory: each pending event is counted once, each delivery of it by a constant. At three quarters of the
//!   limit the account that holds most gives way: see the module `relief`. Near the limit
//!   [`Dispatcher::wants_input`] says no, until what is deferred is stored: the stream waits for the state
//!   database, never for an endpoint.

mod batch_size;
mod changes;
mod circuit_breaker;
mod classes;
mod clearing;
mod defer;
mod deferral;
mod deferred_keys;
mod deferred_queue;
mod door;
mod ending;
mod endpoint_states;
mod failing;
mod failures;
mod fan_out;
mod frontier_limit;
mod hosts;
mod input;
mod joining;
mod journal;
mod letters;
#[cfg(test)]
mod limited;
mod memory;
mod memory_budget;
mod operator;
mod outbox;
mod outcome;
mod outgoing;
mod pages;
mod probes;
mod progress;
mod queues;
mod rates;
mod refill;
mod refills;
mod relief;
mod replay;
mod replays;
mod reports;
#[cfg(test)]
mod rig;
mod rooms;
mod routing;
mod send;
mod sending;
mod settings;
mod shelves;
#[cfg(test)]
mod simulation;
mod spans;
mod stalled;
mod standing;
mod store;
mod subscription_starts;
mod suspend;
mod suspensions;
#[cfg(test)]
mod tables;
mod turns;
mod unrouted;
mod unseen;
mod waiting;
mod waits;
mod watched_tables;

use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::schedule::{LaneId, Pool};
use walhook_core::endpoint::Share;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;

use deferral::Deferral;
use deferred_queue::DeferredQueue;
use door::Door;
use endpoint_states::EndpointStates;
use failures::Failures;
use journal::Journal;
use memory_budget::MemoryBudget;
use outbox::Outbox;
use progress::Progress;
use queues::{Lane, QueueNo, Queues};
use replays::Replays;
use routing::Routing;
use sending::Sending;

pub use changes::{EndpointChange, EndpointChanged};
pub use classes::Class;
pub use door::{Effect, Input, LookUp, LookUpAnswer};
pub use operator::OperatorInput;
pub use outcome::{Measured, Settled};
pub use replay::{Replay, ReplayInput};
pub use send::Dispatch;
pub use settings::{Counters, Gauges, Ordering, Retry, Settings};
pub use standing::{AccountStanding, Find, Found, OldestUnsettled, Standing};
pub use walhook_core::persist::Start;

/// Outcomes that may be lost by a crash, and so sent twice, beside what is in flight.
pub const UNPERSISTED_MAX: usize = 4_096;

/// A state transaction that takes longer stops sending until it is done.
pub const PERSIST_SLOW: Duration = Duration::from_secs(1);

/// See the module's documentation.
#[derive(Debug)]
pub struct Dispatcher {
    settings: Settings,
    routing: Routing,
    queues: Queues,
    deferral: Deferral,
    sending: Sending,
    progress: Progress,
    endpoints: EndpointStates,
    outbox: Outbox,
    journal: Journal,
    memory: MemoryBudget,
    replays: Replays,
    door: Door,
}

impl Dispatcher {
    /// A dispatcher that goes on where `start` says.
    #[must_use]
    pub fn new(settings: Settings, start: Start, rng: SmallRng) -> Self {
        // An eighth of the memory caches routes of accounts that have nothing pending.
        let cache_bytes = settings.memory_limit / 8;
        let names = rng.clone().random();
        let mut dispatcher = Self {
            routing: Routing::new(cache_bytes, settings.memory_limit, names),
            queues: Queues::new(names),
            deferral: Deferral::new(settings.memory_limit, settings.slice),
            sending: Sending::new(settings.fast_slots, settings.slow_slots, settings.memory_limit),
            progress: Progress::new(start.frontier, &start.settled),
            endpoints: EndpointStates::new(
                start.disabled,
                start.paused,
                Failures::new(settings.memory_limit, start.failing, Tick(0)),
            ),
            outbox: Outbox::new(start.frontier, settings.max_hold, settings.notifies),
            journal: Journal::new(settings.log, settings.log_excerpts, settings.memory_limit),
            memory: MemoryBudget::new(settings.memory_limit),
            replays: Replays::default(),
            door: Door::new(start.unix_us_at_zero, rng),
            settings,
        };
        let slots = dispatcher.settings.fast_slots.saturating_add(dispatcher.settings.slow_slots);
        dispatcher.queues.set_slots(slots);
        let stood_us = start.written_us.map_or(0, |at| start.unix_us_at_zero.saturating_sub(at));
        dispatcher.recover_deferred(start.backlog, stood_us.max(0));
        dispatcher.recover_unseen(start.unseen);
        dispatcher.recover_shelves(start.unrouted, start.joined, &start.settled);
        dispatcher.recover_suspensions(start.suspended);
        // A row may have changed, and nobody come to look.
        dispatcher.ask_for_all_failing();
        dispatcher
    }

    /// Whether there is room for more of the stream.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        !self.door.is_stopping() && self.memory.takes_more(self.committed_bytes())
    }

    /// Whether there is room for more of what is played beside the stream: see [`Item::Pause`]. Where there is none the
    /// stream has some for itself.
    ///
    /// [`Item::Pause`]: walhook_core::event::Item::Pause
    #[must_use]
    pub fn wants_plays(&self) -> bool {
        !self.door.is_stopping() && self.memory.takes_plays(self.committed_bytes())
    }

    /// After [`Input::WindDown`]: whether all that was in flight then has ended, and nothing that is takes long.
    #[must_use]
    pub fn is_wound_down(&self) -> bool {
        let since = self.door.winds_down_since();
        since.is_some_and(|since| self.sending.has_only_quick_since(since))
    }

    /// After [`Input::Stop`]: whether nothing is in flight or still to be stored.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.sending.len() == 0 && self.outbox.is_clean(self.progress.frontier())
    }

    /// When something may have become possible although nothing else happens.
    fn deadline_at(&self, now: Tick) -> Option<Tick> {
        let sending = self.sending.deadline();
        let persist = self.persist_deadline();
        let lookup = self.routing.router.deadline();
        // Nothing is deferred for the sake of others any more: see [`Input::Stop`].
        let goes_on = !self.door.is_stopping();
        let release = self.release_deadline().filter(|_| goes_on);
        let replays = self.replays.deadline().filter(|_| goes_on);
        let slice = self.routing.waiting.is_ready().then_some(now);
        let stall = self.stall_deadline(now);
        let relief = self.memory.deadline();
        let clear = (goes_on && self.deferral.clearing.is_ready()).then_some(now);
        let hosts = self.sending.hosts().deadline(self.sending.slots(Pool::Fast), now);
        let hosts = hosts.filter(|_| goes_on);
        let next = [sending, persist, lookup, release, replays, slice, stall, relief, clear, hosts];
        let next = next.into_iter().flatten().min();
        next.map(|tick| tick.max(now))
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            logged: self.journal.stored(),
            log_dropped: self.journal.dropped(),
            ..self.door.reports.counters()
        }
    }

    /// Everything before this is settled; it may not be stored yet.
    #[must_use]
    pub fn frontier(&self) -> Lsn {
        self.progress.frontier()
    }

    /// Deliveries in memory that are neither in flight nor in a table.
    #[must_use]
    pub fn queued(&self) -> usize {
        let pending = self.queues.lanes().map(Lane::pending).sum::<usize>();
        pending.saturating_sub(self.sending.len())
    }

    /// How things stand.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        let active = self.queues.lanes().filter(|lane| lane.pending() > 0);
        let (ready, waiting): (Vec<&Lane>, Vec<&Lane>) = active.partition(|lane| lane.is_ready());
        let deferred = || self.queues.all_deferred().map(|(_, _, deferred)| deferred);
        let (disabled, paused) = self.endpoints.counts();
        Gauges {
            lanes_ready: ready.len(),
            lanes_waiting: waiting.len(),
            queued_bytes: self.memory.pending(),
            kept_bytes: self.kept_bytes(),
            deferred: deferred().map(DeferredQueue::rows).sum(),
            backlogs: self.queues.with_rows(),
            unrouted: self.routing.shelves.rows(),
            unrouted_accounts: self.routing.shelves.len(),
            breakers_open: deferred().filter(|d| d.is_open()).count(),
            endpoints_disabled: disabled,
            endpoints_paused: paused,
            endpoints_invalid: self.routing.router.invalid(),
            accounts_noisy: self.queues.noisy(self.door.now()),
            queues_suspended: deferred().filter(|d| d.is_suspended()).count(),
            in_flight_fast: self.sending.in_pool(Pool::Fast),
            in_flight_slow: self.sending.in_pool(Pool::Slow),
            usable_fast: self.sending.usable_slots(Pool::Fast),
            usable_slow: self.sending.usable_slots(Pool::Slow),
            reserved_fast: self.sending.covered_in(Pool::Fast),
            reserved_slow: self.sending.covered_in(Pool::Slow),
            in_flight_probe: self.sending.in_pool(Pool::Probe),
            oldest_unsettled: self.progress.oldest_unsettled(),
        }
    }

    /// The queue with this name, made where there is none, with a lane.
    fn queue(&mut self, account: &AccountId, endpoint: &EndpointId, share: Share) -> QueueNo {
        let queue = self.queues.intern(account, endpoint);
        self.give_lane(queue, share);
        queue
    }

    /// Sees to it that the queue's account has a lane.
    fn give_lane(&mut self, queue: QueueNo, share: Share) {
        if self.queues.lane_id(queue).is_none() {
            let routes = self.routing.router.pin(&self.queues.id(queue).account);
            self.queues.add_lane(queue, self.sending.add_lane(share), routes);
        }
    }

    /// Tells the scheduler from which pools the queue's lane could send.
    fn sync(&mut self, queue: QueueNo) {
        if let Some(id) = self.queues.lane_id(queue) {
            self.sync_lane(id);
        }
    }

    fn sync_lane(&mut self, id: LaneId) {
        if self.sending.is_room_waited_for() {
            self.renew_needs(id, self.door.now());
        }
        let (_, lane) = self.queues.lane(id);
        self.sending.set_ready(id, lane);
    }

    /// What the state database's clock would say, in microseconds since 1970-01-01 UTC, had nobody set
    /// it since tick 0.
    fn unix_us(&self, tick: Tick) -> i64 {
        self.door.unix_us_at_zero().saturating_add_unsigned(tick.0)
    }

    /// When that clock says `unix_us`, but never later than a retry may be: it may have been set
    /// back since that was written.
    fn tick_at(&self, unix_us: i64, now: Tick) -> Tick {
        let us = u64::try_from(unix_us.saturating_sub(self.door.unix_us_at_zero())).unwrap_or(0);
        Tick(us).min(now + self.settings.settle.retry.cap())
    }
}
