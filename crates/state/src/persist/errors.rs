//! The table `endpoint_errors`: endpoints that fail.

use std::time::SystemTime;

use tokio_postgres::types::Type;

use super::{Param, Scope, StateError, Transaction, system_time};
use walhook_core::persist::{EndpointError, QueueId};
use walhook_postgres::op::EQ;

/// Inserts or replaces rows.
pub(super) async fn store(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    errors: &[EndpointError],
) -> Result<(), StateError> {
    if errors.is_empty() {
        return Ok(());
    }
    let endpoints: Vec<&str> = errors.iter().map(|e| e.queue.endpoint.as_str()).collect();
    let accounts: Vec<&str> = errors.iter().map(|e| e.queue.account.as_str()).collect();
    let since: Vec<SystemTime> = errors.iter().map(|e| system_time(e.since_us)).collect();
    let failed: Vec<i64> =
        errors.iter().map(|e| i64::try_from(e.failed).unwrap_or(i64::MAX)).collect();
    let last: Vec<SystemTime> = errors.iter().map(|e| system_time(e.last_us)).collect();
    let texts: Vec<&str> = errors.iter().map(|e| e.error.as_str()).collect();
    let sql = format!(
        "INSERT INTO {s}.endpoint_errors (pipeline, endpoint, account, failing_since, failed, last_at, error)
         SELECT $1, endpoint, account, since, failed, last, error
         FROM unnest($2, $3, $4, $5, $6, $7) AS r(endpoint, account, since, failed, last, error)
         ON CONFLICT (pipeline, endpoint, account) DO UPDATE SET
             failing_since = excluded.failing_since, failed = excluded.failed,
             last_at = excluded.last_at, error = excluded.error"
    );
    let params: [Param<'_>; 7] = [
        (pipeline, Type::TEXT),
        (&endpoints, Type::TEXT_ARRAY),
        (&accounts, Type::TEXT_ARRAY),
        (&since, Type::TIMESTAMPTZ_ARRAY),
        (&failed, Type::INT8_ARRAY),
        (&last, Type::TIMESTAMPTZ_ARRAY),
        (&texts, Type::TEXT_ARRAY),
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
        "DELETE FROM {s}.endpoint_errors WHERE ctid {EQ} ANY (ARRAY (
             SELECT (SELECT b.ctid FROM {s}.endpoint_errors b WHERE b.pipeline {EQ} $1
                       AND b.endpoint {EQ} r.endpoint AND b.account {EQ} r.account)
             FROM unnest($2, $3) AS r(endpoint, account)))"
    );
    let params: [Param<'_>; 3] =
        [(pipeline, Type::TEXT), (&endpoints, Type::TEXT_ARRAY), (&accounts, Type::TEXT_ARRAY)];
    tx.execute_typed(&sql, &params).await?;
    Ok(())
}
