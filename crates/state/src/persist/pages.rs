//! The table `pages`: what becomes of single deliveries in it.
//!
//! Pages of a queue do not overlap, so that they have one order, and a delivery is found in the first one
//! that ends at or behind its place. What has left a page is noted in `page_done`; with its last delivery the
//! page goes. Whatever is to have a story of its own is taken out first: the whole page is taken apart, and
//! its deliveries become rows.

mod named;

use std::sync::Arc;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::super::page::{Page, page_columns, slots};
use super::super::place::{self, COMMIT};
use super::new_pages::DELIVERIES_MIN;
use super::{Param, Scope, StateError, Transaction};
use named::{Named, by_page};
use walhook_core::event::Event;
use walhook_core::persist::{Purge, RowId};
use walhook_postgres::op::{EQ, GT, LT, MINUS, PLUS};

/// The columns of a place in a queue, and which of them a page has for its first delivery.
pub(in super::super) fn place_columns(of: &str) -> String {
    format!("{}, {of}event_type", place::columns(of))
}

/// What a `WITH` goes on with that has `held`, pages which it deletes: deletes what is noted of them.
fn with_done(s: &str) -> String {
    format!(
        "done AS (
             DELETE FROM {s}.page_done WHERE ctid {EQ} ANY (ARRAY (
                 SELECT (SELECT d.ctid FROM {s}.page_done d
                         WHERE d.pipeline {EQ} $1 AND d.page {EQ} h.page) FROM held h)))"
    )
}

/// Notes that deliveries have left their pages: those of `ids` that stand in one. With its last delivery a
/// page goes.
pub(in super::super) async fn mark(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    ids: &[RowId],
) -> Result<(), StateError> {
    let named = Named::new(ids.iter());
    if named.is_empty() {
        return Ok(());
    }
    let params = named.params(pipeline);
    // Each page's ids are read once, and compared with all names at once.
    let sql = format!(
        "WITH {},
         marked AS (
             SELECT p.ctid AS place, p.page, p.deliveries,
                    ARRAY (SELECT x FROM unnest({} OPERATOR(pg_catalog.||) m.slots) AS t(x) GROUP BY x)
                        AS slots
             FROM by_page b
             CROSS JOIN LATERAL (SELECT *, ctid FROM {s}.pages WHERE ctid {EQ} b.place OFFSET 0) p
             CROSS JOIN LATERAL (
                 SELECT pg_catalog.array_agg(f.slot::smallint) AS slots FROM (
                     SELECT pg_catalog.max(u.slot) AS slot FROM (
                         SELECT * FROM unnest(p.event_ids) WITH ORDINALITY AS i(id, slot)
                         UNION ALL
                         SELECT n.id, 0::bigint FROM unnest(b.events) AS n(id)) u
                     GROUP BY u.id
                     HAVING pg_catalog.min(u.slot) {EQ} 0::bigint
                        AND pg_catalog.max(u.slot) {GT} 0::bigint) f) m
             WHERE m.slots IS NOT NULL),
         held AS (SELECT * FROM marked WHERE pg_catalog.cardinality(slots) {EQ} deliveries),
         kept AS (
             INSERT INTO {s}.page_done (pipeline, page, slots)
             SELECT $1, page, slots FROM marked WHERE pg_catalog.cardinality(slots) {LT} deliveries
             ON CONFLICT (pipeline, page) DO UPDATE SET slots = excluded.slots),
         {}
         DELETE FROM {s}.pages WHERE ctid {EQ} ANY (ARRAY (SELECT place FROM held))",
        by_page(s),
        slots(s),
        with_done(s)
    );
    tx.execute_typed(&sql, &params).await?;
    Ok(())
}

/// Takes the pages apart in which any of these deliveries stand: what is left in them are rows then. Returns
/// the events of these, whose bodies are to be stored in the same transaction.
pub(super) async fn take_apart(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    ids: impl Iterator<Item = &RowId>,
) -> Result<Vec<Arc<Event>>, StateError> {
    let named = Named::new(ids);
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let params = named.params(pipeline);
    let held = format!(
        "WITH {}, held AS (
             SELECT {} FROM by_page b
             CROSS JOIN LATERAL (SELECT *, ctid FROM {s}.pages WHERE ctid {EQ} b.place OFFSET 0) p
             WHERE p.event_ids OPERATOR(pg_catalog.&&) b.events)",
        by_page(s),
        held_columns(s)
    );
    read_apart(tx.query_typed(&apart_sql(s, &held), &params).await?)
}

/// Takes so many pages apart, the first of the pipeline; likewise. No event: there was no page.
pub(in super::super) async fn take_some_apart(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    pages: i64,
) -> Result<Vec<Arc<Event>>, StateError> {
    let held = format!(
        "WITH held AS (
             SELECT {} FROM (SELECT *, ctid FROM {s}.pages WHERE pipeline {EQ} $1
                             ORDER BY endpoint, account, {} LIMIT $2) p)",
        held_columns(s),
        place_columns("")
    );
    let params: [Param<'_>; 2] = [(pipeline, Type::TEXT), (&pages, Type::INT8)];
    read_apart(tx.query_typed(&apart_sql(s, &held), &params).await?)
}

/// What [`apart_sql`] wants of `pages p` in `held`.
fn held_columns(s: &str) -> String {
    format!("{}, p.endpoint AS page_endpoint, p.deferred_at, p.ctid AS place", page_columns(s))
}

/// Takes apart what `WITH held` names, and selects it.
fn apart_sql(s: &str, with_held: &str) -> String {
    let place = place::columns("");
    format!(
        "{with_held},
         rows AS (
             INSERT INTO {s}.deferred (pipeline, endpoint, account, event_id, {place}, event_type, reason,
                    attempts, detail, deferred_at)
             SELECT $1, h.page_endpoint, h.page_account, u.event_id, {}, u.event_type, h.page_reason, 0, '',
                    h.deferred_at
             FROM held h
             CROSS JOIN LATERAL unnest(h.event_ids, {}, h.event_types)
                  WITH ORDINALITY AS u(event_id, {place}, event_type, slot)
             WHERE NOT (u.slot::smallint {EQ} ANY (h.slots))
             ON CONFLICT DO NOTHING),
         {},
         gone AS (DELETE FROM {s}.pages WHERE ctid {EQ} ANY (ARRAY (SELECT place FROM held)))
         SELECT * FROM held",
        place::columns("u."),
        place::arrays("h."),
        with_done(s)
    )
}

/// The events of the deliveries that were left in the pages.
fn read_apart(rows: Vec<Row>) -> Result<Vec<Arc<Event>>, StateError> {
    let mut events = Vec::new();
    for row in rows {
        let left = Page::read(&row)?.rows.into_iter().flatten();
        events.extend(left.map(|deferred| deferred.event));
    }
    Ok(events)
}

/// Selects of the page `p`, of whatever was left in it: from where to where it was committed, and how many
/// deliveries that are.
pub(super) fn left_sql(s: &str) -> String {
    format!(
        "SELECT pg_catalog.min(u.lsn) AS first, pg_catalog.max(u.lsn) AS last, pg_catalog.count(*) AS n
         FROM (SELECT {} AS slots OFFSET 0) done
         CROSS JOIN LATERAL unnest(p.{COMMIT}s) WITH ORDINALITY AS u(lsn, slot)
         WHERE NOT (u.slot::smallint {EQ} ANY (done.slots))",
        slots(s)
    )
}

/// Removes pages of a suspended queue, the oldest first, and counts what was left in them in its gap: as many
/// as hold so many deliveries, for they are never taken apart where there is no room. Returns how many were
/// left in them, and whether the queue has no page any more.
pub(super) async fn purge(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    Purge { queue, rows }: &Purge,
) -> Result<(u64, bool), StateError> {
    let (endpoint, account) = (queue.endpoint.as_str(), queue.account.as_str());
    let of_queue = format!("pipeline {EQ} $1 AND endpoint {EQ} $2 AND account {EQ} $3");
    let (rows, most) = (i64::from(*rows), i64::from(*rows / DELIVERIES_MIN + 2));
    let place = place_columns("");
    let sql = format!(
        "WITH first AS (
             SELECT place, page, {COMMIT}s, deliveries,
                    pg_catalog.sum(deliveries) OVER (ORDER BY {place}) {MINUS} deliveries AS before
             FROM (SELECT *, ctid AS place FROM {s}.pages
                   WHERE {of_queue} AND EXISTS (SELECT FROM {s}.gaps WHERE {of_queue} AND growing)
                   ORDER BY {place} LIMIT $5) p),
         held AS (
             SELECT p.place, p.page, l.* FROM first p CROSS JOIN LATERAL ({}) l WHERE p.before {LT} $4),
         {},
         gone AS (DELETE FROM {s}.pages WHERE ctid {EQ} ANY (ARRAY (SELECT place FROM held))),
         counted AS (
             UPDATE {s}.gaps
             SET (removed, from_lsn, to_lsn) = (
                 SELECT removed {PLUS} coalesce(pg_catalog.sum(n)::bigint, 0::bigint),
                        least(from_lsn, pg_catalog.min(first)),
                        greatest(to_lsn, pg_catalog.max(last)) FROM held)
             WHERE {of_queue} AND growing)
         SELECT coalesce(pg_catalog.sum(n)::bigint, 0::bigint),
                pg_catalog.count(*) {EQ} (SELECT pg_catalog.count(*) FROM first)
                    AND pg_catalog.count(*) {LT} $5
         FROM held",
        left_sql(s),
        with_done(s)
    );
    let params: [Param<'_>; 5] = [
        (pipeline, Type::TEXT),
        (&endpoint, Type::TEXT),
        (&account, Type::TEXT),
        (&rows, Type::INT8),
        (&most, Type::INT8),
    ];
    let held = tx.query_typed_one(&sql, &params).await?;
    let removed: i64 = held.try_get(0)?;
    Ok((removed.cast_unsigned(), held.try_get(1)?))
}
