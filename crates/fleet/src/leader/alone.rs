//! What failed before its request was sent, and nobody else could be asked about: only workers send, and no other one is
//! there, or has room.
//!
//! It may be the endpoint, and counts as that. But where a worker has reached nobody while endpoints of several accounts
//! failed that did not fail before, it is hardly each of them: the worker is put into quarantine, which names it, and
//! others that come send in its place. As long as there are none it goes on, for then all serve.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::Fleet;
use crate::frame::SessionId;
use walhook_core::attempt::Attempt;
use walhook_core::tick::Tick;

/// An endpoint that fails again within this time is one that failed before: a delivery to a dead one may wait for hours.
const REMEMBERED: Duration = Duration::from_secs(24 * 3_600);

/// It is noted again so often at most.
const NOTED_EVERY: Duration = Duration::from_secs(60);

/// Endpoints that are remembered at most, the last ones.
const ENDPOINTS_MAX: usize = 1 << 16;

/// Endpoints that have failed so, and were reached by nobody since.
#[derive(Debug, Default)]
pub(super) struct Failing {
    /// When each was noted last, by [`Fleet::endpoint_key`].
    noted: BTreeMap<u64, Tick>,
    /// In that order; those that were noted again are there more than once.
    in_order: VecDeque<(Tick, u64)>,
}

impl Failing {
    pub(super) fn is_empty(&self) -> bool {
        self.noted.is_empty()
    }

    /// An endpoint has failed. Yes: it did not before.
    fn note(&mut self, key: u64, now: Tick) -> bool {
        if self.noted.get(&key).is_some_and(|at| now < *at + NOTED_EVERY) {
            return false;
        }
        self.in_order.push_back((now, key));
        let before = self.noted.insert(key, now);
        while let Some((noted, oldest)) = self.in_order.front().copied()
            && (self.in_order.len() > ENDPOINTS_MAX || now >= noted + REMEMBERED)
        {
            self.in_order.pop_front();
            if self.noted.get(&oldest) == Some(&noted) {
                self.noted.remove(&oldest);
            }
        }
        before.is_none_or(|at| now >= at + REMEMBERED)
    }

    pub(super) fn note_reached(&mut self, key: u64) {
        self.noted.remove(&key);
    }
}

impl Fleet {
    /// A worker could not send an attempt, and nobody else can be asked.
    pub(super) fn note_alone(&mut self, id: SessionId, attempt: &Attempt) {
        let now = self.now;
        let key = self.endpoint_key(attempt);
        let is_new = self.failing.note(key, now);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let account = is_new.then(|| attempt.endpoint.account.clone());
        let was_quarantined = session.health.is_quarantined(now);
        if session.health.note_alone(account, now) {
            self.counters.quarantines += u64::from(!was_quarantined);
            self.note_quarantine(id);
        }
    }
}
