//! What is kept beside what is pending, and what of it is forgotten first (see [`super::memory_budget`]).

use super::super::lane::{DELIVERY_BYTES, LEAVING_BYTES};
use super::Dispatcher;
use super::deferred_queue::DeferredQueue;
use super::failures::FAILING_BYTES;
use super::memory_budget::MemoryBudget;
use walhook_core::event::AccountId;
use walhook_core::heap::{block, map_entry};
use walhook_core::persist::QueueId;

/// What is known of one queue that has deferred rows: its entry, a node of each of its maps, its name.
const DEFERRED_BYTES: usize = block(size_of::<DeferredQueue>())
    + map_entry(size_of::<QueueId>() + size_of::<Box<DeferredQueue>>())
    + 256;

/// What is known of an endpoint that has joined.
const START_BYTES: usize = 256;

/// Idle queues that are kept in any case, for what they know of their endpoints.
const IDLE_MIN: usize = 64;

/// Idle queues that are forgotten for each that comes: more, so that they are gone before what is pending has to go.
const TRIMMED: usize = 4;

impl Dispatcher {
    /// What is kept beside what is pending.
    pub(super) fn kept_bytes(&self) -> usize {
        self.routing.router.bytes()
            + self.queues.bytes()
            + self.queues.with_rows() * DEFERRED_BYTES
            + self.endpoints.failing.len() * FAILING_BYTES
            + self.progress.bytes()
            + self.routing.starts.len() * START_BYTES
            + self.routing.shelves.bytes()
            + self.journal.bytes()
    }

    /// What counts against the limit.
    pub(super) fn used_bytes(&self) -> usize {
        self.memory.used(self.kept_bytes())
    }

    /// What counts against the limit, were all that may leave on its way into the tables, where it takes more. To
    /// leave changes nothing of it: so whatever makes many leave at once, a receiver say that fails, finds the room
    /// that they need on the way.
    pub(super) fn committed_bytes(&self) -> usize {
        self.used_bytes() + self.bytes_to_leave()
    }

    /// What more is taken once all that may leave is on its way into the tables.
    fn bytes_to_leave(&self) -> usize {
        let rowless = self.queues.rowless() + self.routing.waiting.of_stream();
        rowless * (LEAVING_BYTES - DELIVERY_BYTES)
    }

    /// What is not on its way out of memory, nor only kept free for rows that are being read; or, where that is more
    /// of its share, what of it and of what it takes on its way.
    pub(super) fn bytes_to_stay(&self) -> usize {
        let reserved = self.deferral.line.reserved() + self.routing.shelves.reserved();
        let on_their_way = self.outbox.leaving_bytes() + reserved;
        let used = self.used_bytes();
        let committed = used + self.bytes_to_leave();
        let stays = used.saturating_sub(on_their_way);
        stays.max(MemoryBudget::scaled(committed.saturating_sub(on_their_way)))
    }

    /// Forgets some idle queues where all that is kept takes too much: more than three eighths of the memory, or,
    /// where what is pending needs it, an eighth. Never while a queue is looked after: it may be the one that goes.
    pub(super) fn trim_idle(&mut self) {
        for _ in 0..TRIMMED * (self.queues.take_rested() + 1) {
            if self.queues.idle() <= IDLE_MIN {
                return;
            }
            let kept = self.kept_bytes();
            let limit = self.settings.memory_limit;
            let is_much = kept >= limit / 8 * 3
                || kept >= limit / 8 && !self.memory.is_plenty(self.bytes_to_stay());
            if !is_much {
                return;
            }
            if let Some((lane, account)) = self.queues.forget_idle() {
                self.sending.remove_lane(lane);
                self.unpin_if_idle(&account);
            }
        }
    }

    /// Lets an account's routes be forgotten when nothing of it is pending any more.
    pub(super) fn unpin_if_idle(&mut self, account: &AccountId) {
        if !self.queues.has_lane(account) && !self.routing.waiting.has(account) {
            self.routing.router.unpin(account);
        }
    }
}
