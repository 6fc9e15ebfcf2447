//! How deferred rows come back: page by page, a page at a time for each queue, in turn.
//!
//! A queue wants a page while it has few deliveries in memory and there are rows that may go. Rows
//! arrive in the lane's queue like any other delivery, and the scheduler decides from there.
//!
//! Rows can be ahead of the stream: an earlier leader deferred them before it had settled what comes
//! before them. So nothing is read back until the stream is where that leader had settled something
//! last, nor into a queue while events of its account wait for routes, or stand on a shelf since an earlier
//! leader: an older one might be among them.

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::backlog::{Load, Page, PageBudget, Read};
use super::super::lane::{SharedEvent, Source};
use super::Dispatcher;
use super::defer::DeferredQueue;
use super::pages::{PageSize, Turns};
use super::queues::{QueueNo, Queues};
use super::sending::Wake;
use walhook_core::attempt::DeliveryId;
use walhook_core::event::RowKeys;
use walhook_core::persist::{Deferred, QueueId, Refill, Refilled, Tried};
use walhook_core::tick::Tick;

/// Queues that are asked for at once, where memory is large enough.
const QUEUES_AT_ONCE: usize = 32;

/// Queues of the line that are looked at for that; and where there is no room, to see whether one waits for it.
const LOOKED_AT_ONCE: usize = 1_024;
const LOOKED_AT_SHORT: usize = 32;

/// A queue with fewer deliveries in memory wants a page.
const WANTS_BELOW: usize = 64;

/// Rows that are read for a probe.
const PROBE_ROWS: u32 = 16;

/// Heads known of a queue, where few are known of those that are read back together.
const HEADS_MAX: usize = 1_024;

/// Heads known of a queue in any case. A queue whose heads are all known walks no further until one
/// of them has ended.
const HEADS_MIN: usize = 64;

/// What a head takes, roughly.
const HEAD_BYTES: usize = 256;

/// The line of queues that want a page, and the request under way.
#[derive(Debug)]
pub(super) struct Refills {
    line: VecDeque<QueueNo>,
    /// What the request under way may bring; 0: there is none.
    reserved: usize,
    page_size: PageSize,
    turns: Turns,
    /// Heads known of the queues of one request together, beyond which each has [`HEADS_MIN`].
    heads_max: usize,
}

impl Refills {
    pub(super) fn new(memory_limit: usize) -> Self {
        // All pages of one request together take a quarter of the memory.
        let page_size = PageSize::new(QUEUES_AT_ONCE, memory_limit / 4);
        let heads_max = memory_limit / 16 / HEAD_BYTES;
        let (line, turns) = (VecDeque::new(), Turns::default());
        Self { line, reserved: 0, page_size, turns, heads_max }
    }

    /// Whose turn it is, theirs or the stream's.
    pub(super) fn turns(&self) -> &Turns {
        &self.turns
    }

    pub(super) fn join(&mut self, queue: QueueNo, queues: &mut Queues) {
        if !std::mem::replace(&mut queues.with_row(queue).in_line, true) {
            self.line.push_back(queue);
        }
    }
}

impl Dispatcher {
    /// The pages to be read next; answered by [`Dispatcher::handle_refilled`]. One batch at a time.
    pub(super) fn poll_refill(&mut self, now: Tick) -> Option<Vec<Refill>> {
        let is_caught_up = self.progress.is_caught_up();
        if self.deferral.line.reserved > 0 || self.door.is_stopping() || !is_caught_up {
            self.deferral.line.turns.end();
            return None;
        }
        let has_room = !self.memory.is_tight(self.used_bytes());
        let looked_at = if has_room { LOOKED_AT_ONCE } else { LOOKED_AT_SHORT };
        let size = self.deferral.line.page_size;
        let mut pages = Vec::new();
        for _ in 0..self.deferral.line.line.len().min(looked_at) {
            if pages.len() >= size.at_once {
                break;
            }
            let Some(no) = self.deferral.line.line.pop_front() else { break };
            // It may have been forgotten since.
            let Some(queue) = self.queues.get(no).filter(|queue| queue.deferred().is_some()) else {
                continue;
            };
            let queue = queue.id().clone();
            if self.routing.waiting.has(&queue.account)
                || self.routing.shelves.holds_back(&queue.account)
            {
                self.deferral.line.line.push_back(no);
                continue;
            }
            let wants = self.wanted_page(no, now);
            if wants.is_some() && !has_room {
                self.deferral.line.line.push_front(no);
                self.deferral.line.turns.wait(now);
                return None;
            }
            let deferred = self.queues.with_row(no);
            deferred.in_line = false;
            if let Some(page) = wants {
                let from = deferred.backlog.begin_page(page, now);
                // A probe is one row; before it may stand some that are held.
                let rows = if page == Page::Probe { size.rows.min(PROBE_ROWS) } else { size.rows };
                let bytes = size.text_bytes as u64;
                pages.push(Refill { queue, from, rows, bytes });
            }
        }
        self.deferral.line.turns.end();
        if pages.is_empty() {
            return None;
        }
        self.deferral.line.reserved = pages.len() * size.bytes;
        self.memory.take(self.deferral.line.reserved);
        Some(pages)
    }

    /// Takes the answer to [`Dispatcher::poll_refill`].
    pub(super) fn handle_refilled(&mut self, pages: Vec<Refilled>, now: Tick) {
        self.memory.give_back(std::mem::take(&mut self.deferral.line.reserved));
        let numbers: Vec<QueueNo> =
            pages.iter().map(|page| self.queues.named(&page.queue)).collect();
        let known: usize =
            numbers.iter().map(|queue| self.queues.rows_of(*queue).backlog.heads()).sum();
        let heads = if known < self.deferral.line.heads_max { HEADS_MAX } else { HEADS_MIN };
        for (queue, Refilled { rows, end, .. }) in numbers.into_iter().zip(pages) {
            let bytes = self.deferral.line.page_size.bytes;
            let heads = if self.is_suspended(queue) { 0 } else { heads };
            let room = PageBudget { rows: self.rows_to_load(queue, now), bytes, heads };
            let read = |row: Deferred| Read {
                keys: self.row_keys(&row),
                due: row.due_us.map(|us| self.tick_at(us, now)),
                row,
            };
            let rows: Vec<Read> = rows.into_iter().map(read).collect();
            let deferred = self.queues.with_row(queue);
            let counted = (deferred.rows(), deferred.backlog.in_table());
            let loads = deferred.backlog.take_page(rows, end, room, now);
            if counted != (deferred.rows(), deferred.backlog.in_table()) {
                // Somebody else has removed some.
                self.outdate(queue);
            }
            for load in loads {
                let id = self.load(queue, load, now);
                if let Some(breaker) = &mut self.queues.with_row(queue).breaker {
                    breaker.begin_probe(id, now);
                }
            }
            self.look_after(queue, now);
        }
    }

    /// How many rows of a page may go into the queue. Things may have changed since it was asked for.
    fn rows_to_load(&self, queue: QueueNo, now: Tick) -> usize {
        let QueueId { account, endpoint } = self.queues.id(queue);
        match &self.queues.rows_of(queue).breaker {
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
        let Deferred { key, event, attempts, first_attempt_us, .. } = row;
        self.memory.take(event.size_bytes());
        let routes = self.routing.router.get(&self.queues.id(queue).account, now);
        self.give_lane(queue, routes.map_or(1.0, |routes| routes.weight));
        let tried = Box::new(Tried { attempts, first_attempt_us, ..Tried::default() });
        let source = Source::Deferred { replay: key.replay, tried };
        self.enqueue(queue, Arc::new(SharedEvent { event }), source, keys, now)
    }

    /// The ordering keys of a row; a replay is not ordered.
    fn row_keys(&self, row: &Deferred) -> RowKeys {
        if row.key.replay.is_none() { self.ordering_keys(&row.event) } else { RowKeys::new() }
    }

    /// Sees to it that the queue's rows come back: now, if they may, or when the next is due. And
    /// that its deliveries are sent directly again when none is left.
    pub(super) fn look_after(&mut self, queue: QueueNo, now: Tick) {
        let (in_memory, Some(deferred)) = self.queues.at_mut(queue).parts_mut() else { return };
        if deferred.suspension.is_some() {
            // Its rows may be removed now.
            self.outbox.touch();
            return;
        }
        if deferred.rows() == 0 {
            deferred.close_breaker(now);
            deferred.backlog.unblock();
        }
        if let Some(breaker) = &mut deferred.breaker
            && let Some(probe) = breaker.probe()
            && in_memory.is_none_or(|pending| pending.get(probe).is_none())
        {
            breaker.lose_probe();
        }
        if deferred.backlog.is_forgettable() && !deferred.is_stale {
            self.queues.forget_deferred(queue);
            return;
        }
        if self.wanted_page(queue, now).is_some() {
            self.deferral.line.join(queue, &mut self.queues);
            return;
        }
        if self.endpoints.is_paused(&self.queues.id(queue).endpoint) {
            return;
        }
        let deferred = self.queues.with_row(queue);
        if let Some(due) = deferred.next_time().filter(|due| *due > now)
            && deferred.timer.is_none_or(|timer| due < timer)
        {
            deferred.timer = Some(due);
            self.sending.wake_at(due, Wake::Deferred(queue));
        }
    }

    /// A timer that was set for the queue has come.
    pub(super) fn wake_deferred(&mut self, queue: QueueNo, now: Tick) {
        // It may have been forgotten since.
        if let Some(deferred) = self.queues.deferred_mut(queue) {
            if deferred.timer.is_some_and(|timer| timer <= now) {
                deferred.timer = None;
            }
            self.look_after(queue, now);
        }
    }

    fn wanted_page(&self, queue: QueueNo, now: Tick) -> Option<Page> {
        let it = self.queues.at(queue);
        let deferred = it.deferred().filter(|deferred| !deferred.is_suspended())?;
        let in_memory = it.pending();
        let page = match &deferred.breaker {
            _ if self.endpoints.is_paused(&it.id().endpoint) => return None,
            Some(breaker) if !breaker.wants_probe(now) => return None,
            Some(_) => Page::Probe,
            None if in_memory.is_some_and(|queue| queue.len() >= WANTS_BELOW) => return None,
            None => Page::Rows,
        };
        deferred.backlog.wants_page(page, now).then_some(page)
    }
}

impl DeferredQueue {
    /// When a page may be wanted although nothing else happens.
    fn next_time(&self) -> Option<Tick> {
        match &self.breaker {
            Some(breaker) => breaker.open_until(),
            None => self.backlog.next_due(),
        }
    }
}
