//! From an event to its account's endpoints: slice by slice, so that nobody waits for an account that has
//! hundreds of thousands of them, and no more than that account's lane can use is in memory.
//!
//! An event of an account with few endpoints whose routes are known is routed as it arrives. Every other
//! one waits here: for its account's routes, behind the account's earlier events, or for its slices. A
//! slice queues the event for the next few hundred endpoints, in the order of their ids, as they are known at
//! that moment; so routes that change in between do no harm, and none are kept for it. One account's
//! slice is followed by another's.
//!
//! While its lane has enough to send, or memory is short, an event waits; while it waits it holds the
//! frontier. What is left of it is deferred, as fast as that is stored, when nothing of the account has moved
//! for too long, too much WAL is held back, or the account's waiting events take too much memory. Where its
//! routes are not known then, the events become rows without an endpoint (see the module `unrouted`). An
//! event that moves is not deferred for its age alone: a row for each of hundreds of thousands of
//! endpoints costs everybody more than a checkpoint that is minutes old.

use std::sync::Arc;

use super::super::lane::{DELIVERY_BYTES, SharedEvent, Source};
use super::super::tracker::TxnSeq;
use super::Dispatcher;
use super::memory_budget::MemoryBudget;
use super::outbox::ROWS_BYTES;
use super::queues::AccountNo;
use super::waiting::{Parked, To};
use walhook_core::attempt::Asked;
use walhook_core::endpoint::{Endpoint, Routes, Share};
use walhook_core::event::{AccountId, EndpointId, Event, RowKeys};
use walhook_core::persist::DeferReason;
use walhook_core::tick::Tick;
use walhook_core::waits::{Cause, Waits};

impl Dispatcher {
    /// Routes an event, or has it wait behind what waits for the same account.
    pub(super) fn arrive(&mut self, event: Arc<Event>, to: To, now: Tick) {
        if matches!(to, To::All(_)) && self.was_shelved(&event) {
            return;
        }
        self.memory.take(event.size_bytes());
        let account = event.account.clone();
        let is_asked = matches!(to, To::One { .. });
        let held = Arc::new(SharedEvent::new(event));
        let has_shelf = self.routing.shelves.has(&account);
        if let To::All(txn) = to
            && has_shelf
            && !self.routing.waiting.has(&account)
            && self.routing.router.get(&account, now).is_none()
        {
            self.progress.add(txn);
            self.memory.take(DELIVERY_BYTES);
            self.shelve(held, txn);
            self.relieve(now);
            return;
        }
        let stands_behind = has_shelf || self.routing.waiting.has(&account);
        let in_turn = !stands_behind || matches!(to, To::One { .. });
        let known = self.queues.account(&account);
        let routes = if in_turn { self.routes_of(known, &account, now) } else { None };
        let slice = self.settings.slice;
        let at_once =
            |routes: &Arc<Routes>| routes.refused.is_none() && routes.endpoints.len() <= slice;
        if let Some(routes) = routes.as_ref().filter(|routes| at_once(routes)) {
            match to {
                To::All(txn) => {
                    let to = &routes.endpoints;
                    // The moments of its deliveries tell how long it was read.
                    let waits = self.waits_of_full(&held.event, now);
                    self.route((&held, waits.as_ref(), known), txn, to, routes.share, None, now);
                }
                To::One { endpoint, asked } => {
                    self.route_one((&held, None), endpoint, asked, routes.share, now);
                }
            }
            self.memory.let_go(held);
            self.relieve(now);
            return;
        }
        if let To::All(txn) = &to {
            self.progress.add(*txn);
        }
        self.memory.take(DELIVERY_BYTES);
        let waits = self.waits_of_arrival(&held.event, is_asked, now);
        let parked = Parked::new(held, to, &waits);
        self.routing.waiting.push(account.clone(), parked, now);
        if routes.is_some() {
            self.routing.waiting.join_line(&account, now);
        } else if !self.routing.waiting.is_in_line(&account) {
            self.routing.router.want(&account);
        }
        self.relieve(now);
    }

    /// Routes the next slice of what waits. Call before [`Dispatcher::poll_attempt`].
    pub(super) fn fan_out(&mut self, now: Tick) {
        let looks = self.routing.waiting.begin_looks();
        if self.door.is_stopping() {
            return;
        }
        self.route_shelves(now);
        if !self.routing.waiting.is_empty() && self.is_stalled(now) {
            self.relieve(now);
        }
        if looks == 0 {
            return;
        }
        self.relieve(now);
        for _ in 0..looks {
            let Some(account) = self.routing.waiting.next_in_line() else { return };
            if self.route_slice(&account, None, &mut { self.settings.slice }, now) {
                self.routing.waiting.note_moved();
                self.relieve_anew(now);
                return;
            }
        }
    }

    /// The account's routes have come. Routes of what waits as much as `left` allows.
    pub(super) fn handle_routes(
        &mut self,
        account: &AccountId,
        routes: &Arc<Routes>,
        left: &mut usize,
        now: Tick,
    ) {
        if self.routing.shelves.has(account) {
            self.route_shelf(account, Some(routes), now);
        }
        if self.routing.waiting.begin_turn(account, now) {
            self.route_slice(account, Some(routes), left, now);
            self.routing.waiting.note_moved();
        }
    }

    /// Routes some of an account that has just left the line, and puts it back where more is left. False:
    /// nothing can be done now.
    fn route_slice(
        &mut self,
        account: &AccountId,
        routes: Option<&Arc<Routes>>,
        left: &mut usize,
        now: Tick,
    ) -> bool {
        let mut worked = false;
        loop {
            let Some(first) = self.routing.waiting.first(account) else {
                self.routing.waiting.forget(account);
                self.read_on(account);
                self.unpin_if_idle(account);
                return true;
            };
            if self.routing.shelves.has(account) && matches!(first.to, To::All(_)) {
                // It goes on when the shelf is empty.
                self.routing.waiting.leave_line(account, now);
                return true;
            }
            let Some(routes) = routes.cloned().or_else(|| self.routing.router.get(account, now))
            else {
                self.routing.waiting.leave_line(account, now);
                self.routing.router.want(account);
                return true;
            };
            let may_go = self.may_go(account, &routes);
            if *left == 0 || may_go.is_none() {
                let why = self.why_parked(account, *left > 0);
                self.routing.waiting.put_back(account.clone(), why, now);
                return worked;
            }
            worked = true;
            let at_once = (*left).min(self.settings.slice);
            let came_to = self.route_next(account, &routes, at_once, may_go.flatten(), now);
            *left = left.saturating_sub(came_to);
        }
    }

    /// Why an account's events wait whose routes are known. `is_held`: the first of them may not go on.
    fn why_parked(&self, account: &AccountId, is_held: bool) -> Cause {
        let lane = self.queues.lane_of(account);
        let has_enough = lane.is_some_and(|lane| lane.pending() >= self.settings.lane_max);
        if is_held && !has_enough { Cause::Memory } else { Cause::Turn }
    }

    /// Whether the account's first event may go on (`Some`), and why its deliveries are deferred, where
    /// they are.
    fn may_go(&self, account: &AccountId, routes: &Routes) -> Option<Option<DeferReason>> {
        let first = self.routing.waiting.first(account)?;
        if matches!(first.to, To::One { .. }) || routes.refused.is_some() {
            return Some(None);
        }
        let limit = self.settings.memory_limit;
        let (committed, leaving) = (self.committed_bytes(), self.outbox.leaving_bytes());
        let used = self.used_bytes().max(MemoryBudget::scaled(committed));
        // What is on its way to the table makes room only when it is stored.
        let has_room = committed < limit || leaving < limit / 8;
        if routes.endpoints.len() <= self.settings.slice {
            return has_room.then_some(None);
        }
        let reason = if self.routing.waiting.is_first_overdue(account) {
            Some(DeferReason::Held)
        } else if self.routing.waiting.bytes_of(account) >= limit / 8 && used >= limit / 2 {
            Some(DeferReason::Overflow)
        } else {
            None
        };
        let lane = self.queues.lane_of(account);
        let goes = match reason {
            // Where the events that wait fill memory by themselves, nothing else makes room.
            Some(_) => leaving < 2 * ROWS_BYTES && has_room,
            None => {
                used < limit / 4 * 3
                    && lane.is_none_or(|lane| lane.pending() < self.settings.lane_max)
            }
        };
        goes.then_some(reason)
    }

    /// Takes the account's first event on, by at most `left` endpoints. Returns how many it was.
    pub(super) fn route_next(
        &mut self,
        account: &AccountId,
        routes: &Routes,
        left: usize,
        reason: Option<DeferReason>,
        now: Tick,
    ) -> usize {
        let waits = self.routing.waiting.waits_of_first(account, now);
        let first = self.routing.waiting.first_mut(account, now);
        let mut came_to = 1;
        if let To::All(txn) = first.to
            && routes.refused.is_none()
        {
            let after = |endpoint: &Arc<Endpoint>| {
                first.after.as_ref().is_some_and(|after| endpoint.id <= *after)
            };
            let from = routes.endpoints.partition_point(after);
            let to = routes.endpoints.len().min(from.saturating_add(left));
            let slice = routes.endpoints.get(from..to).unwrap_or_default();
            came_to = slice.len().max(1);
            first.after = slice.last().map(|endpoint| endpoint.id.clone()).or(first.after.take());
            let held = Arc::clone(&first.held);
            let known = self.queues.account(account);
            self.route((&held, Some(&waits), known), txn, slice, routes.share, reason, now);
            if to < routes.endpoints.len() {
                self.memory.let_go(held);
                self.relieve(now);
                return came_to;
            }
        }
        let Parked { held, to, .. } = self.routing.waiting.take_first(account);
        self.memory.give_back(DELIVERY_BYTES);
        match to {
            To::All(txn) if routes.refused.is_some() => {
                self.door.reports.refused();
                let detail = routes.refused.clone().unwrap_or_default();
                // It may be on its way to some endpoints already, and is counted once.
                self.dead_letter_unroutable(held, detail, txn);
                return came_to;
            }
            To::All(txn) => {
                self.progress.complete(txn);
                self.touch_starts();
            }
            To::One { endpoint, asked } => {
                self.route_one((&held, Some(&waits)), endpoint, asked, routes.share, now);
            }
        }
        self.memory.let_go(held);
        self.relieve(now);
        came_to
    }

    /// The account's routes, where they are known and hold. `known`: its number, where it has one.
    fn routes_of(
        &mut self,
        known: Option<AccountNo>,
        account: &AccountId,
        now: Tick,
    ) -> Option<Arc<Routes>> {
        match known.and_then(|account| self.queues.lane_in(account)) {
            Some(lane) => self.routing.router.get_pinned(lane.routes(), now),
            None => self.routing.router.get(account, now),
        }
    }

    /// Queues an event, which waited for this and whose account has this number, for those of `endpoints` that want
    /// it; or defers it for them, where there is a `reason`.
    fn route(
        &mut self,
        (held, waits, mut account): (&Arc<SharedEvent>, Option<&Waits>, Option<AccountNo>),
        txn: TxnSeq,
        endpoints: &[Arc<Endpoint>],
        share: Share,
        reason: Option<DeferReason>,
        now: Tick,
    ) {
        let event = Arc::clone(&held.event);
        for endpoint in endpoints.iter().filter(|e| e.enabled && e.wants(&event.event_type)) {
            if self.progress.was_settled(&event, &endpoint.id) {
                continue;
            }
            if self.joined_after(&endpoint.id, event.position.commit_lsn()) {
                // Nor after a crash, behind what it gets from now on.
                self.join(&event.account, &endpoint.id);
                continue;
            }
            self.progress.add(txn);
            let keys = self.ordering_keys(&event);
            let held = Arc::clone(held);
            let (queue, no) = self.queues.intern_in(account, &event.account, &endpoint.id);
            account = Some(no);
            self.give_lane(queue, share);
            self.begin_subscription(queue, event.position);
            if let Some(reason) = self.why_defer(queue, &keys).or(reason) {
                self.defer_arrival(queue, held, txn, &keys, reason);
            } else {
                let waits = waits.copied().map(Box::new);
                self.enqueue(queue, held, (Source::Stream(txn), waits), keys, now);
            }
        }
    }

    /// The account's shelf is empty.
    pub(super) fn resume_waiting(&mut self, account: &AccountId, now: Tick) {
        if !self.routing.waiting.has(account) {
            return;
        }
        if self.routing.router.get(account, now).is_some() {
            self.routing.waiting.join_line(account, now);
        } else {
            self.routing.router.want(account);
        }
    }

    fn route_one(
        &mut self,
        (held, waits): (&Arc<SharedEvent>, Option<&Waits>),
        endpoint: EndpointId,
        asked: Asked,
        share: Share,
        now: Tick,
    ) {
        let queue = match asked {
            Asked::Retry { dead_letter, job } if self.endpoints.is_paused(&endpoint) => {
                self.refuse_paused(&held.event, endpoint, dead_letter, job);
                return;
            }
            Asked::Retry { .. } => self.queue(&held.event.account, &endpoint, share),
            Asked::Replay(replay) => {
                let queue = self.queues.intern(&held.event.account, &endpoint);
                if let Some(reason) = self.why_defer_replayed(queue, now) {
                    self.replays.leave_memory();
                    self.defer_replayed(queue, Arc::clone(held), replay, reason);
                    return;
                }
                self.give_lane(queue, share);
                queue
            }
        };
        let source = match asked {
            Asked::Retry { dead_letter, job } => Source::Retry { dead_letter, job },
            Asked::Replay(replay) => Source::Replay(replay),
        };
        let source = (source, waits.copied().map(Box::new));
        let id = self.enqueue(queue, Arc::clone(held), source, RowKeys::new(), now);
        if let Asked::Replay(_) = asked {
            self.replays.queued(queue, id, now);
        }
    }
}

#[cfg(test)]
mod tests;
