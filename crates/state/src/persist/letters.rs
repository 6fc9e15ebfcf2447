//! Dead letters beyond those that are rows: one record of the table `gaps` for each queue.
//!
//! How many rows a queue has stands in `dead_letter_counts`, which whoever inserts or deletes a letter
//! brings up to date in the same statement. So nothing is ever counted anew, however many there are.

use super::super::key;
use super::super::place::COMMIT;
use super::{Scope, StateError, Transaction, bodies, queues};
use futures_util::future::try_join_all;
use walhook_core::persist::{Purge, Purged};
use walhook_postgres::op::{EQ, PLUS};

/// What a `WITH` goes on with that has `gone`, the letters which it deletes (with their `endpoint`, `account`
/// and `bytes`): takes them off the counts. `$1` is the pipeline.
pub(super) fn with_uncounted(s: &str) -> String {
    format!(
        "uncounted AS (
             INSERT INTO {s}.dead_letter_counts AS c (pipeline, endpoint, account, letters, bytes)
             SELECT $1, endpoint, account, OPERATOR(pg_catalog.-) pg_catalog.count(*),
                    OPERATOR(pg_catalog.-) pg_catalog.sum(bytes)::bigint
             FROM gone WHERE account IS NOT NULL GROUP BY endpoint, account
             ON CONFLICT (pipeline, endpoint, account) DO UPDATE SET
                 letters = greatest(c.letters {PLUS} excluded.letters, 0),
                 bytes = greatest(c.bytes {PLUS} excluded.bytes, 0))"
    )
}

/// Removes dead letters, and counts them in the records of their queues.
pub(super) async fn purge(
    tx: &Transaction<'_>,
    scope: &Scope,
    purges: &[Purge],
) -> Result<Vec<Purged>, StateError> {
    let sql = purge_sql(&scope.s);
    try_join_all(purges.iter().map(|purge| queues::purge(tx, scope, &sql, purge))).await
}

/// The statement of a purge, as [`queues::purge`] wants it.
fn purge_sql(s: &str) -> String {
    // Ones of an earlier version have no account, and stay.
    format!(
        "WITH gone AS (
             DELETE FROM {s}.dead_letters g WHERE g.ctid {EQ} ANY (ARRAY (
                 SELECT ctid FROM {s}.dead_letters WHERE pipeline {EQ} $1 AND {}
                 ORDER BY endpoint, account LIMIT $4))
             RETURNING event_id, endpoint, account, bytes, (
                 SELECT b.{COMMIT} FROM {s}.bodies b WHERE b.pipeline {EQ} $1
                    AND b.event_id {EQ} g.event_id) AS {COMMIT}),
         given_up AS (
             INSERT INTO {s}.gaps AS g (pipeline, endpoint, account, reason, from_lsn, to_lsn, removed,
                    dead_letters, last_at)
             SELECT $1, $2, $3, 'dead letters, given up as state.max_size was reached',
                    pg_catalog.min({COMMIT}), pg_catalog.max({COMMIT}), pg_catalog.count(*), true,
                    pg_catalog.now()
             FROM gone HAVING pg_catalog.count(*) OPERATOR(pg_catalog.>) 0
             ON CONFLICT (pipeline, endpoint, account) WHERE dead_letters AND closed_at IS NULL
             DO UPDATE SET removed = g.removed {PLUS} excluded.removed,
                 from_lsn = least(g.from_lsn, excluded.from_lsn),
                 to_lsn = greatest(g.to_lsn, excluded.to_lsn), last_at = excluded.last_at),
         {}, {}
         SELECT pg_catalog.count(*) FROM gone",
        key::range("endpoint, account", "$2, $3"),
        with_uncounted(s),
        bodies::with_unused(s, "dead_letters")
    )
}
