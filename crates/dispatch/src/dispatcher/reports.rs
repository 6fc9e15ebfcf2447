//! What is told outside: counters for metrics, and what endpoints have become.
//!
//! Invariant: nothing is decided by what is told.

use std::collections::VecDeque;

use super::{Counters, EndpointChanged};
use walhook_core::persist::DeferReason;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Reports {
    counters: Counters,
    /// What has changed about endpoints and nobody has polled for.
    changes: VecDeque<EndpointChanged>,
}

impl Reports {
    /// What happened so far.
    pub(super) fn counters(&self) -> Counters {
        self.counters
    }

    /// An endpoint has become something.
    pub(super) fn tell(&mut self, changed: EndpointChanged) {
        self.changes.push_back(changed);
    }

    /// What has changed about endpoints, the oldest first.
    pub(super) fn take_change(&mut self) -> Option<EndpointChanged> {
        self.changes.pop_front()
    }

    /// An endpoint took a delivery.
    pub(super) fn delivered(&mut self) {
        self.counters.delivered += 1;
    }

    /// A delivery, or a change, became a dead letter.
    pub(super) fn died(&mut self) {
        self.counters.dead += 1;
    }

    /// An event's account has endpoints that the database refuses to read.
    pub(super) fn refused(&mut self) {
        self.counters.refused += 1;
    }

    /// A delivery's endpoint was removed.
    pub(super) fn dropped(&mut self) {
        self.counters.dropped += 1;
    }

    /// A gap counts so many deliveries more.
    pub(super) fn went_into_gaps(&mut self, deliveries: u64) {
        self.counters.in_gaps = self.counters.in_gaps.saturating_add(deliveries);
    }

    /// An event became a row without an endpoint.
    pub(super) fn unrouted(&mut self) {
        self.counters.unrouted += 1;
    }

    /// Such a row was routed.
    pub(super) fn routed_later(&mut self) {
        self.counters.routed_later += 1;
    }

    /// No endpoint wanted it.
    pub(super) fn unwanted(&mut self) {
        self.counters.unwanted += 1;
    }

    /// A delivery was deferred.
    pub(super) fn deferred(&mut self, reason: DeferReason) {
        if let Some(count) = self.counters.deferred.get_mut(reason.index()) {
            *count += 1;
        }
    }
}
