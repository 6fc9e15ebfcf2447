//! The table `deferred`: rows inserted, retimed, turned into dead letters, removed.

use std::time::SystemTime;

use tokio_postgres::types::Type;

use super::super::key;
use super::super::place::{self, Places};
use super::super::replay_column;
use super::super::replays::{Late, with_late};
use super::history::{last_ten, records};
use super::{
    Param, Scope, StateError, Step, Transaction, bodies, dead_letters, saturate, system_time,
};
use walhook_core::persist::{DeadLetter, Defer, QueueId, RowId, Tried};
use walhook_postgres::op::{EQ, LT};

/// The place of the row that `r` of [`Named`] names.
fn place(s: &str) -> String {
    key::delivery(s, "deferred", "ctid")
}

/// Rows named by their second unique key, as the columns `$2` to `$4`.
struct Named<'a> {
    events: Vec<String>,
    endpoints: Vec<&'a str>,
    replays: Vec<i64>,
}

impl<'a> Named<'a> {
    fn new(ids: impl Iterator<Item = &'a RowId> + Clone) -> Self {
        Self {
            events: ids.clone().map(|id| id.event.to_string()).collect(),
            endpoints: ids.clone().map(|id| id.queue.endpoint.as_str()).collect(),
            replays: ids.map(|id| replay_column::of(id.key.replay)).collect(),
        }
    }

    fn params<'b>(&'b self, pipeline: &'b String) -> Vec<Param<'b>> {
        vec![
            (pipeline, Type::TEXT),
            (&self.events, Type::TEXT_ARRAY),
            (&self.endpoints, Type::TEXT_ARRAY),
            (&self.replays, Type::INT8_ARRAY),
        ]
    }
}

/// What was tried, as columns.
struct TriedColumns {
    attempts: Vec<i32>,
    first: Vec<Option<i64>>,
    due: Vec<Option<SystemTime>>,
    statuses: Vec<Option<i32>>,
    details: Vec<String>,
    histories: Vec<Option<String>>,
}

impl TriedColumns {
    fn new<'a>(tried: impl Iterator<Item = &'a Tried> + Clone) -> Self {
        Self {
            attempts: tried.clone().map(|t| saturate(t.attempts)).collect(),
            first: tried.clone().map(|t| t.first_attempt_us).collect(),
            due: tried.clone().map(|t| t.due_us.map(system_time)).collect(),
            statuses: tried.clone().map(|t| t.last_status.map(i32::from)).collect(),
            details: tried.clone().map(|t| t.detail.clone()).collect(),
            histories: tried.map(|t| records(&t.history)).collect(),
        }
    }

    fn params(&self) -> [Param<'_>; 6] {
        [
            (&self.attempts, Type::INT4_ARRAY),
            (&self.first, Type::INT8_ARRAY),
            (&self.due, Type::TIMESTAMPTZ_ARRAY),
            (&self.statuses, Type::INT4_ARRAY),
            (&self.details, Type::TEXT_ARRAY),
            (&self.histories, Type::TEXT_ARRAY),
        ]
    }
}

/// Inserts rows; one that is there already stays as it is. Their bodies must be there.
pub(super) async fn insert(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    rows: &[Defer],
) -> Result<(), StateError> {
    if rows.is_empty() {
        return Ok(());
    }
    let named = Named::new(rows.iter().map(|row| &row.id));
    let accounts: Vec<&str> = rows.iter().map(|row| row.id.queue.account.as_str()).collect();
    let places = Places::new(rows.iter().map(|row| row.id.key.event.position));
    let types: Vec<&str> = rows.iter().map(|row| &*row.id.key.event.event_type).collect();
    let reasons: Vec<&str> = rows.iter().map(|row| row.reason.as_str()).collect();
    let tried = TriedColumns::new(rows.iter().map(|row| &row.tried));
    let mut params = named.params(pipeline);
    params.push((&accounts, Type::TEXT_ARRAY));
    params.extend(places.params());
    params.push((&types, Type::TEXT_ARRAY));
    params.push((&reasons, Type::TEXT_ARRAY));
    params.extend(tried.params());
    let (place, arrays) = (place::columns(""), place::dollars(2, params.len() - 1));
    let sql = format!(
        "INSERT INTO {s}.deferred
                (pipeline, event_id, endpoint, replay_id, account, {place},
                 event_type, reason, attempts, first_attempt_us, next_attempt_at, last_status, detail,
                 history)
         SELECT $1, event, endpoint, replay, account, {place}, type, reason,
                attempts, first, due, status, detail, history::pg_catalog.jsonb
         FROM unnest({arrays})
              AS r(event, endpoint, replay, account, {place}, type, reason,
                   attempts, first, due, status, detail, history)
         ON CONFLICT DO NOTHING"
    );
    tx.execute_typed(&sql, &params).await?;
    Ok(())
}

/// Stores what was tried. An attempt that is counted already adds nothing to the history.
///
/// An INSERT that always meets its row: the only kind of update that looks each row up by its key,
/// whatever the planner thinks of the table. A row that is gone is not among those inserted.
pub(super) async fn retime(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    retimed: &[(RowId, Tried)],
) -> Result<(), StateError> {
    if retimed.is_empty() {
        return Ok(());
    }
    let named = Named::new(retimed.iter().map(|(id, _)| id));
    let tried = TriedColumns::new(retimed.iter().map(|(_, tried)| tried));
    let sql = format!(
        "INSERT INTO {s}.deferred
                (pipeline, event_id, endpoint, replay_id, account, {place},
                 event_type, reason, attempts, first_attempt_us, next_attempt_at, last_status, detail,
                 history)
         SELECT d.pipeline, d.event_id, d.endpoint, d.replay_id, d.account, {place_of_row}, d.event_type,
                d.reason, r.attempts, r.first, r.due, r.status, r.detail,
                CASE WHEN d.attempts {LT} r.attempts THEN {history} ELSE d.history END
         FROM unnest($2, $3, $4, $5, $6, $7, $8, $9, $10)
              AS r(event, endpoint, replay, attempts, first, due, status, detail, history)
         CROSS JOIN LATERAL {row} d
         ON CONFLICT (pipeline, event_id, endpoint, replay_id) DO UPDATE SET
             attempts = excluded.attempts, first_attempt_us = excluded.first_attempt_us,
             next_attempt_at = excluded.next_attempt_at, last_status = excluded.last_status,
             detail = excluded.detail, history = excluded.history",
        place = place::columns(""),
        place_of_row = place::columns("d."),
        row = key::delivery(s, "deferred", "*"),
        history = last_ten("d.history", "r.history")
    );
    let mut params = named.params(pipeline);
    params.extend(tried.params());
    tx.execute_typed(&sql, &params).await?;
    Ok(())
}

/// Turns rows into dead letters, which take their bodies over. A row that is gone is passed over. Returns
/// the queues whose letters are counted in a record from now on.
pub(super) async fn die(
    tx: &Transaction<'_>,
    scope: &Scope,
    step: Step,
    died: &[(RowId, DeadLetter)],
) -> Result<Vec<QueueId>, StateError> {
    if died.is_empty() {
        return Ok(Vec::new());
    }
    let place = place(&scope.s);
    let rows: Vec<RowId> = died.iter().map(|(id, _)| id.clone()).collect();
    let letters = died.iter().map(|(_, letter)| letter);
    // In this order: statements that are sent together are carried out one after the other. Of a letter that
    // is only counted the body goes with the row.
    let (beyond, ()) = futures_util::try_join!(
        dead_letters::insert_deferred(tx, scope, &place, step, letters),
        resolve(tx, scope, &rows, Late::Failed)
    )?;
    Ok(beyond)
}

/// Removes rows, with the bodies that nothing else needs. `late` is what becomes of them.
pub(super) async fn resolve(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    resolved: &[RowId],
    late: Late,
) -> Result<(), StateError> {
    if resolved.is_empty() {
        return Ok(());
    }
    let named = Named::new(resolved.iter());
    let sql = format!(
        "WITH gone AS (
             DELETE FROM {s}.deferred WHERE ctid {EQ} ANY (ARRAY (
                 SELECT {} FROM unnest($2, $3, $4) AS r(event, endpoint, replay)))
             RETURNING event_id, replay_id),
         {}, {} SELECT",
        place(s),
        with_late(s, late),
        bodies::with_unused(s, "deferred")
    );
    tx.query_typed(&sql, &named.params(pipeline)).await?;
    Ok(())
}
