//! Who holds most of the state tables.

use tokio_postgres::types::Type;

use super::{Param, Scope, StateError, StateStore, key, text};
use walhook_core::room::Holder;
use walhook_postgres::op::EQ;

/// So many, the largest first: enough to make room with, where each holds little.
const LARGEST: i64 = 64;

/// Dead letters count like deferred rows, one each; but large ones by what they take, a row for each so many
/// bytes. So nobody fills the tables with a few letters that are as large as may be.
const BYTES_PER_ROW: i64 = 4_096;

impl StateStore {
    /// The queues that hold most, deferred rows and dead letters together, the largest first.
    ///
    /// Reads a row or two of each queue. One of which only a count is left, for somebody else removed its rows, holds
    /// nothing.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn holders(&self) -> Result<Vec<Holder>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT * FROM (
             SELECT endpoint, account, pg_catalog.sum(letters)::bigint AS letters,
                    pg_catalog.sum(bytes)::bigint AS bytes
             FROM (SELECT c.endpoint, c.account, c.letters, c.bytes,
                          greatest(c.letters, c.bytes OPERATOR(pg_catalog./) $3) AS rows
                   FROM {s}.dead_letter_counts c
                   WHERE c.pipeline {EQ} $1
                     AND c.letters OPERATOR(pg_catalog.>) 0::bigint
                   UNION ALL
                   SELECT b.endpoint, b.account, 0::bigint, 0::bigint, b.deferred
                   FROM {s}.backlog b
                   WHERE b.pipeline {EQ} $1
                     AND b.deferred OPERATOR(pg_catalog.>) 0::bigint) held
             GROUP BY endpoint, account ORDER BY pg_catalog.sum(rows) DESC, endpoint, account LIMIT $2) q
             WHERE letters OPERATOR(pg_catalog.>) 0::bigint OR {} OR {}",
            has_rows(s, "deferred"),
            has_rows(s, "pages")
        );
        let params: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (&LARGEST, Type::INT8), (&BYTES_PER_ROW, Type::INT8)];
        let rows = self.connection.query_typed(&sql, &params).await?;
        let count = |n: i64| u64::try_from(n).unwrap_or_default();
        rows.iter()
            .map(|row| {
                Ok(Holder {
                    queue: text::queue(row.try_get(1)?, row.try_get(0)?),
                    letters: count(row.try_get(2)?),
                    letter_bytes: count(row.try_get(3)?),
                })
            })
            .collect()
    }
}

/// Whether the table has a row of the queue `q`.
fn has_rows(s: &str, table: &str) -> String {
    let row = key::row(s, table, "true", "endpoint, account", "q.endpoint, q.account");
    format!("{row} IS NOT NULL")
}
