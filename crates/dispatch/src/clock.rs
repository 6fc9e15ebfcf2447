//! Clocks of what several deliveries wait for together: read when a wait begins and when it ends, they tell how long
//! each cause held in between, at a cost that does not depend on how many wait.
//!
//! ```text
//! now ─► gate ─────► lane ──────────► queue ──────────► a delivery's reading, when it may be sent and when it is
//!        State       Lookup, Pool     EndpointLimit,
//!        Unpersisted (others: Turn)   RateLimit, ...
//! ```
//!
//! A clock stands on the one below it, and may hold one cause: that takes over the time of all causes that come after
//! it in the order of [`Cause::ALL`], and leaves the time of those before it as it is. At the bottom all time is
//! [`Cause::Turn`]: who could be sent and is not waits for its turn.
//!
//! # Invariants
//!
//! - Between two readings of a clock each microsecond counts for one cause, the first in the order of those that held
//!   then on any level.
//! - Readings count modulo 2^32 microseconds, 71 minutes, which keeps them small. Of a wait that is longer its length
//!   says how much is wanting; that goes to the cause that has most of what is seen ([`Reading::add_to`]).

use std::time::Duration;

use walhook_core::tick::{Tick, micros};
use walhook_core::waits::{Cause, Waits};

/// The causes that several wait for together, in the order of [`Cause::ALL`].
const SHARED: [Cause; 7] = [
    Cause::Lookup,
    Cause::EndpointLimit,
    Cause::RateLimit,
    Cause::State,
    Cause::Unpersisted,
    Cause::Pool,
    Cause::Turn,
];

/// Where the last of them stands.
const TURN: usize = SHARED.len() - 1;

/// How long each cause has held on a clock, or between two readings of it: microseconds, modulo 2^32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading([u32; SHARED.len()]);

impl Reading {
    /// Below all clocks: who waits waits for its turn.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "modulo 2^32, as the type says")]
    pub fn at(now: Tick) -> Self {
        let mut reading = Self::default();
        reading.0[TURN] = now.0 as u32;
        reading
    }

    /// What passed since an earlier reading of the same clock.
    #[must_use]
    pub fn since(mut self, earlier: &Self) -> Self {
        for (later, earlier) in self.0.iter_mut().zip(earlier.0) {
            *later = later.wrapping_sub(earlier);
        }
        self
    }

    /// Adds what passed to a delivery's waits, where it took so long as a whole.
    pub fn add_to(&self, waits: &mut Waits, held: Duration) {
        let seen: u64 = self.0.iter().copied().map(u64::from).sum();
        let mut most = (0, Cause::Turn);
        for (us, cause) in self.0.into_iter().zip(SHARED) {
            waits.add_us(cause, us.into());
            if us > most.0 {
                most = (us, cause);
            }
        }
        // Whole rounds of the clock alone: anything else would be a mistake that a sum is to show.
        let wanting = micros(held).saturating_sub(seen) >> 32 << 32;
        waits.add_us(most.1, wanting);
    }

    /// The time of the causes from this one on.
    fn from(&self, first: usize) -> u32 {
        self.0.iter().skip(first).fold(0, |sum, us| sum.wrapping_add(*us))
    }
}

/// See the module's documentation.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    /// Of causes that this clock takes over: what it shows. Of all others: how far it is ahead of the clock below.
    shows: [u32; SHARED.len()],
    /// What the clock below showed of the causes that are taken over, when the cause that holds began to.
    began: u32,
    holds: Option<Cause>,
}

impl Clock {
    /// What it shows where the clock below shows this.
    #[must_use]
    pub fn read(&self, below: &Reading) -> Reading {
        let Some(first) = self.first() else {
            let mut reading = *below;
            for (us, ahead) in reading.0.iter_mut().zip(self.shows) {
                *us = us.wrapping_add(ahead);
            }
            return reading;
        };
        let mut reading = Reading(self.shows);
        for (us, below) in reading.0.iter_mut().zip(below.0).take(first) {
            *us = us.wrapping_add(below);
        }
        if let Some(us) = reading.0.get_mut(first) {
            *us = us.wrapping_add(below.from(first).wrapping_sub(self.began));
        }
        reading
    }

    /// This cause holds from now on; `None`: what holds below. The clock below shows this.
    pub fn hold(&mut self, cause: Option<Cause>, below: &Reading) {
        if self.holds == cause {
            return;
        }
        let shown = self.read(below);
        self.holds = cause;
        let first = self.first().unwrap_or(SHARED.len());
        for (at, us) in self.shows.iter_mut().enumerate() {
            let shown = shown.0.get(at).copied().unwrap_or_default();
            let below = below.0.get(at).copied().unwrap_or_default();
            *us = if at < first { shown.wrapping_sub(below) } else { shown };
        }
        self.began = below.from(first);
    }

    /// The cause that holds; `None`: what holds below.
    #[must_use]
    pub fn holds(&self) -> Option<Cause> {
        self.holds
    }

    /// Where the cause that holds stands.
    fn first(&self) -> Option<usize> {
        let holds = self.holds?;
        SHARED.iter().position(|cause| *cause == holds)
    }
}

#[cfg(test)]
mod tests;
