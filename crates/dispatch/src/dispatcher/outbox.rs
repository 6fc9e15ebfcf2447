//! What is to be made durable: collected between state transactions, handed out one at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::lane::{Insertion, LEAVING_BYTES};
pub(super) use super::batch_size::ROWS_BYTES;
use super::batch_size::{BatchSize, Taken};
use super::letters::Letters;
pub(super) use super::outgoing::{Body, Dying, Leaves, Leaving, LeavingRows, RowChange};
use super::queues::QueueNo;
use super::{PERSIST_SLOW, UNPERSISTED_MAX};
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::lsn::Lsn;
use walhook_core::notice::Notices;
use walhook_core::persist::{
    DisableEndpoint, JobDone, PauseEndpoint, PersistBatch, Retried, RowId, RowKey, UnroutedKey,
};
use walhook_core::tick::Tick;
use walhook_core::waits::Cause;

/// How long outcomes wait for others before they are stored together.
const PERSIST_EVERY: Duration = Duration::from_millis(100);

/// Rows of one queue that are stored together for less each: so many are worth waiting for.
pub(super) const FULL: usize = 256;

/// How long progress alone waits: the server's keepalives, with nothing of ours in between. `/readyz`
/// of a leader whose checkpoint was not written for three times as long says no.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Progress alone that waits no longer: half a segment of WAL. Another database of the cluster may
/// write hundreds of megabytes in ten seconds, and the slot would keep them all.
const PROGRESS_BYTES: u64 = 8 << 20;

/// Of the outcomes that may not be durable so many are kept for idle accounts: a flood settles thousands while one state
/// transaction takes its time, and would leave none to others.
const KEPT_FOR_IDLE: usize = UNPERSISTED_MAX / 16;

/// Who must wait for the state database with what is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behind {
    /// Everybody, for this reason.
    All(Cause),
    /// Whoever has something in flight or much that waits: outcomes that are not durable are near their bound.
    AllButIdle,
}

impl Behind {
    /// What those wait for who must.
    pub(super) fn cause(self) -> Cause {
        match self {
            Self::All(cause) => cause,
            Self::AllButIdle => Cause::Unpersisted,
        }
    }
}

/// What waits for the next state transaction, and what is in the one under way.
#[derive(Debug)]
pub(super) struct Outbox {
    stored_frontier: Lsn,
    last_stored: Tick,
    /// How long rows may wait for others of their queues.
    patience: Duration,
    /// Something happened since the last batch was handed out that is to be stored soon.
    touched: bool,
    /// Something of ours came, or was settled, since. It is worth a batch once the frontier has moved.
    moved: bool,
    /// Outcomes that came, and are in no batch; those of letters that wait among them.
    outcomes: usize,
    letters: Letters,
    /// Rows to be inserted, in the order of their numbers.
    leaving: LeavingRows,
    /// What they, and those in the batch under way, hold in memory.
    leaving_bytes: usize,
    /// How many rows have been in `leaving` so far, and in a batch.
    insertions: Insertion,
    handed_out: Insertion,
    size: BatchSize,
    /// What the batch that begins has taken.
    taken: Taken,
    /// Rows to be changed, with the number of the insertion that must come first.
    changes: BTreeMap<RowId, (Option<Insertion>, RowChange)>,
    /// Queues of which the table `backlog` is outdated.
    outdated: Vec<QueueNo>,
    retried: Vec<Retried>,
    disabled: Vec<DisableEndpoint>,
    enabled: Vec<EndpointId>,
    paused: Vec<PauseEndpoint>,
    jobs: Vec<JobDone>,
    /// What someone is to be notified of.
    pub(super) notices: Notices,
    under_way: Option<UnderWay>,
    /// Handed out so far.
    batches: u64,
}

#[derive(Debug)]
struct UnderWay {
    started: Tick,
    frontier: Lsn,
    outcomes: usize,
    taken: Taken,
    parts: Parts,
}

/// What waits for a batch to be stored.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) dying: Vec<Dying>,
    pub(super) stored: LeavingRows,
    /// Rows that go.
    pub(super) removed: Vec<(QueueNo, RowKey)>,
    /// Rows without an endpoint that go.
    pub(super) routed: Vec<UnroutedKey>,
    /// Queues whose row in the table `backlog` goes.
    pub(super) over: Vec<QueueNo>,
}

impl Outbox {
    /// `max_hold`: how long the frontier may be held back. Of that a sixth is for patience.
    pub(super) fn new(frontier: Lsn, max_hold: Duration, notifies: bool) -> Self {
        Self {
            stored_frontier: frontier,
            last_stored: Tick(0),
            patience: max_hold / 6,
            touched: false,
            moved: false,
            outcomes: 0,
            letters: Letters::default(),
            leaving: LeavingRows::new(),
            leaving_bytes: 0,
            insertions: Insertion::default(),
            handed_out: Insertion::default(),
            size: BatchSize::new(),
            taken: Taken::default(),
            changes: BTreeMap::new(),
            outdated: Vec::new(),
            retried: Vec::new(),
            disabled: Vec::new(),
            enabled: Vec::new(),
            paused: Vec::new(),
            jobs: Vec::new(),
            notices: Notices::new(notifies),
            under_way: None,
            batches: 0,
        }
    }

    /// Something of ours moved: the next batch is not progress alone.
    pub(super) fn touch(&mut self) {
        self.touched = true;
    }

    /// Something came from the stream.
    pub(super) fn note_arrival(&mut self) {
        self.moved = true;
    }

    pub(super) fn enable(&mut self, endpoint: EndpointId) {
        self.disabled.retain(|disabled| disabled.endpoint != endpoint);
        self.paused.retain(|paused| paused.endpoint != endpoint);
        self.enabled.push(endpoint);
        self.touched = true;
    }

    /// Where it was paused, or off for another reason, until a moment ago, the same batch ends that first: what
    /// stands in the table is not replaced.
    pub(super) fn disable(&mut self, disabled: DisableEndpoint) {
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

    /// The delivery keeps its place until its dead letter is stored. `attempted`: an attempt has just ended with it,
    /// whose outcome was counted.
    pub(super) fn die(&mut self, mut dying: Dying, attempted: bool) {
        if let Body::Row { row, .. } = &dying.body
            && let Some((_, RowChange::Retime(tried))) = self.changes.remove(row)
        {
            dying.letter.history.splice(0..0, tried.history);
        }
        self.letters.push(dying, attempted);
        self.touched = true;
    }

    /// Whether more of the account may die that were not sent.
    pub(super) fn takes_letters(&self, account: &AccountId) -> bool {
        self.letters.takes(account, &self.size)
    }

    /// Rows that had to be inserted so far.
    pub(super) fn insertions(&self) -> Insertion {
        self.insertions
    }

    /// Of those, the ones that have been in a batch.
    pub(super) fn handed_out(&self) -> Insertion {
        self.handed_out
    }

    /// The number of the row that leaves next.
    pub(super) fn next_insertion(&self) -> Insertion {
        Insertion(self.insertions.0 + 1)
    }

    /// The row is to be inserted.
    pub(super) fn leave(&mut self, mut leaving: Leaving) {
        self.touched |= !leaving.is_patient();
        self.insertions.0 += 1;
        let before = self.leaving.back().map(|before| &before.held);
        if before.is_some_and(|before| Arc::ptr_eq(before, &leaving.held)) {
            leaving.bytes = LEAVING_BYTES;
        }
        self.leaving_bytes += leaving.bytes;
        self.leaving.push_back(Box::new(leaving));
    }

    /// A row that was to be inserted is not.
    pub(super) fn forget_leaving(&mut self, bytes: usize) {
        self.stored_row(bytes);
    }

    /// A row that took so many bytes is stored.
    pub(super) fn stored_row(&mut self, bytes: usize) {
        let Some(left) = self.leaving_bytes.checked_sub(bytes) else {
            panic!("{bytes} bytes of rows are stored, and {} were to be", self.leaving_bytes)
        };
        self.leaving_bytes = left;
        self.moved = true;
    }

    /// What is to be inserted, and in no batch yet.
    pub(super) fn leaving_mut(&mut self) -> impl Iterator<Item = &mut Leaving> {
        self.leaving.iter_mut().map(|leaving| &mut **leaving)
    }

    /// Rows inserted in one state transaction at most, as things are.
    pub(super) fn rows_max(&self) -> usize {
        self.size.rows()
    }

    /// What the rows that are not stored yet hold in memory.
    pub(super) fn leaving_bytes(&self) -> usize {
        self.leaving_bytes
    }

    /// The row is to be changed, after its insertion where that has a number.
    pub(super) fn change(&mut self, row: RowId, insertion: Option<Insertion>, change: RowChange) {
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

    /// What the table `backlog` says of the queue is outdated, which is stored with what it tells of.
    pub(super) fn outdated(&mut self, queue: QueueNo) {
        self.outdated.push(queue);
    }

    /// Who must wait for the state database with what is to be sent, where somebody must.
    pub(super) fn behind(&self, now: Tick) -> Option<Behind> {
        let under_way = self.under_way.as_ref();
        if under_way.is_some_and(|under_way| now.since(under_way.started) > PERSIST_SLOW) {
            return Some(Behind::All(Cause::State));
        }
        let unpersisted = self.outcomes + under_way.map_or(0, |under_way| under_way.outcomes);
        if unpersisted >= UNPERSISTED_MAX {
            return Some(Behind::All(Cause::Unpersisted));
        }
        (unpersisted >= UNPERSISTED_MAX - KEPT_FOR_IDLE).then_some(Behind::AllButIdle)
    }

    /// Whether everything that happened is stored.
    pub(super) fn is_clean(&self, frontier: Lsn) -> bool {
        self.under_way.is_none() && !self.has_work(frontier) && self.stored_frontier == frontier
    }

    /// When a batch is due, while none is under way. `may_wait`: neither memory nor the source has too
    /// much to keep for the sake of what is not stored.
    ///
    /// Rows that nothing else depends on wait for others of their queues (see [`Leaving::is_patient`]): a row alone
    /// costs several times what it costs among many.
    pub(super) fn deadline(
        &self,
        frontier: Lsn,
        may_wait: impl FnOnce() -> bool,
        stopping: bool,
    ) -> Option<Tick> {
        if self.under_way.is_some() {
            return None;
        }
        let full = self.outcomes >= UNPERSISTED_MAX - KEPT_FOR_IDLE
            || self.letters.is_full(&self.size)
            || self.leaving.len() >= self.size.rows()
            || self.leaving_bytes >= self.size.bytes();
        let has_work = self.has_work(frontier);
        let wait = if has_work && (full || stopping) {
            Duration::ZERO
        } else if self.is_urgent() {
            PERSIST_EVERY
        } else if !self.leaving.is_empty() {
            let is_worth_it = self.leaving.len() >= FULL * self.outdated.len().max(1);
            let may_wait = !is_worth_it && may_wait();
            if may_wait { self.patience.max(PERSIST_EVERY) } else { PERSIST_EVERY }
        } else if has_work {
            PERSIST_EVERY
        } else if stopping {
            return (frontier > self.stored_frontier).then_some(self.last_stored);
        } else if frontier.bytes_since(self.stored_frontier) >= PROGRESS_BYTES {
            PERSIST_EVERY
        } else {
            // Also with no progress at all: that the checkpoint can be written is worth knowing.
            PROGRESS_EVERY
        };
        Some(self.last_stored + wait)
    }

    /// The number of the batch that begins now.
    pub(super) fn begin_batch(&mut self) -> u64 {
        self.batches += 1;
        self.batches
    }

    /// The next row to be inserted, where the batch has room for it.
    pub(super) fn next_leaving(&mut self) -> Option<Box<Leaving>> {
        let bytes = self.leaving.front()?.bytes;
        if !self.size.take_row(&mut self.taken, bytes, self.letters.len() > 0) {
            return None;
        }
        self.handed_out.0 += 1;
        self.leaving.pop_front()
    }

    /// The next dead letter, where the batch has room for it. Its row, where it has one, was handed out before.
    pub(super) fn next_dying(&mut self) -> Option<Dying> {
        self.letters.next(self.handed_out, &self.size, &mut self.taken)
    }

    /// The changes of rows that were handed out, or stand in the table.
    pub(super) fn take_changes(&mut self) -> Vec<(RowId, RowChange)> {
        let mut ready = Vec::new();
        for (row, (insertion, change)) in std::mem::take(&mut self.changes) {
            if insertion > Some(self.handed_out) {
                self.changes.insert(row, (insertion, change));
            } else {
                ready.push((row, change));
            }
        }
        ready
    }

    /// The queues of which the table `backlog` is outdated.
    pub(super) fn take_outdated(&mut self) -> Vec<QueueNo> {
        std::mem::take(&mut self.outdated)
    }

    /// What remains to be handed out; the batch is under way from now on.
    pub(super) fn hand_over(&mut self, batch: &mut PersistBatch, parts: Parts, now: Tick) {
        batch.retried = std::mem::take(&mut self.retried);
        batch.notices = self.notices.hand_out();
        batch.disabled = std::mem::take(&mut self.disabled);
        batch.enabled = std::mem::take(&mut self.enabled);
        batch.paused = std::mem::take(&mut self.paused);
        batch.jobs_done = std::mem::take(&mut self.jobs);
        (self.touched, self.moved) = (false, false);
        // The batch tells of all but those whose letters wait for the next one.
        let wait = self.letters.attempted();
        let outcomes = std::mem::replace(&mut self.outcomes, wait) - wait;
        let taken = std::mem::take(&mut self.taken);
        let under_way = UnderWay { started: now, frontier: batch.frontier, outcomes, taken, parts };
        assert!(self.under_way.replace(under_way).is_none(), "two state transactions at once");
    }

    /// The batch under way is durable; it removed `purged` rows beside. Returns the checkpoint, how long that took,
    /// and what waits for it.
    ///
    /// # Panics
    /// None is under way, or the checkpoint would go back.
    pub(super) fn handle_stored(&mut self, purged: u64, now: Tick) -> (Lsn, Duration, Parts) {
        let Some(UnderWay { started, frontier, taken, parts, .. }) = self.under_way.take() else {
            panic!("a state transaction is stored that was not handed out")
        };
        assert!(frontier >= self.stored_frontier, "the checkpoint went back");
        (self.stored_frontier, self.last_stored) = (frontier, now);
        let took = now.since(started);
        self.size.adapt(took, taken, usize::try_from(purged).unwrap_or(usize::MAX));
        (frontier, took, parts)
    }

    /// Whether there is more to be stored than the source's progress.
    fn has_work(&self, frontier: Lsn) -> bool {
        self.is_urgent()
            || !self.leaving.is_empty()
            || !self.outdated.is_empty()
            || self.moved && frontier > self.stored_frontier
    }

    /// Whether something is to be stored that does not wait for others.
    fn is_urgent(&self) -> bool {
        self.touched
            || self.outcomes > 0
            || self.letters.len() > 0
            || !self.changes.is_empty()
            || !self.retried.is_empty()
            || !self.disabled.is_empty()
            || !self.enabled.is_empty()
            || !self.paused.is_empty()
            || !self.jobs.is_empty()
    }
}

#[cfg(test)]
mod tests;
