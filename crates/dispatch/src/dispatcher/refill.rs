//! How deferred rows come back: page by page, a page at a time for each queue, accounts in turn.
//!
//! A queue wants a page while few of its rows are in memory and there are rows that may go; it is read while
//! there is room that others do not need more (see [`super::relief`]), unless its account waits for room to send what
//! it has from the queue's pool (see [`super::rooms`]). Rows
//! arrive in the lane's queue like any other delivery, and the scheduler decides from there.
//!
//! Rows can be ahead of the stream: an earlier leader deferred them before it had settled what comes
//! before them. So nothing is read back until the stream is where that leader had settled something
//! last, nor into a queue while events of its account wait for routes, or stand on a shelf since an earlier
//! leader: an older one might be among them.

use std::sync::Arc;

use super::super::backlog::{Load, Page, PageBudget, Read};
use super::super::lane::{SharedEvent, Source};
use super::super::schedule::Pool;
use super::Dispatcher;
use super::queues::QueueNo;
use super::sending::Wake;
use walhook_core::attempt::DeliveryId;
use walhook_core::event::{AccountId, RowKeys};
use walhook_core::persist::{Deferred, QueueId, Refill, Refilled, Tried};
use walhook_core::tick::Tick;

/// Rows that are read for a probe: it is one, and before it may stand many that are held.
const PROBE_ROWS: u32 = 256;

impl Dispatcher {
    /// The pages to be read next; answered by [`Dispatcher::handle_refilled`]. One batch at a time.
    pub(super) fn poll_refill(&mut self, now: Tick) -> Option<Vec<Refill>> {
        if self.door.is_stopping() || !self.progress.is_caught_up() {
            return None;
        }
        let at_most = self.deferral.line.pages_at_most(self.memory.room(self.committed_bytes()));
        let mut pages = Vec::new();
        for _ in 0..self.looks(self.deferral.line.looks()) {
            if pages.len() == at_most {
                break;
            }
            let Some((turn, no)) = self.deferral.line.pop() else { break };
            // It may have been forgotten since.
            let Some(queue) = self.queues.get(no).filter(|queue| queue.deferred().is_some()) else {
                continue;
            };
            let (account, pool) = (queue.account(), queue.pool(now));
            let queue = queue.id().clone();
            if (account, pool) != turn {
                // That was another one when it joined.
                self.queues.with_row(no).set_in_line(Some(pool));
                self.deferral.line.put_back((account, pool), no);
                continue;
            }
            if self.queues.waits_for_room(account, pool)
                || self.routing.waiting.has(&queue.account)
                || self.routing.shelves.holds_back(&queue.account)
            {
                self.deferral.line.put_aside(turn, no);
                continue;
            }
            if !self.may_read_back(&queue.account) {
                self.deferral.line.put_back(turn, no);
                continue;
            }
            let wants = self.wanted_page(no, now);
            let deferred = self.queues.with_row(no);
            deferred.set_in_line(None);
            if let Some(page) = wants {
                let from = deferred.backlog_mut().begin_page(page, now);
                let rows = if page == Page::Probe { PROBE_ROWS } else { u32::MAX };
                pages.push(Refill { queue, from, rows, bytes: 0 });
            }
        }
        if pages.is_empty() {
            return None;
        }
        let size = self.deferral.line.begin(pages.len(), at_most);
        self.memory.take(self.deferral.line.reserved());
        for page in &mut pages {
            (page.rows, page.bytes) = (page.rows.min(size.rows), size.text_bytes as u64);
        }
        Some(pages)
    }

    /// Something that was in the way of the account's rows may be no more. Where no older event of it is left that is
    /// not routed, they are looked at again.
    pub(super) fn read_on(&mut self, account: &AccountId) {
        if self.routing.waiting.has(account) || self.routing.shelves.holds_back(account) {
            return;
        }
        if let Some(account) = self.queues.account(account) {
            Pool::ALL.into_iter().for_each(|pool| self.deferral.line.go_on(account, pool));
        }
    }

    /// Takes the answer to [`Dispatcher::poll_refill`].
    pub(super) fn handle_refilled(&mut self, pages: Vec<Refilled>, now: Tick) {
        let (reserved, bytes) = self.deferral.line.end();
        self.memory.give_back(reserved);
        let numbers: Vec<QueueNo> =
            pages.iter().map(|page| self.queues.named(&page.queue)).collect();
        let known: usize =
            numbers.iter().map(|queue| self.queues.rows_of(*queue).backlog().heads()).sum();
        let heads = self.deferral.line.heads(known);
        for (queue, Refilled { rows, end, .. }) in numbers.into_iter().zip(pages) {
            let heads = if self.is_suspended(queue) { 0 } else { heads };
            let room = PageBudget { rows: self.rows_to_load(queue, now), bytes, heads };
            let read = |row: Deferred| Read {
                keys: self.row_keys(&row),
                due: row.due_us.map(|us| self.tick_at(us, now)),
                row,
            };
            let rows: Vec<Read> = rows.into_iter().map(read).collect();
            let deferred = self.queues.with_row(queue);
            let counted = (deferred.rows(), deferred.backlog().in_table());
            let loads = deferred.backlog_mut().take_page(rows, end, room, now);
            if counted != (deferred.rows(), deferred.backlog().in_table()) {
                // Somebody else has removed some.
                self.outdate(queue);
            }
            for load in loads {
                let id = self.load(queue, load, now);
                if let Some(breaker) = self.queues.with_row(queue).breaker_mut() {
                    breaker.begin_probe(id, now);
                }
            }
            self.look_after(queue, now);
        }
    }

    /// How many rows of a page may go into the queue. Things may have changed since it was asked for.
    fn rows_to_load(&self, queue: QueueNo, now: Tick) -> usize {
        let QueueId { account, endpoint } = self.queues.id(queue);
        match self.queues.rows_of(queue).breaker() {
            // An older event of its account waits for its routes.
            _ if self.routing.waiting.has(account) => 0,
            _ if self.routing.shelves.holds_back(account) => 0,
            _ if self.endpoints.is_paused(endpoint) || self.is_suspended(queue) => 0,
            None => usize::MAX,
            Some(breaker) => usize::from(breaker.wants_probe(now)),
        }
    }

    fn load(&mut self, queue: QueueNo, load: Load, now: Tick) -> DeliveryId {
        let Load { row, keys } = load;
        let waits = self.waits_of_row(queue, &row, now);
        let Deferred { key, event, attempts, first_attempt_us, .. } = row;
        self.memory.take(event.size_bytes());
        let routes = self.routing.router.get(&self.queues.id(queue).account, now);
        self.give_lane(queue, routes.map(|routes| routes.share).unwrap_or_default());
        let tried = Box::new(Tried { attempts, first_attempt_us, ..Tried::default() });
        let source = Source::Deferred { replay: key.replay, tried };
        let source = (source, Some(Box::new(waits)));
        self.enqueue(queue, Arc::new(SharedEvent::new(event)), source, keys, now)
    }

    /// The ordering keys of a row; a replay is not ordered.
    fn row_keys(&self, row: &Deferred) -> RowKeys {
        if row.key.replay.is_none() { self.ordering_keys(&row.event) } else { RowKeys::new() }
    }

    /// Sees to it that the queue's rows come back: now, if they may, or when the next is due. And
    /// that its deliveries are sent directly again when none is left.
    pub(super) fn look_after(&mut self, queue: QueueNo, now: Tick) {
        let (in_memory, Some(deferred)) = self.queues.at_mut(queue).parts_mut() else { return };
        if deferred.suspension().is_some() {
            // Its rows may be removed now.
            self.outbox.touch();
            return;
        }
        deferred.rest_if_empty(now);
        if let Some(breaker) = deferred.breaker_mut()
            && let Some(probe) = breaker.probe()
            && in_memory.is_none_or(|pending| pending.get(probe).is_none())
        {
            breaker.lose_probe();
        }
        if deferred.is_forgettable() {
            self.queues.forget_deferred(queue);
            return;
        }
        if self.wanted_page(queue, now).is_some() {
            self.deferral.line.join(queue, &mut self.queues, now);
            return;
        }
        if self.endpoints.is_paused(&self.queues.id(queue).endpoint) {
            return;
        }
        if let Some(due) = self.queues.with_row(queue).take_timer(now) {
            self.sending.wake_at(due, Wake::Deferred(queue));
        }
    }

    /// A timer that was set for the queue has come.
    pub(super) fn wake_deferred(&mut self, queue: QueueNo, now: Tick) {
        // It may have been forgotten since.
        if let Some(deferred) = self.queues.deferred_mut(queue) {
            deferred.wake(now);
            self.look_after(queue, now);
        }
    }

    fn wanted_page(&self, queue: QueueNo, now: Tick) -> Option<Page> {
        let it = self.queues.at(queue);
        let deferred = it.deferred().filter(|deferred| !deferred.is_suspended())?;
        if self.queues.is_cleared(queue) {
            return None;
        }
        let page = match deferred.breaker() {
            _ if self.endpoints.is_paused(&it.id().endpoint) => return None,
            Some(breaker) if !breaker.wants_probe(now) => return None,
            Some(_) => Page::Probe,
            None if deferred.backlog().loaded() >= self.deferral.line.wanted_below() => {
                return None;
            }
            None => Page::Rows,
        };
        deferred.backlog().wants_page(page, now).then_some(page)
    }
}
