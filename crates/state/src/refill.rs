//! Reading deferred deliveries back: those of several queues at once.

mod pages;

use std::sync::Arc;

use futures_util::try_join;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::event::{event_columns, read_event};
use super::place::{self, Places};
use super::{Param, Scope, StateError, StateStore, replay_column, text, unreadable};
use walhook_core::persist::{BacklogRow, Blocked, Deferred, EventKey, Refill, Refilled, RowKey};
use walhook_core::position::Position;
use walhook_postgres::op::{EQ, GE, LE, TIMES};

impl StateStore {
    /// Reads some deliveries of each queue, in the order of the stream: those that are rows and those that
    /// stand in pages, as of one moment.
    ///
    /// Memory: what the requests allow together, twice for a moment, and a page of each queue. Time: that of
    /// as many walks along two indexes, however long the queues are.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn refill(&self, refills: &[Refill]) -> Result<Vec<Refilled>, StateError> {
        self.connection
            .in_one_snapshot(async {
                let asked = pages::first(refills);
                let (mut answers, found) =
                    try_join!(self.rows(refills), self.pages(refills, &asked))?;
                self.add_pages(refills, &mut answers, asked, found).await?;
                Ok(answers)
            })
            .await
    }

    /// What is a row each.
    async fn rows(&self, refills: &[Refill]) -> Result<Vec<Refilled>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let text = |of: fn(&Refill) -> &str| refills.iter().map(of).collect::<Vec<&str>>();
        let endpoints = text(|r| r.queue.endpoint.as_str());
        let accounts = text(|r| r.queue.account.as_str());
        let types = text(|r| r.from.as_ref().map_or("", |key| &key.event.event_type));
        // From the first row on is from zero on.
        let from = refills.iter().map(|r| r.from.as_ref().map(|key| key.event.position));
        let places = Places::new(from.map(|position| position.unwrap_or(Position::FIRST)));
        let replays: Vec<i64> = refills
            .iter()
            .map(|r| replay_column::of(r.from.as_ref().and_then(|key| key.replay)))
            .collect();
        let rows: Vec<i64> = refills.iter().map(|r| i64::from(r.rows)).collect();
        let most = rows.iter().copied().max().unwrap_or_default();
        let bytes: Vec<i64> =
            refills.iter().map(|r| i64::try_from(r.bytes).unwrap_or(i64::MAX)).collect();
        let mut params: Vec<Param<'_>> = vec![
            (pipeline, Type::TEXT),
            (&endpoints, Type::TEXT_ARRAY),
            (&accounts, Type::TEXT_ARRAY),
        ];
        params.extend(places.params());
        let rest: [Param<'_>; 4] = [
            (&types, Type::TEXT_ARRAY),
            (&replays, Type::INT8_ARRAY),
            (&rows, Type::INT8_ARRAY),
            (&bytes, Type::INT8_ARRAY),
        ];
        params.extend(rest);
        let arrays = place::dollars(2, params.len() - 1);
        params.push((&most, Type::INT8));
        let limit = params.len();
        let place = format!("{}, q.event_type, q.replay_id", place::columns("q."));
        // Behind a LIMIT the planner takes a LATERAL as it stands: first the requests, for each its
        // rows along the primary key, for each row its body.
        let sql = format!(
            "SELECT * FROM (
                 SELECT r.at, r.bytes, d.replay_id, d.attempts, d.first_attempt_us,
                        (extract(epoch FROM d.next_attempt_at) {TIMES} 1000000)::bigint AS due,
                        d.rank,
                        pg_catalog.count(*) OVER (PARTITION BY r.at) AS found,
                        pg_catalog.sum(pg_catalog.octet_length(b.row))
                            OVER (PARTITION BY r.at ORDER BY d.rank) AS so_far,
                        {}
                 FROM unnest({arrays})
                      WITH ORDINALITY AS r(endpoint, account, {}, type,
                                           replay, rows, bytes, at)
                 CROSS JOIN LATERAL (
                     SELECT q.*, pg_catalog.row_number() OVER (ORDER BY {place}) AS rank FROM (
                         SELECT * FROM {s}.deferred q
                         WHERE q.pipeline {EQ} $1 AND q.endpoint {EQ} r.endpoint
                           AND q.account {EQ} r.account
                           AND ({place}) {GE} ({}, r.type, r.replay)
                         ORDER BY {place} LIMIT ${limit}) q) d
                 CROSS JOIN LATERAL (
                     SELECT * FROM {s}.bodies b
                     WHERE b.pipeline {EQ} $1 AND b.event_id {EQ} d.event_id LIMIT 1) b
                 WHERE d.rank {LE} r.rows) page
             WHERE so_far {LE} bytes OR rank {EQ} 1 ORDER BY at, rank",
            event_columns(),
            place::columns(""),
            place::columns("r.")
        );
        answers(refills, &self.connection.query_typed(&sql, &params).await?)
    }
}

/// The rows, each to the request that it answers.
fn answers(refills: &[Refill], found: &[Row]) -> Result<Vec<Refilled>, StateError> {
    let mut answers: Vec<Refilled> = refills
        .iter()
        .map(|r| Refilled { queue: r.queue.clone(), rows: Vec::new(), end: true })
        .collect();
    for row in found {
        let at = usize::try_from(row.try_get::<_, i64>("at")?).unwrap_or_default();
        let place = at.checked_sub(1);
        let Some((refill, answer)) =
            place.and_then(|at| Some((refills.get(at)?, answers.get_mut(at)?)))
        else {
            return Err(unreadable("the page of a queue")("it was not asked for"));
        };
        answer.rows.push(read(row)?);
        let found: i64 = row.try_get("found")?;
        let whole = usize::try_from(found).is_ok_and(|found| found == answer.rows.len());
        answer.end = whole && found < i64::from(refill.rows);
    }
    Ok(answers)
}

fn read(row: &Row) -> Result<Deferred, StateError> {
    let event = Arc::new(read_event(row)?);
    let attempts: i32 = row.try_get("attempts")?;
    Ok(Deferred {
        key: RowKey {
            event: EventKey::of(&event),
            replay: replay_column::read(row.try_get("replay_id")?),
        },
        attempts: u32::try_from(attempts).map_err(unreadable("deferred.attempts"))?,
        first_attempt_us: row.try_get("first_attempt_us")?,
        due_us: row.try_get("due")?,
        event,
    })
}

/// Selects the backlog of the pipeline `$1` for [`read_backlog`].
pub(super) fn backlog_sql(s: &str) -> String {
    format!(
        "SELECT endpoint, account, blocked, deferred,
                (extract(epoch FROM failing_since) {TIMES} 1000000)::bigint, stopped_us,
                (extract(epoch FROM breaker_open_until) {TIMES} 1000000)::bigint
         FROM {s}.backlog WHERE pipeline {EQ} $1 ORDER BY 1, 2"
    )
}

pub(super) fn read_backlog(row: &Row) -> Result<BacklogRow, StateError> {
    let (endpoint, account): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
    let blocked: Option<Vec<i64>> = row.try_get(2)?;
    let rows: i64 = row.try_get(3)?;
    Ok(BacklogRow {
        queue: text::queue(account, endpoint),
        blocked: blocked.map_or(Blocked::All, |keys| {
            Blocked::Keys(keys.into_iter().map(i64::cast_unsigned).collect())
        }),
        rows: u64::try_from(rows).map_err(unreadable("backlog.deferred"))?,
        failing_since_us: row.try_get(4)?,
        stopped_us: row.try_get(5)?,
        open_until_us: row.try_get(6)?,
    })
}
