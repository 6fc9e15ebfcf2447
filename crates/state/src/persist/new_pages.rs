//! The table `pages`: which deliveries of a batch become one.
//!
//! All of that is decided, and the pages are made, before the transaction begins: to compress takes time, and
//! the leader's row is locked meanwhile. Only the leader adds pages, so none that is in the way comes up in
//! between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::try_join_all;
use tokio::task::spawn_blocking;
use tokio_postgres::types::Type;

use super::super::page;
use super::super::place::{self, Places};
use super::super::session::Session;
use super::pages::place_columns;
use super::{Param, Scope, StateError, Transaction, queues, system_time};
use walhook_core::persist::{Defer, DeferReason, PersistBatch, QueueId, RowId, Tried};
use walhook_postgres::op::{EQ, GE, LE};

/// Fewer deliveries are rows.
pub(super) const DELIVERIES_MIN: u32 = 4;

/// Deliveries of a page at most, and bytes of their bodies.
const DELIVERIES_MAX: usize = 256;
const BYTES_MAX: usize = 128 << 10;

/// What becomes of a batch's deferred deliveries.
#[derive(Debug)]
pub(in super::super) struct Split {
    /// As pages, which overlap neither each other nor any that was there.
    pub(super) pages: Vec<NewPage>,
    /// As rows.
    pub(super) rows: Vec<Defer>,
}

/// Deliveries of one queue in order, and what a page holds of them beside the arrays.
#[derive(Debug)]
pub(super) struct NewPage {
    run: Vec<Defer>,
    data: Vec<u8>,
}

impl Split {
    /// All as rows.
    pub(in super::super) fn rows(batch: &PersistBatch) -> Self {
        Self { pages: Vec::new(), rows: batch.deferred.clone() }
    }

    /// Decides for a batch that is to be stored in `session`.
    pub(in super::super) async fn of(
        session: &Session,
        scope: &Scope,
        batch: &PersistBatch,
    ) -> Result<Self, StateError> {
        if !scope.writes_pages || batch.deferred.len() < DELIVERIES_MIN as usize {
            return Ok(Self::rows(batch));
        }
        let (runs, mut rows) = in_runs(batch);
        let (runs, overlapping) = overlaps(session, scope, runs).await?;
        rows.extend(overlapping.into_iter().flatten());
        let runs = Arc::new(runs);
        let shared = Arc::clone(&runs);
        let encoded = spawn_blocking(move || encode(&shared)).await;
        // It fails where the runtime ends, or by a defect, which then shows here.
        let encoded = encoded.unwrap_or_else(|_| encode(&runs));
        let runs = Arc::unwrap_or_clone(runs);
        let pages = runs.into_iter().zip(encoded).map(|(run, data)| NewPage { run, data });
        Ok(Self { pages: pages.collect(), rows })
    }
}

fn encode(runs: &[Vec<Defer>]) -> Vec<Vec<u8>> {
    runs.iter().map(|run| page::encode(run.iter().map(|defer| &*defer.event))).collect()
}

/// The runs of a batch that are worth a page, and what is left over. What the batch also changes is left over:
/// the change must find a row.
fn in_runs(batch: &PersistBatch) -> (Vec<Vec<Defer>>, Vec<Defer>) {
    let named = batch.resolved.iter().chain(&batch.dropped);
    let named = named.chain(batch.retimed.iter().map(|(id, _)| id));
    let changed: BTreeSet<&RowId> = named.chain(batch.died.iter().map(|(id, _)| id)).collect();
    let (mut rows, mut queues) = (Vec::new(), BTreeMap::<&QueueId, BTreeMap<_, _>>::new());
    for defer in &batch.deferred {
        if is_plain(defer) && !changed.contains(&defer.id) {
            queues.entry(&defer.id.queue).or_default().insert(&defer.id.key, defer);
        } else {
            rows.push(defer.clone());
        }
    }
    let runs = queues.into_values().flat_map(|queue| runs(queue.into_values()));
    let (runs, short): (Vec<_>, Vec<_>) =
        runs.partition(|run| run.len() >= DELIVERIES_MIN as usize);
    rows.extend(short.into_iter().flatten());
    (runs, rows)
}

/// Whether the delivery has no story of its own.
fn is_plain(Defer { id, event, reason, tried }: &Defer) -> bool {
    let is_in_bulk = match reason {
        DeferReason::Failed => false,
        DeferReason::Overflow
        | DeferReason::Breaker
        | DeferReason::Paused
        | DeferReason::Held
        | DeferReason::Behind
        | DeferReason::Unrouted => true,
    };
    is_in_bulk && id.key.replay.is_none() && *tried == Tried::default() && page::fits(event)
}

/// Runs of deliveries in order that fit a page each.
fn runs<'a>(deliveries: impl Iterator<Item = &'a Defer>) -> Vec<Vec<Defer>> {
    let mut runs: Vec<Vec<Defer>> = Vec::new();
    let mut bytes = 0;
    for defer in deliveries {
        bytes += defer.event.row.len();
        match runs.last_mut() {
            Some(run)
                if run.len() < DELIVERIES_MAX
                    && bytes <= BYTES_MAX
                    && run.last().is_some_and(|last| last.reason == defer.reason) =>
            {
                run.push(defer.clone());
            }
            _ => {
                bytes = defer.event.row.len();
                runs.push(vec![defer.clone()]);
            }
        }
    }
    runs
}

/// Tells the runs that overlap no page which is there from those that do. A page with the same deliveries is
/// the run itself, which was stored before.
async fn overlaps(
    session: &Session,
    Scope { s, pipeline, .. }: &Scope,
    runs: Vec<Vec<Defer>>,
) -> Result<(Vec<Vec<Defer>>, Vec<Vec<Defer>>), StateError> {
    if runs.is_empty() {
        return Ok((runs, Vec::new()));
    }
    let firsts = runs.iter().filter_map(|run| run.first()).map(|defer| &defer.id);
    let lasts = runs.iter().filter_map(|run| run.last()).map(|defer| &defer.id);
    let (endpoints, accounts) = queues::columns(firsts.clone().map(|id| &id.queue));
    let first = Places::new(firsts.clone().map(|id| id.key.event.position));
    let last = Places::new(lasts.clone().map(|id| id.key.event.position));
    let first_types: Vec<&str> = firsts.map(|id| &*id.key.event.event_type).collect();
    let last_types: Vec<&str> = lasts.map(|id| &*id.key.event.event_type).collect();
    let mut params: Vec<Param<'_>> =
        vec![(pipeline, Type::TEXT), (&endpoints, Type::TEXT_ARRAY), (&accounts, Type::TEXT_ARRAY)];
    params.extend(first.params());
    params.push((&first_types, Type::TEXT_ARRAY));
    params.extend(last.params());
    params.push((&last_types, Type::TEXT_ARRAY));
    // The first page that ends at or behind the run's first place is in the way where it begins at or before
    // its last.
    let sql = format!(
        "SELECT (SELECT CASE WHEN ({}) {LE} ({}, r.last_type) THEN event_ids END
                 FROM (SELECT * FROM {s}.pages
                       WHERE pipeline {EQ} $1 AND endpoint {EQ} r.endpoint AND account {EQ} r.account
                         AND ({}) {GE} ({}, r.first_type)
                       ORDER BY {} LIMIT 1) p)
         FROM unnest({}) WITH ORDINALITY
              AS r(endpoint, account, {}, first_type, {}, last_type, at) ORDER BY r.at",
        place_columns("first_"),
        place::columns("r.last_"),
        place_columns(""),
        place::columns("r.first_"),
        place_columns(""),
        place::dollars(2, params.len() - 1),
        place::columns("first_"),
        place::columns("last_"),
    );
    let found = session.query_typed(&sql, &params).await?;
    let (mut clear, mut overlapping) = (Vec::new(), Vec::new());
    for (row, run) in found.iter().zip(runs) {
        let ids: Option<Vec<&str>> = row.try_get(0)?;
        let is_clear = ids.is_none_or(|ids| {
            ids.len() == run.len()
                && ids.iter().zip(&run).all(|(id, defer)| *id == defer.event.id.to_string())
        });
        if is_clear { clear.push(run) } else { overlapping.push(run) }
    }
    Ok((clear, overlapping))
}

/// Inserts pages; one that is there already stays as it is.
pub(super) async fn insert(
    tx: &Transaction<'_>,
    scope: &Scope,
    pages: &[NewPage],
) -> Result<(), StateError> {
    try_join_all(pages.iter().map(|page| insert_one(tx, scope, page))).await?;
    Ok(())
}

async fn insert_one(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    NewPage { run, data }: &NewPage,
) -> Result<(), StateError> {
    let Some(first) = run.first() else { return Ok(()) };
    let QueueId { account, endpoint } = &first.id.queue;
    let (account, endpoint, reason) = (account.as_str(), endpoint.as_str(), first.reason.as_str());
    let ids: Vec<String> = run.iter().map(|defer| defer.event.id.to_string()).collect();
    let places = Places::new(run.iter().map(|defer| defer.event.position));
    let types: Vec<&str> = run.iter().map(|defer| &*defer.event.event_type).collect();
    let times: Vec<SystemTime> =
        run.iter().map(|defer| system_time(defer.event.commit_time_us)).collect();
    let bytes = run.iter().map(|defer| defer.event.row.len()).sum::<usize>();
    let (deliveries, bytes) = (saturating(run.len()), saturating(bytes));
    let mut params: Vec<Param<'_>> = vec![
        (pipeline, Type::TEXT),
        (&endpoint, Type::TEXT),
        (&account, Type::TEXT),
        (&reason, Type::TEXT),
        (&deliveries, Type::INT4),
        (&bytes, Type::INT4),
        (&ids, Type::TEXT_ARRAY),
    ];
    let places_at = params.len() + 1;
    params.extend(places.params());
    params.push((&types, Type::TEXT_ARRAY));
    let types_at = params.len();
    params.push((&times, Type::TIMESTAMPTZ_ARRAY));
    params.push((data, Type::BYTEA));
    let sql = format!(
        "INSERT INTO {s}.pages (pipeline, endpoint, account, {}, {}, reason, deliveries, bytes, event_ids, {},
                event_types, committed_ats, data)
         VALUES ($1, $2, $3, {}, (${types_at})[$5], {}, (${types_at})[1], {})
         ON CONFLICT DO NOTHING",
        place_columns(""),
        place_columns("first_"),
        place::arrays(""),
        place::elements(places_at, "$5"),
        place::elements(places_at, "1"),
        place::dollars(4, params.len() - 3)
    );
    tx.execute_typed(&sql, &params).await?;
    Ok(())
}

fn saturating(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}
