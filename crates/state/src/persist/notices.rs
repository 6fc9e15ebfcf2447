//! The table `notices`: what happened is added to what waits to be told.

use tokio_postgres::types::Type;

use super::{Param, Scope, StateError, Transaction};
use walhook_core::notice::Notice;
use walhook_postgres::op::{EQ, PLUS};

/// Of one endpoint and kind at most one notice.
pub(super) async fn add(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    notices: &[Notice],
) -> Result<(), StateError> {
    if notices.is_empty() {
        return Ok(());
    }
    let insert = format!(
        "INSERT INTO {s}.notices AS n (pipeline, endpoint, type, account, detail, count, first_at, last_at)
         SELECT $1, endpoint, type, account, detail, count, pg_catalog.now(), pg_catalog.now()
         FROM unnest($2, $3, $4, $5, $6)
              AS r(endpoint, type, account, detail, count)
         ON CONFLICT (pipeline, endpoint, type) DO UPDATE SET
             account = coalesce(excluded.account, n.account), detail = excluded.detail,
             count = n.count {PLUS} excluded.count, last_at = excluded.last_at,
             first_at = CASE WHEN n.count {EQ} 0 THEN excluded.first_at ELSE n.first_at END"
    );
    let endpoints: Vec<&str> = notices.iter().map(|n| n.endpoint.as_str()).collect();
    let kinds: Vec<&str> = notices.iter().map(|n| n.kind.as_str()).collect();
    let accounts: Vec<Option<&str>> = notices.iter().map(|n| n.account.as_deref()).collect();
    let details: Vec<&str> = notices.iter().map(|n| n.detail.as_str()).collect();
    let counts: Vec<i64> =
        notices.iter().map(|n| i64::try_from(n.count).unwrap_or(i64::MAX)).collect();
    let params: [Param<'_>; 6] = [
        (pipeline, Type::TEXT),
        (&endpoints, Type::TEXT_ARRAY),
        (&kinds, Type::TEXT_ARRAY),
        (&accounts, Type::TEXT_ARRAY),
        (&details, Type::TEXT_ARRAY),
        (&counts, Type::INT8_ARRAY),
    ];
    tx.execute_typed(&insert, &params).await?;
    Ok(())
}
