//! Dead letters as they are stored: found, listed, retried, discarded.

use std::sync::Arc;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use walhook_core::event::{EndpointId, Event};
use walhook_core::id::{JobId, ReplayId};
use walhook_core::persist::DeadLetter;
use walhook_postgres::op::{EQ, GT, LE, LT, NE};

use super::event::{event_columns, read_event};
use super::persist::StoredAttempt;
use super::persist::dead_letters::remove;
use super::{
    DeadLetterFilter, Param, Scope, StateError, StateStore, hold_off_leader, key, replay_column,
    text, unreadable,
};

/// Letters discarded in one transaction, during which the leader writes nothing.
const CHUNK: i64 = 1_000;

/// One dead letter with its event.
#[derive(Debug, Clone)]
pub struct StoredDeadLetter {
    /// Its id in the table; they grow in the order of insertion.
    pub id: i64,
    /// The endpoint; none for an unroutable change.
    pub endpoint: Option<EndpointId>,
    /// The replay that it belongs to; none: it was the stream's.
    pub replay: Option<ReplayId>,
    /// Why: the words of [`DeadReason`](walhook_core::persist::DeadReason).
    pub reason: String,
    /// The last error for a person.
    pub detail: String,
    /// How many attempts were made, retries included.
    pub attempts: u32,
    /// The status of the last answer, where there was one.
    pub last_status: Option<u16>,
    /// When it was stored: microseconds since 1970-01-01 UTC.
    pub died_at_us: i64,
    /// When it was last stored or retried: microseconds since 1970-01-01 UTC.
    pub tried_at_us: i64,
    /// The last attempts, the oldest first.
    pub history: Vec<StoredAttempt>,
    /// The event.
    pub event: Arc<Event>,
}

pub(super) const COLUMNS: &str =
    "d.id, d.endpoint, d.replay_id, d.reason, d.detail, d.attempts, d.last_status,
    (extract(epoch FROM d.died_at) OPERATOR(pg_catalog.*) 1000000)::bigint AS died,
    (extract(epoch FROM d.tried_at) OPERATOR(pg_catalog.*) 1000000)::bigint AS tried,
        d.history::pg_catalog.text";

/// What is selected from: each letter as `d`, and its event's body as `b`. `$1` is the pipeline.
fn letters(s: &str) -> String {
    with_bodies(s, &format!("{s}.dead_letters"))
}

/// The same of those letters `of`.
fn with_bodies(s: &str, of: &str) -> String {
    format!(
        "{of} d CROSS JOIN LATERAL (
             SELECT * FROM {s}.bodies WHERE pipeline {EQ} $1 AND event_id {EQ} d.event_id LIMIT 1) b"
    )
}

impl StateStore {
    /// The next dead letters that the job asks for by `filter` and has not tried, in the order of their ids.
    ///
    /// Only such as have an endpoint and were neither stored nor tried since the job was made: a job
    /// that starts over from 0 after a crash goes on where it was.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn dead_letters_to_retry(
        &self,
        job: JobId,
        filter: &DeadLetterFilter,
        after_id: i64,
        limit: i64,
    ) -> Result<Vec<StoredDeadLetter>, StateError> {
        let s = &self.scope.s;
        let condition = format!(
            "d.id {GT} $9 AND d.endpoint {NE} '' AND (d.last_job IS NULL OR d.last_job {NE} $11)
             AND d.tried_at {LT} (SELECT created_at FROM {s}.jobs j WHERE j.pipeline {EQ} $1
             AND j.id {EQ} $11)"
        );
        self.select(filter, &condition, after_id, limit, Some(job)).await
    }

    /// Lists dead letters in the order of their ids.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after_id: i64,
        limit: i64,
    ) -> Result<Vec<StoredDeadLetter>, StateError> {
        self.select(filter, &format!("d.id {GT} $9"), after_id, limit, None).await
    }

    /// The ids of these letters, where they are rows and not only counted.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn letter_ids(
        &self,
        letters: &[&DeadLetter],
    ) -> Result<Vec<Option<i64>>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT {} FROM unnest($2, $3, $4)
                 WITH ORDINALITY AS r(event, endpoint, replay, at) ORDER BY r.at",
            key::delivery(s, "dead_letters", "id")
        );
        let events: Vec<String> = letters.iter().map(|l| l.event.id.to_string()).collect();
        let endpoints: Vec<&str> =
            letters.iter().map(|l| l.endpoint.as_deref().unwrap_or_default()).collect();
        let replays: Vec<i64> = letters.iter().map(|l| replay_column::of(l.replay)).collect();
        let params: [Param<'_>; 4] = [
            (pipeline, Type::TEXT),
            (&events, Type::TEXT_ARRAY),
            (&endpoints, Type::TEXT_ARRAY),
            (&replays, Type::INT8_ARRAY),
        ];
        let rows = self.connection.query_typed(&sql, &params).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// Those that this job has retried and that failed again, in the order of their ids.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn retried_in_vain(
        &self,
        job: JobId,
        limit: i64,
    ) -> Result<Vec<StoredDeadLetter>, StateError> {
        let condition = format!("d.id {GT} $9 AND d.last_job {EQ} $11");
        self.select(&DeadLetterFilter::default(), &condition, 0, limit, Some(job)).await
    }

    async fn select(
        &self,
        filter: &DeadLetterFilter,
        condition: &str,
        after_id: i64,
        limit: i64,
        job: Option<JobId>,
    ) -> Result<Vec<StoredDeadLetter>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT {COLUMNS}, {} FROM {}
             WHERE {} AND {condition} ORDER BY d.id LIMIT $10",
            event_columns(),
            letters(s),
            filter.condition()
        );
        let mut params = filter.params(pipeline);
        params.push((&after_id, Type::INT8));
        params.push((&limit, Type::INT8));
        if let Some(job) = &job {
            params.push((&job.0, Type::INT8));
        }
        let rows = self.connection.query_typed(&sql, &params).await?;
        rows.iter().map(read).collect()
    }

    /// How many dead letters fit.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn count_dead_letters(&self, filter: &DeadLetterFilter) -> Result<i64, StateError> {
        self.count(filter, "true").await
    }

    async fn count(&self, filter: &DeadLetterFilter, condition: &str) -> Result<i64, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT pg_catalog.count(*) FROM (
                 SELECT FROM {} WHERE {} AND {condition} ORDER BY d.id) l",
            letters(s),
            filter.condition()
        );
        let row = self.connection.query_typed_one(&sql, &filter.params(pipeline)).await?;
        Ok(row.try_get(0)?)
    }

    /// How many dead letters that fit can be retried.
    pub(super) async fn count_retryable(
        &self,
        filter: &DeadLetterFilter,
    ) -> Result<i64, StateError> {
        self.count(filter, &format!("d.endpoint {NE} ''")).await
    }

    /// Removes dead letters for good, in transactions of at most 1,000; returns how many.
    ///
    /// Needs no lease: an operator decides. Stops after those that stood there when it began.
    ///
    /// # Errors
    /// [`StateError::Sql`]; what was removed before stays removed.
    pub async fn discard_dead_letters(
        &mut self,
        filter: &DeadLetterFilter,
    ) -> Result<i64, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let last = format!(
            "SELECT coalesce((SELECT id FROM {s}.dead_letters WHERE pipeline {EQ} $1
                              ORDER BY id DESC LIMIT 1), 0)"
        );
        let last: i64 = self.one(&last).await?.try_get(0)?;
        // All may have to be looked through for one, so that is done without holding the leader off.
        let choose = format!(
            "SELECT d.id FROM {} WHERE {} AND d.id {GT} $9 AND d.id {LE} $10
             ORDER BY d.id LIMIT {CHUNK}",
            letters(s),
            filter.condition()
        );
        // What has changed since it was chosen may fit no more.
        let again = format!(
            "SELECT d.id FROM {} WHERE {}",
            with_bodies(
                s,
                &format!(
                    "(SELECT l.* FROM pg_catalog.unnest($9) AS r(id)
                  CROSS JOIN LATERAL (SELECT * FROM {s}.dead_letters WHERE pipeline {EQ} $1 AND {}
                                      ORDER BY id LIMIT 1) l)",
                    key::range("id", "r.id")
                )
            ),
            filter.condition()
        );
        let (mut after, mut removed) = (0i64, 0);
        loop {
            let mut params = filter.params(pipeline);
            params.push((&after, Type::INT8));
            params.push((&last, Type::INT8));
            let chosen = ids(&self.connection.query_typed(&choose, &params).await?)?;
            let Some(highest) = chosen.last().copied() else { return Ok(removed) };
            let tx = self.connection.transaction().await?;
            hold_off_leader(&tx, &self.scope).await?;
            let mut params = filter.params(pipeline);
            params.push((&chosen, Type::INT8_ARRAY));
            let fit = ids(&tx.query_typed(&again, &params).await?)?;
            removed += remove(&tx, &self.scope, &fit, &vec![0; fit.len()]).await?;
            tx.commit().await?;
            after = highest;
        }
    }
}

fn ids(rows: &[Row]) -> Result<Vec<i64>, StateError> {
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

pub(super) fn read(row: &Row) -> Result<StoredDeadLetter, StateError> {
    let id: i64 = row.try_get("id")?;
    let endpoint: &str = row.try_get("endpoint")?;
    let status: Option<i32> = row.try_get("last_status")?;
    let attempts: i32 = row.try_get("attempts")?;
    let of = |column: &str| format!("{column} of dead letter {id}");
    Ok(StoredDeadLetter {
        id,
        endpoint: (!endpoint.is_empty()).then(|| EndpointId::new(text::read(endpoint))),
        replay: replay_column::read(row.try_get("replay_id")?),
        reason: row.try_get("reason")?,
        detail: text::get(row, "detail")?,
        attempts: u32::try_from(attempts).map_err(unreadable(&of("attempts")))?,
        last_status: status
            .map(u16::try_from)
            .transpose()
            .map_err(unreadable(&of("last_status")))?,
        died_at_us: row.try_get("died")?,
        tried_at_us: row.try_get("tried")?,
        history: StoredAttempt::read(row.try_get("history")?)?,
        event: Arc::new(read_event(row)?),
    })
}
