//! Jobs: what the command line asks of the running leader.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::{DeadLetterFilter, Scope, StateError, StateStore, as_rfc3339, fence};

/// The kind of job that retries dead letters.
pub const RETRY_JOB: &str = "dead_letters.retry";

/// A job that is not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its id.
    pub id: i64,
    /// Which dead letters to retry.
    pub filter: DeadLetterFilter,
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct JobState {
    /// Its id.
    pub id: i64,
    /// What it does.
    pub kind: String,
    /// How many it concerned when it was made.
    pub total: i64,
    /// How many went well.
    pub done: i64,
    /// How many failed.
    pub failed: i64,
    /// When it was made: microseconds since 1970-01-01 UTC.
    #[serde(rename = "created_at", serialize_with = "as_rfc3339")]
    pub created_at_us: i64,
    /// Whether the leader is through with it.
    pub finished: bool,
    /// Why it could not be carried out, where it could not.
    pub error: Option<String>,
}

impl StateStore {
    /// The oldest job that is not finished.
    ///
    /// One whose arguments cannot be read is finished with an error, and passed over.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn next_job(&mut self) -> Result<Option<Job>, StateError> {
        loop {
            let Scope { s, pipeline, .. } = &self.scope;
            let sql = format!(
                "SELECT id, args::text FROM {s}.jobs
                 WHERE pipeline = $1 AND kind = $2 AND finished_at IS NULL ORDER BY id LIMIT 1"
            );
            let row = self
                .connection
                .query_typed_opt(&sql, &[(pipeline, Type::TEXT), (&RETRY_JOB, Type::TEXT)])
                .await?;
            let Some(row) = row else { return Ok(None) };
            let id: i64 = row.try_get(0)?;
            match serde_json::from_str(row.try_get(1)?) {
                Ok(filter) => return Ok(Some(Job { id, filter })),
                Err(error) => {
                    self.finish_job(id, Some(&format!("the arguments cannot be read: {error}")))
                        .await?;
                }
            }
        }
    }

    /// Marks a job as finished, well or with an error; a second time changes nothing.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn finish_job(&mut self, id: i64, error: Option<&str>) -> Result<(), StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let epoch = self.epoch.ok_or(StateError::Fenced { epoch: 0 })?;
        let tx = self.connection.transaction().await?;
        fence(&tx, &self.scope, epoch).await?;
        let sql = format!(
            "UPDATE {s}.jobs SET finished_at = now(), error = $3
             WHERE pipeline = $1 AND id = $2 AND finished_at IS NULL"
        );
        tx.execute_typed(&sql, &[(pipeline, Type::TEXT), (&id, Type::INT8), (&error, Type::TEXT)])
            .await?;
        Ok(tx.commit().await?)
    }

    /// Asks the leader to retry the dead letters that fit and have an endpoint; returns the job, or
    /// `None` when there are no such dead letters.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn create_retry_job(
        &mut self,
        filter: &DeadLetterFilter,
    ) -> Result<Option<JobState>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let args = serde_json::json!(filter);
        let sql = format!(
            "INSERT INTO {s}.jobs (pipeline, kind, args, total)
             SELECT $1, $9, $10, count(*)
             FROM {s}.dead_letters d JOIN {s}.bodies b USING (pipeline, event_id)
             WHERE d.endpoint <> '' AND {} HAVING count(*) > 0 RETURNING {JOB_COLUMNS}",
            DeadLetterFilter::CONDITION
        );
        let mut params = filter.params(pipeline);
        params.push((&RETRY_JOB, Type::TEXT));
        params.push((&args, Type::JSONB));
        self.connection.query_typed_opt(&sql, &params).await?.as_ref().map(read).transpose()
    }

    /// How far a job is; `None` when there is no such job.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn job(&self, id: i64) -> Result<Option<JobState>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!("SELECT {JOB_COLUMNS} FROM {s}.jobs WHERE pipeline = $1 AND id = $2");
        let row = self
            .connection
            .query_typed_opt(&sql, &[(pipeline, Type::TEXT), (&id, Type::INT8)])
            .await?;
        row.as_ref().map(read).transpose()
    }

    /// The jobs that are not finished, the oldest first.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn unfinished_jobs(&self) -> Result<Vec<JobState>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT {JOB_COLUMNS} FROM {s}.jobs WHERE pipeline = $1 AND finished_at IS NULL
             ORDER BY id"
        );
        let rows = self.connection.query_typed(&sql, &[(pipeline, Type::TEXT)]).await?;
        rows.iter().map(read).collect()
    }
}

const JOB_COLUMNS: &str = "id, kind, coalesce(total, 0), done, failed,
    (extract(epoch FROM created_at) * 1000000)::int8, finished_at IS NOT NULL, error";

fn read(row: &Row) -> Result<JobState, StateError> {
    Ok(JobState {
        id: row.try_get(0)?,
        kind: row.try_get(1)?,
        total: row.try_get(2)?,
        done: row.try_get(3)?,
        failed: row.try_get(4)?,
        created_at_us: row.try_get(5)?,
        finished: row.try_get(6)?,
        error: row.try_get(7)?,
    })
}
