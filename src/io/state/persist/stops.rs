//! The table `endpoint_state`: endpoints that are stopped.

use tokio_postgres::Transaction;
use tokio_postgres::types::Type;

use super::{Scope, StateError, storable};
use crate::engine::event::EndpointId;
use crate::engine::persist::DisableEndpoint;

pub(super) async fn enable(
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
