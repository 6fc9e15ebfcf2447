//! The one place that reads the wall clock, and the origin of the engine's [`Tick`]s.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use walhook_core::tick::{Tick, micros};

/// Turns this process's monotonic time into the engine's.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock whose origin is now.
    #[must_use]
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// This moment.
    #[must_use]
    pub fn now(&self) -> Tick {
        Tick(micros(self.origin.elapsed()))
    }

    /// When `tick` comes, for `tokio::time::sleep_until`.
    #[must_use]
    pub fn instant(&self, tick: Tick) -> Instant {
        self.origin + tick.since(Tick(0))
    }
}

/// The wall clock, in microseconds since 1970-01-01 UTC.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
pub fn unix_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
