//! The leader's side: which worker an attempt goes to, and how it comes back.
//!
//! ```text
//! place ─► pick ─► session: waiting ─► packed, in frame seq ─► outcome, unsent, lost
//!                     ▲                                            │
//!                     └───── second opinion, by another ◄──────────┘
//! ```
//!
//! Packed is only as much as the way to the worker carries in time (`window`): what keeps its lease alive goes that way.
//!
//! An attempt is in the table `placed` from when it is taken until it is handed back: whoever removes it there, and
//! only they, say [`FleetEffect::Ended`]. A session's flights are a second index of the same, by key.
//!
//! Cost: a placement looks at each session once, and once more where an endpoint is avoided or nobody has room; all else
//! is O(log n) of what is in flight.

mod adopt;
mod alone;
mod door;
mod flights;
mod health;
mod hear;
mod line;
mod opinion;
mod pick;
mod presence;
mod quarantines;
mod room;
mod session;
mod slots;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one effect among all")]
mod tests;
mod timeouts;
mod window;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::LEAD_EVERY;
use crate::frame::{Body, Frame, Lead, OLDEST, SessionId, WorkerId};
use adopt::Adoption;
use alone::Failing;
use opinion::First;
use quarantines::Quarantines;
use room::Waiting;
use session::Session;
use timeouts::TimeOuts;
use walhook_core::attempt::{Attempt, DeliveryId};
use walhook_core::tick::Tick;

pub use adopt::Before;
pub use pick::{largest_data, max_payload_for};

pub use door::{
    Ending, FleetCounters, FleetEffect, FleetGauges, FleetInput, FleetSettings, Local, Packed,
    Placement, Slots, WorkerChanged, WorkerSeen, WorkerState,
};

/// Sessions at most: more workers than one leader feeds.
pub const SESSIONS_MAX: usize = 1_024;

/// Sessions that are over are remembered, the last so many, so that none of them joins again.
const GONE_MAX: usize = 4_096;

/// The table of workers is told so often at most.
const WORKERS_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// And so often while there are workers and nothing becomes of them: what it says of their requests in flight is as
/// old as that, and a database that has crashed has forgotten it.
const WORKERS_AGAIN: std::time::Duration = std::time::Duration::from_secs(10);

/// One that is not called for so long was stopped: it is called each [`LEAD_EVERY`].
const PAUSE: std::time::Duration = LEAD_EVERY.saturating_mul(2);

/// A bus that was slow for what is published is told as that for so long.
const SLOW_FOR: std::time::Duration = std::time::Duration::from_secs(30);

/// An attempt for which nobody has room comes back after so long: the dispatcher, which counts slots and not bytes,
/// would otherwise hand it over again at once, and again.
const NOBODY_FOR: std::time::Duration = std::time::Duration::from_millis(50);

/// Where an attempt is.
#[derive(Debug)]
enum Where {
    /// With a session, under this key.
    Session(SessionId, u64),
    /// With the leader itself, after this.
    Local(Box<First>),
    /// With the leader itself, since requests to its endpoint timed out at a worker: see [`timeouts`].
    LocalInstead(u64),
    /// With nobody, for a moment: see [`NOBODY_FOR`].
    Nobody,
    /// With nobody, until it is known whether an earlier leader's worker has it: see [`adopt`].
    Held,
}

/// The leader's picture of its workers. See the module's documentation.
#[derive(Debug)]
pub struct Fleet {
    settings: FleetSettings,
    now: Tick,
    /// Since when it has been called without a pause: what came in a pause is heard after it.
    awake_since: Tick,
    connected: bool,
    was_connected: bool,
    max_payload: usize,
    /// The most bytes that the bus did not take, and when such a request came last.
    refused_bytes: Option<(Tick, u64)>,
    stopping: bool,
    local_in_flight: u32,
    sessions: BTreeMap<SessionId, Session>,
    placed: BTreeMap<DeliveryId, Where>,
    /// Those that are with nobody, and until when.
    nobody: VecDeque<(Tick, DeliveryId)>,
    adoption: Adoption,
    next_key: u64,
    /// Sessions that may have a frame to send.
    ready: BTreeSet<SessionId>,
    gone: BTreeSet<SessionId>,
    gone_in_order: VecDeque<SessionId>,
    quarantines: Quarantines,
    time_outs: TimeOuts,
    failing: Failing,
    /// When the bus was last seen to be slow for what is published.
    slow_at: Option<Tick>,
    /// Attempts lost of each worker: bounded like the sessions.
    lost: BTreeMap<WorkerId, u64>,
    left: VecDeque<FleetEffect>,
    lead_at: Tick,
    waiting: Waiting,
    /// No session becomes silent, lost or free of quarantine before this.
    due: Tick,
    slots_changed: bool,
    slots: Option<Slots>,
    workers_changed: bool,
    workers_told: Option<Tick>,
    counters: FleetCounters,
}

impl Fleet {
    /// A leader that has just taken its lease.
    #[must_use]
    pub fn new(mut settings: FleetSettings, now: Tick) -> Self {
        let before = std::mem::replace(&mut settings.before, Before::NOTHING);
        Self {
            adoption: Adoption::new(before, now),
            now,
            awake_since: now,
            connected: false,
            was_connected: false,
            max_payload: 0,
            refused_bytes: None,
            stopping: false,
            local_in_flight: 0,
            sessions: BTreeMap::new(),
            placed: BTreeMap::new(),
            nobody: VecDeque::new(),
            next_key: first_key(settings.seed),
            ready: BTreeSet::new(),
            gone: BTreeSet::new(),
            gone_in_order: VecDeque::new(),
            quarantines: Quarantines::default(),
            time_outs: TimeOuts::default(),
            failing: Failing::default(),
            slow_at: None,
            lost: BTreeMap::new(),
            left: VecDeque::new(),
            lead_at: now,
            waiting: Waiting::default(),
            due: Tick(u64::MAX),
            slots_changed: true,
            slots: None,
            workers_changed: false,
            workers_told: None,
            counters: FleetCounters::default(),
            settings,
        }
    }

    fn enter(&mut self, now: Tick) {
        assert!(now >= self.now, "time goes back: from {:?} to {now:?}", self.now);
        if now >= self.now + PAUSE {
            self.awake_since = now;
        }
        self.now = now;
    }

    /// Decides who sends an attempt. Asked once for each that the dispatcher sends.
    pub fn place(&mut self, now: Tick, attempt: &Attempt) -> Placement {
        self.enter(now);
        let bytes = pick::bytes_of(attempt);
        if self.too_large(bytes) {
            return match self.settings.local {
                Local::Never => {
                    self.note_too_large(bytes);
                    Placement::TooLarge
                }
                Local::Fallback | Local::Always => Placement::Local,
            };
        }
        if let Some(placement) = self.adopt(attempt) {
            return placement;
        }
        if let Some(last) = self.avoided(attempt)
            && let Some(placement) = self.place_elsewhere(attempt, bytes, last)
        {
            return placement;
        }
        match self.pick(attempt, bytes, None) {
            Some(pick::Choice::Leader) => Placement::Local,
            Some(pick::Choice::Worker(session)) => {
                self.counters.taken += 1;
                self.give(session, attempt.clone(), bytes, None);
                Placement::Taken
            }
            None if self.settings.local == Local::Never => {
                self.counters.taken += 1;
                let delivery = attempt.first().id;
                self.reserve(delivery, bytes);
                self.placed.insert(delivery, Where::Nobody);
                self.nobody.push_back((now + NOBODY_FOR, delivery));
                Placement::Taken
            }
            None => Placement::Local,
        }
    }

    /// Takes one input.
    pub fn handle(&mut self, now: Tick, input: FleetInput) {
        self.enter(now);
        match input {
            FleetInput::Frame(frame) => self.hear(*frame),
            FleetInput::Unreadable(session) => {
                self.counters.strange += 1;
                self.close_at_leader(session);
            }
            FleetInput::Unheard { session, seq } => self.unheard(session, seq),
            FleetInput::Published { session, seq } => {
                if let Some(found) = self.sessions.get_mut(&session) {
                    found.published = found.published.max(seq);
                    self.ready.insert(session);
                }
            }
            FleetInput::Bus { connected, max_payload } => self.note_bus(connected, max_payload),
            FleetInput::Aborted(delivery) => self.abort(delivery),
            FleetInput::Refused { session, key, outcome } => self.refused(session, key, outcome),
            FleetInput::Ended { delivery, outcome } => self.ended_here(delivery, outcome),
            FleetInput::LocalInFlight(count) => {
                self.slots_changed |=
                    self.local_in_flight != count && self.settings.local == Local::Fallback;
                self.local_in_flight = count;
            }
            FleetInput::MayHear => self.try_mute(),
            FleetInput::Stop => self.stopping = true,
        }
    }

    /// What is to be done next; `None`: nothing more at this moment.
    pub fn poll(&mut self, now: Tick) -> Option<FleetEffect> {
        self.enter(now);
        if now >= self.due {
            self.look_at_the_time();
        }
        self.send_back();
        self.release_held();
        if let Some(effect) = self.left.pop_front() {
            return Some(effect);
        }
        if now >= self.lead_at {
            self.lead_at = now + LEAD_EVERY;
            return Some(FleetEffect::PublishLead(Box::new(self.lead())));
        }
        if self.slots_changed {
            self.slots_changed = false;
            let slots = self.sum_of_slots();
            if self.slots != Some(slots) {
                self.slots = Some(slots);
                return Some(FleetEffect::Slots(slots));
            }
        }
        while let Some(session) = self.ready.first().copied() {
            if let Some(effect) = self.next_frame(session) {
                return Some(effect);
            }
            self.ready.remove(&session);
        }
        if self.has_workers_to_tell() && self.workers_due() <= now {
            self.workers_changed = false;
            self.workers_told = Some(now);
            return Some(FleetEffect::Workers(self.workers()));
        }
        None
    }

    /// When to poll although nothing comes in; at once, where that is past.
    #[must_use]
    pub fn deadline(&self) -> Tick {
        let told = if self.has_workers_to_tell() { self.workers_due() } else { Tick(u64::MAX) };
        let nobody = self.nobody.front().map_or(Tick(u64::MAX), |(until, _)| *until);
        let adoption = self.adoption.deadline(self.now).unwrap_or(Tick(u64::MAX));
        self.lead_at.min(self.due).min(told).min(nobody).min(adoption)
    }

    /// What has been counted so far.
    #[must_use]
    pub fn counters(&self) -> FleetCounters {
        self.counters
    }

    /// How the fleet stands.
    #[must_use]
    pub fn gauges(&self) -> FleetGauges {
        let mut gauges = FleetGauges {
            in_flight: self.placed.len(),
            slots: self.slots.unwrap_or_default(),
            too_large: self.still_too_large(),
            slow: self.slow_at.is_some_and(|at| self.now < at + SLOW_FOR),
            ..FleetGauges::default()
        };
        for session in self.sessions.values() {
            gauges.unconfirmed += usize::from(session.is_unconfirmed(self.now, &self.settings));
            match session.state(self.now) {
                WorkerState::Joining => gauges.joining += 1,
                WorkerState::Serving => gauges.serving += 1,
                WorkerState::Draining => gauges.draining += 1,
                WorkerState::Quarantined => gauges.quarantined += 1,
                WorkerState::Mute => gauges.mute += 1,
                WorkerState::Silent => gauges.silent += 1,
                WorkerState::Left | WorkerState::Lost | WorkerState::Refused => {}
            }
        }
        gauges
    }

    /// Attempts that have not come back.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.placed.len()
    }

    /// Until those of the leader before have answered the table names them: another leader may have to ask soon.
    fn has_workers_to_tell(&self) -> bool {
        self.workers_changed && !self.adoption.waits()
    }

    fn workers_due(&self) -> Tick {
        self.workers_told.map_or(Tick(0), |told| told + WORKERS_EVERY)
    }

    fn workers(&self) -> Vec<WorkerSeen> {
        let seen = |(id, session): (&SessionId, &Session)| WorkerSeen {
            session: *id,
            host: session.host.clone(),
            build: session.build.clone(),
            state: session.state(self.now),
            slots: session.slots,
            in_flight: session.in_flight(),
            lost: session.worker.and_then(|worker| self.lost.get(&worker)).copied().unwrap_or(0),
            since: session.since,
            seen: session.heard_at,
        };
        self.sessions.iter().map(seen).collect()
    }

    fn lead(&self) -> Frame {
        let FleetSettings { versions, lease, egress, epoch, pipeline, .. } = self.settings;
        let body = Body::Lead(Lead { versions, lease, egress, asks: true });
        let (pipeline, session) = (Some(pipeline), SessionId::default());
        Frame { version: OLDEST, epoch, pipeline, session, seq: 0, body }
    }
}

/// Far below the keys that are workers' own, and where no other leader's are: a worker of an earlier build may answer
/// two leaders that share its subjects, and neither is to take what is the other's.
fn first_key(seed: u64) -> u64 {
    pick::spread(!seed) >> 2
}
