//! Replays, as jobs: asked for by the command line, carried out by the leader, resumed by the next.

use std::collections::HashSet;

use tokio_postgres::Row;
use tokio_postgres::types::{PgLsn, Type};

use super::unfinished::UNFINISHED;
use super::{
    Param, Scope, StateError, StateStore, Transaction, fence, key, lsn, replay_discards, text,
    unreadable,
};
use walhook_core::id::ReplayId;
use walhook_core::lsn::Lsn;
use walhook_core::persist::ReplayCounts;
use walhook_core::replay::ReplayRange;
use walhook_postgres::op::{EQ, GE, GT, LE, PLUS};

/// The error of a replay that an operator has ended.
const CANCELLED: &str = "cancelled";

/// The kind of job that sends a past range again.
pub const REPLAY_JOB: &str = "replay";

const COLUMNS: &str = "id, args::pg_catalog.text, coalesce(position, '0/0'), done, failed,
    (extract(epoch FROM created_at) OPERATOR(pg_catalog.*) 1000000)::bigint,
        finished_at IS NOT NULL, error, deferred, dropped, in_gaps, late_done, late_failed,
        late_dropped, late_in_gaps";

/// Of a replay, how many of its deliveries are deferred now.
const WAITING: &str =
    "(deferred OPERATOR(pg_catalog.-) late_done OPERATOR(pg_catalog.-) late_failed
    OPERATOR(pg_catalog.-) late_dropped OPERATOR(pg_catalog.-) late_in_gaps)";

/// Of a replay, whether it was cancelled while deliveries of it are deferred.
pub(super) fn cancelled_and_waiting() -> String {
    format!("error {EQ} '{CANCELLED}'::pg_catalog.text AND {WAITING} {GT} 0")
}

/// What becomes of a deferred row.
#[derive(Debug, Clone, Copy)]
pub(super) enum Late {
    /// Delivered.
    Done,
    /// A dead letter.
    Failed,
    /// Its endpoint was removed, or an operator discarded it.
    Dropped,
    /// Its queue was suspended.
    InGaps,
}

/// What a `WITH` goes on with that has `gone`, the deferred rows which it deletes (with their `replay_id`):
/// counts those of replays. `$1` is the pipeline.
pub(super) fn with_late(s: &str, late: Late) -> String {
    let column = match late {
        Late::Done => "late_done",
        Late::Failed => "late_failed",
        Late::Dropped => "late_dropped",
        Late::InGaps => "late_in_gaps",
    };
    format!(
        "late AS (
             UPDATE {s}.jobs j SET {column} = j.{column} {PLUS} g.n
             FROM (SELECT replay_id, pg_catalog.count(*) AS n FROM gone
                   WHERE replay_id {GT} 0 GROUP BY 1) g
             WHERE j.ctid {EQ} {})",
        key::row(s, "jobs", "ctid", "id", "g.replay_id")
    )
}

/// A replay, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredReplay {
    /// Its id.
    pub id: ReplayId,
    /// What it sends again.
    pub range: ReplayRange,
    /// Everything before this was sent again, or is deferred.
    pub position: Lsn,
    /// Deliveries that an endpoint took.
    pub delivered: i64,
    /// Deliveries that are deferred under the replay's id, and are tried again.
    pub waiting: i64,
    /// Deliveries that ended as dead letters.
    pub dead: i64,
    /// Deliveries whose endpoint was removed meanwhile, or which an operator discarded.
    pub dropped: i64,
    /// Deliveries that are counted in gaps, since their endpoints were suspended.
    pub in_gaps: i64,
    /// `delivered`, for scripts from before that had a name.
    pub done: i64,
    /// `dead`, likewise.
    pub failed: i64,
    /// What the dispatcher goes on with: each delivery by how it left memory.
    pub counts: ReplayCounts,
    /// When it was asked for: microseconds since 1970-01-01 UTC.
    pub created_at_us: i64,
    /// Whether its range was read to the end. Deliveries may still wait.
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
    pub async fn replay(&self, id: ReplayId) -> Result<Option<StoredReplay>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT {COLUMNS} FROM {s}.jobs WHERE pipeline {EQ} $1 AND kind {EQ} $2 AND id {EQ} $3"
        );
        let params: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (&REPLAY_JOB, Type::TEXT), (&id.0, Type::INT8)];
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
             WHERE {UNFINISHED} AND kind {EQ} $2 ORDER BY pipeline, id LIMIT 1"
        );
        let params: [Param<'_>; 2] = [(pipeline, Type::TEXT), (&REPLAY_JOB, Type::TEXT)];
        let row = self.connection.query_typed_opt(&sql, &params).await?;
        row.as_ref().map(read).transpose()
    }

    /// Records, as the leader, that everything before `position` was sent again.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn set_replay_position(
        &mut self,
        id: ReplayId,
        position: Lsn,
    ) -> Result<(), StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let epoch = self.led_epoch()?;
        let tx = self.connection.transaction().await?;
        fence(&tx, &self.scope, epoch).await?;
        let sql =
            format!("UPDATE {s}.jobs SET position = $3 WHERE pipeline {EQ} $1 AND id {EQ} $2");
        let position = PgLsn::from(position.0);
        let params: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (&id.0, Type::INT8), (&position, Type::PG_LSN)];
        tx.execute_typed(&sql, &params).await?;
        replay_discards::forget_passed(&tx, &self.scope, id).await?;
        Ok(tx.commit().await?)
    }

    /// Ends a replay before its time; the leader stops feeding it within a second, and then removes what is
    /// deferred under its id. Says whether there was such a replay to end.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn cancel_replay(&mut self, id: ReplayId) -> Result<bool, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "UPDATE {s}.jobs SET finished_at = coalesce(finished_at, pg_catalog.now()),
                    error = '{CANCELLED}'
             WHERE pipeline {EQ} $1 AND kind {EQ} $2 AND id {EQ} $3
               AND (finished_at IS NULL OR {WAITING} {GT} 0)"
        );
        let params: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (&REPLAY_JOB, Type::TEXT), (&id.0, Type::INT8)];
        Ok(self.connection.execute_typed(&sql, &params).await? > 0)
    }

    /// A replay that was cancelled and under whose id something is still deferred.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn cancelled_replay(&self) -> Result<Option<ReplayId>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT id FROM {s}.jobs WHERE pipeline {GE} $1 AND pipeline {LE} $1 AND kind {EQ} $2
             AND {} ORDER BY pipeline, id LIMIT 1",
            cancelled_and_waiting()
        );
        let params: [Param<'_>; 2] = [(pipeline, Type::TEXT), (&REPLAY_JOB, Type::TEXT)];
        let row = self.connection.query_typed_opt(&sql, &params).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?.map(ReplayId))
    }

    /// Of these events, which deliveries are deferred under the replay's id already, or dead, or were discarded: by
    /// the event's id and the endpoint. An earlier leader, or an earlier connection of this one, fed them.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn replayed_before(
        &self,
        replay: ReplayId,
        events: &[String],
    ) -> Result<HashSet<(String, String)>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let of = |table: &str| {
            format!(
                "SELECT r.event, d.endpoint FROM pg_catalog.unnest($2) AS r(event)
                 CROSS JOIN LATERAL (
                     SELECT endpoint FROM {s}.{table} WHERE pipeline {EQ} $1 AND {}
                        AND replay_id {EQ} $3 ORDER BY event_id OFFSET 0) d",
                key::range("event_id", "r.event")
            )
        };
        let [deferred, dead, discarded] =
            ["deferred", "dead_letters", replay_discards::TABLE].map(of);
        let sql = format!("{deferred} UNION ALL {dead} UNION ALL {discarded}");
        let params: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (&events, Type::TEXT_ARRAY), (&replay.0, Type::INT8)];
        let rows = self.connection.query_typed(&sql, &params).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, text::get(row, 1)?))).collect()
    }
}

/// Sets how far replays are; whole counts, so that a batch stored twice changes nothing.
pub(super) async fn count(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    replayed: &[(ReplayId, ReplayCounts)],
) -> Result<(), StateError> {
    if replayed.is_empty() {
        return Ok(());
    }
    let jobs: Vec<i64> = replayed.iter().map(|(replay, _)| replay.0).collect();
    let done: Vec<i64> = replayed.iter().map(|(_, counts)| counts.done).collect();
    let failed: Vec<i64> = replayed.iter().map(|(_, counts)| counts.failed).collect();
    let deferred: Vec<i64> = replayed.iter().map(|(_, counts)| counts.deferred).collect();
    let dropped: Vec<i64> = replayed.iter().map(|(_, counts)| counts.dropped).collect();
    let in_gaps: Vec<i64> = replayed.iter().map(|(_, counts)| counts.in_gaps).collect();
    let sql = format!(
        "UPDATE {s}.jobs j SET done = r.done, failed = r.failed, deferred = r.deferred,
                dropped = r.dropped, in_gaps = r.in_gaps
         FROM unnest($2, $3, $4, $5, $6, $7) AS r(job, done, failed, deferred, dropped, in_gaps)
         WHERE j.ctid {EQ} {}",
        key::row(s, "jobs", "ctid", "id", "r.job")
    );
    let params: [Param<'_>; 7] = [
        (pipeline, Type::TEXT),
        (&jobs, Type::INT8_ARRAY),
        (&done, Type::INT8_ARRAY),
        (&failed, Type::INT8_ARRAY),
        (&deferred, Type::INT8_ARRAY),
        (&dropped, Type::INT8_ARRAY),
        (&in_gaps, Type::INT8_ARRAY),
    ];
    tx.execute_typed(&sql, &params).await?;
    Ok(())
}

fn read(row: &Row) -> Result<StoredReplay, StateError> {
    let range =
        serde_json::from_str(&text::read(row.try_get(1)?)).map_err(unreadable("jobs.args"))?;
    let counts = ReplayCounts {
        done: row.try_get(3)?,
        failed: row.try_get(4)?,
        deferred: row.try_get(8)?,
        dropped: row.try_get(9)?,
        in_gaps: row.try_get(10)?,
    };
    let late = |column| row.try_get::<_, i64>(column);
    let (done, failed, dropped, in_gaps) = (late(11)?, late(12)?, late(13)?, late(14)?);
    let (delivered, dead) = (counts.done + done, counts.failed + failed);
    Ok(StoredReplay {
        id: ReplayId(row.try_get(0)?),
        range,
        position: lsn(row, 2)?,
        delivered,
        waiting: (counts.deferred - done - failed - dropped - in_gaps).max(0),
        dead,
        dropped: counts.dropped + dropped,
        in_gaps: counts.in_gaps + in_gaps,
        done: delivered,
        failed: dead,
        counts,
        created_at_us: row.try_get(5)?,
        finished: row.try_get(6)?,
        error: text::get_opt(row, 7)?,
    })
}
