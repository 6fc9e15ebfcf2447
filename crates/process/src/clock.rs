//! The one place that reads the wall clock and the boot-time clock, and the origin of the engine's [`Tick`]s.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_gettime};
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

    /// A clock whose origin was then.
    #[must_use]
    pub const fn since(origin: Instant) -> Self {
        Self { origin }
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

/// Time since the machine began, in microseconds: it goes on while the machine is suspended, where the
/// monotonic clock stands still, and nobody sets it. For leases, whose other end did not sleep.
///
/// Source: clock_gettime(2), `CLOCK_BOOTTIME`.
#[must_use]
pub fn boot_us() -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Boottime);
    let (seconds, nanoseconds) = (u64::try_from(tv_sec), u64::try_from(tv_nsec));
    seconds.unwrap_or_default() * 1_000_000 + nanoseconds.unwrap_or_default() / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_is_what_the_kernel_says_and_goes_forward() {
        let uptime = || -> f64 {
            let text = std::fs::read_to_string("/proc/uptime").unwrap();
            text.split_whitespace().next().unwrap().parse().unwrap()
        };
        let (before, first) = (uptime(), boot_us());
        let (second, after) = (boot_us(), uptime());
        // The kernel says hundredths of a second.
        assert!(first as f64 / 1e6 > before - 0.02, "{first} is before {before}");
        assert!(second >= first && second as f64 / 1e6 < after + 0.02, "{second} is after {after}");
    }
}
