//! What the stream tells of changes of watched tables: the transaction waits until a look-up shows them, or until
//! that takes too long (see [`super::unseen`]).

use super::super::route::Snapshot;
use super::super::tracker::TxnSeq;
use super::Dispatcher;
use walhook_core::persist::PersistBatch;

impl Dispatcher {
    /// What an earlier leader has stored.
    pub(super) fn recover_unseen(&mut self, xids: Vec<u32>) {
        for xid in xids {
            self.routing.router.expect(xid);
            self.routing.unseen.remember(xid);
        }
    }

    /// A transaction that is being read has changed a watched table. Between transactions the reader evicts
    /// what the stream cannot tell of any more: there is nothing to wait for.
    pub(super) fn note_unseen(&mut self, xid: u32) {
        let Some(txn) = self.progress.reading_or_between() else { return };
        if self.routing.unseen.hold(xid, txn) {
            self.progress.add(txn);
        }
    }

    /// A look-up saw what its snapshot sees.
    pub(super) fn note_seen(&mut self, snapshot: &Snapshot) {
        let (any, let_go) = self.routing.unseen.see(snapshot);
        if any {
            self.outbox.touch();
        }
        self.let_go_of_seen(let_go);
    }

    /// Transactions up to `last` hold the frontier back for too long.
    pub(super) fn release_unseen(&mut self, last: TxnSeq) {
        if self.routing.unseen.release(last) {
            self.outbox.touch();
        }
    }

    pub(super) fn hand_out_unseen(&mut self, batch: &mut PersistBatch) {
        self.routing.unseen.hand_out(batch);
    }

    /// What was handed out is stored.
    pub(super) fn handle_unseen_stored(&mut self) {
        let let_go = self.routing.unseen.handle_stored();
        if !let_go.is_empty() {
            self.outbox.touch();
        }
        self.let_go_of_seen(let_go);
    }

    fn let_go_of_seen(&mut self, transactions: Vec<TxnSeq>) {
        for txn in transactions {
            self.progress.complete(txn);
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
        assert!(dispatcher.routing.unseen.is_empty());
        assert_eq!(dispatcher.frontier(), Lsn(3_000));
    }
}
