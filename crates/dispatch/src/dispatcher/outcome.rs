//! What an outcome means for its delivery, and for what stands behind it.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use super::super::lane::{DELIVERY_BYTES, Origin, Queue};
use super::super::schedule::LaneId;
use super::super::settle::{Place, Progress, Settlement, failure_text, settle};
use super::defer::Exit;
use super::ending::{End, Ended};
use super::operator::while_paused;
use super::send::InFlight;
use super::{Dispatcher, Timer, Wake};
use walhook_core::attempt::{DeliveryId, FailureKind, Outcome};
use walhook_core::event::{EndpointId, Event};
use walhook_core::persist::{AttemptRecord, DeadReason, DisableEndpoint};
use walhook_core::tick::{Tick, micros};

/// Attempts that a delivery's history tells of: the last ones.
const HISTORY_MAX: usize = 10;

/// What an outcome came to, for metrics and logs.
#[derive(Debug)]
pub struct Settled {
    /// The event.
    pub event: Arc<Event>,
    /// Whether the endpoint took it.
    pub delivered: bool,
}

impl Dispatcher {
    /// Takes what came of an attempt.
    ///
    /// Returns `None` for a delivery that is not in flight, or was not sent for want of something of ours.
    pub(super) fn handle_outcome(
        &mut self,
        id: DeliveryId,
        outcome: &Outcome,
        now: Tick,
    ) -> Option<Settled> {
        let request = self.in_flight.remove(&id)?;
        let InFlight { lane: lane_id, endpoint, charge, started, outdated } = request;
        let held_for = now.since(started);
        self.scheduler.finish(charge, held_for);
        self.durable.count_outcome();
        if outcome.is_local() {
            self.put_off(lane_id, &endpoint, id, started, now);
            return None;
        }
        let queue = self.lanes.get_mut(&lane_id)?.queue_mut(&endpoint)?;
        queue.hold.ended(started, held_for);
        queue.was_sent();
        adapt(queue, outcome);
        let pending = queue.get(id)?;
        let (event, origin) = (Arc::clone(&pending.held.event), pending.origin);
        if !outcome.delivered() {
            self.note_failure(lane_id, &endpoint, id, outcome, now);
        }
        let queue = self.queue_id(lane_id, &endpoint)?;
        if outcome.delivered() {
            self.end_failing(&queue, now);
        } else if !outcome.aborted() {
            // Of one that wants no more the log is told that it is switched off.
            let is_told = outcome.result.as_ref().is_ok_and(|answer| answer.status == 410);
            self.begin_failing(&queue, event.id, &failure_text(outcome), is_told, now);
        }
        let is_test = self.is_test(&queue, id, origin);
        self.apply(lane_id, &endpoint, id, (outcome, outdated), now)?;
        self.note_health(lane_id, &queue, is_test, outcome, now);
        self.give_up_failing(&queue, outcome, now);
        if let Some(lane) = self.lanes.get_mut(&lane_id) {
            lane.refresh(&endpoint, now);
        }
        self.sync(lane_id);
        self.look_after(&queue, now);
        self.rest_if_idle(lane_id, &endpoint, id);
        Some(Settled { event, delivered: outcome.delivered() })
    }

    /// Tries a delivery again that was not sent, for want of something of our own: see
    /// [`FailureKind::Local`].
    fn put_off(
        &mut self,
        lane_id: LaneId,
        endpoint: &EndpointId,
        id: DeliveryId,
        started: Tick,
        now: Tick,
    ) -> Option<()> {
        let queue = self.queue_id(lane_id, endpoint)?;
        let is_stopped = self.is_stopped(&queue);
        let in_memory = self.lanes.get_mut(&lane_id)?.queue_mut(endpoint)?;
        in_memory.hold.withdrawn(started);
        let origin = in_memory.get(id)?.origin;
        let is_retry = matches!(origin, Origin::Retry { dead_letter: Some(_), .. });
        let due = in_memory.put_off(id, now, &mut self.rng);
        let wake = Wake::Delivery(lane_id, endpoint.clone(), id);
        self.timers.push(Reverse(Timer { due, wake }));
        if is_stopped && !is_retry {
            // It does not wait in memory, nor do those behind it.
            let ids = self.lanes.get(&lane_id)?.queue(endpoint)?.with_those_behind(&[id]);
            self.leave(lane_id, endpoint, &ids, Exit::Failed(id, due), now);
        }
        if let Some(lane) = self.lanes.get_mut(&lane_id) {
            lane.refresh(endpoint, now);
        }
        self.sync(lane_id);
        self.look_after(&queue, now);
        Some(())
    }

    fn apply(
        &mut self,
        lane_id: LaneId,
        endpoint: &EndpointId,
        id: DeliveryId,
        (outcome, outdated): (&Outcome, bool),
        now: Tick,
    ) -> Option<()> {
        let queue = self.queue_id(lane_id, endpoint)?;
        let progress = self.progress(lane_id, endpoint, id, now)?;
        let may_wait = match progress.place {
            Place::Memory => !self.is_stopped(&queue),
            Place::Table => !self.is_suspended(&queue),
            Place::DeadLetters => true,
        };
        let last_status = outcome.result.as_ref().ok().map(|answer| answer.status);
        let mut settlement = settle(outcome, progress, &self.settings.settle, &mut self.rng);
        let wants_no_more = matches!(settlement, Settlement::Disable { .. });
        if self.is_paused(endpoint) || (outdated && wants_no_more) {
            settlement = while_paused(settlement, progress.place, outcome);
        }
        match settlement {
            Settlement::Delivered => {
                self.counters.delivered += 1;
                self.settle(lane_id, endpoint, id, Ended::Delivered);
            }
            Settlement::Retry { after } if may_wait => {
                let due = now + after;
                let in_memory = self.lanes.get_mut(&lane_id)?.queue_mut(endpoint)?;
                in_memory.back_off(id, due);
                let wake = Wake::Delivery(lane_id, endpoint.clone(), id);
                self.timers.push(Reverse(Timer { due, wake }));
            }
            Settlement::Retry { after } | Settlement::Defer { after } => {
                let in_memory = self.lanes.get(&lane_id)?.queue(endpoint)?;
                let ids = in_memory.with_those_behind(&[id]);
                self.leave(lane_id, endpoint, &ids, Exit::Failed(id, now + after), now);
            }
            Settlement::Dead { reason, detail } => {
                self.die(lane_id, endpoint, id, End { reason, detail, last_status });
            }
            Settlement::Disable { detail } => {
                let disable = DisableEndpoint { endpoint: endpoint.clone(), reason: detail };
                let (reason, detail) = (DeadReason::EndpointDisabled, disable.reason.clone());
                self.die(lane_id, endpoint, id, End { reason, detail, last_status });
                self.switch_off(&queue, disable, now);
            }
        }
        Some(())
    }

    /// What was tried of a delivery whose attempt has just ended.
    fn progress(
        &self,
        lane_id: LaneId,
        endpoint: &EndpointId,
        id: DeliveryId,
        now: Tick,
    ) -> Option<Progress> {
        let queue = self.queue_id(lane_id, endpoint)?;
        let pending = self.lanes.get(&lane_id)?.queue(endpoint)?.get(id)?;
        let place = match pending.origin {
            Origin::Stream { .. } => Place::Memory,
            // A replay's is not tried twice in a row: whoever fails must not hold the replay up.
            Origin::Deferred { .. } | Origin::Retry { dead_letter: None, .. } => Place::Table,
            Origin::Retry { dead_letter: Some(_), .. } => Place::DeadLetters,
        };
        let active_us = self.active_us(&queue, now);
        let first_us = pending.tried.as_ref().and_then(|tried| tried.first_attempt_us);
        let tried_us = active_us.saturating_sub(first_us.unwrap_or(active_us));
        let tried_for = Duration::from_micros(u64::try_from(tried_us).unwrap_or(0));
        Some(Progress { place, attempts: pending.attempts, tried_for })
    }

    /// Adds a failed attempt to what is known of the delivery.
    fn note_failure(
        &mut self,
        lane_id: LaneId,
        endpoint: &EndpointId,
        id: DeliveryId,
        outcome: &Outcome,
        now: Tick,
    ) {
        let Some(queue) = self.queue_id(lane_id, endpoint) else { return };
        let (at_us, active_us) = (self.unix_us(now), self.active_us(&queue, now));
        let in_memory = self.lanes.get_mut(&lane_id).and_then(|lane| lane.queue_mut(endpoint));
        let Some(pending) = in_memory.and_then(|queue| queue.get_mut(id)) else { return };
        let status = outcome.result.as_ref().ok().map(|answer| answer.status);
        let error = failure_text(outcome);
        let tried = pending.tried.get_or_insert_default();
        tried.attempts = pending.attempts;
        // It began earlier than it ended.
        let took_us = i64::try_from(micros(outcome.elapsed)).unwrap_or(i64::MAX);
        tried.first_attempt_us.get_or_insert(active_us.saturating_sub(took_us));
        (tried.last_status, tried.detail) = (status, error.clone());
        if tried.history.len() >= HISTORY_MAX {
            tried.history.remove(0);
        }
        tried.history.push(AttemptRecord { at_us, status, latency: outcome.elapsed, error });
        let before = std::mem::replace(&mut pending.counted, DELIVERY_BYTES + tried.size_bytes());
        self.bytes = (self.bytes + pending.counted).saturating_sub(before);
    }
}

/// How many requests the endpoint takes at once follows from how it answers.
fn adapt(queue: &mut Queue, outcome: &Outcome) {
    match &outcome.result {
        Ok(answer) if outcome.delivered() || answer.status == 410 => {
            queue.limit.succeeded(queue.in_flight());
        }
        Ok(answer) if matches!(answer.status, 429 | 503) => queue.limit.throttled(),
        Err(failure) if failure.kind == FailureKind::Timeout => queue.limit.timed_out(),
        Ok(_) | Err(_) => {}
    }
}
