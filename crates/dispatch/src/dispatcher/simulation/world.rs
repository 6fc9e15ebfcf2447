//! What outlives the crashes of a simulation: what was committed, what the endpoints received, and what
//! the state database holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::dispatcher::Effect;
use crate::fixture;
use walhook_core::attempt::{Attempt, FailureKind, Outcome};
use walhook_core::endpoint::{Endpoint, Routes, Secret};
use walhook_core::event::{AccountId, EndpointId, Event, Operation, RowKeys};
use walhook_core::id::{JobId, ReplayId};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{
    BacklogRow, DeadReason, Deferred, PersistBatch, Persisted, QueueId, Refill, Refilled,
    ReplayCounts, RowId, RowKey, SettledRange, Tried,
};
use walhook_core::position::{EventId, Position, WalPosition};
use walhook_core::tick::Tick;

use super::gaps::Gap;
use super::outages::UnroutedTable;

pub(super) const ACCOUNTS: u32 = 12;
pub(super) const TIMEOUT: Duration = Duration::from_secs(15);
pub(super) const FIRST_LSN: u64 = 1_000;
/// What the wall clock says at tick 0.
pub(super) const UNIX_US: i64 = 1_700_000_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Temper {
    Fast,
    Slow,
    Flaky,
    Hanging,
    Refusing,
    Gone,
    /// Refuses until then.
    Back(Tick),
    /// Refuses some rows, always.
    Picky,
    /// Refuses from the one moment to the other, and a few events always.
    Down(Tick, Tick),
    /// Refuses every other hour.
    Flapping,
    /// Refuses some events twice, and asks for a wait: sensible, none at all, or absurd.
    Asking,
}

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

/// All that dispatchers asked for, as a digest: where that is wanted, for it takes more time than what is simulated.
pub(super) struct Trace {
    hasher: Option<DefaultHasher>,
    pub(super) effects: u64,
}

impl Default for Trace {
    fn default() -> Self {
        let is_wanted = std::env::var_os("WALHOOK_TRACE").is_some();
        Self { hasher: is_wanted.then(DefaultHasher::new), effects: 0 }
    }
}

impl Trace {
    pub(super) fn wanted() -> Self {
        Self { hasher: Some(DefaultHasher::new()), effects: 0 }
    }

    fn write(&mut self, now: Tick, effect: &dyn Debug) {
        let Some(hasher) = &mut self.hasher else { return };
        self.effects += 1;
        let text = format!("{now:?} {effect:?}");
        if std::env::var_os("WALHOOK_TRACE").is_some_and(|v| v == "all") {
            println!("{text}");
        }
        hasher.write(text.as_bytes());
    }

    pub(super) fn note(&mut self, now: Tick, effect: &Effect) {
        if self.hasher.is_none() {
            return;
        }
        match effect {
            Effect::Send(d) => self.write(now, &("send", &d.attempt, d.waited)),
            Effect::Abort(id) => self.write(now, &("abort", id)),
            Effect::LookUp(accounts) => self.write(now, &("look up", accounts)),
            Effect::ReadDeferred(pages) => self.write(now, &("read deferred", pages)),
            Effect::ReadUnrouted(pages) => self.write(now, &("read unrouted", pages)),
            Effect::Store(batch) => self.note_batch(now, batch),
            Effect::Flush(_)
            | Effect::Settled(_)
            | Effect::Report(_)
            | Effect::StateFull { .. } => {}
        }
    }

    fn note_batch(&mut self, now: Tick, batch: &PersistBatch) {
        let mut batch = batch.clone();
        batch.settled.sort_by(|a, b| {
            (&a.account, &a.endpoint, &a.from).cmp(&(&b.account, &b.endpoint, &b.from))
        });
        batch.unrouted_accounts.sort_by(|a, b| a.account.cmp(&b.account));
        for account in &mut batch.unrouted_accounts {
            account.settled.sort_by(|a, b| (&a.endpoint, &a.from).cmp(&(&b.endpoint, &b.from)));
        }
        self.write(now, &batch);
    }

    /// None where it was not wanted.
    pub(super) fn digest(&self) -> Option<u64> {
        self.hasher.as_ref().map(Hasher::finish)
    }
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

/// One event in forty: where many are refused for days, what stands behind them never ends.
fn is_chosen(event: &Event, which: u64) -> bool {
    let Position::Wal(position) = event.position;
    position.change_lsn.0 % 41 == which
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

    pub(super) fn answer(&self, rng: &mut SmallRng, attempt: &Attempt, now: Tick) -> Outcome {
        let status = fixture::answered;
        let failure = |kind| Outcome::failed(kind, "simulated", Duration::ZERO);
        let ms = Duration::from_millis;
        let (outcome, elapsed) = match self.tempers[attempt.endpoint.id.as_str()] {
            // We have nothing to send it with: now and then, and in spells of a second.
            _ if rng.random_bool(0.005) || (now.0 / 1_000_000) % 53 == 11 => {
                (failure(FailureKind::Local), Duration::ZERO)
            }
            Temper::Back(since) if now < since => (status(500), ms(3)),
            Temper::Down(from, until) if (from..until).contains(&now) => (status(500), ms(3)),
            Temper::Down(..) if is_chosen(&attempt.first().event, 7) => (status(422), ms(2)),
            Temper::Flapping if (now.0 / 3_600_000_000).is_multiple_of(2) => (status(502), ms(3)),
            Temper::Asking
                if is_chosen(&attempt.first().event, 0) && attempt.first().number < 3 =>
            {
                let asks = [0, 600, 6 * 3_600, 10 * 365 * 86_400];
                let asks = asks[rng.random_range(0..asks.len())];
                let retry_after = Some(Duration::from_secs(asks));
                (fixture::answer(429, retry_after, ""), ms(4))
            }
            Temper::Picky if attempt.first().event.keys[0].is_multiple_of(3) => {
                (status(422), ms(2))
            }
            Temper::Fast
            | Temper::Back(_)
            | Temper::Picky
            | Temper::Down(..)
            | Temper::Flapping
            | Temper::Asking => (status(200), ms(rng.random_range(1..30))),
            Temper::Slow => (status(200), ms(rng.random_range(1_000..5_000))),
            Temper::Flaky if rng.random_bool(0.3) => (status(503), ms(5)),
            Temper::Flaky => (status(200), ms(20)),
            Temper::Hanging => (failure(FailureKind::Timeout), TIMEOUT),
            Temper::Refusing => (failure(FailureKind::Connect), ms(1)),
            Temper::Gone => (status(410), ms(10)),
        };
        Outcome { elapsed, ..outcome }
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

    /// First deliveries of one row's events come in commit order.
    pub(super) fn receive(&mut self, attempt: &Attempt) {
        let (event, endpoint) = (&attempt.first().event, attempt.endpoint.id.to_string());
        if attempt.first().asked.is_some() {
            *self.replayed.entry((event.id, endpoint)).or_default() += 1;
            return;
        }
        let times = self.received.entry((event.id, endpoint.clone())).or_default();
        *times += 1;
        if *times > 1 {
            self.duplicates += 1;
            return;
        }
        for key in &event.keys {
            let row = (endpoint.clone(), event.account.clone(), *key);
            let before = self.last_first.insert(row.clone(), event.position);
            let in_order = before < Some(event.position);
            let (id, position) = (event.id, event.position);
            assert!(in_order, "{id} at {position:?} came to {row:?} after {before:?}");
        }
    }

    pub(super) fn store(&mut self, batch: PersistBatch) -> Persisted {
        assert!(batch.frontier >= self.frontier, "the checkpoint went back");
        self.frontier = batch.frontier;
        let unrouted_purged = self.unrouted.store(&batch);
        let last = batch.settled.iter().map(|r| r.to.position.commit_lsn()).max();
        self.settled.extend(last.map(|last| (last, batch.settled)));
        self.settled.retain(|(last, _)| *last >= batch.frontier);
        for letter in batch.dead_letters {
            let endpoint = letter.endpoint.clone().unwrap_or_else(|| EndpointId::new(""));
            let account = letter.event.account.clone();
            self.store_letter(QueueId { account, endpoint }, &letter);
        }
        self.store_rows(batch.deferred.into_iter().map(|d| (d.id, d.event, d.tried)));
        for row in batch.resolved {
            if self.take_row(&row) {
                self.count_late(row.key.replay, |counts| counts.done += 1);
            }
        }
        for row in batch.dropped {
            if self.take_row(&row) {
                self.count_late(row.key.replay, |counts| counts.dropped += 1);
            }
        }
        self.replays.extend(batch.replayed);
        for (row, tried) in batch.retimed {
            if self.discarded.contains(&(row.queue.clone(), row.key.clone())) {
                continue;
            }
            let table = self.deferred.get_mut(&row.queue).unwrap();
            table.get_mut(&row.key).unwrap().1 = tried;
        }
        for (row, letter) in batch.died {
            if self.take_row(&row) {
                self.count_late(row.key.replay, |counts| counts.failed += 1);
                self.store_letter(row.queue, &letter);
            }
        }
        for row in batch.backlog {
            let stored = self.deferred.get(&row.queue).map_or(0, BTreeMap::len);
            // Until it has walked its queue anew, where somebody else has removed some.
            let exact = self.discarded.is_empty();
            assert!(!exact || row.rows == stored as u64, "the backlog miscounts its rows");
            self.backlog.insert(row.queue.clone(), row);
        }
        for queue in batch.backlog_gone {
            assert!(!self.deferred.contains_key(&queue), "rows are left and nobody knows");
            self.backlog.remove(&queue);
        }
        assert!(
            !self.discarded.is_empty()
                || self
                    .deferred
                    .keys()
                    .eq(self.backlog.keys().filter(|q| self.deferred.contains_key(*q)))
        );
        for d in batch.disabled {
            self.disabled.insert(d.endpoint, d.reason);
        }
        for e in batch.enabled {
            self.disabled.remove(&e);
            self.paused.remove(&e);
        }
        for p in batch.paused {
            self.disabled.remove(&p.endpoint);
            self.paused.insert(p.endpoint, p.since_us);
        }
        self.job.take_if(|(job, ..)| batch.jobs_done.iter().any(|done| done.job == *job));
        self.store_gaps(batch.gaps);
        let purged = batch.purges.into_iter().map(|purge| self.purge(purge)).collect();
        let letters_purged = batch.letter_purges.into_iter();
        let letters_purged = letters_purged.map(|purge| self.purge_letters(purge)).collect();
        Persisted { purged, letters_purged, unrouted_purged, ..Persisted::default() }
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

    fn store_rows(&mut self, rows: impl Iterator<Item = (RowId, Arc<Event>, Tried)>) {
        for (id, event, tried) in rows {
            self.deferrals += 1;
            let before = self.deferred.entry(id.queue).or_default().insert(id.key, (event, tried));
            assert!(before.is_none(), "deferred twice");
        }
    }

    /// What became of a row of a replay.
    pub(super) fn count_late(
        &mut self,
        replay: Option<ReplayId>,
        add: impl FnOnce(&mut ReplayCounts),
    ) {
        if let Some(replay) = replay {
            add(self.late.entry(replay).or_default());
        }
    }

    /// False: an operator has discarded it meanwhile.
    fn take_row(&mut self, row: &RowId) -> bool {
        if self.discarded.contains(&(row.queue.clone(), row.key.clone())) {
            return false;
        }
        let table = self.deferred.get_mut(&row.queue).expect("the queue has rows");
        table.remove(&row.key).expect("the row is there");
        if table.is_empty() {
            self.deferred.remove(&row.queue);
        }
        true
    }

    pub(super) fn refill(&self, pages: &[Refill]) -> Vec<Refilled> {
        let read = |page: &Refill| {
            let from = |key: &RowKey| page.from.as_ref().is_none_or(|from| from <= key);
            let table = self.deferred.get(&page.queue).into_iter().flatten();
            let mut behind = table.filter(|(key, _)| from(key));
            let row = |(key, (event, tried)): (&RowKey, &(Arc<Event>, Tried))| Deferred {
                key: key.clone(),
                event: Arc::clone(event),
                attempts: tried.attempts,
                first_attempt_us: tried.first_attempt_us,
                due_us: tried.due_us,
            };
            let rows = behind.by_ref().take(page.rows as usize).map(row).collect();
            Refilled { queue: page.queue.clone(), rows, end: behind.next().is_none() }
        };
        pages.iter().map(read).collect()
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
