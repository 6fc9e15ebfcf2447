//! The last look at what the publication covers, and the gaps that the next one finds.

use tokio_postgres::types::{PgLsn, Type};

use walhook_postgres::coverage::{Coverage, Loss, Moment};

use walhook_postgres::op::EQ;

use super::{Param, Scope, StateError, StateStore, fence, lsn, text, unreadable};

/// So many alarms are stored, and their number.
pub const MAX_ALARMS: usize = 100;

impl StateStore {
    /// The last look: before it began, and what it saw. `None` where there was none, or where another
    /// version stored what this one cannot read.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn last_look(&self) -> Result<Option<(Moment, Coverage)>, StateError> {
        let s = &self.scope.s;
        let sql = format!(
            "SELECT lsn, xid, seen FROM {s}.coverage
             WHERE pipeline {EQ} $1 AND partition {EQ} $2"
        );
        let row = self.connection.query_typed_opt(&sql, &self.scope.led()).await?;
        let Some(row) = row else { return Ok(None) };
        let xid: i64 = row.try_get(1)?;
        let at = Moment { lsn: lsn(&row, 0)?, xid: xid.cast_unsigned() };
        let read = serde_json::from_str(&text::read(row.try_get(2)?));
        if let Err(error) = &read {
            tracing::warn!(%error, "the last look at the publication was stored by another version");
        }
        Ok(read.ok().map(|coverage| (at, coverage)))
    }

    /// Stores, as the leader, a look that saw all that is needed, the gaps that it found, and what it
    /// has to say of single tables.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn store_look(
        &mut self,
        at: Moment,
        coverage: &Coverage,
        losses: &[Loss],
        alarms: &[String],
    ) -> Result<(), StateError> {
        let Scope { s, pipeline, partition, .. } = &self.scope;
        let epoch = self.led_epoch()?;
        let seen = serde_json::to_string(coverage).map_err(unreadable("coverage.seen"))?;
        let tx = self.connection.transaction().await?;
        fence(&tx, &self.scope, epoch).await?;
        let look = format!(
            "INSERT INTO {s}.coverage AS c (pipeline, partition, lsn, xid, seen, alarms)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (pipeline, partition) DO UPDATE SET lsn = excluded.lsn, xid = excluded.xid,
                 looked_at = pg_catalog.clock_timestamp(), alarms = excluded.alarms,
                 seen = CASE WHEN c.seen {EQ} excluded.seen THEN c.seen
                        ELSE excluded.seen END"
        );
        let (at_lsn, xid) = (PgLsn::from(at.lsn.0), at.xid.cast_signed());
        let row: [Param<'_>; 6] = [
            (pipeline, Type::TEXT),
            (partition, Type::INT4),
            (&at_lsn, Type::PG_LSN),
            (&xid, Type::INT8),
            (&seen, Type::TEXT),
            (&alarms, Type::TEXT_ARRAY),
        ];
        tx.execute_typed(&look, &row).await?;
        let gap = format!(
            "INSERT INTO {s}.gaps (pipeline, from_lsn, to_lsn, reason, source_table, find_rows)
             VALUES ($1, $2, $3, $4, $5, $6)"
        );
        for Loss { table, from, to, reason, find, .. } in losses {
            let (from, to) = (PgLsn::from(from.lsn.0), PgLsn::from(to.lsn.0));
            let row: [Param<'_>; 6] = [
                (pipeline, Type::TEXT),
                (&from, Type::PG_LSN),
                (&to, Type::PG_LSN),
                (reason, Type::TEXT),
                (table, Type::TEXT),
                (find, Type::TEXT),
            ];
            tx.execute_typed(&gap, &row).await?;
        }
        Ok(tx.commit().await?)
    }

    /// What the last look had to say of single tables, for `status`.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn coverage_alarms(&self) -> Result<Vec<String>, StateError> {
        let s = &self.scope.s;
        let sql = format!(
            "SELECT alarms FROM {s}.coverage
             WHERE pipeline {EQ} $1 AND partition {EQ} $2"
        );
        let row = self.connection.query_typed_opt(&sql, &self.scope.led()).await?;
        let stored: Vec<String> = row.map(|row| row.try_get(0)).transpose()?.unwrap_or_default();
        Ok(stored.iter().map(|alarm| text::read(alarm).into_owned()).collect())
    }
}
