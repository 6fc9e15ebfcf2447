//! Whether a transaction has committed of whose COMMIT nobody has heard the answer.
//!
//! Each batch writes the moment into the checkpoint's row, by the server's clock in microseconds. So while that row
//! says what a batch wrote, that batch is the last one that committed. A transaction's id would say the same, but
//! not on a standby that was promoted without having heard of it: there another one may have the id.

use tokio_postgres::types::Type;
use walhook_core::id::Epoch;

use super::super::{Param, Scope, StateError, Transaction, fence};
use walhook_postgres::op::{EQ, to_us};

/// When a batch wrote the checkpoint: microseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Witness(pub(super) i64);

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
    pub(super) async fn is_stored(
        self,
        tx: &Transaction<'_>,
        scope: &Scope,
        epoch: Epoch,
    ) -> Result<bool, StateError> {
        if self.is_stored {
            return Ok(true);
        }
        fence(tx, scope, epoch).await?;
        let Scope { s, pipeline, partition, .. } = scope;
        let sql = format!(
            "SELECT {} FROM {s}.checkpoint WHERE pipeline {EQ} $1 AND partition {EQ} $2 FOR UPDATE",
            to_us("updated_at")
        );
        let params: [Param<'_>; 2] = [(pipeline, Type::TEXT), (partition, Type::INT4)];
        let row = tx.query_typed_opt(&sql, &params).await?;
        let row = row.ok_or_else(|| scope.not_set_up())?;
        Ok(Witness(row.try_get(0)?) == self.witness)
    }
}
