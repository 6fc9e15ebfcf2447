//! The leader's side: which worker an attempt goes to, and how it comes back.
//!
//! ```text
//! place ─► pick ─► session: waiting ─► packed, in frame seq ─► outcome, unsent, lost
//!                     ▲                                            │
//!                     └───── second opinion, by another ◄──────────┘
//! ```
//!
//! An attempt is in the table `placed` from when it is taken until it is handed back: whoever removes it there, and
//! only they, say [`FleetEffect::Ended`]. A session's flights are a second index of the same, by key.
//!
//! Cost: a placement looks at each session once; all else is O(log n) of what is in flight.

mod adopt;
mod door;
mod health;
mod hear;
mod opinion;
mod pick;
mod session;
mod slots;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one effect among all")]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::frame::{Body, Frame, Lead, OLDEST, SessionId};
use crate::{LEAD_EVERY, LOST_AFTER_LEASE};
use adopt::Adoption;
use health::Quarantine;
use opinion::First;
use session::{Flight, Phase, Session};
use walhook_core::attempt::{Attempt, DeliveryId, FailureKind, Outcome};
use walhook_core::tick::Tick;

pub use adopt::Before;
pub use pick::SPARE;

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
    connected: bool,
    was_connected: bool,
    max_payload: usize,
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
    /// The last quarantine by host and build, and whose it was: who ends a session and begins another is the same
    /// worker. Bounded like the sessions.
    quarantines: BTreeMap<(String, String), (SessionId, Quarantine)>,
    /// Attempts lost, by host: bounded like the sessions.
    lost_by_host: BTreeMap<String, u64>,
    left: VecDeque<FleetEffect>,
    lead_at: Tick,
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
            settings,
            now,
            connected: false,
            was_connected: false,
            max_payload: 0,
            stopping: false,
            local_in_flight: 0,
            sessions: BTreeMap::new(),
            placed: BTreeMap::new(),
            nobody: VecDeque::new(),
            next_key: 0,
            ready: BTreeSet::new(),
            gone: BTreeSet::new(),
            gone_in_order: VecDeque::new(),
            quarantines: BTreeMap::new(),
            lost_by_host: BTreeMap::new(),
            left: VecDeque::new(),
            lead_at: now,
            due: Tick(u64::MAX),
            slots_changed: true,
            slots: None,
            workers_changed: false,
            workers_told: None,
            counters: FleetCounters::default(),
        }
    }

    fn enter(&mut self, now: Tick) {
        assert!(now >= self.now, "time goes back: from {:?} to {now:?}", self.now);
        self.now = now;
    }

    /// Decides who sends an attempt. Asked once for each that the dispatcher sends.
    pub fn place(&mut self, now: Tick, attempt: &Attempt) -> Placement {
        self.enter(now);
        let bytes = pick::bytes_of(attempt);
        if self.too_large(bytes) {
            return match self.settings.local {
                Local::Never => Placement::TooLarge,
                Local::Fallback | Local::Always => Placement::Local,
            };
        }
        if let Some(placement) = self.adopt(attempt) {
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
            FleetInput::Ended { delivery, outcome } => self.ended_here(delivery, outcome),
            FleetInput::LocalInFlight(count) => {
                self.slots_changed |=
                    self.local_in_flight != count && self.settings.local == Local::Fallback;
                self.local_in_flight = count;
            }
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
            ..FleetGauges::default()
        };
        for session in self.sessions.values() {
            match session.state(self.now) {
                WorkerState::Serving => gauges.serving += 1,
                WorkerState::Draining => gauges.draining += 1,
                WorkerState::Quarantined => gauges.quarantined += 1,
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
            lost: self.lost_by_host.get(&session.host).copied().unwrap_or(0),
            since: session.since,
            seen: session.heard_at,
        };
        self.sessions.iter().map(seen).collect()
    }

    fn lead(&self) -> Frame {
        let FleetSettings { versions, lease, egress, epoch, .. } = self.settings;
        let body = Body::Lead(Lead { versions, lease, egress, asks: true });
        Frame { version: OLDEST, epoch, session: SessionId::default(), seq: 0, body }
    }

    /// A session is to have an attempt, perhaps for a second opinion.
    fn give(&mut self, to: SessionId, attempt: Attempt, bytes: u64, first: Option<Box<First>>) {
        let Some(session) = self.sessions.get_mut(&to) else {
            unreachable!("a session that was just picked is there");
        };
        let key = self.next_key;
        self.next_key += 1;
        let delivery = attempt.first().id;
        let had_room = session.has_bytes();
        session.take(
            key,
            Flight {
                attempt,
                bytes,
                seq: None,
                placed: self.now,
                old: false,
                first,
                earlier: false,
            },
        );
        self.slots_changed |= had_room != session.has_bytes() || session.holds_only(self.now);
        self.placed.insert(delivery, Where::Session(to, key));
        self.ready.insert(to);
    }

    /// Hands an attempt back. The one place that does.
    fn end(&mut self, delivery: DeliveryId, ending: Ending, overhead: Option<std::time::Duration>) {
        self.placed.remove(&delivery);
        match ending {
            Ending::Unsent => self.counters.unsent += 1,
            Ending::Lost { .. } => self.counters.lost += 1,
            Ending::Outcome(_) => {}
        }
        self.left.push_back(FleetEffect::Ended { delivery, ending, overhead });
    }

    /// Hands back what nobody has had room for.
    fn send_back(&mut self) {
        while let Some((until, delivery)) = self.nobody.front().copied()
            && self.now >= until
        {
            self.nobody.pop_front();
            if matches!(self.placed.get(&delivery), Some(Where::Nobody)) {
                self.end(delivery, Ending::Unsent, None);
            }
        }
    }

    /// Takes a flight out of its session.
    fn take_back(&mut self, session: SessionId, key: u64) -> Option<Flight> {
        let found = self.sessions.get_mut(&session)?;
        let had_room = found.has_bytes();
        let flight = found.give_back(key)?;
        self.slots_changed |=
            had_room != found.has_bytes() || found.holds_only(self.now) || flight.earlier;
        Some(flight)
    }

    fn abort(&mut self, delivery: DeliveryId) {
        let (session, key) = match self.placed.get(&delivery) {
            Some(Where::Session(session, key)) => (*session, *key),
            Some(Where::Nobody | Where::Held) => return self.end(delivery, Ending::Unsent, None),
            Some(Where::Local(_)) | None => return,
        };
        let Some(flight) = self.take_back(session, key) else {
            unreachable!("an attempt with a session is among its flights");
        };
        if flight.seq.is_some()
            && let Some(found) = self.sessions.get_mut(&session)
        {
            found.aborts.push_back(key);
            self.ready.insert(session);
        }
        let detail = "given up by walhook: too many endpoints hang at once";
        let outcome = Outcome::failed(FailureKind::Aborted, detail, self.now.since(flight.placed));
        self.end(delivery, Ending::Outcome(outcome), None);
    }

    fn ended_here(&mut self, delivery: DeliveryId, outcome: Outcome) {
        match self.placed.remove(&delivery) {
            None => self.counters.late += 1,
            Some(Where::Session(session, key)) => {
                self.take_back(session, key);
                self.end(delivery, Ending::Outcome(outcome), None);
            }
            Some(Where::Nobody | Where::Held) => {
                self.end(delivery, Ending::Outcome(outcome), None);
            }
            Some(Where::Local(first)) => {
                self.judge(&first, &outcome);
                self.end(delivery, Ending::Outcome(first.joined(outcome)), None);
            }
        }
    }

    fn note_bus(&mut self, connected: bool, max_payload: usize) {
        if connected && !self.was_connected {
            self.was_connected = true;
            self.lead_at = self.now;
            self.adoption.note_connected(self.now);
        }
        self.connected = connected;
        self.max_payload = max_payload;
        let sessions: Vec<_> = self.sessions.keys().copied().collect();
        for id in sessions {
            if connected {
                self.ready.insert(id);
            } else {
                // What was under way may not have come through; who is there says so again.
                self.silence(id);
            }
        }
        self.slots_changed = true;
        self.workers_changed = true;
    }

    /// Sessions that have become silent or lost, and quarantines that are over.
    fn look_at_the_time(&mut self) {
        let (now, lease) = (self.now, self.settings.lease);
        let (mut lost, mut silent, mut quiet) = (Vec::new(), Vec::new(), Vec::new());
        for (id, session) in &mut self.sessions {
            if now >= session.granted_at + lease + LOST_AFTER_LEASE {
                lost.push(*id);
                continue;
            }
            if now >= session.heard_at + lease / 2 && !session.silent {
                silent.push(*id);
            } else if now >= session.heard_at + session::quiet_after(lease) && !session.quiet {
                quiet.push(*id);
            } else if let Some(effect) = session.news(*id, now) {
                self.left.push_back(effect);
                self.workers_changed = true;
            }
            self.slots_changed = true;
        }
        lost.into_iter().for_each(|id| self.lose(id));
        silent.into_iter().for_each(|id| self.silence(id));
        quiet.into_iter().for_each(|id| self.doubt(id));
        self.due = self
            .sessions
            .values()
            .map(|session| session.due(now, lease))
            .min()
            .unwrap_or(Tick(u64::MAX));
    }

    /// Nothing has been heard of a session: it is given nothing, and what has not gone comes back.
    fn silence(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.silent = true;
            self.doubt(id);
            self.tell(id);
        }
    }

    /// A session is given nothing for now: what has not gone comes back, and what has is in doubt.
    fn doubt(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id).filter(|session| !session.quiet) else {
            return;
        };
        session.quiet = true;
        let deliveries = session.sent();
        self.say_doubt(deliveries, true);
        self.release(id, u64::MAX);
    }

    /// Something was heard of a session.
    fn trust(&mut self, id: SessionId) {
        let (now, connected) = (self.now, self.connected);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.heard_at = now;
        // What was on its way when the bus went says nothing of what is under way now.
        if connected && std::mem::take(&mut session.quiet) {
            self.due = self.due.min(session.due(now, self.settings.lease));
            let deliveries = session.sent();
            self.say_doubt(deliveries, false);
        }
    }

    fn say_doubt(&mut self, deliveries: Vec<DeliveryId>, doubtful: bool) {
        self.slots_changed = true;
        if !deliveries.is_empty() {
            self.left.push_back(FleetEffect::Doubt { deliveries, doubtful });
        }
    }

    /// Says what a session has become, where that has not been said.
    fn tell(&mut self, id: SessionId) {
        let now = self.now;
        if let Some(effect) = self.sessions.get_mut(&id).and_then(|session| session.news(id, now)) {
            self.left.push_back(effect);
            self.workers_changed = true;
            self.slots_changed = true;
        }
    }

    /// A session is over: what it had comes back.
    fn lose(&mut self, id: SessionId) {
        let Some(mut session) = self.sessions.remove(&id) else { return };
        self.ready.remove(&id);
        self.remember_gone(id);
        let mut lost = 0;
        for (_, flight) in std::mem::take(&mut session.flights) {
            let delivery = flight.attempt.first().id;
            let ending = if flight.seq.is_none() {
                Ending::Unsent
            } else {
                lost += 1;
                Ending::Lost { elapsed: self.now.since(flight.placed) }
            };
            self.end(delivery, ending, None);
        }
        let left = lost == 0 && matches!(session.phase, Phase::Closing(_));
        if !left {
            self.counters.sessions_lost += 1;
        }
        if lost > 0 {
            if self.lost_by_host.len() >= SESSIONS_MAX
                && !self.lost_by_host.contains_key(&session.host)
            {
                self.lost_by_host.pop_first();
            }
            *self.lost_by_host.entry(session.host.clone()).or_default() += u64::from(lost);
        }
        let state = if left { WorkerState::Left } else { WorkerState::Lost };
        self.left.push_back(FleetEffect::Changed(Box::new(WorkerChanged {
            session: id,
            host: session.host,
            build: session.build,
            state,
            refused: None,
            bye: None,
            lost,
            quarantine: None,
        })));
        self.slots_changed = true;
        self.workers_changed = true;
    }

    fn remember_gone(&mut self, id: SessionId) {
        if self.gone.insert(id) {
            self.gone_in_order.push_back(id);
        }
        if self.gone_in_order.len() > GONE_MAX
            && let Some(oldest) = self.gone_in_order.pop_front()
        {
            self.gone.remove(&oldest);
        }
    }
}
