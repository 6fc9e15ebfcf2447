//! What `walhook status` reads of the state tables.

use tokio_postgres::types::Type;

use crate::Told;
use walhook_core::id::Epoch;
use walhook_core::lsn::Lsn;
use walhook_postgres::op::{EQ, to_us};

use super::gaps::Gap;
use super::{Param, Scope, StateError, StateStore, lsn, text};

/// The state tables at a glance.
#[derive(Debug, Clone, PartialEq)]
pub struct Overview {
    /// How many leaders there have been.
    pub epoch: Epoch,
    /// Who took the lease last; it may have ended since.
    pub holder: Option<String>,
    /// When it was taken: microseconds since 1970-01-01 UTC.
    pub taken_at_us: Option<i64>,
    /// The checkpoint.
    pub frontier: Lsn,
    /// When it was written last: microseconds since 1970-01-01 UTC.
    pub frontier_at_us: i64,
    /// How long ago that is by the database's clock, in seconds.
    pub frontier_age_seconds: f64,
    /// Why the pipeline has halted, where it has.
    pub halt_reason: Option<String>,
    /// When it halted: microseconds since 1970-01-01 UTC.
    pub halted_at_us: Option<i64>,
    /// Rows in the table of ranges that are settled ahead of the frontier.
    pub settled_rows: i64,
    /// How many deferred rows there are, as their queues count them.
    pub deferred: i64,
    /// How many events are stored without an endpoint.
    pub unrouted: i64,
    /// How many dead letters there are for each reason.
    pub dead_letters: Vec<(String, i64)>,
    /// The gaps that nothing has closed.
    pub gaps: Vec<Gap>,
    /// What the leader says that fails.
    pub troubles: Vec<Told>,
    /// Tables whose changes are missing, in words.
    pub uncovered: Vec<String>,
    /// The endpoints that walhook has switched off.
    pub disabled: Vec<StoppedSince>,
    /// The endpoints that an operator has paused.
    pub paused: Vec<StoppedSince>,
}

/// An endpoint to which nothing is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoppedSince {
    /// Which.
    pub endpoint: String,
    /// Why.
    pub reason: String,
    /// Since when: microseconds since 1970-01-01 UTC.
    pub since_us: i64,
}

impl StateStore {
    /// Reads the state tables at a glance.
    ///
    /// # Errors
    /// [`StateError::NotSetUp`], [`StateError::Sql`].
    pub async fn overview(&self) -> Result<Overview, StateError> {
        self.connection.in_one_transaction(self.read_overview()).await
    }

    async fn read_overview(&self) -> Result<Overview, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let param: [Param<'_>; 1] = [(pipeline, Type::TEXT)];
        let head = format!(
            "SELECT l.epoch, l.holder, {}, c.frontier, {}, c.halt_reason, {},
                    (SELECT pg_catalog.count(*) FROM {s}.settled
                     WHERE pipeline {EQ} $1 AND partition {EQ} $2),
                    (SELECT coalesce(pg_catalog.sum(deferred), 0)::bigint FROM {s}.backlog
                     WHERE pipeline {EQ} $1),
                    (SELECT coalesce(pg_catalog.sum(rows), 0)::bigint FROM {s}.unrouted_accounts
                     WHERE pipeline {EQ} $1),
                    extract(epoch FROM pg_catalog.clock_timestamp()
                        OPERATOR(pg_catalog.-) c.updated_at)::double precision
             FROM {s}.lease l
             JOIN {s}.checkpoint c ON c.pipeline {EQ} l.pipeline AND c.partition {EQ} l.partition
             WHERE l.pipeline {EQ} $1 AND l.partition {EQ} $2",
            to_us("l.taken_at"),
            to_us("c.updated_at"),
            to_us("c.halted_at")
        );
        let row = self.one_led(&head).await?;
        let dead = format!(
            "SELECT reason, pg_catalog.count(*) FROM {s}.dead_letters WHERE pipeline {EQ} $1
             GROUP BY 1 ORDER BY 1"
        );
        let dead = self.connection.query_typed(&dead, &param).await?;
        Ok(Overview {
            epoch: Epoch(row.try_get(0)?),
            holder: text::get_opt(&row, 1)?,
            taken_at_us: row.try_get(2)?,
            frontier: lsn(&row, 3)?,
            frontier_at_us: row.try_get(4)?,
            frontier_age_seconds: row.try_get(10)?,
            halt_reason: text::get_opt(&row, 5)?,
            halted_at_us: row.try_get(6)?,
            settled_rows: row.try_get(7)?,
            deferred: row.try_get(8)?,
            unrouted: row.try_get(9)?,
            dead_letters: dead
                .iter()
                .map(|r| Ok((r.try_get(0)?, r.try_get(1)?)))
                .collect::<Result<_, StateError>>()?,
            gaps: self.gaps(false).await?,
            troubles: self.troubles().await?,
            uncovered: self.coverage_alarms().await?,
            disabled: self.stopped("disabled").await?,
            paused: self.stopped("paused").await?,
        })
    }

    async fn stopped(&self, kind: &str) -> Result<Vec<StoppedSince>, StateError> {
        let sql = format!(
            "SELECT endpoint, reason, {} FROM {}.endpoint_state
             WHERE pipeline {EQ} $1 AND kind {EQ} $2 ORDER BY 3",
            to_us("disabled_at"),
            self.scope.s
        );
        let params: [Param<'_>; 2] = [(&self.scope.pipeline, Type::TEXT), (&kind, Type::TEXT)];
        let rows = self.connection.query_typed(&sql, &params).await?;
        let read = |r: &tokio_postgres::Row| {
            Ok(StoppedSince {
                endpoint: text::get(r, 0)?,
                reason: text::get(r, 1)?,
                since_us: r.try_get(2)?,
            })
        };
        rows.iter().map(read).collect()
    }
}
