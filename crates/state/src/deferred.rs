//! Deferred rows as an operator sees them: found, listed, hurried, discarded.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::page::in_pages;
use super::persist::{StoredAttempt, backlog, with_unused};
use super::replays::{Late, with_late};
use super::row_place::{place_columns, read_place};
use super::{
    DeferredFilter, Logged, Param, Scope, StateError, StateStore, Uncommitted, discard_log, fence,
    fence_alone, key, replay_discards, text,
};
use walhook_core::id::JobId;
use walhook_core::persist::{QueueId, RowKey};
use walhook_postgres::op::{EQ, GT, PLUS, TIMES, to_us};

/// Rows changed in one transaction, during which the leader writes nothing.
const CHUNK: i64 = 1_000;

/// Where a list goes on: behind this row, in the order of events, endpoints and replays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeferredCursor {
    /// The event's id; empty for the beginning.
    pub event: String,
    /// The endpoint.
    pub endpoint: String,
    /// The replay.
    pub replay: i64,
}

/// Some of the rows that a job asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Those that were changed or removed; at most 1,000. There may be none: they had left meanwhile.
    pub rows: Vec<(QueueId, RowKey)>,
    /// What came of the lines of the delivery log that say so.
    pub logged: Logged,
    /// Where to go on.
    pub next: DeferredCursor,
}

/// What is to be done with rows.
struct Change<'a> {
    /// Those of which this holds, beside the filter.
    condition: &'a str,
    /// What makes `gone` of the `place`s that are `chosen`.
    change: &'a str,
    /// Whether they are removed.
    removes: bool,
}

/// What is selected from, as `d`: the rows in the order of a list, or those of the events `$2` alone where
/// the filter names some. `$1` is the pipeline.
fn rows(s: &str, filter: &DeferredFilter) -> String {
    if filter.ids.is_none() {
        return format!("{s}.deferred d");
    }
    format!(
        "(SELECT d.* FROM (SELECT id FROM pg_catalog.unnest($2) AS r(id) GROUP BY id) r
          CROSS JOIN LATERAL (SELECT * FROM {s}.deferred WHERE pipeline {EQ} $1 AND {}
                              ORDER BY event_id OFFSET 0) d) d",
        key::range("event_id", "r.id")
    )
}

/// Of the pages `p` those that may hold an event which the filter names.
pub(super) const NAMED: &str = "($2 IS NULL OR p.event_ids OPERATOR(pg_catalog.&&) $2)";

/// One deferred row, without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDeferred {
    /// The event's id.
    pub event_id: String,
    /// The event's type.
    pub event_type: String,
    /// The account.
    pub account: String,
    /// The endpoint.
    pub endpoint: String,
    /// The replay that it belongs to; 0: none.
    pub replay_id: i64,
    /// Why: the words of [`DeferReason`](walhook_core::persist::DeferReason).
    pub reason: String,
    /// How many attempts were made.
    pub attempts: i32,
    /// No attempt before then: microseconds since 1970-01-01 UTC. `None`: when its turn comes.
    pub next_attempt_at_us: Option<i64>,
    /// The status of the last answer, where there was one.
    pub last_status: Option<i32>,
    /// The last error; empty when nothing failed.
    pub detail: String,
    /// When it was deferred: microseconds since 1970-01-01 UTC.
    pub deferred_at_us: i64,
    /// The last attempts, the oldest first.
    pub history: Vec<StoredAttempt>,
}

impl StateStore {
    /// Lists deferred deliveries in the order of their events' ids, which is that of their commits.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn deferred(
        &self,
        filter: &DeferredFilter,
        after: &DeferredCursor,
        limit: i64,
    ) -> Result<Vec<StoredDeferred>, StateError> {
        let columns = format!("d.event_id, d.event_type, d.account, d.endpoint, d.replay_id, d.reason,
            d.attempts, (extract(epoch FROM d.next_attempt_at) {TIMES} 1000000)::bigint AS next,
            d.last_status, d.detail, (extract(epoch FROM d.deferred_at) {TIMES} 1000000)::bigint AS at,
            d.history::pg_catalog.text");
        let of_pages = format!(
            "d.event_id, d.event_type, d.account, d.endpoint, d.replay_id, d.reason,
            0, NULL::bigint, NULL::integer, '',
            (extract(epoch FROM d.deferred_at) {TIMES} 1000000)::bigint, NULL::pg_catalog.text"
        );
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = both(s, filter, &columns, &of_pages);
        let mut params = filter.params(pipeline);
        params.push((&after.event, Type::TEXT));
        params.push((&after.endpoint, Type::TEXT));
        params.push((&after.replay, Type::INT8));
        params.push((&limit, Type::INT8));
        let rows = self.connection.query_typed(&sql, &params).await?;
        rows.iter().map(read).collect()
    }

    /// Removes some of the rows that a job asks for, with the bodies that nothing else needs, as the leader, and
    /// counts them as the job's, where one asks: the first behind `after`. Returns where to go on, to be committed;
    /// `None` when none was left. What stands in pages is discarded before, by [`StateStore::discard_pages`].
    ///
    /// The table `backlog` counts them no more. The dispatcher must be told which rows these are before they are gone,
    /// and once more afterwards. One that is in flight may still arrive. What belongs to a replay whose range is being
    /// read stays named, for [`StateStore::replayed_before`]. The delivery log gets a line for each, at `log_at_us`,
    /// microseconds since 1970-01-01 UTC; none where that is `None`.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn discard_deferred(
        &mut self,
        job: Option<JobId>,
        filter: &DeferredFilter,
        after: &DeferredCursor,
        log_at_us: Option<i64>,
    ) -> Result<Option<Uncommitted<'_, Changed>>, StateError> {
        let s = &self.scope.s;
        let change = format!(
            "gone AS (DELETE FROM {s}.deferred WHERE ctid {EQ} ANY (ARRAY (SELECT place
             FROM chosen))
                      RETURNING {}),
             {}, {}, {}",
            place_columns(),
            with_late(s, Late::Dropped),
            replay_discards::with_rows_named(s),
            with_unused(s, "deferred")
        );
        let change = Change { condition: "true", change: &change, removes: true };
        self.change_deferred(job, filter, after, change, log_at_us).await
    }

    /// Counts, as the job's and as the leader, what a job asks for that has no time and waits for its turn alone;
    /// returns the queues that have some of it, whose endpoints are to be tried. Call it before
    /// [`StateStore::hurry_deferred`], which takes times away: a job that starts over counts anew.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn begin_hurry(
        &mut self,
        job: JobId,
        filter: &DeferredFilter,
    ) -> Result<Vec<QueueId>, StateError> {
        let epoch = self.led_epoch()?;
        let Scope { s, pipeline, .. } = &self.scope;
        let filters = filter.condition();
        // Millions are counted without holding the leader off.
        let sql = format!(
            "SELECT d.account, d.endpoint, pg_catalog.count(*) FROM (
                 (SELECT d.account, d.endpoint FROM {} WHERE {filters} AND d.next_attempt_at IS NULL
                  ORDER BY d.event_id, d.endpoint, d.replay_id)
                 UNION ALL (SELECT d.account, d.endpoint FROM {} WHERE {filters})) d
             GROUP BY d.account, d.endpoint ORDER BY d.account, d.endpoint",
            rows(s, filter),
            in_pages(s, NAMED)
        );
        let found = self.connection.query_typed(&sql, &filter.params(pipeline)).await?;
        let mut queues = Vec::with_capacity(found.len());
        let mut done: i64 = 0;
        for row in &found {
            queues.push(text::queue(row.try_get("account")?, row.try_get("endpoint")?));
            done = done.saturating_add(row.try_get(2)?);
        }
        let tx = self.connection.transaction().await?;
        fence(&tx, &self.scope, epoch).await?;
        let count = format!("UPDATE {s}.jobs SET done = $3 WHERE pipeline {EQ} $1 AND id {EQ} $2");
        let of_job: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (&job.0, Type::INT8), (&done, Type::INT8)];
        tx.execute_typed(&count, &of_job).await?;
        tx.commit().await?;
        Ok(queues)
    }

    /// Lets some of the rows that a job asks for and that have a time be tried as soon as their turn comes, as the
    /// leader, and counts them as the job's: the first behind `after`. Returns where to go on; `None` when none
    /// was left. So a row that fails once more meanwhile is not hurried again. The dispatcher must be told
    /// which rows these are: it knows the times of some by heart.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn hurry_deferred(
        &mut self,
        job: JobId,
        filter: &DeferredFilter,
        after: &DeferredCursor,
    ) -> Result<Option<Changed>, StateError> {
        let s = &self.scope.s;
        let change = format!(
            "gone AS (UPDATE {s}.deferred SET next_attempt_at = NULL
                      WHERE ctid {EQ} ANY (ARRAY (SELECT place FROM chosen))
                      RETURNING {})",
            place_columns()
        );
        let condition = "d.next_attempt_at IS NOT NULL";
        let change = Change { condition, change: &change, removes: false };
        match self.change_deferred(Some(job), filter, after, change, None).await? {
            Some(changed) => Ok(Some(changed.commit().await?)),
            None => Ok(None),
        }
    }

    /// Carries out a change, up to its commit, and logs at `log_at_us`, where it is given, that they are discarded.
    async fn change_deferred(
        &mut self,
        job: Option<JobId>,
        filter: &DeferredFilter,
        after: &DeferredCursor,
        Change { condition, change, removes }: Change<'_>,
        log_at_us: Option<i64>,
    ) -> Result<Option<Uncommitted<'_, Changed>>, StateError> {
        let epoch = self.led_epoch()?;
        let chosen = self.choose(filter, condition, after).await?;
        let Some(next) = chosen.last().cloned() else { return Ok(None) };
        let Scope { s, pipeline, .. } = &self.scope;
        let filters = filter.condition();
        // Bodies that go with the last row are still there for this statement.
        let committed = match log_at_us {
            Some(_) => to_us(&key::row(s, "bodies", "committed_at", "event_id", "gone.event_id")),
            None => "NULL::bigint".to_owned(),
        };
        // What has left or changed since it was chosen fits no more.
        let sql = format!(
            "WITH chosen AS (
                 SELECT d.place FROM unnest($9, $10, $11) AS r(event, endpoint, replay)
                 CROSS JOIN LATERAL (SELECT *, ctid AS place FROM {s}.deferred
                                     WHERE pipeline {EQ} $1 AND {}
                                     ORDER BY event_id, endpoint, replay_id LIMIT 1) d
                 WHERE {filters} AND {condition}),
             {change},
             counted AS (UPDATE {s}.jobs SET done = done {PLUS} (SELECT pg_catalog.count(*)
                 FROM gone)
                         WHERE pipeline {EQ} $1 AND id {EQ} $12)
             SELECT {}, {committed} AS committed FROM gone ORDER BY event_id, endpoint, replay_id",
            key::range("event_id, endpoint, replay_id", "r.event, r.endpoint, r.replay"),
            place_columns()
        );
        let (events, endpoints): (Vec<&str>, Vec<&str>) =
            chosen.iter().map(|row| (&*row.event, &*row.endpoint)).unzip();
        let replays: Vec<i64> = chosen.iter().map(|row| row.replay).collect();
        let job = job.map(|job| job.0);
        let mut params = filter.params(pipeline);
        params.push((&events, Type::TEXT_ARRAY));
        params.push((&endpoints, Type::TEXT_ARRAY));
        params.push((&replays, Type::INT8_ARRAY));
        params.push((&job, Type::INT8));
        let tx = self.connection.transaction().await?;
        fence_alone(&tx, &self.scope, epoch).await?;
        let gone = tx.query_typed(&sql, &params).await?;
        let logged = discard_log::log(&tx, &self.scope, &gone, log_at_us).await?;
        let rows = gone.iter().map(read_place).collect::<Result<Vec<_>, _>>()?;
        if removes {
            backlog::subtract(&tx, &self.scope, rows.iter().map(|(queue, _)| queue)).await?;
        }
        Ok(Some(Uncommitted::new(Some(tx), Changed { rows, next, logged })))
    }

    /// The first rows behind `after` that a change is about. All may have to be looked through for one, so the leader is
    /// not held off meanwhile.
    async fn choose(
        &self,
        filter: &DeferredFilter,
        condition: &str,
        after: &DeferredCursor,
    ) -> Result<Vec<DeferredCursor>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT d.event_id, d.endpoint, d.replay_id FROM {} WHERE {} AND {condition}
                AND (d.event_id, d.endpoint, d.replay_id) {GT} ($9, $10, $11)
             ORDER BY d.event_id, d.endpoint, d.replay_id LIMIT {CHUNK}",
            rows(s, filter),
            filter.condition()
        );
        let mut params = filter.params(pipeline);
        params.push((&after.event, Type::TEXT));
        params.push((&after.endpoint, Type::TEXT));
        params.push((&after.replay, Type::INT8));
        let rows = self.connection.query_typed(&sql, &params).await?;
        let read = |row: &Row| {
            Ok(DeferredCursor {
                event: row.try_get("event_id")?,
                endpoint: text::get(row, "endpoint")?,
                replay: row.try_get("replay_id")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// How many deliveries fit.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn count_deferred(&self, filter: &DeferredFilter) -> Result<i64, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let filters = filter.condition();
        let sql = format!(
            "SELECT (SELECT pg_catalog.count(*) FROM (
                 SELECT FROM {} WHERE {filters} ORDER BY d.event_id, d.endpoint, d.replay_id) d)
             {PLUS} (SELECT pg_catalog.count(*) FROM {} WHERE {filters})",
            rows(s, filter),
            in_pages(s, NAMED)
        );
        let row = self.connection.query_typed_one(&sql, &filter.params(pipeline)).await?;
        Ok(row.try_get(0)?)
    }
}

/// Selects the deliveries that fit `filter` (`$1` to `$8`) behind the cursor `$9` to `$11`, at most `$12` in
/// the order of a list: `of_rows` of those that are rows, and `of_pages` of those in pages.
fn both(s: &str, filter: &DeferredFilter, of_rows: &str, of_pages: &str) -> String {
    let chosen = |columns: &str, from: &str| {
        format!(
            "(SELECT {columns} FROM {from} WHERE {}
                 AND (d.event_id, d.endpoint, d.replay_id) {GT} ($9, $10, $11)
              ORDER BY d.event_id, d.endpoint, d.replay_id LIMIT $12)",
            filter.condition()
        )
    };
    format!(
        "SELECT d.* FROM ({} UNION ALL {}) d ORDER BY event_id, endpoint, replay_id LIMIT $12",
        chosen(of_rows, &rows(s, filter)),
        chosen(of_pages, &in_pages(s, NAMED))
    )
}

fn read(row: &Row) -> Result<StoredDeferred, StateError> {
    Ok(StoredDeferred {
        event_id: row.try_get("event_id")?,
        event_type: row.try_get("event_type")?,
        account: text::get(row, "account")?,
        endpoint: text::get(row, "endpoint")?,
        replay_id: row.try_get("replay_id")?,
        reason: row.try_get("reason")?,
        attempts: row.try_get("attempts")?,
        next_attempt_at_us: row.try_get("next")?,
        last_status: row.try_get("last_status")?,
        detail: text::get(row, "detail")?,
        deferred_at_us: row.try_get("at")?,
        history: StoredAttempt::read(row.try_get("history")?)?,
    })
}
