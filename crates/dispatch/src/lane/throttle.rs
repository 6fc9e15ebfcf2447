//! The pace of an endpoint that says when it has too much, by 429 or by 503 with `Retry-After`.
//!
//! It lives, so nothing is gained by leaving it alone: it is sent as much as it takes. Where more than one answer in
//! eight says too much, it is sent three quarters of that in a second, and then half as many with each further one that
//! is too much, until one is taken. From there on it is sent twice as many with each that is taken, up to those three
//! quarters, and then a twenty-fifth more each second, which shows whether it takes more by now. So it goes up and down
//! between three quarters of what it takes and a little above that.
//!
//! Additive increase, multiplicative decrease, as TCP does (RFC 5681), but for the answers that do not count: of one
//! that refuses some whatever it is sent, by who asks or by what for, nothing would be left.
//!
//! # Invariants
//!
//! - It is sent one in [`RESTS_MAX`] at least, and any number from [`PACED_BELOW`] a second on.
//! - Requests that were sent before the pace was last lowered do not lower it again.

use std::time::Duration;

use walhook_core::tick::Tick;

/// An answer counts for one part in so many of the share that says too much.
const ANSWERS: f64 = 16.0;

/// The share from which on the pace is lowered.
const SHARE_MIN: f64 = 0.125;

/// No more is remembered, however long it takes until it is slow enough.
const SHARE_MAX: f64 = 0.25;

/// What is taken of the pace that was too much is tried soon again.
const PART_KEPT: f64 = 0.75;

/// For each request that is taken, so many more in a second.
const MORE: f64 = 0.04;

/// As seldom as a dead endpoint at first.
const RESTS_MAX: Duration = Duration::from_secs(4);

/// Timers ring to a millisecond: what goes faster is not spaced.
const PACED_BELOW: f64 = 500.0;

/// So many tries at their pace say in a row that it takes nothing, within [`NOTHING_WITHIN`].
const NOTHING_TAKEN: u32 = 10;
const NOTHING_WITHIN: Duration = Duration::from_secs(60);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Throttle {
    /// Requests in a second; `None`: it is not slowed.
    pace: Option<f64>,
    /// Up to here it grows quickly; `None`: what it takes is not known.
    safe: Option<f64>,
    /// What part of its last answers says too much.
    share: f64,
    /// When the pace was last lowered.
    lowered_at: Tick,
    /// One was taken since.
    taken: bool,
    /// Tries in a row that were too much, and when the first one was.
    refused: u32,
    refused_since: Tick,
}

impl Throttle {
    pub(super) fn new() -> Self {
        Self {
            pace: None,
            safe: None,
            share: 0.0,
            lowered_at: Tick(0),
            taken: true,
            refused: 0,
            refused_since: Tick(0),
        }
    }

    /// How long after a request the next one is sent.
    pub(super) fn spacing(&self) -> Option<Duration> {
        let spacing = Duration::try_from_secs_f64(1.0 / self.pace?).unwrap_or(RESTS_MAX);
        Some(spacing.min(RESTS_MAX))
    }

    /// A request that began then was too much; the endpoint took `lately` in a second before. Whether the pace is
    /// lowered.
    pub(super) fn refused(&mut self, started: Tick, lately: u32, now: Tick) -> bool {
        self.share = (self.share + (1.0 - self.share) / ANSWERS).min(SHARE_MAX);
        if started < self.lowered_at {
            return false;
        }
        if self.refused == 0 {
            self.refused_since = now;
        }
        self.refused = self.refused.saturating_add(1);
        if self.share < SHARE_MIN {
            return false;
        }
        let before = self.pace.unwrap_or_else(|| f64::from(lately.max(1)));
        let lowered = if self.pace.is_some() && self.taken {
            *self.safe.insert(before * PART_KEPT)
        } else {
            before / 2.0
        };
        self.pace = Some(lowered.max(1.0 / RESTS_MAX.as_secs_f64()));
        (self.lowered_at, self.taken) = (now, false);
        true
    }

    /// It took a request. `waits`: more could have been sent. Whether it is still slowed, or may be soon.
    pub(super) fn took(&mut self, waits: bool) -> bool {
        self.share -= self.share / ANSWERS;
        (self.taken, self.refused) = (true, 0);
        let Some(pace) = &mut self.pace else { return self.share > SHARE_MIN / ANSWERS };
        let is_safe = self.safe.is_some_and(|safe| *pace < safe);
        if is_safe || (waits && self.safe.is_none()) {
            *pace = (*pace * 2.0).min(self.safe.unwrap_or(f64::MAX));
        } else if waits {
            *pace += MORE;
        }
        if *pace >= PACED_BELOW {
            (self.pace, self.safe) = (None, None);
        }
        true
    }

    /// Whether it takes nothing, however seldom it is tried.
    pub(super) fn takes_nothing(&self, now: Tick) -> bool {
        self.refused >= NOTHING_TAKEN && now.since(self.refused_since) < NOTHING_WITHIN
    }

    /// How it answered lately counts no more, but for its pace.
    pub(super) fn forget_refusals(&mut self) {
        self.refused = 0;
    }
}

#[cfg(test)]
mod tests;
