//! Why a delivery waited. (Why one waits now: see the module `standing`.)
//!
//! ```text
//! commit ──► taken ──► routed ──► queued ──► may be sent ──► sent ──► answered
//!    Memory     Lookup     │   Order   the queue's clock   Bus, Attempt
//!    Read       Memory     │   Retry   (see [`crate::clock`])
//!               Turn       └─► Stopped, Breaker, Retry, Refill (in the table)
//! ```
//!
//! What several share is counted where it is shared; the rest has its begin and its end in moments of the delivery
//! itself. What a delivery waits for that goes the straight way stands in its [`Pending`]; of one that failed, was
//! parked or stood in the table the sum until then is kept beside.
//!
//! # What is not told
//!
//! A row of the table does not say what its delivery waited for before. When it is read back, the time from its commit
//! counts for the queue's stops, as far as the last of them are remembered, for [`Cause::Retry`] until it was due, and
//! for [`Cause::Refill`] else.

use std::time::Duration;

use super::super::lane::Pending;
use super::Dispatcher;
use super::queues::QueueNo;
use super::spans;
use walhook_core::attempt::DeliveryId;
use walhook_core::event::Event;
use walhook_core::persist::Deferred;
use walhook_core::tick::Tick;
use walhook_core::waits::{Cause, Waits};

impl Dispatcher {
    /// How long the stream took to bring an event that came now, and what stood in its way; an operator's wish has
    /// come at once.
    pub(super) fn waits_of_arrival(&self, event: &Event, is_asked: bool, now: Tick) -> Waits {
        let mut waits = Waits::default();
        if !is_asked {
            let (from, to) = (self.committed_at(event), spans::at(now));
            let full_us = self.memory.add_full_to(&mut waits, from, to);
            let read_us = u64::try_from(to.saturating_sub(from)).unwrap_or(0);
            waits.add_us(Cause::Read, read_us.saturating_sub(full_us));
        }
        waits
    }

    /// As [`Dispatcher::waits_of_arrival`] of an event of the stream, where anything stood in its way.
    pub(super) fn waits_of_full(&self, event: &Event, now: Tick) -> Option<Waits> {
        let is_held = self.memory.was_full_after(self.committed_at(event));
        is_held.then(|| self.waits_of_arrival(event, false, now))
    }

    /// When the event's transaction committed.
    fn committed_at(&self, event: &Event) -> i64 {
        event.commit_time_us.saturating_sub(self.door.unix_us_at_zero())
    }

    /// What a row that is read back has waited for.
    pub(super) fn waits_of_row(&self, queue: QueueNo, row: &Deferred, now: Tick) -> Waits {
        let (from, to) = (self.committed_at(&row.event), spans::at(now));
        let mut waits = Waits::default();
        let stops = self.queues.rows_of(queue).stops();
        let stopped_us = stops.add_to(&mut waits, from, to);
        let due_us = row.due_us.filter(|_| row.attempts > 0).map_or(from, |due_us| {
            due_us.saturating_sub(self.door.unix_us_at_zero()).clamp(from, to.max(from))
        });
        let before_us = stops.add_to(&mut Waits::default(), from, due_us);
        let us = |from: i64, to: i64| u64::try_from(to.saturating_sub(from)).unwrap_or(0);
        waits.add_us(Cause::Retry, us(from, due_us).saturating_sub(before_us));
        let after_us = stopped_us.saturating_sub(before_us);
        waits.add_us(Cause::Refill, us(due_us, to).saturating_sub(after_us));
        waits
    }

    /// What a delivery in flight has waited for, whose request began then and took so long where it was sent from.
    pub(super) fn waits_sent(
        &mut self,
        queue: QueueNo,
        id: DeliveryId,
        (started, took): (Tick, Duration),
        now: Tick,
    ) -> Waits {
        let unix_us_at_zero = self.door.unix_us_at_zero();
        let pending = &*self.queues.in_use(queue).held_mut(id);
        pending.waits_sent(read_us(pending, unix_us_at_zero), started, took, now)
    }

    /// What a delivery waited for until now is kept.
    pub(super) fn keep_waits(&mut self, queue: QueueNo, id: DeliveryId, waits: Waits, now: Tick) {
        let pending = self.queues.in_use(queue).held_mut(id);
        let more = pending.keep_waits(waits, now);
        if more > 0 {
            let counted = pending.counted + more;
            self.queues.recount(queue, id, counted);
            self.memory.take(more);
        }
    }

    /// Whether the stream stands still for want of memory, from now on.
    pub(super) fn note_full(&mut self, now: Tick) {
        let is_full = !self.memory.takes_more(self.committed_bytes());
        if self.memory.note_full(is_full, now) {
            self.relieve_anew(now);
        }
        self.memory.remember_full(now);
    }
}

/// How long the stream took to bring a delivery that came straight from it.
fn read_us(pending: &Pending, unix_us_at_zero: i64) -> u64 {
    if pending.origin.asked().is_some() {
        return 0;
    }
    let committed_at = pending.held.event.commit_time_us.saturating_sub(unix_us_at_zero);
    u64::try_from(spans::at(pending.since).saturating_sub(committed_at)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
