//! Where the time of the slowest deliveries to small accounts went: what the delivery log says of them.
//!
//! The log splits the time from the commit to the answer by cause. What lies before, from when a commit was due until
//! the server had made it, is the load's own.

use std::time::Duration;

use serde::Serialize;

use super::figures::Delivery;
use crate::sample::Spread;
use crate::waits::{Line, Means, ONE_OF};

/// A line of the log and an answer that the receiver gave are of one delivery where no more lies between them.
pub(super) const APART_MAX: Duration = Duration::from_millis(50);

/// From the commit, as the server's clock has it, to the end of the attempt, in milliseconds, of what was committed in
/// the phase: what of the latency is walhook's.
pub(super) fn from_commit(lines: &[Line], (from, to): (Duration, Duration)) -> Spread {
    let its = lines.iter().filter(|line| (from..to).contains(&line.committed));
    let took = its.map(|line| line.at.saturating_sub(line.committed).as_secs_f64() * 1_000.0);
    Spread::of(took.collect())
}

/// The slowest of one phase. Times are means, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Slowest {
    /// How many were explained.
    pub deliveries: usize,
    /// From when they were due to the 2xx.
    pub took_ms: f64,
    /// From when they were due until they were committed.
    pub commit_ms: f64,
    /// Each cause that held.
    pub causes_ms: Means,
}

impl Slowest {
    /// Of what was due in the phase from `from` to `to`. `lines`: by account.
    pub(super) fn of(
        deliveries: &[Delivery],
        lines: &[Line],
        (from, to): (Duration, Duration),
    ) -> Self {
        let mut its: Vec<(Duration, &Delivery, Duration)> = deliveries
            .iter()
            .filter(|delivery| (from..to).contains(&delivery.due))
            .filter_map(|delivery| {
                let at = delivery.at?;
                Some((at.saturating_sub(delivery.due), delivery, at))
            })
            .collect();
        its.sort_by_key(|(took, ..)| std::cmp::Reverse(*took));
        its.truncate(its.len().div_ceil(ONE_OF));
        let found: Vec<_> = its
            .into_iter()
            .filter_map(|(took, delivery, at)| {
                Some((took, delivery.due, nearest(lines, delivery, at)?))
            })
            .collect();
        let mut slowest = Self { deliveries: found.len(), ..Self::default() };
        #[expect(clippy::cast_precision_loss, reason = "a number of deliveries")]
        let share = |time: Duration| time.as_secs_f64() * 1_000.0 / found.len() as f64;
        for (took, due, line) in &found {
            slowest.took_ms += share(*took);
            slowest.commit_ms += share(line.committed.saturating_sub(*due));
        }
        let waits: Vec<_> = found.iter().map(|(.., line)| line.waits).collect();
        slowest.causes_ms = Means::of(&waits);
        slowest
    }
}

/// The line of the delivery that came at `at`. What was committed before it was due is another's.
fn nearest<'a>(lines: &'a [Line], delivery: &Delivery, at: Duration) -> Option<&'a Line> {
    let from = lines.partition_point(|line| line.account < delivery.account);
    let its = lines.iter().skip(from).take_while(|line| line.account == delivery.account);
    its.filter(|line| line.committed + APART_MAX >= delivery.due)
        .min_by_key(|line| line.at.abs_diff(at))
        .filter(|line| line.at.abs_diff(at) <= APART_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhook_core::waits::{Cause, Waits};

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn slowest_hundredth_is_split_by_cause_and_what_the_log_does_not_have_is_left_out() {
        let delivery = |account: i64, due: u64, took: u64| Delivery {
            account,
            due: ms(due),
            at: Some(ms(due + took)),
        };
        let mut deliveries: Vec<_> = (0..198).map(|n| delivery(1, 1_000 + n, 2)).collect();
        // Both are the slowest; the log has one of them. What was due in another phase does not count.
        deliveries.extend([delivery(2, 1_500, 30), delivery(3, 1_500, 40), delivery(2, 5_000, 99)]);
        let mut waits = Waits::default();
        waits.add(Cause::Read, ms(4));
        waits.add(Cause::Attempt, ms(19));
        let line = Line { account: 2, committed: ms(1_507), at: ms(1_531), waits };
        let other = Line { at: ms(1_600), ..line };
        let lines = [Line { account: 1, ..other }, other, line, Line { account: 4, ..line }];
        let slowest = Slowest::of(&deliveries, &lines, (ms(1_000), ms(2_000)));
        assert_eq!((slowest.deliveries, slowest.took_ms, slowest.commit_ms), (1, 30.0, 7.0));
        assert_eq!(slowest.causes_ms.to_string(), "attempt 19.00, read 4.00");
        let from_commit = from_commit(&[other, line], (ms(1_000), ms(2_000)));
        assert_eq!((from_commit.n, from_commit.min, from_commit.max), (2, 24.0, 93.0));
        assert_eq!(Slowest::of(&[], &[line], (ms(1), ms(2))), Slowest::default());
    }
}
