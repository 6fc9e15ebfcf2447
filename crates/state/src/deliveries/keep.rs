//! What of the delivery log is kept: so long, and so much of it.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::super::{Param, StateError, StateStore, fence};
use walhook_core::tick::micros;
use walhook_postgres::op::{EQ, LE, LT, MINUS, PLUS, to_us};

/// Pages that are looked at, and removed at most, by one statement.
const CHUNK: i64 = 500;

/// What a page takes beside its data and its filter: the row's header and other columns, its entry in the index.
const BESIDE: i64 = 180;

/// What is not worth a half: of so many bytes all go at once.
const LITTLE: u64 = 1 << 20;

/// What the delivery log takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogSize {
    /// The table with its index, as it stands on disk: of all pipelines, what is to be vacuumed included.
    pub total_bytes: u64,
    /// This pipeline's pages.
    pub pages_bytes: u64,
}

impl StateStore {
    /// What the delivery log takes.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn deliveries_size(&self) -> Result<LogSize, StateError> {
        let s = &self.scope.s;
        let sql = format!(
            "SELECT pg_catalog.pg_total_relation_size(pg_catalog.to_regclass($3)),
                    coalesce(pg_catalog.sum({}), 0)::bigint
             FROM {s}.delivery_log WHERE pipeline {EQ} $1 AND partition {EQ} $2",
            bytes()
        );
        let table = format!("{s}.delivery_log");
        let mut params: Vec<Param<'_>> = self.scope.led().into();
        params.push((&table, Type::TEXT));
        let row = self.connection.query_typed_one(&sql, &params).await?;
        let bytes = |column: usize| -> Result<u64, StateError> {
            Ok(u64::try_from(row.try_get::<_, i64>(column)?).unwrap_or_default())
        };
        Ok(LogSize { total_bytes: bytes(0)?, pages_bytes: bytes(1)? })
    }

    /// Removes, as the leader, pages of the delivery log whose lines are all older than `retention`, and the oldest
    /// until `excess` bytes of them are gone: some hundreds at most. Returns how many, and what they took; 0 when there
    /// is nothing to be removed.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn expire_deliveries(
        &mut self,
        retention: Duration,
        excess: u64,
    ) -> Result<(u64, u64), StateError> {
        let epoch = self.led_epoch()?;
        let s = &self.scope.s;
        let oldest = format!(
            "SELECT last, to_us {LT} ({} {MINUS} $4), {} FROM {s}.delivery_log
             WHERE pipeline {EQ} $1 AND partition {EQ} $2 ORDER BY pipeline, partition, last LIMIT $3",
            to_us("pg_catalog.clock_timestamp()"),
            bytes()
        );
        let age_us = i64::try_from(micros(retention)).unwrap_or(i64::MAX);
        let mut params: Vec<Param<'_>> = self.scope.led().into();
        params.push((&CHUNK, Type::INT8));
        params.push((&age_us, Type::INT8));
        let rows = self.connection.query_typed(&oldest, &params).await?;
        let (mut to, mut removed) = (None, 0);
        for row in &rows {
            let (last, is_old, bytes): (i64, bool, i64) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            if !is_old && removed >= excess {
                break;
            }
            to = Some(last);
            removed += u64::try_from(bytes).unwrap_or_default();
        }
        let Some(to) = to else { return Ok((0, 0)) };
        let remove = format!(
            "DELETE FROM {s}.delivery_log WHERE pipeline {EQ} $1 AND partition {EQ} $2 AND last {LE} $3"
        );
        let mut params: Vec<Param<'_>> = self.scope.led().into();
        params.push((&to, Type::INT8));
        let tx = self.connection.transaction().await?;
        fence(&tx, &self.scope, epoch).await?;
        let pages = tx.execute_typed(&remove, &params).await?;
        tx.commit().await?;
        Ok((pages, removed))
    }

    /// Removes, as the leader, the older half of the delivery log, or all of it where it takes little, and gives the room
    /// behind its last page back to the disk: for a disk that is full. Returns what the removed pages took; 0 when there
    /// is none. Takes as long as the log is large, and blocks no writer.
    ///
    /// PostgreSQL gives back only what lies behind all that is left, so it may take some calls, the last of which leaves
    /// nothing. What is free before that is used by later pages.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn yield_deliveries(&mut self) -> Result<u64, StateError> {
        let size = self.deliveries_size().await?;
        let excess =
            if size.pages_bytes <= LITTLE { size.pages_bytes } else { size.pages_bytes / 2 };
        let mut removed = 0;
        while removed < excess {
            match self.expire_deliveries(Duration::MAX, excess - removed).await? {
                (0, _) => break,
                (_, bytes) => removed += bytes,
            }
        }
        // Also where an earlier call came no further than this.
        if removed > 0 || size.total_bytes > LITTLE {
            let vacuum = format!("VACUUM {}.delivery_log", self.scope.s);
            self.connection.batch_execute(&vacuum).await?;
        }
        self.log.has_room();
        Ok(removed)
    }
}

/// What a page takes. Reads neither its data nor its filter.
fn bytes() -> String {
    format!(
        "((pg_catalog.octet_length(data) {PLUS} coalesce(pg_catalog.octet_length(filter), 0))::bigint
          {PLUS} {BESIDE}::bigint)"
    )
}
