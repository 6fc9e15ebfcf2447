//! The whole dispatcher in virtual time, by seed: a stream, endpoints of every temper, look-ups and
//! state transactions that take their time, and crashes.
//!
//! A world outlives the crashes: what it committed, what its endpoints received, and what the state
//! database holds. At the end every delivery that was owed is received or a stored dead letter.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use smallvec::smallvec;

use super::*;
use crate::engine::attempt::{Answer, Attempt, Failure, FailureKind, Outcome};
use crate::engine::endpoint::{Endpoint, Secret};
use crate::engine::event::Operation;
use crate::engine::persist::{DeadReason, PersistBatch};
use crate::engine::position::{EventId, Position, WalPosition};
use crate::engine::retry::RetryPolicy;

const ACCOUNTS: u32 = 12;
const TIMEOUT: Duration = Duration::from_secs(15);
const FIRST_LSN: u64 = 1_000;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Temper {
    Fast,
    Slow,
    Flaky,
    Hanging,
    Refusing,
    Gone,
}

/// One item of the stream, or a change of the endpoint table that comes with it.
#[derive(Debug, Clone)]
enum Change {
    Row(Arc<Event>),
    Endpoint { id: String, row: Option<(u32, bool)> },
}

#[derive(Debug, Clone)]
struct Txn {
    commit_lsn: Lsn,
    end_lsn: Lsn,
    xid: u32,
    changes: Vec<Change>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    Streamed,
    Answered(DeliveryId),
    LookedUp,
    Stored,
    Wake,
}

/// What survives a crash.
#[derive(Default)]
struct World {
    txns: Vec<Txn>,
    tempers: HashMap<String, Temper>,
    received: HashMap<(EventId, String), u32>,
    /// The transactions that SQL shows.
    visible: usize,
    frontier: Lsn,
    settled: Vec<(Lsn, Vec<SettledRange>)>,
    disabled: BTreeMap<EndpointId, String>,
    dead: HashMap<(EventId, String), DeadReason>,
    duplicates: u64,
    /// The last event of a row that an endpoint received for the first time.
    last_first: HashMap<(String, AccountId, u64), Position>,
    /// What the crashes so far excuse.
    excused: u64,
}

/// One process's life.
struct Life {
    dispatcher: Dispatcher,
    agenda: BinaryHeap<Reverse<(Tick, u64, Happens)>>,
    in_flight: HashMap<DeliveryId, (Attempt, Outcome)>,
    lookup: Option<(Snapshot, Vec<(AccountId, Routes)>)>,
    batch: Option<PersistBatch>,
    next_txn: usize,
    /// Outcomes in the batch that is being stored, and since it was handed out.
    storing: u64,
    unstored: u64,
}

fn event(rng: &mut SmallRng, txn: u64, n: u32) -> Arc<Event> {
    let position = Position::Wal(WalPosition {
        commit_lsn: Lsn(txn),
        change_lsn: Lsn(txn - 50 + u64::from(n / 2)),
        relation: 1,
        n: n % 2,
    });
    // A third of all events are the first account's: the whale.
    let account = if rng.random_bool(0.33) { 0 } else { rng.random_range(0..ACCOUNTS) };
    let row = rng.random_range(0u64..5) + u64::from(account) * 10 + 1;
    let mut keys = RowKeys::from_slice(&[row]);
    if rng.random_bool(0.1) {
        keys.push(row + 5);
    }
    Arc::new(Event {
        id: EventId::derive(1, &position, "t", 0),
        position,
        event_type: "t".into(),
        account: AccountId::new(account.to_string()),
        operation: Operation::Update,
        commit_time_us: 0,
        keys,
        row: Bytes::from_static(b"\"data\":{}"),
    })
}

impl World {
    fn new(rng: &mut SmallRng, transactions: u64) -> Self {
        let mut world = Self { frontier: Lsn(FIRST_LSN), ..Self::default() };
        let tempers = [
            Temper::Fast,
            Temper::Slow,
            Temper::Flaky,
            Temper::Hanging,
            Temper::Refusing,
            Temper::Gone,
        ];
        // The first transaction registers endpoints; later ones change some.
        let mut changes = Vec::new();
        for account in 0..ACCOUNTS {
            for n in 0..rng.random_range(0..3) {
                let id = format!("{account}-{n}");
                changes.push(Change::Endpoint { id: id.clone(), row: Some((account, true)) });
                let healthy = rng.random_bool(0.5);
                let temper = tempers[if healthy { 0 } else { rng.random_range(0..tempers.len()) }];
                world.tempers.insert(id, temper);
            }
        }
        for t in 0..transactions {
            let end = FIRST_LSN + 100 + t * 100;
            if t > 0 {
                let rows = if rng.random_bool(0.02) { 300 } else { rng.random_range(0..6) };
                changes.extend((0..rows).map(|n| Change::Row(event(rng, end - 10, n % 100))));
                changes.dedup_by(
                    |a, b| matches!((a, b), (Change::Row(a), Change::Row(b)) if a.id == b.id),
                );
                if rng.random_bool(0.05) && !world.tempers.is_empty() {
                    let mut ids: Vec<&String> = world.tempers.keys().collect();
                    ids.sort();
                    let id = ids[rng.random_range(0..ids.len())].clone();
                    let owner = rng.random_range(0..ACCOUNTS);
                    let row = rng.random_bool(0.7).then(|| (owner, rng.random_bool(0.8)));
                    changes.push(Change::Endpoint { id, row });
                }
            }
            world.txns.push(Txn {
                commit_lsn: Lsn(end - 10),
                end_lsn: Lsn(end),
                xid: u32::try_from(t).unwrap() + 3,
                changes: std::mem::take(&mut changes),
            });
        }
        let mut seen = HashSet::new();
        for txn in &mut world.txns {
            txn.changes.retain(|change| match change {
                Change::Row(event) => seen.insert(event.id),
                Change::Endpoint { .. } => true,
            });
        }
        world
    }

    /// The endpoint table after the transactions before `end`: id → (account, enabled).
    fn table(&self, end: usize) -> BTreeMap<String, (u32, bool)> {
        let mut table = BTreeMap::new();
        for txn in &self.txns[..end] {
            for change in &txn.changes {
                match change {
                    Change::Endpoint { id, row: Some(row) } => _ = table.insert(id.clone(), *row),
                    Change::Endpoint { id, row: None } => _ = table.remove(id),
                    Change::Row(_) => {}
                }
            }
        }
        table
    }

    fn routes(&self, end: usize, account: &AccountId) -> Routes {
        let mine =
            self.table(end).into_iter().filter(|(_, (a, _))| a.to_string() == account.as_str());
        let endpoints = mine.map(|(id, (_, enabled))| {
            Arc::new(Endpoint {
                id: EndpointId::new(id),
                account: account.clone(),
                url: String::new(),
                event_types: vec!["*".into()],
                secrets: vec![Secret::new("s")],
                enabled,
                headers: vec![],
                max_in_flight: None,
                rate_per_second: None,
                invalid: None,
            })
        });
        Routes::new(endpoints.collect(), 1.0)
    }

    fn answer(&self, rng: &mut SmallRng, endpoint: &EndpointId) -> Outcome {
        let status = |status| Ok(Answer { status, retry_after: None, excerpt: String::new() });
        let failure = |kind| Err(Failure { kind, detail: "simulated".into() });
        let ms = Duration::from_millis;
        let (result, elapsed) = match self.tempers[endpoint.as_str()] {
            Temper::Fast => (status(200), ms(rng.random_range(1..30))),
            Temper::Slow => (status(200), ms(rng.random_range(1_000..5_000))),
            Temper::Flaky if rng.random_bool(0.3) => (status(503), ms(5)),
            Temper::Flaky => (status(200), ms(20)),
            Temper::Hanging => (failure(FailureKind::Timeout), TIMEOUT),
            Temper::Refusing => (failure(FailureKind::Connect), ms(1)),
            Temper::Gone => (status(410), ms(10)),
        };
        Outcome { result, elapsed }
    }

    /// The endpoints whose row later transactions change. One that leaves its account and comes back
    /// may get an event that was dropped meanwhile, after a crash and out of order.
    fn changed(&self) -> HashSet<String> {
        let changes = self.txns.iter().skip(1).flat_map(|txn| &txn.changes);
        changes
            .filter_map(|change| match change {
                Change::Endpoint { id, .. } => Some(id.clone()),
                Change::Row(_) => None,
            })
            .collect()
    }

    /// First deliveries of one row's events come in commit order.
    fn receive(&mut self, attempt: &Attempt) {
        let (event, endpoint) = (&attempt.event, attempt.endpoint.id.to_string());
        let times = self.received.entry((event.id, endpoint.clone())).or_default();
        *times += 1;
        if *times > 1 {
            self.duplicates += 1;
            return;
        }
        for key in &event.keys {
            let row = (endpoint.clone(), event.account.clone(), *key);
            let before = self.last_first.insert(row.clone(), event.position);
            let in_order = before < Some(event.position) || self.changed().contains(&row.0);
            assert!(in_order, "{} came out of order", event.id);
        }
    }

    fn store(&mut self, batch: PersistBatch) {
        assert!(batch.frontier >= self.frontier, "the checkpoint went back");
        self.frontier = batch.frontier;
        let last = batch.settled.iter().map(|r| r.to.position.commit_lsn()).max();
        self.settled.extend(last.map(|last| (last, batch.settled)));
        self.settled.retain(|(last, _)| *last >= batch.frontier);
        for letter in batch.dead_letters {
            let endpoint = letter.endpoint.map(|e| e.to_string()).unwrap_or_default();
            self.dead.insert((letter.event.id, endpoint), letter.reason);
        }
        for d in batch.disabled {
            self.disabled.insert(d.endpoint, d.reason);
        }
        for e in batch.enabled {
            self.disabled.remove(&e);
        }
    }
}

impl Life {
    fn new(world: &World, rng: &mut SmallRng, now: Tick) -> Self {
        let settings = Settings {
            memory_limit: 1 << 20,
            fast_slots: 16,
            slow_slots: 16,
            ordering: Ordering::Row,
            settle: SettlePolicy {
                quick_attempts: 3,
                retry: RetryPolicy::new(Duration::from_millis(200), Duration::from_secs(5))
                    .unwrap(),
            },
        };
        let disabled = world.disabled.iter();
        let disabled =
            disabled.map(|(e, r)| DisableEndpoint { endpoint: e.clone(), reason: r.clone() });
        let start = Start {
            frontier: world.frontier,
            settled: world.settled.iter().flat_map(|(_, ranges)| ranges.clone()).collect(),
            disabled: disabled.collect(),
        };
        let next_txn = world.txns.iter().take_while(|t| t.end_lsn <= world.frontier).count();
        let mut life = Self {
            dispatcher: Dispatcher::new(settings, start, SmallRng::from_rng(rng)),
            agenda: BinaryHeap::new(),
            in_flight: HashMap::new(),
            lookup: None,
            batch: None,
            next_txn,
            storing: 0,
            unstored: 0,
        };
        life.plan(now, Happens::Streamed, rng);
        life
    }

    fn plan(&mut self, at: Tick, what: Happens, rng: &mut SmallRng) {
        self.agenda.push(Reverse((at, rng.random(), what)));
    }

    /// Lets the dispatcher do all that it can at this moment.
    fn poll(&mut self, world: &mut World, rng: &mut SmallRng, now: Tick) {
        while let Some(dispatch) = self.dispatcher.poll_attempt(now) {
            let attempt = dispatch.attempt;
            self.check_alone(&attempt);
            let outcome = world.answer(rng, &attempt.endpoint.id);
            let id = attempt.delivery;
            self.plan(now + outcome.elapsed, Happens::Answered(id), rng);
            self.in_flight.insert(id, (attempt, outcome));
        }
        assert!(self.in_flight.len() <= 32, "more requests than slots");
        if let Some(accounts) = self.dispatcher.poll_lookup(now) {
            // SQL may lag behind the stream, or run ahead of it.
            let lag = rng.random_range(0..3);
            let ahead = rng.random_range(0..3);
            let end = (self.next_txn + ahead).saturating_sub(lag).min(world.txns.len());
            // What one snapshot has seen, every later one sees.
            let end = end.max(world.visible);
            world.visible = end;
            let xmax = world.txns.get(end).map_or(1 << 20, |t| u64::from(t.xid));
            let snapshot = format!("{xmax}:{xmax}:").parse().unwrap();
            let routes = accounts.into_iter().map(|a| (a.clone(), world.routes(end, &a)));
            self.lookup = Some((snapshot, routes.collect()));
            self.plan(now + Duration::from_millis(rng.random_range(1..20)), Happens::LookedUp, rng);
        }
        if let Some(batch) = self.dispatcher.poll_persist(now) {
            assert!(self.batch.is_none(), "two state transactions at once");
            self.batch = Some(batch);
            self.storing = std::mem::take(&mut self.unstored);
            let slow = if rng.random_bool(0.05) { 1_500 } else { 5 };
            self.plan(now + Duration::from_millis(slow), Happens::Stored, rng);
        }
    }

    /// What happens next, and when: of the agenda, or that the dispatcher's own time has come.
    fn next(&mut self, now: Tick) -> Option<(Tick, Happens)> {
        let wake = self.dispatcher.deadline(now).map(|due| due.max(now + Duration::from_micros(1)));
        let first = self.agenda.peek().map(|Reverse((at, ..))| *at);
        if let Some(wake) = wake.filter(|wake| first.is_none_or(|at| *wake < at)) {
            return Some((wake, Happens::Wake));
        }
        self.agenda.pop().map(|Reverse((at, _, what))| (at, what))
    }

    /// No two events of one row are in flight to one endpoint.
    fn check_alone(&self, attempt: &Attempt) {
        for (other, _) in self.in_flight.values() {
            let shares = other.event.keys.iter().any(|k| attempt.event.keys.contains(k));
            let same = other.endpoint.id == attempt.endpoint.id
                && other.event.account == attempt.event.account;
            assert!(!(same && shares), "two events of one row in flight to one endpoint");
        }
    }

    fn handle(&mut self, what: Happens, world: &mut World, rng: &mut SmallRng, now: Tick) {
        match what {
            Happens::Streamed => {
                if self.dispatcher.wants_input() && self.next_txn < world.txns.len() {
                    self.stream(world, now);
                }
                if self.next_txn < world.txns.len() {
                    let next = Duration::from_micros(rng.random_range(100..20_000));
                    self.plan(now + next, Happens::Streamed, rng);
                } else {
                    let wal_end = Lsn(world.txns.last().unwrap().end_lsn.0 + 500);
                    self.dispatcher.handle_item(Item::Progress { wal_end }, now);
                }
            }
            Happens::Answered(id) => {
                let (attempt, outcome) = self.in_flight.remove(&id).unwrap();
                if outcome.delivered() {
                    world.receive(&attempt);
                }
                self.unstored += 1;
                self.dispatcher.handle_outcome(id, &outcome, now);
            }
            Happens::LookedUp => {
                let (snapshot, routes) = self.lookup.take().unwrap();
                self.dispatcher.handle_lookup(&snapshot, routes, now);
            }
            Happens::Stored => {
                world.store(self.batch.take().unwrap());
                self.dispatcher.handle_persisted(now);
                self.storing = 0;
            }
            Happens::Wake => {}
        }
    }

    fn stream(&mut self, world: &World, now: Tick) {
        let txn = &world.txns[self.next_txn];
        self.dispatcher.handle_item(Item::Begin { commit_lsn: txn.commit_lsn }, now);
        for change in &txn.changes {
            let item = match change {
                Change::Row(event) => Item::Event(Arc::clone(event)),
                Change::Endpoint { id, row } => Item::Invalidate(Invalidation {
                    xid: txn.xid,
                    scope: Scope::Endpoint {
                        endpoints: smallvec![EndpointId::new(id.as_str())],
                        accounts: row.iter().map(|(a, _)| AccountId::new(a.to_string())).collect(),
                    },
                }),
            };
            self.dispatcher.handle_item(item, now);
        }
        self.dispatcher.handle_item(Item::Commit { end_lsn: txn.end_lsn }, now);
        self.next_txn += 1;
    }

    fn is_done(&self, world: &World) -> bool {
        self.next_txn == world.txns.len()
            && self.dispatcher.frontier() > world.txns.last().unwrap().end_lsn
            && world.frontier == self.dispatcher.frontier()
    }
}

/// Runs a world with its crashes to the end, and checks what came of it.
fn simulate(seed: u64, transactions: u64, crashes: u32) -> World {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut world = World::new(&mut rng, transactions);
    let mut now = Tick(0);
    let mut left = crashes;
    let mut life = Life::new(&world, &mut rng, now);
    let end = Tick(0) + Duration::from_secs(24 * 3600);
    loop {
        if left > 0 && rng.random_bool(0.002) {
            left -= 1;
            world.excused += life.in_flight.len() as u64 + life.storing + life.unstored;
            life = Life::new(&world, &mut rng, now);
        }
        life.poll(&mut world, &mut rng, now);
        if life.is_done(&world) {
            break;
        }
        let Some((at, what)) = life.next(now) else {
            panic!("seed {seed}: nothing left to happen, and not done");
        };
        now = at;
        assert!(now < end, "seed {seed}: not done within a day");
        life.handle(what, &mut world, &mut rng, now);
    }
    let gauges = life.dispatcher.gauges();
    assert_eq!(gauges.lanes_ready + gauges.lanes_waiting, 0, "seed {seed}");
    assert_eq!(gauges.queued_bytes, (1 << 20) / 8, "seed {seed}: memory is not given back");
    world
}

/// Every delivery that was owed throughout is received, a dead letter, or its endpoint changed.
fn account_for(seed: u64, world: &World) {
    let changed = world.changed();
    let table = world.table(1);
    let mut known = HashSet::new();
    for txn in &world.txns {
        for change in &txn.changes {
            let Change::Row(event) = change else { continue };
            known.insert(event.id);
            for (endpoint, (account, _)) in &table {
                if account.to_string() != event.account.as_str() || changed.contains(endpoint) {
                    continue;
                }
                let key = (event.id, endpoint.clone());
                let ended = world.received.contains_key(&key) || world.dead.contains_key(&key);
                assert!(ended, "seed {seed}: {key:?} was lost");
                if world.tempers[endpoint] == Temper::Fast {
                    assert!(world.received.contains_key(&key), "seed {seed}: {key:?} not received");
                }
            }
        }
    }
    for (event, _) in world.received.keys().chain(world.dead.keys()) {
        assert!(known.contains(event), "seed {seed}: {event} was invented");
    }
    let (duplicates, excused) = (world.duplicates, world.excused);
    assert!(duplicates <= excused, "seed {seed}: {duplicates} duplicates, {excused} excused");
}

#[test]
fn dispatcher_loses_and_invents_nothing_by_seed() {
    for seed in 0..40 {
        account_for(seed, &simulate(seed, 300, 0));
    }
}

#[test]
fn dispatcher_loses_and_invents_nothing_across_crashes_by_seed() {
    for seed in 1_000..1_060 {
        account_for(seed, &simulate(seed, 300, 6));
    }
}

#[test]
fn simulation_is_the_same_for_the_same_seed() {
    let summary = |seed| {
        let world = simulate(seed, 200, 3);
        let mut received: Vec<_> = world.received.into_iter().collect();
        received.sort();
        (received, world.dead.len(), world.duplicates)
    };
    assert_eq!(summary(7), summary(7));
}
