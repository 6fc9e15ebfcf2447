//! Time-outs at a worker: it may be the endpoint that is silent, or what the worker sends that is swallowed on its way.
//!
//! Such a request may have been received, so it is not sent again before it counts, as a second opinion is. But what
//! goes to that endpoint next goes to another worker, or to the leader where that may send: to the last one only where
//! nobody else has room, or only one in quarantine, which may itself be what swallows. Where the other is answered, that is an opinion on the first one's time-out, and counts as a
//! second one does, unless the first was itself answered by anybody since it began that request: then it is the
//! endpoint that is slow now and then.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::health::Verdict;
use super::opinion::reached;
use super::pick::{Choice, spread};
use super::session::Session;
use super::{Ending, Fleet, FleetEffect, Placement, Where};
use crate::frame::{SessionId, WorkerId};
use walhook_core::attempt::{Attempt, DeliveryId, FailureKind, Outcome};
use walhook_core::event::AccountId;
use walhook_core::tick::Tick;

/// An endpoint whose requests timed out at a worker is kept from it for so long.
const AVOIDED_FOR: Duration = Duration::from_secs(60);

/// Endpoints that are remembered at most, the last ones.
const ENDPOINTS_MAX: usize = 1 << 16;

/// A worker: its process where it is known, else its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Who {
    session: SessionId,
    worker: Option<WorkerId>,
}

impl Who {
    pub(super) fn of(id: SessionId, session: &Session) -> Self {
        Self { session: id, worker: session.worker }
    }

    pub(super) fn is(&self, id: SessionId, session: &Session) -> bool {
        self.is_same(&Self::of(id, session))
    }

    fn is_same(&self, other: &Self) -> bool {
        self.session == other.session || self.worker.is_some() && self.worker == other.worker
    }
}

/// The last time-out of an endpoint's requests.
#[derive(Debug)]
struct TimedOut {
    at: Who,
    account: AccountId,
    /// When the request was placed, and when it had timed out.
    placed: Tick,
    ended: Tick,
    /// Another's word on it has been counted.
    judged: bool,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct TimeOuts {
    /// By [`Fleet::endpoint_key`].
    last: BTreeMap<u64, TimedOut>,
    /// When each was noted, in that order; those that were noted again are there more than once.
    in_order: VecDeque<(Tick, u64)>,
}

impl TimeOuts {
    fn note(&mut self, key: u64, timed_out: TimedOut) {
        let now = timed_out.ended;
        self.in_order.push_back((now, key));
        self.last.insert(key, timed_out);
        while let Some((noted, oldest)) = self.in_order.front().copied()
            && (self.in_order.len() > ENDPOINTS_MAX || now >= noted + AVOIDED_FOR)
        {
            self.in_order.pop_front();
            if self.last.get(&oldest).is_some_and(|it| it.ended == noted) {
                self.last.remove(&oldest);
            }
        }
    }
}

fn timed_out(outcome: &Outcome) -> bool {
    outcome.record.failure == Some(FailureKind::Timeout)
}

impl Fleet {
    /// Spreads what an endpoint is (FNV-1a).
    pub(super) fn endpoint_key(&self, attempt: &Attempt) -> u64 {
        let endpoint = &attempt.endpoint;
        let texts = [endpoint.account.as_str(), endpoint.id.as_str(), &endpoint.url];
        let bytes = texts.into_iter().flat_map(|text| text.bytes().chain([0]));
        let start = self.settings.seed ^ 0xCBF2_9CE4_8422_2325;
        spread(bytes.fold(start, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01B3)))
    }

    /// Who is not to have an attempt, as long as others have room.
    pub(super) fn avoided(&self, attempt: &Attempt) -> Option<Who> {
        if self.time_outs.last.is_empty() {
            return None;
        }
        let last = self.time_outs.last.get(&self.endpoint_key(attempt))?;
        (self.now < last.ended + AVOIDED_FOR).then_some(last.at)
    }

    /// Places an attempt with another than this one, where there is one; the fleet hears what comes of it.
    pub(super) fn place_elsewhere(
        &mut self,
        attempt: &Attempt,
        bytes: u64,
        than: Who,
    ) -> Option<Placement> {
        let choice = self.pick(attempt, bytes, Some(than))?;
        if self.is_worse(choice, than) {
            return None;
        }
        match choice {
            Choice::Worker(session) => self.give(session, attempt.clone(), bytes, None),
            Choice::Leader => {
                let place = Where::LocalInstead(self.endpoint_key(attempt));
                self.placed.insert(attempt.first().id, place);
                self.left.push_back(FleetEffect::CarryLocally(attempt.clone()));
            }
        }
        self.counters.taken += 1;
        Some(Placement::Taken)
    }

    /// Whether the choice is in quarantine where this one is not.
    fn is_worse(&self, choice: Choice, than: Who) -> bool {
        let Choice::Worker(id) = choice else { return false };
        let is_good = |session: &Session| !session.health.is_quarantined(self.now);
        self.sessions.get(&id).is_some_and(|session| !is_good(session))
            && self.sessions.iter().any(|(id, session)| than.is(*id, session) && is_good(session))
    }

    /// What came of an attempt that the leader carried since it had timed out elsewhere.
    pub(super) fn ended_instead(&mut self, delivery: DeliveryId, key: u64, outcome: Outcome) {
        self.note_answer(None, key, &outcome);
        self.end(delivery, Ending::Outcome(outcome), None);
    }

    /// What came of a request at a worker.
    pub(super) fn note_answer_at(
        &mut self,
        id: SessionId,
        placed: Tick,
        attempt: &Attempt,
        outcome: &Outcome,
    ) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let at = Who::of(id, session);
        if reached(outcome) {
            session.answered_at = Some(now);
            if session.health.note_reached(now) {
                self.remember_quarantine(id);
            }
        }
        if !timed_out(outcome) && self.time_outs.last.is_empty() && self.failing.is_empty() {
            return;
        }
        let key = self.endpoint_key(attempt);
        if reached(outcome) {
            self.failing.note_reached(key);
        }
        self.note_answer(Some(at), key, outcome);
        if timed_out(outcome) {
            let account = attempt.endpoint.account.clone();
            let timed_out = TimedOut { at, account, placed, ended: now, judged: false };
            self.time_outs.note(key, timed_out);
        }
    }

    /// What it says of the last time-out of that endpoint's, by a worker or the leader (`None`).
    fn note_answer(&mut self, by: Option<Who>, key: u64, outcome: &Outcome) {
        let (timed_out, reached) = (timed_out(outcome), reached(outcome));
        if !timed_out && !reached {
            return;
        }
        let last = self.time_outs.last.get_mut(&key);
        let same = |who: Who| by.is_some_and(|by| by.is_same(&who));
        match last {
            Some(last) if reached && same(last.at) => _ = self.time_outs.last.remove(&key),
            Some(last) if !same(last.at) && !last.judged => {
                last.judged = true;
                let (at, since) = (last.at, last.placed);
                let own = reached.then(|| last.account.clone());
                self.judge_time_out(at, since, own);
            }
            Some(_) | None => {}
        }
        if by.is_none() && timed_out {
            // The leader had no answer either: nobody is to be kept from it.
            self.time_outs.last.remove(&key);
        }
    }

    /// Another was answered where this one's request of an account had timed out (`own`), or was not either.
    fn judge_time_out(&mut self, who: Who, since: Tick, own: Option<AccountId>) {
        let mut of = self.sessions.iter().filter(|(id, session)| who.is(**id, session));
        let Some((id, session)) = of.next_back() else { return };
        let id = *id;
        // Whom it was about may be in another session now, which knows of no earlier answers.
        let answers = session.answered_at.is_some_and(|at| at >= since);
        match own {
            Some(_) if answers => self.counters.undecided += 1,
            Some(account) => self.mark(id, Verdict::Own(account)),
            None => self.mark(id, Verdict::Shared),
        }
    }
}
