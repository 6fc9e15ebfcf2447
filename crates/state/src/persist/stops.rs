//! The table `endpoint_state`: endpoints that are stopped; and the ends of the jobs that asked for it.

use std::time::SystemTime;

use tokio_postgres::types::Type;

use super::super::unfinished::unfinished_job;
use super::{Param, Scope, StateError, Transaction, system_time};
use walhook_core::event::EndpointId;
use walhook_core::persist::{DisableEndpoint, JobDone, PauseEndpoint};
use walhook_postgres::op::EQ;

pub(super) async fn enable(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    endpoints: &[EndpointId],
) -> Result<(), StateError> {
    if endpoints.is_empty() {
        return Ok(());
    }
    let delete = format!(
        "DELETE FROM {s}.endpoint_state WHERE ctid {EQ} ANY (ARRAY (
                 SELECT (SELECT e.ctid FROM {s}.endpoint_state e
                         WHERE e.pipeline {EQ} $1 AND e.endpoint {EQ} r.endpoint)
                 FROM pg_catalog.unnest($2) AS r(endpoint)))"
    );
    let endpoints: Vec<&str> = endpoints.iter().map(EndpointId::as_str).collect();
    tx.execute_typed(&delete, &[(pipeline, Type::TEXT), (&endpoints, Type::TEXT_ARRAY)]).await?;
    Ok(())
}

pub(super) async fn disable(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    disabled: &[DisableEndpoint],
) -> Result<(), StateError> {
    if disabled.is_empty() {
        return Ok(());
    }
    let insert = format!(
        "INSERT INTO {s}.endpoint_state (pipeline, endpoint, reason)
         SELECT $1, * FROM unnest($2, $3) ON CONFLICT DO NOTHING"
    );
    let endpoints: Vec<&str> = disabled.iter().map(|d| d.endpoint.as_str()).collect();
    let reasons: Vec<&str> = disabled.iter().map(|d| d.reason.as_str()).collect();
    tx.execute_typed(
        &insert,
        &[(pipeline, Type::TEXT), (&endpoints, Type::TEXT_ARRAY), (&reasons, Type::TEXT_ARRAY)],
    )
    .await?;
    Ok(())
}

pub(super) async fn pause(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    paused: &[PauseEndpoint],
) -> Result<(), StateError> {
    if paused.is_empty() {
        return Ok(());
    }
    let insert = format!(
        "INSERT INTO {s}.endpoint_state (pipeline, kind, endpoint, reason, disabled_at)
         SELECT $1, 'paused', * FROM unnest($2, $3, $4)
         ON CONFLICT (pipeline, endpoint) DO UPDATE SET kind = excluded.kind, reason = excluded.reason,
             disabled_at = excluded.disabled_at"
    );
    let endpoints: Vec<&str> = paused.iter().map(|p| p.endpoint.as_str()).collect();
    let reasons: Vec<&str> = paused.iter().map(|p| p.reason.as_str()).collect();
    let since: Vec<SystemTime> = paused.iter().map(|p| system_time(p.since_us)).collect();
    let params: [Param<'_>; 4] = [
        (pipeline, Type::TEXT),
        (&endpoints, Type::TEXT_ARRAY),
        (&reasons, Type::TEXT_ARRAY),
        (&since, Type::TIMESTAMPTZ_ARRAY),
    ];
    tx.execute_typed(&insert, &params).await?;
    Ok(())
}

/// A job that is finished already stays as it is, so that a batch stored twice counts once.
pub(super) async fn end_jobs(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    jobs: &[JobDone],
) -> Result<(), StateError> {
    if jobs.is_empty() {
        return Ok(());
    }
    let update = format!(
        "UPDATE {s}.jobs j SET done = r.done, finished_at = pg_catalog.now()
         FROM unnest($2, $3) AS r(job, done) WHERE j.ctid {EQ} {}",
        unfinished_job(s, "r.job")
    );
    let ids: Vec<i64> = jobs.iter().map(|job| job.job.0).collect();
    let done: Vec<i64> = jobs.iter().map(|job| job.done).collect();
    let params: [Param<'_>; 3] =
        [(pipeline, Type::TEXT), (&ids, Type::INT8_ARRAY), (&done, Type::INT8_ARRAY)];
    tx.execute_typed(&update, &params).await?;
    Ok(())
}
