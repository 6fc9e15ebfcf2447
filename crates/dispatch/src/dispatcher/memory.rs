//! What is kept beside what is pending, and what of it is forgotten first (see [`super::memory_budget`]).

use super::super::lane::{DELIVERY_BYTES, LEAVING_BYTES, QUEUE_BYTES};
use super::Dispatcher;
use super::deferred_queue::DeferredQueue;
use super::failures::FAILING_BYTES;
use super::queues::QueueNo;
use walhook_core::attempt::DeliveryId;
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

impl Dispatcher {
    /// What is kept beside what is pending.
    pub(super) fn kept_bytes(&self) -> usize {
        self.routing.router.bytes()
            + self.queues.in_memory() * QUEUE_BYTES
            + self.queues.with_rows() * DEFERRED_BYTES
            + self.endpoints.failing.len() * FAILING_BYTES
            + self.progress.bytes()
            + self.routing.starts.len() * START_BYTES
            + self.routing.shelves.bytes()
    }

    /// What counts against the limit.
    pub(super) fn used_bytes(&self) -> usize {
        self.memory.used(self.kept_bytes())
    }

    /// What counts against the limit, were all that may leave on its way into the tables, where it takes more. To
    /// leave changes nothing of it: so whatever makes many leave at once, a receiver say that fails, finds the room
    /// that they need on the way.
    pub(super) fn committed_bytes(&self) -> usize {
        let rowless = self.queues.rowless() + self.routing.waiting.of_stream();
        self.used_bytes() + rowless * (LEAVING_BYTES - DELIVERY_BYTES)
    }

    /// A queue in which nothing is pending is kept for a while, for what it knows of its endpoint; a lane
    /// as long as any of its queues.
    pub(super) fn rest_if_idle(&mut self, queue: QueueNo, last: DeliveryId) {
        let idle_max = (self.settings.memory_limit / 16 / QUEUE_BYTES).max(IDLE_MIN);
        for (queue, last) in self.queues.rest_if_idle(queue, last, idle_max) {
            if let Some((lane, account)) = self.queues.forget_idle(queue, last) {
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
