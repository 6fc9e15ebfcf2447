//! What is sent next, and what an outcome means for it.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use super::super::attempt::{Attempt, DeliveryId, FailureKind, Outcome};
use super::super::endpoint::Endpoint;
use super::super::event::{EndpointId, Event};
use super::super::lane::{DEFAULT_MAX_IN_FLIGHT, Origin, Queue};
use super::super::persist::{DeadReason, DisableEndpoint};
use super::super::schedule::{Charge, LaneId, Pool};
use super::super::settle::{Settlement, settle};
use super::super::tick::Tick;
use super::durable::End;
use super::{Dispatcher, Timer};

/// A request older than this leaves the fast pool for the slow one.
pub(super) const FAST_HOLD: Duration = Duration::from_secs(1);

/// A request under way.
#[derive(Debug)]
pub(super) struct InFlight {
    lane: LaneId,
    endpoint: EndpointId,
    charge: Charge,
    started: Tick,
}

/// A request to send now.
#[derive(Debug)]
pub struct Dispatch {
    /// What to send where.
    pub attempt: Attempt,
    /// How long it waited since it was queued, or became due again.
    pub waited: Duration,
}

/// What an outcome came to, for metrics and logs.
#[derive(Debug)]
pub struct Settled {
    /// The event.
    pub event: Arc<Event>,
    /// Whether the endpoint took it.
    pub delivered: bool,
    /// Set when walhook switched the endpoint off because of this: the reason.
    pub disabled: Option<DisableEndpoint>,
}

impl Dispatcher {
    /// The next request to send, where one may be sent; answered by [`Dispatcher::handle_outcome`].
    pub fn poll_attempt(&mut self, now: Tick) -> Option<Dispatch> {
        self.handle_due_timers(now);
        self.move_old_requests(now);
        if self.stopping || self.durable.is_behind(now) {
            return None;
        }
        [Pool::Fast, Pool::Slow].into_iter().find_map(|pool| self.poll_pool(pool, now))
    }

    fn poll_pool(&mut self, pool: Pool, now: Tick) -> Option<Dispatch> {
        while let Some(lane) = self.scheduler.peek(pool) {
            if let Some(dispatch) = self.poll_lane(lane, pool, now) {
                return Some(dispatch);
            }
            // Whatever kept the lane from sending has taken it out of its turn: this ends.
        }
        None
    }

    /// Sends from the lane, or leaves it with fewer turns than before.
    fn poll_lane(&mut self, id: LaneId, pool: Pool, now: Tick) -> Option<Dispatch> {
        let Some(lane) = self.lanes.get_mut(&id) else {
            debug_assert!(false, "the scheduler knows a lane that is gone");
            self.scheduler.remove_lane(id);
            return None;
        };
        let Some(routes) = self.router.get(&lane.account, now) else {
            lane.unrouted = true;
            self.router.want(&lane.account);
            self.sync(id);
            return None;
        };
        let Some(endpoint_id) = lane.take_turn(pool, now) else {
            self.sync(id);
            return None;
        };
        let endpoint = match routes.endpoint(&endpoint_id) {
            None => return self.give_up(id, &endpoint_id, None),
            Some(endpoint) => match self.why_unusable(endpoint) {
                Some(why) => return self.give_up(id, &endpoint_id, Some(why)),
                None => Arc::clone(endpoint),
            },
        };
        let dispatch = self.start(id, &endpoint, pool, now);
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.refresh(&endpoint_id, now);
            if let Some(due) = lane.queue(&endpoint_id).and_then(|q| q.rate_limited_until(now)) {
                let timer = Timer { due, lane: id, endpoint: endpoint_id, delivery: None };
                self.timers.push(Reverse(timer));
            }
        }
        self.sync(id);
        dispatch
    }

    /// Starts the endpoint's oldest ready delivery.
    fn start(
        &mut self,
        id: LaneId,
        endpoint: &Arc<Endpoint>,
        pool: Pool,
        now: Tick,
    ) -> Option<Dispatch> {
        let queue = self.lanes.get_mut(&id)?.queue_mut(&endpoint.id)?;
        queue.limit.set_upper(endpoint.max_in_flight.unwrap_or(DEFAULT_MAX_IN_FLIGHT));
        if !queue.is_sendable(now) {
            return None;
        }
        let pending = queue.first_ready()?;
        let delivery = pending.id;
        let dispatch = Dispatch {
            waited: now.since(pending.queued_at),
            attempt: Attempt {
                delivery,
                endpoint: Arc::clone(endpoint),
                event: Arc::clone(&pending.held.event),
                number: pending.attempts + 1,
                replay: matches!(pending.origin, Origin::Retry { .. }),
            },
        };
        queue.start(delivery, now, endpoint.rate_per_second);
        let charge = self.scheduler.start(id, pool, queue.hold.expected(now));
        queue.hold.started(now);
        let endpoint = endpoint.id.clone();
        self.in_flight.insert(delivery, InFlight { lane: id, endpoint, charge, started: now });
        if pool == Pool::Fast {
            self.aging.push_back((now, delivery));
        }
        Some(dispatch)
    }

    /// Why nothing can be sent to an endpoint that the account has.
    fn why_unusable(&self, endpoint: &Endpoint) -> Option<End> {
        let end = |reason, detail| End { reason, detail, last_status: None };
        if let Some(reason) = self.disabled.get(&endpoint.id) {
            return Some(end(DeadReason::EndpointDisabled, reason.clone()));
        }
        if !endpoint.enabled {
            let why = "the endpoint's row is not enabled".to_owned();
            return Some(end(DeadReason::EndpointDisabled, why));
        }
        let why = endpoint.invalid.clone()?;
        Some(end(DeadReason::EndpointInvalid, why))
    }

    /// Ends what is pending for an endpoint that is gone (`None`: dropped) or cannot be used.
    ///
    /// Requests in flight end by themselves.
    fn give_up<T>(&mut self, id: LaneId, endpoint: &EndpointId, why: Option<End>) -> Option<T> {
        let idle = self.lanes.get(&id).and_then(|lane| lane.queue(endpoint)).map(Queue::idle);
        for delivery in idle.unwrap_or_default() {
            let queue = self.lanes.get(&id).and_then(|lane| lane.queue(endpoint));
            let origin = queue.and_then(|queue| queue.get(delivery)).map(|pending| pending.origin);
            match (&why, origin) {
                (Some(end), Some(_)) => self.die(id, endpoint, delivery, end.clone()),
                (None, Some(Origin::Stream { .. })) => {
                    self.counters.dropped += 1;
                    self.settle(id, endpoint, delivery);
                }
                (None, Some(Origin::Retry { .. })) => {
                    let reason = DeadReason::EndpointDisabled;
                    let detail = "the endpoint was removed".to_owned();
                    self.die(id, endpoint, delivery, End { reason, detail, last_status: None });
                }
                (_, None) => debug_assert!(false, "an idle delivery is pending"),
            }
            self.rest_if_idle(id, delivery);
        }
        self.sync(id);
        None
    }

    /// Takes what came of an attempt.
    ///
    /// Returns `None` for a delivery that is not in flight.
    pub fn handle_outcome(
        &mut self,
        id: DeliveryId,
        outcome: &Outcome,
        now: Tick,
    ) -> Option<Settled> {
        let InFlight { lane: lane_id, endpoint, charge, started } = self.in_flight.remove(&id)?;
        let held_for = now.since(started);
        self.scheduler.finish(charge, held_for);
        self.durable.count_outcome();
        let lane = self.lanes.get_mut(&lane_id)?;
        let queue = lane.queue_mut(&endpoint)?;
        queue.hold.ended(started, held_for);
        match &outcome.result {
            Ok(answer) if outcome.delivered() || answer.status == 410 => {
                queue.limit.succeeded(queue.in_flight());
            }
            Ok(answer) if matches!(answer.status, 429 | 503) => queue.limit.throttled(),
            Err(failure) if failure.kind == FailureKind::Timeout => queue.limit.timed_out(),
            Ok(_) | Err(_) => {}
        }
        let pending = queue.get(id)?;
        let event = Arc::clone(&pending.held.event);
        let last_status = outcome.result.as_ref().ok().map(|answer| answer.status);
        let mut disabled = None;
        match settle(outcome, pending.attempts, &self.settings.settle, &mut self.rng) {
            Settlement::Delivered => {
                self.counters.delivered += 1;
                self.settle(lane_id, &endpoint, id);
            }
            Settlement::Retry { after } => {
                queue.back_off(id);
                let due = now + after;
                let (lane, endpoint) = (lane_id, endpoint.clone());
                self.timers.push(Reverse(Timer { due, lane, endpoint, delivery: Some(id) }));
            }
            Settlement::Dead { reason, detail } => {
                self.die(lane_id, &endpoint, id, End { reason, detail, last_status });
            }
            Settlement::Disable { detail } => {
                let disable = DisableEndpoint { endpoint: endpoint.clone(), reason: detail };
                let (reason, detail) = (DeadReason::EndpointDisabled, disable.reason.clone());
                self.die(lane_id, &endpoint, id, End { reason, detail, last_status });
                self.disabled.insert(disable.endpoint.clone(), disable.reason.clone());
                self.durable.disable(disable.clone());
                disabled = Some(disable);
            }
        }
        if let Some(lane) = self.lanes.get_mut(&lane_id) {
            lane.refresh(&endpoint, now);
        }
        self.sync(lane_id);
        self.rest_if_idle(lane_id, id);
        Some(Settled { event, delivered: outcome.delivered(), disabled })
    }

    /// Deliveries whose backoff is over, and endpoints whose rate limit lets the next request go.
    fn handle_due_timers(&mut self, now: Tick) {
        while self.timers.peek().is_some_and(|Reverse(timer)| timer.due <= now) {
            let Some(Reverse(timer)) = self.timers.pop() else { return };
            // The lane may have gone, and its number may be another's: then nothing is found in it.
            let Some(lane) = self.lanes.get_mut(&timer.lane) else { continue };
            if let (Some(id), Some(queue)) = (timer.delivery, lane.queue_mut(&timer.endpoint)) {
                queue.due(id, now);
            }
            lane.refresh(&timer.endpoint, now);
            self.sync(timer.lane);
        }
    }

    /// Frees the fast slots of requests that have become old, as far as the slow pool has room.
    fn move_old_requests(&mut self, now: Tick) {
        while let Some((started, id)) = self.aging.front().copied() {
            if now.since(started) < FAST_HOLD {
                return;
            }
            if let Some(request) = self.in_flight.get_mut(&id)
                && !self.scheduler.move_to_slow(&mut request.charge)
            {
                // The slow pool is full: it stays, and those behind it.
                return;
            }
            self.aging.pop_front();
        }
    }
}
