//! The one account book: what the writers committed against what the receivers got.
//!
//! Nothing in here comes from walhook. A change is entered when the writer's COMMIT was acknowledged, a
//! request when a receiver answers it, and what stands in the state tables as it is found there. A
//! version names a change for ever ([`crate::change`]), so that the two sides are matched exactly, and
//! what was rolled back can be told from what was committed.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::change::{Change, Kind};

mod tally;

pub use tally::Tally;

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

/// A version, and whether the row was deleted at it: a delete carries the row's last one.
type Key = (i64, bool);

fn key(change: Change) -> Key {
    (change.version, change.kind == Kind::Deleted)
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Commit {
    #[default]
    Unknown,
    Acknowledged,
    /// COMMIT was sent and its answer never read: it counts neither way.
    Doubtful,
}

/// What is known of one change.
#[derive(Debug, Default)]
struct Record {
    commit: Commit,
    account: Option<i64>,
    /// Kind and row, as the writer said; without, as the first request did.
    what: Option<(Kind, i64)>,
    /// When its commit was acknowledged, or asked for where its version was drawn here.
    at: Duration,
    event_id: Option<u64>,
    body: Option<u64>,
    deliveries: Vec<Delivery>,
}

#[derive(Debug, Default)]
struct Delivery {
    endpoint: i64,
    owed: bool,
    /// When it was taken first, and how often; replays aside.
    received: Option<Duration>,
    taken: u32,
    replayed: u32,
    stored: Option<Stored>,
}

impl Record {
    fn delivery(&mut self, endpoint: i64) -> &mut Delivery {
        let at = self.deliveries.iter().position(|d| d.endpoint == endpoint);
        let at = at.unwrap_or_else(|| {
            self.deliveries.push(Delivery { endpoint, ..Delivery::default() });
            self.deliveries.len() - 1
        });
        #[expect(clippy::indexing_slicing, reason = "found or pushed just above")]
        &mut self.deliveries[at]
    }

    fn change(&self, (version, deleted): Key) -> Change {
        let (kind, id) = self.what.unwrap_or((Kind::Created, 0));
        Change { kind: if deleted { Kind::Deleted } else { kind }, id, version }
    }
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
    next_version: i64,
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
        let delivery = record.delivery(endpoint.id);
        delivery.owed = true;
        let tally = self.tallies.entry(endpoint.group).or_default();
        tally.expected += 1;
        // The event can be there before the writer has read its acknowledgement.
        if delivery.received.is_some() {
            tally.deliver(Duration::ZERO, true);
        } else {
            tally.store(None, delivery.stored);
        }
    }

    /// A transaction's COMMIT was acknowledged at `at`.
    pub fn committed(&mut self, account: i64, changes: &[Change], at: Duration) {
        for &change in changes {
            self.said(change, account, Commit::Acknowledged).at = at;
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
            self.said(change, account, Commit::Doubtful);
        }
    }

    /// So many changes were made and taken back.
    pub fn rolled_back(&mut self, changes: usize) {
        self.rolled_back += u64::try_from(changes).unwrap_or(u64::MAX);
    }

    /// Enters what the writer says of a change. What a request said before has to be the same.
    fn said(&mut self, change: Change, account: i64, commit: Commit) -> &mut Record {
        let record = self.changes.entry(key(change)).or_default();
        let what = (change.kind, change.id);
        let other = record.what.replace(what).filter(|said| *said != what);
        if let Some(said) = other {
            self.faults.invented += 1;
            self.examples.push(format!("{change:?} came as {said:?}"));
        }
        (record.commit, record.account) = (commit, Some(account));
        record
    }

    /// Numbers for `n` changes of an account that are about to be committed; the first of them. For a
    /// writer that does not let the database draw them; each is an insert or an update.
    pub fn begin(&mut self, account: i64, n: usize, at: Duration) -> i64 {
        if self.one_each && !self.by_account.contains_key(&account) {
            self.add_endpoint(Endpoint::new(account, account));
        }
        let first = self.next_version;
        self.next_version += i64::try_from(n).unwrap_or(i64::MAX);
        for version in first..self.next_version {
            let record = Record { account: Some(account), at, ..Record::default() };
            self.changes.insert((version, false), record);
        }
        first
    }

    /// The commit of these was acknowledged.
    pub fn committed_from(&mut self, first: i64, n: usize) {
        for version in first..first + i64::try_from(n).unwrap_or(i64::MAX) {
            let Some(record) = self.changes.get_mut(&(version, false)) else { continue };
            record.commit = Commit::Acknowledged;
            let account = record.account.unwrap_or_default();
            self.owe_all(account, (version, false));
        }
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

    /// Changes whose version was drawn here, whether their commit was acknowledged or not.
    #[must_use]
    pub fn begun(&self) -> u64 {
        u64::try_from(self.next_version).unwrap_or_default()
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
            let its = record.account == Some(endpoint.account);
            record.commit == Commit::Unknown || !wanted || !its
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

    /// From the commit to the 2xx, in microseconds, of the changes of these accounts that were committed
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

fn hash(bytes: impl AsRef<[u8]>) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.as_ref().hash(&mut hasher);
    hasher.finish()
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
