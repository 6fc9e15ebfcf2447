//! One worker under this leader, as the leader knows it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use super::health::Health;
use super::line::Lines;
use super::opinion::First;
use super::room::Reserved;
use super::window::Window;
use super::{Fleet, FleetEffect, FleetSettings, Packed, Slots, WorkerChanged, WorkerState};
use crate::frame::{
    ABORTS_MAX, ATTEMPTS_BYTES, ATTEMPTS_MAX, Abort, Body, ByeReason, Frame, Grant, Hello,
    SessionId, WorkerId,
};
use crate::{LOST_AFTER_LEASE, QUIET_SIXTEENTHS};
use walhook_core::attempt::{Attempt, DeliveryId};
use walhook_core::delivery_key::DeliveryKey;
use walhook_core::tick::Tick;

/// Frames of a session that the packer has and has not published, at most.
const WINDOW: u64 = 8;

/// A request that is under way for so long is a slow one, as the dispatcher counts.
const SLOW_AFTER: Duration = Duration::from_secs(1);

/// Outcomes after which a grant goes out although no `Hello` asked for one, so that the worker can forget them.
const OUTCOMES_PER_GRANT: u64 = 1_024;

/// An attempt that a session has.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) attempt: Attempt,
    /// What it takes of the byte budget.
    pub(super) bytes: u64,
    /// The frame in which it went; `None`: it has not gone.
    pub(super) seq: Option<u64>,
    pub(super) placed: Tick,
    /// When the worker said that it has it.
    pub(super) taken: Option<Tick>,
    /// It counts as slow.
    pub(super) old: bool,
    /// What it is a second opinion on.
    pub(super) first: Option<Box<First>>,
    /// An earlier leader ordered it.
    pub(super) earlier: bool,
}

/// Whether a session takes more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Serving,
    /// It has ended; `None`: by what the leader knows, and the worker may not know it yet.
    Closing(Option<ByeReason>),
}

/// Invariant: `flights` holds each key of `waiting`, and no other whose `seq` is `None`; `bytes`, `old` and the
/// number of flights agree with it.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) worker: Option<WorkerId>,
    pub(super) host: String,
    pub(super) build: String,
    pub(super) slots: Slots,
    pub(super) budget: u64,
    version: u8,
    pub(super) phase: Phase,
    pub(super) began: Tick,
    /// The worker has shown that it hears this leader: it has taken a frame of the session.
    confirmed: bool,
    /// An attempt of it was overdue. It is granted nothing more, so that its lease runs out, and it with it.
    overdue: bool,
    pub(super) silent: bool,
    /// Nothing was heard of it for some time: it is given nothing, which is told nobody, for it may be a hiccup.
    pub(super) quiet: bool,
    /// The state that was told last, and since when it is in it.
    shown: Option<WorkerState>,
    pub(super) since: Tick,
    pub(super) heard_at: Tick,
    pub(super) granted_at: Tick,
    hello_seq: u64,
    stamp_us: u64,
    grant_due: bool,
    next_seq: u64,
    pub(super) published: u64,
    pub(super) window: Window,
    /// When it was last seen that the bus is slow for what is published to it.
    pub(super) slow_at: Option<Tick>,
    pub(super) flights: BTreeMap<u64, Flight>,
    /// Of those in frames that the worker has not said that it has, in the order of the frames; some may have ended.
    sent: VecDeque<u64>,
    /// Those that it has said that it has, by when.
    taken: BTreeSet<(Tick, u64)>,
    waiting: Lines,
    /// The younger ones by when they were placed, those among them that have ended included.
    young: VecDeque<(Tick, u64)>,
    old: u32,
    pub(super) bytes: u64,
    pub(super) reserved: Option<Reserved>,
    pub(super) aborts: VecDeque<u64>,
    outcomes_upto: u64,
    granted_upto: u64,
    /// The first outcomes, so many, are of earlier leaders; and sessions that the worker had under them.
    pub(super) kept: u64,
    pub(super) former: Vec<SessionId>,
    /// Requests of earlier leaders that run, by the worker's key, as long as nobody has asked for them.
    pub(super) told: BTreeMap<u64, DeliveryKey>,
    pub(super) told_so_far: usize,
    /// Flights that earlier leaders ordered: the worker's slots are what is left beside them.
    pub(super) taken_up: u32,
    pub(super) health: Health,
    /// When an endpoint was last reached by it.
    pub(super) answered_at: Option<Tick>,
    /// Spreads the session's name for the choice by host.
    pub(super) hash: u64,
}

/// When a session of which nothing was heard is quiet.
pub(super) fn quiet_after(lease: Duration) -> Duration {
    lease * QUIET_SIXTEENTHS / 16
}

impl Session {
    pub(super) fn new(hello: &Hello, version: u8, hash: u64, lease: Duration, now: Tick) -> Self {
        Self {
            worker: hello.worker,
            host: hello.host.clone(),
            build: hello.build.clone(),
            slots: Slots::default(),
            budget: 0,
            version,
            phase: Phase::Serving,
            began: now,
            confirmed: false,
            overdue: false,
            silent: false,
            quiet: false,
            shown: None,
            since: now,
            heard_at: now,
            granted_at: now,
            hello_seq: 0,
            stamp_us: 0,
            grant_due: false,
            next_seq: 1,
            published: 0,
            window: Window::new(lease, now),
            slow_at: None,
            flights: BTreeMap::new(),
            sent: VecDeque::new(),
            taken: BTreeSet::new(),
            waiting: Lines::default(),
            young: VecDeque::new(),
            old: 0,
            bytes: 0,
            reserved: None,
            aborts: VecDeque::new(),
            outcomes_upto: 0,
            granted_upto: 0,
            kept: 0,
            former: Vec::new(),
            told: BTreeMap::new(),
            told_so_far: 0,
            taken_up: 0,
            health: Health::default(),
            answered_at: None,
            hash,
        }
    }

    /// Takes what a worker says of itself; no: an earlier one has come later.
    pub(super) fn hear(&mut self, hello: &Hello, seq: u64, now: Tick) -> bool {
        if seq <= self.hello_seq {
            return false;
        }
        self.hello_seq = seq;
        self.stamp_us = hello.stamp_us;
        self.slots = Slots { fast: hello.fast_slots, slow: hello.slow_slots };
        self.budget = hello.byte_budget;
        self.heard_at = now;
        self.silent = false;
        self.grant_due = !self.overdue;
        self.confirmed |= hello.received_upto > 0;
        if self.window.confirm(hello.received_upto, now) {
            self.slow_at = Some(now);
        }
        self.note_taken(hello.received_upto, now);
        true
    }

    /// What only one says that was granted something has come.
    pub(super) fn confirm(&mut self) {
        self.confirmed = true;
    }

    pub(super) fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// Whether it was granted a lease for so long that it should have confirmed it, and has not.
    pub(super) fn is_unconfirmed(&self, now: Tick, settings: &FleetSettings) -> bool {
        !self.confirmed && now >= self.began + settings.lease
    }

    /// The worker has the frames up to this one.
    fn note_taken(&mut self, received_upto: u64, now: Tick) {
        while let Some(key) = self.sent.front().copied() {
            if let Some(flight) = self.flights.get_mut(&key) {
                if flight.seq.is_none_or(|seq| seq > received_upto) {
                    break;
                }
                flight.taken = Some(now);
                self.taken.insert((now, key));
            }
            self.sent.pop_front();
        }
    }

    /// When it is lost, unless it is granted more. What it said while the leader was stopped is heard first, and then
    /// it has a lease's time to say again what went nowhere: nothing that may still come is sent anew.
    pub(super) fn lost_at(&self, awake_since: Tick, settings: &FleetSettings) -> Tick {
        let at = self.granted_at + settings.lease + LOST_AFTER_LEASE;
        at.max(awake_since + settings.lease)
    }

    /// When an attempt that it has is overdue: what came of it should have been heard. A worker begins what it takes
    /// at once, for it is given no more than it has slots; what it says until a lease and [`LOST_AFTER_LEASE`] have
    /// passed it says at least twice.
    fn overdue_at(&self, awake_since: Tick, settings: &FleetSettings) -> Option<Tick> {
        let (first, _) = self.taken.first()?;
        let at = *first + settings.timeout + settings.lease + LOST_AFTER_LEASE;
        Some(at.max(awake_since + settings.lease))
    }

    /// An attempt of it is overdue.
    pub(super) fn note_overdue(&mut self, now: Tick) {
        self.overdue = true;
        self.grant_due = false;
        self.health.note_mute(now);
    }

    pub(super) fn is_overdue(
        &self,
        now: Tick,
        awake_since: Tick,
        settings: &FleetSettings,
    ) -> bool {
        !self.overdue && self.overdue_at(awake_since, settings).is_some_and(|at| now >= at)
    }

    /// Whether it takes requests at all: one that ends has no slots, and only tells what it knows.
    pub(super) fn has_slots(&self) -> bool {
        self.slots != Slots::default()
    }

    /// Whether all that it was to tell of earlier leaders has come.
    pub(super) fn has_told(&self) -> bool {
        self.outcomes_upto >= self.kept
    }

    /// Takes outcomes by their numbers. Returns which of them come in their turn.
    pub(super) fn count_outcomes(&mut self, first: u64, count: u64) -> Range<u64> {
        let before = self.outcomes_upto;
        // What lies before `first` comes again, and this with it.
        if first <= self.outcomes_upto {
            self.outcomes_upto = self.outcomes_upto.max(first.saturating_add(count));
        }
        self.grant_due |=
            !self.overdue && self.outcomes_upto - self.granted_upto >= OUTCOMES_PER_GRANT;
        before..self.outcomes_upto
    }

    /// Whether it has said that it begins nothing more. One that ends by what the leader knows alone may be gone.
    pub(super) fn has_said_bye(&self) -> bool {
        matches!(self.phase, Phase::Closing(Some(_)))
    }

    /// Whether it has said so, and all that it could tell has come.
    pub(super) fn has_ended(&self) -> bool {
        self.has_said_bye() && self.flights.is_empty() && self.has_told()
    }

    pub(super) fn in_flight(&self) -> u32 {
        u32::try_from(self.flights.len()).unwrap_or(u32::MAX)
    }

    /// What it has, by the dispatcher's pools: a request is fast until it has taken a second.
    pub(super) fn held(&self) -> Slots {
        Slots { fast: self.in_flight() - self.old, slow: self.old }
    }

    /// Whether work is given to it at all. What is published to one that has not confirmed anything may reach nobody.
    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Serving && self.confirmed && !self.silent && !self.quiet
    }

    /// Whether it counts by what it has, since it is given no more.
    pub(super) fn holds_only(&self, all_serve: bool, now: Tick) -> bool {
        !self.is_open() || !self.has_bytes() || self.health.is_kept(all_serve, now)
    }

    /// Whether it is given work as any other: it is not in quarantine.
    pub(super) fn is_well(&self, now: Tick) -> bool {
        self.is_open() && self.has_slots() && !self.health.is_quarantined(now)
    }

    pub(super) fn state(&self, now: Tick) -> WorkerState {
        match self.phase {
            _ if self.silent => WorkerState::Silent,
            _ if self.health.is_mute() => WorkerState::Mute,
            Phase::Closing(_) => WorkerState::Draining,
            Phase::Serving if !self.has_slots() => WorkerState::Draining,
            Phase::Serving if !self.confirmed => WorkerState::Joining,
            Phase::Serving if self.health.is_quarantined(now) => WorkerState::Quarantined,
            Phase::Serving => WorkerState::Serving,
        }
    }

    /// When something about it changes by time alone.
    pub(super) fn due(&self, now: Tick, awake_since: Tick, settings: &FleetSettings) -> Tick {
        let lease = settings.lease;
        let lost = self.lost_at(awake_since, settings);
        let overdue = self.overdue_at(awake_since, settings);
        let overdue = overdue.filter(|_| !self.overdue).unwrap_or(lost);
        let silent = if self.silent { lost } else { self.heard_at + lease / 2 };
        let quiet = if self.quiet { silent } else { self.heard_at + quiet_after(lease) };
        let healthy = self.health.due(now).unwrap_or(lost);
        let room = self.room_due(now).unwrap_or(lost);
        lost.min(overdue).min(silent).min(quiet).min(healthy).min(room)
    }

    pub(super) fn take(&mut self, key: u64, flight: Flight) {
        self.bytes += flight.bytes;
        self.young.push_back((flight.placed, key));
        self.waiting.push(key, flight.bytes);
        self.flights.insert(key, flight);
    }

    /// Takes one that runs there already.
    pub(super) fn take_up(&mut self, key: u64, flight: Flight) {
        self.taken_up += 1;
        self.taken.extend(flight.taken.map(|at| (at, key)));
        self.young.push_back((flight.placed, key));
        self.flights.insert(key, flight);
    }

    pub(super) fn give_back(&mut self, key: u64) -> Option<Flight> {
        let flight = self.flights.remove(&key)?;
        self.bytes -= flight.bytes;
        self.taken_up -= u32::from(flight.earlier);
        if flight.seq.is_none() {
            self.waiting.remove(key, flight.bytes);
        }
        flight.taken.map(|at| self.taken.remove(&(at, key)));
        if flight.old {
            self.old -= 1;
        }
        Some(flight)
    }

    /// Counts those as slow that have become so.
    pub(super) fn age(&mut self, now: Tick) {
        self.open_room(now);
        while let Some((placed, key)) = self.young.front().copied() {
            if now < placed + SLOW_AFTER && self.flights.contains_key(&key) {
                return;
            }
            self.young.pop_front();
            if let Some(flight) = self.flights.get_mut(&key) {
                flight.old = true;
                self.old += 1;
            }
        }
    }

    /// What of it may be under way: it is in frames that were ordered.
    pub(super) fn sent(&self) -> Vec<DeliveryId> {
        let sent = self.flights.values().filter(|flight| flight.seq.is_some());
        sent.map(|flight| flight.attempt.first().id).collect()
    }

    /// The keys of what was not in a frame before `seq`, in the order in which they were placed.
    pub(super) fn behind(&self, seq: u64) -> Vec<u64> {
        let behind = |flight: &Flight| flight.seq.is_none_or(|of| of >= seq);
        self.flights.iter().filter(|(_, flight)| behind(flight)).map(|(key, _)| *key).collect()
    }

    /// That it has become what it is, where that has not been told.
    pub(super) fn news(&mut self, id: SessionId, now: Tick) -> Option<FleetEffect> {
        let state = self.state(now);
        // One that never showed that it heard us begins another session each lease.
        let goes_unheard = state == WorkerState::Silent && !self.confirmed;
        if self.shown == Some(state) || goes_unheard {
            return None;
        }
        self.shown = Some(state);
        self.since = now;
        Some(self.changed(id, now))
    }

    fn changed(&self, id: SessionId, now: Tick) -> FleetEffect {
        let bye = match self.phase {
            Phase::Serving => None,
            Phase::Closing(why) => why,
        };
        FleetEffect::Changed(Box::new(WorkerChanged {
            session: id,
            host: self.host.clone(),
            build: self.build.clone(),
            state: self.state(now),
            refused: None,
            bye,
            lost: 0,
            quarantine: self.health.quarantined_for(now),
        }))
    }

    /// The next attempts to go, in a frame of this number; none while too much is on its way.
    fn pack(&mut self, seq: u64, now: Tick) -> Vec<Packed> {
        if self.waiting.is_empty() || self.window.is_full() {
            return Vec::new();
        }
        let line = self.waiting.next();
        let (mut packed, mut bytes) = (Vec::new(), 0);
        let most = u64::try_from(ATTEMPTS_BYTES).unwrap_or(u64::MAX);
        while let Some(key) = line.front().copied() {
            let Some(flight) = self.flights.get_mut(&key) else {
                unreachable!("what waits is in flight");
            };
            let with = bytes + flight.bytes;
            if packed.len() == ATTEMPTS_MAX || !packed.is_empty() && with > most {
                break;
            }
            bytes = with;
            flight.seq = Some(seq);
            packed.push(Packed { key, attempt: flight.attempt.clone() });
            self.sent.push_back(key);
            line.pop_front();
        }
        self.window.send(seq, bytes, now);
        packed
    }
}

impl Fleet {
    /// The next frame of a session: what keeps it alive, then what frees it, then work.
    pub(super) fn next_frame(&mut self, id: SessionId) -> Option<FleetEffect> {
        let (now, FleetSettings { lease, epoch, pipeline, .. }) = (self.now, &self.settings);
        let (lease, epoch, pipeline) = (*lease, *epoch, *pipeline);
        let session = self.sessions.get_mut(&id)?;
        let seq = session.next_seq;
        if !self.connected || seq > session.published + WINDOW {
            return None;
        }
        let body = if std::mem::take(&mut session.grant_due) {
            session.granted_at = now;
            session.granted_upto = session.outcomes_upto;
            let closed = session.phase != Phase::Serving;
            let (stamp_us, outcomes_upto) = (session.stamp_us, session.outcomes_upto);
            Body::Grant(Grant { stamp_us, lease, outcomes_upto, closed })
        } else if !session.aborts.is_empty() {
            let count = session.aborts.len().min(ABORTS_MAX / 2);
            Body::Abort(Abort { keys: session.aborts.drain(..count).collect() })
        } else {
            let (version, attempts) = (session.version, session.pack(seq, now));
            if attempts.is_empty() {
                return None;
            }
            session.next_seq += 1;
            return Some(FleetEffect::Pack { session: id, seq, version, attempts });
        };
        session.next_seq += 1;
        let (version, pipeline) = (session.version, Some(pipeline));
        let frame = Frame { version, epoch, pipeline, session: id, seq, body };
        Some(FleetEffect::Publish(Box::new(frame)))
    }
}
