//! The kit's oracle as the scenarios ask it: one endpoint for each account, which has the account's id.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;
use tokio::time::Instant;
use walhook_testkit::oracle::{Faults, Oracle, Receipt, Shared, Sums};

/// The outcome. Deliveries are those of the accounts that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// Changes and deliveries.
    #[serde(flatten)]
    pub sums: Sums,
    /// What must not happen.
    pub wrong: Faults,
}

impl Audit {
    /// Committed and not delivered.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.sums.committed - self.sums.delivered
    }

    /// Fails unless all that was committed was delivered or stands in a table.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn ensure(&self, in_tables: u64) -> Result<()> {
        let lost = self.missing().checked_sub(in_tables);
        ensure!(
            lost == Some(0) && self.wrong.is_empty(),
            "the audit failed: {self}; {in_tables} stand in the tables"
        );
        Ok(())
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sums { committed, delivered, duplicates, replayed, .. } = self.sums;
        let Faults { invented, changed_ids, changed_bodies, out_of_order, .. } = self.wrong;
        write!(
            f,
            "committed {committed}, delivered {delivered}, duplicates {duplicates}, replayed \
             {replayed}, invented {invented}, changed ids {changed_ids}, changed bodies \
             {changed_bodies}, out of order {out_of_order}"
        )
    }
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Books(Shared);

impl Default for Books {
    fn default() -> Self {
        Self(Shared::open(Oracle::one_each()))
    }
}

impl Books {
    /// Time since the books were opened.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.0.now()
    }

    /// The book itself, for a writer.
    #[must_use]
    pub fn shared(&self) -> Shared {
        self.0.clone()
    }

    /// A receiver is about to answer.
    pub fn received(&self, receipt: Receipt<'_>) {
        self.0.with(|oracle, at| oracle.received(receipt, at));
    }

    /// First deliveries so far.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.0.with(|oracle, _| oracle.delivered())
    }

    /// Different changes that replays have brought so far.
    #[must_use]
    pub fn replayed(&self) -> u64 {
        self.0.with(|oracle, _| oracle.replayed())
    }

    /// When the last first delivery came.
    #[must_use]
    pub fn last_received(&self) -> Option<Instant> {
        let (last, now) = self.0.with(|oracle, at| (oracle.last().0, at));
        (!last.is_zero()).then(|| Instant::now() - now.saturating_sub(last))
    }

    /// When a replay's last delivery came, since the books were opened; zero without any.
    #[must_use]
    pub fn last_replayed(&self) -> Duration {
        self.0.with(|oracle, _| oracle.last().1)
    }

    /// Changes whose commit was acknowledged.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.0.with(|oracle, _| oracle.committed_in_all())
    }

    /// The account of these, added up.
    #[must_use]
    pub fn audit(&self, accounts: RangeInclusive<i64>) -> Audit {
        self.0.with(|oracle, _| Audit { sums: oracle.sums(accounts), wrong: oracle.faults() })
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
        self.0.with(|oracle, _| oracle.latencies(accounts, from, to))
    }
}
