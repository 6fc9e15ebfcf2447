//! The task that carries out what the command line asks of the leader.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout_at};

use super::error::TaskError;
use super::sessions::{JOBS, Sessions, in_turn};
use super::tasks::{Until, Work};
use crate::server::health::Teller;
use crate::server::metrics::Metrics;
use crate::server::trouble::Part;
use walhook_core::delivery_log::Keep;
use walhook_core::event::EndpointId;
use walhook_core::id::{DeadLetterId, JobId, ReplayId};
use walhook_core::persist::{QueueId, RowKey};
use walhook_dispatch::dispatcher::{OperatorInput, Retry};
use walhook_process::clock::unix_us;
use walhook_state::{
    Ask, Asked, Changed, DeadLetterFilter, DeferredCursor, DeferredFilter, DiscardedPages,
    EndpointStop, Job, Logged, RETRIES_AT_ONCE, StateStore, Uncommitted,
};

/// How often the table of jobs is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// How often it is looked whether the dispatcher is through with a job.
const POLL: Duration = Duration::from_millis(200);

/// Dead letters read at once: at most so many of their bodies are in memory twice.
const PAGE: i64 = 100;

/// Of jobs that send dead letters again and wait for others, so many are passed over before none is looked for.
const PASSED_MAX: usize = 64;

/// Queues that the dispatcher is told of at once.
const QUEUES: usize = 1_000;

/// Where what a job asks of the dispatcher goes.
pub(super) struct Outlets {
    pub(super) retries: mpsc::Sender<Retry>,
    pub(super) operator: mpsc::Sender<OperatorInput>,
}

/// Carries jobs out.
///
/// ```text
/// pause, resume, discard, retry of what is deferred ──► one after the other, at once
/// retry of dead letters ──► fed beside, some at once ──► ends when the last of them has ended
/// ```
///
/// What waits for endpoints takes as long as they take, so that nothing waits for it but what may concern the same dead
/// letters. A job that a crash interrupts starts over: what was delivered is gone by then, and what failed was tried
/// after the job was made. After a lost connection one that sends dead letters again goes on where it was: the dispatcher
/// has what it was fed.
pub(super) struct Jobs {
    sessions: Arc<Sessions>,
    metrics: Arc<Metrics>,
    tell: Teller,
    outlets: Outlets,
    /// Wakes those who carry out replays.
    replay: Arc<Notify>,
    /// Those under way that send dead letters again. They outlive a lost connection, as what the dispatcher has of them
    /// does.
    retries: Vec<RetryJob>,
}

impl Work for Jobs {
    const NAME: &'static str = "jobs";
    const PART: Part = Part::Jobs;
    const UNTIL: Until = Until::Drain;
    const PAUSE: Duration = EVERY;

    async fn work(&mut self) -> Result<Infallible, TaskError> {
        // A job may take long: on a session of its own, for as long as there are any.
        let mut own = None;
        loop {
            let asked = in_turn(self.look()).await?;
            self.tell.works(Self::PART);
            if asked.replay {
                self.replay.notify_one();
            }
            if asked.job {
                let store = match &mut own {
                    Some(store) => store,
                    None => own.insert(self.sessions.own_state(JOBS).await?),
                };
                self.carry_out_all(store).await?;
                self.go_on(store, Instant::now() + EVERY).await?;
            } else {
                self.retries.clear();
            }
            if self.retries.is_empty() {
                own = None;
                tokio::time::sleep(EVERY).await;
            }
        }
    }
}

/// A job that sends dead letters again, under way.
#[derive(Debug)]
struct RetryJob {
    id: JobId,
    kind: &'static str,
    filter: DeadLetterFilter,
    /// The last dead letter that the dispatcher has; none: it has all.
    fed_to: Option<i64>,
}

impl RetryJob {
    /// Hands the dispatcher what it has room for, until then.
    async fn feed(
        &mut self,
        store: &StateStore,
        to: &mpsc::Sender<Retry>,
        until: Instant,
    ) -> Result<(), TaskError> {
        while let Some(after) = self.fed_to
            && Instant::now() < until
        {
            let Ok(room) = timeout_at(until, to.reserve()).await else { return Ok(()) };
            drop(room?);
            // Nobody else sends: so many find room.
            let room = i64::try_from(to.capacity()).unwrap_or(PAGE).clamp(1, PAGE);
            let page = store.dead_letters_to_retry(self.id, &self.filter, after, room).await?;
            self.fed_to = page.last().map(|last| last.id);
            for letter in page {
                let Some(endpoint) = letter.endpoint else { continue };
                let dead_letter = DeadLetterId(letter.id);
                let next = Retry { dead_letter, job: self.id, event: letter.event, endpoint };
                to.send(next).await?;
            }
        }
        Ok(())
    }

    /// Whether every dead letter of the job has ended and that is stored: none is left that the job has not tried. One
    /// that is discarded meanwhile is not left either.
    async fn is_done(&self, store: &StateStore) -> Result<bool, TaskError> {
        let is_fed = self.fed_to.is_none();
        let left = || store.dead_letters_to_retry(self.id, &self.filter, 0, 1);
        Ok(is_fed && left().await?.is_empty())
    }
}

impl Jobs {
    pub(super) fn new(
        sessions: Arc<Sessions>,
        metrics: Arc<Metrics>,
        tell: Teller,
        outlets: Outlets,
        replay: Arc<Notify>,
    ) -> Self {
        Self { sessions, metrics, tell, outlets, replay, retries: Vec::new() }
    }

    /// What there is to do.
    async fn look(&self) -> Result<Asked, TaskError> {
        let store = self.sessions.state().await?;
        let asked = store.asked().await;
        store.end();
        Ok(asked?)
    }

    /// Carries out all that can be at once, and begins what takes longer.
    async fn carry_out_all(&mut self, store: &mut StateStore) -> Result<(), TaskError> {
        // Those under way, and those that wait for them.
        let mut passed: Vec<JobId> = self.retries.iter().map(|retry| retry.id).collect();
        let mut waiting: Vec<DeadLetterFilter> = Vec::new();
        loop {
            if let Some(replay) = store.cancelled_replay().await? {
                self.discard_replay(store, replay).await?;
            }
            let more = self.retries.len() < RETRIES_AT_ONCE && passed.len() < PASSED_MAX;
            let next = store.next_job_beside(&passed, more).await?;
            self.tell.works(Self::PART);
            let Some(job) = next else { return Ok(()) };
            match self.carry_out(store, &job).await? {
                None => finish(store, job.id, job.ask.kind()).await?,
                Some(retry) => {
                    passed.push(job.id);
                    // One that may concern the same ones has its turn afterwards.
                    let mut before = self.retries.iter().map(|other| &other.filter).chain(&waiting);
                    match before.any(|earlier| retry.filter.may_share(earlier)) {
                        true => waiting.push(retry.filter),
                        false => self.retries.push(retry),
                    }
                }
            }
        }
    }

    /// Feeds the dispatcher what is to be sent again, and ends what has ended, until then.
    async fn go_on(&mut self, store: &mut StateStore, until: Instant) -> Result<(), TaskError> {
        while !self.retries.is_empty() && Instant::now() < until {
            for retry in &mut self.retries {
                retry.feed(store, &self.outlets.retries, Instant::now() + POLL).await?;
            }
            let mut at = 0;
            while let Some(retry) = self.retries.get(at) {
                if retry.is_done(store).await? {
                    finish(store, retry.id, retry.kind).await?;
                    self.retries.remove(at);
                } else {
                    at += 1;
                }
            }
            if self.retries.iter().all(|retry| retry.fed_to.is_none()) {
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Carries the job out, or says what of it goes on beside others.
    async fn carry_out(
        &self,
        store: &mut StateStore,
        job: &Job,
    ) -> Result<Option<RetryJob>, TaskError> {
        let outlets = &self.outlets;
        match &job.ask {
            Ask::RetryDeadLetters(filter) => {
                let (kind, filter) = (job.ask.kind(), filter.clone());
                return Ok(Some(RetryJob { id: job.id, kind, filter, fed_to: Some(0) }));
            }
            Ask::RetryDeferred(filter) => {
                let untimed = store.begin_hurry(job.id, filter).await?;
                let mut at = DeferredCursor::default();
                while let Some(Changed { rows, next, .. }) =
                    store.hurry_deferred(job.id, filter, &at).await?
                {
                    outlets.operator.send(OperatorInput::RowsChanged(rows)).await?;
                    at = next;
                }
                // Last: what is tried may become rows of another kind, which would be counted twice.
                for queues in untimed.chunks(QUEUES) {
                    outlets.operator.send(OperatorInput::Hurry(queues.to_vec())).await?;
                }
            }
            Ask::DiscardDeferred(filter) => {
                let mut page = None;
                while let Some(gone) =
                    store.discard_pages(job.id, filter, page.as_ref(), self.log_at_us()).await?
                {
                    let DiscardedPages { next, logged, .. } =
                        self.remove(gone, |g| &g.rows).await?;
                    self.count_lines(logged);
                    page = Some(next);
                }
                self.discard_rows(store, Some(job.id), filter).await?;
            }
            Ask::PauseEndpoint(EndpointStop { endpoint, reason }) => {
                let (endpoint, reason) = (EndpointId::new(endpoint.as_str()), reason.clone());
                let input = OperatorInput::Pause { job: job.id, endpoint, reason };
                stop_or_start(store, outlets, job.id, input).await?;
            }
            Ask::ResumeEndpoint(EndpointStop { endpoint, .. }) => {
                let endpoint = EndpointId::new(endpoint.as_str());
                let input = OperatorInput::Resume { job: job.id, endpoint };
                stop_or_start(store, outlets, job.id, input).await?;
            }
        }
        Ok(None)
    }

    /// Removes rows that fit, and tells the dispatcher; returns how many.
    async fn discard_rows(
        &self,
        store: &mut StateStore,
        job: Option<JobId>,
        filter: &DeferredFilter,
    ) -> Result<usize, TaskError> {
        let (mut at, mut removed) = (DeferredCursor::default(), 0);
        while let Some(gone) = store.discard_deferred(job, filter, &at, self.log_at_us()).await? {
            let Changed { rows, next, logged } = self.remove(gone, |gone| &gone.rows).await?;
            self.count_lines(logged);
            removed += rows.len();
            at = next;
        }
        Ok(removed)
    }

    /// Commits that rows are removed. The dispatcher hears which before anything can follow from that, and that they are
    /// gone afterwards. It is not told where the connection is lost in between, and nobody knows: then it finds out.
    async fn remove<T>(
        &self,
        gone: Uncommitted<'_, T>,
        rows_of: fn(&T) -> &Vec<(QueueId, RowKey)>,
    ) -> Result<T, TaskError> {
        let rows = rows_of(gone.change()).clone();
        let operator = &self.outlets.operator;
        operator.send(OperatorInput::RowsBeingRemoved(rows.clone())).await?;
        let gone = gone.commit().await?;
        operator.send(OperatorInput::RowsRemoved(rows)).await?;
        Ok(gone)
    }

    /// Removes what is deferred under the id of a replay that was cancelled.
    async fn discard_replay(
        &self,
        store: &mut StateStore,
        replay: ReplayId,
    ) -> Result<(), TaskError> {
        let filter = DeferredFilter { replay: Some(replay.0), ..DeferredFilter::default() };
        let removed = self.discard_rows(store, None, &filter).await?;
        tracing::info!(
            replay = replay.0,
            removed,
            "removed what was deferred for a cancelled replay"
        );
        Ok(())
    }

    /// What the delivery log is to have as the time of what is discarded now; none: it keeps no such lines.
    fn log_at_us(&self) -> Option<i64> {
        (self.sessions.config.deliveries.keep != Keep::None).then(unix_us)
    }

    fn count_lines(&self, Logged { stored, dropped }: Logged) {
        self.metrics.delivery_log.stored.inc_by(stored);
        self.metrics.delivery_log.dropped.inc_by(dropped);
    }
}

/// Has the dispatcher do it, and waits until that is stored: the job ends in the same transaction.
async fn stop_or_start(
    store: &StateStore,
    outlets: &Outlets,
    job: JobId,
    input: OperatorInput,
) -> Result<(), TaskError> {
    outlets.operator.send(input).await?;
    while store.job(job).await?.is_some_and(|job| !job.finished) {
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

async fn finish(store: &mut StateStore, job: JobId, kind: &str) -> Result<(), TaskError> {
    store.finish_job(job, None).await?;
    tracing::info!(job = job.0, kind, "carried out a job");
    Ok(())
}
