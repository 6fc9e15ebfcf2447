//! Tables with a row for each queue: their key is the pipeline, the endpoint and the account.

use tokio_postgres::types::Type;

use super::{Param, Scope, StateError, Transaction};
use walhook_core::persist::{Purge, Purged, QueueId};
use walhook_postgres::op::EQ;

/// Queues as columns: the endpoints, and the accounts.
pub(super) fn columns<'a>(
    queues: impl Iterator<Item = &'a QueueId>,
) -> (Vec<&'a str>, Vec<&'a str>) {
    queues.map(|queue| (queue.endpoint.as_str(), queue.account.as_str())).unzip()
}

/// Removes the rows of queues from such a table.
pub(super) async fn remove(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    table: &str,
    queues: &[QueueId],
) -> Result<(), StateError> {
    if queues.is_empty() {
        return Ok(());
    }
    let (endpoints, accounts) = columns(queues.iter());
    let sql = format!(
        "DELETE FROM {s}.{table} WHERE ctid {EQ} ANY (ARRAY (
             SELECT (SELECT b.ctid FROM {s}.{table} b WHERE b.pipeline {EQ} $1
                       AND b.endpoint {EQ} r.endpoint AND b.account {EQ} r.account)
             FROM unnest($2, $3) AS r(endpoint, account)))"
    );
    let params: [Param<'_>; 3] =
        [(pipeline, Type::TEXT), (&endpoints, Type::TEXT_ARRAY), (&accounts, Type::TEXT_ARRAY)];
    tx.execute_typed(&sql, &params).await?;
    Ok(())
}

/// Carries out a purge by a statement that removes at most `$4` rows of the account `$3` at the endpoint
/// `$2`, counts them in the queue's gap, and says how many there were.
pub(super) async fn purge(
    tx: &Transaction<'_>,
    Scope { pipeline, .. }: &Scope,
    sql: &str,
    Purge { queue, rows }: &Purge,
) -> Result<Purged, StateError> {
    let QueueId { account, endpoint } = queue;
    let (endpoint, account, rows) = (endpoint.as_str(), account.as_str(), i64::from(*rows));
    let params: [Param<'_>; 4] = [
        (pipeline, Type::TEXT),
        (&endpoint, Type::TEXT),
        (&account, Type::TEXT),
        (&rows, Type::INT8),
    ];
    let removed: i64 = tx.query_typed_one(sql, &params).await?.try_get(0)?;
    Ok(Purged { queue: queue.clone(), rows: removed.cast_unsigned(), all: removed < rows })
}
