//! The deliveries of the last minute: how many, and how long after their commits.

use std::collections::VecDeque;
use std::time::Duration;

use walhook_core::tick::Tick;

/// What is looked back at.
const MINUTE: Duration = Duration::from_secs(60);

/// It is forgotten in so many parts.
const PARTS: u32 = 12;

/// Parts of an octave that are told apart: so a time is known to a sixteenth.
const STEPS: usize = 8;

/// Up to 2^42 µs, which is 51 days.
const OCTAVES: usize = 40;

/// Counts by time.
const BUCKETS: usize = (OCTAVES + 1) * STEPS;

/// How fast it goes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(in crate::server) struct Pace {
    /// Deliveries a second.
    pub(super) per_second: f64,
    /// Over so long.
    pub(super) over: Duration,
    /// Half of them took no longer.
    pub(super) p50: Option<Duration>,
    /// 99 in 100 took no longer.
    pub(super) p99: Option<Duration>,
}

/// See the module's documentation. Takes 16 KiB.
#[derive(Debug, Default)]
pub(in crate::server) struct Recent {
    parts: VecDeque<Part>,
    /// When the first was counted, or was looked for.
    since: Option<Tick>,
}

#[derive(Debug)]
struct Part {
    from: Tick,
    counts: Box<[u32; BUCKETS]>,
}

impl Recent {
    /// An endpoint took a delivery so long after its commit.
    pub(in crate::server) fn count(&mut self, now: Tick, took_us: u64) {
        self.since.get_or_insert(now);
        let length = MINUTE / PARTS;
        let is_over = |part: &Part| now.since(part.from) >= length;
        if self.parts.back().is_none_or(is_over) {
            self.parts.push_back(Part { from: now, counts: Box::new([0; BUCKETS]) });
            self.forget(now);
        }
        let part = self.parts.back_mut();
        if let Some(count) = part.and_then(|part| part.counts.get_mut(bucket(took_us))) {
            *count = count.saturating_add(1);
        }
    }

    fn forget(&mut self, now: Tick) {
        while self.parts.front().is_some_and(|part| now.since(part.from) >= MINUTE) {
            self.parts.pop_front();
        }
    }

    /// How fast it went in the last minute.
    pub(in crate::server) fn pace(&mut self, now: Tick) -> Pace {
        self.forget(now);
        let over = now.since(*self.since.get_or_insert(now)).min(MINUTE);
        let mut counts = [0u64; BUCKETS];
        for part in &self.parts {
            counts.iter_mut().zip(part.counts.iter()).for_each(|(sum, n)| *sum += u64::from(*n));
        }
        let all: u64 = counts.iter().sum();
        // Of a leader that has just begun a second is assumed, lest the first delivery be a thousand a second.
        let seconds = over.as_secs_f64().max(1.0);
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let per_second = all as f64 / seconds;
        let at = |percent| quantile(&counts, all, percent);
        Pace { per_second, over, p50: at(50), p99: at(99) }
    }
}

/// What so many in a hundred took at most: the middle of their bucket.
fn quantile(counts: &[u64; BUCKETS], all: u64, percent: u64) -> Option<Duration> {
    let wanted = (all * percent).div_ceil(100).max(1);
    let mut sum = 0;
    for (at, count) in counts.iter().enumerate() {
        sum += count;
        if sum >= wanted {
            return Some(Duration::from_micros(middle(at)));
        }
    }
    None
}

/// Each octave from 8 µs on has eight buckets, and each microsecond before one.
fn bucket(us: u64) -> usize {
    let steps = STEPS as u64;
    if us < steps {
        return usize::try_from(us).unwrap_or(0);
    }
    let octave = us.ilog2() - STEPS.ilog2();
    let step = (us >> octave) - steps;
    let at = (u64::from(octave) + 1) * steps + step;
    usize::try_from(at).unwrap_or(usize::MAX).min(BUCKETS - 1)
}

fn middle(bucket: usize) -> u64 {
    let (octave, step) = (bucket / STEPS, (bucket % STEPS) as u64);
    let Some(octave) = octave.checked_sub(1) else { return step };
    let width = 1u64 << octave;
    (STEPS as u64 + step) * width + width / 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn time_is_known_to_a_sixteenth(us in 0u64..1 << 42) {
            let known = middle(bucket(us));
            prop_assert!(known.abs_diff(us) <= us / 16 + 1, "{} for {}", known, us);
        }
    }

    #[test]
    fn pace_is_that_of_the_last_minute() {
        let mut recent = Recent::default();
        let at = |seconds: u64| Tick(seconds * 1_000_000);
        assert_eq!(recent.pace(at(10)), Pace::default());
        for n in 0..100 {
            recent.count(at(10), if n < 98 { 1_000 } else { 1_000_000 });
        }
        let pace = recent.pace(at(20));
        assert_eq!((pace.per_second, pace.over), (10.0, Duration::from_secs(10)));
        let close = |time: Option<Duration>, ms: u128| {
            time.unwrap().as_millis().abs_diff(ms) <= ms / 16 + 1
        };
        assert!(close(pace.p50, 1) && close(pace.p99, 1_000), "{pace:?}");

        recent.count(at(65), 2_000);
        let pace = recent.pace(at(71));
        assert_eq!(pace.over, MINUTE);
        assert!(
            (pace.per_second - 1.0 / 60.0).abs() < 1e-9,
            "the first hundred are too old: {pace:?}"
        );
        assert!(close(pace.p50, 2), "{pace:?}");
        assert_eq!(recent.pace(at(200)).p50, None);
    }

    #[test]
    fn what_takes_for_ever_counts_with_what_takes_long() {
        let mut recent = Recent::default();
        recent.count(Tick(0), u64::MAX);
        assert!(recent.pace(Tick(1)).p99.unwrap() > Duration::from_secs(40 * 86_400));
    }
}
