//! What is to be made durable: collected between state transactions, handed out one at a time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::super::lane::DELIVERY_BYTES;
pub(super) use super::outgoing::{Body, Dying, Leaves, Leaving, RowChange};
use super::queues::QueueNo;
use super::{Dispatcher, PERSIST_SLOW, UNPERSISTED_MAX};
use walhook_core::event::EndpointId;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{
    Defer, DisableEndpoint, JobDone, PauseEndpoint, PersistBatch, Persisted, Retried, Routed,
    RowId, RowKey, UnroutedKey,
};
use walhook_core::tick::Tick;

/// How long outcomes wait for others before they are stored together.
const PERSIST_EVERY: Duration = Duration::from_millis(100);

/// How long progress alone waits: the server's keepalives, with nothing of ours in between. `/readyz`
/// of a leader whose checkpoint was not written for three times as long says no.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Progress alone that waits no longer: half a segment of WAL. Another database of the cluster may
/// write hundreds of megabytes in ten seconds, and the slot would keep them all.
const PROGRESS_BYTES: u64 = 8 << 20;

/// Dead letters in one state transaction: bounds its size and its time.
const DEAD_LETTERS_MAX: usize = 1_000;

/// Rows inserted in one state transaction at most, and at least where it has been slow: sending stops
/// while one takes longer than [`PERSIST_SLOW`].
const ROWS_MAX: usize = 5_000;
const ROWS_MIN: usize = 100;

/// Bytes of events in one state transaction, but one event at least.
pub(super) const ROWS_BYTES: usize = 8 << 20;

/// A state transaction that takes longer makes the next one smaller.
const ROWS_SLOW: Duration = Duration::from_millis(300);

/// What waits for the next state transaction, and what is in the one under way.
#[derive(Debug)]
pub(super) struct Durable {
    stored_frontier: Lsn,
    last_stored: Tick,
    /// Something happened since the last batch was handed out.
    touched: bool,
    outcomes: usize,
    dying: VecDeque<Dying>,
    /// Rows to be inserted, in the order of their numbers.
    leaving: VecDeque<Leaving>,
    /// What they, and those in the batch under way, hold in memory.
    leaving_bytes: usize,
    /// How many rows have been in `leaving` so far, and in a batch.
    insertions: u64,
    handed_out: u64,
    rows_max: usize,
    /// Rows to be changed, with the number of the insertion that must come first.
    changes: BTreeMap<RowId, (u64, RowChange)>,
    /// Queues of which the table `backlog` is outdated.
    outdated: Vec<QueueNo>,
    retried: Vec<Retried>,
    disabled: Vec<DisableEndpoint>,
    enabled: Vec<EndpointId>,
    paused: Vec<PauseEndpoint>,
    jobs: Vec<JobDone>,
    under_way: Option<UnderWay>,
    /// Handed out so far.
    batches: u64,
}

#[derive(Debug)]
struct UnderWay {
    started: Tick,
    frontier: Lsn,
    outcomes: usize,
    dying: Vec<Dying>,
    stored: Vec<Leaving>,
    removed: Vec<(QueueNo, RowKey)>,
    /// Rows without an endpoint that go.
    routed: Vec<UnroutedKey>,
    /// Queues whose row in the table `backlog` goes.
    over: Vec<QueueNo>,
}

impl Durable {
    pub(super) fn new(frontier: Lsn) -> Self {
        Self {
            stored_frontier: frontier,
            last_stored: Tick(0),
            touched: false,
            outcomes: 0,
            dying: VecDeque::new(),
            leaving: VecDeque::new(),
            leaving_bytes: 0,
            insertions: 0,
            handed_out: 0,
            rows_max: ROWS_MAX,
            changes: BTreeMap::new(),
            outdated: Vec::new(),
            retried: Vec::new(),
            disabled: Vec::new(),
            enabled: Vec::new(),
            paused: Vec::new(),
            jobs: Vec::new(),
            under_way: None,
            batches: 0,
        }
    }

    /// Something of ours moved: the next batch is not progress alone.
    pub(super) fn touch(&mut self) {
        self.touched = true;
    }

    pub(super) fn enable(&mut self, endpoint: EndpointId) {
        self.disabled.retain(|disabled| disabled.endpoint != endpoint);
        self.paused.retain(|paused| paused.endpoint != endpoint);
        self.enabled.push(endpoint);
        self.touched = true;
    }

    pub(super) fn disable(&mut self, disabled: DisableEndpoint) {
        self.enabled.retain(|endpoint| *endpoint != disabled.endpoint);
        self.disabled.push(disabled);
        self.touched = true;
    }

    pub(super) fn pause(&mut self, paused: PauseEndpoint) {
        self.disabled.retain(|disabled| disabled.endpoint != paused.endpoint);
        self.enabled.retain(|endpoint| *endpoint != paused.endpoint);
        self.paused.push(paused);
        self.touched = true;
    }

    pub(super) fn end_job(&mut self, job: JobDone) {
        self.jobs.push(job);
        self.touched = true;
    }

    pub(super) fn count_outcome(&mut self) {
        self.outcomes += 1;
        self.touched = true;
    }

    pub(super) fn retried(&mut self, retried: Retried) {
        self.retried.push(retried);
        self.touched = true;
    }

    /// The delivery keeps its place until its dead letter is stored.
    pub(super) fn die(&mut self, mut dying: Dying) {
        if let Body::Row { row, .. } = &dying.body
            && let Some((_, RowChange::Retime(tried))) = self.changes.remove(row)
        {
            dying.letter.history.splice(0..0, tried.history);
        }
        self.dying.push_back(dying);
        self.touched = true;
    }

    /// Rows that had to be inserted so far.
    pub(super) fn insertions(&self) -> u64 {
        self.insertions
    }

    /// Of those, the ones that have been in a batch.
    pub(super) fn handed_out(&self) -> u64 {
        self.handed_out
    }

    /// The number of the row that leaves next.
    pub(super) fn next_insertion(&self) -> u64 {
        self.insertions + 1
    }

    /// The row is to be inserted.
    pub(super) fn leave(&mut self, mut leaving: Leaving) {
        self.insertions += 1;
        let before = self.leaving.back().map(|before| &before.held);
        if before.is_some_and(|before| Arc::ptr_eq(before, &leaving.held)) {
            leaving.bytes = DELIVERY_BYTES;
        }
        self.leaving_bytes += leaving.bytes;
        self.leaving.push_back(leaving);
        self.touched = true;
    }

    /// A row that was to be inserted is not.
    pub(super) fn forget_leaving(&mut self, bytes: usize) {
        self.leaving_bytes = self.leaving_bytes.saturating_sub(bytes);
        self.touched = true;
    }

    /// What is to be inserted, and in no batch yet.
    pub(super) fn leaving_mut(&mut self) -> impl Iterator<Item = &mut Leaving> {
        self.leaving.iter_mut()
    }

    /// Rows inserted in one state transaction at most, as things are.
    pub(super) fn rows_max(&self) -> usize {
        self.rows_max
    }

    /// What the rows that are not stored yet hold in memory.
    pub(super) fn leaving_bytes(&self) -> usize {
        self.leaving_bytes
    }

    /// The row is to be changed, after its insertion where that has a number.
    pub(super) fn change(&mut self, row: RowId, insertion: u64, change: RowChange) {
        let before = self.changes.remove(&row);
        let change = match (before, change) {
            (Some((_, RowChange::Retime(before))), RowChange::Retime(mut tried)) => {
                tried.history.splice(0..0, before.history);
                RowChange::Retime(tried)
            }
            (_, change) => change,
        };
        self.changes.insert(row, (insertion, change));
        self.touched = true;
    }

    /// What the table `backlog` says of the queue is outdated.
    pub(super) fn outdated(&mut self, queue: QueueNo) {
        self.outdated.push(queue);
        self.touched = true;
    }

    /// Whether sending must wait for the state database.
    pub(super) fn is_behind(&self, now: Tick) -> bool {
        let under_way = self.under_way.as_ref();
        let unpersisted = self.outcomes + self.dying.len() + under_way.map_or(0, UnderWay::len);
        unpersisted >= UNPERSISTED_MAX
            || under_way.is_some_and(|under_way| now.since(under_way.started) > PERSIST_SLOW)
    }

    /// Whether everything that happened is stored.
    pub(super) fn is_clean(&self, frontier: Lsn) -> bool {
        self.under_way.is_none() && !self.has_work() && self.stored_frontier == frontier
    }

    /// When a batch is due, while none is under way.
    pub(super) fn deadline(&self, frontier: Lsn, stopping: bool) -> Option<Tick> {
        if self.under_way.is_some() {
            return None;
        }
        let full = self.outcomes >= UNPERSISTED_MAX
            || self.dying.len() >= DEAD_LETTERS_MAX
            || self.leaving.len() >= self.rows_max
            || self.leaving_bytes >= ROWS_BYTES;
        if self.has_work() {
            let at_once = full || stopping;
            Some(if at_once { self.last_stored } else { self.last_stored + PERSIST_EVERY })
        } else if stopping {
            (frontier > self.stored_frontier).then_some(self.last_stored)
        } else if frontier.bytes_since(self.stored_frontier) >= PROGRESS_BYTES {
            Some(self.last_stored + PERSIST_EVERY)
        } else {
            // Also with no progress at all: that the checkpoint can be written is worth knowing.
            Some(self.last_stored + PROGRESS_EVERY)
        }
    }

    /// Batches become smaller when they take long, and grow again.
    fn adapt(&mut self, took: Duration, rows: usize) {
        if took > ROWS_SLOW && rows > 0 {
            self.rows_max = (rows / 2).max(ROWS_MIN);
        } else if rows >= self.rows_max {
            self.rows_max = (self.rows_max * 2).min(ROWS_MAX);
        }
    }

    fn has_work(&self) -> bool {
        self.touched
            || self.outcomes > 0
            || !self.dying.is_empty()
            || !self.leaving.is_empty()
            || !self.changes.is_empty()
            || !self.retried.is_empty()
            || !self.disabled.is_empty()
            || !self.enabled.is_empty()
            || !self.paused.is_empty()
            || !self.jobs.is_empty()
    }
}

impl UnderWay {
    fn len(&self) -> usize {
        self.outcomes + self.dying.len()
    }
}

impl Dispatcher {
    /// What is to be made durable now, in one transaction; answered by
    /// [`Dispatcher::handle_persisted`]. One at a time.
    pub(super) fn poll_persist(&mut self, now: Tick) -> Option<PersistBatch> {
        if self.failures.is_due(now) {
            self.durable.touch();
        }
        let frontier = self.progress.frontier();
        if self.durable.deadline(frontier, self.door.is_stopping()).is_none_or(|due| due > now) {
            return None;
        }
        self.durable.batches += 1;
        let number = self.durable.batches;
        let mut batch = PersistBatch { number, frontier, ..PersistBatch::default() };
        let stored = self.hand_out_rows(&mut batch);
        let dying = self.hand_out_dying(&mut batch);
        let mut removed = self.hand_out_changes(&mut batch);
        removed.extend(dying.iter().filter_map(|dying| match &dying.body {
            Body::Row { row, queue, .. } => Some((*queue, row.key.clone())),
            Body::Unroutable { .. } | Body::Delivery { .. } | Body::Unrouted { .. } => None,
        }));
        self.hand_out_unseen(&mut batch);
        let mut routed = self.hand_out_shelves(&mut batch);
        routed.extend(dying.iter().filter_map(|dying| match &dying.body {
            Body::Unrouted { row, .. } => Some(row.clone()),
            Body::Unroutable { .. } | Body::Delivery { .. } | Body::Row { .. } => None,
        }));
        self.hand_out_gaps(&mut batch, self.durable.rows_max.saturating_sub(stored.len()));
        let over = self.hand_out_backlogs(&mut batch, now);
        batch.settled = self.progress.hand_out();
        batch.settled.extend(self.hand_out_joins());
        self.hand_out_failing(&mut batch, now);
        let durable = &mut self.durable;
        batch.retried = std::mem::take(&mut durable.retried);
        self.replays.hand_out(&mut batch);
        batch.notices = self.notices.hand_out();
        batch.disabled = std::mem::take(&mut durable.disabled);
        batch.enabled = std::mem::take(&mut durable.enabled);
        batch.paused = std::mem::take(&mut durable.paused);
        batch.jobs_done = std::mem::take(&mut durable.jobs);
        durable.touched = false;
        durable.under_way = Some(UnderWay {
            started: now,
            frontier,
            outcomes: std::mem::take(&mut durable.outcomes),
            dying,
            stored,
            removed,
            routed,
            over,
        });
        Some(batch)
    }

    /// The rows that are to be inserted, as many as fit.
    fn hand_out_rows(&mut self, batch: &mut PersistBatch) -> Vec<Leaving> {
        let mut stored = Vec::new();
        let mut bytes = 0;
        while let Some(leaving) = self.durable.leaving.front() {
            bytes += leaving.bytes;
            if stored.len() >= self.durable.rows_max || (bytes > ROWS_BYTES && !stored.is_empty()) {
                break;
            }
            let Some(leaving) = self.durable.leaving.pop_front() else { break };
            self.durable.handed_out += 1;
            let Some(leaving) = self.unless_cancelled(leaving) else { continue };
            let Defer { id, event, .. } = &leaving.row;
            let endpoint = &id.queue.endpoint;
            // With its row, not after it: else a crash in between would send it once more.
            if let Some(txn) = leaving.txn {
                self.progress.settle_with_batch(&id.queue, leaving.ordinal, event, txn);
            }
            let skipped = matches!(leaving.kind, Leaves::Skipped(_));
            self.replays.count_left(id.key.replay, skipped);
            if let Some(row) = &leaving.routed {
                let routed = Routed { row: row.clone(), to: Some(endpoint.clone()) };
                match batch.routed.last_mut().filter(|last| last.row == *row) {
                    Some(last) => *last = routed,
                    None => batch.routed.push(routed),
                }
            }
            match leaving.kind {
                Leaves::Unrouted => {
                    batch.unrouted.push(Arc::clone(event));
                    self.shelved_handed_out(&leaving.row.id.queue.account);
                }
                Leaves::Skipped(queue) => self.count_skipped(queue, event.position.commit_lsn()),
                Leaves::Deferred(queue) => {
                    self.queues.with_row(queue).backlog.handed_out();
                    batch.deferred.push(leaving.row.clone());
                    self.outdate(queue);
                }
            }
            stored.push(leaving);
        }
        stored
    }

    fn hand_out_dying(&mut self, batch: &mut PersistBatch) -> Vec<Dying> {
        let mut dying: Vec<Dying> = Vec::new();
        while dying.len() < DEAD_LETTERS_MAX
            && let Some(first) = self.durable.dying.front()
        {
            let is_inserted = match &first.body {
                Body::Row { insertion, .. } | Body::Unrouted { insertion, .. } => {
                    *insertion <= self.durable.handed_out
                }
                Body::Unroutable { .. } | Body::Delivery { .. } => true,
            };
            if !is_inserted {
                break;
            }
            let Some(next) = self.durable.dying.pop_front() else { break };
            let letter = next.letter.clone();
            self.notices.add_letter(&letter);
            match &next.body {
                Body::Unroutable { .. } => batch.dead_letters.push(letter),
                Body::Unrouted { row, .. } => {
                    batch.dead_letters.push(letter);
                    let row = row.clone();
                    self.unrouted_died(&row, batch);
                }
                Body::Delivery { txn, ordinal, queue, .. } => {
                    let queue = self.queues.id(*queue);
                    self.progress.settle_with_batch(queue, *ordinal, &letter.event, *txn);
                    batch.dead_letters.push(letter);
                }
                Body::Row { row, queue, .. } => {
                    self.take_out(*queue);
                    batch.died.push((row.clone(), letter));
                }
            }
            dying.push(next);
        }
        dying
    }

    /// Changes of rows that are there, or in this batch. Returns those that go.
    fn hand_out_changes(&mut self, batch: &mut PersistBatch) -> Vec<(QueueNo, RowKey)> {
        let handed_out = self.durable.handed_out;
        let mut removed = Vec::new();
        for (row, (insertion, change)) in std::mem::take(&mut self.durable.changes) {
            if insertion > handed_out {
                self.durable.changes.insert(row, (insertion, change));
                continue;
            }
            match change {
                RowChange::Retime(tried) => batch.retimed.push((row, tried)),
                RowChange::Remove | RowChange::Drop => {
                    let queue = self.queues.named(&row.queue);
                    self.take_out(queue);
                    let part = match change {
                        RowChange::Drop => &mut batch.dropped,
                        RowChange::Remove | RowChange::Retime(_) => &mut batch.resolved,
                    };
                    removed.push((queue, row.key.clone()));
                    part.push(row);
                }
            }
        }
        removed
    }

    fn take_out(&mut self, queue: QueueNo) {
        self.queues.with_row(queue).backlog.taken_out();
        self.outdate(queue);
    }

    /// Returns the queues whose row in the table `backlog` goes.
    fn hand_out_backlogs(&mut self, batch: &mut PersistBatch, now: Tick) -> Vec<QueueNo> {
        let mut over = Vec::new();
        for queue in std::mem::take(&mut self.durable.outdated) {
            self.queues.with_row(queue).is_stale = false;
            let (id, detour) = (self.queues.id(queue), self.queues.rows_of(queue));
            if detour.backlog.is_over() {
                batch.backlog_gone.push(id.clone());
                over.push(queue);
            } else {
                batch.backlog.push(detour.as_row(id, now, self.unix_us_at_zero));
            }
        }
        over
    }

    /// The batch handed out last is durable. Returns the flush LSN: what the source may forget.
    pub(super) fn handle_persisted(&mut self, persisted: &Persisted, now: Tick) -> Lsn {
        let Some(under_way) = self.durable.under_way.take() else {
            debug_assert!(false, "nothing was to be persisted");
            return self.durable.stored_frontier;
        };
        assert!(under_way.frontier >= self.durable.stored_frontier, "the checkpoint went back");
        self.durable.stored_frontier = under_way.frontier;
        self.durable.last_stored = now;
        let purged = persisted.purged.iter().chain(&persisted.letters_purged);
        let unrouted = persisted.unrouted_purged.iter().map(|purged| purged.rows);
        let purged = purged.map(|purged| purged.rows).chain(unrouted).sum::<u64>();
        let rows = under_way.stored.len() + usize::try_from(purged).unwrap_or(usize::MAX);
        self.durable.adapt(now.since(under_way.started), rows);
        for leaving in under_way.stored {
            self.handle_row_stored(leaving, now);
        }
        let mut queues = under_way.over;
        for (queue, key) in under_way.removed {
            if let Some(detour) = self.queues.deferred_mut(queue) {
                detour.backlog.removed(&key);
            }
            if queues.last() != Some(&queue) {
                queues.push(queue);
            }
        }
        self.handle_unseen_stored();
        self.handle_rows_routed(under_way.routed, now);
        for dying in under_way.dying {
            self.durable.touch();
            self.bury(dying, now);
        }
        self.handle_purged(&persisted.purged, now);
        self.handle_unrouted_purged(&persisted.unrouted_purged, now);
        self.handle_letters_purged(&persisted.letters_purged, now);
        self.end_suspensions(now);
        for queue in queues {
            self.look_after(queue, now);
        }
        self.progress.handle_stored(self.durable.stored_frontier);
        self.router.handle_checkpoint(self.durable.stored_frontier);
        self.end_joins(self.durable.stored_frontier, now);
        self.durable.stored_frontier
    }

    fn handle_row_stored(&mut self, leaving: Leaving, now: Tick) {
        self.durable.touch();
        self.durable.leaving_bytes = self.durable.leaving_bytes.saturating_sub(leaving.bytes);
        let Leaving { row, held, txn, kind, counted, .. } = leaving;
        if let Some(txn) = txn {
            self.progress.complete(txn);
        }
        self.free(held, counted);
        match kind {
            Leaves::Unrouted => self.shelved_stored(&row.id.queue.account),
            Leaves::Deferred(queue) => {
                self.queues.with_row(queue).backlog.stored(&row.id.key);
                self.look_after(queue, now);
            }
            Leaves::Skipped(queue) => self.look_after(queue, now),
        }
    }
}
