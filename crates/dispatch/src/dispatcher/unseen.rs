//! Transactions that changed a watched table and that no look-up has been known to see.
//!
//! Each holds the frontier: the next process would not hear of it again, and believe a look-up that does not
//! show it yet (see [`super::super::route`]). While look-ups fail that could last for ever. So, when they
//! have held it for too long, their ids are stored, and the frontier goes on: the next process remembers
//! them, each as a change of everything.

use super::super::route::Snapshot;
use super::super::tracker::TxnSeq;
use super::Dispatcher;
use walhook_core::persist::PersistBatch;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Unseen {
    of: Vec<(u32, Hold)>,
    /// Stored, and seen since.
    seen: Vec<u32>,
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

impl Dispatcher {
    /// What an earlier leader has stored.
    pub(super) fn recover_unseen(&mut self, xids: Vec<u32>) {
        for xid in xids {
            self.routing.router.expect(xid);
            self.routing.unseen.of.push((xid, Hold::Stored));
        }
    }

    /// A transaction that is being read has changed a watched table. Between transactions the reader evicts
    /// what the stream cannot tell of any more: there is nothing to wait for.
    pub(super) fn note_unseen(&mut self, xid: u32) {
        let is_last = |last: &(u32, Hold), txn: TxnSeq| {
            last.0 == xid && matches!(last.1, Hold::Held(held) if held == txn)
        };
        let Some(txn) = self.progress.reading_or_between() else { return };
        if self.routing.unseen.of.last().is_none_or(|last| !is_last(last, txn)) {
            self.progress.add(txn);
            self.routing.unseen.of.push((xid, Hold::Held(txn)));
        }
    }

    /// A look-up saw what its snapshot sees.
    pub(super) fn note_seen(&mut self, snapshot: &Snapshot) {
        let (seen, unseen): (Vec<_>, Vec<_>) =
            self.routing.unseen.of.drain(..).partition(|(xid, _)| snapshot.sees(*xid));
        self.routing.unseen.of = unseen;
        for (xid, hold) in seen {
            match hold {
                Hold::Held(txn) | Hold::Overdue(txn) => self.progress.complete(txn),
                Hold::Storing(txn) => {
                    self.progress.complete(txn);
                    self.routing.unseen.seen.push(xid);
                }
                Hold::Stored => self.routing.unseen.seen.push(xid),
            }
            self.outbox.touch();
        }
    }

    /// Transactions up to `last` hold the frontier back for too long.
    pub(super) fn release_unseen(&mut self, last: TxnSeq) {
        for (_, hold) in &mut self.routing.unseen.of {
            if let Hold::Held(txn) = *hold
                && txn <= last
            {
                *hold = Hold::Overdue(txn);
                self.outbox.touch();
            }
        }
    }

    pub(super) fn hand_out_unseen(&mut self, batch: &mut PersistBatch) {
        for (xid, hold) in &mut self.routing.unseen.of {
            if let Hold::Overdue(txn) = *hold {
                batch.unseen.push(*xid);
                *hold = Hold::Storing(txn);
            }
        }
        batch.seen = std::mem::take(&mut self.routing.unseen.seen);
    }

    /// What was handed out is stored.
    pub(super) fn handle_unseen_stored(&mut self) {
        for (_, hold) in &mut self.routing.unseen.of {
            if let Hold::Storing(txn) = *hold {
                self.progress.complete(txn);
                self.outbox.touch();
                *hold = Hold::Stored;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::dispatcher::Input;
    use crate::fixture;
    use walhook_core::event::{Invalidation, Item, Scope};
    use walhook_core::lsn::Lsn;
    use walhook_core::tick::Tick;

    #[test]
    fn invalidation_between_transactions_is_taken_and_holds_nothing() {
        let mut dispatcher = fixture::dispatcher(fixture::settings());
        let evict = || Item::Invalidate(Invalidation::new(7, Scope::All));
        dispatcher.handle(Tick(1), Input::Items(vec![evict()]));
        dispatcher.handle(Tick(1), Input::Items(fixture::transaction(2_000, [])));
        dispatcher.handle(Tick(2), Input::Items(vec![evict()]));
        dispatcher.handle(Tick(2), Input::Items(vec![Item::Progress { wal_end: Lsn(3_000) }]));
        assert!(dispatcher.routing.unseen.of.is_empty());
        assert_eq!(dispatcher.frontier(), Lsn(3_000));
    }
}
