//! What is held in memory, and what of it is forgotten first.
//!
//! Counted are what is pending (events, deliveries, pages that are asked for), and what is kept beside:
//! routes, queues, what is known of deferred rows, transactions, connections to endpoints. The two together stay within the limit:
//! the stream stops while they reach it. What is kept counts for an eighth of the limit at least, and for
//! half of it at most, so that it never stops the stream alone.

use std::sync::Arc;

use super::super::lane::{Held, QUEUE_BYTES};
use super::Dispatcher;
use super::defer::Detour;
use super::failing::FAILING_BYTES;
use super::queues::QueueNo;
use walhook_core::attempt::DeliveryId;
use walhook_core::event::AccountId;
use walhook_core::heap::{block, map_entry};
use walhook_core::persist::QueueId;

/// What is known of one queue that has deferred rows: its entry, a node of each of its maps, its name.
const DETOUR_BYTES: usize =
    block(size_of::<Detour>()) + map_entry(size_of::<QueueId>() + size_of::<Box<Detour>>()) + 256;

/// What is known of a transaction that is not settled.
const TXN_BYTES: usize = 80;

/// What is known of a range that an earlier leader had settled, or of an endpoint that has joined.
const RANGE_BYTES: usize = 256;

/// Idle queues that are kept in any case, for what they know of their endpoints.
const IDLE_MIN: usize = 64;

impl Dispatcher {
    /// What is kept beside what is pending.
    pub(super) fn kept_bytes(&self) -> usize {
        self.router.bytes()
            + self.queues.in_memory() * QUEUE_BYTES
            + self.queues.with_rows() * DETOUR_BYTES
            + self.failures.len() * FAILING_BYTES
            + self.tracker.open_transactions() * TXN_BYTES
            + (self.recovered.len() + self.joins.len()) * RANGE_BYTES
            + self.shelves.bytes()
    }

    /// So many bytes are held by the connections to endpoints. They count as what is kept does, up to an
    /// eighth of the limit.
    pub(super) fn handle_answer_bytes(&mut self, bytes: usize) {
        self.answer_bytes = bytes;
    }

    /// What counts against the limit.
    pub(super) fn used_bytes(&self) -> usize {
        let limit = self.settings.memory_limit;
        let beside = self.kept_bytes() + self.answer_bytes.min(limit / 8);
        self.bytes + beside.clamp(limit / 8, limit / 2)
    }

    /// A queue in which nothing is pending is kept for a while, for what it knows of its endpoint; a lane
    /// as long as any of its queues.
    pub(super) fn rest_if_idle(&mut self, queue: QueueNo, last: DeliveryId) {
        let idle_max = (self.settings.memory_limit / 16 / QUEUE_BYTES).max(IDLE_MIN);
        for (queue, last) in self.queues.rest_if_idle(queue, last, idle_max) {
            if let Some((lane, account)) = self.queues.forget_idle(queue, last) {
                self.scheduler.remove_lane(lane);
                self.unpin_if_idle(&account);
            }
        }
    }

    /// Lets an account's routes be forgotten when nothing of it is pending any more.
    pub(super) fn unpin_if_idle(&mut self, account: &AccountId) {
        if !self.queues.has_lane(account) && !self.waiting.has(account) {
            self.router.unpin(account);
        }
    }

    /// Forgets one holder of an event, and its memory with the last.
    pub(super) fn let_go(&mut self, held: Arc<Held>) {
        if let Some(held) = Arc::into_inner(held) {
            let bytes = held.event.size_bytes();
            debug_assert!(bytes <= self.bytes, "more memory is given back than was taken");
            self.bytes = self.bytes.saturating_sub(bytes);
        }
    }
}
