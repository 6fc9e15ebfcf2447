//! What the delivery log says of where the time of deliveries went, from the commit to the answer.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use walhook_core::endpoint::Secret;
use walhook_core::waits::{Cause, Waits};
use walhook_state::{DeliveryFilter, StateStore};

use crate::books::Books;
use crate::world::World;

/// Of many deliveries the slowest one of so many is explained.
pub const ONE_OF: usize = 100;

/// Lines that are read from the log at a time.
const PAGE: usize = 10_000;

/// What the log says of a delivery that was taken. Times are since the books were opened.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// Whose it is.
    pub account: i64,
    /// As the server's clock has it.
    pub committed: Duration,
    /// When the attempt ended.
    pub at: Duration,
    /// What it waited for.
    pub waits: Waits,
}

/// What the log says of all deliveries to these accounts, by account; without those that a replay made, which were
/// committed long before.
///
/// # Errors
/// When the log cannot be read.
pub async fn read(
    world: &World,
    books: &Books,
    accounts: impl Fn(i64) -> bool,
) -> Result<Vec<Line>> {
    let url = Secret::new(world.cluster.url("postgres"));
    let store = StateStore::open(&url, "walhook", "walhook").await?;
    let opened = opened(world, books).await?;
    let since = |us: i64| {
        Duration::from_micros(u64::try_from(us).unwrap_or_default()).saturating_sub(opened)
    };
    let filter = DeliveryFilter { outcome: Some("delivered".to_owned()), ..Default::default() };
    let (mut lines, mut before) = (Vec::new(), None);
    loop {
        let page = store.deliveries(&filter, PAGE, before).await?;
        for entry in page.entries {
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

/// When the books were opened, by the server's clock. Asked some times: where the machine is busy, an answer may have
/// been long under way, and the quickest says most.
async fn opened(world: &World, books: &Books) -> Result<Duration> {
    let now_us = "SELECT (date_part('epoch', clock_timestamp()) * 1e6)::bigint";
    let (mut least, mut opened) = (Duration::MAX, Duration::ZERO);
    for _ in 0..5 {
        let before = books.now();
        let now = Duration::from_micros(world.number(now_us).await?);
        let took = books.now().saturating_sub(before);
        if took < least {
            (least, opened) = (took, now.saturating_sub(before + took / 2));
        }
    }
    Ok(opened)
}

/// Means of what deliveries waited for, in milliseconds, of each cause that held.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Means(BTreeMap<String, f64>);

impl Means {
    /// Of these.
    #[must_use]
    pub fn of(all: &[Waits]) -> Self {
        let mut means = BTreeMap::new();
        #[expect(clippy::cast_precision_loss, reason = "a number of deliveries")]
        let share = 1.0 / all.len() as f64;
        for (cause, us) in all.iter().flat_map(Waits::iter) {
            let ms = Duration::from_micros(us).as_secs_f64() * 1_000.0;
            *means.entry(cause.as_str().to_owned()).or_default() += ms * share;
        }
        Self(means)
    }

    /// Of the slowest of these, from the commit to the answer.
    #[must_use]
    pub fn of_slowest(mut lines: Vec<Line>) -> Self {
        lines.sort_by_key(|line| std::cmp::Reverse(line.at.saturating_sub(line.committed)));
        lines.truncate(lines.len().div_ceil(ONE_OF));
        Self::of(&lines.iter().map(|line| line.waits).collect::<Vec<_>>())
    }

    /// Of this cause.
    #[must_use]
    pub fn ms(&self, cause: Cause) -> f64 {
        self.0.get(cause.as_str()).copied().unwrap_or_default()
    }
}

/// The causes that took most, for people.
impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut causes: Vec<_> =
            Cause::ALL.iter().filter_map(|c| self.0.get_key_value(c.as_str())).collect();
        causes.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        let words: Vec<String> = causes
            .into_iter()
            .filter(|(_, ms)| **ms >= 0.005)
            .map(|(cause, ms)| format!("{cause} {ms:.2}"))
            .collect();
        f.write_str(&words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_those_of_the_slowest_hundredth_the_largest_first() {
        let ms = Duration::from_millis;
        let line = |took: u64, read: u64| {
            let mut waits = Waits::default();
            waits.add(Cause::Read, ms(read));
            waits.add(Cause::Attempt, ms(took - read));
            Line { account: 1, committed: ms(1_000), at: ms(1_000 + took), waits }
        };
        let mut lines: Vec<Line> = (0..198).map(|_| line(2, 1)).collect();
        lines.extend([line(40, 10), line(20, 5)]);
        assert_eq!(Means::of_slowest(lines).to_string(), "attempt 22.50, read 7.50");
        assert_eq!(Means::of_slowest(Vec::new()).to_string(), "");
    }
}
