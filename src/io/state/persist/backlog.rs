//! The table `backlog`, and the rows of a queue that leave `deferred` all together.

use std::time::SystemTime;

use futures_util::future::try_join_all;
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;

use super::{Param, Scope, StateError, bodies, storable, system_time};
use crate::engine::persist::{BacklogRow, Blocked, Purge, PurgeHow, Purged, QueueId};

/// Inserts or replaces rows.
pub(super) async fn store(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    rows: &[BacklogRow],
) -> Result<(), StateError> {
    if rows.is_empty() {
        return Ok(());
    }
    let endpoints: Vec<&str> = rows.iter().map(|row| row.queue.endpoint.as_str()).collect();
    let accounts: Vec<&str> = rows.iter().map(|row| row.queue.account.as_str()).collect();
    let blocked: Vec<Option<String>> = rows
        .iter()
        .map(|row| match &row.blocked {
            Blocked::Keys(keys) => Some(bodies::array(keys)),
            Blocked::All => None,
        })
        .collect();
    let deferred: Vec<i64> =
        rows.iter().map(|row| i64::try_from(row.rows).unwrap_or(i64::MAX)).collect();
    let time = |us: Option<i64>| us.map(system_time);
    let failing: Vec<Option<SystemTime>> =
        rows.iter().map(|row| time(row.failing_since_us)).collect();
    let stopped: Vec<i64> = rows.iter().map(|row| row.stopped_us).collect();
    let open: Vec<Option<SystemTime>> = rows.iter().map(|row| time(row.open_until_us)).collect();
    let sql = format!(
        "INSERT INTO {s}.backlog AS b (pipeline, endpoint, account, blocked, deferred, failing_since,
                stopped_us, breaker_open_until)
         SELECT $1, endpoint, account, blocked::bigint[], deferred, failing, stopped, open
         FROM unnest($2::text[], $3::text[], $4::text[], $5::int8[], $6::timestamptz[], $7::int8[],
                     $8::timestamptz[])
              AS r(endpoint, account, blocked, deferred, failing, stopped, open)
         ON CONFLICT (pipeline, endpoint, account) DO UPDATE SET blocked = excluded.blocked,
             deferred = excluded.deferred, failing_since = excluded.failing_since,
             stopped_us = excluded.stopped_us, breaker_open_until = excluded.breaker_open_until"
    );
    let params: [Param<'_>; 8] = [
        (pipeline, Type::TEXT),
        (&endpoints, Type::TEXT_ARRAY),
        (&accounts, Type::TEXT_ARRAY),
        (&blocked, Type::TEXT_ARRAY),
        (&deferred, Type::INT8_ARRAY),
        (&failing, Type::TIMESTAMPTZ_ARRAY),
        (&stopped, Type::INT8_ARRAY),
        (&open, Type::TIMESTAMPTZ_ARRAY),
    ];
    tx.execute_typed(&sql, &params).await?;
    Ok(())
}

/// Removes rows.
pub(super) async fn remove(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    queues: &[QueueId],
) -> Result<(), StateError> {
    if queues.is_empty() {
        return Ok(());
    }
    let endpoints: Vec<&str> = queues.iter().map(|queue| queue.endpoint.as_str()).collect();
    let accounts: Vec<&str> = queues.iter().map(|queue| queue.account.as_str()).collect();
    let sql = format!(
        "DELETE FROM {s}.backlog WHERE ctid = ANY (ARRAY (
             SELECT (SELECT b.ctid FROM {s}.backlog b WHERE b.pipeline = $1
                       AND b.endpoint = r.endpoint AND b.account = r.account)
             FROM unnest($2::text[], $3::text[]) AS r(endpoint, account)))"
    );
    let params: [Param<'_>; 3] =
        [(pipeline, Type::TEXT), (&endpoints, Type::TEXT_ARRAY), (&accounts, Type::TEXT_ARRAY)];
    tx.execute_typed(&sql, &params).await?;
    Ok(())
}

/// Removes rows of queues, the oldest first.
pub(super) async fn purge(
    tx: &Transaction<'_>,
    scope: &Scope,
    purges: &[Purge],
) -> Result<Vec<Purged>, StateError> {
    try_join_all(purges.iter().map(|purge| purge_one(tx, scope, purge))).await
}

async fn purge_one(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    purge: &Purge,
) -> Result<Purged, StateError> {
    let QueueId { account, endpoint } = &purge.queue;
    let (endpoint, account) = (endpoint.as_str(), account.as_str());
    let rows = i64::from(purge.rows);
    let gone = format!(
        "WITH gone AS (
             DELETE FROM {s}.deferred WHERE ctid = ANY (ARRAY (
                 SELECT ctid FROM {s}.deferred
                 WHERE pipeline = $1 AND endpoint = $2 AND account = $3
                 ORDER BY commit_lsn, change_lsn, relation, n, event_type, replay_id LIMIT $4))
             RETURNING *)"
    );
    let mut params: Vec<Param<'_>> = vec![
        (pipeline, Type::TEXT),
        (&endpoint, Type::TEXT),
        (&account, Type::TEXT),
        (&rows, Type::INT8),
    ];
    let (reason, detail);
    let then = match &purge.how {
        PurgeHow::Die { reason: r, detail: d } => {
            (reason, detail) = (r.as_str(), storable(d));
            params.push((&reason, Type::TEXT));
            params.push((&detail, Type::TEXT));
            format!(
                "died AS (
                     INSERT INTO {s}.dead_letters (pipeline, event_id, endpoint, replay_id, reason,
                            detail, attempts, last_status, history)
                     SELECT pipeline, event_id, endpoint, replay_id, $5, $6, attempts, last_status,
                            history
                     FROM gone ON CONFLICT DO NOTHING)"
            )
        }
        PurgeHow::Drop => bodies::with_unused(s, "deferred"),
    };
    let sql = format!("{gone}, {then} SELECT count(*) FROM gone");
    let removed: i64 = tx.query_typed_one(&sql, &params).await?.try_get(0)?;
    Ok(Purged { queue: purge.queue.clone(), rows: removed.cast_unsigned(), all: removed < rows })
}
