//! The table `dead_letters`: letters inserted, delivered after all, tried once more in vain.

use tokio_postgres::types::Type;

use super::history::{last_ten, records};
use super::{Param, Scope, StateError, Transaction, bodies, saturate, storable};
use crate::engine::persist::{DeadLetter, Retried};
use crate::io::op::{EQ, NE, PLUS};

/// Inserts letters; one that is there already stays as it is. Their bodies must be there.
pub(super) async fn insert(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    letters: &[DeadLetter],
) -> Result<(), StateError> {
    if letters.is_empty() {
        return Ok(());
    }
    let ids: Vec<String> = letters.iter().map(|l| l.event.id.to_string()).collect();
    let endpoints: Vec<&str> =
        letters.iter().map(|l| l.endpoint.as_deref().unwrap_or_default()).collect();
    let reasons: Vec<&str> = letters.iter().map(|l| l.reason.as_str()).collect();
    let details: Vec<String> = letters.iter().map(|l| storable(&l.detail)).collect();
    let attempts: Vec<i32> = letters.iter().map(|l| saturate(l.attempts)).collect();
    let statuses: Vec<Option<i32>> = letters.iter().map(|l| l.last_status.map(i32::from)).collect();
    let histories: Vec<Option<String>> = letters.iter().map(|l| records(&l.history)).collect();
    let insert = format!(
        "INSERT INTO {s}.dead_letters
                (pipeline, event_id, endpoint, reason, detail, attempts, last_status, history,
                 replay_id)
         SELECT $1, event, endpoint, reason, detail, attempts, status, history::pg_catalog.jsonb,
             replay
         FROM unnest($2, $3, $4, $5, $6, $7, $8, $9)
              AS r(event, endpoint, reason, detail, attempts, status, history, replay)
         ON CONFLICT DO NOTHING"
    );
    let replays: Vec<i64> = letters.iter().map(|l| l.replay).collect();
    let params: [Param<'_>; 9] = [
        (pipeline, Type::TEXT),
        (&ids, Type::TEXT_ARRAY),
        (&endpoints, Type::TEXT_ARRAY),
        (&reasons, Type::TEXT_ARRAY),
        (&details, Type::TEXT_ARRAY),
        (&attempts, Type::INT4_ARRAY),
        (&statuses, Type::INT4_ARRAY),
        (&histories, Type::TEXT_ARRAY),
        (&replays, Type::INT8_ARRAY),
    ];
    tx.execute_typed(&insert, &params).await?;
    Ok(())
}

pub(super) async fn remove_delivered(
    tx: &Transaction<'_>,
    scope: &Scope,
    retried: &[Retried],
) -> Result<(), StateError> {
    let delivered = retried.iter().filter(|r| r.error.is_none());
    let (ids, jobs): (Vec<i64>, Vec<i64>) = delivered.map(|r| (r.dead_letter, r.job)).unzip();
    if ids.is_empty() {
        return Ok(());
    }
    remove(tx, scope, &ids, &jobs).await?;
    Ok(())
}

/// Removes dead letters, with the bodies that nothing else needs, and adds them to their
/// jobs' `done`. `jobs` is as long as `ids`; 0 is no job.
pub(in super::super) async fn remove(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    ids: &[i64],
    jobs: &[i64],
) -> Result<i64, StateError> {
    let remove = format!(
        "WITH gone AS (
             DELETE FROM {s}.dead_letters WHERE pipeline {EQ} $1 AND id {EQ} ANY ($2)
             RETURNING event_id, $3[pg_catalog.array_position($2, id)] AS job),
         counted AS (
             UPDATE {s}.jobs j SET done = j.done {PLUS} g.n
             FROM (SELECT job, pg_catalog.count(*) AS n FROM gone GROUP BY job) g
             WHERE j.pipeline {EQ} $1 AND j.id {EQ} g.job),
         {}
         SELECT pg_catalog.count(*) FROM gone",
        bodies::with_unused(s, "dead_letters")
    );
    let params: [Param<'_>; 3] =
        [(pipeline, Type::TEXT), (&ids, Type::INT8_ARRAY), (&jobs, Type::INT8_ARRAY)];
    Ok(tx.query_typed_one(&remove, &params).await?.try_get(0)?)
}

pub(super) async fn mark_failed(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    retried: &[Retried],
) -> Result<(), StateError> {
    let failed: Vec<_> =
        retried.iter().filter_map(|r| Some((r.dead_letter, r.job, r.error.as_ref()?))).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let ids: Vec<i64> = failed.iter().map(|(id, _, _)| *id).collect();
    let jobs: Vec<i64> = failed.iter().map(|(_, job, _)| *job).collect();
    let reasons: Vec<&str> = failed.iter().map(|(_, _, e)| e.reason.as_str()).collect();
    let details: Vec<String> = failed.iter().map(|(_, _, e)| storable(&e.detail)).collect();
    let attempts: Vec<i32> = failed.iter().map(|(_, _, e)| saturate(e.attempts)).collect();
    let statuses: Vec<Option<i32>> =
        failed.iter().map(|(_, _, e)| e.last_status.map(i32::from)).collect();
    let histories: Vec<Option<String>> =
        failed.iter().map(|(_, _, e)| records(&e.history)).collect();
    let update = format!(
        "WITH tried AS (
             UPDATE {s}.dead_letters d
             SET reason = r.reason, detail = r.detail, attempts = d.attempts {PLUS} r.attempts,
                 last_status = r.status, history = {}, tried_at = pg_catalog.now(), last_job = r.job
             FROM unnest($2, $3, $4, $5, $6, $7, $8)
                  AS r(id, job, reason, detail, attempts, status, history)
             WHERE d.pipeline {EQ} $1 AND d.id {EQ} r.id
               AND (d.last_job IS NULL OR d.last_job {NE} r.job)
             RETURNING r.job)
         UPDATE {s}.jobs j SET failed = j.failed {PLUS} t.n
         FROM (SELECT job, pg_catalog.count(*) AS n FROM tried GROUP BY job) t
         WHERE j.pipeline {EQ} $1 AND j.id {EQ} t.job",
        last_ten("d.history", "r.history")
    );
    tx.execute_typed(
        &update,
        &[
            (pipeline, Type::TEXT),
            (&ids, Type::INT8_ARRAY),
            (&jobs, Type::INT8_ARRAY),
            (&reasons, Type::TEXT_ARRAY),
            (&details, Type::TEXT_ARRAY),
            (&attempts, Type::INT4_ARRAY),
            (&statuses, Type::INT4_ARRAY),
            (&histories, Type::TEXT_ARRAY),
        ],
    )
    .await?;
    Ok(())
}
