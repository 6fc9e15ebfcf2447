//! `checkpoint_history`: which position a time was at.

use tokio_postgres::types::{PgLsn, Type};

use super::{Param, Scope, StateError, StateStore, fence, lsn};
use walhook_core::lsn::Lsn;
use walhook_postgres::op::{EQ, GE, LE, LT, PLUS, from_us, to_us};

/// Entries kept at most: a week of minutes.
const ENTRIES_MAX: i64 = 10_080;

impl StateStore {
    /// Records that the WAL ended at `wal_end` at the source's time `at_us`, and forgets what is older
    /// than `oldest`, the anchor, but for the last such entry.
    ///
    /// Units: microseconds since 1970-01-01 UTC.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn record_history(
        &mut self,
        at_us: i64,
        wal_end: Lsn,
        oldest: Lsn,
    ) -> Result<(), StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let epoch = self.led_epoch()?;
        let tx = self.connection.transaction().await?;
        fence(&tx, &self.scope, epoch).await?;
        let insert = format!(
            "INSERT INTO {s}.checkpoint_history (pipeline, at, lsn) VALUES ($1, {}, $3)
             ON CONFLICT DO NOTHING",
            from_us("$2")
        );
        let (wal_end, oldest) = (PgLsn::from(wal_end.0), PgLsn::from(oldest.0));
        let row: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (&at_us, Type::INT8), (&wal_end, Type::PG_LSN)];
        tx.execute_typed(&insert, &row).await?;
        let forget = format!(
            "DELETE FROM {s}.checkpoint_history WHERE pipeline {EQ} $1 AND at {LT} greatest(
                 (SELECT pg_catalog.max(at) FROM {s}.checkpoint_history
                  WHERE pipeline {EQ} $1 AND lsn {LE} $2),
                 (SELECT at FROM {s}.checkpoint_history WHERE pipeline {EQ} $1
                  ORDER BY at DESC OFFSET $3 LIMIT 1))"
        );
        let bounds: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (&oldest, Type::PG_LSN), (&(ENTRIES_MAX - 1), Type::INT8)];
        tx.execute_typed(&forget, &bounds).await?;
        Ok(tx.commit().await?)
    }

    /// A position that no transaction committed at `at_us` or later stands before; `None` when that
    /// lies before all that is recorded.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn position_before(&self, at_us: i64) -> Result<Option<Lsn>, StateError> {
        self.history(&format!("{LE} t.at ORDER BY h.at DESC"), at_us).await
    }

    /// A position that no transaction committed before `at_us` stands behind; `None` when that lies
    /// after all that is recorded.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn position_after(&self, at_us: i64) -> Result<Option<Lsn>, StateError> {
        // A commit's time is taken a moment before its record is written, so the next entry may be a
        // moment too early; the one a minute later is not.
        let later = format!("{GE} (t.at {PLUS} interval '1 minute') ORDER BY h.at");
        self.history(&later, at_us).await
    }

    /// When the WAL had reached `position`, a minute more or less: microseconds since 1970-01-01 UTC.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn time_of(&self, position: Lsn) -> Result<Option<i64>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT {} FROM {s}.checkpoint_history WHERE pipeline {EQ} $1 AND lsn {GE} $2",
            to_us("pg_catalog.min(at)")
        );
        let position = PgLsn::from(position.0);
        let params: [Param<'_>; 2] = [(pipeline, Type::TEXT), (&position, Type::PG_LSN)];
        let row = self.connection.query_typed_opt(&sql, &params).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?.flatten())
    }

    async fn history(&self, condition: &str, at_us: i64) -> Result<Option<Lsn>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT h.lsn FROM {s}.checkpoint_history h, (SELECT {} AS at) t
             WHERE h.pipeline {EQ} $1 AND h.at {condition} LIMIT 1",
            from_us("$2")
        );
        let params: [Param<'_>; 2] = [(pipeline, Type::TEXT), (&at_us, Type::INT8)];
        let row = self.connection.query_typed_opt(&sql, &params).await?;
        row.map(|row| lsn(&row, 0)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;

    const MINUTE_US: i64 = 60_000_000;

    #[tokio::test]
    async fn history_maps_a_time_to_positions_on_both_sides_of_it() {
        let fixture = Fixture::start().await;
        let mut store = fixture.open().await;
        assert!(matches!(
            store.record_history(0, Lsn(1), Lsn(0)).await,
            Err(StateError::Fenced { .. })
        ));
        store.take_lease("test").await.unwrap();
        for minute in 0..6_i64 {
            let lsn = Lsn(1_000 + 100 * minute.unsigned_abs());
            store.record_history(minute * MINUTE_US, lsn, Lsn(0)).await.unwrap();
        }
        let at = 2 * MINUTE_US + 1;
        assert_eq!(store.position_before(at).await.unwrap(), Some(Lsn(1_200)));
        assert_eq!(store.position_after(at).await.unwrap(), Some(Lsn(1_400)));
        assert_eq!(store.position_before(-1).await.unwrap(), None);
        assert_eq!(store.position_after(5 * MINUTE_US).await.unwrap(), None);

        // The anchor has passed all but the last three: the last one before it stays.
        store.record_history(6 * MINUTE_US, Lsn(1_600), Lsn(1_350)).await.unwrap();
        assert_eq!(fixture.count("checkpoint_history").await, 4);
        assert_eq!(store.position_before(at).await.unwrap(), None);
        assert_eq!(store.position_before(3 * MINUTE_US).await.unwrap(), Some(Lsn(1_300)));
    }
}
