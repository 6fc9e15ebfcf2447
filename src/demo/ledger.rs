//! The demo's books: what the writers committed against what the receivers got.
//!
//! Nothing in here comes from walhook. A change is entered when the writer's COMMIT was
//! acknowledged, a delivery when a receiver has verified its signature and answered 2xx. Each change
//! has a number that no other change has and that a rollback does not give back, so the two sides
//! are matched exactly, and what was rolled back can be told from what was committed.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::plan::{Class, Endpoint, Kind};

/// One change of one subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Change {
    /// What happened.
    pub kind: Kind,
    /// The subscriber's id.
    pub id: i64,
    /// The row's `version` after an insert or update, before a delete.
    pub version: i64,
}

/// What a receiver got and answered with 2xx.
#[derive(Debug, Clone, Copy)]
pub struct Receipt<'a> {
    /// The endpoint that it came to.
    pub endpoint: i64,
    /// The `webhook-id` header.
    pub event_id: &'a str,
    /// The change that the body tells of.
    pub change: Change,
}

/// What is known of one change.
#[derive(Debug, Default)]
struct Record {
    committed: Option<Duration>,
    event_id: Option<Box<str>>,
    deliveries: Vec<Delivery>,
}

#[derive(Debug)]
struct Delivery {
    endpoint: i64,
    class: Class,
    expected: bool,
    received: Option<Duration>,
    dead: bool,
    deferred: bool,
}

/// Counts of one class of account, with the latencies of its deliveries.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    /// Events: committed changes.
    pub committed: u64,
    /// Deliveries that must come of them.
    pub expected: u64,
    /// Of these, received at least once.
    pub delivered: u64,
    /// Of these, dead letters that were never received.
    pub dead: u64,
    /// Of these, deferred when the pipeline was stopped, and never received.
    pub deferred: u64,
    /// From the acknowledged commit to the 2xx, in microseconds; not ordered.
    latencies_us: Vec<u32>,
    /// The same, of deliveries that the kill did not touch.
    calm_us: Vec<u32>,
}

impl Tally {
    /// Deliveries that are neither received nor known to stand in a table.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.expected.saturating_sub(self.delivered + self.dead + self.deferred)
    }

    /// A percentile of commit to 2xx; `None` without a delivery.
    #[must_use]
    pub fn latency(&self, percent: u8) -> Option<Duration> {
        percentile(&self.latencies_us, percent)
    }

    /// The same, leaving out what was waiting while the pipeline was down.
    #[must_use]
    pub fn calm_latency(&self, percent: u8) -> Option<Duration> {
        percentile(&self.calm_us, percent)
    }

    fn add_latency(&mut self, latency: Duration, calm: bool) {
        let us = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        self.latencies_us.push(us);
        if calm {
            self.calm_us.push(us);
        }
    }
}

/// The nearest-rank percentile.
fn percentile(samples_us: &[u32], percent: u8) -> Option<Duration> {
    let rank = (samples_us.len() * usize::from(percent)).div_ceil(100).checked_sub(1)?;
    let mut samples = samples_us.to_vec();
    let (_, at_rank, _) = samples.select_nth_unstable(rank);
    Some(Duration::from_micros(u64::from(*at_rank)))
}

/// What must never happen, counted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Violations {
    /// Requests whose signature did not verify.
    pub unverified: u64,
    /// Deliveries of changes that were never committed, or to an endpoint that did not ask.
    pub invented: u64,
    /// Deliveries whose event id differs from the one first seen for the change.
    pub changed_ids: u64,
    /// First deliveries of a row's event after a later one of the same row, at one endpoint.
    pub out_of_order: u64,
}

impl Violations {
    /// Whether nothing of the kind happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Both sides' books. Times are since the traffic began.
#[derive(Debug, Default)]
pub struct Ledger {
    by_account: HashMap<i64, Vec<Endpoint>>,
    class_of: HashMap<i64, Class>,
    changes: HashMap<Change, Record>,
    doubtful: HashSet<Change>,
    latest: HashMap<(i64, i64), (i64, Kind)>,
    tallies: HashMap<Class, Tally>,
    down: Option<Duration>,
    recovered: Option<Duration>,
    verified: u64,
    duplicates: u64,
    unverified: u64,
    changed_ids: u64,
    out_of_order: u64,
}

impl Ledger {
    /// Books for these endpoints.
    #[must_use]
    pub fn new(endpoints: &[Endpoint]) -> Self {
        let mut ledger = Self::default();
        for endpoint in endpoints {
            ledger.by_account.entry(endpoint.account).or_default().push(*endpoint);
            ledger.class_of.insert(endpoint.id, endpoint.class);
        }
        for class in Class::ALL {
            ledger.tallies.insert(class, Tally::default());
        }
        ledger
    }

    /// A transaction's COMMIT was acknowledged at `at`.
    pub fn handle_committed(&mut self, account: i64, changes: &[Change], at: Duration) {
        let Some(endpoints) = self.by_account.get(&account) else { return };
        for &change in changes {
            let record = self.changes.entry(change).or_default();
            record.committed = Some(at);
            let Some(class) = endpoints.first().map(|endpoint| endpoint.class) else { continue };
            let tally = self.tallies.entry(class).or_default();
            tally.committed += 1;
            for endpoint in endpoints.iter().filter(|e| e.wants.contains(&change.kind)) {
                tally.expected += 1;
                let delivery = record.delivery(endpoint.id, class);
                delivery.expected = true;
                // The event can be there before the writer has read its acknowledgement.
                if delivery.received.is_some() {
                    tally.delivered += 1;
                    tally.add_latency(Duration::ZERO, true);
                }
            }
        }
    }

    /// A transaction's COMMIT was sent and its answer never read: it counts neither way.
    pub fn handle_doubtful(&mut self, changes: &[Change]) {
        self.doubtful.extend(changes);
    }

    /// A request arrived whose signature did not verify.
    pub fn handle_unverified(&mut self) {
        self.unverified += 1;
    }

    /// The pipeline was killed: until [`Self::handle_recovered`], latencies are its downtime's.
    pub fn handle_down(&mut self, at: Duration) {
        self.down = Some(at);
        self.recovered = None;
    }

    /// The pipeline has caught up after it was down.
    pub fn handle_recovered(&mut self, at: Duration) {
        self.recovered = Some(at);
    }

    /// A receiver verified a request and answered it with 2xx at `at`.
    pub fn handle_received(&mut self, receipt: Receipt<'_>, at: Duration) {
        let Receipt { endpoint, event_id, change } = receipt;
        self.verified += 1;
        let Some(&class) = self.class_of.get(&endpoint) else { return };
        let record = self.changes.entry(change).or_default();
        if record.event_id.get_or_insert_with(|| event_id.into()).as_ref() != event_id {
            self.changed_ids += 1;
        }
        let committed = record.committed;
        let delivery = record.delivery(endpoint, class);
        if delivery.received.is_some() {
            self.duplicates += 1;
            return;
        }
        delivery.received = Some(at);
        let (expected, was_dead) = (delivery.expected, delivery.dead);
        self.note_order(endpoint, change);
        let calm = self.is_calm(committed.unwrap_or(at), at);
        let tally = self.tallies.entry(class).or_default();
        if let (true, Some(committed)) = (expected, committed) {
            tally.delivered += 1;
            tally.add_latency(at.saturating_sub(committed), calm);
        }
        if was_dead {
            tally.dead = tally.dead.saturating_sub(1);
        }
    }

    /// The state tables hold a dead letter for this delivery. Repeating it changes nothing.
    pub fn handle_dead_letter(&mut self, endpoint: i64, change: Change) {
        let Some(delivery) = self
            .changes
            .get_mut(&change)
            .and_then(|r| r.deliveries.iter_mut().find(|d| d.endpoint == endpoint && d.expected))
        else {
            return;
        };
        if delivery.dead || delivery.received.is_some() {
            return;
        }
        delivery.dead = true;
        self.tallies.entry(delivery.class).or_default().dead += 1;
    }

    /// The state tables hold this delivery as deferred, and nothing sends it any more. Repeating it
    /// changes nothing.
    pub fn handle_deferred(&mut self, endpoint: i64, change: Change) {
        let record = self.changes.get_mut(&change);
        let delivery = record
            .and_then(|r| r.deliveries.iter_mut().find(|d| d.endpoint == endpoint && d.expected));
        if let Some(delivery) = delivery
            && !delivery.dead
            && !delivery.deferred
            && delivery.received.is_none()
        {
            delivery.deferred = true;
            self.tallies.entry(delivery.class).or_default().deferred += 1;
        }
    }

    /// One class's counts.
    #[must_use]
    pub fn tally(&self, class: Class) -> Tally {
        self.tallies.get(&class).cloned().unwrap_or_default()
    }

    /// Deliveries that are neither received nor known to stand in a table.
    #[must_use]
    pub fn waiting(&self, class: Class) -> u64 {
        self.tallies.get(&class).map_or(0, Tally::waiting)
    }

    /// Of all classes together.
    #[must_use]
    pub fn waiting_in_all(&self) -> u64 {
        self.tallies.values().map(Tally::waiting).sum()
    }

    /// Requests whose signature verified and that were answered with 2xx.
    #[must_use]
    pub fn verified(&self) -> u64 {
        self.verified
    }

    /// Of these, repeats of a delivery already received.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// What must not have happened. Final when the writers have stopped.
    #[must_use]
    pub fn violations(&self) -> Violations {
        let stray = |(change, record): (&Change, &Record)| {
            let unknown = |d: &&Delivery| d.received.is_some() && !d.expected;
            if self.doubtful.contains(change) {
                0
            } else {
                record.deliveries.iter().filter(unknown).count()
            }
        };
        let invented: usize = self.changes.iter().map(stray).sum();
        Violations {
            unverified: self.unverified,
            invented: u64::try_from(invented).unwrap_or(u64::MAX),
            changed_ids: self.changed_ids,
            out_of_order: self.out_of_order,
        }
    }

    /// Some deliveries that are neither received nor in a table, for a person to look into.
    #[must_use]
    pub fn missing(&self, at_most: usize) -> Vec<(i64, Change)> {
        let missing = |d: &&Delivery| d.expected && d.received.is_none() && !d.dead && !d.deferred;
        let of = |(change, record): (&Change, &Record)| -> Vec<(i64, Change)> {
            record.deliveries.iter().filter(missing).map(|d| (d.endpoint, *change)).collect()
        };
        self.changes.iter().flat_map(of).take(at_most).collect()
    }

    /// Whether this delivery is expected and not received.
    #[cfg(test)]
    pub(super) fn missing_at(&self, endpoint: i64, change: Change) -> bool {
        let missing = |d: &Delivery| d.endpoint == endpoint && d.expected && d.received.is_none();
        self.changes.get(&change).is_some_and(|record| record.deliveries.iter().any(missing))
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
            self.out_of_order += 1;
        } else {
            *latest = this;
        }
    }
}

impl Record {
    fn delivery(&mut self, endpoint: i64, class: Class) -> &mut Delivery {
        let at = self.deliveries.iter().position(|d| d.endpoint == endpoint);
        let at = at.unwrap_or_else(|| {
            self.deliveries.push(Delivery {
                endpoint,
                class,
                expected: false,
                received: None,
                dead: false,
                deferred: false,
            });
            self.deliveries.len() - 1
        });
        #[expect(clippy::indexing_slicing, reason = "found or pushed just above")]
        &mut self.deliveries[at]
    }
}

#[cfg(test)]
mod tests;
