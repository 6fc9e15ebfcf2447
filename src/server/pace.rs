//! How many lines of one kind the log gets: a hundred thousand endpoints may die at once.

use std::time::Duration;

use walhook_core::tick::Tick;

/// Lines that may come together.
const BURST: u32 = 20;

/// One more after so long.
const EVERY: Duration = Duration::from_secs(1);

/// A token bucket for lines of one kind; counts those that found none.
#[derive(Debug, Clone)]
pub(super) struct LinePace {
    left: u32,
    filled: Tick,
    withheld: u64,
    said: Tick,
}

/// How often it is said that lines are missing.
const SAID_EVERY: Duration = Duration::from_secs(10);

impl Default for LinePace {
    fn default() -> Self {
        Self { left: BURST, filled: Tick(0), withheld: 0, said: Tick(0) }
    }
}

impl LinePace {
    /// Whether the line may be written; else it is counted.
    pub(super) fn admits(&mut self, now: Tick) -> bool {
        let due = now.since(self.filled).as_secs() / EVERY.as_secs();
        if due > 0 {
            let due = u32::try_from(due).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(due).min(BURST);
            self.filled = now;
        }
        if self.left == 0 {
            self.withheld += 1;
            return false;
        }
        self.left -= 1;
        true
    }

    /// How many lines were not written since this was asked last; none again until some time has passed.
    pub(super) fn take_withheld(&mut self, now: Tick) -> Option<u64> {
        if self.withheld == 0 || now.since(self.said) < SAID_EVERY {
            return None;
        }
        self.said = now;
        Some(std::mem::take(&mut self.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_pace_admits_a_burst_then_one_a_second_and_counts_the_others() {
        let mut pace = LinePace::default();
        let mut now = Tick(1_000_000_000);
        let admitted = (0..100_000).filter(|_| pace.admits(now)).count();
        assert_eq!(admitted, 20);
        assert_eq!(pace.take_withheld(now), Some(99_980));
        assert_eq!(pace.take_withheld(now), None);
        let mut later = 0;
        for _ in 0..600 {
            now = now + Duration::from_millis(100);
            later += usize::from(pace.admits(now));
        }
        assert!((55..=62).contains(&later), "{later} in a minute");
        assert_eq!(pace.take_withheld(now), Some(600 - later as u64));
        // After silence there is a burst again, no more.
        now = now + Duration::from_secs(3_600);
        assert_eq!((0..100).filter(|_| pace.admits(now)).count(), 20);
    }
}
