//! The frontier is not held back for long: what does so is deferred.
//!
//! Looked at once a second at most, and only while the oldest unsettled transaction is too old or too
//! much WAL was read since. Then each queue is looked at from its oldest delivery on, as far as its
//! deliveries belong to transactions that are to be passed.

use std::time::Duration;

use super::super::lane::{LEAVING_BYTES, Origin, Pending};
use super::super::schedule::LaneId;
use super::super::tracker::TxnSeq;
use super::Dispatcher;
use super::defer::Exit;
use super::outbox::ROWS_BYTES;
use super::queues::QueueNo;
use walhook_core::attempt::DeliveryId;
use walhook_core::event::EndpointId;
use walhook_core::lsn::Lsn;
use walhook_core::persist::DeferReason;
use walhook_core::tick::Tick;

/// How often the frontier is looked at.
const RELEASE_EVERY: Duration = Duration::from_secs(1);

/// How often, while there is more to be deferred than one state transaction stores. What waits for that may still
/// be sent.
const MORE_EVERY: Duration = Duration::from_millis(100);

/// What is to leave one queue.
struct Overdue {
    lane: LaneId,
    endpoint: EndpointId,
    queue: QueueNo,
    /// With all that stand behind them; oldest first.
    idle: Vec<DeliveryId>,
    in_flight: Vec<DeliveryId>,
}

impl Dispatcher {
    /// When the frontier is to be looked at although nothing else happens.
    pub(super) fn release_deadline(&self) -> Option<Tick> {
        let oldest = self.progress.oldest_unsettled()?;
        Some((oldest + self.settings.max_hold).max(self.progress.next_look()))
    }

    /// Whether the source keeps a good part of what it may for the sake of what is not stored.
    pub(super) fn holds_much_wal(&self) -> bool {
        let received = self.progress.received();
        received.bytes_since(self.progress.frontier()) >= self.settings.max_retained / 4
    }

    /// Defers what has held the frontier back for too long.
    pub(super) fn release_frontier(&mut self, now: Tick) {
        if now < self.progress.next_look() || self.door.is_stopping() {
            return;
        }
        self.progress.look_again_at(now + RELEASE_EVERY);
        let opened = now - self.settings.max_hold;
        let lsn = Lsn(self.progress.received().0.saturating_sub(self.settings.max_retained));
        let Some(last) = self.progress.overdue(opened, lsn) else { return };
        // What came a moment ago with a transaction that takes long to read may still go directly, unless
        // there is too much WAL. While the state database has more to store than one batch, the frontier
        // waits for that, and what joins the line's end would not free any WAL sooner.
        let is_in_line = self.outbox.leaving_bytes() > ROWS_BYTES;
        let too_much_wal = self.progress.frontier() < lsn && !is_in_line;
        let since = if too_much_wal { now } else { opened };
        self.routing.waiting.note_overdue(last, since);
        self.shelve_overdue(now);
        self.release_unseen(last);
        let mut room = ROWS_BYTES.saturating_sub(self.outbox.leaving_bytes());
        for Overdue { queue, idle, in_flight, .. } in self.overdue(last, since, &mut room) {
            for id in in_flight {
                self.keep_in_flight(queue, id);
            }
            self.leave_together(queue, idle, Exit::Other(DeferReason::Held), now);
        }
        if room == 0 {
            self.progress.look_again_at(now + MORE_EVERY);
        }
    }

    /// What is to leave now. Of what waits no more than fits into `room` bytes, and all that stands behind it.
    fn overdue(&self, last: TxnSeq, since: Tick, room: &mut usize) -> Vec<Overdue> {
        let mut found = Vec::new();
        for (no, queue) in self.queues.iter() {
            let (Some(pending), Some(lane)) = (queue.pending(), self.queues.lane_id(no)) else {
                continue;
            };
            let take = |pending: &&Pending| {
                let fits = *room > 0;
                let bytes = LEAVING_BYTES + pending.held.event.size_bytes();
                *room = room.saturating_sub(bytes);
                fits
            };
            let id = |pending: &Pending| pending.id;
            // What is being cleared leaves anyway, or ends.
            let idle = pending.idle().filter(|_| !self.queues.is_cleared(no));
            let idle: Vec<_> = of(idle, last, since).take_while(take).map(id).collect();
            let overdue = Overdue {
                lane,
                endpoint: queue.id().endpoint.clone(),
                queue: no,
                idle: pending.with_those_behind(&idle),
                in_flight: of(pending.sent(), last, since).map(id).collect(),
            };
            if !overdue.idle.is_empty() || !overdue.in_flight.is_empty() {
                found.push(overdue);
            }
        }
        found.sort_unstable_by(|a, b| (a.lane, &a.endpoint).cmp(&(b.lane, &b.endpoint)));
        found
    }
}

/// Those of the stream's deliveries, which come in its order, that belong to transactions up to `last`.
fn of<'a>(
    pending: impl Iterator<Item = &'a Pending>,
    last: TxnSeq,
    since: Tick,
) -> impl Iterator<Item = &'a Pending> {
    let up_to_last = pending.take_while(move |pending| match pending.origin {
        Origin::Stream { txn, .. } => txn <= last,
        Origin::Deferred { .. } | Origin::Retry { .. } | Origin::Replay(_) => true,
    });
    let is_overdue = move |pending: &&Pending| {
        matches!(pending.origin, Origin::Stream { .. }) && pending.since <= since
    };
    up_to_last.filter(is_overdue)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::super::Settings;
    use super::*;
    use crate::fixture;
    use walhook_core::event::{Event, Item};

    const NOW: Tick = Tick(60_000_000);

    fn event(account: &str, commit: u64, n: u64, row: &Bytes) -> Arc<Event> {
        let event = fixture::event(account, fixture::position(commit, commit - 500 + n), &[n]);
        Arc::new(Event { row: row.clone(), ..event })
    }

    /// A whale's transaction of so many rows, a small one behind it, and then much WAL.
    fn behind_a_whale(rows: u64, row_bytes: usize, memory_limit: usize) -> Dispatcher {
        let settings = Settings { memory_limit, max_retained: 10_000, ..fixture::settings() };
        let mut dispatcher = fixture::dispatcher(settings);
        let row = Bytes::from(vec![b' '; row_bytes]);
        let whale = (0..rows).map(|n| event("whale", 2_000, n, &row));
        let small = event("small", 3_000, 0, &Bytes::from_static(b"\"data\":{}"));
        let whale = fixture::transaction(2_000, whale).into_iter();
        let items = whale.chain(fixture::transaction(3_000, [small]));
        for item in items.chain([Item::Progress { wal_end: Lsn(90_000) }]) {
            dispatcher.handle_item(item, NOW);
        }
        let look_up = dispatcher.poll_lookup(NOW).unwrap();
        let routes = |a: &walhook_core::event::AccountId| fixture::routes(a, [a.as_str()]);
        dispatcher.handle_lookup(look_up.answered(fixture::snapshot(), routes), NOW);
        dispatcher
    }

    fn is_sent(dispatcher: &mut Dispatcher, account: &str) -> bool {
        let mut sent = std::iter::from_fn(|| dispatcher.poll_attempt(NOW));
        sent.any(|dispatch| dispatch.attempt.first().event.account.as_str() == account)
    }

    #[test]
    fn delivery_that_came_a_moment_ago_is_deferred_when_there_is_too_much_wal() {
        let mut dispatcher = behind_a_whale(10, 100, 256 << 20);
        assert!(!is_sent(&mut dispatcher, "small"));
        assert_eq!(dispatcher.counters().deferred[DeferReason::Held.index()], 11);
    }

    #[test]
    fn delivery_that_came_a_moment_ago_is_sent_when_the_frontier_waits_for_the_state_database() {
        let mut dispatcher = behind_a_whale(30, 1 << 20, 24 << 20);
        assert!(is_sent(&mut dispatcher, "small"));
        assert_eq!(dispatcher.counters().deferred[DeferReason::Held.index()], 0);
    }
}
