//! What is sent next.

use std::sync::Arc;
use std::time::Duration;

use super::super::schedule::{LaneId, Pool};
use super::Dispatcher;
use super::ending::End;
use super::outbox::Behind;
use super::queues::QueueNo;
use super::rooms::{Room, Ticket};
use super::sending::{Sending, Wake};
use walhook_core::attempt::{Attempt, Deliveries, Delivery, DeliveryId};
use walhook_core::endpoint::{Endpoint, Routes};
use walhook_core::event::EndpointId;
use walhook_core::persist::DeadReason;
use walhook_core::tick::Tick;

/// Why nothing is sent to an endpoint that walhook has switched off, before what it answered.
const DISABLED: &str = "the endpoint is switched off; `walhook endpoints resume` switches it on";

/// A request to send now.
#[derive(Debug)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct Dispatch {
    /// What to send where.
    pub attempt: Attempt,
    /// How long it waited since it was queued, or became due again.
    pub waited: Duration,
}

impl Dispatcher {
    /// The next request to send, where one may be sent; answered by [`Dispatcher::handle_outcome`].
    pub(super) fn poll_attempt(&mut self, now: Tick) -> Option<Dispatch> {
        self.sending.look_anew();
        self.handle_due_timers(now);
        self.sending.move_old(now);
        self.note_old(now);
        self.sending.give_up_probes(now);
        self.release_frontier(now);
        self.release_replays(now);
        if self.sending.is_room_waited_for() {
            self.call_for_room(now);
        }
        let behind = self.outbox.behind(now);
        self.queues.set_gate(behind.map(Behind::cause), now);
        if self.door.is_stopping() {
            return None;
        }
        match behind {
            Some(Behind::All(_)) => None,
            Some(Behind::AllButIdle) => self.poll_pools(|of, pool| of.next_idle(pool), now),
            None => {
                let next = self.poll_pools(|of, pool| of.next_lane(pool, now), now);
                if next.is_none() {
                    self.note_turns(now);
                }
                next
            }
        }
    }

    /// The next request to give up; answered by [`Dispatcher::handle_outcome`] like every other one: it may
    /// have ended otherwise at that moment. Poll it after [`Dispatcher::poll_attempt`].
    ///
    /// The endpoint may have received it, and gets it once more: it counts as an attempt. Of the
    /// endpoint's health it says nothing (see [`Meaning::Aborted`]), but that its next requests are
    /// to be expected to take long.
    ///
    /// [`Meaning::Aborted`]: walhook_core::attempt::Meaning::Aborted
    pub(super) fn poll_abort(&mut self) -> Option<DeliveryId> {
        self.sending.take_abort()
    }

    /// There are so many slots from now on.
    pub(super) fn set_slots(&mut self, fast: u32, slow: u32) {
        self.sending.set_slots(fast, slow);
        self.queues.set_slots(fast.saturating_add(slow));
        // An account with many endpoints has enough in memory to fill them.
        let slots = usize::try_from(fast.saturating_add(slow)).unwrap_or(usize::MAX);
        self.settings.lane_max = self.settings.lane_max.max(slots);
    }

    /// Sends from the lane that `next` says, of whichever pool.
    fn poll_pools(
        &mut self,
        next: impl Fn(&mut Sending, Pool) -> Option<LaneId>,
        now: Tick,
    ) -> Option<Dispatch> {
        let quick_alone = self.door.winds_down_since().is_some();
        let pools = Pool::ALL.into_iter().filter(|pool| !quick_alone || *pool == Pool::Fast);
        for pool in pools {
            while let Some(lane) = next(&mut self.sending, pool) {
                if let Some(dispatch) = self.poll_lane(lane, pool, now) {
                    return Some(dispatch);
                }
                // Whatever kept the lane from sending has taken it out of its turn: this ends.
            }
        }
        None
    }

    /// Whoever has waited longest for room for a large event has its turn again, where there is room; and those behind
    /// it as long as they could not take it.
    fn call_for_room(&mut self, now: Tick) {
        for pool in Pool::ALL {
            Room::of_pool(pool).for_each(|room| self.call_for(room, pool, now));
        }
    }

    fn call_for(&mut self, room: Room, pool: Pool, now: Tick) {
        while let Some(lane) = self.sending.call_for_room(room) {
            self.end_wait_for_room(lane, pool, true, now);
            self.sync_lane(lane);
            let is_unrouted = self.queues.lane(lane).1.is_unrouted();
            if !is_unrouted && self.queues.first_in_ring(lane, pool, now).is_some() {
                return;
            }
        }
    }

    /// A lane that waits for room needs other room by now, or none, where the first of its queues does.
    pub(super) fn renew_needs(&mut self, id: LaneId, now: Tick) {
        for pool in Pool::ALL {
            let Some(ticket) = self.queues.lane(id).1.ticket(pool) else { continue };
            let first = self.queues.first_in_ring(id, pool, now);
            let need = first.and_then(|(room, bytes)| self.sending.need(room, bytes));
            if self.sending.renew_need(ticket, need) {
                self.end_wait_for_room(id, pool, false, now);
            }
        }
    }

    fn end_wait_for_room(&mut self, id: LaneId, pool: Pool, called: bool, now: Tick) {
        let account = self.queues.end_wait(id, pool, called, now);
        self.deferral.line.go_on(account, pool);
    }

    /// Nothing more is sent at this moment: whoever is the next of a pool waits for a slot, and all others for their
    /// turn.
    fn note_turns(&mut self, now: Tick) {
        for pool in Pool::ALL {
            self.queues.set_head(pool, self.sending.first_in_line(pool), now);
        }
    }

    /// Sends from the lane, or leaves it with fewer turns than before.
    fn poll_lane(&mut self, id: LaneId, pool: Pool, now: Tick) -> Option<Dispatch> {
        let (account, lane) = self.queues.lane(id);
        let Some(routes) = self.routing.router.get_pinned(lane.routes(), now) else {
            self.routing.router.want(account);
            self.queues.set_unrouted(id, true, now);
            self.sync_lane(id);
            return None;
        };
        let called = lane.called(pool);
        if called.is_some() {
            self.queues.end_call(id, pool);
        }
        let Some(queue) = self.queues.take_turn(id, pool, now) else {
            self.sync_lane(id);
            return None;
        };
        let endpoint = match self.usable(&routes, &self.queues.id(queue).endpoint) {
            Ok(endpoint) => endpoint,
            Err(why) => {
                if why.is_none() {
                    self.forget_failing(queue, now);
                }
                self.forget_breaker(queue, now);
                self.clear(queue, now);
                return None;
            }
        };
        let dispatch = self.start((id, called), queue, endpoint, pool, now);
        self.queues.refresh(queue, now);
        // Whatever comes meanwhile waits for this one timer.
        if let Some(due) = self.queues.in_use(queue).resting_until(now) {
            self.sending.wake_at(due, Wake::RateLimit(queue));
        }
        self.sync_lane(id);
        dispatch
    }

    /// Starts the queue's oldest ready delivery. `called`: where its lane stood in line for room.
    fn start(
        &mut self,
        (lane, called): (LaneId, Option<Ticket>),
        queue: QueueNo,
        endpoint: &Arc<Endpoint>,
        pool: Pool,
        now: Tick,
    ) -> Option<Dispatch> {
        let at = self.queues.moment(queue, now);
        let in_memory = self.queues.in_use(queue);
        in_memory.health_mut().set_upper_limit(endpoint.max_in_flight);
        if !in_memory.is_sendable(now) {
            return None;
        }
        let host = match pool {
            Pool::Fast => self.sending.hosts().find(&endpoint.url, now),
            Pool::Slow | Pool::Probe => None,
        };
        if let Some(host) = host
            && self.sending.hosts().is_full(host, self.sending.slots(pool), now)
        {
            self.wait_for_host(queue, host);
            return None;
        }
        let pending = in_memory.first_ready()?;
        let (delivery, bytes) = (pending.id, pending.held.event.size_bytes());
        let dispatch = Dispatch {
            waited: now.since(pending.waits_since()),
            attempt: Attempt {
                endpoint: Arc::clone(endpoint),
                deliveries: Deliveries::from(Delivery {
                    id: delivery,
                    event: Arc::clone(&pending.held.event),
                    number: pending.attempts + 1,
                    asked: pending.origin.asked().map(Box::new),
                }),
            },
        };
        let room = Room::of(pool, in_memory.health().has_answered());
        let need = self.sending.need(room, bytes);
        if let Some(need) = need
            && let Err(ticket) = self.sending.find_room(lane, need, called)
        {
            self.queues.wait_for_room((lane, queue), (pool, ticket), now);
            return None;
        }
        let in_memory = self.queues.in_use(queue);
        in_memory.start(delivery, &at, endpoint.rate_per_second);
        self.sending.start(
            (lane, pool),
            queue,
            (delivery, need),
            (in_memory.health().expected_hold(now), in_memory.health().known_hold()),
            now,
        );
        in_memory.health_mut().request_started(now);
        if let Some(host) = host {
            self.sending.count_for(delivery, host);
        }
        self.queues.count_in_flight(queue, 1, now);
        if pool == Pool::Probe {
            self.begin_probe(queue, delivery, endpoint, now);
        }
        Some(dispatch)
    }

    /// The account's endpoint, or why nothing can be sent to it; `None`: it is gone.
    pub(super) fn usable<'a>(
        &self,
        routes: &'a Routes,
        id: &EndpointId,
    ) -> Result<&'a Arc<Endpoint>, Option<End>> {
        let refused = |why: &String| End {
            reason: DeadReason::EndpointInvalid,
            detail: why.clone(),
            last_status: None,
        };
        let endpoint = routes.endpoint(id).ok_or_else(|| routes.refused.as_ref().map(refused))?;
        match self.why_unusable(endpoint) {
            Some(why) => Err(Some(why)),
            None => Ok(endpoint),
        }
    }

    /// Why nothing can be sent to an endpoint that the account has.
    fn why_unusable(&self, endpoint: &Endpoint) -> Option<End> {
        let end = |reason, detail| End { reason, detail, last_status: None };
        if let Some(reason) = self.endpoints.why_disabled(&endpoint.id) {
            let why = format!("{DISABLED} ({reason})");
            return Some(end(DeadReason::EndpointDisabled, why));
        }
        if !endpoint.enabled {
            let why = "the endpoint's row is not enabled".to_owned();
            return Some(end(DeadReason::EndpointDisabled, why));
        }
        let why = endpoint.invalid.clone()?;
        Some(end(DeadReason::EndpointInvalid, why))
    }

    /// Deliveries whose backoff is over, and endpoints whose rate limit lets the next request go.
    fn handle_due_timers(&mut self, now: Tick) {
        while let Some(wake) = self.sending.take_due(now) {
            match wake {
                Wake::Delivery(queue, id) => self.wake(queue, Some(id), now),
                Wake::RateLimit(queue) => self.wake(queue, None, now),
                Wake::Deferred(queue) => self.wake_deferred(queue, now),
            }
        }
    }

    fn wake(&mut self, queue: QueueNo, due: Option<DeliveryId>, now: Tick) {
        // It may have been forgotten since.
        if self.queues.pending(queue).is_none() {
            return;
        }
        if let Some(due) = due {
            let at = self.queues.moment(queue, now);
            self.queues.in_use(queue).due(due, &at);
        }
        self.queues.refresh(queue, now);
        self.sync(queue);
    }
}
