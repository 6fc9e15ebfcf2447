//! Gaps: what was not delivered, and stands so that nobody can overlook it.

use serde::Serialize;
use tokio_postgres::Row;
use tokio_postgres::types::{PgLsn, Type};

use crate::engine::lsn::Lsn;

use super::inspect::us;
use super::{Scope, StateError, StateStore, as_optional_rfc3339, as_rfc3339};

/// A range of WAL whose changes were not delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// Its id.
    pub id: i64,
    /// Where it begins.
    pub from_lsn: String,
    /// Where it ends.
    pub to_lsn: String,
    /// The endpoint whose deliveries these are; `None`: of all of them.
    pub endpoint: Option<String>,
    /// Why there is one.
    pub reason: String,
    /// When it was recorded: microseconds since 1970-01-01 UTC.
    #[serde(rename = "recorded_at", serialize_with = "as_rfc3339")]
    pub recorded_at_us: i64,
    /// When it was closed: microseconds since 1970-01-01 UTC.
    #[serde(rename = "closed_at", serialize_with = "as_optional_rfc3339")]
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
            "SELECT {} FROM {s}.gaps WHERE pipeline = $1 AND ($2 OR closed_at IS NULL) ORDER BY id",
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
            "UPDATE {s}.gaps SET closed_at = now(), note = $3
             WHERE pipeline = $1 AND id = $2 AND closed_at IS NULL AND NOT growing
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

    /// The commit LSNs of the transactions from `frontier` on whose unreadable rest is given up, whether
    /// that gap is closed or not.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn left_out(&self, frontier: Lsn) -> Result<Vec<Lsn>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let frontier = PgLsn::from(frontier.0);
        let sql = format!("SELECT left_out FROM {s}.gaps WHERE pipeline = $1 AND left_out >= $2");
        let rows = self
            .connection
            .query_typed(&sql, &[(pipeline, Type::TEXT), (&frontier, Type::PG_LSN)])
            .await?;
        rows.iter().map(|row| super::lsn(row, 0)).collect()
    }
}

fn columns() -> String {
    let (recorded, closed) = (us("recorded_at"), us("closed_at"));
    format!("id, from_lsn::text, to_lsn::text, endpoint, reason, {recorded}, {closed}, note")
}

fn read(row: &Row) -> Result<Gap, StateError> {
    Ok(Gap {
        id: row.try_get(0)?,
        from_lsn: row.try_get(1)?,
        to_lsn: row.try_get(2)?,
        endpoint: row.try_get(3)?,
        reason: row.try_get(4)?,
        recorded_at_us: row.try_get(5)?,
        closed_at_us: row.try_get(6)?,
        note: row.try_get(7)?,
    })
}
