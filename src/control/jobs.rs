//! What the leader is asked to do: a job is left for it, and watched.

use std::time::Duration;

use anyhow::anyhow;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::{Databases, Failure, Progress, Tell, leader_runs};
use walhook_core::event::rfc3339;
use walhook_core::id::JobId;
use walhook_state::{Ask, JobState, StateStore};

/// How often a job is looked at.
const POLL: Duration = Duration::from_millis(200);

/// What nothing is before takes less than this.
const AT_ONCE: Duration = Duration::from_secs(2);

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct JobView {
    /// Its id.
    pub(crate) id: i64,
    /// What it does, such as `deferred.retry`.
    pub(crate) kind: String,
    /// How many it concerned when it was made.
    pub(crate) total: i64,
    /// How many went well.
    pub(crate) done: i64,
    /// How many failed.
    pub(crate) failed: i64,
    /// When it was made.
    pub(crate) created_at: String,
    /// Whether the leader is through with it.
    pub(crate) finished: bool,
    /// Why it could not be carried out; null where it could, or may yet be.
    pub(crate) error: Option<String>,
}

impl From<JobState> for JobView {
    fn from(job: JobState) -> Self {
        let JobState { id, kind, total, done, failed, created_at_us, finished, error } = job;
        let created_at = rfc3339(created_at_us);
        Self { id: id.0, kind, total, done, failed, created_at, finished, error }
    }
}

/// Leaves a job and waits for its end, at most `wait`; says when no leader runs. `None`: it would concern
/// nothing, and there is none.
pub(super) async fn ask(
    databases: Databases<'_>,
    ask: &Ask,
    wait: Duration,
    tell: Tell<'_>,
) -> Result<Option<JobView>, Failure> {
    let mut state = databases.open_state().await?;
    let Some(job) = state.create_job(ask).await? else { return Ok(None) };
    note_without_leader(databases, &format!("job {} stands until one does", job.id), tell).await;
    wait_for(&state, JobView::from(job), wait, tell).await.map(Some)
}

/// Says when no leader runs now that would take up what was asked, and what that means.
pub(super) async fn note_without_leader(databases: Databases<'_>, then: &str, tell: Tell<'_>) {
    match leader_runs(databases).await {
        Ok(true) => {}
        Ok(false) => tell(Progress::Note(&format!("no leader runs now: {then}"))),
        Err(error) => {
            tell(Progress::Note(&format!("cannot tell whether a leader runs: {error:#}")));
        }
    }
}

/// What the leader carries out before something else.
#[derive(Debug)]
pub(super) struct Before {
    /// Its id.
    pub(super) id: i64,
    /// What it is, and how far.
    pub(super) what: String,
}

/// Work of the leader's that comes to an end.
pub(super) trait Awaited: Sized {
    /// Whether it has.
    fn is_finished(&self) -> bool;

    /// How far it is.
    fn progress(&self) -> Progress<'_>;

    /// What the leader does first, where this has not begun.
    async fn before(&self, state: &StateStore) -> Result<Option<Before>, Failure>;

    /// The same as it is now.
    async fn look_again(&self, state: &StateStore) -> Result<Self, Failure>;
}

impl JobView {
    /// How many it concerns, as far as is known: what came after it was made is done too.
    pub(crate) fn known_total(&self) -> i64 {
        self.total.max(self.done.saturating_add(self.failed))
    }
}

impl Awaited for JobView {
    fn is_finished(&self) -> bool {
        self.finished
    }

    fn progress(&self) -> Progress<'_> {
        Progress::Job(self)
    }

    async fn before(&self, state: &StateStore) -> Result<Option<Before>, Failure> {
        let before = match self.done + self.failed {
            0 => state.job_before(JobId(self.id)).await?,
            _ => None,
        };
        Ok(before.as_ref().map(Before::job))
    }

    async fn look_again(&self, state: &StateStore) -> Result<Self, Failure> {
        let job =
            state.job(JobId(self.id)).await?.ok_or_else(|| anyhow!("job {} is gone", self.id))?;
        Ok(job.into())
    }
}

/// Waits until the work has ended, at most `wait`, and says how far it is.
pub(super) async fn wait_for<A: Awaited>(
    state: &StateStore,
    mut work: A,
    wait: Duration,
    tell: Tell<'_>,
) -> Result<A, Failure> {
    let (began, mut told) = (Instant::now(), None);
    let deadline = began + wait;
    while !work.is_finished() && Instant::now() < deadline {
        tell(work.progress());
        if began.elapsed() >= AT_ONCE
            && let Some(before) = work.before(state).await?
            && told != Some(before.id)
        {
            told = Some(before.id);
            tell(Progress::Note(&format!("{} is before it", before.what)));
        }
        sleep(POLL.min(deadline.duration_since(Instant::now()))).await;
        work = work.look_again(state).await?;
    }
    tell(work.progress());
    tell(Progress::Ended);
    Ok(work)
}

impl Before {
    fn job(job: &JobState) -> Self {
        let JobState { id, kind, total, done, failed, .. } = job;
        // The words of the command: `dead-letters retry`.
        let kind = kind.replace('_', "-").replace('.', " ");
        Self { id: id.0, what: format!("job {id} ({kind}, {} of {total})", done + failed) }
    }
}
