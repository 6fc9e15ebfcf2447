//! Jobs: what the command line asks of the running leader.

use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::unfinished::{UNFINISHED, unfinished_job};
use super::{
    DeadLetterFilter, DeferredFilter, Param, REPLAY_JOB, Scope, StateError, StateStore, fence,
    replay_discards, replays::cancelled_and_waiting, text,
};
use walhook_core::id::JobId;
use walhook_postgres::op::{EQ, LE, NE};

/// A job that is not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What is to be done.
    pub ask: Ask,
}

/// What a job asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Send these dead letters again.
    RetryDeadLetters(DeadLetterFilter),
    /// Try these deferred rows as soon as their turn comes.
    RetryDeferred(DeferredFilter),
    /// Remove these deferred rows for good.
    DiscardDeferred(DeferredFilter),
    /// Send nothing to this endpoint for a while.
    PauseEndpoint(EndpointStop),
    /// Send to this endpoint again.
    ResumeEndpoint(EndpointStop),
}

/// Which endpoint is to be stopped or started. The `args` of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointStop {
    /// Its id.
    pub endpoint: String,
    /// Why, for a person.
    #[serde(default)]
    pub reason: String,
}

impl Ask {
    const RETRY_DEAD_LETTERS: &str = "dead_letters.retry";
    const RETRY_DEFERRED: &str = "deferred.retry";
    const DISCARD_DEFERRED: &str = "deferred.discard";
    const PAUSE_ENDPOINT: &str = "endpoints.pause";
    const RESUME_ENDPOINT: &str = "endpoints.resume";

    /// The kinds that a leader carries out.
    const KINDS: [&str; 5] = [
        Self::RETRY_DEAD_LETTERS,
        Self::RETRY_DEFERRED,
        Self::DISCARD_DEFERRED,
        Self::PAUSE_ENDPOINT,
        Self::RESUME_ENDPOINT,
    ];

    /// The word in the table's column `kind`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::RetryDeadLetters(_) => Self::RETRY_DEAD_LETTERS,
            Self::RetryDeferred(_) => Self::RETRY_DEFERRED,
            Self::DiscardDeferred(_) => Self::DISCARD_DEFERRED,
            Self::PauseEndpoint(_) => Self::PAUSE_ENDPOINT,
            Self::ResumeEndpoint(_) => Self::RESUME_ENDPOINT,
        }
    }

    /// Whether it is carried out only when this earlier job is through. One that sends dead letters again takes as long as
    /// their endpoints, and holds up only others that may send the same ones.
    #[must_use]
    pub fn waits_for(&self, earlier: &Self) -> bool {
        match (self, earlier) {
            (Self::RetryDeadLetters(filter), Self::RetryDeadLetters(other)) => {
                filter.may_share(other)
            }
            (_, Self::RetryDeadLetters(_)) => false,
            (_, _) => true,
        }
    }

    fn args(&self) -> serde_json::Value {
        match self {
            Self::RetryDeadLetters(filter) => serde_json::json!(filter),
            Self::RetryDeferred(filter) | Self::DiscardDeferred(filter) => {
                serde_json::json!(filter)
            }
            Self::PauseEndpoint(stop) | Self::ResumeEndpoint(stop) => serde_json::json!(stop),
        }
    }

    fn read(kind: &str, args: &str) -> Result<Self, String> {
        let unreadable = |error| format!("the arguments cannot be read: {error}");
        match kind {
            Self::RETRY_DEAD_LETTERS => serde_json::from_str(args).map(Self::RetryDeadLetters),
            Self::RETRY_DEFERRED => serde_json::from_str(args).map(Self::RetryDeferred),
            Self::DISCARD_DEFERRED => serde_json::from_str(args).map(Self::DiscardDeferred),
            Self::PAUSE_ENDPOINT => serde_json::from_str(args).map(Self::PauseEndpoint),
            Self::RESUME_ENDPOINT => serde_json::from_str(args).map(Self::ResumeEndpoint),
            _ => return Err(format!("there is no job of the kind {kind}")),
        }
        .map_err(unreadable)
    }
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobState {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub kind: String,
    /// How many it concerned when it was made.
    pub total: i64,
    /// How many went well.
    pub done: i64,
    /// How many failed.
    pub failed: i64,
    /// When it was made: microseconds since 1970-01-01 UTC.
    pub created_at_us: i64,
    /// Whether the leader is through with it.
    pub finished: bool,
    /// Why it could not be carried out, where it could not.
    pub error: Option<String>,
}

/// What the leader is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// To carry out a job, or to remove what a cancelled replay has left.
    pub job: bool,
    /// To go on with a replay.
    pub replay: bool,
}

impl StateStore {
    /// The oldest job that is not finished, beside these, which are under way or wait for others. `retries`: whether one
    /// that sends dead letters again may be next.
    ///
    /// One whose arguments cannot be read is finished with an error, and passed over.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn next_job_beside(
        &mut self,
        others: &[JobId],
        retries: bool,
    ) -> Result<Option<Job>, StateError> {
        let others: Vec<i64> = others.iter().map(|id| id.0).collect();
        let kinds: Vec<&str> = Ask::KINDS
            .into_iter()
            .filter(|kind| retries || *kind != Ask::RETRY_DEAD_LETTERS)
            .collect();
        loop {
            let Scope { s, pipeline, .. } = &self.scope;
            let sql = format!(
                "SELECT id, kind, args::pg_catalog.text FROM {s}.jobs
                 WHERE {UNFINISHED} AND kind {EQ} ANY ($2) AND id {NE} ALL ($3)
                 ORDER BY pipeline, id LIMIT 1"
            );
            let params: [Param<'_>; 3] =
                [(pipeline, Type::TEXT), (&kinds, Type::TEXT_ARRAY), (&others, Type::INT8_ARRAY)];
            let row = self.connection.query_typed_opt(&sql, &params).await?;
            let Some(row) = row else { return Ok(None) };
            let id = JobId(row.try_get(0)?);
            match Ask::read(row.try_get(1)?, &text::read(row.try_get(2)?)) {
                Ok(ask) => return Ok(Some(Job { id, ask })),
                Err(error) => self.finish_job(id, Some(&error)).await?,
            }
        }
    }

    /// Whether there is something for [`StateStore::next_job_beside`] or [`StateStore::cancelled_replay`] to
    /// return, and whether there is for [`StateStore::next_replay`]: one statement, for it is asked every
    /// second.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn asked(&self) -> Result<Asked, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT EXISTS (SELECT FROM {s}.jobs
                 WHERE pipeline {EQ} $1 AND kind {EQ} ANY ($2) AND finished_at IS NULL)
                 OR EXISTS (SELECT FROM {s}.jobs
                 WHERE pipeline {EQ} $1 AND kind {EQ} $3 AND {}),
                 EXISTS (SELECT FROM {s}.jobs
                 WHERE pipeline {EQ} $1 AND kind {EQ} $3 AND finished_at IS NULL)",
            cancelled_and_waiting()
        );
        let kinds: &[&str] = &Ask::KINDS;
        let params: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (&kinds, Type::TEXT_ARRAY), (&REPLAY_JOB, Type::TEXT)];
        let row = self.connection.query_typed_one(&sql, &params).await?;
        Ok(Asked { job: row.try_get(0)?, replay: row.try_get(1)? })
    }

    /// Marks a job as finished, well or with an error; a second time changes nothing.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn finish_job(&mut self, id: JobId, error: Option<&str>) -> Result<(), StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let epoch = self.led_epoch()?;
        let tx = self.connection.transaction().await?;
        fence(&tx, &self.scope, epoch).await?;
        let sql = format!(
            "UPDATE {s}.jobs SET finished_at = pg_catalog.now(), error = $3 WHERE ctid {EQ} {}",
            unfinished_job(s, "$2")
        );
        tx.execute_typed(
            &sql,
            &[(pipeline, Type::TEXT), (&id.0, Type::INT8), (&error, Type::TEXT)],
        )
        .await?;
        replay_discards::forget_finished(&tx, &self.scope, id).await?;
        Ok(tx.commit().await?)
    }

    /// Asks the leader; returns the job, or `None` when it would concern nothing. A retry of dead
    /// letters concerns those that have an endpoint.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn create_job(&mut self, ask: &Ask) -> Result<Option<JobState>, StateError> {
        let total = match ask {
            Ask::RetryDeadLetters(filter) => self.count_retryable(filter).await?,
            Ask::RetryDeferred(filter) | Ask::DiscardDeferred(filter) => {
                self.count_deferred(filter).await?
            }
            Ask::PauseEndpoint(_) | Ask::ResumeEndpoint(_) => 1,
        };
        if total == 0 {
            return Ok(None);
        }
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "INSERT INTO {s}.jobs (pipeline, kind, args, total) VALUES ($1, $2, $3, $4)
             RETURNING {JOB_COLUMNS}"
        );
        let (kind, args) = (ask.kind(), ask.args());
        let params: [Param<'_>; 4] = [
            (pipeline, Type::TEXT),
            (&kind, Type::TEXT),
            (&args, Type::JSONB),
            (&total, Type::INT8),
        ];
        read(&self.connection.query_typed_one(&sql, &params).await?).map(Some)
    }

    /// How far a job is; `None` when there is no such job.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn job(&self, id: JobId) -> Result<Option<JobState>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql =
            format!("SELECT {JOB_COLUMNS} FROM {s}.jobs WHERE pipeline {EQ} $1 AND id {EQ} $2");
        let row = self
            .connection
            .query_typed_opt(&sql, &[(pipeline, Type::TEXT), (&id.0, Type::INT8)])
            .await?;
        row.as_ref().map(read).transpose()
    }

    /// The job that is carried out before this one: the oldest that this one waits for ([`Ask::waits_for`]), or where
    /// [`RETRIES_AT_ONCE`] are under way the oldest of them. `None` where nothing is before it.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn job_before(&self, id: JobId) -> Result<Option<JobState>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT {JOB_COLUMNS}, args::pg_catalog.text FROM {s}.jobs
             WHERE {UNFINISHED} AND id {LE} $2 AND kind {EQ} ANY ($3)
             ORDER BY pipeline, id LIMIT {BEFORE_MAX}"
        );
        let kinds: &[&str] = &Ask::KINDS;
        let params: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (&id.0, Type::INT8), (&kinds, Type::TEXT_ARRAY)];
        let mut jobs = Vec::new();
        for row in &self.connection.query_typed(&sql, &params).await? {
            let (state, args) = (read(row)?, text::read(row.try_get(8)?));
            if let Ok(ask) = Ask::read(&state.kind, &args) {
                jobs.push((state, ask));
            }
        }
        let Some((last, ask)) = jobs.pop() else { return Ok(None) };
        if last.id != id {
            return Ok(None);
        }
        let waits_for = |(_, earlier): &&(JobState, Ask)| ask.waits_for(earlier);
        let is_retry = |ask: &Ask| matches!(ask, Ask::RetryDeadLetters(_));
        let retries = || jobs.iter().filter(|(_, ask)| is_retry(ask));
        let full = is_retry(&ask) && retries().count() >= RETRIES_AT_ONCE;
        let first = jobs.iter().find(waits_for).or_else(|| retries().next().filter(|_| full));
        Ok(first.map(|(job, _)| job.clone()))
    }

    /// The jobs that are not finished, the oldest first.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn unfinished_jobs(&self) -> Result<Vec<JobState>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql =
            format!("SELECT {JOB_COLUMNS} FROM {s}.jobs WHERE {UNFINISHED} ORDER BY pipeline, id");
        let rows = self.connection.query_typed(&sql, &[(pipeline, Type::TEXT)]).await?;
        rows.iter().map(read).collect()
    }
}

/// So many jobs that send dead letters again are under way at once: they wait for endpoints, and what they have fed is in
/// memory.
pub const RETRIES_AT_ONCE: usize = 4;

/// Of earlier jobs, so many are looked at.
const BEFORE_MAX: usize = 1_000;

const JOB_COLUMNS: &str = "id, kind, coalesce(total, 0), done, failed,
    (extract(epoch FROM created_at) OPERATOR(pg_catalog.*) 1000000)::bigint,
        finished_at IS NOT NULL, error";

fn read(row: &Row) -> Result<JobState, StateError> {
    Ok(JobState {
        id: JobId(row.try_get(0)?),
        kind: row.try_get(1)?,
        total: row.try_get(2)?,
        done: row.try_get(3)?,
        failed: row.try_get(4)?,
        created_at_us: row.try_get(5)?,
        finished: row.try_get(6)?,
        error: text::get_opt(row, 7)?,
    })
}
