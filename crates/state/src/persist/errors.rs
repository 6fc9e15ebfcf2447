//! The table `endpoint_errors`: endpoints that fail.

use std::time::SystemTime;

use tokio_postgres::types::Type;

use super::{Param, Scope, StateError, Transaction, queues, system_time};
use walhook_core::persist::EndpointError;

/// Inserts or replaces rows.
pub(super) async fn store(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    errors: &[EndpointError],
) -> Result<(), StateError> {
    if errors.is_empty() {
        return Ok(());
    }
    let (endpoints, accounts) = queues::columns(errors.iter().map(|e| &e.queue));
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
