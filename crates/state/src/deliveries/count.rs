//! Lines are counted by what they tell of, without being kept.

use std::collections::BTreeMap;

use super::super::{StateError, StateStore};
use super::READ_AT_ONCE;
use super::read::{DeliveryFilter, Way};
use walhook_core::attempt::FailureKind;
use walhook_core::delivery_log::{Entry, What};

/// What lines are counted by: what happened, with what answer, or what failed where there was none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeliveryKind {
    /// What happened.
    pub what: What,
    /// The status of the answer.
    pub status: Option<u16>,
    /// What failed.
    pub failure: Option<FailureKind>,
}

/// How many lines there are of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeliveryCount {
    /// So many; at least 1.
    pub lines: u64,
    /// When the first of them happened: microseconds since 1970-01-01 UTC.
    pub first_us: i64,
    /// When the last of them happened.
    pub last_us: i64,
}

impl From<&Entry> for DeliveryKind {
    fn from(entry: &Entry) -> Self {
        Self { what: entry.what, status: entry.status, failure: entry.failure }
    }
}

impl DeliveryCount {
    fn add(&mut self, entry: &Entry) {
        self.lines += 1;
        self.first_us = self.first_us.min(entry.at_us);
        self.last_us = self.last_us.max(entry.at_us);
    }
}

impl StateStore {
    /// Counts the lines of the delivery log that fit. It reads each page that may have some, however many these are.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn count_deliveries(
        &self,
        filter: &DeliveryFilter,
    ) -> Result<BTreeMap<DeliveryKind, DeliveryCount>, StateError> {
        self.at_one_moment(self.counts(filter)).await
    }

    async fn counts(
        &self,
        filter: &DeliveryFilter,
    ) -> Result<BTreeMap<DeliveryKind, DeliveryCount>, StateError> {
        let mut counts: BTreeMap<DeliveryKind, DeliveryCount> = BTreeMap::new();
        let mut from = None;
        loop {
            let found = self.pages_of(filter, Way::OldestFirst, (from, None)).await?;
            let is_end = found.len() < READ_AT_ONCE;
            from = found.last().map(|page| page.last).or(from);
            let lines = found.iter().flat_map(|page| &page.entries);
            for line in lines.filter(|line| filter.admits(line)) {
                let at_us = line.at_us;
                let none = DeliveryCount { lines: 0, first_us: at_us, last_us: at_us };
                counts.entry(line.into()).or_insert(none).add(line);
            }
            if is_end {
                return Ok(counts);
            }
        }
    }
}
