//! Whether a transaction has committed of whose COMMIT nobody has heard the answer.
//!
//! Each batch writes the moment into the checkpoint's row, by the server's clock in microseconds. So while that row
//! says what a batch wrote, that batch is the last one that committed. A transaction's id would say the same, but
//! not on a standby that was promoted without having heard of it: there another one may have the id.
//!
//! So it tells too whether the tables are still as this leader has left them: a standby that was promoted without the
//! last of its batches, an old primary that came back and a copy say another moment (ADR 47).

use walhook_core::id::Epoch;

use super::super::{Scope, StateError, StateStore, Transaction, fence};
use walhook_postgres::op::{EQ, to_us};

/// When a batch wrote the checkpoint: microseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Witness(pub(in super::super) i64);

/// A batch whose COMMIT was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Committing {
    pub(super) number: u64,
    pub(super) witness: Witness,
    /// It was stored before already, and this carried out the rest again.
    pub(super) is_stored: bool,
}

impl Committing {
    /// Whether it has committed, and none after it. Waits for its end.
    pub(super) async fn has_committed(
        self,
        tx: &Transaction<'_>,
        scope: &Scope,
        epoch: Epoch,
    ) -> Result<bool, StateError> {
        Ok(Witness::read(tx, scope, epoch).await? == self.witness)
    }
}

impl Witness {
    /// What the row says, which nobody changes until the transaction ends.
    async fn read(tx: &Transaction<'_>, scope: &Scope, epoch: Epoch) -> Result<Self, StateError> {
        fence(tx, scope, epoch).await?;
        let Scope { s, .. } = scope;
        let sql = format!(
            "SELECT {} FROM {s}.checkpoint WHERE pipeline {EQ} $1 AND partition {EQ} $2 FOR UPDATE",
            to_us("updated_at")
        );
        let row = tx.query_typed_opt(&sql, &scope.led()).await?;
        let row = row.ok_or_else(|| scope.not_set_up())?;
        Ok(Self(row.try_get(0)?))
    }
}

/// By what a leader's transaction is let through: its epoch, and what it has left.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Led {
    pub(in super::super) epoch: Epoch,
    pub(in super::super) last: Option<Witness>,
}

impl Led {
    /// Refuses a checkpoint's row that says another moment.
    pub(super) fn check(self, found: Witness) -> Result<(), StateError> {
        if self.last.is_some_and(|last| last != found) { Err(StateError::WentBack) } else { Ok(()) }
    }
}

impl StateStore {
    /// Whether the tables are still as this leader has left them, for a session that has stored nothing yet.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::WentBack`], [`StateError::Sql`].
    pub async fn check_last(&mut self) -> Result<(), StateError> {
        let led = Led { epoch: self.led_epoch()?, last: self.last };
        let tx = self.connection.transaction().await?;
        led.check(Witness::read(&tx, &self.scope, led.epoch).await?)?;
        Ok(tx.commit().await?)
    }
}
