//! One batch, one transaction.
//!
//! Statements that do not need each other's answers are sent together, each with arrays instead of
//! a statement a row: a batch costs three round trips (BEGIN; the fence and all writes; COMMIT).
//!
//! # Storing a batch twice
//!
//! When the connection is lost while COMMIT is under way, nobody can tell whether it counted, and
//! the caller stores the batch again. Each part bears that:
//!
//! - the checkpoint is set to the same position (equal is not lower);
//! - settled ranges stand there twice, which reads as once;
//! - a dead letter's key (event, endpoint) is there already, and so is its body;
//! - a delivered retry finds its dead letter gone, a failed one finds its job's id in `last_job`:
//!   job counters add the rows that really changed, so neither counts again;
//! - an endpoint is switched off (or on) already.
//!
//! # Bodies
//!
//! A body lives as long as a dead letter of its event does. Adding one and removing the last one
//! must not overlap, so both lock the body's row before they look at dead letters.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::try_join;
use tokio_postgres::Transaction;
use tokio_postgres::types::{PgLsn, Type};

use crate::engine::event::{EndpointId, Event};
use crate::engine::lsn::Lsn;
use crate::engine::persist::{
    DeadLetter, DisableEndpoint, PersistBatch, Persisted, Retried, SettledRange,
};
use crate::engine::position::Position;
use crate::engine::settled;

use super::{Param, Scope, StateError, StateStore, fence, lsn};

impl StateStore {
    /// Makes `batch` durable, all of it or nothing.
    ///
    /// Of an endpoint that is in both `enabled` and `disabled`, the latter stands.
    ///
    /// # Errors
    /// [`StateError::Fenced`] and [`StateError::FrontierDecreases`]: nothing was written, and trying
    /// again will not help. [`StateError::Sql`], when transient: [`StateStore::reconnect`] and store
    /// the same batch again.
    pub async fn persist(&mut self, batch: &PersistBatch) -> Result<Persisted, StateError> {
        let scope = &self.scope;
        // No lease taken is no right to write.
        let epoch = self.epoch.ok_or(StateError::Fenced { epoch: 0 })?;
        let tx = self.connection.transaction().await?;
        // Answered in this order: whoever is fenced off learns it first, and rolls the rest back.
        try_join!(
            fence(&tx, scope, epoch),
            checkpoint(&tx, scope, batch.frontier),
            append_settled(&tx, scope, &batch.settled),
            remove_passed(&tx, scope, batch.frontier),
            insert_dead_letters(&tx, scope, &batch.dead_letters),
            remove_delivered(&tx, scope, &batch.retried),
            mark_failed(&tx, scope, &batch.retried),
            enable(&tx, scope, &batch.enabled),
            disable(&tx, scope, &batch.disabled),
        )?;
        tx.commit().await?;
        Ok(Persisted::default())
    }
}

async fn checkpoint(tx: &Transaction<'_>, scope: &Scope, frontier: Lsn) -> Result<(), StateError> {
    let Scope { s, pipeline, .. } = scope;
    let advance = format!(
        "WITH stored AS (SELECT frontier FROM {s}.checkpoint
                         WHERE pipeline = $1 AND partition = 0 FOR UPDATE),
              advanced AS (UPDATE {s}.checkpoint c SET frontier = $2, updated_at = clock_timestamp()
                           FROM stored WHERE c.pipeline = $1 AND c.partition = 0
                             AND stored.frontier <= $2)
         SELECT frontier FROM stored"
    );
    let asked = PgLsn::from(frontier.0);
    let stored =
        tx.query_typed_opt(&advance, &[(pipeline, Type::TEXT), (&asked, Type::PG_LSN)]).await?;
    match lsn(&stored.ok_or_else(|| scope.not_set_up())?, 0)? {
        stored if stored > frontier => {
            Err(StateError::FrontierDecreases { stored, asked: frontier })
        }
        _ => Ok(()),
    }
}

async fn append_settled(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    ranges: &[SettledRange],
) -> Result<(), StateError> {
    let Some(last) = settled::last_commit_lsn(ranges) else { return Ok(()) };
    let insert = format!(
        "INSERT INTO {s}.settled (pipeline, partition, last_commit_lsn, ranges) VALUES ($1, 0, $2, $3)"
    );
    let (last, ranges) = (PgLsn::from(last.0), settled::encode(ranges));
    tx.execute_typed(
        &insert,
        &[(pipeline, Type::TEXT), (&last, Type::PG_LSN), (&ranges, Type::BYTEA)],
    )
    .await?;
    Ok(())
}

/// Removes ranges of which the frontier has passed every transaction. One that commits exactly at
/// the frontier is still to come.
async fn remove_passed(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    frontier: Lsn,
) -> Result<(), StateError> {
    let delete = format!(
        "DELETE FROM {s}.settled WHERE pipeline = $1 AND partition = 0 AND last_commit_lsn < $2"
    );
    let frontier = PgLsn::from(frontier.0);
    tx.execute_typed(&delete, &[(pipeline, Type::TEXT), (&frontier, Type::PG_LSN)]).await?;
    Ok(())
}

pub(super) async fn insert_dead_letters(
    tx: &Transaction<'_>,
    scope: &Scope,
    letters: &[DeadLetter],
) -> Result<(), StateError> {
    if letters.is_empty() {
        return Ok(());
    }
    let Scope { s, pipeline, .. } = scope;
    let ids: Vec<String> = letters.iter().map(|l| l.event.id.to_string()).collect();
    let endpoints: Vec<&str> =
        letters.iter().map(|l| l.endpoint.as_deref().unwrap_or_default()).collect();
    let reasons: Vec<&str> = letters.iter().map(|l| l.reason.as_str()).collect();
    let details: Vec<String> = letters.iter().map(|l| storable(&l.detail)).collect();
    let attempts: Vec<i32> = letters.iter().map(|l| saturate(l.attempts)).collect();
    let statuses: Vec<Option<i32>> = letters.iter().map(|l| l.last_status.map(i32::from)).collect();
    let insert = format!(
        "INSERT INTO {s}.dead_letters
                (pipeline, event_id, endpoint, reason, detail, attempts, last_status)
         SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::int4[], $7::int4[])
         ON CONFLICT DO NOTHING"
    );
    let params: [Param<'_>; 7] = [
        (pipeline, Type::TEXT),
        (&ids, Type::TEXT_ARRAY),
        (&endpoints, Type::TEXT_ARRAY),
        (&reasons, Type::TEXT_ARRAY),
        (&details, Type::TEXT_ARRAY),
        (&attempts, Type::INT4_ARRAY),
        (&statuses, Type::INT4_ARRAY),
    ];
    let bodies = ids.iter().zip(letters).map(|(id, l)| (id.as_str(), &l.event)).collect();
    try_join!(insert_bodies(tx, scope, &bodies), async {
        tx.execute_typed(&insert, &params).await.map_err(StateError::from)
    })?;
    Ok(())
}

/// Inserts bodies that are not there and locks those that are; in the order of their ids, so that
/// two who do so do not wait for each other in a circle.
async fn insert_bodies(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    bodies: &BTreeMap<&str, &Arc<Event>>,
) -> Result<(), StateError> {
    let ids: Vec<&str> = bodies.keys().copied().collect();
    let types: Vec<&str> = bodies.values().map(|e| &*e.event_type).collect();
    let accounts: Vec<&str> = bodies.values().map(|e| e.account.as_str()).collect();
    let operations: Vec<&str> = bodies.values().map(|e| e.operation.as_str()).collect();
    let times: Vec<SystemTime> = bodies.values().map(|e| system_time(e.commit_time_us)).collect();
    let positions = || {
        bodies.values().map(|e| {
            let Position::Wal(position) = e.position;
            position
        })
    };
    let commits: Vec<PgLsn> = positions().map(|p| p.commit_lsn.0.into()).collect();
    let changes: Vec<PgLsn> = positions().map(|p| p.change_lsn.0.into()).collect();
    let relations: Vec<u32> = positions().map(|p| p.relation).collect();
    let ns: Vec<i64> = positions().map(|p| i64::from(p.n)).collect();
    // An array of arrays has no unnest that yields arrays, so these travel as text.
    let keys: Vec<String> = bodies
        .values()
        .map(|e| {
            let keys: Vec<_> = e.keys.iter().map(|k| k.cast_signed().to_string()).collect();
            format!("{{{}}}", keys.join(","))
        })
        .collect();
    let rows: Vec<&[u8]> = bodies.values().map(|e| &*e.row).collect();
    // The update never happens, but its row is locked for it.
    let insert = format!(
        "INSERT INTO {s}.bodies AS b (pipeline, event_id, event_type, account, operation,
                committed_at, commit_lsn, change_lsn, relation, n, keys, row)
         SELECT $1, id, type, account, operation, at, commit, change, relation, n, keys::bigint[], row
         FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[],
                     $7::pg_lsn[], $8::pg_lsn[], $9::oid[], $10::int8[], $11::text[], $12::bytea[])
              AS e(id, type, account, operation, at, commit, change, relation, n, keys, row)
         ON CONFLICT (pipeline, event_id) DO UPDATE SET n = excluded.n WHERE false"
    );
    tx.execute_typed(
        &insert,
        &[
            (pipeline, Type::TEXT),
            (&ids, Type::TEXT_ARRAY),
            (&types, Type::TEXT_ARRAY),
            (&accounts, Type::TEXT_ARRAY),
            (&operations, Type::TEXT_ARRAY),
            (&times, Type::TIMESTAMPTZ_ARRAY),
            (&commits, Type::PG_LSN_ARRAY),
            (&changes, Type::PG_LSN_ARRAY),
            (&relations, Type::OID_ARRAY),
            (&ns, Type::INT8_ARRAY),
            (&keys, Type::TEXT_ARRAY),
            (&rows, Type::BYTEA_ARRAY),
        ],
    )
    .await?;
    Ok(())
}

async fn remove_delivered(
    tx: &Transaction<'_>,
    scope: &Scope,
    retried: &[Retried],
) -> Result<(), StateError> {
    let delivered = retried.iter().filter(|r| r.error.is_none());
    let (ids, jobs): (Vec<i64>, Vec<i64>) = delivered.map(|r| (r.dead_letter, r.job)).unzip();
    if ids.is_empty() {
        return Ok(());
    }
    remove_dead_letters(tx, scope, &ids, &jobs).await?;
    Ok(())
}

/// Removes dead letters, with the bodies that no other dead letter needs, and adds them to their
/// jobs' `done`. `jobs` is as long as `ids`; 0 is no job.
pub(super) async fn remove_dead_letters(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    ids: &[i64],
    jobs: &[i64],
) -> Result<i64, StateError> {
    let lock = format!(
        "SELECT FROM {s}.bodies WHERE pipeline = $1 AND event_id IN
                (SELECT event_id FROM {s}.dead_letters WHERE pipeline = $1 AND id = ANY($2))
         ORDER BY event_id FOR UPDATE"
    );
    // Reads by a later snapshot than `lock`: it sees every dead letter that was added before.
    let remove = format!(
        "WITH gone AS (
             DELETE FROM {s}.dead_letters d USING unnest($2::int8[], $3::int8[]) AS r(id, job)
             WHERE d.pipeline = $1 AND d.id = r.id RETURNING d.event_id, r.job),
         counted AS (
             UPDATE {s}.jobs j SET done = j.done + g.n
             FROM (SELECT job, count(*) AS n FROM gone GROUP BY job) g
             WHERE j.pipeline = $1 AND j.id = g.job),
         unused AS (
             DELETE FROM {s}.bodies b USING (SELECT DISTINCT event_id FROM gone) g
             WHERE b.pipeline = $1 AND b.event_id = g.event_id
               AND NOT EXISTS (SELECT FROM {s}.dead_letters d WHERE d.pipeline = $1
                               AND d.event_id = b.event_id AND d.id <> ALL ($2)))
         SELECT count(*) FROM gone"
    );
    let params: [Param<'_>; 3] =
        [(pipeline, Type::TEXT), (&ids, Type::INT8_ARRAY), (&jobs, Type::INT8_ARRAY)];
    let (_, removed) = try_join!(
        tx.query_typed(&lock, params.get(..2).unwrap_or_default()),
        tx.query_typed_one(&remove, &params)
    )?;
    Ok(removed.try_get(0)?)
}

async fn mark_failed(
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
    let update = format!(
        "WITH tried AS (
             UPDATE {s}.dead_letters d
             SET reason = r.reason, detail = r.detail, attempts = d.attempts + r.attempts,
                 last_status = r.status, tried_at = now(), last_job = r.job
             FROM unnest($2::int8[], $3::int8[], $4::text[], $5::text[], $6::int4[], $7::int4[])
                  AS r(id, job, reason, detail, attempts, status)
             WHERE d.pipeline = $1 AND d.id = r.id AND d.last_job IS DISTINCT FROM r.job
             RETURNING r.job)
         UPDATE {s}.jobs j SET failed = j.failed + t.n
         FROM (SELECT job, count(*) AS n FROM tried GROUP BY job) t
         WHERE j.pipeline = $1 AND j.id = t.job"
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
        ],
    )
    .await?;
    Ok(())
}

async fn enable(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    endpoints: &[EndpointId],
) -> Result<(), StateError> {
    if endpoints.is_empty() {
        return Ok(());
    }
    let delete =
        format!("DELETE FROM {s}.endpoint_state WHERE pipeline = $1 AND endpoint = ANY($2)");
    let endpoints: Vec<&str> = endpoints.iter().map(EndpointId::as_str).collect();
    tx.execute_typed(&delete, &[(pipeline, Type::TEXT), (&endpoints, Type::TEXT_ARRAY)]).await?;
    Ok(())
}

async fn disable(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    disabled: &[DisableEndpoint],
) -> Result<(), StateError> {
    if disabled.is_empty() {
        return Ok(());
    }
    let insert = format!(
        "INSERT INTO {s}.endpoint_state (pipeline, endpoint, reason)
         SELECT $1, * FROM unnest($2::text[], $3::text[]) ON CONFLICT DO NOTHING"
    );
    let endpoints: Vec<&str> = disabled.iter().map(|d| d.endpoint.as_str()).collect();
    let reasons: Vec<String> = disabled.iter().map(|d| storable(&d.reason)).collect();
    tx.execute_typed(
        &insert,
        &[(pipeline, Type::TEXT), (&endpoints, Type::TEXT_ARRAY), (&reasons, Type::TEXT_ARRAY)],
    )
    .await?;
    Ok(())
}

/// PostgreSQL's text holds no NUL, but what an endpoint answers may.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn saturate(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn system_time(unix_us: i64) -> SystemTime {
    let distance = Duration::from_micros(unix_us.unsigned_abs());
    if unix_us < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}
