//! Which deliveries are settled → how far the checkpoint may go.
//!
//! ```text
//! open ─► add ─► close         an entry for each transaction, in commit order
//!           └─► complete ──►   settled from the front ──► frontier
//! ```
//!
//! A transaction is settled when its COMMIT was read and nothing in it is unsettled. The frontier is
//! the end LSN of the longest prefix of settled transactions: every delivery before it has come to
//! its end, so a reader that starts there misses nothing. It is right because entries stand in commit
//! order, leave only at the front, and only when settled; whatever lies between two transactions
//! holds nothing that is ours.
//!
//! Cost: every call is O(1), but for the popping of the settled prefix, which each entry pays once.
//! A transaction opened behind a settled one takes over its entry, so that the many transactions that
//! match no rule hold one entry together while an earlier delivery is still under way.

use std::collections::VecDeque;

use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;

/// The handle of a transaction.
///
/// Invariant: unique within one tracker, and ordered as the transactions were committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxnSeq {
    /// Counts transactions; never used twice.
    number: u64,
    /// Where its entry stands, counted from the first entry ever held; a successor may take it over.
    slot: u64,
}

/// The open transactions in commit order, with what is unsettled in each.
#[derive(Debug)]
pub struct Tracker {
    /// Invariant: the first entry is not settled.
    entries: VecDeque<Entry>,
    /// The slot of the first entry.
    first_slot: u64,
    next_number: u64,
    frontier: Lsn,
    received: Lsn,
    read_to: Lsn,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    commit_lsn: Lsn,
    opened: Tick,
    unsettled: u64,
    /// Known once COMMIT was read.
    end_lsn: Option<Lsn>,
    /// The end of the settled transactions whose entry this one took over.
    settled_before: Option<Lsn>,
}

impl Entry {
    /// The transaction's end, where it is settled.
    fn settled_end(&self) -> Option<Lsn> {
        self.end_lsn.filter(|_| self.unsettled == 0)
    }
}

impl Tracker {
    /// A tracker for a stream that starts at `frontier`.
    #[must_use]
    pub fn new(frontier: Lsn) -> Self {
        Self {
            entries: VecDeque::new(),
            first_slot: 0,
            next_number: 0,
            frontier,
            received: frontier,
            read_to: frontier,
        }
    }

    /// BEGIN was read: the next transaction in commit order.
    ///
    /// # Panics
    /// It is not, or the one before is still open.
    pub fn open(&mut self, commit_lsn: Lsn, now: Tick) -> TxnSeq {
        let tail = self.entries.back();
        if let Some(tail) = tail {
            let last = tail.commit_lsn;
            assert!(tail.end_lsn.is_some(), "{commit_lsn} begins while {last} is still read");
            assert!(last < commit_lsn, "{commit_lsn} begins behind {last}, not in commit order");
        }
        let settled_before = tail.and_then(Entry::settled_end);
        self.received = self.received.max(commit_lsn);
        if settled_before.is_some() {
            self.entries.pop_back();
        }

        let number = self.next_number;
        self.next_number += 1;
        let slot = self.first_slot + self.entries.len() as u64;
        self.entries.push_back(Entry {
            number,
            commit_lsn,
            opened: now,
            unsettled: 0,
            end_lsn: None,
            settled_before,
        });
        TxnSeq { number, slot }
    }

    /// So many more deliveries of the transaction are to be settled.
    ///
    /// May also follow [`Tracker::close`], as long as something in the transaction is unsettled.
    ///
    /// # Panics
    /// The transaction is settled.
    pub fn add(&mut self, txn: TxnSeq, deliveries: u32) {
        let entry = self.unsettled_mut(txn);
        entry.unsettled += u64::from(deliveries);
    }

    /// One delivery of the transaction is settled.
    ///
    /// # Panics
    /// None is left to be settled.
    pub fn complete(&mut self, txn: TxnSeq) {
        let entry = self.unsettled_mut(txn);
        assert!(entry.unsettled > 0, "all deliveries of {txn:?} are settled, and one more is");
        entry.unsettled -= 1;
        if entry.unsettled == 0 {
            self.pop_settled();
        }
    }

    /// COMMIT was read; `end_lsn` is the end of the commit record.
    ///
    /// # Panics
    /// It was read before.
    pub fn close(&mut self, txn: TxnSeq, end_lsn: Lsn) {
        let entry = self.unsettled_mut(txn);
        assert!(entry.end_lsn.is_none(), "the COMMIT of {txn:?} is read twice");
        entry.end_lsn = Some(end_lsn);
        self.received = self.received.max(end_lsn);
        self.read_to = self.read_to.max(end_lsn);
        self.pop_settled();
    }

    /// Between transactions: everything before `wal_end` was received.
    ///
    /// A keepalive may lag behind what was read since; such a one changes nothing.
    ///
    /// # Panics
    /// A transaction is being read.
    pub fn progress(&mut self, wal_end: Lsn) {
        self.received = self.received.max(wal_end);
        self.read_to = self.read_to.max(wal_end);
        let Some(tail) = self.entries.back_mut() else {
            self.frontier = self.frontier.max(wal_end);
            return;
        };
        let Some(end_lsn) = &mut tail.end_lsn else {
            panic!(
                "progress to {wal_end} inside the transaction that commits at {}",
                tail.commit_lsn
            )
        };
        *end_lsn = wal_end.max(*end_lsn);
    }

    /// The end LSN of the longest prefix of settled transactions. Never decreases.
    #[must_use]
    pub fn frontier(&self) -> Lsn {
        self.frontier
    }

    /// How far the stream was read: within the transaction that commits there, or behind it.
    #[must_use]
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// Every transaction that ends no later was read whole.
    #[must_use]
    pub fn read_to(&self) -> Lsn {
        self.read_to
    }

    /// The number of entries held, for the memory budget: one for each transaction that the
    /// frontier has not passed, less those whose entry a later one took over.
    #[must_use]
    pub fn open_transactions(&self) -> usize {
        self.entries.len()
    }

    /// When the oldest transaction that is not settled was opened. One whose COMMIT is still to be
    /// read counts, even with no delivery to wait for.
    #[must_use]
    pub fn oldest_unsettled(&self) -> Option<Tick> {
        self.entries.front().map(|entry| entry.opened)
    }

    /// The last transaction, in commit order, up to which deliveries are to be deferred: those that
    /// were opened no later than `opened`, and, of those whose COMMIT was read, the ones that keep
    /// the frontier below `lsn`. `None`: no transaction is so old.
    #[must_use]
    pub fn overdue(&self, opened: Tick, lsn: Lsn) -> Option<TxnSeq> {
        let old = self.entries.partition_point(|entry| entry.opened <= opened);
        // The one that `lsn` lies in, or behind which it lies, holds the frontier below it as well.
        let below =
            self.entries.partition_point(|entry| entry.end_lsn.is_some_and(|end| end < lsn));
        let holds =
            self.frontier < lsn && self.entries.get(below).is_some_and(|e| e.end_lsn.is_some());
        let last = old.max(below + usize::from(holds)).checked_sub(1)?;
        let slot = self.first_slot + u64::try_from(last).unwrap_or(u64::MAX);
        self.entries.get(last).map(|entry| TxnSeq { number: entry.number, slot })
    }

    /// Whether the frontier has passed the transaction.
    #[must_use]
    pub fn is_passed(&self, txn: TxnSeq) -> bool {
        self.entries.front().is_none_or(|front| txn.number < front.number)
    }

    /// The transaction's commit LSN; none once it is settled and passed, or its entry taken over.
    #[must_use]
    pub fn commit_lsn(&self, txn: TxnSeq) -> Option<Lsn> {
        let index = usize::try_from(txn.slot.checked_sub(self.first_slot)?).ok()?;
        let entry = self.entries.get(index).filter(|entry| entry.number == txn.number)?;
        Some(entry.commit_lsn)
    }

    /// The entry of a transaction that is not settled, and so has its own.
    fn unsettled_mut(&mut self, txn: TxnSeq) -> &mut Entry {
        let index = txn.slot.checked_sub(self.first_slot).map(usize::try_from);
        let entry = index.and_then(Result::ok).and_then(|index| self.entries.get_mut(index));
        match entry.filter(|entry| entry.number == txn.number && entry.settled_end().is_none()) {
            Some(entry) => entry,
            None => panic!("{txn:?} is settled, and its deliveries are not"),
        }
    }

    fn pop_settled(&mut self) {
        while let Some(end) = self.entries.front().and_then(Entry::settled_end) {
            self.entries.pop_front();
            self.first_slot += 1;
            self.advance(end);
        }
        // What the first entry took over is settled, and nothing unsettled stands before it now.
        if let Some(end) = self.entries.front_mut().and_then(|front| front.settled_before.take()) {
            self.advance(end);
        }
    }

    fn advance(&mut self, to: Lsn) {
        // A checkpoint that went back would send again what is settled; one that stayed, hidden by a
        // silent clamp, would hide a stream that is out of order.
        assert!(to >= self.frontier, "the frontier {} would go back to {to}", self.frontier);
        self.frontier = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All transactions ever seen, scanned at each question.
    #[derive(Default)]
    struct Naive {
        start: Lsn,
        txns: Vec<NaiveTxn>,
    }

    struct NaiveTxn {
        seq: TxnSeq,
        commit_lsn: Lsn,
        end_lsn: Option<Lsn>,
        progress: Lsn,
        opened: Tick,
        unsettled: u32,
    }

    impl Naive {
        fn settled_prefix(&self) -> usize {
            let settled = |txn: &NaiveTxn| txn.end_lsn.is_some() && txn.unsettled == 0;
            self.txns.iter().take_while(|txn| settled(txn)).count()
        }

        fn frontier(&self) -> Lsn {
            let last = self.settled_prefix().checked_sub(1).map(|last| &self.txns[last]);
            last.map_or(self.start, |txn| txn.end_lsn.unwrap().max(txn.progress))
        }
    }

    #[derive(Debug, Clone)]
    enum Action {
        Open,
        Add { to: prop::sample::Index, deliveries: u32 },
        Complete(prop::sample::Index),
        Close,
        Progress { ahead: u64 },
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            3 => Just(Action::Open),
            3 => (any::<prop::sample::Index>(), 0u32..4)
                .prop_map(|(to, deliveries)| Action::Add { to, deliveries }),
            6 => any::<prop::sample::Index>().prop_map(Action::Complete),
            3 => Just(Action::Close),
            1 => (0u64..20).prop_map(|ahead| Action::Progress { ahead }),
        ]
    }

    /// The index of one of the transactions that `which` admits.
    fn choose(
        naive: &Naive,
        index: prop::sample::Index,
        which: impl Fn(&NaiveTxn) -> bool,
    ) -> Option<usize> {
        let all: Vec<usize> = (0..naive.txns.len()).filter(|at| which(&naive.txns[*at])).collect();
        (!all.is_empty()).then(|| all[index.index(all.len())])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn tracker_agrees_with_a_scan_of_all_transactions(
            actions in prop::collection::vec(action(), 0..120),
        ) {
            let start = Lsn(100);
            let mut tracker = Tracker::new(start);
            let mut naive = Naive { start, ..Naive::default() };
            let (mut wal, mut now) = (start.0, 0);
            for action in actions {
                now += 1;
                let open = naive.txns.last().is_some_and(|txn| txn.end_lsn.is_none());
                let before = tracker.frontier();
                match action {
                    Action::Open if !open => {
                        wal += 1;
                        let seq = tracker.open(Lsn(wal), Tick(now));
                        naive.txns.push(NaiveTxn {
                            seq, commit_lsn: Lsn(wal), end_lsn: None, progress: Lsn(0),
                            opened: Tick(now), unsettled: 0,
                        });
                    }
                    Action::Close if open => {
                        wal += 1;
                        let txn = naive.txns.last_mut().unwrap();
                        txn.end_lsn = Some(Lsn(wal));
                        tracker.close(txn.seq, Lsn(wal));
                    }
                    Action::Progress { ahead } if !open => {
                        // Sometimes a keepalive that is older than the last commit.
                        let wal_end = Lsn((wal + ahead).saturating_sub(5));
                        wal = wal.max(wal_end.0);
                        tracker.progress(wal_end);
                        match naive.txns.last_mut() {
                            Some(txn) => txn.progress = txn.progress.max(wal_end),
                            None => naive.start = naive.start.max(wal_end),
                        }
                    }
                    Action::Add { to, deliveries } => {
                        let live = |txn: &NaiveTxn| txn.end_lsn.is_none() || txn.unsettled > 0;
                        if let Some(at) = choose(&naive, to, live) {
                            naive.txns[at].unsettled += deliveries;
                            tracker.add(naive.txns[at].seq, deliveries);
                        }
                    }
                    Action::Complete(of) => {
                        if let Some(at) = choose(&naive, of, |txn| txn.unsettled > 0) {
                            naive.txns[at].unsettled -= 1;
                            tracker.complete(naive.txns[at].seq);
                        }
                    }
                    Action::Open | Action::Close | Action::Progress { .. } => {}
                }
                let passed = naive.settled_prefix();
                prop_assert!(tracker.frontier() >= before);
                prop_assert_eq!(tracker.frontier(), naive.frontier());
                prop_assert_eq!(
                    tracker.oldest_unsettled(), naive.txns.get(passed).map(|txn| txn.opened)
                );
                prop_assert!(tracker.open_transactions() <= naive.txns.len() - passed);
                for (at, txn) in naive.txns.iter().enumerate() {
                    prop_assert_eq!(tracker.is_passed(txn.seq), at < passed);
                    if txn.unsettled > 0 || txn.end_lsn.is_none() {
                        prop_assert_eq!(tracker.commit_lsn(txn.seq), Some(txn.commit_lsn));
                    }
                    if at < passed {
                        prop_assert_eq!(tracker.commit_lsn(txn.seq), None);
                    }
                }
                prop_assert!(naive.txns.is_sorted_by_key(|txn| txn.seq));
            }
        }
    }

    #[test]
    fn tracker_holds_one_entry_for_all_unmatched_transactions_behind_an_unsettled_one() {
        let mut tracker = Tracker::new(Lsn(0));
        let held = tracker.open(Lsn(1), Tick(0));
        tracker.add(held, 1);
        tracker.close(held, Lsn(2));
        for n in 1..10_000 {
            let txn = tracker.open(Lsn(10 * n), Tick(n));
            tracker.close(txn, Lsn(10 * n + 1));
            assert_eq!((tracker.frontier(), tracker.open_transactions()), (Lsn(0), 2));
        }
        tracker.complete(held);
        assert_eq!((tracker.frontier(), tracker.open_transactions()), (Lsn(99_991), 0));
    }

    #[test]
    fn tracker_passes_what_is_settled_before_a_transaction_that_took_its_entry_over() {
        let mut tracker = Tracker::new(Lsn(0));
        let first = tracker.open(Lsn(1), Tick(1));
        tracker.add(first, 1);
        tracker.close(first, Lsn(2));
        let settled = tracker.open(Lsn(3), Tick(2));
        tracker.close(settled, Lsn(4));
        let last = tracker.open(Lsn(5), Tick(3));
        tracker.add(last, 1);
        tracker.complete(first);
        assert_eq!(tracker.frontier(), Lsn(4));
        assert!(tracker.is_passed(settled) && !tracker.is_passed(last));
        assert_eq!(tracker.oldest_unsettled(), Some(Tick(3)));
    }

    #[test]
    fn tracker_names_the_transactions_that_are_too_old_or_hold_too_much() {
        let mut tracker = Tracker::new(Lsn(100));
        let seqs: Vec<TxnSeq> = (1..=3u64)
            .map(|n| {
                let txn = tracker.open(Lsn(100 * n + 90), Tick(n));
                tracker.add(txn, 1);
                tracker.close(txn, Lsn(100 * n + 100));
                txn
            })
            .collect();
        assert_eq!(tracker.overdue(Tick(0), Lsn(0)), None);
        assert_eq!(tracker.overdue(Tick(0), Lsn(100)), None, "the frontier is there");
        assert_eq!(tracker.overdue(Tick(2), Lsn(0)), Some(seqs[1]), "opened no later");
        // From 200 on the second holds the frontier below 201, and the first before it.
        assert_eq!(tracker.overdue(Tick(0), Lsn(101)), Some(seqs[0]));
        assert_eq!(tracker.overdue(Tick(0), Lsn(200)), Some(seqs[0]));
        assert_eq!(tracker.overdue(Tick(0), Lsn(201)), Some(seqs[1]));
        assert_eq!(tracker.overdue(Tick(1), Lsn(900)), Some(seqs[2]));
        // One that is still being read cannot be passed, however much there is of it.
        let reading = tracker.open(Lsn(900), Tick(9));
        tracker.add(reading, 1);
        assert_eq!(tracker.overdue(Tick(1), Lsn(2_000)), Some(seqs[2]));
        assert_eq!(tracker.overdue(Tick(9), Lsn(0)), Some(reading));
        assert_eq!((tracker.received(), tracker.read_to()), (Lsn(900), Lsn(400)));
    }

    #[test]
    #[should_panic(expected = "would go back")]
    fn tracker_refuses_a_commit_that_ends_before_the_frontier() {
        let mut tracker = Tracker::new(Lsn(10));
        let txn = tracker.open(Lsn(4), Tick(0));
        tracker.close(txn, Lsn(5));
    }
}
