//! The way out of a halt: what the operator gives up, recorded in the transaction that gives it up.

use tokio_postgres::types::{PgLsn, Type};

use walhook_core::halt::SourceIdentity;
use walhook_core::id::Epoch;
use walhook_core::lsn::Lsn;
use walhook_postgres::op::{EQ, PLUS};

use super::lease::check_version;
use super::reached::{forget_beyond, step_aside};
use super::{Param, Scope, StateError, StateStore, Transaction, fence, lsn};

/// Who takes the lease here: `walhook status` shows it until the next leader comes.
const HOLDER: &str = "walhook recover";

impl StateStore {
    /// Gives up what was committed between `from`, the checkpoint, and `to`: records the gap, moves
    /// the checkpoint, and forgets the halt and what was settled ahead of the old checkpoint. With
    /// `adopt` the positions are of that database from now on. Returns the new epoch.
    ///
    /// All in one transaction that takes the lease first, so that a leader which is frozen somewhere
    /// stores nothing afterwards. Dead letters stay. The two positions may be of different clusters
    /// and are recorded as they are.
    ///
    /// # Errors
    /// [`StateError::CheckpointMoved`] when the checkpoint is not at `from` any more,
    /// [`StateError::NotSetUp`], [`StateError::Sql`]; nothing was written then.
    pub async fn accept_gap(
        &mut self,
        from: Lsn,
        to: Lsn,
        reason: &str,
        adopt: Option<&SourceIdentity>,
    ) -> Result<Epoch, StateError> {
        let tx = self.connection.transaction().await?;
        let epoch = take_over(&tx, &self.scope, from).await?;
        let Scope { s, pipeline, .. } = &self.scope;
        let (from, to) = (PgLsn::from(from.0), PgLsn::from(to.0));
        let gap = format!(
            "INSERT INTO {s}.gaps (pipeline, from_lsn, to_lsn, reason) VALUES ($1, $2, $3, $4)"
        );
        let gap_row: [Param<'_>; 4] = [
            (pipeline, Type::TEXT),
            (&from, Type::PG_LSN),
            (&to, Type::PG_LSN),
            (&reason, Type::TEXT),
        ];
        tx.execute_typed(&gap, &gap_row).await?;
        begin_at(&tx, &self.scope, Lsn(to.into())).await?;
        forget_beyond(&tx, &self.scope, Lsn(to.into())).await?;
        if adopt.is_some() || to < from {
            step_aside(&tx, &self.scope, Lsn(to.into())).await?;
        }
        if let Some(identity) = adopt {
            mark_gaps(&tx, &self.scope, identity).await?;
            store_identity(&tx, &self.scope, identity).await?;
        }
        tx.commit().await?;
        Ok(epoch)
    }

    /// Gives up what cannot be read of the transaction with this commit LSN: records the gap, which tells
    /// the next leader so, and forgets the halt. The checkpoint stays at `at`. Returns the new epoch.
    ///
    /// # Errors
    /// As [`StateStore::accept_gap`].
    pub async fn leave_out(
        &mut self,
        at: Lsn,
        commit: Lsn,
        reason: &str,
    ) -> Result<Epoch, StateError> {
        let tx = self.connection.transaction().await?;
        let epoch = take_over(&tx, &self.scope, at).await?;
        let Scope { s, pipeline, .. } = &self.scope;
        let (from, to) = (PgLsn::from(commit.0), PgLsn::from(commit.0 + 1));
        let gap = format!(
            "INSERT INTO {s}.gaps (pipeline, from_lsn, to_lsn, reason, left_out)
             VALUES ($1, $2, $3, $4, $2)"
        );
        let gap_row: [Param<'_>; 4] = [
            (pipeline, Type::TEXT),
            (&from, Type::PG_LSN),
            (&to, Type::PG_LSN),
            (&reason, Type::TEXT),
        ];
        tx.execute_typed(&gap, &gap_row).await?;
        tx.commit().await?;
        Ok(epoch)
    }

    /// Goes on at the checkpoint `at`: forgets the halt, and nothing else. Returns the new epoch.
    ///
    /// # Errors
    /// As [`StateStore::accept_gap`].
    pub async fn go_on(&mut self, at: Lsn) -> Result<Epoch, StateError> {
        let tx = self.connection.transaction().await?;
        let epoch = take_over(&tx, &self.scope, at).await?;
        tx.commit().await?;
        Ok(epoch)
    }

    /// Takes note that the source is another one now, whose positions go on from `at`, the
    /// checkpoint: nothing is given up. Returns the new epoch.
    ///
    /// # Errors
    /// As [`StateStore::accept_gap`].
    pub async fn adopt(&mut self, at: Lsn, identity: &SourceIdentity) -> Result<Epoch, StateError> {
        let tx = self.connection.transaction().await?;
        let epoch = take_over(&tx, &self.scope, at).await?;
        mark_gaps(&tx, &self.scope, identity).await?;
        store_identity(&tx, &self.scope, identity).await?;
        tx.commit().await?;
        Ok(epoch)
    }
}

impl StateStore {
    /// Takes note, as the leader, that the source is on a later timeline, after a promotion.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn set_timeline(&mut self, timeline: u32) -> Result<(), StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let epoch = self.led_epoch()?;
        let tx = self.connection.transaction().await?;
        fence(&tx, &self.scope, epoch).await?;
        let sql = format!("UPDATE {s}.meta SET timeline = $2 WHERE pipeline {EQ} $1");
        let timeline = timeline.cast_signed();
        tx.execute_typed(&sql, &[(pipeline, Type::TEXT), (&timeline, Type::INT4)]).await?;
        Ok(tx.commit().await?)
    }
}

/// Moves the checkpoint, and forgets what was settled ahead of the old one, and which changes of watched
/// tables before it look-ups did not show yet: in another cluster none ever would.
pub(super) async fn begin_at(
    tx: &Transaction<'_>,
    scope: &Scope,
    at: Lsn,
) -> Result<(), StateError> {
    move_checkpoint(tx, scope, at).await?;
    let s = &scope.s;
    let forget = format!("DELETE FROM {s}.settled WHERE pipeline {EQ} $1 AND partition {EQ} $2");
    tx.execute_typed(&forget, &scope.led()).await?;
    forget_unseen(tx, scope).await
}

pub(super) async fn move_checkpoint(
    tx: &Transaction<'_>,
    scope: &Scope,
    at: Lsn,
) -> Result<(), StateError> {
    let Scope { s, pipeline, partition, .. } = scope;
    let at = PgLsn::from(at.0);
    let go_on = format!(
        "UPDATE {s}.checkpoint SET frontier = $3, updated_at = pg_catalog.now()
         WHERE pipeline {EQ} $1 AND partition {EQ} $2"
    );
    let place: [Param<'_>; 3] =
        [(pipeline, Type::TEXT), (partition, Type::INT4), (&at, Type::PG_LSN)];
    tx.execute_typed(&go_on, &place).await?;
    Ok(())
}

pub(super) async fn forget_unseen(tx: &Transaction<'_>, scope: &Scope) -> Result<(), StateError> {
    let Scope { s, pipeline, .. } = scope;
    let forget = format!("DELETE FROM {s}.unseen WHERE pipeline {EQ} $1");
    tx.execute_typed(&forget, &[(pipeline, Type::TEXT)]).await?;
    Ok(())
}

/// Fences every leader, makes sure that the checkpoint is still at `at`, and forgets the halt.
pub(super) async fn take_over(
    tx: &Transaction<'_>,
    scope: &Scope,
    at: Lsn,
) -> Result<Epoch, StateError> {
    let Scope { s, pipeline, partition, .. } = scope;
    let bump = format!(
        "UPDATE {s}.lease
         SET epoch = epoch {PLUS} 1, holder = $3, taken_at = pg_catalog.clock_timestamp()
         WHERE pipeline {EQ} $1 AND partition {EQ} $2 RETURNING epoch"
    );
    let params: [Param<'_>; 3] =
        [(pipeline, Type::TEXT), (partition, Type::INT4), (&HOLDER, Type::TEXT)];
    let bumped = tx.query_typed_opt(&bump, &params).await?;
    let epoch = Epoch(bumped.ok_or_else(|| scope.not_set_up())?.try_get(0)?);
    check_version(tx, scope).await?;
    let forget_halt = format!(
        "UPDATE {s}.checkpoint SET halt_reason = NULL, halted_at = NULL
         WHERE pipeline {EQ} $1 AND partition {EQ} $2 RETURNING frontier"
    );
    let row = tx.query_typed_opt(&forget_halt, &scope.led()).await?;
    let now = lsn(&row.ok_or_else(|| scope.not_set_up())?, 0)?;
    if now == at { Ok(epoch) } else { Err(StateError::CheckpointMoved { from: at, to: now }) }
}

/// Positions of the same WAL stay what they are, by whatever host it is reached; before the identity is stored.
pub(super) async fn mark_gaps(
    tx: &Transaction<'_>,
    scope: &Scope,
    identity: &SourceIdentity,
) -> Result<(), StateError> {
    let Scope { s, pipeline, .. } = scope;
    let gaps = format!(
        "UPDATE {s}.gaps SET other_wal = true WHERE pipeline {EQ} $1 AND NOT EXISTS (
             SELECT FROM {s}.meta m WHERE m.pipeline {EQ} $1
                AND m.system_identifier {EQ} $2::numeric AND m.timeline {EQ} $3)"
    );
    let system = identity.system_identifier.to_string();
    let timeline = identity.timeline.cast_signed();
    let params: [Param<'_>; 3] =
        [(pipeline, Type::TEXT), (&system, Type::TEXT), (&timeline, Type::INT4)];
    tx.execute_typed(&gaps, &params).await?;
    Ok(())
}

pub(super) async fn store_identity(
    tx: &Transaction<'_>,
    scope: &Scope,
    identity: &SourceIdentity,
) -> Result<(), StateError> {
    let Scope { s, pipeline, .. } = scope;
    let sql = format!(
        "UPDATE {s}.meta SET system_identifier = $2::numeric, timeline = $3, host = $4, database = $5
         WHERE pipeline {EQ} $1"
    );
    let SourceIdentity { system_identifier, timeline, host, database } = identity;
    // As text: the type is unsigned here and numeric there.
    let (system_identifier, timeline) = (system_identifier.to_string(), timeline.cast_signed());
    let row: [Param<'_>; 5] = [
        (pipeline, Type::TEXT),
        (&system_identifier, Type::TEXT),
        (&timeline, Type::INT4),
        (host, Type::TEXT),
        (database, Type::TEXT),
    ];
    tx.execute_typed(&sql, &row).await?;
    Ok(())
}
