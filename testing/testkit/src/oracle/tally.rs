//! Counts of endpoints that are looked at together.

use std::time::Duration;

use super::Stored;

/// Counts, with the latencies of the deliveries.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    /// Committed changes of the accounts.
    pub committed: u64,
    /// Deliveries that must come of them.
    pub expected: u64,
    /// Of these, received at least once.
    pub delivered: u64,
    /// Of these, dead letters that were never received.
    pub dead: u64,
    /// Of these, deferred when the state tables were looked at, and never received.
    pub deferred: u64,
    /// From before the COMMIT to the 2xx, in microseconds; not ordered.
    latencies_us: Vec<u32>,
    /// The same, of deliveries that the kill did not touch.
    calm_us: Vec<u32>,
}

impl Tally {
    /// Deliveries that are neither received nor known to stand in a table.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.expected.saturating_sub(self.delivered + self.dead + self.deferred)
    }

    /// A percentile of commit to 2xx; `None` without a delivery.
    #[must_use]
    pub fn latency(&self, percent: u8) -> Option<Duration> {
        percentile(&self.latencies_us, percent)
    }

    /// The same, leaving out what was waiting while the pipeline was down.
    #[must_use]
    pub fn calm_latency(&self, percent: u8) -> Option<Duration> {
        percentile(&self.calm_us, percent)
    }

    /// A delivery that was not received has moved from one table to another, or into or out of one.
    pub(super) fn store(&mut self, from: Option<Stored>, to: Option<Stored>) {
        let moved = |table| i64::from(to == Some(table)) - i64::from(from == Some(table));
        self.dead = self.dead.saturating_add_signed(moved(Stored::DeadLetter));
        self.deferred = self.deferred.saturating_add_signed(moved(Stored::Deferred));
    }

    pub(super) fn deliver(&mut self, latency: Duration, calm: bool) {
        self.delivered += 1;
        let us = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        self.latencies_us.push(us);
        if calm {
            self.calm_us.push(us);
        }
    }
}

/// The nearest-rank percentile.
fn percentile(samples_us: &[u32], percent: u8) -> Option<Duration> {
    let rank = (samples_us.len() * usize::from(percent)).div_ceil(100).checked_sub(1)?;
    let mut samples = samples_us.to_vec();
    let (_, at_rank, _) = samples.select_nth_unstable(rank);
    Some(Duration::from_micros(u64::from(*at_rank)))
}

#[test]
fn percentile_is_the_nearest_rank() {
    let hundred: Vec<u32> = (1..=100).rev().collect();
    let us = |percent| percentile(&hundred, percent).map(|d| d.as_micros());
    assert_eq!((us(50), us(99), us(100)), (Some(50), Some(99), Some(100)));
    assert_eq!(percentile(&[], 99), None);
}
