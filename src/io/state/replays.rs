//! Replays, as jobs: asked for by the command line, carried out by the leader, resumed by the next.

use serde::Serialize;
use tokio_postgres::Row;
use tokio_postgres::types::{PgLsn, Type};

use super::{
    Param, Scope, StateError, StateStore, Transaction, as_rfc3339, fence, lsn, text, unreadable,
};
use crate::engine::lsn::Lsn;
use crate::engine::persist::ReplayCounts;
use crate::engine::replay::ReplayRange;
use crate::io::op::EQ;

/// The kind of job that sends a past range again.
pub const REPLAY_JOB: &str = "replay";

const COLUMNS: &str = "id, args::pg_catalog.text, coalesce(position, '0/0'), done, failed,
    (extract(epoch FROM created_at) OPERATOR(pg_catalog.*) 1000000)::bigint,
        finished_at IS NOT NULL, error";

/// A replay, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoredReplay {
    /// The job's id.
    pub id: i64,
    /// What it sends again.
    #[serde(flatten)]
    pub range: ReplayRange,
    /// Everything before this was sent again.
    pub position: Lsn,
    /// Deliveries that an endpoint took.
    pub done: i64,
    /// Deliveries that were deferred, or ended as dead letters.
    pub failed: i64,
    /// When it was asked for: microseconds since 1970-01-01 UTC.
    #[serde(rename = "created_at", serialize_with = "as_rfc3339")]
    pub created_at_us: i64,
    /// Whether it has come to an end.
    pub finished: bool,
    /// Why it ended early, where it did.
    pub error: Option<String>,
}

impl StoredReplay {
    /// How much of the range is done, from 0 to 1.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    pub fn fraction(&self) -> f64 {
        let ReplayRange { from, to, .. } = self.range;
        match to.bytes_since(from) {
            0 => 1.0,
            _ if self.finished && self.error.is_none() => 1.0,
            all => (self.position.bytes_since(from) as f64 / all as f64).min(1.0),
        }
    }
}

impl StateStore {
    /// Asks the leader to send a range again.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn create_replay(&mut self, range: &ReplayRange) -> Result<StoredReplay, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "INSERT INTO {s}.jobs (pipeline, kind, args, position) VALUES ($1, $2, $3, $4)
             RETURNING {COLUMNS}"
        );
        let (args, from) = (serde_json::json!(range), PgLsn::from(range.from.0));
        let params: [Param<'_>; 4] = [
            (pipeline, Type::TEXT),
            (&REPLAY_JOB, Type::TEXT),
            (&args, Type::JSONB),
            (&from, Type::PG_LSN),
        ];
        let row = self.connection.query_typed_opt(&sql, &params).await?;
        read(&row.ok_or_else(|| self.scope.not_set_up())?)
    }

    /// The replay with this id.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn replay(&self, id: i64) -> Result<Option<StoredReplay>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT {COLUMNS} FROM {s}.jobs WHERE pipeline {EQ} $1 AND kind {EQ} $2 AND id {EQ} $3"
        );
        let params: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (&REPLAY_JOB, Type::TEXT), (&id, Type::INT8)];
        let row = self.connection.query_typed_opt(&sql, &params).await?;
        row.as_ref().map(read).transpose()
    }

    /// The replays that were asked for last, at most `limit`, the latest first.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn replays(&self, limit: i64) -> Result<Vec<StoredReplay>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT {COLUMNS} FROM {s}.jobs WHERE pipeline {EQ} $1 AND kind {EQ} $2
             ORDER BY id DESC LIMIT $3"
        );
        let params: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (&REPLAY_JOB, Type::TEXT), (&limit, Type::INT8)];
        let rows = self.connection.query_typed(&sql, &params).await?;
        rows.iter().map(read).collect()
    }

    /// The oldest replay that is not finished.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn next_replay(&self) -> Result<Option<StoredReplay>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT {COLUMNS} FROM {s}.jobs
             WHERE pipeline {EQ} $1 AND kind {EQ} $2 AND finished_at IS NULL ORDER BY id LIMIT 1"
        );
        let params: [Param<'_>; 2] = [(pipeline, Type::TEXT), (&REPLAY_JOB, Type::TEXT)];
        let row = self.connection.query_typed_opt(&sql, &params).await?;
        row.as_ref().map(read).transpose()
    }

    /// Records, as the leader, that everything before `position` was sent again.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn set_replay_position(&mut self, id: i64, position: Lsn) -> Result<(), StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let epoch = self.epoch.ok_or(StateError::Fenced { epoch: 0 })?;
        let tx = self.connection.transaction().await?;
        fence(&tx, &self.scope, epoch).await?;
        let sql =
            format!("UPDATE {s}.jobs SET position = $3 WHERE pipeline {EQ} $1 AND id {EQ} $2");
        let position = PgLsn::from(position.0);
        let params: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (&id, Type::INT8), (&position, Type::PG_LSN)];
        tx.execute_typed(&sql, &params).await?;
        Ok(tx.commit().await?)
    }

    /// Ends a replay before its time; the leader stops feeding it within a second. Says whether there
    /// was such a replay to end.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn cancel_replay(&mut self, id: i64) -> Result<bool, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "UPDATE {s}.jobs SET finished_at = pg_catalog.now(), error = 'cancelled'
             WHERE pipeline {EQ} $1 AND kind {EQ} $2 AND id {EQ} $3 AND finished_at IS NULL"
        );
        let params: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (&REPLAY_JOB, Type::TEXT), (&id, Type::INT8)];
        Ok(self.connection.execute_typed(&sql, &params).await? > 0)
    }
}

/// Sets how far replays are; whole counts, so that a batch stored twice changes nothing.
pub(super) async fn count(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    replayed: &[ReplayCounts],
) -> Result<(), StateError> {
    if replayed.is_empty() {
        return Ok(());
    }
    let jobs: Vec<i64> = replayed.iter().map(|counts| counts.job).collect();
    let done: Vec<i64> = replayed.iter().map(|counts| counts.done).collect();
    let failed: Vec<i64> = replayed.iter().map(|counts| counts.failed).collect();
    let sql = format!(
        "UPDATE {s}.jobs j SET done = r.done, failed = r.failed
         FROM unnest($2, $3, $4) AS r(job, done, failed)
         WHERE j.pipeline {EQ} $1 AND j.id {EQ} r.job"
    );
    let params: [Param<'_>; 4] = [
        (pipeline, Type::TEXT),
        (&jobs, Type::INT8_ARRAY),
        (&done, Type::INT8_ARRAY),
        (&failed, Type::INT8_ARRAY),
    ];
    tx.execute_typed(&sql, &params).await?;
    Ok(())
}

fn read(row: &Row) -> Result<StoredReplay, StateError> {
    let range =
        serde_json::from_str(&text::read(row.try_get(1)?)).map_err(unreadable("jobs.args"))?;
    Ok(StoredReplay {
        id: row.try_get(0)?,
        range,
        position: lsn(row, 2)?,
        done: row.try_get(3)?,
        failed: row.try_get(4)?,
        created_at_us: row.try_get(5)?,
        finished: row.try_get(6)?,
        error: text::get_opt(row, 7)?,
    })
}
