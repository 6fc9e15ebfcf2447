//! The one memory budget: what is pending, what is kept beside, and when there is no room.
//!
//! Counted are what is pending (events, deliveries, pages that are asked for), and what is kept beside: routes,
//! queues, what is known of deferred rows, transactions, connections to endpoints. The two together stay within
//! the limit: the stream stops while they reach it. What is kept counts for an eighth of the limit at least, and
//! for half of it at most, so that it never stops the stream alone.
//!
//! Invariant: nothing is given back that was not taken, so with nothing pending the count is 0.

use std::sync::Arc;
use std::time::Duration;

use super::super::lane::SharedEvent;
use super::spans::{self, Spans};
use walhook_core::tick::Tick;
use walhook_core::waits::{Cause, Waits};

/// While the stream stands still making room is tried so often.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    limit: usize,
    pending: usize,
    connections: usize,
    /// Below this, making room was tried and did not help.
    relieve_above: usize,
    /// What the account that holds most held when room was made last.
    level: usize,
    /// The stream stands still.
    is_full: bool,
    /// Not before then making room is tried for that.
    try_at: Tick,
    /// When it stood still.
    full: Spans,
}

impl MemoryBudget {
    /// Nothing is taken of `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        let (pending, connections, relieve_above, is_full) = Default::default();
        let (level, try_at, full) = (usize::MAX, Tick(0), Spans::default());
        Self { limit, pending, connections, relieve_above, level, is_full, try_at, full }
    }

    /// So many bytes are pending from now on.
    pub(super) fn take(&mut self, bytes: usize) {
        self.pending += bytes;
    }

    /// So many bytes are pending no longer.
    ///
    /// # Panics
    /// They were not taken.
    pub(super) fn give_back(&mut self, bytes: usize) {
        let Some(left) = self.pending.checked_sub(bytes) else {
            panic!("{bytes} bytes are given back, and {} were taken", self.pending)
        };
        self.pending = left;
    }

    /// Forgets one holder of an event, and its memory with the last.
    pub(super) fn let_go(&mut self, held: Arc<SharedEvent>) {
        if let Some(held) = Arc::into_inner(held) {
            self.give_back(held.event.size_bytes());
        }
    }

    /// So many bytes are held by the connections to endpoints. They count as what is kept does, up to an
    /// eighth of the limit.
    pub(super) fn note_connections(&mut self, bytes: usize) {
        self.connections = bytes;
    }

    /// What is pending.
    pub(super) fn pending(&self) -> usize {
        self.pending
    }

    /// What counts against the limit, where `kept` is kept beside.
    pub(super) fn used(&self, kept: usize) -> usize {
        let beside = kept + self.connections.min(self.limit / 8);
        self.pending + beside.clamp(self.limit / 8, self.limit / 2)
    }

    /// What is committed, on the scale of what stays: making room begins where the one takes three quarters of the
    /// limit or the other seven eighths, which is before the stream stops ([`MemoryBudget::takes_more`]).
    pub(super) fn scaled(committed: usize) -> usize {
        committed / 7 * 6
    }

    /// Whether so much is too much to stay.
    pub(super) fn is_tight(&self, stays: usize) -> bool {
        stays >= self.limit / 4 * 3
    }

    /// Whether room is to be made where so much is to stay, and there may be something to gain by it.
    pub(super) fn is_short(&self, stays: usize) -> bool {
        stays >= (self.limit / 4 * 3).max(self.relieve_above)
    }

    /// What stays is not what it was: making room may help although it did not before.
    pub(super) fn forget_relief(&mut self) {
        self.relieve_above = 0;
    }

    /// Whether the stream stands still from now on. Whether making room is to be tried then, whatever came of it before:
    /// nothing more comes that would have it tried, and what was in flight may give way by now.
    pub(super) fn note_full(&mut self, is_full: bool, now: Tick) -> bool {
        self.is_full = is_full;
        let is_due = is_full && self.try_at <= now;
        if is_due {
            self.try_at = now + TRY_EVERY;
        }
        is_due
    }

    /// Whether the stream stands still is remembered, with the moment.
    pub(super) fn remember_full(&mut self, now: Tick) {
        self.full.set(self.is_full.then_some(Cause::Memory), spans::at(now));
    }

    /// Adds what of that time the stream stood still, as far as it is remembered; returns how long that was. Both
    /// moments are in microseconds, as [`spans`] have them.
    pub(super) fn add_full_to(&self, waits: &mut Waits, from: i64, to: i64) -> u64 {
        self.full.add_to(waits, from, to)
    }

    /// Whether the stream stood still at any moment after this one.
    pub(super) fn was_full_after(&self, from: i64) -> bool {
        self.full.ended_after(from)
    }

    /// When making room is to be tried although nothing comes.
    pub(super) fn deadline(&self) -> Option<Tick> {
        self.is_full.then_some(self.try_at)
    }

    /// Whether so much may stay once room is made.
    pub(super) fn is_relieved(&self, stays: usize) -> bool {
        stays < self.limit / 32 * 23
    }

    /// Whether so much leaves plenty.
    pub(super) fn is_plenty(&self, stays: usize) -> bool {
        stays < self.limit / 8 * 5
    }

    /// Whether the stream may go on where so much is committed. The rest is for rows that are read back: they must
    /// not wait until nothing comes any more.
    pub(super) fn takes_more(&self, committed: usize) -> bool {
        committed < self.limit / 16 * 15
    }

    /// Whether what is played beside the stream may go on where so much is committed: a little less than the stream
    /// may, so that its turns never take the stream's room, and more than what makes others give way, so that it does
    /// not wait for endpoints.
    pub(super) fn takes_plays(&self, committed: usize) -> bool {
        committed < self.limit / 32 * 29
    }

    /// What is left of the limit where so much is committed.
    pub(super) fn room(&self, committed: usize) -> usize {
        self.limit.saturating_sub(committed)
    }

    /// What the account that holds most held when room was made last. Who holds much less gives way only when that
    /// one has.
    pub(super) fn level(&self) -> usize {
        self.level
    }

    /// Making room has helped, or it has not: looking again costs a look at all accounts, so it is done no more
    /// before as much again as a 64th of the limit has come. Whoever holds most holds `most` now.
    pub(super) fn note_relief(&mut self, stays: usize, most: usize) {
        self.level = most;
        self.relieve_above = if self.is_relieved(stays) { 0 } else { stays + self.limit / 64 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_counts_within_its_bounds() {
        let mut memory = MemoryBudget::new(800);
        assert_eq!(memory.used(0), 100, "an eighth at least");
        memory.take(50);
        memory.note_connections(1_000);
        assert_eq!(memory.used(200), 50 + 300, "connections up to an eighth");
        assert_eq!(memory.used(10_000), 50 + 400, "half at most: it never stops the stream alone");
        memory.give_back(50);
        assert_eq!((memory.pending(), memory.used(0)), (0, 100));
    }

    #[test]
    fn plays_stop_before_the_stream_does_and_after_room_is_made() {
        let memory = MemoryBudget::new(3_200);
        let committed = 2_850;
        assert!(memory.is_tight(MemoryBudget::scaled(committed)), "others give way");
        assert!(memory.takes_plays(committed) && memory.takes_more(committed));
        assert!(!memory.takes_plays(2_900) && memory.takes_more(2_900));
    }

    #[test]
    fn relief_that_did_not_help_is_not_tried_again_at_once() {
        let mut memory = MemoryBudget::new(6_400);
        assert!(!memory.is_short(4_799) && memory.is_short(4_800));
        memory.note_relief(5_000, 70);
        assert_eq!(memory.level(), 70);
        assert!(!memory.is_short(5_099) && memory.is_short(5_100));
        memory.note_relief(100, 0);
        assert!(memory.is_short(4_800));
    }

    #[test]
    fn making_room_is_tried_every_so_often_while_the_stream_stands_still() {
        let mut memory = MemoryBudget::new(6_400);
        assert_eq!(memory.deadline(), None);
        assert!(memory.note_full(true, Tick(7)) && !memory.note_full(true, Tick(8)));
        let next = Tick(7) + TRY_EVERY;
        assert_eq!(memory.deadline(), Some(next));
        assert!(!memory.note_full(false, Tick(9)) && memory.deadline().is_none());
        assert!(!memory.note_full(true, Tick(10)), "it goes on and stops: no more often");
        assert!(memory.note_full(true, next) && !memory.note_full(true, next));
    }

    #[test]
    #[should_panic(expected = "2 bytes are given back, and 1 were taken")]
    fn memory_that_was_not_taken_is_not_given_back() {
        let mut memory = MemoryBudget::new(100);
        memory.take(1);
        memory.give_back(2);
    }
}
