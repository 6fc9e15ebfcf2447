//! The worker's side: when a request may begin, and until what came of it has been heard.
//!
//! ```text
//! Lead ─► join: Subscribe, Hello ─► Grant ─► Attempts ─► Begin ─► Ended ─► Outcomes ─► Grant: forgotten
//!                                     │
//!                 gap, lost connection, lease over, a higher epoch, leaving
//!                                     ▼
//!                 closing: begins nothing, says so, ends what runs ─► acknowledged ─► gone
//! ```
//!
//! Whatever is irregular ends the session and begins another: there is no state of which the two sides could have
//! different pictures. Invariant: a request begins only in the one session that serves, by a frame that came in its
//! turn, before the end of a lease that was granted on a stamp of this process's own clock.

mod door;
mod hear;
mod kept;
mod session;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one effect among all")]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::frame::{ATTEMPTS_BYTES, ByeReason, Hello, PipelineId, Refusal, SessionId, WorkerId};
use crate::{HELLOS_PER_LEASE, LOST_AFTER_LEASE};
pub use door::{AttemptKey, ServeEffect, ServeInput, ServeSettings, ServeState, To};
use kept::{KEPT_FOR, Kept};
use session::{Session, Took};
use walhook_core::attempt::Outcome;
use walhook_core::id::Epoch;
use walhook_core::tick::micros;

/// A worker that was refused asks again after this.
pub const REFUSED_FOR: Duration = Duration::from_secs(10);

/// Lower epochs are taken again when nothing was heard of the highest one for so long: the state tables were made
/// anew. A leader that was only stopped finds out by itself before that. Likewise another pipeline.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// Sessions that are ending at most: beyond that none begins, for something is wrong with every one.
const CLOSING_MAX: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Leader {
    epoch: Epoch,
    lease: Duration,
    version: u8,
    heard_us: u64,
    /// Whether it asks what was ordered by leaders before it.
    asks: bool,
}

/// One worker. Times are microseconds of its machine's boot-time clock, which goes on while the machine sleeps.
#[derive(Debug)]
pub struct Serving {
    settings: ServeSettings,
    id: WorkerId,
    rng: SmallRng,
    now_us: u64,
    connected: bool,
    /// Bytes of outcomes after which no further one is put into a frame.
    outcome_bytes: usize,
    leader: Option<Leader>,
    /// The one that it serves, and when a leader of it was heard last.
    pipeline: Option<(PipelineId, u64)>,
    /// When a leader of another one was heard last.
    another_us: Option<u64>,
    /// When a leader of a lower epoch was heard last that was not taken.
    lower_us: Option<u64>,
    current: Option<Session>,
    closing: BTreeMap<SessionId, Session>,
    kept: Kept,
    /// The leader that has heard all that was kept of earlier ones.
    told: Option<Epoch>,
    refused: Option<(Refusal, u64)>,
    draining: bool,
    /// What sessions that have gone since it drains could tell nobody.
    untold: u64,
    left: VecDeque<ServeEffect>,
    shown: ServeState,
}

impl Serving {
    /// A worker that has heard of nobody.
    #[must_use]
    pub fn new(settings: ServeSettings) -> Self {
        let mut rng = SmallRng::from_seed(settings.seed);
        let kept = Kept::new(settings.fast_slots.saturating_add(settings.slow_slots));
        Self {
            settings,
            id: WorkerId(rng.random()),
            rng,
            now_us: 0,
            connected: false,
            outcome_bytes: ATTEMPTS_BYTES,
            leader: None,
            pipeline: None,
            another_us: None,
            lower_us: None,
            current: None,
            closing: BTreeMap::new(),
            kept,
            told: None,
            refused: None,
            draining: false,
            untold: 0,
            left: VecDeque::new(),
            shown: ServeState::Waiting,
        }
    }

    /// Takes one input.
    pub fn handle(&mut self, now_us: u64, input: ServeInput) {
        self.enter(now_us);
        match input {
            ServeInput::Frame(frame) => self.hear(*frame),
            ServeInput::Unreadable(session) => {
                if self.current.as_ref().is_some_and(|current| current.id == session) {
                    self.close(ByeReason::Unreadable);
                }
            }
            ServeInput::Bus { connected, max_payload } => {
                // One outcome is far smaller than any bus's messages.
                self.outcome_bytes = (max_payload / 2).min(ATTEMPTS_BYTES);
                self.note_bus(connected);
            }
            ServeInput::Ended { key, outcome } => self.note_ended(key, &outcome),
            ServeInput::Drain => {
                self.draining = true;
                self.close(ByeReason::Leaving);
            }
        }
    }

    /// What is to be done next; `None`: nothing more at this moment.
    pub fn poll(&mut self, now_us: u64) -> Option<ServeEffect> {
        self.enter(now_us);
        if self.left.is_empty() {
            self.look_at_the_time();
            let state = self.state();
            if self.shown != state {
                self.shown = state;
                self.left.push_back(ServeEffect::State(state));
            }
        }
        self.left.pop_front()
    }

    /// When to poll although nothing comes in.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let sessions = self.current.iter().chain(self.closing.values());
        let sessions = sessions.map(|session| session.due(self.connected, self.draining)).min();
        let refused = self.refused.map(|(_, until)| until).filter(|_| !self.draining);
        [sessions, refused].into_iter().flatten().min()
    }

    /// How the worker stands.
    #[must_use]
    pub fn state(&self) -> ServeState {
        match (&self.current, self.refused) {
            _ if self.draining => ServeState::Draining,
            (Some(session), _) if session.until_us.is_some() => ServeState::Serving,
            (Some(_), _) => ServeState::Joining,
            (None, Some((why, _))) => ServeState::Refused(why),
            (None, None) => ServeState::Waiting,
        }
    }

    /// Whether it was told to drain, and nothing runs and nothing is left to be heard.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.draining && self.current.is_none() && self.closing.is_empty()
    }

    /// Requests that were made, of which no leader has heard what came of them: of sessions that are there, and of those
    /// that have gone since it was told to drain.
    #[must_use]
    pub fn untold(&self) -> u64 {
        let sessions = self.current.iter().chain(self.closing.values());
        sessions.fold(self.untold, |sum, session| sum.saturating_add(self.untold_of(session)))
    }

    /// A later leader that has heard all that was kept has heard of these too.
    fn untold_of(&self, session: &Session) -> u64 {
        if self.told.is_some_and(|told| told > session.epoch) { 0 } else { session.untold() }
    }

    /// Requests that run.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.current.iter().chain(self.closing.values()).map(Session::running).sum()
    }

    /// What is left of the lease at this moment; `None`: it has none.
    #[must_use]
    pub fn lease_left(&self, now_us: u64) -> Option<Duration> {
        let until = self.current.as_ref()?.until_us?;
        until.checked_sub(now_us).map(Duration::from_micros)
    }

    /// How long ago a leader was heard; `None`: never.
    #[must_use]
    pub fn lead_heard(&self, now_us: u64) -> Option<Duration> {
        self.leader.map(|leader| Duration::from_micros(now_us.saturating_sub(leader.heard_us)))
    }

    /// How long ago the leader of a pipeline was heard that is not served; `None`: never.
    #[must_use]
    pub fn another_heard(&self, now_us: u64) -> Option<Duration> {
        self.another_us.map(|at| Duration::from_micros(now_us.saturating_sub(at)))
    }

    /// How long ago a leader was heard that was not taken, for its epoch is lower than the known one's; `None`: never.
    #[must_use]
    pub fn lower_heard(&self, now_us: u64) -> Option<Duration> {
        self.lower_us.map(|at| Duration::from_micros(now_us.saturating_sub(at)))
    }

    /// The leader's epoch, as far as it is known.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.leader.map(|leader| leader.epoch)
    }

    fn enter(&mut self, now_us: u64) {
        assert!(now_us >= self.now_us, "time goes back: from {} to {now_us}", self.now_us);
        self.now_us = now_us;
        // Before anything is taken: it may have been a long time.
        if self.current.as_ref().is_some_and(|session| session.is_over(now_us)) {
            self.close(ByeReason::Lease);
        }
    }

    fn session_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        match &mut self.current {
            Some(session) if session.id == id => Some(session),
            _ => self.closing.get_mut(&id),
        }
    }

    fn sessions_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.current.iter_mut().chain(self.closing.values_mut())
    }

    /// A request has ended: whoever leads hears of it, and whoever leads next may.
    fn note_ended(&mut self, attempt: AttemptKey, outcome: &Option<Outcome>) {
        let now_us = self.now_us;
        let Some(session) = self.session_mut(attempt.session) else { return };
        let epoch = session.epoch;
        let Some(delivery) = session.ended(attempt.key, outcome) else { return };
        if let (Some(delivery), Some(outcome)) = (delivery, outcome) {
            self.kept.note_ended(epoch, delivery, outcome, now_us);
        }
        for session in self.sessions_mut().filter(|session| session.epoch > epoch) {
            session.earlier_ended(attempt, outcome);
        }
    }

    fn close_on_gap(&mut self, took: Took) {
        if took == Took::Gap {
            self.close(ByeReason::Gap);
        }
    }

    fn note_bus(&mut self, connected: bool) {
        self.connected = connected;
        if !connected {
            self.close(ByeReason::Disconnected);
        }
        for session in self.closing.values_mut() {
            session.say_again(self.now_us);
        }
        self.join();
    }

    /// Ends the session that serves, and begins another one.
    fn close(&mut self, why: ByeReason) {
        if let Some(mut session) = self.current.take() {
            session.close(why, self.now_us);
            self.closing.insert(session.id, session);
        }
        self.join();
    }

    /// What was ordered so far is of another past, or another pipeline's: no later leader is told of it.
    fn forget_past(&mut self) {
        self.kept.clear();
        self.sessions_mut().for_each(Session::forget_deliveries);
    }

    /// Nothing of any session is wanted any more; what runs ends.
    fn orphan_all(&mut self) {
        self.orphan_current();
        self.closing.values_mut().for_each(Session::orphan);
    }

    fn orphan_current(&mut self) {
        if let Some(mut session) = self.current.take() {
            session.orphan();
            self.closing.insert(session.id, session);
        }
    }

    fn join(&mut self) {
        let Some(leader) = self.leader else { return };
        let refused = self.refused.is_some_and(|(_, until)| self.now_us < until);
        let busy = self.current.is_some() || self.closing.len() >= CLOSING_MAX;
        // One that takes nothing more still tells what it knows.
        let leaves = self.draining && (!leader.asks || self.told == Some(leader.epoch));
        if !self.connected || leaves || refused || busy {
            return;
        }
        let (id, epoch, now_us) = (SessionId(self.rng.random()), leader.epoch, self.now_us);
        let pipeline = self.pipeline.map(|(served, _)| served);
        let of = (epoch, pipeline);
        let mut session = Session::new(id, of, leader.version, leader.lease, now_us);
        if leader.asks {
            let closing = self.closing.values().filter(|session| session.epoch < epoch);
            let running = closing.flat_map(Session::running_deliveries);
            session = session.tell_earlier(running, self.kept.before(epoch, now_us));
        }
        if self.draining && session.kept() == 0 {
            return;
        }
        self.kept.note_session(epoch, id);
        self.left.push_back(ServeEffect::Subscribe(id));
        self.current = Some(session);
    }

    /// Takes note that the leader knows what it was to be told at first; a worker that takes nothing more then closes:
    /// what still runs is told of by a closing session too.
    fn note_told(&mut self) {
        let Some(session) = self.current.as_ref().filter(|session| session.has_told()) else {
            return;
        };
        self.told = Some(session.epoch);
        if self.draining {
            self.close(ByeReason::Leaving);
        }
    }

    /// What is due by time, and what has come to be said.
    fn look_at_the_time(&mut self) {
        let now_us = self.now_us;
        if self.current.as_ref().is_some_and(|session| session.is_unheard(now_us)) {
            // The leader may have it among the lost by now.
            self.orphan_current();
        }
        if self.refused.is_some_and(|(_, until)| now_us >= until) {
            self.refused = None;
        }
        let gone: Vec<_> = self
            .closing
            .values()
            .filter(|session| session.is_done(now_us, self.draining))
            .map(|session| session.id)
            .collect();
        for id in gone {
            let session = self.closing.remove(&id).filter(|_| self.draining);
            self.untold += session.map_or(0, |session| self.untold_of(&session));
            self.left.push_back(ServeEffect::Unsubscribe(id));
        }
        self.note_told();
        self.join();
        if self.connected {
            self.say();
        }
    }

    /// Frames that are due.
    fn say(&mut self) {
        let now_us = self.now_us;
        let (fast_slots, slow_slots) = self.free_slots();
        let outcome_bytes = self.outcome_bytes;
        let (settings, left, kept) = (&self.settings, &mut self.left, &self.kept);
        let worker = Some(self.id);
        for session in self.current.iter_mut().chain(self.closing.values_mut()) {
            left.extend(session.take_bye());
            if session.hello_is_due(now_us) {
                let hello = Hello {
                    versions: settings.versions,
                    fast_slots,
                    slow_slots,
                    byte_budget: settings.byte_budget,
                    stamp_us: now_us,
                    received_upto: session.received_upto(),
                    state: session.hello_state(),
                    host: settings.host.clone(),
                    build: settings.build.clone(),
                    egress: settings.egress,
                    kept: session.kept(),
                    former: if session.was_granted() {
                        Vec::new()
                    } else {
                        kept.sessions_before(session.epoch)
                    },
                    worker,
                };
                left.push_back(session.hello(hello, now_us));
            }
            session.take_outcomes(now_us, outcome_bytes, left);
        }
    }

    /// What is free of the slots for the session that serves: what others still run takes its own.
    fn free_slots(&self) -> (u32, u32) {
        if self.draining {
            return (0, 0);
        }
        let held: usize = self.closing.values().map(Session::running).sum();
        let held = u32::try_from(held).unwrap_or(u32::MAX);
        let (fast, slow) = (self.settings.fast_slots, self.settings.slow_slots);
        let fast_left = fast.saturating_sub(held);
        (fast_left, slow.saturating_sub(held - (fast - fast_left)))
    }
}

/// A part of the lease.
fn part_us(lease: Duration, parts: u32) -> u64 {
    micros(lease / parts)
}

/// A session that has ended is told of for so long without an answer: a leader that was stopped knows it when it goes on.
/// One that does not says so. A worker that leaves does not stay for one that may be gone.
fn told_for_us(lease: Duration, leaves: bool) -> u64 {
    micros(if leaves { lease + LOST_AFTER_LEASE + Duration::from_secs(1) } else { KEPT_FOR })
}

/// How often a worker says how it is.
fn hello_every_us(lease: Duration) -> u64 {
    part_us(lease, HELLOS_PER_LEASE)
}
