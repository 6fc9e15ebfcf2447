//! What workers tell of requests that leaders before this one ordered: what their endpoints took is not sent again,
//! and what still runs is waited for.
//!
//! ```text
//! place ─► sent by an earlier leader? ─► its endpoint took it ─► ended, with that outcome
//!                                     ─► it runs ─────────────► in flight there, under the worker's key
//!                                     ─► unknown: held until those workers that may know have told, for a
//!                                        moment at most; then placed as any other
//! ```
//!
//! The dispatcher knows nothing of it: it sends what it does not know to be settled, and hears what came of that. So
//! an outcome settles the delivery of its key ([`DeliveryKey`]) and no other: a deferred row's with the stream's, for
//! they are one delivery; a replay's or a retry's never.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::session::Flight;
use super::{Ending, Fleet, FleetEffect, Placement, Where};
use crate::frame::{Earlier, Hello, SessionId, WireOutcome};
use walhook_core::attempt::{Attempt, DeliveryId, Outcome};
use walhook_core::delivery_key::DeliveryKey;
use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;

/// Workers that may know of an attempt are waited for so long at most: those that are known, and have not told.
const WAIT: Duration = Duration::from_millis(500);

/// And so long in any case: there may be some that the leader before has not written down yet.
const WAIT_LEAST: Duration = Duration::from_millis(100);

/// Deliveries that are known at once, at most: 4,096 of each of 64 workers. More workers tell the last of theirs.
const KNOWN_MAX: usize = 1 << 18;

/// What is not asked for within this time is forgotten: its delivery was settled, or waits for long.
const KNOWN_FOR: Duration = Duration::from_secs(600);

/// What the leader knows of leaders before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Before {
    /// What was committed from here on no leader before has sent.
    pub until: Lsn,
    /// The sessions of the last one's workers that were alive, as it saw them.
    pub sessions: Vec<SessionId>,
}

impl Before {
    /// There was none, or nothing that it sent matters.
    pub const NOTHING: Self = Self { until: Lsn(0), sessions: Vec::new() };
}

/// What is known of a delivery.
#[derive(Debug)]
enum Known {
    Delivered(Outcome),
    /// It runs at this session's worker, under the worker's key.
    Runs(SessionId, u64),
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Adoption {
    until: Lsn,
    /// Sessions of earlier leaders whose workers have not told.
    awaited: BTreeSet<SessionId>,
    /// Since when workers are asked, and attempts held back; `None`: no more.
    asked_at: Option<Tick>,
    held: VecDeque<DeliveryId>,
    known: BTreeMap<DeliveryKey, Known>,
    /// So many of one session's are kept.
    of_session: usize,
    forget_at: Tick,
}

impl Adoption {
    pub(super) fn new(before: Before, now: Tick) -> Self {
        let Before { until, sessions } = before;
        let of_session = KNOWN_MAX / sessions.len().max(1);
        let awaited: BTreeSet<_> = sessions.into_iter().collect();
        let asked_at = (until > Lsn(0)).then_some(now);
        Self {
            until,
            awaited,
            asked_at,
            held: VecDeque::new(),
            known: BTreeMap::new(),
            of_session,
            forget_at: now + KNOWN_FOR,
        }
    }

    /// The bus is there for the first time: only now workers can hear that they are asked.
    pub(super) fn note_connected(&mut self, now: Tick) {
        self.asked_at = self.asked_at.map(|_| now);
    }

    /// Whether attempts are held for workers that have not told.
    pub(super) fn waits(&self) -> bool {
        self.asked_at.is_some()
    }

    pub(super) fn deadline(&self, now: Tick) -> Option<Tick> {
        let forget_at = (!self.known.is_empty()).then_some(self.forget_at);
        let held_until =
            self.asked_at.map(|at| if now < at + WAIT_LEAST { at + WAIT_LEAST } else { at + WAIT });
        [held_until, forget_at].into_iter().flatten().min()
    }

    /// Whether anything is to be looked up for an attempt.
    fn concerns(&self, attempt: &Attempt) -> bool {
        (self.waits() || !self.known.is_empty())
            && attempt.first().event.position.commit_lsn() < self.until
    }

    fn learn(&mut self, delivery: DeliveryKey, known: Known) {
        if self.known.len() < KNOWN_MAX || self.known.contains_key(&delivery) {
            self.known.insert(delivery, known);
        }
    }
}

impl Fleet {
    /// Whether an earlier leader's workers have answered for an attempt, or may yet.
    pub(super) fn adopt(&mut self, attempt: &Attempt) -> Option<Placement> {
        if !self.adoption.concerns(attempt) {
            return None;
        }
        let delivery = attempt.first().id;
        match self.adoption.known.remove(&DeliveryKey::of(attempt)) {
            Some(Known::Delivered(outcome)) => {
                self.counters.adopted_delivered += 1;
                self.end(delivery, Ending::Outcome(outcome), None);
            }
            Some(Known::Runs(id, key)) if self.takes_up(id, key, attempt) => {
                self.counters.adopted_running += 1;
                self.placed.insert(delivery, Where::Session(id, key));
            }
            Some(Known::Runs(..)) | None => {
                self.adoption.asked_at?;
                self.placed.insert(delivery, Where::Held);
                self.adoption.held.push_back(delivery);
            }
        }
        self.counters.taken += 1;
        Some(Placement::Taken)
    }

    /// Puts an attempt in flight where its request runs already; no: it does not any more.
    fn takes_up(&mut self, id: SessionId, key: u64, attempt: &Attempt) -> bool {
        let Some(session) = self.sessions.get_mut(&id) else { return false };
        if session.told.remove(&key).is_none() {
            return false;
        }
        // Its bytes are the worker's own, which says how many slots are left beside it.
        let flight = Flight {
            attempt: attempt.clone(),
            bytes: 0,
            seq: Some(0),
            placed: self.now,
            taken: Some(self.now),
            old: false,
            first: None,
            earlier: true,
        };
        session.take_up(key, flight);
        self.slots_changed = true;
        if session.quiet {
            self.say_doubt(vec![attempt.first().id], true);
        }
        true
    }

    /// Takes what a worker tells of an earlier leader's request.
    pub(super) fn hear_earlier(&mut self, id: SessionId, told: WireOutcome, earlier: Earlier) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.told_so_far >= self.adoption.of_session || self.now >= self.adoption.forget_at {
            return;
        }
        session.told_so_far += 1;
        match (earlier, told.outcome) {
            (Earlier::Runs(delivery), _) => {
                // Another worker's word that it was taken is as good.
                if !matches!(self.adoption.known.get(&delivery), Some(Known::Delivered(_))) {
                    session.told.insert(told.key, delivery);
                    self.adoption.learn(delivery, Known::Runs(id, told.key));
                }
            }
            (Earlier::Delivered(delivery), Some(outcome)) if outcome.delivered() => {
                self.adoption.learn(delivery, Known::Delivered(outcome));
            }
            (Earlier::Delivered(_), _) => self.counters.strange += 1,
        }
    }

    /// A request of an earlier leader's has ended, that nobody has asked for so far. No: there is none by this key.
    pub(super) fn earlier_ended(
        &mut self,
        id: SessionId,
        key: u64,
        outcome: Option<Outcome>,
    ) -> bool {
        let told = self.sessions.get_mut(&id).and_then(|session| session.told.remove(&key));
        let Some(delivery) = told else { return false };
        match outcome.filter(Outcome::delivered) {
            Some(outcome) => self.adoption.learn(delivery, Known::Delivered(outcome)),
            None => _ = self.adoption.known.remove(&delivery),
        }
        true
    }

    /// A worker names the sessions that it had under earlier leaders.
    pub(super) fn note_former(&mut self, id: SessionId, hello: &Hello) {
        if let Some(session) = self.sessions.get_mut(&id)
            && !hello.former.is_empty()
        {
            session.kept = hello.kept;
            session.former.clone_from(&hello.former);
        }
        self.note_told(id);
    }

    /// A session may have told all that it knows of earlier leaders.
    pub(super) fn note_told(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.has_told() {
            for former in std::mem::take(&mut session.former) {
                self.adoption.awaited.remove(&former);
            }
        }
    }

    /// Hands back what was held for workers that have told now, or do not in time; forgets what nobody asks for.
    pub(super) fn release_held(&mut self) {
        let (now, adoption) = (self.now, &mut self.adoption);
        if !adoption.known.is_empty() && now >= adoption.forget_at {
            adoption.known.clear();
        }
        let Some(asked_at) = adoption.asked_at else { return };
        let silent = adoption.awaited.len();
        let untold = silent > 0 || self.sessions.values().any(|session| !session.has_told());
        if now < asked_at + WAIT_LEAST || now < asked_at + WAIT && untold {
            return;
        }
        adoption.asked_at = None;
        let (mut delivered, mut running) = (0, 0);
        for known in adoption.known.values() {
            match known {
                Known::Delivered(_) => delivered += 1,
                Known::Runs(..) => running += 1,
            }
        }
        for delivery in std::mem::take(&mut adoption.held) {
            if matches!(self.placed.get(&delivery), Some(Where::Held)) {
                // The dispatcher sends it again at once, and it is looked up once more.
                self.end(delivery, Ending::Unsent, None);
            }
        }
        if delivered + running + silent > 0 {
            self.left.push_back(FleetEffect::TookOver { delivered, running, silent });
        }
    }
}
