//! The delivery log's lines on their way into the state tables: see [`walhook_core::delivery_log`].
//!
//! They go with the state transaction that stores what they tell of, and never hold anything up: not memory, not a
//! delivery, not that transaction. Where there are too many they are left out, and counted; where state transactions
//! are slow again and again, fewer and fewer go with each.
//!
//! # Invariants
//!
//! - Of each attempt that ended there is one line, and one of each end beyond an attempt, or it is counted; of requests
//!   that were not sent for want of something of ours, the first in a row of each queue.
//! - Lines go in the order in which they came.
//! - What waits and what is under way is bounded, in lines and in bytes.

use std::sync::Arc;
use std::time::Duration;

use super::Dispatcher;
use super::outbox::{Leaves, Leaving};
use super::queues::QueueNo;
use walhook_core::attempt::{Asked, DeliveryId, Meaning, Outcome};
use walhook_core::delivery_log::{Entry, Keep, What, excerpt};
use walhook_core::event::{EndpointId, Event};
use walhook_core::persist::{DeadLetter, DeadReason, NO_ENDPOINT};
use walhook_core::tick::Tick;
use walhook_core::waits::Waits;

/// Lines that wait at most, and of one state transaction: twice the outcomes that may wait to be stored.
const LINES_MAX: usize = 2 * super::UNPERSISTED_MAX;

/// The first step up from none.
const LINES_MIN: usize = LINES_MAX / 32;

/// What they take of the memory limit, and at most.
const MEMORY_PARTS: usize = 16;
const BYTES_MAX: usize = 4 << 20;

/// A state transaction that takes longer lets fewer lines go with the next one.
const SLOW: Duration = Duration::from_millis(300);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Journal {
    keep: Keep,
    excerpts: bool,
    /// What stands for no endpoint, shared.
    nowhere: EndpointId,
    lines: Vec<Entry>,
    bytes: usize,
    bytes_max: usize,
    /// Lines that go with a state transaction at most, as things are.
    most: usize,
    /// What goes with the one under way: lines, and their bytes.
    under_way: (usize, usize),
    stored: u64,
    dropped: u64,
}

impl Journal {
    /// Keeps what `keep` says, and of answers the excerpt where `excerpts` says so.
    pub(super) fn new(keep: Keep, excerpts: bool, memory_limit: usize) -> Self {
        Self {
            keep,
            excerpts,
            nowhere: EndpointId::new(NO_ENDPOINT),
            lines: Vec::new(),
            bytes: 0,
            bytes_max: (memory_limit / MEMORY_PARTS).min(BYTES_MAX),
            most: LINES_MAX,
            under_way: (0, 0),
            stored: 0,
            dropped: 0,
        }
    }

    /// Lines that are stored, so far.
    pub(super) fn stored(&self) -> u64 {
        self.stored
    }

    /// Lines that were left out, so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// What they hold in memory, those under way included.
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.under_way.1
    }

    fn write(&mut self, line: Entry) {
        let bytes = line.size_bytes();
        if self.lines.len() >= LINES_MAX || self.bytes() + bytes > self.bytes_max {
            self.dropped += 1;
            return;
        }
        self.bytes += bytes;
        self.lines.push(line);
    }

    fn keeps(&self, what: What, attempt: u32) -> bool {
        match self.keep {
            Keep::All => true,
            Keep::Failures => what != What::Delivered || attempt > 1,
            Keep::None => false,
        }
    }

    /// The lines that go with the next state transaction: the oldest, and those beyond what may go are left out.
    pub(super) fn hand_out(&mut self) -> Vec<Entry> {
        // The next ones are about as many. A buffer that grows to some megabytes is allocated over and over, and the
        // kernel clears all of that each time.
        let next = Vec::with_capacity(self.lines.len().next_power_of_two().min(LINES_MAX));
        let mut lines = std::mem::replace(&mut self.lines, next);
        let beyond = lines.len().saturating_sub(self.most);
        lines.truncate(self.most);
        self.dropped += beyond as u64;
        let bytes =
            if beyond == 0 { self.bytes } else { lines.iter().map(Entry::size_bytes).sum() };
        self.bytes = 0;
        self.under_way = (lines.len(), bytes);
        lines
    }

    /// The state transaction under way is durable; it took so long, and left so many of its lines out.
    pub(super) fn handle_stored(&mut self, took: Duration, dropped: u64) {
        let (lines, _) = std::mem::take(&mut self.under_way);
        let lines = lines as u64;
        let dropped = dropped.min(lines);
        self.stored += lines - dropped;
        self.dropped += dropped;
        self.most = if took > SLOW {
            // At last none go.
            if self.most > LINES_MIN { self.most / 2 } else { 0 }
        } else {
            (self.most * 2).clamp(LINES_MIN, LINES_MAX)
        };
    }
}

impl Dispatcher {
    /// An attempt of a delivery has ended, which is in flight no more and still in its queue; it has waited so far.
    pub(super) fn log_attempt(
        &mut self,
        queue: QueueNo,
        id: DeliveryId,
        (outcome, waits): (&Outcome, Waits),
        now: Tick,
    ) {
        // Who wants no more ends the delivery, whatever it was sent for.
        let may_go_on = outcome.meaning != Meaning::Gone;
        let what = if outcome.delivered() {
            What::Delivered
        } else if may_go_on && self.is_probe(queue, id) {
            What::Probed
        } else {
            What::Failed
        };
        let pending = self.queues.in_use(queue).held_mut(id);
        // A probe's number is taken back, and it was sent all the same.
        let attempt = pending.attempts.max(1);
        if !self.journal.keeps(what, attempt) {
            return;
        }
        let (event, asked) = (Arc::clone(&pending.held.event), pending.origin.asked());
        let line = self.line(&event, self.queues.id(queue).endpoint.clone(), what, now);
        let line =
            Entry { waits, asked, ..line }.of_attempt(attempt, outcome, self.journal.excerpts);
        self.journal.write(line);
    }

    /// A request was not sent for want of something of ours. That is no attempt, and is told once, until one of the
    /// queue's is sent: it is tried again every few seconds. Call it before the queue takes note of that.
    pub(super) fn log_not_sent(
        &mut self,
        queue: QueueNo,
        id: DeliveryId,
        (outcome, waits): (&Outcome, Waits),
        now: Tick,
    ) {
        let in_memory = self.queues.in_use(queue);
        let is_told = in_memory.is_put_off();
        let pending = in_memory.held_mut(id);
        let (event, asked) = (Arc::clone(&pending.held.event), pending.origin.asked());
        if is_told || !self.journal.keeps(What::Failed, 0) {
            return;
        }
        let endpoint = self.queues.id(queue).endpoint.clone();
        let line = self.line(&event, endpoint, What::Failed, now);
        let line = Entry { waits, asked, ..line }.of_attempt(0, outcome, self.journal.excerpts);
        self.journal.write(line);
    }

    /// What leaves memory with the state transaction that is handed out: a row from then on, or counted in a gap.
    pub(super) fn log_left(&mut self, leaving: &Leaving, now: Tick) {
        let what = match leaving.kind {
            Leaves::Skipped(_) => What::Gap,
            Leaves::Deferred(_) | Leaves::Unrouted => What::Deferred(leaving.row.reason),
        };
        if !self.journal.keeps(what, 0) {
            return;
        }
        let row = &leaving.row.id;
        let endpoint = match leaving.kind {
            Leaves::Unrouted => self.journal.nowhere.clone(),
            Leaves::Deferred(_) | Leaves::Skipped(_) => row.queue.endpoint.clone(),
        };
        let asked = row.key.replay.map(Asked::Replay);
        let line = Entry { asked, ..self.line(&leaving.row.event, endpoint, what, now) };
        self.journal.write(line);
    }

    /// A delivery that is still in its queue ends, for its endpoint was removed.
    pub(super) fn log_dropped(&mut self, queue: QueueNo, id: DeliveryId, now: Tick) {
        if !self.journal.keeps(What::Dropped, 0) {
            return;
        }
        let pending = self.queues.in_use(queue).held_mut(id);
        let (event, asked) = (Arc::clone(&pending.held.event), pending.origin.asked());
        let endpoint = self.queues.id(queue).endpoint.clone();
        let line = Entry { asked, ..self.line(&event, endpoint, What::Dropped, now) };
        self.journal.write(line);
    }

    /// A delivery, or an unroutable change, is a dead letter, or stays one.
    pub(super) fn log_dead(&mut self, letter: &DeadLetter, asked: Option<Asked>, now: Tick) {
        let what = What::Dead(letter.reason);
        if !self.journal.keeps(what, 0) {
            return;
        }
        let endpoint = letter.endpoint.as_ref().unwrap_or(&self.journal.nowhere).clone();
        // What the last attempt came to stands in the line before; and what was answered is told only if it may be.
        let is_ours = letter.last_status.is_none();
        let is_told = letter.reason != DeadReason::Exhausted && (self.journal.excerpts || is_ours);
        let excerpt = if is_told { excerpt(&letter.detail) } else { String::new() };
        let status = letter.last_status;
        let asked = asked.or(letter.replay.map(Asked::Replay));
        let line =
            Entry { status, excerpt, asked, ..self.line(&letter.event, endpoint, what, now) };
        self.journal.write(line);
    }

    /// A line that tells of no attempt.
    fn line(&self, event: &Event, endpoint: EndpointId, what: What, now: Tick) -> Entry {
        Entry {
            event: event.id,
            event_type: Arc::clone(&event.event_type),
            account: event.account.clone(),
            endpoint,
            commit_lsn: event.position.commit_lsn(),
            committed_us: event.commit_time_us,
            at_us: self.unix_us(now),
            attempt: 0,
            what,
            status: None,
            failure: None,
            elapsed_us: 0,
            waits: Waits::default(),
            excerpt: String::new(),
            asked: None,
        }
    }
}

#[cfg(test)]
mod tests;
