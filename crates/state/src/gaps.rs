//! Gaps: what was not delivered, and stands so that nobody can overlook it.

use tokio_postgres::Row;
use tokio_postgres::types::{PgLsn, Type};

use walhook_core::id::ReplayId;
use walhook_core::lsn::Lsn;
use walhook_core::persist::GapChange;
use walhook_core::replay::ReplayRange;
use walhook_postgres::op::{CAT, EQ, GE, LE, LT, PLUS, to_us};

use super::unfinished::unfinished_job;
use super::{Param, Scope, StateError, StateStore, fence, text, unreadable};

/// A range of WAL whose changes were not delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Its id.
    pub id: i64,
    /// Where it begins.
    pub from_lsn: String,
    /// Where it ends.
    pub to_lsn: String,
    /// The endpoint whose deliveries these are; `None`: of all of them.
    pub endpoint: Option<String>,
    /// Of an endpoint: the account whose events these are.
    pub account: Option<String>,
    /// The table of the source whose changes were not in the stream; `None`: it is not about one.
    pub table: Option<String>,
    /// Of such a table: the query that finds the rows, where they can be found.
    pub find: Option<String>,
    /// Of an endpoint: deliveries that were deferred, and removed from that table.
    pub removed: i64,
    /// Of an endpoint: deliveries that came while it was suspended.
    pub skipped: i64,
    /// The endpoint is suspended: more is counted in it.
    pub growing: bool,
    /// It counts dead letters: `removed` were rows of their table, `skipped` came when the endpoint had too
    /// many. It grows until it is closed. Without an endpoint's id these are unroutable changes.
    pub dead_letters: bool,
    /// Of dead letters: when the last one was counted; microseconds since 1970-01-01 UTC.
    pub last_at_us: Option<i64>,
    /// It is what could not be read of one transaction.
    pub unreadable: bool,
    /// Its positions are of the WAL of an earlier cluster.
    pub other_wal: bool,
    /// It counts events of an account that could not be routed: `removed` were rows without an endpoint.
    pub unrouted: bool,
    /// Why there is one.
    pub reason: String,
    /// When it was recorded: microseconds since 1970-01-01 UTC.
    pub recorded_at_us: i64,
    /// When it was closed: microseconds since 1970-01-01 UTC.
    pub closed_at_us: Option<i64>,
    /// What the operator said when closing it.
    pub note: Option<String>,
}

impl StateStore {
    /// The gaps that nothing has closed, or all of them, the oldest first.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn gaps(&self, closed_too: bool) -> Result<Vec<Gap>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT {} FROM {s}.gaps WHERE pipeline {EQ} $1 AND ($2 OR closed_at IS NULL)
             ORDER BY id",
            columns()
        );
        let rows = self
            .connection
            .query_typed(&sql, &[(pipeline, Type::TEXT), (&closed_too, Type::BOOL)])
            .await?;
        rows.iter().map(read).collect()
    }

    /// Closes a gap: what was missed is dealt with, or is known and accepted. Returns it as it is now;
    /// `None` where there is none of this id, it is closed already, or it still grows.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn close_gap(&self, id: i64, note: Option<&str>) -> Result<Option<Gap>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "UPDATE {s}.gaps SET closed_at = pg_catalog.now(), note = $3
             WHERE pipeline {EQ} $1 AND id {EQ} $2 AND closed_at IS NULL AND NOT growing
             RETURNING {}",
            columns()
        );
        let row = self
            .connection
            .query_typed_opt(
                &sql,
                &[(pipeline, Type::TEXT), (&id, Type::INT8), (&note, Type::TEXT)],
            )
            .await?;
        row.as_ref().map(read).transpose()
    }

    /// Closes, as the leader, the gaps that a replay has sent again: those of an endpoint that it covered,
    /// where it has come to its end and every delivery that they count was taken or is deferred again; without
    /// an endpoint those of the whole stream that it covered, and of an account's events that could not be
    /// routed (how many deliveries these are owed nobody knows). Returns their ids.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn close_replayed_gaps(
        &mut self,
        replay: ReplayId,
        ReplayRange { from, to, filter, .. }: &ReplayRange,
    ) -> Result<Vec<i64>, StateError> {
        let endpoint = filter.endpoint.as_deref();
        if !filter.is_whole() {
            return Ok(Vec::new());
        }
        let Scope { s, pipeline, .. } = &self.scope;
        let epoch = self.led_epoch()?;
        let sql = format!(
            "WITH covered AS (
                 SELECT ctid AS place, CASE WHEN unrouted THEN 0 ELSE removed {PLUS} skipped END AS deliveries
                 FROM {s}.gaps
                 WHERE pipeline {EQ} $1 AND closed_at IS NULL AND NOT growing
                   AND NOT other_wal AND from_lsn {GE} $5
                   AND CASE WHEN $3 IS NULL AND unrouted
                       THEN ($4 IS NULL OR account {EQ} $4) AND to_lsn {LT} $6
                       WHEN $3 IS NULL
                       THEN $4 IS NULL AND endpoint IS NULL AND source_table IS NULL AND left_out IS NULL
                            AND from_lsn {LT} to_lsn AND to_lsn {LE} $6
                       ELSE endpoint {EQ} $3 AND NOT unrouted AND ($4 IS NULL OR account {EQ} $4)
                            AND to_lsn {LT} $6 END),
             ended AS (
                 SELECT done {PLUS} deferred AS done FROM {s}.jobs WHERE ctid {EQ} {} AND position {GE} $6 AND failed {EQ} 0
                    AND late_failed {EQ} 0 AND late_dropped {EQ} 0
                    AND in_gaps {EQ} 0 AND late_in_gaps {EQ} 0)
             UPDATE {s}.gaps g SET closed_at = pg_catalog.now(),
                 note = 'sent again by replay ' {CAT} $2
             FROM covered c, ended e
             WHERE g.ctid {EQ} c.place AND e.done {GE} (SELECT pg_catalog.sum(deliveries) FROM covered)
             RETURNING g.id",
            unfinished_job(s, "$2")
        );
        let (from, to) = (PgLsn::from(from.0), PgLsn::from(to.0));
        let account = filter.account.as_deref();
        let params: [Param<'_>; 6] = [
            (pipeline, Type::TEXT),
            (&replay.0, Type::INT8),
            (&endpoint, Type::TEXT),
            (&account, Type::TEXT),
            (&from, Type::PG_LSN),
            (&to, Type::PG_LSN),
        ];
        let tx = self.connection.transaction().await?;
        fence(&tx, &self.scope, epoch).await?;
        let closed = tx.query_typed(&sql, &params).await?;
        tx.commit().await?;
        closed.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// The commit LSNs of the transactions from `frontier` on whose unreadable rest is given up, whether
    /// that gap is closed or not.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn left_out(&self, frontier: Lsn) -> Result<Vec<Lsn>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let frontier = PgLsn::from(frontier.0);
        let sql = format!(
            "SELECT left_out FROM {s}.gaps
             WHERE pipeline {EQ} $1 AND left_out {GE} $2 AND NOT other_wal"
        );
        let rows = self
            .connection
            .query_typed(&sql, &[(pipeline, Type::TEXT), (&frontier, Type::PG_LSN)])
            .await?;
        rows.iter().map(|row| super::lsn(row, 0)).collect()
    }
}

/// Selects the growing gaps of the pipeline `$1` for [`read_growing`].
pub(super) fn growing_sql(s: &str) -> String {
    format!(
        "SELECT endpoint, account, skipped FROM {s}.gaps WHERE pipeline {EQ} $1 AND growing
         ORDER BY 1, 2"
    )
}

pub(super) fn read_growing(row: &Row) -> Result<GapChange, StateError> {
    let (endpoint, account): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
    let skipped: i64 = row.try_get(2)?;
    Ok(GapChange {
        queue: text::queue(account, endpoint),
        opens: None,
        skipped: u64::try_from(skipped).map_err(unreadable("gaps.skipped"))?,
        span: None,
        growing: true,
    })
}

fn columns() -> String {
    let (recorded, closed) = (to_us("recorded_at"), to_us("closed_at"));
    format!(
        "id, from_lsn::pg_catalog.text, to_lsn::pg_catalog.text, endpoint, reason, {recorded},
         {closed},
         note, account, removed, skipped, growing, source_table, find_rows, dead_letters, {},
         left_out IS NOT NULL, other_wal, unrouted",
        to_us("last_at")
    )
}

fn read(row: &Row) -> Result<Gap, StateError> {
    Ok(Gap {
        id: row.try_get(0)?,
        from_lsn: row.try_get(1)?,
        to_lsn: row.try_get(2)?,
        endpoint: text::get_opt(row, 3)?,
        reason: text::get(row, 4)?,
        recorded_at_us: row.try_get(5)?,
        closed_at_us: row.try_get(6)?,
        note: text::get_opt(row, 7)?,
        account: text::get_opt(row, 8)?,
        removed: row.try_get(9)?,
        skipped: row.try_get(10)?,
        growing: row.try_get(11)?,
        table: text::get_opt(row, 12)?,
        find: text::get_opt(row, 13)?,
        dead_letters: row.try_get(14)?,
        last_at_us: row.try_get(15)?,
        unreadable: row.try_get(16)?,
        other_wal: row.try_get(17)?,
        unrouted: row.try_get(18)?,
    })
}
