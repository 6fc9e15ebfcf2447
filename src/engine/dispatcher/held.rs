//! The frontier is not held back for long: what does so is deferred.
//!
//! Looked at once a second at most, and only while the oldest unsettled transaction is too old or too
//! much WAL was read since. Then each queue is looked at from its oldest delivery on, as far as its
//! deliveries belong to transactions that are to be passed.

use std::time::Duration;

use super::super::attempt::DeliveryId;
use super::super::event::EndpointId;
use super::super::lane::{Origin, Pending};
use super::super::lsn::Lsn;
use super::super::persist::DeferReason;
use super::super::schedule::LaneId;
use super::super::tick::Tick;
use super::super::tracker::TxnSeq;
use super::Dispatcher;
use super::defer::Exit;

/// How often the frontier is looked at.
const RELEASE_EVERY: Duration = Duration::from_secs(1);

/// What is to leave one queue.
struct Overdue {
    lane: LaneId,
    endpoint: EndpointId,
    /// With all that stand behind them; oldest first.
    idle: Vec<DeliveryId>,
    in_flight: Vec<DeliveryId>,
}

impl Dispatcher {
    /// When the frontier is to be looked at although nothing else happens.
    pub(super) fn release_deadline(&self) -> Option<Tick> {
        let oldest = self.tracker.oldest_unsettled()?;
        Some((oldest + self.settings.max_hold).max(self.next_release))
    }

    /// Defers what has held the frontier back for too long.
    pub(super) fn release_frontier(&mut self, now: Tick) {
        if now < self.next_release || self.stopping {
            return;
        }
        self.next_release = now + RELEASE_EVERY;
        let opened = now - self.settings.max_hold;
        let lsn = Lsn(self.tracker.received().0.saturating_sub(self.settings.max_retained));
        let Some(last) = self.tracker.overdue(opened, lsn) else { return };
        // What came a moment ago with a transaction that takes long to read may still go directly,
        // unless there is too much WAL.
        let since = if self.tracker.frontier() < lsn { now } else { opened };
        for Overdue { lane, endpoint, idle, in_flight } in self.overdue(last, since) {
            for id in in_flight {
                self.keep_in_flight(lane, &endpoint, id);
            }
            self.leave(lane, &endpoint, &idle, Exit::Other(DeferReason::Held), now);
        }
    }

    fn overdue(&self, last: TxnSeq, since: Tick) -> Vec<Overdue> {
        let mut found = Vec::new();
        for (lane, it) in &self.lanes {
            for (endpoint, queue) in it.queues() {
                let overdue = Overdue {
                    lane: *lane,
                    endpoint: endpoint.clone(),
                    idle: queue.with_those_behind(&ids(queue.idle(), last, since)),
                    in_flight: ids(queue.sent(), last, since),
                };
                if !overdue.idle.is_empty() || !overdue.in_flight.is_empty() {
                    found.push(overdue);
                }
            }
        }
        found.sort_unstable_by(|a, b| (a.lane, &a.endpoint).cmp(&(b.lane, &b.endpoint)));
        found
    }
}

/// Those of the stream's deliveries, which come in its order, that belong to transactions up to `last`.
fn ids<'a>(
    pending: impl Iterator<Item = &'a Pending>,
    last: TxnSeq,
    since: Tick,
) -> Vec<DeliveryId> {
    pending
        .take_while(|pending| match pending.origin {
            Origin::Stream { txn, .. } => txn <= last,
            Origin::Deferred { .. } | Origin::Retry { .. } => true,
        })
        .filter(|pending| matches!(pending.origin, Origin::Stream { .. }) && pending.since <= since)
        .map(|pending| pending.id)
        .collect()
}
