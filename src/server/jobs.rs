//! The task that carries out what the command line asks of the leader.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::error::TaskError;
use super::sessions::{JOBS, Sessions, in_turn};
use super::tasks::{Until, Work};
use crate::server::health::Teller;
use crate::server::metrics::Metrics;
use crate::server::trouble::Part;
use walhook_core::delivery_log::Keep;
use walhook_core::event::EndpointId;
use walhook_core::id::{DeadLetterId, JobId, ReplayId};
use walhook_dispatch::dispatcher::{OperatorInput, Retry};
use walhook_process::clock::unix_us;
use walhook_state::{
    Ask, Asked, Changed, DeadLetterFilter, DeferredCursor, DeferredFilter, DiscardedPages,
    EndpointStop, Job, Logged, StateStore,
};

/// How often the table of jobs is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// How often it is looked whether the dispatcher is through with a job.
const POLL: Duration = Duration::from_millis(200);

/// Dead letters read at once: at most so many of their bodies are in memory twice.
const PAGE: i64 = 100;

/// Queues that the dispatcher is told of at once.
const QUEUES: usize = 1_000;

/// Where what a job asks of the dispatcher goes.
pub(super) struct Outlets {
    pub(super) retries: mpsc::Sender<Retry>,
    pub(super) operator: mpsc::Sender<OperatorInput>,
}

/// Carries jobs out.
///
/// A job that a crash interrupts starts over: what was delivered is gone by then, and what failed was
/// tried after the job was made.
pub(super) struct Jobs {
    pub(super) sessions: Arc<Sessions>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tell: Teller,
    pub(super) outlets: Outlets,
    /// Wakes those who carry out replays.
    pub(super) replay: Arc<Notify>,
}

impl Work for Jobs {
    const NAME: &'static str = "jobs";
    const PART: Part = Part::Jobs;
    const UNTIL: Until = Until::Drain;
    const PAUSE: Duration = EVERY;

    async fn work(&mut self) -> Result<Infallible, TaskError> {
        loop {
            let asked = in_turn(self.look()).await?;
            self.tell.works(Self::PART);
            if asked.replay {
                self.replay.notify_one();
            }
            if asked.job {
                // A job may take long: on a session of its own.
                let mut store = self.sessions.own_state(JOBS).await?;
                self.carry_out_all(&mut store).await?;
            } else {
                tokio::time::sleep(EVERY).await;
            }
        }
    }
}

impl Jobs {
    /// What there is to do.
    async fn look(&self) -> Result<Asked, TaskError> {
        let store = self.sessions.state().await?;
        let asked = store.asked().await;
        store.end();
        Ok(asked?)
    }

    async fn carry_out_all(&self, store: &mut StateStore) -> Result<(), TaskError> {
        loop {
            if let Some(replay) = store.cancelled_replay().await? {
                self.discard_replay(store, replay).await?;
            }
            let next = store.next_job().await?;
            self.tell.works(Self::PART);
            let Some(job) = next else { return Ok(()) };
            self.carry_out(store, &job).await?;
            store.finish_job(job.id, None).await?;
            tracing::info!(job = job.id.0, kind = job.ask.kind(), "carried out a job");
        }
    }

    async fn carry_out(&self, store: &mut StateStore, job: &Job) -> Result<(), TaskError> {
        let outlets = &self.outlets;
        match &job.ask {
            Ask::RetryDeadLetters(filter) => {
                feed_job(store, job.id, filter, &outlets.retries).await?;
                wait_until_done(store, job.id, filter).await?;
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
                while let Some(DiscardedPages { rows, next, logged }) =
                    store.discard_pages(job.id, filter, page.as_ref(), self.log_at_us()).await?
                {
                    self.count_lines(logged);
                    outlets.operator.send(OperatorInput::RowsChanged(rows)).await?;
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
        Ok(())
    }

    /// Removes rows that fit, and tells the dispatcher; returns how many.
    async fn discard_rows(
        &self,
        store: &mut StateStore,
        job: Option<JobId>,
        filter: &DeferredFilter,
    ) -> Result<usize, TaskError> {
        let (mut at, mut removed) = (DeferredCursor::default(), 0);
        while let Some(Changed { rows, next, logged }) =
            store.discard_deferred(job, filter, &at, self.log_at_us()).await?
        {
            self.count_lines(logged);
            removed += rows.len();
            self.outlets.operator.send(OperatorInput::RowsChanged(rows)).await?;
            at = next;
        }
        Ok(removed)
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

async fn feed_job(
    store: &StateStore,
    job: JobId,
    filter: &DeadLetterFilter,
    retries: &mpsc::Sender<Retry>,
) -> Result<(), TaskError> {
    let mut after = 0;
    loop {
        let page = store.dead_letters_to_retry(job, filter, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.id;
        for letter in page {
            let Some(endpoint) = letter.endpoint else { continue };
            let dead_letter = DeadLetterId(letter.id);
            let retry = Retry { dead_letter, job, event: letter.event, endpoint };
            retries.send(retry).await?;
        }
    }
}

/// Waits until every dead letter of the job has ended and that is stored: none is left that the job
/// has not tried. One that is discarded meanwhile is not left either.
async fn wait_until_done(
    store: &StateStore,
    job: JobId,
    filter: &DeadLetterFilter,
) -> Result<(), TaskError> {
    while !store.dead_letters_to_retry(job, filter, 0, 1).await?.is_empty() {
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
