//! How far everything is settled: the open transactions, what is settled ahead of the first of them, and what
//! an earlier leader had settled so.
//!
//! # Invariants
//!
//! - A transaction's deliveries are counted before its end is, and each is completed once; so the frontier
//!   passes nothing that is not settled, and never goes back (see [`Tracker`]).
//! - Transactions begin in the order of their commits; one at a time is read, and the others that are not
//!   complete are paused. While one is, the frontier stays before it, and `is_caught_up` says nothing of what
//!   lies behind it.
//! - What is settled ahead of the frontier is handed out once, with the batch that follows.
//! - What an earlier leader had settled is known until the stored checkpoint has passed it.

use std::collections::BTreeMap;

use super::super::settled::{Ahead, Recovered};
use super::super::tracker::{Tracker, TxnSeq};
use walhook_core::event::{AccountId, EndpointId, Event};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{EventKey, QueueId, SettledRange};
use walhook_core::settled::last_commit_lsn;
use walhook_core::tick::Tick;

/// What is known of a transaction that is not settled.
const TXN_BYTES: usize = 80;

/// What is known of a range that an earlier leader had settled.
const RANGE_BYTES: usize = 256;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Progress {
    tracker: Tracker,
    ahead: Ahead,
    recovered: Recovered,
    /// The transaction that is being read, and the LSN of its commit.
    reading: Option<(Lsn, TxnSeq)>,
    /// Those that were begun and have more to come, by the LSNs of their commits.
    paused: BTreeMap<Lsn, TxnSeq>,
    /// Where the stream goes on.
    begun_at: Lsn,
    /// No row stands behind this that the stream did not show to us.
    known_from: Lsn,
    /// Whether the frontier is held back for too long is not looked at before then.
    next_look: Tick,
}

impl Progress {
    /// A stream that goes on at `frontier`, where an earlier leader had `settled` these ranges ahead of it.
    pub(super) fn new(frontier: Lsn, settled: &[SettledRange]) -> Self {
        Self {
            tracker: Tracker::new(frontier),
            ahead: Ahead::new(),
            recovered: Recovered::from_ranges(settled.iter().cloned()),
            reading: None,
            paused: BTreeMap::new(),
            begun_at: frontier,
            known_from: last_commit_lsn(settled).unwrap_or_default(),
            next_look: Tick(0),
        }
    }

    /// A transaction begins.
    ///
    /// # Panics
    /// Another is being read.
    pub(super) fn begin(&mut self, commit_lsn: Lsn, now: Tick) {
        assert!(self.reading.is_none(), "a transaction begins inside another");
        self.reading = Some((commit_lsn, self.tracker.open(commit_lsn, now)));
    }

    /// The transaction that is being read has its turn again later.
    ///
    /// # Panics
    /// None is.
    pub(super) fn pause(&mut self) {
        let Some((commit_lsn, txn)) = self.reading.take() else {
            panic!("no transaction is read, and one is paused")
        };
        self.paused.insert(commit_lsn, txn);
    }

    /// The transaction that commits there goes on.
    ///
    /// # Panics
    /// It is not paused, or another is being read.
    pub(super) fn resume(&mut self, commit_lsn: Lsn) {
        assert!(self.reading.is_none(), "a transaction goes on inside another");
        let Some(txn) = self.paused.remove(&commit_lsn) else {
            panic!("the transaction that commits at {commit_lsn} goes on, and was not paused")
        };
        self.reading = Some((commit_lsn, txn));
    }

    /// The transaction that is being read.
    ///
    /// # Panics
    /// None is: the stream shows an event outside of a transaction.
    pub(super) fn reading(&self) -> TxnSeq {
        let Some((_, txn)) = self.reading else { panic!("an event outside of a transaction") };
        txn
    }

    /// The transaction that is being read, if the stream is not between two.
    pub(super) fn reading_or_between(&self) -> Option<TxnSeq> {
        self.reading.map(|(_, txn)| txn)
    }

    /// Where in the order of commits what is read now stands: in the transaction that commits there, or behind all
    /// that was read.
    pub(super) fn place(&self) -> Lsn {
        self.reading.map_or_else(|| self.received(), |(commit_lsn, _)| commit_lsn)
    }

    /// The transaction that is being read is complete.
    pub(super) fn commit(&mut self, end_lsn: Lsn) {
        let txn = self.reading();
        self.reading = None;
        self.tracker.close(txn, end_lsn);
    }

    /// Nothing for us up to here, but what is left of those that are paused.
    ///
    /// # Panics
    /// A transaction is being read.
    pub(super) fn pass(&mut self, wal_end: Lsn) {
        if let Some((commit_lsn, _)) = self.reading {
            panic!("progress to {wal_end} inside the transaction that commits at {commit_lsn}");
        }
        self.tracker.progress(wal_end);
    }

    /// One more delivery of the transaction is to be settled.
    pub(super) fn add(&mut self, txn: TxnSeq) {
        self.tracker.add(txn, 1);
    }

    /// One delivery of the transaction is settled, or needs not be counted any more.
    pub(super) fn complete(&mut self, txn: TxnSeq) {
        self.tracker.complete(txn);
    }

    /// A delivery has ended, and the transaction waits for it no longer. Once the frontier has passed that, nothing
    /// else is to be known of it.
    pub(super) fn settle(&mut self, queue: &QueueId, ordinal: u64, event: &Event, txn: TxnSeq) {
        self.tracker.complete(txn);
        if !self.tracker.is_passed(txn) {
            self.settle_with_batch(queue, ordinal, event, txn);
        }
    }

    /// What makes a delivery settled is in the batch that is handed out. When it is stored, the delivery is to
    /// be completed.
    pub(super) fn settle_with_batch(
        &mut self,
        QueueId { account, endpoint }: &QueueId,
        ordinal: u64,
        event: &Event,
        txn: TxnSeq,
    ) {
        self.ahead.push(account, endpoint, ordinal, event, txn);
    }

    /// What is settled ahead of the frontier, and was not handed out.
    pub(super) fn hand_out(&mut self) -> Vec<SettledRange> {
        let tracker = &self.tracker;
        self.ahead.take(|txn| tracker.is_passed(txn))
    }

    /// The checkpoint is stored at `frontier`.
    pub(super) fn handle_stored(&mut self, frontier: Lsn) {
        self.recovered.prune(frontier);
    }

    /// Whether an earlier leader has settled this delivery ahead of its checkpoint.
    pub(super) fn was_settled(&self, event: &Event, endpoint: &EndpointId) -> bool {
        !self.recovered.is_empty()
            && self.recovered.contains(&event.account, endpoint, &EventKey::of(event))
    }

    /// All that an earlier leader has settled of the account's, ahead of its checkpoint.
    pub(super) fn settled_of(&self, account: &AccountId) -> Vec<SettledRange> {
        self.recovered.of(account)
    }

    /// Everything before this is settled; it may not be stored yet.
    pub(super) fn frontier(&self) -> Lsn {
        self.tracker.frontier()
    }

    /// How far the stream was read: within the transaction that commits there, or behind it.
    pub(super) fn received(&self) -> Lsn {
        self.tracker.received()
    }

    /// Whether the stream shows all that an earlier leader may have made rows of.
    pub(super) fn is_caught_up(&self) -> bool {
        self.tracker.read_to() > self.known_from
    }

    /// Whether an earlier leader may have made a row of an event that commits there, and of newer ones.
    pub(super) fn may_be_known(&self, commit_lsn: Lsn) -> bool {
        commit_lsn <= self.known_from || commit_lsn < self.begun_at
    }

    /// When the oldest transaction that is not settled was read.
    pub(super) fn oldest_unsettled(&self) -> Option<Tick> {
        self.tracker.oldest_unsettled()
    }

    /// When it is to be looked at again whether the frontier is held back for too long.
    pub(super) fn next_look(&self) -> Tick {
        self.next_look
    }

    /// It is to be looked at then.
    pub(super) fn look_again_at(&mut self, next: Tick) {
        self.next_look = next;
    }

    /// See [`Tracker::overdue`].
    pub(super) fn overdue(&self, opened: Tick, lsn: Lsn) -> Option<TxnSeq> {
        self.tracker.overdue(opened, lsn)
    }

    /// What it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.tracker.open_transactions() * TXN_BYTES + self.recovered.len() * RANGE_BYTES
    }
}

#[cfg(test)]
mod tests;
