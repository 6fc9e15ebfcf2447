//! What is counted of the small accounts: of each commit, when it was due and when it was answered.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::Serialize;

use crate::sample::Spread;

/// A window of Jain's index and of the time line.
const WINDOW: Duration = Duration::from_secs(1);

/// One commit of a watched account. Times are since the books were opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// Whose.
    pub account: i64,
    /// When it was to be committed.
    pub due: Duration,
    /// When its webhook was answered; none: it did not come.
    pub at: Option<Duration>,
}

/// What the small accounts felt in one phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Felt {
    /// From when a commit was due to its 2xx, in milliseconds, of what was due in the phase.
    pub latency_ms: Spread,
    /// The longest that one account which was owed something got nothing.
    pub standstill_seconds: f64,
    /// Jain's index over accounts, of the share of what each was owed that came within the window; the median of
    /// the windows. 1: all alike; 1/n: one of n alone got something.
    pub jain: f64,
    /// In the worst window.
    pub jain_least: f64,
}

impl Felt {
    /// Of the phase from `from` to `to`.
    #[must_use]
    pub fn of(deliveries: &[Delivery], from: Duration, to: Duration) -> Self {
        let took = deliveries.iter().filter(|d| (from..to).contains(&d.due)).filter_map(millis);
        let jain = Spread::of(indices(deliveries, from, to));
        Self {
            latency_ms: Spread::of(took.collect()),
            standstill_seconds: standstill(deliveries, from, to).as_secs_f64(),
            jain: jain.p50,
            jain_least: jain.min,
        }
    }
}

fn millis(delivery: &Delivery) -> Option<f64> {
    Some(delivery.at?.saturating_sub(delivery.due).as_secs_f64() * 1_000.0)
}

/// The longest time within the phase in which an account was owed something and got nothing.
fn standstill(deliveries: &[Delivery], from: Duration, to: Duration) -> Duration {
    let mut by_account: HashMap<i64, Vec<Delivery>> = HashMap::new();
    for delivery in deliveries {
        by_account.entry(delivery.account).or_default().push(*delivery);
    }
    by_account.into_values().map(|its| standstill_of(its, from, to)).max().unwrap_or_default()
}

fn standstill_of(mut its: Vec<Delivery>, from: Duration, to: Duration) -> Duration {
    its.sort_by_key(|delivery| delivery.at.unwrap_or(Duration::MAX));
    let mut longest = Duration::ZERO;
    // The oldest that is still owed behind each delivery.
    let mut oldest_left = vec![Duration::MAX; its.len() + 1];
    for (n, delivery) in its.iter().enumerate().rev() {
        let behind = oldest_left.get(n + 1).copied().unwrap_or(Duration::MAX);
        if let Some(oldest) = oldest_left.get_mut(n) {
            *oldest = behind.min(delivery.due);
        }
    }
    let mut last = Duration::ZERO;
    for (delivery, oldest) in its.iter().zip(oldest_left) {
        let at = delivery.at.unwrap_or(Duration::MAX);
        let stood = at.min(to).saturating_sub(last.max(oldest).max(from));
        longest = longest.max(stood);
        last = at;
    }
    longest
}

/// Jain's index of each whole window of the phase in which somebody was owed something.
#[expect(clippy::cast_precision_loss, reason = "a number of accounts")]
#[expect(clippy::cast_possible_truncation, reason = "seconds of a test")]
fn indices(deliveries: &[Delivery], from: Duration, to: Duration) -> Vec<f64> {
    let windows = (to.saturating_sub(from).as_secs_f64() / WINDOW.as_secs_f64()) as u32;
    // By window and account: owed, and got.
    let mut shares: Vec<BTreeMap<i64, (f64, f64)>> = vec![BTreeMap::new(); windows as usize];
    let window =
        |at: Duration| ((at.as_secs_f64() - from.as_secs_f64()) / WINDOW.as_secs_f64()).floor();
    for delivery in deliveries {
        let end = delivery.at.unwrap_or(to);
        let first = window(delivery.due).max(0.0) as usize;
        let last = window(end);
        if last < 0.0 {
            continue;
        }
        for (n, of_window) in shares.iter_mut().enumerate().skip(first) {
            if n as f64 > last {
                break;
            }
            let (owed, got) = of_window.entry(delivery.account).or_default();
            *owed += 1.0;
            *got += f64::from(u8::from(delivery.at.is_some() && n as f64 == last));
        }
    }
    shares
        .iter()
        .filter(|accounts| !accounts.is_empty())
        .map(|accounts| {
            let shares = accounts.values().map(|(owed, got)| got / owed);
            let (sum, squares) =
                shares.fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
            if squares == 0.0 { 1.0 } else { sum * sum / (accounts.len() as f64 * squares) }
        })
        .collect()
}

/// Latencies by second of when they were due: seconds since `from`, and their spread.
#[must_use]
pub fn by_second(deliveries: &[Delivery], from: Duration) -> Vec<(f64, Spread)> {
    let mut seconds: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for delivery in deliveries.iter().filter(|delivery| delivery.due >= from) {
        let second = seconds.entry((delivery.due - from).as_secs()).or_default();
        second.extend(millis(delivery));
    }
    #[expect(clippy::cast_precision_loss, reason = "seconds of a test")]
    let spread = |(second, values)| (second as f64, Spread::of(values));
    seconds.into_iter().map(spread).collect()
}

/// Seconds from `begin` until three seconds in a row had a p99 of `bound_ms` at most; none: never before `end`.
#[must_use]
pub fn calm_again(
    deliveries: &[Delivery],
    begin: Duration,
    end: Duration,
    bound_ms: f64,
) -> Option<f64> {
    let until = end.saturating_sub(begin).as_secs_f64();
    let seconds: Vec<_> = by_second(deliveries, begin);
    let calm = |seconds: &[(f64, Spread)]| seconds.iter().all(|(_, spread)| spread.p99 <= bound_ms);
    let first = seconds.windows(3).find(|three| calm(three))?.first()?.0;
    (first < until).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(account: i64, due_ms: u64, at_ms: Option<u64>) -> Delivery {
        let at = at_ms.map(Duration::from_millis);
        Delivery { account, due: Duration::from_millis(due_ms), at }
    }

    fn of(deliveries: &[Delivery]) -> Felt {
        Felt::of(deliveries, Duration::from_secs(1), Duration::from_secs(3))
    }

    #[test]
    fn latency_counts_from_the_due_time_and_by_the_phase_of_it() {
        let felt = of(&[
            delivery(1, 900, Some(2_900)),
            delivery(1, 1_000, Some(1_005)),
            delivery(2, 2_999, Some(3_010)),
            delivery(2, 3_000, Some(9_000)),
        ]);
        assert_eq!((felt.latency_ms.n, felt.latency_ms.max), (2, 11.0));
    }

    #[test]
    fn an_account_stands_still_while_it_is_owed_something_and_gets_nothing() {
        // Owed since 1.2 s, and got something at 1.5 s and at 2.3 s.
        let served = [delivery(1, 1_200, Some(2_300)), delivery(1, 1_400, Some(1_500))];
        assert_eq!(of(&served).standstill_seconds, 0.8);
        // Owed nothing for long.
        let idle = [delivery(1, 1_000, Some(1_001)), delivery(1, 2_900, Some(2_901))];
        assert_eq!(of(&idle).standstill_seconds, 0.001);
        // What never comes counts to the end of the phase.
        assert_eq!(of(&[delivery(1, 1_500, None)]).standstill_seconds, 1.5);
        // Only what lies within the phase counts.
        assert_eq!(of(&[delivery(1, 0, Some(9_000))]).standstill_seconds, 2.0);
    }

    #[test]
    fn jains_index_is_one_where_all_are_served_alike() {
        let alike = [delivery(1, 1_100, Some(1_101)), delivery(2, 1_100, Some(1_101))];
        assert_eq!((of(&alike).jain, of(&alike).jain_least), (1.0, 1.0));
        let one_of_two = [delivery(1, 1_100, Some(1_101)), delivery(2, 1_100, Some(3_500))];
        assert_eq!(of(&one_of_two).jain_least, 0.5);
        // An account that asks for more and gets all of it is served like one that asks for less.
        let more = [alike[0], alike[1], delivery(1, 1_200, Some(1_201))];
        assert_eq!(of(&more).jain, 1.0);
    }

    #[test]
    fn calm_is_back_with_the_first_of_three_quiet_seconds() {
        let slow = |second: u64| if second < 4 || second == 5 { 300 } else { 1 };
        let all: Vec<Delivery> = (0..20)
            .map(|second| delivery(1, second * 1_000, Some(second * 1_000 + slow(second))))
            .collect();
        let back = |end| calm_again(&all, Duration::ZERO, Duration::from_secs(end), 10.0);
        assert_eq!((back(20), back(5)), (Some(6.0), None));
    }
}
