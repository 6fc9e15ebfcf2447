//! The table `bodies`: an event that left memory, once, for all of its deliveries.
//!
//! A body lives as long as a deferred row or a dead letter of its event does. So adding one of these
//! and removing the last one must not overlap. They do not: all who write them hold the lease's row,
//! a leader so that other sessions of its epoch may too, an operator's command so that nobody may
//! ([`hold_off_leader`](super::super::hold_off_leader)). No body is locked, which a batch of thousands
//! would pay for twice.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use tokio_postgres::types::Type;

use super::super::key;
use super::super::place::{self, Places};
use super::{Param, Scope, StateError, Transaction, system_time};
use walhook_core::event::Event;
use walhook_core::persist::{DeadLetter, Defer};
use walhook_postgres::op::{EQ, PLUS};

/// Inserts the bodies that are not there of new rows: letters, deferred ones, and those of pages that were
/// taken `apart`.
pub(in super::super) async fn insert(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    letters: &[DeadLetter],
    deferred: &[Defer],
    apart: &[Arc<Event>],
) -> Result<(), StateError> {
    // Ordered by id: neighbours in time are neighbours in the index. A deferred row's body is needed; a
    // letter's where the letter is a row, which it is by now.
    let mut events: BTreeMap<String, (&Arc<Event>, bool)> = BTreeMap::new();
    for letter in letters {
        events.insert(letter.event.id.to_string(), (&letter.event, false));
    }
    for event in deferred.iter().map(|defer| &defer.event).chain(apart) {
        events.insert(event.id.to_string(), (event, true));
    }
    if events.is_empty() {
        return Ok(());
    }
    let ids: Vec<&str> = events.keys().map(String::as_str).collect();
    let types: Vec<&str> = events.values().map(|(e, _)| &*e.event_type).collect();
    let accounts: Vec<&str> = events.values().map(|(e, _)| e.account.as_str()).collect();
    let operations: Vec<&str> = events.values().map(|(e, _)| e.operation.as_str()).collect();
    let times: Vec<SystemTime> =
        events.values().map(|(e, _)| system_time(e.commit_time_us)).collect();
    let places = Places::new(events.values().map(|(e, _)| e.position));
    let keys: Vec<String> = events.values().map(|(e, _)| array(&e.keys)).collect();
    let needed: Vec<bool> = events.values().map(|(_, needed)| *needed).collect();
    let rows: Vec<&[u8]> = events.values().map(|(e, _)| &*e.row).collect();
    let mut params: Vec<Param<'_>> = vec![
        (pipeline, Type::TEXT),
        (&ids, Type::TEXT_ARRAY),
        (&types, Type::TEXT_ARRAY),
        (&accounts, Type::TEXT_ARRAY),
        (&operations, Type::TEXT_ARRAY),
        (&times, Type::TIMESTAMPTZ_ARRAY),
    ];
    params.extend(places.params());
    params.push((&keys, Type::TEXT_ARRAY));
    params.push((&rows, Type::BYTEA_ARRAY));
    params.push((&needed, Type::BOOL_ARRAY));
    let (place, arrays) = (place::columns(""), place::dollars(2, params.len() - 1));
    let insert = format!(
        "INSERT INTO {s}.bodies (pipeline, event_id, event_type, account, operation,
                committed_at, {place}, keys, row)
         SELECT $1, id, type, account, operation, at, {place}, keys::bigint[], row
         FROM unnest({arrays})
              AS e(id, type, account, operation, at, {place}, keys, row, needed)
         WHERE e.needed OR (SELECT d.id FROM {s}.dead_letters d
                            WHERE d.pipeline {EQ} $1 AND d.event_id {EQ} e.id LIMIT 1) IS NOT NULL
         ON CONFLICT DO NOTHING"
    );
    tx.execute_typed(&insert, &params).await?;
    Ok(())
}

/// Hashes as the text of a `bigint[]`: an array of arrays has no unnest that yields arrays.
pub(super) fn array(hashes: &[u64]) -> String {
    let bits: Vec<String> = hashes.iter().map(|h| h.cast_signed().to_string()).collect();
    format!("{{{}}}", bits.join(","))
}

/// What a `WITH` goes on with that has `gone`, the rows which it deletes from `table` (`deferred` or
/// `dead_letters`): deletes the bodies that were needed by those alone. `$1` is the pipeline.
///
/// A statement does not see what it deletes itself as deleted, so it compares counts; and counts no
/// further than one beyond those, however many others need the body.
pub(in super::super) fn with_unused(s: &str, table: &str) -> String {
    let needed_by = |of: &str, gone: &str| {
        format!(
            "(SELECT pg_catalog.count(*) FROM (
                 SELECT FROM {s}.{of} WHERE pipeline {EQ} $1 AND {} ORDER BY event_id
                 LIMIT {gone} {PLUS} 1) o) {EQ} {gone}",
            key::range("event_id", "g.event_id")
        )
    };
    let none = "0::bigint";
    let (of_deferred, of_dead) = if table == "deferred" { ("g.n", none) } else { (none, "g.n") };
    format!(
        "unused AS (
             DELETE FROM {s}.bodies WHERE ctid {EQ} ANY (ARRAY (
                 SELECT (SELECT b.ctid FROM {s}.bodies b
                         WHERE b.pipeline {EQ} $1 AND b.event_id {EQ} g.event_id)
                 FROM (SELECT event_id, pg_catalog.count(*) AS n FROM gone GROUP BY 1) g
                 WHERE {} AND {})))",
        needed_by("deferred", of_deferred),
        needed_by("dead_letters", of_dead)
    )
}
