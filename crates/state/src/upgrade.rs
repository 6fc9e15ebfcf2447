//! A major upgrade of the source: what `walhook upgrade prepare` leaves for `walhook upgrade finish`.

use tokio_postgres::types::{PgLsn, Type};

use walhook_core::halt::SourceIdentity;
use walhook_core::id::Epoch;
use walhook_core::lsn::Lsn;
use walhook_postgres::op::{EQ, to_us};
use walhook_postgres::slot::Slot;

use super::reached::forget_beyond;
use super::recover::{begin_at, mark_gaps, store_identity, take_over};
use super::{Param, Scope, StateError, StateStore, lsn};

/// What `walhook upgrade prepare` has recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The checkpoint then. That nothing is owed up to where the slots stand is known too, but can not
    /// be written down: to write it would move the end of the WAL.
    pub lsn: Lsn,
    /// The server's version then, as `server_version_num` has it.
    pub server_version: i32,
    /// When: microseconds since 1970-01-01 UTC.
    pub prepared_at_us: i64,
    /// Nobody has led or recovered since.
    pub holds: bool,
}

impl Prepared {
    /// The position up to which nothing is owed, where it is known to be behind the checkpoint.
    ///
    /// `prepare` puts both slots at the same position, the last thing that it does; nothing else does
    /// that while no leader runs. So two slots at one position say that it came to its end.
    #[must_use]
    pub fn settled(
        &self,
        checkpoint: Lsn,
        main: Option<&Slot>,
        anchor: Option<&Slot>,
    ) -> Option<Lsn> {
        let at = |slot: Option<&Slot>| slot.filter(|slot| !slot.is_lost())?.confirmed_flush;
        at(main).filter(|main| self.holds && at(anchor) == Some(*main) && *main > checkpoint)
    }
}

impl StateStore {
    /// What the last `walhook upgrade prepare` recorded, if it did and was not finished.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn prepared(&self) -> Result<Option<Prepared>, StateError> {
        let s = &self.scope.s;
        let sql = format!(
            "SELECT u.lsn, u.server_version, {}, u.epoch {EQ} l.epoch
             FROM {s}.upgrades u JOIN {s}.lease l ON l.pipeline {EQ} u.pipeline
             WHERE u.pipeline {EQ} $1 AND l.partition {EQ} $2",
            to_us("u.prepared_at")
        );
        let row = self.connection.query_typed_opt(&sql, &self.scope.led()).await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Prepared {
            lsn: lsn(&row, 0)?,
            server_version: row.try_get(1)?,
            prepared_at_us: row.try_get(2)?,
            holds: row.try_get(3)?,
        }))
    }

    /// Records that everything up to `at` was found settled, unless that stands there and holds.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn prepare_upgrade(&mut self, at: Lsn, version: i32) -> Result<(), StateError> {
        if self.prepared().await?.is_some_and(|p| p.holds && p.server_version == version) {
            return Ok(());
        }
        let Scope { s, pipeline, partition, .. } = &self.scope;
        let sql = format!(
            "INSERT INTO {s}.upgrades AS u (pipeline, epoch, server_version, lsn)
             SELECT $1, epoch, $3, $4 FROM {s}.lease WHERE pipeline {EQ} $1 AND partition {EQ} $2
             ON CONFLICT (pipeline) DO UPDATE SET epoch = excluded.epoch, lsn = excluded.lsn,
                 server_version = excluded.server_version, prepared_at = excluded.prepared_at"
        );
        let at = PgLsn::from(at.0);
        let params: [Param<'_>; 4] = [
            (pipeline, Type::TEXT),
            (partition, Type::INT4),
            (&version, Type::INT4),
            (&at, Type::PG_LSN),
        ];
        self.connection.execute_typed(&sql, &params).await?;
        Ok(())
    }

    /// Forgets what `prepare` recorded.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn forget_prepared(&mut self) -> Result<(), StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!("DELETE FROM {s}.upgrades WHERE pipeline {EQ} $1");
        self.connection.execute_typed(&sql, &[(pipeline, Type::TEXT)]).await?;
        Ok(())
    }

    /// Moves the checkpoint from `from` to `to`, up to where `prepare` has found nothing owed: the
    /// upgrade was given up.
    ///
    /// # Errors
    /// As [`StateStore::accept_gap`].
    pub async fn resume_prepared(&mut self, from: Lsn, to: Lsn) -> Result<(), StateError> {
        let tx = self.connection.transaction().await?;
        take_over(&tx, &self.scope, from).await?;
        begin_at(&tx, &self.scope, to).await?;
        tx.commit().await?;
        self.forget_prepared().await
    }

    /// Goes on at `to` in the WAL of the upgraded cluster. With `gap`, its reason, what was committed
    /// meanwhile may not have been sent. Returns the new epoch.
    ///
    /// # Errors
    /// As [`StateStore::accept_gap`].
    pub async fn finish_upgrade(
        &mut self,
        from: Lsn,
        to: Lsn,
        identity: &SourceIdentity,
        gap: Option<&str>,
    ) -> Result<Epoch, StateError> {
        let epoch = match gap {
            Some(reason) => self.accept_gap(from, to, reason, Some(identity)).await?,
            None => {
                let tx = self.connection.transaction().await?;
                let epoch = take_over(&tx, &self.scope, from).await?;
                begin_at(&tx, &self.scope, to).await?;
                forget_beyond(&tx, &self.scope, to).await?;
                mark_gaps(&tx, &self.scope, identity).await?;
                store_identity(&tx, &self.scope, identity).await?;
                tx.commit().await?;
                epoch
            }
        };
        self.forget_prepared().await?;
        Ok(epoch)
    }
}
