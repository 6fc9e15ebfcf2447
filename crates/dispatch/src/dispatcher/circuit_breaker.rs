//! Endpoints to which nothing is sent for a while: their breaker is open. (That an operator has paused one:
//! see the module `operator`.)
//!
//! What arrives for them is deferred, what waited in memory is too, and their clock stands still.

use std::time::Duration;

use super::super::breaker::{AttemptHealth, Breaker};
use super::super::lane::Origin;
use super::deferred_queue::DeferredQueue;
use super::queues::QueueNo;
use super::{Dispatcher, EndpointChange, EndpointChanged};
use walhook_core::attempt::{DeliveryId, Meaning, Outcome};
use walhook_core::event::EndpointId;
use walhook_core::persist::{DeferReason, DisableEndpoint, QueueId};
use walhook_core::tick::Tick;

/// Why a breaker closes.
const CAME_THROUGH: &str = "it took a delivery";

/// Why a breaker opens although the deliveries arrive.
const RESENT: &str =
    "taken, but more than half of the requests had to be sent again on another connection";

impl Dispatcher {
    /// Whether an outcome of this delivery tells whether the breaker may close.
    pub(super) fn is_test(&self, queue: QueueNo, id: DeliveryId, origin: Origin) -> bool {
        let deferred = self.queues.deferred(queue);
        let is_open = deferred.is_some_and(DeferredQueue::is_open);
        let is_asked_for = matches!(origin, Origin::Retry { .. } | Origin::Replay(_));
        is_open && (is_asked_for || self.is_probe(queue, id))
    }

    /// What an outcome says of its endpoint's health. Call it after the delivery was seen to.
    /// `is_test`: see [`Dispatcher::is_test`], as it was before.
    pub(super) fn note_health(
        &mut self,
        queue: QueueNo,
        is_test: bool,
        outcome: &Outcome,
        now: Tick,
    ) {
        let went = went(outcome);
        let endpoint = &self.queues.id(queue).endpoint;
        let is_off = self.endpoints.is_paused(endpoint) || self.endpoints.is_disabled(endpoint);
        if is_off || self.is_suspended(queue) || outcome.says_nothing_of_the_endpoint() {
            return;
        }
        let deferred = self.queues.deferred(queue);
        if deferred.is_none_or(|deferred| !deferred.is_open()) {
            let in_memory = self.queues.in_use(queue);
            let resent = outcome.own_resends > 0;
            if in_memory.health_mut().note(went, resent, now)
                && let Some(wait) = self.open_breaker(queue, asked(outcome), now)
            {
                let wait = humantime::format_duration(Duration::from_secs(wait.as_secs()));
                let last = if outcome.delivered() { RESENT } else { &outcome.record.text };
                let detail = format!("nothing is sent for {wait}; last: {last}");
                self.tell_of_queue(queue, EndpointChange::BreakerOpened, detail);
            }
            return;
        }
        if is_test && went == AttemptHealth::Well {
            self.queues.in_use(queue).health_mut().begin_again();
            self.bring_host_forward(queue, now);
            self.forget_breaker(queue, now);
            self.tell_of_queue(queue, EndpointChange::BreakerClosed, CAME_THROUGH.to_owned());
        }
    }

    pub(super) fn tell_of_queue(&mut self, queue: QueueNo, change: EndpointChange, detail: String) {
        self.tell_of(&self.queues.id(queue).clone(), change, detail);
    }

    pub(super) fn tell_of(&mut self, queue: &QueueId, change: EndpointChange, detail: String) {
        let QueueId { account, endpoint } = queue.clone();
        self.tell(EndpointChanged { endpoint, account: Some(account), change, detail });
    }

    /// Returns for how long nothing is sent.
    fn open_breaker(
        &mut self,
        queue: QueueNo,
        asked: Option<Duration>,
        now: Tick,
    ) -> Option<Duration> {
        self.queues.in_use(queue).health_mut().forget_failures();
        let until = self.queues.deferred_or_new(queue).open_breaker(asked, now, self.door.rng());
        self.clear(queue, now);
        // Without a row there is no probe: what comes next is one.
        self.queues.deferred(queue)?.breaker()?;
        self.outdate(queue);
        Some(until.since(now))
    }

    /// Switches an endpoint off that has answered with nothing but failures for too long.
    pub(super) fn give_up_failing(&mut self, queue: QueueNo, outcome: &Outcome, now: Tick) {
        let now_us = self.unix_us(now);
        let endpoint = self.queues.id(queue).endpoint.clone();
        let Some(deferred) = self.queues.deferred_mut(queue) else { return };
        if went(outcome) == AttemptHealth::Well {
            if deferred.end_failing() {
                self.outdate(queue);
            }
            return;
        }
        if self.endpoints.is_paused(&endpoint) || outcome.says_nothing_of_the_endpoint() {
            return;
        }
        let Some(since_us) = deferred.fail_since_us(now_us) else {
            self.outdate(queue);
            return;
        };
        let failing_us = u64::try_from(now_us.saturating_sub(since_us)).unwrap_or(0);
        let limit = self.settings.disable_after;
        if Duration::from_micros(failing_us) < limit || self.endpoints.is_disabled(&endpoint) {
            return;
        }
        let limit = humantime::format_duration(limit);
        let reason = format!("nothing but failures for {limit}; last: {}", outcome.record.text);
        let disable = DisableEndpoint { endpoint, reason };
        self.switch_off(queue, disable, now);
    }

    /// Nothing is sent to the endpoint any more: what is queued or deferred for it becomes dead letters.
    ///
    /// That it is so already changes nothing and is told nobody: many requests may be in flight when the
    /// first of them is answered so, also of several accounts while an endpoint moves.
    pub(super) fn switch_off(&mut self, queue: QueueNo, disable: DisableEndpoint, now: Tick) {
        self.forget_breaker(queue, now);
        if !self.endpoints.disable(&disable) {
            return;
        }
        self.tell_of_queue(queue, EndpointChange::Disabled, disable.reason.clone());
        self.outbox.disable(disable);
    }

    /// Something is sent to the endpoint again, where it was switched off. What requests that are in flight
    /// say of it is outdated: they were sent to what it was before.
    pub(super) fn switch_on(&mut self, endpoint: &EndpointId) -> bool {
        if !self.endpoints.enable(endpoint) {
            return false;
        }
        self.outbox.enable(endpoint.clone());
        self.sending.outdate(self.queues.of_endpoint(endpoint));
        true
    }

    /// Nothing is to be sent to the endpoint any more, or nothing can be: no reason to go slowly.
    pub(super) fn forget_breaker(&mut self, queue: QueueNo, now: Tick) {
        let Some(deferred) = self.queues.deferred_mut(queue) else { return };
        let probe = deferred.breaker().and_then(Breaker::probe);
        if deferred.close_breaker(now) {
            self.forget_dead(queue);
            self.outdate(queue);
        }
        if let Some(probe) = probe {
            self.end_probes(queue, probe, now);
        }
    }

    /// Whether no delivery to the queue's endpoint waits in memory, whatever comes.
    pub(super) fn is_stopped(&self, queue: QueueNo) -> bool {
        self.why_stopped(queue).is_some()
    }

    /// Why nothing new is sent to the endpoint, in the words of what is deferred for it.
    pub(super) fn why_stopped(&self, queue: QueueNo) -> Option<DeferReason> {
        let it = self.queues.at(queue);
        if self.endpoints.is_paused(&it.id().endpoint) {
            return Some(DeferReason::Paused);
        }
        let deferred = it.deferred()?;
        if deferred.is_suspended() {
            return Some(DeferReason::Overflow);
        }
        deferred.is_open().then_some(DeferReason::Breaker)
    }
}

/// The wait that an endpoint asked for which did not take the event.
pub(super) fn asked(outcome: &Outcome) -> Option<Duration> {
    match outcome.meaning {
        Meaning::Refused { retry_after, .. } => retry_after,
        Meaning::Delivered
        | Meaning::Gone
        | Meaning::TimedOut
        | Meaning::Failed
        | Meaning::Invalid
        | Meaning::Aborted
        | Meaning::Oversize
        | Meaning::Lost
        | Meaning::Local => None,
    }
}

fn went(outcome: &Outcome) -> AttemptHealth {
    match outcome.meaning {
        _ if outcome.is_too_much() => AttemptHealth::TooMuch,
        Meaning::Delivered | Meaning::Gone => AttemptHealth::Well,
        Meaning::TimedOut | Meaning::Failed => AttemptHealth::Unanswered,
        Meaning::Refused { .. }
        | Meaning::Invalid
        | Meaning::Aborted
        | Meaning::Oversize
        | Meaning::Lost
        | Meaning::Local => AttemptHealth::Badly,
    }
}

#[cfg(test)]
mod tests;
