//! Transactions that changed a watched table and that no look-up has been known to see.
//!
//! Each holds the frontier: the next process would not hear of it again, and believe a look-up that does not
//! show it yet (see [`super::super::route`]). While look-ups fail that could last for ever. So, when they
//! have held it for too long, their ids are stored, and the frontier goes on: the next process remembers
//! them, each as a change of everything.
//!
//! Invariant: of each transaction that waits, one delivery is counted in the tracker, until it is let go: once, when
//! a look-up sees it, or its id is stored.

use super::super::route::Snapshot;
use super::super::tracker::TxnSeq;
use walhook_core::persist::PersistBatch;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Unseen {
    of: Vec<(u32, Hold)>,
    /// Stored, and seen since.
    seen: Vec<u32>,
    /// The last one that changed what may concern everything.
    of_all: Option<TxnSeq>,
}

#[derive(Debug, Clone, Copy)]
enum Hold {
    /// The transaction waits for a look-up.
    Held(TxnSeq),
    /// It has waited for too long.
    Overdue(TxnSeq),
    /// Its id is in the state transaction under way.
    Storing(TxnSeq),
    /// Nothing waits.
    Stored,
}

impl Unseen {
    /// An earlier leader has stored this id.
    pub(super) fn remember(&mut self, xid: u32) {
        self.of.push((xid, Hold::Stored));
    }

    /// The transaction, with this id, waits. False: it does already.
    pub(super) fn hold(&mut self, xid: u32, txn: TxnSeq) -> bool {
        let is_last =
            |last: &(u32, Hold)| last.0 == xid && matches!(last.1, Hold::Held(held) if held == txn);
        let is_new = !self.of.last().is_some_and(is_last);
        if is_new {
            self.of.push((xid, Hold::Held(txn)));
        }
        is_new
    }

    /// The transaction has changed what may concern everything. False: so it has before.
    pub(super) fn change_all(&mut self, txn: TxnSeq) -> bool {
        self.of_all.replace(txn) != Some(txn)
    }

    /// A look-up saw what its snapshot sees. Returns whether that was anything, and the transactions that wait no
    /// longer.
    pub(super) fn see(&mut self, snapshot: &Snapshot) -> (bool, Vec<TxnSeq>) {
        let (seen, unseen): (Vec<_>, Vec<_>) =
            self.of.drain(..).partition(|(xid, _)| snapshot.sees(*xid));
        self.of = unseen;
        let mut let_go = Vec::new();
        for (xid, hold) in &seen {
            if let Hold::Held(txn) | Hold::Overdue(txn) | Hold::Storing(txn) = hold {
                let_go.push(*txn);
            }
            if matches!(hold, Hold::Storing(_) | Hold::Stored) {
                self.seen.push(*xid);
            }
        }
        (!seen.is_empty(), let_go)
    }

    /// Transactions up to `last` have waited for too long. Returns whether one of them has.
    pub(super) fn release(&mut self, last: TxnSeq) -> bool {
        let mut any = false;
        for (_, hold) in &mut self.of {
            if let Hold::Held(txn) = *hold
                && txn <= last
            {
                *hold = Hold::Overdue(txn);
                any = true;
            }
        }
        any
    }

    /// What is to be remembered, and what need not be any more.
    pub(super) fn hand_out(&mut self, batch: &mut PersistBatch) {
        for (xid, hold) in &mut self.of {
            if let Hold::Overdue(txn) = *hold {
                batch.unseen.push(*xid);
                *hold = Hold::Storing(txn);
            }
        }
        batch.seen = std::mem::take(&mut self.seen);
    }

    /// What was handed out is stored. Returns the transactions that wait no longer.
    pub(super) fn handle_stored(&mut self) -> Vec<TxnSeq> {
        let mut let_go = Vec::new();
        for (_, hold) in &mut self.of {
            if let Hold::Storing(txn) = *hold {
                let_go.push(txn);
                *hold = Hold::Stored;
            }
        }
        let_go
    }

    /// Whether nothing is waited for or remembered.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }
}

#[cfg(test)]
mod tests;
