//! The replays that are fed: how far each is, and what of them is in memory.
//!
//! # Invariants
//!
//! - `pending` is the deliveries of replays that are in memory and no rows: each enters once and leaves once.
//! - A replay that is fed has counts, one that has ended keeps them for a while ([`ENDED_MAX`]): its last outcomes
//!   are still to come. What is counted goes with the next batch.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::queues::QueueNo;
use walhook_core::attempt::DeliveryId;
use walhook_core::id::ReplayId;
use walhook_core::persist::{DeadLetter, PersistBatch, ReplayCounts};
use walhook_core::tick::Tick;

/// Replayed deliveries in memory at once: as many requests in flight, at most.
const REPLAYS_MAX: usize = 16;

/// While there are so many, those that are older leave memory, also with their requests in flight.
pub(super) const HOLD: Duration = Duration::from_secs(1);

/// A queue with so many deliveries in memory is not waited for.
pub(super) const LONG_QUEUE: usize = 4_096;

/// Replays that have ended, of which outcomes may still come.
const ENDED_MAX: usize = 64;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Replays {
    /// Those that are being fed.
    counts: BTreeMap<ReplayId, ReplayCounts>,
    /// The last that came to their end: one that was cancelled has requests in flight.
    ended: BTreeMap<ReplayId, ReplayCounts>,
    /// Those whose counts are not stored.
    changed: BTreeMap<ReplayId, ReplayCounts>,
    letters: Vec<DeadLetter>,
    /// Deliveries in memory that are no rows.
    pending: usize,
    /// Those that were queued, the oldest first; some have left since.
    queued: VecDeque<(Tick, QueueNo, DeliveryId)>,
}

impl Replays {
    /// What the next state transaction is to store.
    pub(super) fn hand_out(&mut self, batch: &mut PersistBatch) {
        batch.replayed = std::mem::take(&mut self.changed).into_iter().collect();
        batch.dead_letters.append(&mut self.letters);
    }

    /// Whether it is being fed.
    pub(super) fn is_known(&self, replay: ReplayId) -> bool {
        self.counts.contains_key(&replay)
    }

    /// A delivery comes into memory, and is no row.
    pub(super) fn enter_memory(&mut self) {
        self.pending += 1;
    }

    /// Whether there is room for another one.
    pub(super) fn have_room(&self) -> bool {
        self.pending < REPLAYS_MAX
    }

    /// A delivery of one that is being fed has died without having been deferred: its letter goes with the next
    /// batch. One that was cancelled leaves none.
    pub(super) fn die(&mut self, replay: ReplayId, letter: DeadLetter) {
        if self.is_known(replay) {
            self.letters.push(DeadLetter { replay: Some(replay), ..letter });
        }
    }

    /// The delivery that was queued first, of those that wait for too long; it may have left since.
    pub(super) fn take_overdue(&mut self, now: Tick) -> Option<(QueueNo, DeliveryId)> {
        self.deadline().filter(|due| *due <= now)?;
        self.queued.pop_front().map(|(_, queue, id)| (queue, id))
    }

    /// A delivery was queued.
    pub(super) fn queued(&mut self, queue: QueueNo, id: DeliveryId, now: Tick) {
        self.queued.push_back((now, queue, id));
    }

    /// One delivery fewer is in memory without a row.
    pub(super) fn leave_memory(&mut self) {
        assert!(self.pending > 0, "a replayed delivery leaves memory that was not in it");
        self.pending -= 1;
        if self.pending == 0 {
            self.queued.clear();
        }
    }

    /// A row is in the batch that is handed out, or in the gap of its queue.
    pub(super) fn count_left(&mut self, replay: ReplayId, in_gap: bool) {
        self.count(replay, |counts| {
            let count = if in_gap { &mut counts.in_gaps } else { &mut counts.deferred };
            *count += 1;
        });
    }

    /// One of its deliveries is counted; where it is neither fed nor has it ended lately, nothing is.
    pub(super) fn count(&mut self, replay: ReplayId, add: impl FnOnce(&mut ReplayCounts)) {
        let counts = self.counts.get_mut(&replay).or_else(|| self.ended.get_mut(&replay));
        if let Some(counts) = counts {
            add(counts);
            self.changed.insert(replay, *counts);
        }
    }

    /// One begins or goes on. Known ones keep their counts.
    pub(super) fn start(&mut self, replay: ReplayId, counts: ReplayCounts) {
        self.ended.remove(&replay);
        self.counts.entry(replay).or_insert(counts);
    }

    /// One is fed no more.
    pub(super) fn end(&mut self, replay: ReplayId) {
        self.ended.extend(self.counts.remove(&replay).map(|counts| (replay, counts)));
        if self.ended.len() > ENDED_MAX {
            self.ended.pop_first();
        }
    }

    /// One that was cancelled is neither queued nor deferred any more.
    pub(super) fn count_dropped(&mut self, replay: ReplayId) {
        self.count(replay, |counts| counts.dropped += 1);
    }

    /// When deliveries are to leave memory although nothing else happens.
    pub(super) fn deadline(&self) -> Option<Tick> {
        let oldest = self.queued.front().filter(|_| self.pending >= REPLAYS_MAX);
        oldest.map(|(since, ..)| *since + HOLD)
    }
}

#[cfg(test)]
mod tests;
