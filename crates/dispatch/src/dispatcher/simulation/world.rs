//! What outlives the crashes of a simulation: what was committed, what the endpoints received, and what
//! the state database holds.

mod receivers;
mod state;
mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::SmallRng;

use walhook_core::endpoint::{Endpoint, Routes, Secret};
use walhook_core::event::{AccountId, EndpointId, Event, Operation, RowKeys};
use walhook_core::id::{JobId, ReplayId};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{
    BacklogRow, DeadReason, QueueId, ReplayCounts, RowKey, SettledRange, Tried,
};
use walhook_core::position::{EventId, Position, WalPosition};
use walhook_core::tick::Tick;

use super::gaps::Gap;
use super::outages::UnroutedTable;
pub(super) use receivers::Temper;
pub(super) use trace::Trace;

pub(super) const ACCOUNTS: u32 = 12;
pub(super) const TIMEOUT: Duration = Duration::from_secs(15);
pub(super) const FIRST_LSN: u64 = 1_000;
/// What the wall clock says at tick 0.
pub(super) const UNIX_US: i64 = 1_700_000_000_000_000;

/// One item of the stream, or a change of the endpoint table that comes with it.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Row(Arc<Event>),
    Endpoint { id: String, row: Option<(u32, bool)> },
}

#[derive(Debug, Clone)]
pub(super) struct Txn {
    pub(super) commit_lsn: Lsn,
    pub(super) end_lsn: Lsn,
    pub(super) xid: u32,
    pub(super) changes: Vec<Change>,
}

/// What survives a crash.
#[derive(Default)]
pub(super) struct World {
    pub(super) trace: Trace,
    pub(super) txns: Vec<Txn>,
    pub(super) tempers: BTreeMap<String, Temper>,
    pub(super) received: BTreeMap<(EventId, String), u32>,
    /// The transactions that SQL shows.
    pub(super) visible: usize,
    pub(super) frontier: Lsn,
    pub(super) settled: Vec<(Lsn, Vec<SettledRange>)>,
    pub(super) disabled: BTreeMap<EndpointId, String>,
    /// Since when an operator has paused them.
    pub(super) paused: BTreeMap<EndpointId, i64>,
    /// What an operator asks for until it is stored: the job, the endpoint, whether to pause it.
    pub(super) job: Option<(JobId, EndpointId, bool)>,
    /// When the operator resumes what was paused last.
    pub(super) resume_at: Option<(Tick, EndpointId)>,
    pub(super) pauses_left: u32,
    /// Requests that were given up.
    pub(super) aborts: u32,
    pub(super) dead: BTreeMap<(EventId, String), DeadReason>,
    pub(super) deferred: BTreeMap<QueueId, BTreeMap<RowKey, (Arc<Event>, Tried)>>,
    pub(super) backlog: BTreeMap<QueueId, BacklogRow>,
    /// Rows that were ever deferred.
    pub(super) deferrals: u64,
    pub(super) duplicates: u64,
    /// What all that was delivered had waited for.
    pub(super) waited: walhook_core::waits::Waits,
    /// The last event of a row that an endpoint received for the first time.
    pub(super) last_first: BTreeMap<(String, AccountId, u64), Position>,
    /// Bytes that the table may take, and the most that it took.
    pub(super) bound: Option<u64>,
    pub(super) largest: u64,
    pub(super) gaps: Vec<Gap>,
    /// The dead letters that are rows, and those that are counted instead.
    pub(super) letters: BTreeMap<QueueId, Vec<(EventId, Lsn)>>,
    pub(super) beyond: Vec<Gap>,
    /// Events without an endpoint.
    pub(super) unrouted: UnroutedTable,
    /// What the crashes so far excuse.
    pub(super) excused: u64,
    /// Between two transactions of the stream.
    pub(super) pause_us: Range<u64>,
    /// What replays count, and what became of their rows.
    pub(super) replays: BTreeMap<ReplayId, ReplayCounts>,
    pub(super) late: BTreeMap<ReplayId, ReplayCounts>,
    /// Rows that an operator has discarded: what is in memory of them still asks for changes.
    pub(super) discarded: BTreeSet<(QueueId, RowKey)>,
    /// What replays were received of, and how often.
    pub(super) replayed: BTreeMap<(EventId, String), u32>,
    /// Dead letters that nobody has looked at.
    pub(super) died: Vec<(EventId, QueueId, DeadReason)>,
}

/// An event of one of an account's `rows`, or of two.
pub(super) fn event(rng: &mut SmallRng, txn: u64, n: u32, rows: u64) -> Arc<Event> {
    let position = Position::Wal(WalPosition {
        commit_lsn: Lsn(txn),
        change_lsn: Lsn(txn - 50 + u64::from(n / 2)),
        relation: 1,
        n: n % 2,
    });
    // A third of all events are the first account's: the whale.
    let account = if rng.random_bool(0.33) { 0 } else { rng.random_range(0..ACCOUNTS) };
    let row = rng.random_range(0..rows) + u64::from(account) * 2 * rows + 1;
    let mut keys = RowKeys::from_slice(&[row]);
    if rng.random_bool(0.1) {
        keys.push(row + rows);
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
    pub(super) fn new(rng: &mut SmallRng, transactions: u64) -> Self {
        let (frontier, pause_us) = (Lsn(FIRST_LSN), 100..20_000);
        let mut world = Self { frontier, pause_us, ..Self::default() };
        let tempers = |rng: &mut SmallRng| match rng.random_range(0..10) {
            0 => Temper::Slow,
            1 | 2 => Temper::Flaky,
            3 => Temper::Hanging,
            4 => Temper::Refusing,
            5 => Temper::Gone,
            6 | 7 => Temper::Back(Tick(rng.random_range(0..60_000_000))),
            _ => Temper::Picky,
        };
        // The first transaction registers endpoints; later ones change some.
        let mut changes = Vec::new();
        for account in 0..ACCOUNTS {
            for n in 0..rng.random_range(0..3) {
                let id = format!("{account}-{n}");
                changes.push(Change::Endpoint { id: id.clone(), row: Some((account, true)) });
                let healthy = rng.random_bool(0.5);
                let temper = if healthy { Temper::Fast } else { tempers(rng) };
                world.tempers.insert(id, temper);
            }
        }
        for t in 0..transactions {
            let end = FIRST_LSN + 100 + t * 100;
            if t > 0 {
                let rows = if rng.random_bool(0.02) { 300 } else { rng.random_range(0..6) };
                changes.extend((0..rows).map(|n| Change::Row(event(rng, end - 10, n % 100, 5))));
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
        let mut seen = BTreeSet::new();
        for txn in &mut world.txns {
            txn.changes.retain(|change| match change {
                Change::Row(event) => seen.insert(event.id),
                Change::Endpoint { .. } => true,
            });
        }
        world
    }

    /// The endpoint table after the transactions before `end`: id → (account, enabled).
    pub(super) fn table(&self, end: usize) -> BTreeMap<String, (u32, bool)> {
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

    pub(super) fn routes(&self, end: usize, account: &AccountId) -> Routes {
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

    /// The endpoints whose row later transactions change: what they are owed depends on when they are
    /// looked up.
    pub(super) fn changed(&self) -> BTreeSet<String> {
        let changes = self.txns.iter().skip(1).flat_map(|txn| &txn.changes);
        changes
            .filter_map(|change| match change {
                Change::Endpoint { id, .. } => Some(id.clone()),
                Change::Row(_) => None,
            })
            .collect()
    }

    /// Now and then an operator pauses an endpoint, often for longer than retries last, and resumes it.
    pub(super) fn operate(&mut self, rng: &mut SmallRng, now: Tick) {
        if self.job.is_some() {
            return;
        }
        if let Some((_, endpoint)) = self.resume_at.take_if(|(at, _)| *at <= now) {
            self.job = Some((JobId(i64::from(self.pauses_left) * 2), endpoint, false));
        } else if self.resume_at.is_none() && self.pauses_left > 0 && rng.random_bool(0.005) {
            let mut ids: Vec<&String> = self.tempers.keys().collect();
            ids.sort();
            let endpoint = EndpointId::new(ids[rng.random_range(0..ids.len())].as_str());
            self.job = Some((JobId(i64::from(self.pauses_left) * 2 - 1), endpoint.clone(), true));
            self.pauses_left -= 1;
            let lasts = Duration::from_secs(rng.random_range(0..2_000));
            self.resume_at = Some((now + lasts, endpoint));
        }
    }
}

/// Every delivery that was owed throughout is received, a dead letter, or its endpoint changed.
pub(super) fn account_for(seed: u64, world: &World) {
    let changed = world.changed();
    let table = world.table(1);
    let mut known = BTreeSet::new();
    for txn in &world.txns {
        for change in &txn.changes {
            let Change::Row(event) = change else { continue };
            known.insert(event.id);
            for (endpoint, (account, _)) in &table {
                if account.to_string() != event.account.as_str() || changed.contains(endpoint) {
                    continue;
                }
                let key = (event.id, endpoint.clone());
                let in_gap = world.is_in_gap(event, endpoint);
                let received = world.received.contains_key(&key);
                let in_gap = in_gap || world.unrouted.given_up.contains(&event.id);
                let ended = received || world.dead.contains_key(&key) || in_gap;
                assert!(ended, "seed {seed}: {key:?} was lost");
                if matches!(world.tempers[endpoint], Temper::Fast | Temper::Back(_)) {
                    assert!(received || in_gap, "seed {seed}: {key:?} not received");
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
