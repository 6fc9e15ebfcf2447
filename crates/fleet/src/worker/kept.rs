//! What a worker keeps for the leader after the one that asked: what its endpoints took.
//!
//! A leader that crashes has not stored its last outcomes, and heard none of those on their way to it. Its successor
//! orders all of them again, and asks the workers first.

use std::collections::VecDeque;
use std::time::Duration;

use crate::frame::{FORMER_MAX, SessionId};
use walhook_core::attempt::Outcome;
use walhook_core::delivery_key::DeliveryKey;
use walhook_core::id::Epoch;
use walhook_core::tick::micros;

/// Of what has ended so many are kept, beside as many as there are slots: a leader has no more outcomes that it has
/// not stored, of all its workers.
const KEPT_MAX: usize = 4_096;

/// And for so long: a leader that goes on without storing stops long before, for the one above.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(60);

/// A delivery that its endpoint took.
#[derive(Debug, Clone)]
struct Taken {
    epoch: Epoch,
    ended_us: u64,
    delivery: DeliveryKey,
    outcome: Outcome,
}

/// Invariant: the times of what was taken do not decrease.
#[derive(Debug)]
pub(super) struct Kept {
    most: usize,
    taken: VecDeque<Taken>,
    /// The last sessions, the newest last.
    sessions: VecDeque<(Epoch, SessionId)>,
}

impl Kept {
    pub(super) fn new(slots: u32) -> Self {
        let most = KEPT_MAX.saturating_add(usize::try_from(slots).unwrap_or(usize::MAX));
        Self { most, taken: VecDeque::new(), sessions: VecDeque::new() }
    }

    /// A session begins.
    pub(super) fn note_session(&mut self, epoch: Epoch, session: SessionId) {
        if self.sessions.len() == FORMER_MAX {
            self.sessions.pop_front();
        }
        self.sessions.push_back((epoch, session));
    }

    /// A request has ended, that the leader of this epoch had ordered.
    pub(super) fn note_ended(
        &mut self,
        epoch: Epoch,
        delivery: DeliveryKey,
        outcome: &Outcome,
        now_us: u64,
    ) {
        if !outcome.delivered() {
            return;
        }
        self.forget_old(now_us);
        if self.taken.len() >= self.most {
            self.taken.pop_front();
        }
        let outcome = outcome.clone();
        self.taken.push_back(Taken { epoch, ended_us: now_us, delivery, outcome });
    }

    /// What earlier leaders than this one ordered and endpoints took, the newest first.
    pub(super) fn before(
        &mut self,
        epoch: Epoch,
        now_us: u64,
    ) -> impl Iterator<Item = (DeliveryKey, Outcome)> + '_ {
        self.forget_old(now_us);
        let earlier = self.taken.iter().rev().filter(move |taken| taken.epoch < epoch);
        earlier.map(|taken| (taken.delivery, taken.outcome.clone()))
    }

    /// The last sessions under earlier leaders than this one, the newest first.
    pub(super) fn sessions_before(&self, epoch: Epoch) -> Vec<SessionId> {
        let earlier = self.sessions.iter().rev().filter(|(of, _)| *of < epoch);
        earlier.map(|(_, session)| *session).collect()
    }

    /// The state tables were made anew: what was ordered by them is of another past.
    pub(super) fn clear(&mut self) {
        self.taken.clear();
        self.sessions.clear();
    }

    fn forget_old(&mut self, now_us: u64) {
        let is_old = |taken: &Taken| now_us >= taken.ended_us.saturating_add(micros(KEPT_FOR));
        while self.taken.front().is_some_and(is_old) {
            self.taken.pop_front();
        }
    }
}
