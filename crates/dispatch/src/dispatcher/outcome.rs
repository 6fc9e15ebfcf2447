//! What an outcome means for its delivery, and for what stands behind it.

use std::sync::Arc;
use std::time::Duration;

use super::super::lane::{DELIVERY_BYTES, Lacking, Origin};
use super::super::settle::{Place, Progress, Settlement, settle};
use super::defer::Exit;
use super::ending::{End, Ended};
use super::operator::while_paused;
use super::queues::QueueNo;
use super::sending::{Ended as Request, Wake};
use super::{Class, Dispatcher};
use walhook_core::attempt::{DeliveryId, Meaning, Outcome};
use walhook_core::event::Event;
use walhook_core::persist::{AttemptRecord, DeadReason, DisableEndpoint};
use walhook_core::tick::{Tick, micros};
use walhook_core::waits::Waits;

/// Attempts that a delivery's history tells of: the last ones.
const HISTORY_MAX: usize = 10;

/// What an outcome came to, for metrics and logs.
#[derive(Debug)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct Settled {
    /// The event.
    pub event: Arc<Event>,
    /// Whether the endpoint took it.
    pub delivered: bool,
    /// How long it took, where it was delivered and nobody had asked for that.
    pub measured: Option<Box<Measured>>,
}

/// How long a delivery took from its commit to the 2xx.
#[derive(Debug)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct Measured {
    /// What it waited for.
    pub waits: Waits,
    /// Whether its account was noisy meanwhile.
    pub class: Class,
    /// Its first attempt was taken, and it never left memory.
    pub first_try: bool,
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
        let Request { queue, started, held_for, outdated, doubtful, was_large } =
            self.sending.end(id, now)?;
        self.outbox.count_outcome();
        self.queues.count_in_flight(queue, -1, now);
        if doubtful {
            self.queues.in_use(queue).doubt(false);
        }
        if outcome.is_local() {
            self.put_off(queue, id, (outcome, started), now);
            return None;
        }
        let in_memory = self.queues.in_use(queue);
        if outcome.meaning == Meaning::Lost {
            in_memory.health_mut().request_withdrawn(started);
        } else {
            in_memory.health_mut().request_ended(started, held_for);
        }
        if was_large {
            in_memory.health_mut().large_ended(outcome.meaning);
        }
        if outcome.meaning == Meaning::Aborted {
            in_memory.health_mut().request_given_up();
        }
        let lacked = in_memory.was_sent(started);
        let in_flight = in_memory.in_flight();
        in_memory.health_mut().adapt(outcome.meaning, in_flight);
        if outcome.delivered() {
            in_memory.speed_up();
        } else if outcome.is_too_much()
            && let Some(until) = in_memory.slow_down(started, now)
        {
            self.sending.wake_at(until, Wake::RateLimit(queue));
        }
        let in_memory = self.queues.in_use(queue);
        let pending = in_memory.held_mut(id);
        let (event, origin) = (Arc::clone(&pending.held.event), pending.origin);
        let is_first_try = pending.attempts == 1 && !pending.was_read_back();
        if let Some(lacked) = lacked {
            self.end_lack(queue, lacked, started);
        }
        let waits = self.waits_sent(queue, id, (started, outcome.elapsed), now);
        if outcome.delivered() {
            self.queues.in_use(queue).health_mut().answered(outcome.elapsed);
            self.end_failing(queue, now);
        } else {
            self.keep_waits(queue, id, waits, now);
            self.note_failure(queue, id, outcome, now);
            if !outcome.says_nothing_of_the_endpoint() {
                // Of one that wants no more the log is told that it is switched off.
                let is_told = outcome.meaning == Meaning::Gone;
                self.begin_failing(queue, event.id, &outcome.record.text, is_told, now);
            }
        }
        self.log_attempt(queue, id, (outcome, waits), now);
        let is_of_stream = outcome.delivered() && origin.asked().is_none();
        let measured = is_of_stream.then(|| {
            let class = self.queues.class_of(queue, id);
            Box::new(Measured { waits, class, first_try: is_first_try })
        });
        let is_test = self.is_test(queue, id, origin);
        self.apply(queue, id, (outcome, outdated), now);
        self.note_health(queue, is_test, outcome, now);
        self.give_up_failing(queue, outcome, now);
        self.queues.refresh(queue, now);
        self.sync(queue);
        self.look_after(queue, now);
        self.queues.rest_if_idle(queue);
        Some(Settled { event, delivered: outcome.delivered(), measured })
    }

    /// Tries a delivery again that was not sent, for want of something of our own: see
    /// [`Meaning::Local`].
    fn put_off(
        &mut self,
        queue: QueueNo,
        id: DeliveryId,
        (outcome, started): (&Outcome, Tick),
        now: Tick,
    ) {
        let is_stopped = self.is_stopped(queue);
        let active_us = self.active_us(queue, now);
        let waits = self.waits_sent(queue, id, (started, outcome.elapsed), now);
        self.keep_waits(queue, id, waits, now);
        self.log_not_sent(queue, id, (outcome, waits), now);
        let in_memory = self.queues.in_use(queue);
        in_memory.health_mut().request_withdrawn(started);
        let origin = in_memory.held_mut(id).origin;
        let is_retry = matches!(origin, Origin::Retry { .. });
        let due = in_memory.put_off(id, now, active_us, self.door.rng());
        self.sending.wake_at(due, Wake::Delivery(queue, id));
        if is_stopped && !is_retry {
            // It does not wait in memory, nor do those behind it.
            let ids = in_memory.with_those_behind(&[id]);
            self.leave_together(queue, ids, Exit::Failed(id, due), now);
        }
        self.queues.refresh(queue, now);
        self.sync(queue);
        self.look_after(queue, now);
    }

    /// We had nothing to send requests of the queue with, until one that began then: its clock stood still meanwhile.
    fn end_lack(&mut self, queue: QueueNo, Lacking { since, active_us }: Lacking, started: Tick) {
        let passed_us = self.active_us(queue, started).saturating_sub(active_us).max(0);
        let (since_us, started_us) = (self.unix_us(since), self.unix_us(started));
        if let Some(deferred) = self.queues.deferred_mut(queue) {
            deferred.stand_still(passed_us, started_us.saturating_sub(since_us), started_us);
            self.outdate(queue);
        }
    }

    /// Takes a delivery back that was surely not sent: its worker never began it. That was no attempt, it says
    /// nothing of the endpoint, and the delivery may be sent again at once.
    ///
    /// One that is not in flight changes nothing.
    pub(super) fn handle_unsent(&mut self, id: DeliveryId, now: Tick) {
        let Some(request) = self.sending.withdraw(id) else { return };
        let Request { queue, started, doubtful, .. } = request;
        self.queues.count_in_flight(queue, -1, now);
        let stopped = self.why_stopped(queue);
        let waits = self.waits_sent(queue, id, (started, Duration::ZERO), now);
        self.keep_waits(queue, id, waits, now);
        let at = self.queues.moment(queue, now);
        let in_memory = self.queues.in_use(queue);
        if doubtful {
            in_memory.doubt(false);
        }
        in_memory.health_mut().request_withdrawn(started);
        let is_retry = matches!(in_memory.held_mut(id).origin, Origin::Retry { .. });
        in_memory.take_back(id, &at);
        if let Some(reason) = stopped
            && !is_retry
        {
            // It does not wait in memory, nor do those behind it.
            let ids = in_memory.with_those_behind(&[id]);
            self.leave_together(queue, ids, Exit::Other(reason), now);
        }
        self.queues.refresh(queue, now);
        self.sync(queue);
        self.look_after(queue, now);
    }

    /// Takes that nothing is heard of those who carry these, or something again.
    ///
    /// They may be gone, and until that is sure their endpoints would get nothing more: what is doubtful counts for
    /// no limit that was learned from an endpoint's answers, and for its upper bound as before.
    pub(super) fn handle_doubt(&mut self, deliveries: &[DeliveryId], doubtful: bool, now: Tick) {
        for id in deliveries {
            let Some(queue) = self.sending.doubt(*id, doubtful) else { continue };
            self.queues.in_use(queue).doubt(doubtful);
            self.queues.refresh(queue, now);
            self.sync(queue);
        }
    }

    fn apply(
        &mut self,
        queue: QueueNo,
        id: DeliveryId,
        (outcome, outdated): (&Outcome, bool),
        now: Tick,
    ) {
        let ends = matches!(outcome.meaning, Meaning::Delivered | Meaning::Gone);
        if !ends && self.is_probe(queue, id) {
            self.fail_probe(queue, id, outcome, now);
            return;
        }
        let progress = self.progress(queue, id, now);
        let may_wait = match progress.place {
            Place::Memory => !self.is_stopped(queue),
            Place::Table => !self.is_suspended(queue),
            Place::DeadLetters => true,
        };
        let last_status = outcome.record.status;
        let mut settlement = settle(outcome, progress, &self.settings.settle, self.door.rng());
        let wants_no_more = matches!(settlement, Settlement::Disable { .. });
        if self.endpoints.is_paused(&self.queues.id(queue).endpoint) || (outdated && wants_no_more)
        {
            settlement = while_paused(settlement, progress.place, outcome);
        }
        match settlement {
            Settlement::Delivered => {
                self.door.reports.delivered();
                self.settle(queue, id, Ended::Delivered, now);
            }
            Settlement::Retry { after } if may_wait => {
                let due = now + after;
                self.queues.in_use(queue).back_off(id, due);
                self.sending.wake_at(due, Wake::Delivery(queue, id));
            }
            Settlement::Retry { after } | Settlement::Defer { after } => {
                let ids = self.queues.in_use(queue).with_those_behind(&[id]);
                self.leave_together(queue, ids, Exit::Failed(id, now + after), now);
            }
            Settlement::Dead { reason, detail } => {
                self.die(queue, id, End { reason, detail, last_status }, now);
            }
            Settlement::Disable { detail } => {
                let endpoint = self.queues.id(queue).endpoint.clone();
                let disable = DisableEndpoint { endpoint, reason: detail };
                let (reason, detail) = (DeadReason::EndpointDisabled, disable.reason.clone());
                self.die(queue, id, End { reason, detail, last_status }, now);
                self.switch_off(queue, disable, now);
            }
        }
    }

    /// What was tried of a delivery whose attempt has just ended.
    fn progress(&mut self, queue: QueueNo, id: DeliveryId, now: Tick) -> Progress {
        let active_us = self.active_us(queue, now);
        let pending = self.queues.in_use(queue).held_mut(id);
        let place = match pending.origin {
            Origin::Stream { .. } => Place::Memory,
            // A replay's is not tried twice in a row: whoever fails must not hold the replay up.
            Origin::Deferred { .. } | Origin::Replay(_) => Place::Table,
            Origin::Retry { .. } => Place::DeadLetters,
        };
        let first_us = pending.tried.as_ref().and_then(|tried| tried.first_attempt_us);
        let tried_us = active_us.saturating_sub(first_us.unwrap_or(active_us));
        let tried_for = Duration::from_micros(u64::try_from(tried_us).unwrap_or(0));
        Progress { place, attempts: pending.attempts, tried_for }
    }

    /// Adds a failed attempt to what is known of the delivery.
    fn note_failure(&mut self, queue: QueueNo, id: DeliveryId, outcome: &Outcome, now: Tick) {
        let (at_us, active_us) = (self.unix_us(now), self.active_us(queue, now));
        let pending = self.queues.in_use(queue).held_mut(id);
        let (status, error) = (outcome.record.status, outcome.record.text.clone());
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
        let counted = DELIVERY_BYTES + tried.size_bytes() + pending.waits_bytes();
        let before = self.queues.recount(queue, id, counted);
        self.memory.take(counted);
        self.memory.give_back(before);
    }
}

#[cfg(test)]
mod tests;
