//! The workers that the leader knows, for `walhook workers list` and `status`.
//!
//! The table is unlogged: what it says is only true while the fleet says so, and to write it costs no WAL of
//! its own. So it is empty after a crash of the server, and on a standby that was promoted; either ends
//! every session, and a leader that has a new one writes all again. On a standby it cannot be read.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use walhook_postgres::op::{EQ, LT, MINUS, from_us, to_us};

use super::{Param, Scope, StateError, StateStore, fence, text};

/// So many rows are stored at most: more workers than one leader is made for.
const MOST: usize = 1_024;

/// What a worker says of itself is cut off behind so many characters.
const LONGEST: usize = 256;

/// A worker's session, as the leader saw it last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerRow {
    /// The session's id, in hexadecimal.
    pub session: String,
    /// The worker's host, and which of those there, as it says itself.
    pub host: String,
    /// Its program's version.
    pub build: String,
    /// `serving`, `draining`, `quarantined`, `mute`, `silent`, and the like: the fleet's word.
    pub state: String,
    /// How many requests it may have in flight.
    pub slots: u64,
    /// How many it has.
    pub in_flight: u64,
    /// How many of its attempts were lost.
    pub lost: u64,
    /// Since when it is in this state: microseconds since 1970-01-01 UTC.
    pub since_us: i64,
    /// When the leader heard from it last: likewise.
    pub seen_us: i64,
}

/// A row of the table, and how old it is.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenWorker {
    /// What the leader has stored.
    pub worker: WorkerRow,
    /// How long ago the leader heard from it, by the database's clock: seconds.
    pub seen_seconds: f64,
}

impl StateStore {
    /// Stores, as the leader, these workers in the place of those before; of more than 1,024 the first.
    ///
    /// In a transaction of its own, which waits neither for a flush of the WAL nor for a standby.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn store_workers(&mut self, workers: &[WorkerRow]) -> Result<(), StateError> {
        let Scope { s, pipeline, partition, .. } = &self.scope;
        let epoch = self.led_epoch()?;
        let stored = workers.get(..MOST).unwrap_or(workers);
        let texts = |of: fn(&WorkerRow) -> &str| -> Vec<String> {
            stored.iter().map(|worker| of(worker).chars().take(LONGEST).collect()).collect()
        };
        let numbers = |of: fn(&WorkerRow) -> i64| -> Vec<i64> { stored.iter().map(of).collect() };
        let (sessions, hosts) = (texts(|w| &w.session), texts(|w| &w.host));
        let (builds, states) = (texts(|w| &w.build), texts(|w| &w.state));
        let slots = numbers(|w| saturate(w.slots));
        let in_flight = numbers(|w| saturate(w.in_flight));
        let lost = numbers(|w| saturate(w.lost));
        let (since, seen) = (numbers(|w| w.since_us), numbers(|w| w.seen_us));
        let remove =
            format!("DELETE FROM {s}.workers WHERE pipeline {EQ} $1 AND partition {EQ} $2");
        let add = format!(
            "INSERT INTO {s}.workers (pipeline, partition, session, epoch, host, build, state, slots,
                    in_flight, lost, since, seen_at)
             SELECT $1, $2, session, $12, host, build, state, slots, in_flight, lost, {}, {}
             FROM unnest($3, $4, $5, $6, $7, $8, $9, $10, $11)
                  AS w(session, host, build, state, slots, in_flight, lost, since, seen)
             ON CONFLICT DO NOTHING",
            from_us("since"),
            from_us("seen")
        );
        let rows: [Param<'_>; 12] = [
            (pipeline, Type::TEXT),
            (partition, Type::INT4),
            (&sessions, Type::TEXT_ARRAY),
            (&hosts, Type::TEXT_ARRAY),
            (&builds, Type::TEXT_ARRAY),
            (&states, Type::TEXT_ARRAY),
            (&slots, Type::INT8_ARRAY),
            (&in_flight, Type::INT8_ARRAY),
            (&lost, Type::INT8_ARRAY),
            (&since, Type::INT8_ARRAY),
            (&seen, Type::INT8_ARRAY),
            (&epoch.0, Type::INT8),
        ];
        let tx = self.connection.transaction().await?;
        // The lock on the lease is in the WAL. Nothing is lost with it that would not be said again.
        tx.batch_execute("SET LOCAL synchronous_commit = off").await?;
        fence(&tx, &self.scope, epoch).await?;
        tx.execute_typed(&remove, &self.scope.led()).await?;
        tx.execute_typed(&add, &rows).await?;
        Ok(tx.commit().await?)
    }

    /// The sessions of workers that a leader has stored last, whichever it was, and of which it had heard within
    /// `within`: for whoever leads next. None where this server cannot say: it is a standby.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn sessions_of_workers(&self, within: Duration) -> Result<Vec<String>, StateError> {
        let s = &self.scope.s;
        let Scope { pipeline, partition, .. } = &self.scope;
        let sql = format!(
            "SELECT session FROM {s}.workers
             WHERE pipeline {EQ} $1 AND partition {EQ} $2
               AND extract(epoch FROM pg_catalog.clock_timestamp() {MINUS} seen_at)::double precision {LT} $3"
        );
        let within = within.as_secs_f64();
        let params: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (partition, Type::INT4), (&within, Type::FLOAT8)];
        match self.connection.query_typed(&sql, &params).await {
            Ok(rows) => rows.iter().map(|row| Ok(text::get(row, 0)?)).collect(),
            Err(error) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// The workers that the last leader has stored, those that have been in their state for longest first.
    /// `None` where this server cannot say: it is a standby.
    ///
    /// What an earlier leader has left is not shown.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn workers(&self) -> Result<Option<Vec<SeenWorker>>, StateError> {
        let s = &self.scope.s;
        // By the key; a few rows are put in order here.
        let sql = format!(
            "SELECT session, host, build, state, slots, in_flight, lost, {}, {},
                    extract(epoch FROM pg_catalog.clock_timestamp() {MINUS} seen_at)::double precision
             FROM {s}.workers
             WHERE pipeline {EQ} $1 AND partition {EQ} $2
               AND epoch {EQ} (SELECT l.epoch FROM {s}.lease l
                               WHERE l.pipeline {EQ} $1 AND l.partition {EQ} $2)",
            to_us("since"),
            to_us("seen_at")
        );
        let rows = match self.connection.query_typed(&sql, &self.scope.led()).await {
            Ok(rows) => rows,
            Err(error) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let mut workers = rows.iter().map(read).collect::<Result<Vec<_>, StateError>>()?;
        workers.sort_by(|SeenWorker { worker: a, .. }, SeenWorker { worker: b, .. }| {
            (a.since_us, &a.session).cmp(&(b.since_us, &b.session))
        });
        Ok(Some(workers))
    }
}

fn read(row: &tokio_postgres::Row) -> Result<SeenWorker, StateError> {
    let count = |column: usize| -> Result<u64, StateError> {
        Ok(u64::try_from(row.try_get::<_, i64>(column)?).unwrap_or_default())
    };
    let worker = WorkerRow {
        session: text::get(row, 0)?,
        host: text::get(row, 1)?,
        build: text::get(row, 2)?,
        state: text::get(row, 3)?,
        slots: count(4)?,
        in_flight: count(5)?,
        lost: count(6)?,
        since_us: row.try_get(7)?,
        seen_us: row.try_get(8)?,
    };
    Ok(SeenWorker { worker, seen_seconds: row.try_get::<_, f64>(9)?.max(0.0) })
}

fn saturate(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
