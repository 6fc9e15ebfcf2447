//! How the work stands: how much waits, whose it is, for what, and who holds the checkpoint back.
//!
//! Nothing is decided by it. One look at each account, at each of its queues and at the first deliveries of these:
//! O(accounts + queues), as [`Dispatcher::gauges`]. So whoever asks, asks once a second at most.

mod find;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use super::super::lane::{Pending, Queue};
use super::super::schedule::Pool;
use super::Dispatcher;
use super::outbox::Behind;
use super::queues::{EndpointQueue, OfAccount, QueueNo};
use walhook_core::event::{AccountId, EndpointId, Event};
use walhook_core::position::EventId;
use walhook_core::tick::Tick;
use walhook_core::waits::Cause;

pub use find::{Find, Found};

/// How the work stands at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// Deliveries in memory, those in flight included.
    pub pending: usize,
    /// Requests in flight.
    pub in_flight: usize,
    /// Events in memory whose deliveries are not known yet.
    pub unrouted: usize,
    /// Accounts that have something in memory or deferred.
    pub waiting_accounts: usize,
    /// The oldest delivery that the checkpoint waits for.
    pub oldest: Option<OldestUnsettled>,
    /// The accounts of which most waits, those first.
    pub accounts: Vec<AccountStanding>,
}

/// The delivery that holds the checkpoint back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldestUnsettled {
    /// Whose.
    pub account: AccountId,
    /// To whom; none: its endpoints are not known yet.
    pub endpoint: Option<EndpointId>,
    /// Of which event.
    pub event: EventId,
    /// The event's type.
    pub event_type: Arc<str>,
    /// When it was committed: microseconds since 1970-01-01 UTC.
    pub commit_time_us: i64,
    /// Attempts made.
    pub attempts: u32,
    /// What it waits for now.
    pub cause: Cause,
}

/// What waits of one account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountStanding {
    /// Whose.
    pub account: AccountId,
    /// Deliveries in memory that are not in flight, and events in memory whose deliveries are not known yet.
    pub waiting: usize,
    /// Requests in flight.
    pub in_flight: usize,
    /// Deliveries in the table.
    pub deferred: u64,
    /// The endpoint for which most of it waits; none: its endpoints are not known yet.
    pub endpoint: Option<EndpointId>,
    /// When the oldest in memory was committed: microseconds since 1970-01-01 UTC; none: nothing is in memory.
    pub oldest_commit_us: Option<i64>,
    /// What that for this endpoint waits for now.
    pub cause: Cause,
}

/// For each pool, how many lanes have something that waits for a slot alone.
type Ready = [usize; Pool::ALL.len()];

impl Dispatcher {
    /// How the work stands, with the `most` accounts of which most waits.
    #[must_use]
    pub fn standing(&self, most: usize, now: Tick) -> Standing {
        let waiting = &self.routing.waiting;
        let of_accounts = || self.queues.accounts();
        let without_queue = || waiting.counts().filter(|(id, _)| self.queues.account(id).is_none());
        let amount = |of: &OfAccount<'_>| self.amount(of) + count(waiting.count_of(of.id));
        let mut chosen = BinaryHeap::new();
        let mut waiting_accounts = 0;
        let amounts = of_accounts().map(|of| (amount(&of), of.id));
        for (amount, id) in amounts.chain(without_queue().map(|(id, n)| (count(n), id))) {
            waiting_accounts += usize::from(amount > 0);
            if amount > 0 && most > 0 {
                chosen.push(Reverse((amount, Reverse(id))));
                if chosen.len() > most {
                    chosen.pop();
                }
            }
        }
        let ready = self.ready_lanes();
        let chosen = chosen.into_sorted_vec();
        let accounts =
            chosen.iter().map(|Reverse((_, Reverse(id)))| self.of_account(id, &ready, now));
        Standing {
            pending: of_accounts().filter_map(|of| of.lane).map(|lane| lane.pending()).sum(),
            in_flight: self.sending.len(),
            unrouted: waiting.counts().map(|(_, events)| events).sum(),
            waiting_accounts,
            oldest: self.oldest(&ready, now),
            accounts: accounts.collect(),
        }
    }

    /// What there is of an account, in memory and in the table.
    fn amount(&self, of: &OfAccount<'_>) -> u64 {
        let rows = of.queues.iter().map(|no| rows(self.queues.at(*no))).sum::<u64>();
        rows + of.lane.map_or(0, |lane| count(lane.pending()))
    }

    fn of_account(&self, id: &AccountId, ready: &Ready, now: Tick) -> AccountStanding {
        let waiting = &self.routing.waiting;
        let parked = waiting.count_of(id);
        let parked_since = waiting.first(id).map(|parked| parked.held.event.commit_time_us);
        let mut standing = AccountStanding {
            account: id.clone(),
            waiting: parked,
            in_flight: 0,
            deferred: 0,
            endpoint: None,
            oldest_commit_us: parked_since,
            cause: self.parked_cause(id),
        };
        let mut most = count(parked);
        for no in self.queues.queues_of(id) {
            let queue = self.queues.at(*no);
            let pending = queue.pending();
            let in_flight =
                pending.map_or(0, |pending| usize::try_from(pending.in_flight()).unwrap_or(0));
            let in_memory = pending.map_or(0, Queue::len) - in_flight;
            let rows = rows(queue);
            standing.waiting += in_memory;
            standing.in_flight += in_flight;
            standing.deferred += rows;
            let oldest = pending.and_then(Queue::oldest).map(|it| it.held.event.commit_time_us);
            standing.oldest_commit_us = standing.oldest_commit_us.into_iter().chain(oldest).min();
            let of_queue = count(in_memory) + rows;
            if of_queue > most || (standing.endpoint.is_none() && parked == 0) {
                most = of_queue;
                standing.endpoint = Some(queue.id().endpoint.clone());
                standing.cause = self.queue_cause(*no, ready, now);
            }
        }
        standing
    }

    /// The delivery that the checkpoint waits for, and that was committed first.
    fn oldest(&self, ready: &Ready, now: Tick) -> Option<OldestUnsettled> {
        let of_queue = |(no, queue): (QueueNo, &'_ EndpointQueue)| {
            let first = queue.pending()?.first_of_stream()?;
            Some((first.stream_txn()?, no, first.id))
        };
        let queued = self.queues.iter().filter_map(of_queue).min();
        let parked = self.routing.waiting.oldest();
        let parked = parked.filter(|(txn, _)| queued.is_none_or(|(queued, ..)| *txn < queued));
        if let Some((_, parked)) = parked {
            let event = &*parked.held.event;
            return Some(unsettled(event, None, 0, self.parked_cause(&event.account)));
        }
        let (_, no, id) = queued?;
        let queue = self.queues.at(no);
        let pending = queue.pending()?.get(id)?;
        let endpoint = Some(queue.id().endpoint.clone());
        let cause = self.delivery_cause(no, pending, ready, now);
        Some(unsettled(&pending.held.event, endpoint, pending.attempts, cause))
    }

    /// What an account's events wait for that wait to be routed.
    fn parked_cause(&self, account: &AccountId) -> Cause {
        self.routing.waiting.cause_of(account)
    }

    /// What the queue's first delivery waits for that is not in flight; where there is none, what its rows wait for.
    fn queue_cause(&self, no: QueueNo, ready: &Ready, now: Tick) -> Cause {
        let queue = self.queues.at(no);
        let in_memory = queue.pending();
        if let Some(first) = in_memory.and_then(|pending| pending.first_waiting()) {
            return self.delivery_cause(no, first, ready, now);
        }
        if rows(queue) == 0 {
            return Cause::Attempt;
        }
        if let Some(cause) = self.stopped_cause(queue) {
            return cause;
        }
        let due = queue.deferred().and_then(|deferred| deferred.backlog().next_due());
        match due.is_some_and(|due| due > now) {
            true => Cause::Retry,
            false if self.queues.waits_for_room(queue.account(), queue.pool(now)) => Cause::Pool,
            false => Cause::Refill,
        }
    }

    fn delivery_cause(&self, no: QueueNo, pending: &Pending, ready: &Ready, now: Tick) -> Cause {
        let queue = self.queues.at(no);
        let own = queue.pending().and_then(|of| of.own_cause(pending.id));
        if let Some(Cause::Attempt | Cause::State) = own {
            return own.unwrap_or(Cause::Attempt);
        }
        let lane = self.queues.lane_of(&queue.id().account);
        if lane.is_some_and(|lane| lane.is_unrouted()) {
            return Cause::Lookup;
        }
        let limit = || queue.pending().and_then(|of| of.why_held(now));
        let stored = || self.outbox.behind(now).map(Behind::cause);
        let first = self.stopped_cause(queue).or(own).or_else(limit).or_else(stored);
        first.unwrap_or_else(|| {
            let pool = queue.pool(now);
            let others = ready.get(pool as usize).copied().unwrap_or(0);
            // Nobody has a turn where there are no slots, nor in the line for room.
            let waits = self.queues.waits_for_room(queue.account(), pool);
            let has_turns = others > 1 && self.sending.slots(pool) > 0 && !waits;
            if has_turns { Cause::Turn } else { Cause::Pool }
        })
    }

    /// Why nothing goes to the queue's endpoint, where nothing does.
    fn stopped_cause(&self, queue: &EndpointQueue) -> Option<Cause> {
        let endpoint = &queue.id().endpoint;
        let is_suspended = queue.deferred().is_some_and(|deferred| deferred.is_suspended());
        if is_suspended
            || self.endpoints.is_paused(endpoint)
            || self.endpoints.is_disabled(endpoint)
        {
            return Some(Cause::Stopped);
        }
        queue.deferred().filter(|deferred| deferred.is_open()).map(|_| Cause::Breaker)
    }

    fn ready_lanes(&self) -> Ready {
        let mut ready = Ready::default();
        for lane in self.queues.lanes() {
            for (pool, count) in Pool::ALL.into_iter().zip(&mut ready) {
                *count += usize::from(lane.is_ready_in(pool));
            }
        }
        ready
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// The queue's deliveries that are in the table alone.
fn rows(queue: &EndpointQueue) -> u64 {
    queue
        .deferred()
        .map_or(0, |deferred| deferred.rows().saturating_sub(count(deferred.backlog().loaded())))
}

fn unsettled(
    event: &Event,
    endpoint: Option<EndpointId>,
    attempts: u32,
    cause: Cause,
) -> OldestUnsettled {
    OldestUnsettled {
        account: event.account.clone(),
        endpoint,
        event: event.id,
        event_type: Arc::clone(&event.event_type),
        commit_time_us: event.commit_time_us,
        attempts,
        cause,
    }
}

#[cfg(test)]
mod tests;
