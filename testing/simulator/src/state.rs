//! A model of the state tables: what one state transaction does to them, statement by statement in the order
//! of the store's, and what a new leader reads of them.
//!
//! It is held against the real store by the same batches: see the test `state_model_equals_postgresql`.

mod gaps;
mod letters;
mod rows;
mod unrouted;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use walhook_core::event::{AccountId, EndpointId, Event};
use walhook_core::id::{DeadLetterId, Epoch, JobId, ReplayId};
use walhook_core::lsn::Lsn;
use walhook_core::notice::NoticeKind;
use walhook_core::persist::{
    AttemptRecord, BacklogRow, DeadReason, DeferReason, DisableEndpoint, EndpointError, EventKey,
    Joined, LETTERS_MAX, PauseEndpoint, PersistBatch, Persisted, QueueId, ReplayCounts, RowKey,
    SettledRange, Tried, UnroutedAccount,
};
use walhook_core::position::EventId;
use walhook_core::settled::last_commit_lsn;
use walhook_dispatch::dispatcher::Start;

pub use gaps::{Gap, Kind as GapKind};

/// A row of the table `deferred`.
#[derive(Debug, Clone, PartialEq)]
pub struct DeferredRow {
    /// Its event.
    pub event: Arc<Event>,
    /// Why it was deferred.
    pub reason: DeferReason,
    /// What was tried; its history is what the row tells, the last ten.
    pub tried: Tried,
}

/// A row of the table `dead_letters`.
#[derive(Debug, Clone, PartialEq)]
pub struct Letter {
    /// In the order in which they were inserted.
    pub id: DeadLetterId,
    /// Its event.
    pub event: Arc<Event>,
    /// Why.
    pub reason: DeadReason,
    /// For a person.
    pub detail: String,
    /// Attempts.
    pub attempts: u32,
    /// The last answer's status.
    pub last_status: Option<u16>,
    /// The last ten attempts.
    pub history: Vec<AttemptRecord>,
    /// The job that tried it last.
    pub last_job: Option<JobId>,
}

/// A row of `unrouted`: the event, and the last endpoint that it is routed to.
pub type UnroutedRow = (Arc<Event>, Option<EndpointId>);

/// Names a dead letter: event, endpoint (empty for none), replay.
pub type LetterKey = (EventId, EndpointId, Option<ReplayId>);

/// That an endpoint is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped {
    /// By walhook.
    Disabled(String),
    /// By an operator, since when.
    Paused(String, i64),
}

/// A job of the table `jobs`, as far as the leader's transactions count in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Job {
    /// Whether it has ended.
    pub finished: bool,
    /// What became of what it asked for.
    pub done: i64,
    /// Likewise.
    pub failed: i64,
    /// Of a replay: what the leader counted.
    pub counts: ReplayCounts,
    /// Of a replay: what became of its rows.
    pub late: ReplayCounts,
}

/// The writer's epoch is not the table's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fenced;

/// The tables of one pipeline.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The lease.
    pub epoch: Epoch,
    /// The checkpoint.
    pub frontier: Lsn,
    /// `settled`: appended rows, each with its last commit.
    pub settled: Vec<(Lsn, Vec<SettledRange>)>,
    /// `deferred`, by queue and place.
    pub deferred: BTreeMap<QueueId, BTreeMap<RowKey, DeferredRow>>,
    /// `backlog`.
    pub backlog: BTreeMap<QueueId, BacklogRow>,
    /// `dead_letters`.
    pub letters: BTreeMap<LetterKey, Letter>,
    /// How many of them each queue has.
    pub letter_counts: BTreeMap<QueueId, u32>,
    /// `gaps`.
    pub gaps: Vec<Gap>,
    /// `unrouted`, with the last endpoint that each is routed to.
    pub unrouted: BTreeMap<AccountId, BTreeMap<EventKey, UnroutedRow>>,
    /// `unrouted_accounts`.
    pub unrouted_accounts: BTreeMap<AccountId, UnroutedAccount>,
    /// `unrouted_joined`.
    pub joined: BTreeMap<EndpointId, Lsn>,
    /// `unseen`.
    pub unseen: BTreeSet<u32>,
    /// `endpoint_state`.
    pub stopped: BTreeMap<EndpointId, Stopped>,
    /// `endpoint_errors`.
    pub errors: BTreeMap<QueueId, EndpointError>,
    /// `notices`: how often each happened.
    pub notices: BTreeMap<(EndpointId, NoticeKind), u64>,
    /// `jobs`.
    pub jobs: BTreeMap<JobId, Job>,
    /// Transactions of which what cannot be read is given up: records of the table `gaps` that say so.
    pub left_out: BTreeSet<Lsn>,
    /// Letters of a queue that are rows, at most.
    pub letters_max: u32,
    next_letter: i64,
}

impl State {
    /// Empty tables; a queue's dead letters beyond `letters_max` rows are counted.
    #[must_use]
    pub fn new(frontier: Lsn, letters_max: u32) -> Self {
        Self { frontier, letters_max, ..Self::default() }
    }

    /// As the real tables are set up.
    #[must_use]
    pub fn set_up(frontier: Lsn) -> Self {
        Self::new(frontier, LETTERS_MAX)
    }

    /// A new leader takes the lease.
    pub fn take_lease(&mut self) -> Epoch {
        self.epoch.0 += 1;
        self.epoch
    }

    /// One state transaction.
    ///
    /// # Errors
    /// [`Fenced`]: nothing was written.
    pub fn persist(&mut self, epoch: Epoch, batch: &PersistBatch) -> Result<Persisted, Fenced> {
        if epoch != self.epoch {
            return Err(Fenced);
        }
        Ok(self.write(epoch, batch))
    }

    /// What it writes, whoever writes it.
    pub fn write(&mut self, epoch: Epoch, batch: &PersistBatch) -> Persisted {
        self.frontier = self.frontier.max(batch.frontier);
        if let Some(last) = last_commit_lsn(&batch.settled) {
            self.settled.push((last, batch.settled.clone()));
        }
        self.settled.retain(|(last, _)| *last >= batch.frontier);
        let step = (epoch, batch.number << 20);
        let mut persisted = self.write_rows(step, batch);
        persisted.unrouted_purged = self.write_unrouted(batch);
        persisted
    }

    fn write_rows(&mut self, step: (Epoch, u64), batch: &PersistBatch) -> Persisted {
        let mut beyond = self.insert_letters(batch.dead_letters.iter(), step);
        self.mark_failed(&batch.retried);
        self.insert_deferred(&batch.deferred);
        self.retime(&batch.retimed);
        beyond.extend(self.die(&batch.died, (step.0, step.1 + 1)));
        for row in &batch.resolved {
            self.remove_row(row, |late| late.done += 1);
        }
        for row in &batch.dropped {
            self.remove_row(row, |late| late.dropped += 1);
        }
        self.remove_delivered(&batch.retried);
        for (replay, counts) in &batch.replayed {
            if let Some(job) = self.jobs.get_mut(&JobId::from(*replay)) {
                job.counts = *counts;
            }
        }
        for row in &batch.backlog {
            self.backlog.insert(row.queue.clone(), row.clone());
        }
        for queue in &batch.backlog_gone {
            self.backlog.remove(queue);
        }
        self.stop_and_start(batch);
        for error in &batch.errors {
            self.errors.insert(error.queue.clone(), error.clone());
        }
        for queue in &batch.errors_gone {
            self.errors.remove(queue);
        }
        for notice in &batch.notices {
            *self.notices.entry((notice.endpoint.clone(), notice.kind)).or_default() +=
                notice.count;
        }
        self.store_gaps(batch.frontier, &batch.gaps);
        let purged = batch.purges.iter().map(|purge| self.purge(purge)).collect();
        let letters_purged = batch.letter_purges.iter();
        let letters_purged = letters_purged.map(|purge| self.purge_letters(purge)).collect();
        Persisted { purged, letters_purged, beyond, ..Persisted::default() }
    }

    fn stop_and_start(&mut self, batch: &PersistBatch) {
        for endpoint in &batch.enabled {
            self.stopped.remove(endpoint);
        }
        for DisableEndpoint { endpoint, reason } in &batch.disabled {
            let disabled = || Stopped::Disabled(reason.clone());
            self.stopped.entry(endpoint.clone()).or_insert_with(disabled);
        }
        for PauseEndpoint { endpoint, reason, since_us } in &batch.paused {
            self.stopped.insert(endpoint.clone(), Stopped::Paused(reason.clone(), *since_us));
        }
        for done in &batch.jobs_done {
            if let Some(job) = self.jobs.get_mut(&done.job).filter(|job| !job.finished) {
                (job.finished, job.done) = (true, done.done);
            }
        }
    }

    /// What a new leader starts with.
    #[must_use]
    pub fn recover(&self, unix_us_at_zero: i64) -> Start {
        let mut start = Start {
            frontier: self.frontier,
            settled: self.settled.iter().flat_map(|(_, ranges)| ranges.clone()).collect(),
            backlog: self.backlog.values().cloned().collect(),
            suspended: self.suspended(),
            unrouted: self.unrouted_accounts.values().cloned().collect(),
            unseen: self.unseen.iter().copied().collect(),
            failing: self.errors.values().cloned().collect(),
            unix_us_at_zero,
            ..Start::default()
        };
        let joined =
            |(endpoint, at): (&EndpointId, &Lsn)| Joined { endpoint: endpoint.clone(), at: *at };
        start.joined = self.joined.iter().map(joined).collect();
        for (endpoint, stopped) in &self.stopped {
            let endpoint = endpoint.clone();
            match stopped {
                Stopped::Disabled(reason) => {
                    start.disabled.push(DisableEndpoint { endpoint, reason: reason.clone() });
                }
                Stopped::Paused(reason, since_us) => {
                    let (reason, since_us) = (reason.clone(), *since_us);
                    start.paused.push(PauseEndpoint { endpoint, reason, since_us });
                }
            }
        }
        start
    }

    /// The events whose bodies are kept: those of deferred rows and dead letters.
    #[must_use]
    pub fn bodies(&self) -> BTreeMap<EventId, Arc<Event>> {
        let rows = self.deferred.values().flat_map(BTreeMap::values).map(|row| &row.event);
        let letters = self.letters.values().map(|letter| &letter.event);
        rows.chain(letters).map(|event| (event.id, Arc::clone(event))).collect()
    }

    /// Whether something of the event stands durably for the endpoint: a row, a letter or a gap; or for
    /// whichever endpoints its account has.
    #[must_use]
    pub fn holds(&self, id: EventId, queue: &QueueId, key: &EventKey) -> bool {
        let row = RowKey { event: key.clone(), replay: None };
        let at = key.position.commit_lsn();
        self.deferred.get(queue).is_some_and(|rows| rows.contains_key(&row))
            || self.has_letter(id, &queue.endpoint)
            || self.unrouted.get(&queue.account).is_some_and(|rows| rows.contains_key(key))
            || self.is_in_gap(at, &queue.account, &queue.endpoint)
    }

    /// Whether a dead letter tells of it; one without endpoint tells of all of them.
    #[must_use]
    pub fn has_letter(&self, event: EventId, endpoint: &EndpointId) -> bool {
        [endpoint.clone(), EndpointId::new("")]
            .into_iter()
            .any(|endpoint| self.letters.contains_key(&(event, endpoint, None)))
    }
}
