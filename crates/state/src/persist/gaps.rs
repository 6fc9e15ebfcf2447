//! The table `gaps`, as far as a leader writes it: gaps of suspended queues, and the rows that go there.

use futures_util::future::try_join_all;
use tokio_postgres::types::{PgLsn, Type};

use super::super::place::{self, COMMIT};
use super::super::replays::{Late, with_late};
use super::{Param, Scope, StateError, Transaction, bodies, pages, queues};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{GapChange, Purge, Purged};
use walhook_postgres::op::{EQ, PLUS};

/// Begins gaps and says how far they have grown.
///
/// A new gap begins and ends at the queue's first row, or at `frontier` where there is none. One that
/// has come to count nothing was none.
pub(super) async fn store(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    frontier: Lsn,
    gaps: &[GapChange],
) -> Result<(), StateError> {
    if gaps.is_empty() {
        return Ok(());
    }
    let (endpoints, accounts) = queues::columns(gaps.iter().map(|gap| &gap.queue));
    let reasons: Vec<Option<&str>> = gaps.iter().map(|gap| gap.opens.as_deref()).collect();
    let skipped: Vec<i64> =
        gaps.iter().map(|gap| i64::try_from(gap.skipped).unwrap_or(i64::MAX)).collect();
    let lsn = |lsn: Lsn| PgLsn::from(lsn.0);
    let firsts: Vec<Option<PgLsn>> =
        gaps.iter().map(|gap| gap.span.map(|(first, _)| lsn(first))).collect();
    let lasts: Vec<Option<PgLsn>> =
        gaps.iter().map(|gap| gap.span.map(|(_, last)| lsn(last))).collect();
    let growing: Vec<bool> = gaps.iter().map(|gap| gap.growing).collect();
    let frontier = lsn(frontier);
    let open = open_sql(s);
    let row = key_of_growing(s);
    // Before the others grow: one that counts nothing and ends.
    let forget = format!(
        "DELETE FROM {s}.gaps WHERE ctid {EQ} ANY (ARRAY (
             SELECT (SELECT g.ctid FROM {s}.gaps g WHERE g.ctid {EQ} {row}
                        AND g.removed {PLUS} r.skipped {EQ} 0::bigint)
             FROM unnest($2, $3, $4, $5) AS r(endpoint, account, skipped, growing)
             WHERE NOT r.growing))"
    );
    let grow = format!(
        "UPDATE {s}.gaps g SET skipped = r.skipped, from_lsn = least(g.from_lsn, r.first),
                to_lsn = greatest(g.to_lsn, r.last), growing = r.growing
         FROM unnest($2, $3, $4, $5, $6, $7)
              AS r(endpoint, account, skipped, first, last, growing)
         WHERE g.ctid {EQ} {row}"
    );
    let of_open: [Param<'_>; 6] = [
        (pipeline, Type::TEXT),
        (&endpoints, Type::TEXT_ARRAY),
        (&accounts, Type::TEXT_ARRAY),
        (&reasons, Type::TEXT_ARRAY),
        (&firsts, Type::PG_LSN_ARRAY),
        (&frontier, Type::PG_LSN),
    ];
    let of_grow: [Param<'_>; 7] = [
        (pipeline, Type::TEXT),
        (&endpoints, Type::TEXT_ARRAY),
        (&accounts, Type::TEXT_ARRAY),
        (&skipped, Type::INT8_ARRAY),
        (&firsts, Type::PG_LSN_ARRAY),
        (&lasts, Type::PG_LSN_ARRAY),
        (&growing, Type::BOOL_ARRAY),
    ];
    let of_forget: [Param<'_>; 5] = [
        (pipeline, Type::TEXT),
        (&endpoints, Type::TEXT_ARRAY),
        (&accounts, Type::TEXT_ARRAY),
        (&skipped, Type::INT8_ARRAY),
        (&growing, Type::BOOL_ARRAY),
    ];
    // In this order: statements that are sent together are carried out one after the other.
    futures_util::try_join!(
        tx.execute_typed(&open, &of_open),
        tx.execute_typed(&forget, &of_forget),
        tx.execute_typed(&grow, &of_grow),
    )?;
    Ok(())
}

/// Begins gaps at the first of what is stored, as a row or in a page, or at what is given.
fn open_sql(s: &str) -> String {
    format!(
        "INSERT INTO {s}.gaps (pipeline, endpoint, account, reason, from_lsn, to_lsn, growing)
         SELECT $1, r.endpoint, r.account, r.reason, f.lsn, f.lsn, true
         FROM unnest($2, $3, $4, $5) AS r(endpoint, account, reason, first)
         CROSS JOIN LATERAL (SELECT coalesce(least((
             SELECT d.{COMMIT} FROM {s}.deferred d
             WHERE d.pipeline {EQ} $1 AND d.endpoint {EQ} r.endpoint AND d.account {EQ} r.account
             ORDER BY {}, d.event_type, d.replay_id LIMIT 1), (
             SELECT l.first FROM (
                 SELECT * FROM {s}.pages p
                 WHERE p.pipeline {EQ} $1 AND p.endpoint {EQ} r.endpoint AND p.account {EQ} r.account
                 ORDER BY {}, p.event_type LIMIT 1) p
             CROSS JOIN LATERAL ({}) l)),
             r.first, $6) AS lsn) f
         WHERE r.reason IS NOT NULL
         ON CONFLICT (pipeline, endpoint, account) WHERE growing DO NOTHING",
        place::columns("d."),
        place::columns("p."),
        pages::left_sql(s)
    )
}

/// The place of the growing gap of the queue that `r` names.
fn key_of_growing(s: &str) -> String {
    format!(
        "(SELECT ctid FROM {s}.gaps WHERE pipeline {EQ} $1 AND endpoint {EQ} r.endpoint
            AND account {EQ} r.account AND growing)"
    )
}

/// Removes rows of suspended queues, the oldest first, and counts them in the queues' gaps.
pub(super) async fn purge(
    tx: &Transaction<'_>,
    scope: &Scope,
    purges: &[Purge],
) -> Result<Vec<Purged>, StateError> {
    let sql = purge_sql(&scope.s);
    let sql = &sql;
    try_join_all(purges.iter().map(async |purge| {
        let (of_pages, no_page_left) = pages::purge(tx, scope, purge).await?;
        let Purged { queue, rows, all } = queues::purge(tx, scope, sql, purge).await?;
        Ok(Purged { queue, rows: rows + of_pages, all: all && no_page_left })
    }))
    .await
}

/// The statement of a purge, as [`queues::purge`] wants it.
fn purge_sql(s: &str) -> String {
    let of_queue = format!("pipeline {EQ} $1 AND endpoint {EQ} $2 AND account {EQ} $3");
    let place = place::columns("");
    format!(
        "WITH gone AS (
             DELETE FROM {s}.deferred WHERE ctid {EQ} ANY (ARRAY (
                 SELECT ctid FROM {s}.deferred
                 WHERE {of_queue} AND EXISTS (SELECT FROM {s}.gaps WHERE {of_queue} AND growing)
                 ORDER BY {place}, event_type, replay_id LIMIT $4))
             RETURNING event_id, {COMMIT}, replay_id),
         counted AS (
             UPDATE {s}.gaps
             SET (removed, from_lsn, to_lsn) = (
                 SELECT removed {PLUS} pg_catalog.count(*),
                        least(from_lsn, pg_catalog.min({COMMIT})),
                        greatest(to_lsn, pg_catalog.max({COMMIT})) FROM gone)
             WHERE {of_queue} AND growing),
         {}, {}
         SELECT pg_catalog.count(*) FROM gone",
        with_late(s, Late::InGaps),
        bodies::with_unused(s, "deferred")
    )
}
