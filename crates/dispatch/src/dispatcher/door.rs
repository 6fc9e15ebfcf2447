//! The one way in and the one way out.
//!
//! ```text
//!             Items · Outcome · Routes · pages · Stored · …            Send · LookUp · Store · …
//! driver ────────────── handle(now, Input) ──► Dispatcher ──► poll(now) ──────────────── driver
//!    ▲                                                                                     │
//!    └──────────────────────────────── deadline() ◄────────────────────────────────────────┘
//! ```
//!
//! Whoever drives it (the program in real time, a simulation in its own) hands each input over with the
//! moment at which it came, polls until nothing is left, and polls again when the deadline has come.
//!
//! Invariant: moments never decrease. Given the settings, the start, the seed, and the same inputs and polls
//! at the same moments, the effects are the same.

use std::collections::VecDeque;
use std::time::Duration;

use rand::rngs::SmallRng;

use super::super::route::{LookUpLine, Snapshot};
use super::reports::Reports;
use super::{Dispatch, Dispatcher, EndpointChanged, OperatorInput, ReplayInput, Retry, Settled};
use walhook_core::attempt::{DeliveryId, Outcome};
use walhook_core::endpoint::Routes;
use walhook_core::event::{AccountId, Item};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{
    PersistBatch, Persisted, Refill, Refilled, UnroutedPage, UnroutedRefill,
};
use walhook_core::room::Measured;
use walhook_core::tick::Tick;

/// What comes in.
#[derive(Debug)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub enum Input {
    /// The stream's next items, in its order. Only while [`Dispatcher::wants_input`] says yes.
    Items(Vec<Item>),
    /// What came of an attempt: answers [`Effect::Send`], also where it was given up. One for a delivery that
    /// is not in flight changes nothing.
    Outcome {
        /// The delivery that the attempt named.
        delivery: DeliveryId,
        /// What came of it.
        outcome: Outcome,
    },
    /// An attempt was surely not begun: answers [`Effect::Send`] in place of an outcome. It was no attempt. One for
    /// a delivery that is not in flight changes nothing.
    Unsent(DeliveryId),
    /// Nothing is heard of those who carry these, or something again: meanwhile they count for an endpoint's upper
    /// bound alone, not for what it has shown to take. One that is not in flight changes nothing.
    Doubt {
        /// What they carry.
        deliveries: Vec<DeliveryId>,
        /// Whether nothing is heard of them.
        doubtful: bool,
    },
    /// There are so many slots for requests from now on, in place of those of the settings.
    Slots {
        /// For what ends within a second.
        fast: u32,
        /// For all else, probes of dead endpoints among them. Without any there are no probes.
        slow: u32,
    },
    /// Answers [`Effect::LookUp`].
    Routes(Box<LookUpAnswer>),
    /// Answers [`Effect::ReadDeferred`]: a page for each that was asked for.
    DeferredPages(Vec<Refilled>),
    /// Answers [`Effect::ReadUnrouted`]: a page for each that was asked for.
    UnroutedPages(Vec<UnroutedPage>),
    /// The batch of the last [`Effect::Store`] is durable.
    Stored(Box<Persisted>),
    /// The state tables were measured.
    StateSize(Box<Measured>),
    /// So many bytes are held by the connections to endpoints.
    ConnectionBytes(usize),
    /// What an operator asks.
    Command(Box<OperatorInput>),
    /// A dead letter is sent again. Only while [`Dispatcher::wants_input`] says yes.
    Retry(Box<Retry>),
    /// What is told of replays. Only while [`Dispatcher::wants_replay`] says yes.
    Replay(Box<ReplayInput>),
    /// The end is near: nothing is begun any more that is expected to hold a slot for long, all else goes on until
    /// [`Input::Stop`]. Whoever stops only once [`Dispatcher::is_wound_down`] says so has little left to wait for then,
    /// so that nobody waits for another account's slow endpoint.
    WindDown,
    /// Nothing more is to be sent: what is in flight may end, and what is settled may be stored.
    Stop,
}

/// What is to be looked up.
#[derive(Debug)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct LookUp {
    /// Beside the batches of other lines.
    pub line: LookUpLine,
    /// These accounts' endpoints; of none at all, a snapshot alone.
    pub accounts: Vec<AccountId>,
}

impl LookUp {
    /// Its answer, where each account has these routes.
    pub fn answered(
        self,
        snapshot: Snapshot,
        mut routes: impl FnMut(&AccountId) -> Routes,
    ) -> LookUpAnswer {
        let answer = |account| (AccountId::clone(account), routes(account));
        let answers = self.accounts.iter().map(answer).collect();
        let (costly, put_off) = (Vec::new(), Vec::new());
        LookUpAnswer { line: self.line, snapshot, costly, put_off, answers }
    }
}

/// What a look-up has told.
#[derive(Debug)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct LookUpAnswer {
    /// The line whose batch is answered.
    pub line: LookUpLine,
    /// Which transactions it saw.
    pub snapshot: Snapshot,
    /// Accounts that are not answered for, since they take long to read: they are to be asked for in the line of those.
    pub costly: Vec<AccountId>,
    /// Accounts that are not answered for, and how long from now they are not to be asked for.
    pub put_off: Vec<(AccountId, Duration)>,
    /// The routes of the accounts that were asked for; perhaps of some only.
    pub answers: Vec<(AccountId, Routes)>,
}

/// What goes out.
#[derive(Debug)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub enum Effect {
    /// A request is to be sent now; answered by [`Input::Outcome`], or by [`Input::Unsent`].
    Send(Dispatch),
    /// A request in flight is to be given up; answered by its [`Input::Outcome`] like every other one: it may
    /// have ended otherwise at that moment.
    Abort(DeliveryId),
    /// Endpoints are to be looked up; answered by [`Input::Routes`], one of each line at a time.
    LookUp(LookUp),
    /// These pages of deferred rows are to be read; answered by [`Input::DeferredPages`], one batch at a time.
    ReadDeferred(Vec<Refill>),
    /// These pages of unrouted events are to be read; answered by [`Input::UnroutedPages`], one batch at a
    /// time.
    ReadUnrouted(Vec<UnroutedRefill>),
    /// This is to be made durable, in one transaction; answered by [`Input::Stored`], one at a time.
    Store(Box<PersistBatch>),
    /// The source may forget everything before this. Never goes back.
    Flush(Lsn),
    /// An outcome was taken, for metrics and logs.
    Settled(Settled),
    /// An endpoint has become something, for metrics and logs.
    Report(Box<EndpointChanged>),
    /// The state tables are full, and nothing is left to be given up. Said once a minute.
    StateFull {
        /// What they take.
        total_bytes: u64,
    },
}

/// Whose turn it is in a round of polls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Turn {
    /// What inputs left behind; then one slice of what waits is routed.
    #[default]
    Begin,
    Attempts,
    Aborts,
    LookUps,
    Deferred,
    Unrouted,
    Store,
    Reports,
}

/// How far the end is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Runs,
    /// Since then.
    WindsDown(Tick),
    Stops,
}

/// What of the door outlasts a call.
#[derive(Debug)]
pub(super) struct Door {
    turn: Turn,
    /// What inputs left behind, in their order.
    left: VecDeque<Effect>,
    /// The last moment that was told.
    now: Tick,
    phase: Phase,
    /// What the state database's clock said at tick 0: microseconds since 1970-01-01 UTC.
    unix_us_at_zero: i64,
    /// Whatever is decided at random.
    rng: SmallRng,
    /// What is told beside effects.
    pub(super) reports: Reports,
}

impl Door {
    /// Nothing has come in. `unix_us_at_zero`: see [`Start::unix_us_at_zero`](super::Start::unix_us_at_zero).
    pub(super) fn new(unix_us_at_zero: i64, rng: SmallRng) -> Self {
        let (turn, left, now, phase, reports) = Default::default();
        Self { turn, left, now, phase, unix_us_at_zero, rng, reports }
    }

    /// The one source of all that is decided at random.
    pub(super) fn rng(&mut self) -> &mut SmallRng {
        &mut self.rng
    }

    /// What the state database's clock said at tick 0.
    pub(super) fn unix_us_at_zero(&self) -> i64 {
        self.unix_us_at_zero
    }

    /// The last moment that was told.
    pub(super) fn now(&self) -> Tick {
        self.now
    }

    /// Whether nothing more is to be sent.
    pub(super) fn is_stopping(&self) -> bool {
        self.phase == Phase::Stops
    }

    /// Since when only what is quick is still to be sent.
    pub(super) fn winds_down_since(&self) -> Option<Tick> {
        match self.phase {
            Phase::WindsDown(since) => Some(since),
            Phase::Runs | Phase::Stops => None,
        }
    }

    fn enter(&mut self, now: Tick) {
        assert!(now >= self.now, "time goes back: from {:?} to {now:?}", self.now);
        self.now = now;
    }
}

impl Dispatcher {
    /// It is this moment.
    pub(super) fn enter(&mut self, now: Tick) {
        self.door.enter(now);
        self.queues.enter(now);
    }

    /// Takes one input.
    pub fn handle(&mut self, now: Tick, input: Input) {
        self.enter(now);
        if !matches!(input, Input::Outcome { .. }) {
            // An outcome brings nothing that is kept; what comes to rest with it is counted for the next input.
            self.trim_idle();
        }
        self.queues.sweep();
        match input {
            Input::Items(items) => {
                items.into_iter().for_each(|item| self.handle_item(item, now));
                self.note_full(now);
            }
            Input::Outcome { delivery, outcome } => {
                let settled = self.handle_outcome(delivery, &outcome, now);
                self.door.left.extend(settled.map(Effect::Settled));
            }
            Input::Unsent(delivery) => self.handle_unsent(delivery, now),
            Input::Doubt { deliveries, doubtful } => self.handle_doubt(&deliveries, doubtful, now),
            Input::Slots { fast, slow } => self.set_slots(fast, slow),
            Input::Routes(answer) => self.handle_lookup(*answer, now),
            Input::DeferredPages(pages) => self.handle_refilled(pages, now),
            Input::UnroutedPages(pages) => self.handle_unrouted(pages, now),
            Input::Stored(persisted) => {
                let flush = self.handle_persisted(&persisted, now);
                self.door.left.push_back(Effect::Flush(flush));
            }
            Input::StateSize(measured) => {
                if self.handle_state_size(&measured, now) {
                    let total_bytes = measured.size.total_bytes;
                    self.door.left.push_back(Effect::StateFull { total_bytes });
                }
            }
            Input::ConnectionBytes(bytes) => self.memory.note_connections(bytes),
            Input::Command(command) => _ = self.handle_operator(*command, now),
            Input::Retry(retry) => self.handle_retry(*retry, now),
            Input::Replay(replay) => self.handle_replay(*replay, now),
            Input::WindDown if self.door.phase != Phase::Runs => {}
            Input::WindDown => self.door.phase = Phase::WindsDown(now),
            Input::Stop => self.door.phase = Phase::Stops,
        }
    }

    /// What is to be done next; `None`: nothing more at this moment. Poll until then after each input, or after
    /// several, and when [`Dispatcher::deadline`] has come.
    ///
    /// One round, up to `None`, routes one slice of what waits at most, and clears queues by as little, so that inputs
    /// have their turn however many endpoints an account has, and however much waits for one.
    pub fn poll(&mut self, now: Tick) -> Option<Effect> {
        self.enter(now);
        self.queues.sweep();
        loop {
            let (effect, next) = match self.door.turn {
                Turn::Begin => {
                    let left = self.door.left.pop_front();
                    if left.is_none() {
                        self.clear_next(now);
                        self.leave_hosts(now);
                        self.fan_out(now);
                    }
                    (left, Turn::Attempts)
                }
                Turn::Attempts => (self.poll_attempt(now).map(Effect::Send), Turn::Aborts),
                Turn::Aborts => (self.poll_abort().map(Effect::Abort), Turn::LookUps),
                Turn::LookUps => (self.poll_lookup(now).map(Effect::LookUp), Turn::Deferred),
                Turn::Deferred => (self.poll_refill(now).map(Effect::ReadDeferred), Turn::Unrouted),
                Turn::Unrouted => (self.poll_unrouted().map(Effect::ReadUnrouted), Turn::Store),
                Turn::Store => {
                    let batch = self.poll_persist(now);
                    (batch.map(|batch| Effect::Store(Box::new(batch))), Turn::Reports)
                }
                Turn::Reports => {
                    let report = self.poll_endpoint_change();
                    if report.is_none() {
                        self.note_full(now);
                        self.door.turn = Turn::Begin;
                        return None;
                    }
                    (report.map(|report| Effect::Report(Box::new(report))), Turn::Reports)
                }
            };
            match effect {
                // It may have more.
                Some(effect) => return Some(effect),
                None => self.door.turn = next,
            }
        }
    }

    /// When to poll although nothing comes in; at once, where that is past.
    #[must_use]
    pub fn deadline(&self) -> Option<Tick> {
        self.deadline_at(self.door.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_and_effects_are_small_enough_to_be_moved_often() {
        assert!(size_of::<Input>() <= 96, "an input takes {} bytes", size_of::<Input>());
        assert!(size_of::<Effect>() <= 64, "an effect takes {} bytes", size_of::<Effect>());
    }
}
