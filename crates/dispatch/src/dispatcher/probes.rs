//! Probes of dead endpoints: how long one may take, what follows where it fails, and which endpoints are brought
//! forward when one of their host is back. When they are sent: see [`super::super::breaker`].
//!
//! # Invariants
//!
//! - A probe that fails is no attempt: its number does not change, and it does not die of it.
//! - Nor is it sent before the time that its endpoint asked for, but as a later probe, the next one after that time or a
//!   minute. Its row tells that time:
//!   operators see it, and hurry rows by it. Without one the row stays as it is.
//! - One that is not answered stays in memory, where there is room, and is the next probe too: a dead endpoint
//!   costs no reading of tables. One that is refused makes place for another key's.

use std::collections::{BTreeMap, BTreeSet};

use super::Dispatcher;
use super::circuit_breaker::asked;
use super::defer::Exit;
use super::deferred_queue::DeferredQueue;
use super::queues::QueueNo;
use super::sending::Wake;
use walhook_core::attempt::{DeliveryId, Meaning, Outcome};
use walhook_core::endpoint::Endpoint;
use walhook_core::tick::Tick;

/// Probes stay in memory while less than this part of it is used.
const MEMORY_PARTS: usize = 4;

/// The queues whose endpoints are dead, by host and port, as far as they were tried.
///
/// Invariant: each queue stands with one host.
#[derive(Debug, Default)]
pub(super) struct DeadHosts {
    hosts: BTreeMap<Box<str>, BTreeSet<QueueNo>>,
    of: BTreeMap<QueueNo, Box<str>>,
}

impl DeadHosts {
    /// The queue's endpoint is dead, and has this URL.
    fn add(&mut self, queue: QueueNo, url: &str) {
        let host = host(url);
        if self.of.get(&queue).is_some_and(|of| **of == host) {
            return;
        }
        self.remove(queue);
        self.of.insert(queue, host.clone().into());
        self.hosts.entry(host.into()).or_default().insert(queue);
    }

    /// Its endpoint is not dead any more. Returns the others of its host.
    fn remove(&mut self, queue: QueueNo) -> Vec<QueueNo> {
        let Some(host) = self.of.remove(&queue) else { return Vec::new() };
        let Some(queues) = self.hosts.get_mut(&host) else { return Vec::new() };
        queues.remove(&queue);
        let others = queues.iter().copied().collect::<Vec<_>>();
        if others.is_empty() {
            self.hosts.remove(&host);
        }
        others
    }
}

/// Host and port of a URL; of what is none, all of it.
pub(super) fn host(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.to_ascii_lowercase()
}

impl Dispatcher {
    /// Whether this delivery is the probe of its queue's endpoint.
    pub(super) fn is_probe(&self, queue: QueueNo, id: DeliveryId) -> bool {
        let breaker = self.queues.deferred(queue).and_then(DeferredQueue::breaker);
        breaker.is_some_and(|breaker| breaker.probe() == Some(id))
    }

    /// A request of a queue whose breaker is open is sent.
    pub(super) fn begin_probe(
        &mut self,
        queue: QueueNo,
        id: DeliveryId,
        endpoint: &Endpoint,
        now: Tick,
    ) {
        if !self.is_probe(queue, id) {
            return;
        }
        self.deferral.dead.add(queue, &endpoint.url);
        let usual = self.queues.in_use(queue).health().usual_answer();
        let Some(breaker) = self.queues.with_row(queue).breaker_mut() else { return };
        if let Some(patience) = breaker.sent(usual, now, self.door.rng()) {
            self.sending.give_up_at(id, now + patience);
        }
    }

    /// A probe failed: the next one is planned.
    pub(super) fn fail_probe(
        &mut self,
        queue: QueueNo,
        id: DeliveryId,
        outcome: &Outcome,
        now: Tick,
    ) {
        let asked = asked(outcome);
        let is_answered = match outcome.meaning {
            Meaning::TimedOut
            | Meaning::Failed
            | Meaning::Aborted
            | Meaning::Oversize
            | Meaning::Lost
            | Meaning::Local => false,
            Meaning::Refused { .. } | Meaning::Invalid | Meaning::Delivered | Meaning::Gone => true,
        };
        let has_room = self.used_bytes() < self.settings.memory_limit / MEMORY_PARTS;
        let Some(breaker) = self.queues.with_row(queue).breaker_mut() else { return };
        let (until, keeps) = breaker.fail(!is_answered && has_room, asked, now, self.door.rng());
        let is_stale = breaker.is_stale(now);
        let in_memory = self.queues.in_use(queue);
        if keeps {
            in_memory.keep_probe(id, until);
            self.sending.wake_at(until, Wake::Delivery(queue, id));
        } else {
            in_memory.drop_probe(id);
            let ids = in_memory.with_those_behind(&[id]);
            // Another may be tried sooner. This one waits also where that closes the breaker.
            let wait = self.settings.settle.retry.bounded(asked.unwrap_or_default());
            let exit =
                if wait.is_zero() { Exit::Probed(id, now) } else { Exit::Failed(id, now + wait) };
            self.leave_together(queue, ids, exit, now);
        }
        if is_stale {
            self.outdate(queue);
        }
    }

    /// The queue's endpoint is dead no more, or nothing is sent to it: what was the probe waits for nothing.
    pub(super) fn end_probes(&mut self, queue: QueueNo, probe: DeliveryId, now: Tick) {
        if let Some(in_memory) = self.queues.pending_mut(queue)
            && in_memory.bring_forward(probe, now)
        {
            self.sending.wake_at(now, Wake::Delivery(queue, probe));
        }
    }

    /// An endpoint is back: those of its host may be, too, unless they answered and asked for a wait.
    pub(super) fn bring_host_forward(&mut self, queue: QueueNo, now: Tick) {
        for other in self.deferral.dead.remove(queue) {
            let breaker = self.queues.deferred(other).and_then(DeferredQueue::breaker);
            if breaker.is_some_and(|breaker| !breaker.is_asked_to_wait(now)) {
                self.bring_forward(other, now);
            }
        }
    }

    /// Nothing is known of the queue's host any more.
    pub(super) fn forget_dead(&mut self, queue: QueueNo) {
        self.deferral.dead.remove(queue);
    }

    /// The queue's endpoint is tried as soon as a slot is free.
    pub(super) fn bring_forward(&mut self, queue: QueueNo, now: Tick) {
        // It may have been forgotten since.
        if self.queues.get(queue).is_none() {
            return;
        }
        let Some(deferred) = self.queues.deferred_mut(queue) else { return };
        let Some(breaker) = deferred.breaker_mut() else { return };
        let Some(due) = breaker.bring_forward(now) else { return };
        match breaker.probe() {
            Some(probe) => {
                if let Some(in_memory) = self.queues.pending_mut(queue)
                    && in_memory.bring_forward(probe, due)
                {
                    self.sending.wake_at(due, Wake::Delivery(queue, probe));
                }
            }
            None => self.look_after(queue, now),
        }
    }
}

#[cfg(test)]
mod tests;
