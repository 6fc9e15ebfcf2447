//! The one account book: what the writers committed against what the receivers got.
//!
//! Nothing in here comes from walhook. A change is entered when the writer's COMMIT was acknowledged, a
//! request when a receiver answers it, and what stands in the state tables as it is found there. A
//! version names one committed change ([`crate::change`]), so that the two sides are matched exactly, and
//! what was rolled back can be told from what was committed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::change::{Change, Kind};

mod answers;
mod record;
mod tally;

pub use tally::Tally;

use record::{Commit, Key, Record, hash, key};

/// An endpoint, and what it is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Its id, unique among all accounts.
    pub id: i64,
    /// The account that owns it.
    pub account: i64,
    /// The kinds of change that it wants.
    pub wants: &'static [Kind],
    /// It is owed greater versions only; it may get others, as while it is being registered.
    pub since: i64,
    /// Endpoints that are tallied together.
    pub group: u8,
}

impl Endpoint {
    /// Wants everything, from the beginning.
    #[must_use]
    pub const fn new(id: i64, account: i64) -> Self {
        Self { id, account, wants: &Kind::ALL, since: i64::MIN, group: 0 }
    }
}

/// A request, as a receiver answered it.
#[derive(Debug, Clone, Copy)]
pub struct Receipt<'a> {
    /// The endpoint that it came to.
    pub endpoint: i64,
    /// The `webhook-id` header.
    pub event_id: &'a str,
    /// The change that the body tells of.
    pub change: Change,
    /// The body.
    pub body: &'a [u8],
    /// Whether it was answered with a 2xx. Others must be of what was committed too.
    pub taken: bool,
    /// Whether a replay brought it, which is no delivery of its own.
    pub replay: bool,
}

/// What a request was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// The first delivery.
    First,
    /// What had been delivered before.
    Again,
    /// A replay's, or no delivery.
    Aside,
}

/// The table that holds a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It waits there.
    Deferred,
    /// It ended there.
    DeadLetter,
}

/// What must never happen, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// Requests whose signature did not verify.
    pub unverified: u64,
    /// Deliveries of changes that were never committed, or at an endpoint that did not ask for them.
    pub invented: u64,
    /// Requests whose id is not the one first seen for the change, or was another change's.
    pub changed_ids: u64,
    /// Requests whose body is not the one first seen for the change.
    pub changed_bodies: u64,
    /// First deliveries behind a later one of the same row, at one endpoint.
    pub out_of_order: u64,
}

impl Faults {
    /// Whether nothing of the kind happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The sums of some accounts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Sums {
    /// Committed changes.
    pub committed: u64,
    /// Deliveries that must come of them.
    pub expected: u64,
    /// Of these, delivered.
    pub delivered: u64,
    /// Further 2xx for what was delivered already, replays aside.
    pub duplicates: u64,
    /// Deliveries that a replay brought again.
    pub replayed: u64,
}

/// Both sides' accounts. Times are since they were opened.
#[derive(Debug, Default)]
pub struct Oracle {
    /// Whether an account without an endpoint has one of the same id.
    one_each: bool,
    endpoints: HashMap<i64, Endpoint>,
    by_account: HashMap<i64, Vec<i64>>,
    changes: HashMap<Key, Record>,
    change_of: HashMap<u64, Key>,
    latest: HashMap<(i64, i64), (i64, Kind)>,
    tallies: BTreeMap<u8, Tally>,
    committed: u64,
    down: Option<Duration>,
    recovered: Option<Duration>,
    taken: u64,
    delivered: u64,
    duplicates: u64,
    replayed: u64,
    rolled_back: u64,
    last_received: Duration,
    last_replayed: Duration,
    faults: Faults,
    examples: Vec<String>,
}

/// Faults that are told in words.
const EXAMPLES: usize = 20;

impl Oracle {
    /// For these endpoints.
    #[must_use]
    pub fn new(endpoints: &[Endpoint]) -> Self {
        let mut oracle = Self::default();
        for endpoint in endpoints {
            oracle.add_endpoint(*endpoint);
        }
        oracle
    }

    /// For accounts that have one endpoint each, of the same id.
    #[must_use]
    pub fn one_each() -> Self {
        Self { one_each: true, ..Self::default() }
    }

    /// One more, also when traffic runs already.
    pub fn add_endpoint(&mut self, endpoint: Endpoint) {
        self.endpoints.insert(endpoint.id, endpoint);
        self.by_account.entry(endpoint.account).or_default().push(endpoint.id);
        self.tallies.entry(endpoint.group).or_default();
        let is_its = |(_, record): &(&Key, &Record)| {
            record.commit == Commit::Acknowledged && record.account == Some(endpoint.account)
        };
        let its: Vec<Key> = self.changes.iter().filter(is_its).map(|(key, _)| *key).collect();
        for key in its {
            self.owe(endpoint, key);
        }
    }

    /// Notes that an endpoint is owed a committed change, where it is.
    fn owe(&mut self, endpoint: Endpoint, key: Key) {
        let Some(record) = self.changes.get_mut(&key) else { return };
        let kind = record.change(key).kind;
        if !endpoint.wants.contains(&kind) || key.0 <= endpoint.since {
            return;
        }
        let committed = record.at;
        let delivery = record.delivery(endpoint.id);
        delivery.owed = true;
        let tally = self.tallies.entry(endpoint.group).or_default();
        tally.expected += 1;
        // The event can be there before the writer has read its acknowledgement.
        if let Some(at) = delivery.received {
            tally.deliver(at.saturating_sub(committed), true);
        } else {
            tally.store(None, delivery.stored);
        }
    }

    /// A transaction's COMMIT, sent at `at`, was acknowledged.
    pub fn committed(&mut self, account: i64, changes: &[Change], at: Duration) {
        if self.one_each && !self.by_account.contains_key(&account) {
            self.add_endpoint(Endpoint::new(account, account));
        }
        for &change in changes {
            self.committed += 1;
            self.acknowledged(change, account).at = at;
            self.owe_all(account, key(change));
        }
    }

    fn owe_all(&mut self, account: i64, key: Key) {
        let endpoints = self.by_account.get(&account).cloned().unwrap_or_default();
        let endpoints: Vec<Endpoint> =
            endpoints.iter().filter_map(|id| self.endpoints.get(id)).copied().collect();
        if let Some(first) = endpoints.first() {
            self.tallies.entry(first.group).or_default().committed += 1;
        }
        for endpoint in endpoints {
            self.owe(endpoint, key);
        }
    }

    /// A transaction's COMMIT was sent and its answer never read: its changes count neither way.
    pub fn doubtful(&mut self, account: i64, changes: &[Change]) {
        for &change in changes {
            let record = self.changes.entry(key(change)).or_default();
            record.claims.push(((change.kind, change.id), account));
            if record.commit == Commit::Unknown {
                record.commit = Commit::Doubtful;
            }
        }
    }

    /// So many changes were made and taken back.
    pub fn rolled_back(&mut self, changes: usize) {
        self.rolled_back += u64::try_from(changes).unwrap_or(u64::MAX);
    }

    /// Enters what the writer knows of a change. What a request said before has to be the same.
    fn acknowledged(&mut self, change: Change, account: i64) -> &mut Record {
        let record = self.changes.entry(key(change)).or_default();
        let what = (change.kind, change.id);
        let other = record.what.replace(what).filter(|said| *said != what);
        if let Some(said) = other {
            self.faults.invented += 1;
            self.examples.push(format!("{change:?} came as {said:?}"));
        }
        (record.commit, record.account) = (Commit::Acknowledged, Some(account));
        record
    }

    /// A request arrived whose signature did not verify.
    pub fn unverified(&mut self) {
        self.faults.unverified += 1;
    }

    /// The pipeline was killed: until [`Self::recovered`], latencies are its downtime's.
    pub fn down(&mut self, at: Duration) {
        self.down = Some(at);
        self.recovered = None;
    }

    /// The pipeline has caught up after it was down.
    pub fn recovered(&mut self, at: Duration) {
        self.recovered = Some(at);
    }

    /// A receiver answers a request at `at`.
    pub fn received(&mut self, receipt: Receipt<'_>, at: Duration) -> Entered {
        let Receipt { endpoint, change, taken, replay, .. } = receipt;
        self.identify(&receipt);
        if !self.agrees(change) {
            return Entered::Aside;
        }
        let record = self.changes.entry(key(change)).or_default();
        let committed = record.at;
        let delivery = record.delivery(endpoint);
        if !taken {
            return Entered::Aside;
        }
        if replay {
            self.replayed += u64::from(delivery.replayed == 0);
            delivery.replayed += 1;
            self.last_replayed = at;
            return Entered::Aside;
        }
        self.taken += 1;
        delivery.taken += 1;
        if delivery.received.is_some() {
            self.duplicates += 1;
            return Entered::Again;
        }
        delivery.received = Some(at);
        self.delivered += 1;
        self.last_received = at;
        let (owed, stored) = (delivery.owed, delivery.stored);
        self.note_order(endpoint, change);
        let calm = self.is_calm(committed, at);
        if let Some(endpoint) = self.endpoints.get(&endpoint).filter(|_| owed) {
            let tally = self.tallies.entry(endpoint.group).or_default();
            tally.deliver(at.saturating_sub(committed), calm);
            tally.store(stored, None);
        }
        Entered::First
    }

    /// Whether a version is that of the row and kind that it was known of; otherwise it is a fault.
    fn agrees(&mut self, change: Change) -> bool {
        let record = self.changes.entry(key(change)).or_default();
        let what = (change.kind, change.id);
        let known = *record.what.get_or_insert(what);
        if known != what {
            self.faults.invented += 1;
            self.examples.push(format!("{change:?} was {known:?}"));
        }
        known == what
    }

    /// An id belongs to one change with one body, and a change to one id.
    pub fn identify(&mut self, receipt: &Receipt<'_>) {
        let (id, key) = (hash(receipt.event_id), key(receipt.change));
        let record = self.changes.entry(key).or_default();
        let known = *record.event_id.get_or_insert(id);
        if known != id || *self.change_of.entry(id).or_insert(key) != key {
            self.faults.changed_ids += 1;
            self.examples
                .push(format!("{:?} has another id: {}", receipt.change, receipt.event_id));
        }
        if !receipt.body.is_empty() {
            let body = hash(receipt.body);
            if *record.body.get_or_insert(body) != body {
                self.faults.changed_bodies += 1;
                self.examples.push(format!("{:?} has another body", receipt.change));
            }
        }
        self.examples.truncate(EXAMPLES);
    }

    /// The state tables hold this delivery. Repeating it changes nothing; returns the table that held it
    /// when it was entered before.
    pub fn stored(&mut self, endpoint: i64, change: Change, table: Stored) -> Option<Stored> {
        if !self.agrees(change) {
            return None;
        }
        let delivery = self.changes.entry(key(change)).or_default().delivery(endpoint);
        let before = delivery.stored.replace(table);
        if let Some(endpoint) = self.endpoints.get(&endpoint)
            && delivery.owed
            && delivery.received.is_none()
        {
            let tally = self.tallies.entry(endpoint.group).or_default();
            tally.store(before, Some(table));
        }
        before
    }

    fn is_calm(&self, committed: Duration, received: Duration) -> bool {
        let Some(down) = self.down else { return true };
        received < down || self.recovered.is_some_and(|recovered| committed > recovered)
    }

    /// A row's versions only grow, and a delete, which carries the last one, comes last.
    fn note_order(&mut self, endpoint: i64, change: Change) {
        let this = (change.version, change.kind);
        let latest = self.latest.entry((endpoint, change.id)).or_insert(this);
        if this < *latest {
            self.faults.out_of_order += 1;
            self.examples.push(format!("endpoint {endpoint} got {change:?} after {latest:?}"));
        } else {
            *latest = this;
        }
    }
}

/// The book as writers and receivers share it.
#[derive(Debug, Clone)]
pub struct Shared {
    oracle: Arc<Mutex<Oracle>>,
    opened: Instant,
}

impl Shared {
    /// Opens it now.
    #[must_use]
    pub fn open(oracle: Oracle) -> Self {
        Self { oracle: Arc::new(Mutex::new(oracle)), opened: Instant::now() }
    }

    /// Time since it was opened.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.opened.elapsed()
    }

    /// Reads or writes it, with the time since it was opened. Never held over an `await`.
    pub fn with<T>(&self, act: impl FnOnce(&mut Oracle, Duration) -> T) -> T {
        let at = self.now();
        act(&mut self.oracle.lock().unwrap_or_else(PoisonError::into_inner), at)
    }
}

#[cfg(test)]
mod tests;
