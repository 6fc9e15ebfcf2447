//! The transaction that the stream stands in: what comes next in it, and whether it came before.

use super::{ChangeError, Transaction};
use walhook_core::lsn::Lsn;
use walhook_core::position::{MESSAGE, WalPosition};

/// The transaction between BEGIN and COMMIT on this connection.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) transaction: Transaction,
    /// Whether all of it is settled, so that nothing of it is handed out.
    pub(super) settled: bool,
    /// The position of its last change on this connection, handed out or not.
    pub(super) last: Option<WalPosition>,
    /// The last position of it that was handed out, on any connection.
    pub(super) handed_out: Option<WalPosition>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) commit_lsn: Lsn,
    pub(super) handed_out: Option<WalPosition>,
}

impl Open {
    /// Whether what stands at `position`, which comes next, is to be handed out.
    pub(super) fn hand_out(&mut self, position: WalPosition) -> bool {
        self.last = Some(position);
        if self.settled || self.handed_out.is_some_and(|last| position <= last) {
            return false;
        }
        self.handed_out = Some(position);
        true
    }

    /// The position of a message after the last one of the open transaction.
    pub(super) fn next_message_position(&self, lsn: Lsn) -> Result<WalPosition, ChangeError> {
        let is_late = self.last.is_some_and(|last| last.change_lsn == lsn && !last.is_message());
        if !is_late {
            return self.next_position(lsn, MESSAGE);
        }
        Ok(WalPosition::late_message(self.transaction.commit_lsn, lsn))
    }

    /// The position after the last one of the open transaction.
    pub(super) fn next_position(
        &self,
        change_lsn: Lsn,
        relation: u32,
    ) -> Result<WalPosition, ChangeError> {
        if change_lsn == Lsn::ZERO {
            return Err(ChangeError::NoPosition { relation });
        }
        let commit_lsn = self.transaction.commit_lsn;
        let at = |n| WalPosition { commit_lsn, change_lsn, relation, n };
        let Some(last) = self.last else { return Ok(at(0)) };
        if last.change_lsn == change_lsn && last.relation == relation {
            let n = last.n.checked_add(1).ok_or(ChangeError::TooMany { relation, change_lsn })?;
            return Ok(at(n));
        }
        if at(0) < last {
            return Err(ChangeError::OutOfOrder {
                wal_start: change_lsn,
                previous: last.change_lsn,
            });
        }
        Ok(at(0))
    }
}
