//! Replays: past events that are sent again, a few at a time, in the lanes of the live ones.
//!
//! Whoever feeds them reads the past and routes it. Here a replayed delivery holds no keys and waits for
//! none, and has one attempt. Then it ends, or is deferred under the replay's id, as a row of its own:
//! `deferred` tells rows of one event and endpoint apart by the replay. So is what goes to an endpoint to
//! which nothing is sent now (its breaker is open, it is paused), or which takes its time: a replay
//! reads on, whatever single endpoints do, and holds neither WAL nor the replays behind it. While its
//! queue is suspended it is counted in the gap, like all else.
//!
//! Few are taken in at once, so what an account's own live events wait for them is bounded by as many
//! requests; other accounts are protected by the scheduler, as from anything.
//!
//! # Counts
//!
//! Each delivery of a replay is counted once, in the state transaction in which it need not be in memory
//! any more: taken, dead, dropped, in a gap, or deferred. The last are as many as rows were inserted, and
//! whoever removes such a row counts in the same statement how it went. So what waits is exactly the
//! rows that are there, whenever a crash comes. What is fed again after it counts again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::super::lane::Origin;
use super::super::schedule::Pool;
use super::Dispatcher;
use super::defer::Exit;
use super::fan_out::To;
use super::outbox::{Leaves, Leaving};
use super::queues::QueueNo;
use walhook_core::attempt::DeliveryId;
use walhook_core::event::{EndpointId, Event};
use walhook_core::persist::{DeadLetter, DeferReason, PersistBatch, ReplayCounts, Retried};
use walhook_core::tick::Tick;

/// Replayed deliveries in memory at once: as many requests in flight, at most.
const REPLAYS_MAX: usize = 16;

/// While there are so many, those that are older leave memory, also with their requests in flight.
const HOLD: Duration = Duration::from_secs(1);

/// Replays that have ended, of which outcomes may still come.
const ENDED_MAX: usize = 64;

/// What is told of replays.
#[derive(Debug)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub enum ReplayInput {
    /// One begins or goes on, with what earlier leaders counted. Known ones keep their counts.
    Start(ReplayCounts),
    /// A delivery is to be sent again.
    Deliver(Replay),
    /// One has come to its end, or was cancelled: what is left of it in memory is not deferred.
    End(i64),
}

/// A delivery to be sent again.
#[derive(Debug)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Replay {
    /// The replay's job.
    pub job: i64,
    /// What to send.
    pub event: Arc<Event>,
    /// Where to.
    pub endpoint: EndpointId,
}

#[derive(Debug, Default)]
pub(super) struct Replays {
    /// Those that are being fed.
    counts: BTreeMap<i64, ReplayCounts>,
    /// The last that came to their end: one that was cancelled has requests in flight.
    ended: BTreeMap<i64, ReplayCounts>,
    /// Those whose counts are not stored.
    changed: BTreeMap<i64, ReplayCounts>,
    letters: Vec<DeadLetter>,
    /// Deliveries in memory that are no rows.
    pending: usize,
    /// Those that were queued, the oldest first; some have left since.
    queued: VecDeque<(Tick, QueueNo, DeliveryId)>,
}

impl Replays {
    /// What the next state transaction is to store.
    pub(super) fn hand_out(&mut self, batch: &mut PersistBatch) {
        batch.replayed = std::mem::take(&mut self.changed).into_values().collect();
        batch.dead_letters.append(&mut self.letters);
    }

    /// Whether it is being fed.
    pub(super) fn is_known(&self, job: i64) -> bool {
        self.counts.contains_key(&job)
    }

    /// A delivery was queued.
    pub(super) fn queued(&mut self, queue: QueueNo, id: DeliveryId, now: Tick) {
        self.queued.push_back((now, queue, id));
    }

    /// One delivery fewer is in memory without a row.
    pub(super) fn leave_memory(&mut self) {
        assert!(self.pending > 0, "a replayed delivery leaves memory that was not in it");
        self.pending -= 1;
        if self.pending == 0 {
            self.queued.clear();
        }
    }

    /// A row is in the batch that is handed out, or in the gap of its queue.
    pub(super) fn count_left(&mut self, job: i64, in_gap: bool) {
        if job == 0 {
            return;
        }
        self.count(job, |counts| {
            let count = if in_gap { &mut counts.in_gaps } else { &mut counts.deferred };
            *count += 1;
        });
    }

    fn count(&mut self, job: i64, add: impl FnOnce(&mut ReplayCounts)) {
        let counts = self.counts.get_mut(&job).or_else(|| self.ended.get_mut(&job));
        if let Some(counts) = counts {
            add(counts);
            self.changed.insert(job, *counts);
        }
    }

    fn end(&mut self, job: i64) {
        self.ended.extend(self.counts.remove(&job).map(|counts| (job, counts)));
        if self.ended.len() > ENDED_MAX {
            self.ended.pop_first();
        }
    }

    /// One that was cancelled is neither queued nor deferred any more.
    pub(super) fn count_dropped(&mut self, job: i64) {
        self.count(job, |counts| counts.dropped += 1);
    }

    /// When deliveries are to leave memory although nothing else happens.
    pub(super) fn deadline(&self) -> Option<Tick> {
        let oldest = self.queued.front().filter(|_| self.pending >= REPLAYS_MAX);
        oldest.map(|(since, ..)| *since + HOLD)
    }
}

impl Dispatcher {
    /// Whether there is room for more of a replay.
    #[must_use]
    pub fn wants_replay(&self) -> bool {
        self.replays.pending < REPLAYS_MAX && self.wants_input()
    }

    /// Takes what is told of replays. Call only while [`Dispatcher::wants_replay`] says yes.
    pub(super) fn handle_replay(&mut self, input: ReplayInput, now: Tick) {
        match input {
            ReplayInput::Start(counts) => {
                self.replays.ended.remove(&counts.job);
                self.replays.counts.entry(counts.job).or_insert(counts);
            }
            ReplayInput::End(job) => self.replays.end(job),
            ReplayInput::Deliver(Replay { job, event, endpoint }) => {
                self.replays.pending += 1;
                self.arrive(event, To::One { endpoint, dead_letter: None, job }, now);
            }
        }
    }

    /// Why a delivery of a replay is deferred as it comes, where it is: it would wait.
    pub(super) fn why_defer_replayed(&self, queue: QueueNo, now: Tick) -> Option<DeferReason> {
        if self.is_suspended(queue) {
            return Some(DeferReason::Overflow);
        }
        let it = self.queues.at(queue);
        if self.endpoints.is_paused(&it.id().endpoint) {
            return Some(DeferReason::Paused);
        }
        if it.deferred().is_some_and(|deferred| deferred.breaker.is_some()) {
            return Some(DeferReason::Breaker);
        }
        let in_memory = it.pending().filter(|in_memory| !in_memory.is_empty())?;
        let waits = |pending: &super::super::lane::Pending| now.since(pending.queued_at) >= HOLD;
        let is_slow = in_memory.hold.pool(now) == Pool::Slow
            || in_memory.first_ready().is_some_and(waits)
            || in_memory.len() >= self.settings.queue_max;
        is_slow.then_some(DeferReason::Overflow)
    }

    /// Where replays have all the room that they may have, what waits for too long makes room. A request
    /// in flight goes on; its outcome finds a row.
    pub(super) fn release_replays(&mut self, now: Tick) {
        while self.replays.deadline().is_some_and(|due| due <= now) && !self.door.is_stopping() {
            let Some((_, queue, id)) = self.replays.queued.pop_front() else { return };
            // It may have left since, and its queue been forgotten.
            let Some(in_memory) = self.queues.pending(queue) else { continue };
            let is_ours = |origin| matches!(origin, Origin::Retry { dead_letter: None, .. });
            if !in_memory.get(id).is_some_and(|pending| is_ours(pending.origin)) {
                continue;
            }
            if in_memory.sent().any(|pending| pending.id == id) {
                self.keep_in_flight(queue, id);
            } else {
                let exit = Exit::Other(DeferReason::Overflow);
                self.leave(queue, &[id], exit, now);
            }
        }
    }

    /// What is on its way into the table; nothing where it is of a replay that was cancelled meanwhile.
    pub(super) fn unless_cancelled(&mut self, leaving: Leaving, now: Tick) -> Option<Leaving> {
        let Leaving { row, kind, counted, bytes, .. } = &leaving;
        let replay = row.id.key.replay;
        if replay == 0 || self.replays.is_known(replay) {
            return Some(leaving);
        }
        let (key, counted, bytes) = (&row.id.key, *counted, *bytes);
        let (Leaves::Deferred(queue) | Leaves::Skipped(queue)) = *kind else {
            return Some(leaving);
        };
        if *kind == Leaves::Deferred(queue) {
            let backlog = &mut self.queues.with_row(queue).backlog;
            if backlog.is_loaded(key) {
                // In flight; its outcome will want the row. Who cancelled it has the row discarded.
                return Some(leaving);
            }
            backlog.skip(key);
        }
        self.replays.count_dropped(replay);
        self.outbox.forget_leaving(bytes);
        self.outdate(queue);
        self.free(leaving.held, counted);
        // Rows behind it have waited for it to be stored.
        self.look_after(queue, now);
        None
    }

    /// An operator's retry, or a delivery of a replay, has ended: well, or with this letter.
    pub(super) fn end_retry(
        &mut self,
        dead_letter: Option<i64>,
        job: i64,
        letter: Option<DeadLetter>,
    ) {
        if let Some(dead_letter) = dead_letter {
            self.outbox.retried(Retried { dead_letter, job, error: letter });
            return;
        }
        let dead = letter.is_some();
        let letter = letter.filter(|_| self.replays.is_known(job));
        self.replays.letters.extend(letter.map(|letter| DeadLetter { replay: job, ..letter }));
        self.end_replayed(job, |counts| match dead {
            true => counts.failed += 1,
            false => counts.done += 1,
        });
    }

    /// A delivery of a replay has ended.
    pub(super) fn end_replayed(&mut self, job: i64, count: impl FnOnce(&mut ReplayCounts)) {
        self.replays.leave_memory();
        self.replays.count(job, count);
        self.outbox.touch();
    }
}

#[cfg(test)]
mod tests;
