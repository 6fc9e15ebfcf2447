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

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::super::lane::{DELIVERY_BYTES, SharedEvent, Source};
use super::super::tracker::TxnSeq;
use super::Dispatcher;
use super::outbox::ROWS_BYTES;
use walhook_core::endpoint::{Endpoint, Routes};
use walhook_core::event::{AccountId, EndpointId, Event, RowKeys, Unroutable, UnroutableReason};
use walhook_core::id::{DeadLetterId, JobId, ReplayId};
use walhook_core::persist::DeferReason;
use walhook_core::position::Position;
use walhook_core::tick::Tick;

/// A look-up that is not answered for so long is not waited for where memory is short.
const STALL: Duration = Duration::from_secs(1);

/// Where nothing that waits can become rows, that is looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Accounts in line that are looked at for one slice.
const LOOKED_AT_ONCE: usize = 64;

/// An event that waits.
#[derive(Debug)]
struct Parked {
    held: Arc<SharedEvent>,
    to: To,
    /// The last endpoint that a slice came to.
    after: Option<EndpointId>,
}

/// Which of the account's endpoints an event is for.
#[derive(Debug)]
pub(super) enum To {
    /// All that want it; the transaction counts it as one delivery until it is routed.
    All(TxnSeq),
    /// One, on an operator's wish.
    One { endpoint: EndpointId, asked: Asked },
}

/// Which wish that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// That a dead letter is sent again.
    Retry { dead_letter: DeadLetterId, job: JobId },
    /// A replay.
    Replay(ReplayId),
}

/// The events that wait, by account.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    accounts: BTreeMap<AccountId, Events>,
    /// Accounts whose routes are known.
    line: VecDeque<AccountId>,
    /// Nobody has seen yet that none of them can go on.
    is_ready: bool,
    /// Whether one of them may become rows is not looked at before then.
    look_at: Tick,
}

/// One account's, in stream order.
#[derive(Debug, Default)]
struct Events {
    events: VecDeque<Parked>,
    bytes: usize,
    in_line: bool,
    /// When the first of them moved last.
    moved: Tick,
    /// Those of transactions up to this one hold the frontier back for too long.
    overdue: Option<TxnSeq>,
}

impl Waiting {
    pub(super) fn has(&self, account: &AccountId) -> bool {
        self.accounts.contains_key(account)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// Where the first of the account's events stands that waits, operators' retries apart.
    pub(super) fn first_position(&self, account: &AccountId) -> Option<Position> {
        let mut events = self.accounts.get(account)?.events.iter();
        let first = events.find(|parked| matches!(parked.to, To::All(_)))?;
        Some(first.held.event.position)
    }

    /// Whether something may be possible at this moment.
    pub(super) fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// The account's events, of which some wait.
    fn of(&mut self, account: &AccountId) -> &mut Events {
        match self.accounts.get_mut(account) {
            Some(events) => events,
            None => panic!("events of an account are to be routed, and none waits"),
        }
    }

    /// The first of the account's events has been routed.
    fn take_first(&mut self, account: &AccountId) -> Parked {
        let events = self.of(account);
        let Some(first) = events.events.pop_front() else { panic!("nothing waits to be routed") };
        let Some(left) = events.bytes.checked_sub(first.held.event.size_bytes()) else {
            panic!("more bytes are routed than waited")
        };
        events.bytes = left;
        first
    }

    fn push(&mut self, account: AccountId, parked: Parked, now: Tick) {
        let new = || Events { moved: now, ..Events::default() };
        let events = self.accounts.entry(account).or_insert_with(new);
        events.bytes += parked.held.event.size_bytes();
        events.events.push_back(parked);
    }

    /// The account's routes are known.
    fn join_line(&mut self, account: &AccountId) {
        if let Some(events) = self.accounts.get_mut(account)
            && !std::mem::replace(&mut events.in_line, true)
        {
            self.line.push_back(account.clone());
            self.is_ready = true;
        }
    }

    /// Events of transactions up to `last` are overdue, where none of the account's has moved since then.
    pub(super) fn note_overdue(&mut self, last: TxnSeq, since: Tick) {
        for events in self.accounts.values_mut().filter(|events| events.moved <= since) {
            events.overdue = Some(last);
            self.is_ready |= events.in_line;
        }
    }
}

impl Dispatcher {
    /// Routes an event, or has it wait behind what waits for the same account.
    pub(super) fn arrive(&mut self, event: Arc<Event>, to: To, now: Tick) {
        if matches!(to, To::All(_)) && self.was_shelved(&event) {
            return;
        }
        self.memory.take(event.size_bytes());
        let account = event.account.clone();
        let held = Arc::new(SharedEvent { event });
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
        let waits = has_shelf || self.routing.waiting.has(&account);
        let in_turn = !waits || matches!(to, To::One { .. });
        let routes = if in_turn { self.routing.router.get(&account, now) } else { None };
        let slice = self.settings.slice;
        let at_once =
            |routes: &Arc<Routes>| routes.refused.is_none() && routes.endpoints.len() <= slice;
        if let Some(routes) = routes.as_ref().filter(|routes| at_once(routes)) {
            match to {
                To::All(txn) => self.route(&held, txn, &routes.endpoints, routes.weight, None, now),
                To::One { endpoint, asked } => {
                    self.route_one(&held, endpoint, asked, routes.weight, now);
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
        self.routing.waiting.push(account.clone(), Parked { held, to, after: None }, now);
        if routes.is_some() {
            self.routing.waiting.join_line(&account);
        } else if !self.routing.waiting.accounts.get(&account).is_some_and(|events| events.in_line)
        {
            self.routing.router.want(&account);
        }
        self.relieve(now);
    }

    /// Routes the next slice of what waits. Call before [`Dispatcher::poll_attempt`].
    pub(super) fn fan_out(&mut self, now: Tick) {
        self.routing.waiting.is_ready = false;
        if self.door.is_stopping() {
            return;
        }
        self.route_shelves(now);
        if !self.routing.waiting.is_empty() && self.is_stalled(now) {
            self.relieve(now);
        }
        if self.routing.waiting.line.is_empty() {
            return;
        }
        self.relieve(now);
        for _ in 0..self.routing.waiting.line.len().min(LOOKED_AT_ONCE) {
            let Some(account) = self.routing.waiting.line.pop_front() else { return };
            if self.route_slice(&account, None, &mut { self.settings.slice }, now) {
                self.routing.waiting.is_ready = !self.routing.waiting.line.is_empty();
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
        let Some(events) = self.routing.waiting.accounts.get_mut(account) else { return };
        if !std::mem::replace(&mut events.in_line, true) {
            self.route_slice(account, Some(routes), left, now);
            self.routing.waiting.is_ready |= !self.routing.waiting.line.is_empty();
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
            let Some(events) = self.routing.waiting.accounts.get_mut(account) else { return true };
            if self.routing.shelves.has(account)
                && events.events.front().is_some_and(|first| matches!(first.to, To::All(_)))
            {
                // It goes on when the shelf is empty.
                events.in_line = false;
                return true;
            }
            if events.events.is_empty() {
                self.routing.waiting.accounts.remove(account);
                self.unpin_if_idle(account);
                return true;
            }
            let Some(routes) = routes.cloned().or_else(|| self.routing.router.get(account, now))
            else {
                events.in_line = false;
                self.routing.router.want(account);
                return true;
            };
            let may_go = self.may_go(account, &routes);
            if *left == 0 || may_go.is_none() {
                self.routing.waiting.line.push_back(account.clone());
                return worked;
            }
            worked = true;
            let at_once = (*left).min(self.settings.slice);
            let came_to = self.route_next(account, &routes, at_once, may_go.flatten(), now);
            *left = left.saturating_sub(came_to);
        }
    }

    /// Whether the account's first event may go on (`Some`), and why its deliveries are deferred, where
    /// they are.
    fn may_go(&self, account: &AccountId, routes: &Routes) -> Option<Option<DeferReason>> {
        let events = self.routing.waiting.accounts.get(account)?;
        let first = events.events.front()?;
        let To::All(txn) = first.to else { return Some(None) };
        if routes.refused.is_some() {
            return Some(None);
        }
        let limit = self.settings.memory_limit;
        let (used, leaving) = (self.used_bytes(), self.outbox.leaving_bytes());
        // What is on its way to the table makes room only when it is stored.
        let has_room = used < limit || leaving < limit / 8;
        if routes.endpoints.len() <= self.settings.slice {
            return has_room.then_some(None);
        }
        let reason = if events.overdue.is_some_and(|last| txn <= last) {
            Some(DeferReason::Held)
        } else if events.bytes >= limit / 8 && used >= limit / 2 {
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
    fn route_next(
        &mut self,
        account: &AccountId,
        routes: &Routes,
        left: usize,
        reason: Option<DeferReason>,
        now: Tick,
    ) -> usize {
        let events = self.routing.waiting.of(account);
        events.moved = now;
        let Some(first) = events.events.front_mut() else { panic!("nothing waits to be routed") };
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
            self.route(&held, txn, slice, routes.weight, reason, now);
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
                let (event, reason) = (Arc::clone(&held.event), UnroutableReason::Endpoints);
                self.dead_letter_unroutable(Unroutable { event, reason, detail }, txn);
                return came_to;
            }
            To::All(txn) => {
                self.progress.complete(txn);
                self.touch_starts();
            }
            To::One { endpoint, asked } => {
                self.route_one(&held, endpoint, asked, routes.weight, now);
            }
        }
        self.memory.let_go(held);
        self.relieve(now);
        came_to
    }

    /// Queues an event for those of `endpoints` that want it; or defers it for them, where there is a
    /// `reason`.
    fn route(
        &mut self,
        held: &Arc<SharedEvent>,
        txn: TxnSeq,
        endpoints: &[Arc<Endpoint>],
        weight: f64,
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
            let queue = self.queue(&event.account, &endpoint.id, weight);
            self.begin_subscription(queue, event.position);
            if let Some(reason) = self.why_defer(queue, &keys).or(reason) {
                self.defer_arrival(queue, held, txn, &keys, reason);
            } else {
                self.enqueue(queue, held, Source::Stream(txn), keys, now);
            }
        }
    }

    /// Whether look-ups are not answered.
    fn is_stalled(&self, now: Tick) -> bool {
        self.routing.asked_at.is_some_and(|at| now.since(at) >= STALL)
    }

    /// When look-ups that are not answered by then are not waited for any more.
    pub(super) fn stall_deadline(&self, now: Tick) -> Option<Tick> {
        let short = self.used_bytes() >= self.settings.memory_limit / 4 * 3;
        let at =
            self.routing.asked_at.filter(|_| short && !self.routing.waiting.is_empty())? + STALL;
        (at > now).then_some(at)
    }

    /// The account's shelf is empty.
    pub(super) fn resume_waiting(&mut self, account: &AccountId, now: Tick) {
        if !self.routing.waiting.has(account) {
            return;
        }
        if self.routing.router.get(account, now).is_some() {
            self.routing.waiting.join_line(account);
        } else {
            self.routing.router.want(account);
        }
    }

    /// Makes room while look-ups are not answered: what waits for them becomes rows, of the account that
    /// holds most first.
    pub(super) fn relieve_of_unrouted(&mut self, now: Tick) {
        let is_stalled = self.is_stalled(now);
        if now < self.routing.waiting.look_at {
            return;
        }
        let waits = |(account, events): (&AccountId, &Events)| {
            let long = is_stalled || now.since(events.moved) >= STALL;
            (long && self.waits_for_routes(account)).then(|| (events.bytes, account.clone()))
        };
        let mut accounts: Vec<(usize, AccountId)> =
            self.routing.waiting.accounts.iter().filter_map(waits).collect();
        if accounts.is_empty() {
            // To look again costs a look at all of them.
            self.routing.waiting.look_at = now + LOOK_EVERY;
        }
        accounts.sort_unstable_by(|(a, x), (b, y)| b.cmp(a).then_with(|| x.cmp(y)));
        for (_, account) in accounts {
            if self.memory.is_relieved(self.bytes_to_stay()) {
                return;
            }
            self.shelve_waiting(&account, now);
        }
    }

    /// What has held the frontier back for too long, and cannot be routed, becomes rows.
    pub(super) fn shelve_overdue(&mut self, now: Tick) {
        let is_overdue = |(account, events): (&AccountId, &Events)| {
            let first = events.events.iter().find_map(|parked| match parked.to {
                To::All(txn) => Some(txn),
                To::One { .. } => None,
            })?;
            let overdue = events.overdue.is_some_and(|last| first <= last);
            (overdue && self.waits_for_routes(account)).then(|| account.clone())
        };
        let mut accounts: Vec<AccountId> =
            self.routing.waiting.accounts.iter().filter_map(is_overdue).collect();
        accounts.sort_unstable();
        for account in accounts {
            self.shelve_waiting(&account, now);
        }
    }

    fn waits_for_routes(&self, account: &AccountId) -> bool {
        self.routing.shelves.has(account) || !self.routing.router.holds(account)
    }

    /// All that waits of an account's becomes rows. An event that has come to some of its endpoints goes on
    /// by the routes that were known last, as deferred deliveries.
    fn shelve_waiting(&mut self, account: &AccountId, now: Tick) {
        while let Some(events) = self.routing.waiting.accounts.get(account)
            && let Some(first) = events.events.front()
            && first.after.is_some()
        {
            let Some(routes) = self.routing.router.last(account) else { return };
            let leaving = self.outbox.leaving_bytes();
            let left = (2 * ROWS_BYTES).saturating_sub(leaving) / DELIVERY_BYTES;
            if left == 0 {
                return;
            }
            self.route_next(account, &routes, left, Some(DeferReason::Held), now);
        }
        // Making room for what was routed just now may have made rows of the others.
        let Some(events) = self.routing.waiting.accounts.get_mut(account) else { return };
        let mut shelved = Vec::new();
        for parked in std::mem::take(&mut events.events) {
            if let To::All(txn) = parked.to {
                events.bytes = events.bytes.saturating_sub(parked.held.event.size_bytes());
                shelved.push((parked.held, txn));
            } else {
                events.events.push_back(parked);
            }
        }
        (events.moved, events.overdue) = (now, None);
        if events.events.is_empty() && !events.in_line {
            self.routing.waiting.accounts.remove(account);
        }
        for (held, txn) in shelved {
            self.shelve(held, txn);
        }
        self.unpin_if_idle(account);
    }

    fn route_one(
        &mut self,
        held: &Arc<SharedEvent>,
        endpoint: EndpointId,
        asked: Asked,
        weight: f64,
        now: Tick,
    ) {
        let queue = match asked {
            Asked::Retry { dead_letter, job } if self.endpoints.is_paused(&endpoint) => {
                self.refuse_paused(&held.event, endpoint, dead_letter, job);
                return;
            }
            Asked::Retry { .. } => self.queue(&held.event.account, &endpoint, weight),
            Asked::Replay(replay) => {
                let queue = self.queues.intern(&held.event.account, &endpoint);
                if let Some(reason) = self.why_defer_replayed(queue, now) {
                    self.replays.leave_memory();
                    self.defer_replayed(queue, Arc::clone(held), replay, reason);
                    return;
                }
                self.give_lane(queue, weight);
                queue
            }
        };
        let source = match asked {
            Asked::Retry { dead_letter, job } => Source::Retry { dead_letter, job },
            Asked::Replay(replay) => Source::Replay(replay),
        };
        let id = self.enqueue(queue, Arc::clone(held), source, RowKeys::new(), now);
        if let Asked::Replay(_) = asked {
            self.replays.queued(queue, id, now);
        }
    }
}

#[cfg(test)]
mod tests;
