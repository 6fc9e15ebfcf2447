//! A dispatcher and the little around it that a test of one behaviour needs: a stream of single events,
//! look-ups that are answered at once, state transactions that succeed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::{Dispatch, Dispatcher, EndpointChanged, Replay, ReplayInput, Settings, Start};
use crate::fixture;
use walhook_core::attempt::DeliveryId;
use walhook_core::event::{AccountId, EndpointId, Event, Item};
use walhook_core::id::ReplayId;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{
    BacklogRow, Blocked, Defer, Deferred, PersistBatch, Persisted, QueueId, Refill, Refilled,
    RowId, RowKey, Tried,
};
use walhook_core::tick::Tick;

pub(super) fn settings() -> Settings {
    Settings { fast_slots: 32, slow_slots: 32, notifies: true, ..fixture::settings() }
}

/// The event of the transaction that commits there, of a row of its own.
pub(super) fn event(account: &str, commit: u64) -> Arc<Event> {
    Arc::new(fixture::event(account, fixture::position(commit, commit - 10), &[commit]))
}

pub(super) struct Rig {
    pub(super) dispatcher: Dispatcher,
    pub(super) now: Tick,
    /// What was to be made durable so far.
    pub(super) stored: Vec<PersistBatch>,
    table: Table,
    next_commit: u64,
    /// The accounts have no endpoint any more.
    pub(super) removed: bool,
}

impl Rig {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            dispatcher: fixture::dispatcher(settings),
            now: Tick(60_000_000),
            stored: Vec::new(),
            table: Table::default(),
            next_commit: 2_000,
            removed: false,
        }
    }

    pub(super) fn wait(&mut self, duration: Duration) {
        self.now = self.now + duration;
        self.dispatcher.enter(self.now);
    }

    /// An account's transaction comes with one event, which is routed to the account's one endpoint, of the
    /// same name.
    pub(super) fn commit(&mut self, account: &str) -> Arc<Event> {
        self.commit_with(account, &[self.next_commit])
    }

    /// The same of an event with these keys.
    pub(super) fn commit_with(&mut self, account: &str, keys: &[u64]) -> Arc<Event> {
        let event = self.commit_unrouted_with(account, keys);
        self.look_up();
        event
    }

    /// The same of an event with a row of so many bytes.
    pub(super) fn commit_large(&mut self, account: &str, bytes: usize) {
        let row = Bytes::from(vec![b'x'; bytes]);
        self.commit_row(account, &[self.next_commit], Some(row));
        self.look_up();
    }

    /// The same, where nobody has looked the account's endpoint up yet.
    pub(super) fn commit_unrouted(&mut self, account: &str) -> Arc<Event> {
        self.commit_unrouted_with(account, &[self.next_commit])
    }

    fn commit_unrouted_with(&mut self, account: &str, keys: &[u64]) -> Arc<Event> {
        self.commit_row(account, keys, None)
    }

    fn commit_row(&mut self, account: &str, keys: &[u64], row: Option<Bytes>) -> Arc<Event> {
        let (commit, now) = (self.next_commit, self.now);
        self.next_commit += 100;
        let position = fixture::position(commit, commit - 10);
        let event = fixture::event(account, position, keys);
        let event = Arc::new(Event { row: row.unwrap_or(event.row.clone()), ..event });
        let items = fixture::transaction(commit, [Arc::clone(&event)]);
        let progress = Item::Progress { wal_end: Lsn(commit + 50) };
        items.into_iter().chain([progress]).for_each(|i| self.dispatcher.handle_item(i, now));
        event
    }

    pub(super) fn look_up(&mut self) {
        let Some(look_up) = self.dispatcher.poll_lookup(self.now) else { return };
        let routes = |account: &AccountId| {
            let ids = (!self.removed).then_some(account.as_str());
            fixture::routes(account, ids)
        };
        let answer = look_up.answered(fixture::snapshot(), routes);
        self.dispatcher.handle_lookup(answer, self.now);
    }

    /// All requests that may be sent now.
    pub(super) fn send(&mut self) -> Vec<Dispatch> {
        self.dispatcher.clear_next(self.now);
        self.dispatcher.fan_out(self.now);
        std::iter::from_fn(|| self.dispatcher.poll_attempt(self.now)).collect()
    }

    /// A replay, which has begun, sends an event again, to the account's endpoint.
    pub(super) fn replay(&mut self, replay: ReplayId, event: &Arc<Event>) {
        assert!(self.dispatcher.wants_replay());
        let endpoint = EndpointId::new(event.account.as_str());
        let replay = Replay { replay, event: Arc::clone(event), endpoint };
        self.dispatcher.handle_replay(ReplayInput::Deliver(replay), self.now);
        self.look_up();
    }

    pub(super) fn answer(&mut self, delivery: DeliveryId, status: u16) {
        self.dispatcher.handle_outcome(delivery, &fixture::answered(status), self.now);
    }

    /// Makes durable what is to be, until nothing is.
    pub(super) fn store(&mut self) {
        for _ in 0..10 {
            self.wait(Duration::from_millis(100));
            if !self.store_now() {
                return;
            }
        }
    }

    /// Makes durable what is to be at this moment. Whether something was.
    pub(super) fn store_now(&mut self) -> bool {
        let Some(batch) = self.dispatcher.poll_persist(self.now) else { return false };
        self.dispatcher.handle_persisted(&Persisted::default(), self.now);
        self.table.store(&batch);
        self.stored.push(batch);
        true
    }

    /// An earlier leader has left rows of the account for this endpoint.
    pub(super) fn recover_rows(&mut self, account: &str, endpoint: &str) -> QueueId {
        let (account, endpoint) = (AccountId::new(account), EndpointId::new(endpoint));
        let queue = QueueId { account, endpoint };
        let row = BacklogRow {
            queue: queue.clone(),
            blocked: Blocked::Keys(vec![]),
            rows: 3,
            failing_since_us: None,
            stopped_us: 0,
            open_until_us: None,
        };
        self.dispatcher.recover_deferred(vec![row], 0);
        queue
    }

    /// Another leader goes on from what is stored.
    pub(super) fn take_over(&mut self) {
        let mut backlog = BTreeMap::new();
        for batch in &self.stored {
            batch.backlog.iter().for_each(|row| _ = backlog.insert(row.queue.clone(), row.clone()));
            batch.backlog_gone.iter().for_each(|queue| _ = backlog.remove(queue));
        }
        let start = Start {
            frontier: self.dispatcher.frontier(),
            backlog: backlog.into_values().collect(),
            unix_us_at_zero: self.dispatcher.unix_us(self.now),
            ..Start::default()
        };
        let settings = self.dispatcher.settings.clone();
        self.dispatcher = Dispatcher::new(settings, start, SmallRng::seed_from_u64(2));
        // What comes at tick 0 would be overdue at once.
        self.now = Tick(1);
    }

    /// Reads the pages back that are wanted now; how many rows were in them.
    pub(super) fn read(&mut self) -> usize {
        let Some(wanted) = self.dispatcher.poll_refill(self.now) else { return 0 };
        let pages: Vec<Refilled> = wanted.into_iter().map(|page| self.table.page(page)).collect();
        let rows = pages.iter().map(|page| page.rows.len()).sum();
        self.dispatcher.handle_refilled(pages, self.now);
        rows
    }

    pub(super) fn changes(&mut self) -> Vec<EndpointChanged> {
        std::iter::from_fn(|| self.dispatcher.poll_endpoint_change()).collect()
    }
}

/// The table of deferred deliveries.
#[derive(Debug, Default)]
pub(super) struct Table(BTreeMap<QueueId, BTreeMap<RowKey, (Arc<Event>, Tried)>>);

impl Table {
    pub(super) fn page(&self, Refill { queue, from, rows, .. }: Refill) -> Refilled {
        let table = self.0.get(&queue).into_iter().flatten();
        let mut behind = table.filter(|(key, _)| from.as_ref().is_none_or(|from| from <= key));
        let row = |(key, (event, tried)): (&RowKey, &(Arc<Event>, Tried))| Deferred {
            key: key.clone(),
            event: Arc::clone(event),
            attempts: tried.attempts,
            first_attempt_us: tried.first_attempt_us,
            due_us: tried.due_us,
        };
        let rows = behind.by_ref().take(rows as usize).map(row).collect();
        let end = behind.next().is_none();
        Refilled { queue, rows, end }
    }

    pub(super) fn store(&mut self, batch: &PersistBatch) {
        for Defer { id, event, tried, .. } in &batch.deferred {
            let queue = self.0.entry(id.queue.clone()).or_default();
            queue.insert(id.key.clone(), (Arc::clone(event), tried.clone()));
        }
        for (id, tried) in &batch.retimed {
            self.queue(id).get_mut(&id.key).unwrap().1 = tried.clone();
        }
        let gone = batch.resolved.iter().chain(batch.died.iter().map(|(id, _)| id));
        for id in gone {
            self.queue(id).remove(&id.key).unwrap();
        }
    }

    /// Makes all rows due that have a time, as an operator's retry does. Returns which.
    pub(super) fn hurry(&mut self) -> Vec<(QueueId, RowKey)> {
        let mut hurried = Vec::new();
        for (queue, rows) in &mut self.0 {
            for (key, (_, tried)) in rows {
                if tried.due_us.take().is_some() {
                    hurried.push((queue.clone(), key.clone()));
                }
            }
        }
        hurried
    }

    fn queue(&mut self, id: &RowId) -> &mut BTreeMap<RowKey, (Arc<Event>, Tried)> {
        self.0.get_mut(&id.queue).unwrap()
    }
}
