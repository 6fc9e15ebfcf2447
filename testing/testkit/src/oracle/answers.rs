//! What the oracle is asked: counts, what is missing, what is wrong.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::record::{Commit, Delivery, Key, Record};
use super::{EXAMPLES, Faults, Oracle, Stored, Sums, Tally};
use crate::change::Change;

impl Oracle {
    /// One group's counts.
    #[must_use]
    pub fn tally(&self, group: u8) -> Tally {
        self.tallies.get(&group).cloned().unwrap_or_default()
    }

    /// One group's deliveries that are neither received nor known to stand in a table.
    #[must_use]
    pub fn waiting(&self, group: u8) -> u64 {
        self.tallies.get(&group).map_or(0, Tally::waiting)
    }

    /// Of all groups together.
    #[must_use]
    pub fn waiting_in_all(&self) -> u64 {
        self.tallies.values().map(Tally::waiting).sum()
    }

    /// Requests that were answered with a 2xx; replays aside.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// First deliveries so far.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Repeats of a delivery already received.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Different deliveries that replays have brought so far.
    #[must_use]
    pub fn replayed(&self) -> u64 {
        self.replayed
    }

    /// When the last first delivery came, and a replay's last; zero without any.
    #[must_use]
    pub fn last(&self) -> (Duration, Duration) {
        (self.last_received, self.last_replayed)
    }

    /// Changes whose commit was acknowledged.
    #[must_use]
    pub fn committed_in_all(&self) -> u64 {
        self.committed
    }

    /// Changes whose commit was acknowledged, is in doubt, and that were taken back.
    #[must_use]
    pub fn changes(&self) -> [u64; 3] {
        let of = |commit| {
            let count = self.changes.values().filter(|record| record.commit == commit).count();
            u64::try_from(count).unwrap_or(u64::MAX)
        };
        [of(Commit::Acknowledged), of(Commit::Doubtful), self.rolled_back]
    }

    /// Deliveries that stand in a table.
    #[must_use]
    pub fn in_table(&self, table: Stored) -> usize {
        self.deliveries().filter(|(.., d)| d.stored == Some(table)).count()
    }

    /// What is owed and was not delivered, with the table that holds it.
    pub fn undelivered(&self) -> impl Iterator<Item = (i64, Change, Option<Stored>)> {
        let owed = self.deliveries().filter(|(.., d)| d.owed && d.received.is_none());
        owed.map(|(key, record, d)| (d.endpoint, record.change(key), d.stored))
    }

    /// What is owed and is nowhere: neither delivered nor in a table.
    pub fn missing(&self) -> impl Iterator<Item = (i64, Change)> {
        let nowhere = self.undelivered().filter(|(.., stored)| stored.is_none());
        nowhere.map(|(endpoint, change, _)| (endpoint, change))
    }

    /// What must not have happened. Final when the writers have stopped.
    #[must_use]
    pub fn faults(&self) -> Faults {
        let invented = u64::try_from(self.invented().count()).unwrap_or(u64::MAX);
        Faults { invented: self.faults.invented + invented, ..self.faults }
    }

    /// The same in words, not more than some.
    #[must_use]
    pub fn examples(&self) -> Vec<String> {
        let invented = self.invented().map(|(key, record, d)| {
            format!("{:?} came to {} and was {:?}", record.change(key), d.endpoint, record.commit)
        });
        self.examples.iter().cloned().chain(invented).take(EXAMPLES).collect()
    }

    fn deliveries(&self) -> impl Iterator<Item = (Key, &Record, &Delivery)> {
        self.changes
            .iter()
            .flat_map(|(key, record)| record.deliveries.iter().map(move |d| (*key, record, d)))
    }

    fn invented(&self) -> impl Iterator<Item = (Key, &Record, &Delivery)> {
        self.deliveries().filter(|(key, record, delivery)| {
            let Some(endpoint) = self.endpoints.get(&delivery.endpoint) else { return true };
            let wanted = endpoint.wants.contains(&record.change(*key).kind);
            !wanted || !record.is_of(endpoint.account)
        })
    }

    /// The accounts of this range, added up.
    #[must_use]
    pub fn sums(&self, accounts: RangeInclusive<i64>) -> Sums {
        let its = |record: &&Record| record.account.is_some_and(|id| accounts.contains(&id));
        let mut sums = Sums::default();
        for record in self.changes.values().filter(its) {
            sums.committed += u64::from(record.commit == Commit::Acknowledged);
            for delivery in &record.deliveries {
                sums.expected += u64::from(delivery.owed);
                sums.delivered += u64::from(delivery.owed && delivery.received.is_some());
                sums.duplicates += u64::from(delivery.taken.saturating_sub(1));
                sums.replayed += u64::from(delivery.replayed > 0);
            }
        }
        sums
    }

    /// From before the COMMIT to the 2xx, in microseconds, of the changes of these accounts that were committed
    /// within these times and delivered.
    #[must_use]
    pub fn latencies(
        &self,
        accounts: RangeInclusive<i64>,
        from: Duration,
        to: Duration,
    ) -> Vec<u64> {
        let its = |record: &&Record| {
            record.account.is_some_and(|id| accounts.contains(&id))
                && (from..to).contains(&record.at)
        };
        let mut latencies = Vec::new();
        for record in self.changes.values().filter(its) {
            let received = record.deliveries.iter().filter_map(|delivery| delivery.received);
            let took = received.map(|at| at.saturating_sub(record.at).as_micros());
            latencies.extend(took.map(|us| u64::try_from(us).unwrap_or(u64::MAX)));
        }
        latencies
    }
}
