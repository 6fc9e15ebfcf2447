//! The second opinion: what failed before a request was sent is tried by another worker before it counts, since the
//! worker's own network may be what failed. The dispatcher sees one attempt.

use super::health::Verdict;
use super::pick::{Choice, bytes_of};
use super::session::Flight;
use super::timeouts::Who;
use super::{Ending, Fleet, FleetEffect, Where};
use crate::frame::SessionId;
use walhook_core::attempt::{FailureKind, Outcome};
use walhook_core::event::AccountId;

/// What a second opinion is on.
#[derive(Debug)]
pub(super) struct First {
    /// Who could not send it.
    pub(super) session: SessionId,
    /// Whose it is.
    pub(super) account: AccountId,
    /// What it said.
    pub(super) outcome: Outcome,
}

impl First {
    /// The one outcome of both: the second one's, with the time of both.
    pub(super) fn joined(&self, mut second: Outcome) -> Outcome {
        second.elapsed = second.elapsed.saturating_add(self.outcome.elapsed);
        second
    }
}

/// Whether it failed before its request was sent, for a reason that may be the worker's own.
fn is_before_request(outcome: &Outcome) -> bool {
    match outcome.record.failure {
        Some(
            FailureKind::Dns
            | FailureKind::Connect
            | FailureKind::Proxy
            | FailureKind::Tls
            | FailureKind::Forbidden
            | FailureKind::Local,
        ) => true,
        Some(
            FailureKind::Invalid
            | FailureKind::Timeout
            | FailureKind::Protocol
            | FailureKind::Aborted
            | FailureKind::Lost
            | FailureKind::Oversize,
        )
        | None => false,
    }
}

/// Whether it shows that the endpoint was there.
pub(super) fn reached(outcome: &Outcome) -> bool {
    outcome.record.status.is_some()
        || outcome.delivered()
        || outcome.record.failure == Some(FailureKind::Protocol)
}

impl Fleet {
    /// A worker has said what came of an attempt that it had.
    pub(super) fn settle(&mut self, session: SessionId, flight: Flight, outcome: Outcome) {
        let Flight { attempt, bytes, placed, first, earlier, .. } = flight;
        let round_trip = self.now.since(placed);
        let overhead = round_trip.saturating_sub(outcome.elapsed);
        // Of one that was under way before, what its way there took is not known; nor where the leader itself was stopped.
        let is_known = !earlier && placed >= self.awake_since;
        let overhead = is_known.then_some(overhead);
        if let Some(overhead) = overhead {
            self.note_overhead(session, overhead);
        }
        let bytes = if earlier { bytes_of(&attempt) } else { bytes };
        let delivery = attempt.first().id;
        self.note_answer_at(session, placed, &attempt, &outcome);
        if let Some(first) = first {
            self.judge(&first, &outcome);
            self.end(delivery, Ending::Outcome(first.joined(outcome)), overhead);
            return;
        }
        if is_before_request(&outcome) {
            let not = self.sessions.get(&session).map(|found| Who::of(session, found));
            match not.and_then(|not| self.pick(&attempt, bytes, Some(not))) {
                Some(Choice::Worker(other)) => {
                    let account = attempt.endpoint.account.clone();
                    let first = Box::new(First { session, account, outcome });
                    self.give(other, attempt, bytes, Some(first));
                    return;
                }
                Some(Choice::Leader) => {
                    let account = attempt.endpoint.account.clone();
                    let first = Box::new(First { session, account, outcome });
                    self.placed.insert(delivery, Where::Local(first));
                    self.left.push_back(FleetEffect::CarryLocally(attempt));
                    return;
                }
                None => self.note_alone(session, &attempt),
            }
        }
        self.end(delivery, Ending::Outcome(outcome), overhead);
    }

    /// Whose fault the first failure was, by the second opinion.
    pub(super) fn judge(&mut self, first: &First, second: &Outcome) {
        if reached(second) {
            self.mark(first.session, Verdict::Own(first.account.clone()));
        } else if is_before_request(second) {
            self.mark(first.session, Verdict::Shared);
        } else {
            self.counters.undecided += 1;
        }
    }

    /// What a request says of the worker that had it.
    pub(super) fn mark(&mut self, id: SessionId, verdict: Verdict) {
        let now = self.now;
        match verdict {
            Verdict::Own(_) => self.counters.contradicted += 1,
            Verdict::Shared => self.counters.confirmed += 1,
            Verdict::Reached => {}
        }
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.health.judge(verdict, now) {
            self.counters.quarantines += 1;
            self.note_quarantine(id);
        }
    }

    fn note_overhead(&mut self, id: SessionId, overhead: std::time::Duration) {
        let now = self.now;
        if let Some(session) = self.sessions.get_mut(&id)
            && session.health.note_overhead(overhead, now)
        {
            self.due = self.due.min(session.due(now, self.awake_since, &self.settings));
            self.slots_changed = true;
        }
    }
}
