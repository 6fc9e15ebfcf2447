//! What the leader says that fails, for `walhook status`.

use serde::{Deserialize, Serialize};
use tokio_postgres::types::Type;

use walhook_postgres::op::EQ;

use super::{Param, Scope, StateError, StateStore, fence, text};

/// A trouble as `status` shows it, wherever it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Which part of the pipeline, such as `lookups`.
    pub part: String,
    /// What does not work, and what that costs.
    pub says: String,
    /// Since when: RFC 3339 in UTC.
    pub since: String,
    /// The last error.
    pub error: String,
    /// What to do about it.
    pub fix: String,
}

impl StateStore {
    /// Stores, as the leader, what fails now in the place of what failed before. It waits next to no time for
    /// a lock: this session has better to do.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn store_troubles(&mut self, troubles: &[Told]) -> Result<(), StateError> {
        let Scope { s, pipeline, partition, .. } = &self.scope;
        let epoch = self.led_epoch()?;
        let tx = self.connection.transaction().await?;
        tx.batch_execute("SET LOCAL lock_timeout = '200ms'").await?;
        fence(&tx, &self.scope, epoch).await?;
        let remove =
            format!("DELETE FROM {s}.troubles WHERE pipeline {EQ} $1 AND partition {EQ} $2");
        tx.execute_typed(&remove, &self.scope.led()).await?;
        let add = format!(
            "INSERT INTO {s}.troubles (pipeline, partition, part, says, since, error, fix)
             VALUES ($1, $2, $3, $4, $5, $6, $7)"
        );
        for Told { part, says, since, error, fix } in troubles {
            let row: [Param<'_>; 7] = [
                (pipeline, Type::TEXT),
                (partition, Type::INT4),
                (part, Type::TEXT),
                (says, Type::TEXT),
                (since, Type::TEXT),
                (error, Type::TEXT),
                (fix, Type::TEXT),
            ];
            tx.execute_typed(&add, &row).await?;
        }
        Ok(tx.commit().await?)
    }

    /// What the leader said last that fails.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn troubles(&self) -> Result<Vec<Told>, StateError> {
        let s = &self.scope.s;
        let sql = format!(
            "SELECT part, says, since, error, fix FROM {s}.troubles
             WHERE pipeline {EQ} $1 AND partition {EQ} $2 ORDER BY since"
        );
        let rows = self.connection.query_typed(&sql, &self.scope.led()).await?;
        let read = |row: &tokio_postgres::Row| {
            Ok(Told {
                part: text::get(row, 0)?,
                says: text::get(row, 1)?,
                since: text::get(row, 2)?,
                error: text::get(row, 3)?,
                fix: text::get(row, 4)?,
            })
        };
        rows.iter().map(read).collect()
    }
}
