//! Which deliveries are settled → how far the checkpoint may go.
//!
//! ```text
//! open ─► add ─► close         an entry for each transaction, in commit order
//!           └─► complete ──►   settled from the front ──► frontier
//! ```
//!
//! Several may be open at once: a transaction opens in its place in commit order, and may close after later ones.
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
    /// The slot of the first entry whose COMMIT is still to be read; of the next entry, where there is none.
    first_open: u64,
    /// The end of the last thing that was read, in the order of the WAL: whatever ends no later, and is not open,
    /// was read whole.
    ended: Lsn,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    commit_lsn: Lsn,
    opened: Tick,
    unsettled: u64,
    /// Known once COMMIT was read.
    end_lsn: Option<Lsn>,
    /// Nothing is ours between its end and here, as far as was told before its COMMIT was read.
    nothing_to: Lsn,
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
            first_open: 0,
            ended: frontier,
        }
    }

    /// BEGIN was read: the next transaction in commit order.
    ///
    /// # Panics
    /// It is not.
    pub fn open(&mut self, commit_lsn: Lsn, now: Tick) -> TxnSeq {
        let tail = self.entries.back();
        if let Some(tail) = tail {
            let last = tail.commit_lsn;
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
        // All before it were closed, one of which it has taken the place of.
        self.first_open = self.first_open.min(slot);
        self.entries.push_back(Entry {
            number,
            commit_lsn,
            opened: now,
            unsettled: 0,
            end_lsn: None,
            nothing_to: Lsn(0),
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
        entry.end_lsn = Some(end_lsn.max(entry.nothing_to));
        self.received = self.received.max(end_lsn);
        self.ended = self.ended.max(end_lsn);
        self.skip_closed();
        self.pop_settled();
    }

    /// Between transactions: everything before `wal_end` was received, but what is left of those that are open.
    ///
    /// A keepalive may lag behind what was read since; such a one changes nothing.
    pub fn progress(&mut self, wal_end: Lsn) {
        self.received = self.received.max(wal_end);
        self.ended = self.ended.max(wal_end);
        let Some(tail) = self.entries.back_mut() else {
            self.frontier = self.frontier.max(wal_end);
            return;
        };
        let end = tail.end_lsn.as_mut().unwrap_or(&mut tail.nothing_to);
        *end = wal_end.max(*end);
    }

    /// The end LSN of the longest prefix of settled transactions. Never decreases.
    #[must_use]
    pub fn frontier(&self) -> Lsn {
        self.frontier
    }

    /// How far the stream was read: within the transaction that commits there, or behind it; of earlier ones that
    /// are open more is to come.
    #[must_use]
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// Every transaction that ends no later was read whole. Never decreases.
    #[must_use]
    pub fn read_to(&self) -> Lsn {
        let open = self.entries.get(self.closed());
        open.map_or(self.ended, |open| self.ended.min(open.commit_lsn))
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
    /// were opened no later than `opened`, and, of those before the first that is open, the ones that keep
    /// the frontier below `lsn`. `None`: no transaction is so old.
    #[must_use]
    pub fn overdue(&self, opened: Tick, lsn: Lsn) -> Option<TxnSeq> {
        let old = self.entries.partition_point(|entry| entry.opened <= opened);
        // The one that `lsn` lies in, or behind which it lies, holds the frontier below it as well. Behind one that
        // is open nothing frees any WAL.
        let first_open = self.entries.get(self.closed()).map(|open| open.number);
        let below = self.entries.partition_point(|entry| {
            first_open.is_none_or(|open| entry.number < open)
                && entry.end_lsn.is_some_and(|end| end < lsn)
        });
        let holds = self.frontier < lsn && below < self.closed();
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

    /// How many entries stand before the first one whose COMMIT is still to be read.
    fn closed(&self) -> usize {
        usize::try_from(self.first_open - self.first_slot).unwrap_or(usize::MAX)
    }

    /// The first open entry is no longer before this one. Each entry is passed once.
    fn skip_closed(&mut self) {
        while self.entries.get(self.closed()).is_some_and(|entry| entry.end_lsn.is_some()) {
            self.first_open += 1;
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
mod tests;
