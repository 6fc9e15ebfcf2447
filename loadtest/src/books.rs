//! What was committed, held against what arrived.
//!
//! Every change has a number, its `version`, which the books hand out. So an entry is found by index,
//! and a million of them take less than a hundred megabytes.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;
use tokio::time::Instant;
use walhook::demo::ledger::Change;

/// One change for the one endpoint of its account.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    account: i64,
    /// Microseconds since the books were opened, just before the commit was asked for.
    began_us: u64,
    is_committed: bool,
    /// When it was first answered with a 2xx; 0: never.
    received_us: u64,
    /// Answered with a 2xx as first deliveries are, and as replays are.
    times: u32,
    replayed: u32,
    /// Hashes.
    event_id: u64,
    body: u64,
}

#[derive(Debug, Default)]
struct Inner {
    entries: Vec<Entry>,
    /// The last version of each row that arrived.
    latest: HashMap<i64, i64>,
    delivered: u64,
    replayed: u64,
    last_received: Option<Instant>,
    last_replayed: Option<Instant>,
    wrong: Wrong,
}

/// What must not happen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Wrong {
    /// Arrived and was never committed, or at another account's endpoint.
    pub invented: u64,
    /// Came again with another id.
    pub changed_ids: u64,
    /// Came again with another body.
    pub changed_bodies: u64,
    /// Came for the first time, behind a later one of the same row.
    pub out_of_order: u64,
}

/// The outcome. Deliveries are those of the accounts that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// Committed changes; each is one delivery.
    pub committed: u64,
    /// Of these, those that were answered with a 2xx.
    pub delivered: u64,
    /// Further 2xx for what was delivered already, replays aside.
    pub duplicates: u64,
    /// Changes that a replay brought again.
    pub replayed: u64,
    /// What must not happen.
    pub wrong: Wrong,
}

impl Audit {
    /// Committed and not delivered.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.committed - self.delivered
    }

    /// Fails unless all that was committed was delivered or stands in a table.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn ensure(&self, in_tables: u64) -> Result<()> {
        let lost = self.missing().checked_sub(in_tables);
        ensure!(
            lost == Some(0) && self.wrong == Wrong::default(),
            "the audit failed: {self}; {in_tables} stand in the tables"
        );
        Ok(())
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { committed, delivered, duplicates, replayed, wrong } = self;
        let Wrong { invented, changed_ids, changed_bodies, out_of_order } = wrong;
        write!(
            f,
            "committed {committed}, delivered {delivered}, duplicates {duplicates}, replayed \
             {replayed}, invented {invented}, changed ids {changed_ids}, changed bodies \
             {changed_bodies}, out of order {out_of_order}"
        )
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Books {
    opened: Instant,
    inner: Mutex<Inner>,
}

impl Default for Books {
    fn default() -> Self {
        Self { opened: Instant::now(), inner: Mutex::default() }
    }
}

impl Books {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time since the books were opened.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.opened.elapsed()
    }

    /// Numbers for `n` changes of an account that are about to be committed; the first of them.
    pub fn begin(&self, account: i64, n: usize) -> i64 {
        let began_us = micros(self.now());
        let mut inner = self.inner();
        let first = inner.entries.len();
        inner.entries.resize(first + n, Entry { account, began_us, ..Entry::default() });
        i64::try_from(first).unwrap_or(i64::MAX)
    }

    /// The commit of these was acknowledged.
    pub fn committed(&self, first: i64, n: usize) {
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        let mut inner = self.inner();
        for entry in inner.entries.iter_mut().skip(first).take(n) {
            entry.is_committed = true;
        }
    }

    /// A receiver is about to answer with a 2xx.
    pub fn received(
        &self,
        account: i64,
        change: Change,
        event_id: &[u8],
        body: &[u8],
        replay: bool,
    ) {
        let (event_id, body, at_once) = (hash(event_id), hash(body), Instant::now());
        let now = micros(at_once.saturating_duration_since(self.opened));
        let inner = &mut *self.inner();
        let at = usize::try_from(change.version).unwrap_or(usize::MAX);
        let entry = inner.entries.get_mut(at).filter(|entry| entry.account == account);
        let Some(entry) = entry else {
            inner.wrong.invented += 1;
            return;
        };
        let is_first = entry.received_us == 0;
        if is_first {
            (entry.received_us, entry.event_id, entry.body) = (now.max(1), event_id, body);
        }
        inner.wrong.changed_ids += u64::from(entry.event_id != event_id);
        inner.wrong.changed_bodies += u64::from(entry.body != body);
        if replay {
            inner.replayed += u64::from(entry.replayed == 0);
            entry.replayed += 1;
            inner.last_replayed = Some(at_once);
            return;
        }
        entry.times += 1;
        if entry.times == 1 {
            inner.delivered += 1;
            inner.last_received = Some(at_once);
            let latest = inner.latest.entry(change.id).or_insert(change.version);
            inner.wrong.out_of_order += u64::from(change.version < *latest);
            *latest = change.version.max(*latest);
        }
    }

    /// First deliveries so far.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.inner().delivered
    }

    /// Different changes that replays have brought so far.
    #[must_use]
    pub fn replayed(&self) -> u64 {
        self.inner().replayed
    }

    /// When the last first delivery came.
    #[must_use]
    pub fn last_received(&self) -> Option<Instant> {
        self.inner().last_received
    }

    /// When a replay's last delivery came, since the books were opened; zero without any.
    #[must_use]
    pub fn last_replayed(&self) -> Duration {
        let last = self.inner().last_replayed;
        last.map_or(Duration::ZERO, |at| at.saturating_duration_since(self.opened))
    }

    /// Changes that were begun, whether their commit was acknowledged or not.
    #[must_use]
    pub fn begun(&self) -> u64 {
        u64::try_from(self.inner().entries.len()).unwrap_or(u64::MAX)
    }

    /// The account of these, added up.
    #[must_use]
    pub fn audit(&self, accounts: RangeInclusive<i64>) -> Audit {
        let inner = self.inner();
        let mut audit =
            Audit { committed: 0, delivered: 0, duplicates: 0, replayed: 0, wrong: inner.wrong };
        for entry in inner.entries.iter().filter(|entry| accounts.contains(&entry.account)) {
            audit.committed += u64::from(entry.is_committed);
            audit.delivered += u64::from(entry.times > 0);
            audit.duplicates += u64::from(entry.times.saturating_sub(1));
            audit.replayed += u64::from(entry.replayed > 0);
            // Each scenario stops only when all commits were acknowledged.
            audit.wrong.invented += u64::from(entry.times > 0 && !entry.is_committed);
        }
        audit
    }

    /// From the commit to the 2xx, in microseconds, of the changes of these accounts that were committed
    /// within these times and delivered.
    #[must_use]
    pub fn latencies(
        &self,
        accounts: RangeInclusive<i64>,
        from: Duration,
        to: Duration,
    ) -> Vec<u64> {
        let within = micros(from)..micros(to);
        let inner = self.inner();
        let delivered = inner.entries.iter().filter(|e| {
            e.times > 0 && accounts.contains(&e.account) && within.contains(&e.began_us)
        });
        delivered.map(|e| e.received_us.saturating_sub(e.began_us)).collect()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhook::demo::plan::Kind;

    fn change(id: i64, version: i64) -> Change {
        Change { kind: Kind::Created, id, version }
    }

    #[test]
    fn books_balance_when_all_arrived_in_order() {
        let books = Books::default();
        let first = books.begin(7, 2);
        books.committed(first, 2);
        books.received(7, change(1, first), b"a", b"x", false);
        books.received(7, change(1, first + 1), b"b", b"y", false);
        books.received(7, change(1, first), b"a", b"x", true);
        let audit = books.audit(1..=9);
        assert!(audit.ensure(0).is_ok(), "{audit}");
        assert_eq!((audit.delivered, audit.replayed, audit.duplicates), (2, 1, 0));
        assert_eq!(books.latencies(1..=9, Duration::ZERO, Duration::MAX).len(), 2);
    }

    #[test]
    fn books_find_what_is_missing_invented_changed_and_out_of_order() {
        let books = Books::default();
        let first = books.begin(7, 3);
        books.committed(first, 3);
        books.received(7, change(1, first + 1), b"b", b"y", false);
        books.received(7, change(1, first), b"a", b"x", false);
        books.received(7, change(1, first), b"c", b"z", false);
        books.received(8, change(1, first + 2), b"d", b"w", false);
        let audit = books.audit(1..=9);
        let wrong = Wrong { invented: 1, changed_ids: 1, changed_bodies: 1, out_of_order: 1 };
        assert_eq!((audit.missing(), audit.duplicates, audit.wrong), (1, 1, wrong));
        assert!(audit.ensure(1).is_err());
    }
}
