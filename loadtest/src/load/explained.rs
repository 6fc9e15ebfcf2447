//! Where the time of the slowest deliveries to small accounts went: what the delivery log says of them.
//!
//! The log splits the time from the commit to the answer by cause. What lies before, from when a commit was due until
//! the server had made it, is the load's own.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use walhook_core::waits::{Cause, Waits};
use walhook_state::{DeliveryFilter, StateStore};

use super::figures::Delivery;
use super::stage::Stage;
use crate::sample::Spread;

/// Of a phase's deliveries, the slowest one of so many is explained.
const ONE_OF: usize = 100;

/// A line of the log and an answer that the receiver gave are of one delivery where no more lies between them.
const APART_MAX: Duration = Duration::from_millis(50);

/// Lines that are read from the log at a time.
const PAGE: usize = 10_000;

/// What the log says of a delivery to a small account. Times are since the books were opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) account: i64,
    pub(super) committed: Duration,
    /// When the attempt ended.
    pub(super) at: Duration,
    pub(super) waits: Waits,
}

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
    pub causes_ms: BTreeMap<&'static str, f64>,
}

/// What the log says of all deliveries to these accounts, by account.
///
/// # Errors
/// When the log cannot be read.
pub(super) async fn read(stage: &Stage, accounts: impl Fn(i64) -> bool) -> Result<Vec<Line>> {
    let store = StateStore::open(&stage.url(), "walhook", "walhook").await?;
    let now_us = "SELECT (date_part('epoch', clock_timestamp()) * 1e6)::bigint";
    let now = Duration::from_micros(stage.world.number(now_us).await?);
    let opened = now.saturating_sub(stage.small.now());
    let since = |us: i64| {
        Duration::from_micros(u64::try_from(us).unwrap_or_default()).saturating_sub(opened)
    };
    let filter = DeliveryFilter { outcome: Some("delivered".to_owned()), ..Default::default() };
    let (mut lines, mut before) = (Vec::new(), None);
    loop {
        let page = store.deliveries(&filter, PAGE, before).await?;
        for entry in page.entries {
            // A replay delivers what was committed long before.
            let account = entry.account.parse().ok().filter(|account| accounts(*account));
            if let Some(account) = account.filter(|_| entry.asked.is_none()) {
                let (committed, at) = (since(entry.committed_us), since(entry.at_us));
                lines.push(Line { account, committed, at, waits: entry.waits });
            }
        }
        before = page.next;
        if before.is_none() {
            lines.sort_by_key(|line| line.account);
            return Ok(lines);
        }
    }
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
                Some((took, delivery.due, nearest(lines, delivery.account, at)?))
            })
            .collect();
        let mut slowest = Self { deliveries: found.len(), ..Self::default() };
        #[expect(clippy::cast_precision_loss, reason = "a number of deliveries")]
        let share = |time: Duration| time.as_secs_f64() * 1_000.0 / found.len() as f64;
        for (took, due, line) in &found {
            slowest.took_ms += share(*took);
            slowest.commit_ms += share(line.committed.saturating_sub(*due));
            for (cause, us) in line.waits.iter() {
                *slowest.causes_ms.entry(cause.as_str()).or_default() +=
                    share(Duration::from_micros(us));
            }
        }
        slowest
    }

    /// The causes that took most, as a line for people.
    pub(super) fn causes(&self) -> String {
        let mut causes: Vec<_> =
            Cause::ALL.iter().filter_map(|c| self.causes_ms.get_key_value(c.as_str())).collect();
        causes.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        let words: Vec<String> = causes
            .into_iter()
            .filter(|(_, ms)| **ms >= 0.005)
            .map(|(cause, ms)| format!("{cause} {ms:.2}"))
            .collect();
        words.join(", ")
    }
}

fn nearest(lines: &[Line], account: i64, at: Duration) -> Option<&Line> {
    let from = lines.partition_point(|line| line.account < account);
    let its = lines.iter().skip(from).take_while(|line| line.account == account);
    its.min_by_key(|line| line.at.abs_diff(at)).filter(|line| line.at.abs_diff(at) <= APART_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(slowest.causes(), "attempt 19.00, read 4.00");
        let from_commit = from_commit(&[other, line], (ms(1_000), ms(2_000)));
        assert_eq!((from_commit.n, from_commit.min, from_commit.max), (2, 24.0, 93.0));
        assert_eq!(Slowest::of(&[], &[line], (ms(1), ms(2))), Slowest::default());
    }
}
