//! What happens when an endpoint joins an account in mid-stream: see [`super::subscription_starts`].

use super::Dispatcher;
use super::queues::QueueNo;
use super::subscription_starts::First;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{EventKey, QueueId, SettledRange};
use walhook_core::position::Position;
use walhook_core::tick::Tick;

impl Dispatcher {
    /// The queue's endpoint has joined its account: it gets what is routed from now on.
    pub(super) fn join(&mut self, account: &AccountId, endpoint: &EndpointId) {
        let queue = self.queues.intern(account, endpoint);
        self.queues.keep(queue, true);
        self.routing.starts.expect(queue, self.progress.received());
    }

    /// The next delivery is routed to the queue: the first after a join, perhaps.
    pub(super) fn begin_subscription(&mut self, queue: QueueNo, position: Position) {
        if self.routing.starts.begin(queue, self.queues.coming_delivery(), position) {
            self.outbox.touch();
        }
    }

    /// Older events are out of the way: ranges of joins may be stored.
    pub(super) fn touch_starts(&mut self) {
        if !self.routing.starts.is_empty() {
            self.outbox.touch();
        }
    }

    /// The ranges of joins that can be stored. Call after the batch's rows are handed out.
    pub(super) fn hand_out_starts(&mut self) -> Vec<SettledRange> {
        let mut ranges = Vec::new();
        let firsts: Vec<First> = self.routing.starts.firsts().collect();
        for First { queue, id, position, last_insertion } in firsts {
            let it = self.queues.at(queue);
            let QueueId { account, endpoint } = it.id();
            let waits = self.routing.waiting.first_position(account);
            if waits.is_some_and(|waits| waits < position)
                || self.routing.shelves.holds_back(account)
            {
                // An older event may yet come to the queue.
                continue;
            }
            if last_insertion.is_none()
                && it.pending().is_some_and(|in_memory| in_memory.owes_before(id))
            {
                continue;
            }
            let last = last_insertion.unwrap_or(self.outbox.insertions());
            let is_stored = last <= self.outbox.handed_out();
            self.routing.starts.note_last(queue, last, is_stored);
            if is_stored {
                ranges.push(SettledRange {
                    account: account.clone(),
                    endpoint: endpoint.clone(),
                    from: EventKey::before_all_at(Position::FIRST),
                    to: EventKey::before_all_at(position),
                });
            }
        }
        ranges
    }

    /// A batch is stored, and with it the checkpoint at `frontier`: joins whose range was in it, and
    /// those that need none any more, let their queues go.
    pub(super) fn end_starts(&mut self, frontier: Lsn, now: Tick) {
        let mut let_go = self.routing.starts.end(frontier);
        let_go.sort_unstable_by(|a, b| self.queues.id(*a).cmp(self.queues.id(*b)));
        for queue in let_go {
            self.queues.keep(queue, self.routing.starts.has(queue));
            let held_from = self.queues.get(queue).and_then(|_| self.held_from(queue));
            if let Some(in_memory) = self.queues.pending_mut(queue) {
                in_memory.hold_from(held_from);
            }
            self.queues.refresh(queue, now);
            self.sync(queue);
        }
    }
}
