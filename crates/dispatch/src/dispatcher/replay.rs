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
//! requests, and by the rows that are read back where they were deferred; other accounts are protected by the
//! scheduler, as from anything.
//!
//! # Counts
//!
//! Each delivery of a replay is counted once, in the state transaction in which it need not be in memory
//! any more: taken, dead, dropped, in a gap, or deferred. The last are as many as rows were inserted, and
//! whoever removes such a row counts in the same statement how it went. So what waits is exactly the
//! rows that are there, whenever a crash comes. What is fed again after it counts again.

use std::sync::Arc;

use super::super::lane::Origin;
use super::super::schedule::Pool;
use super::Dispatcher;
use super::defer::Exit;
use super::deferred_queue::DeferredQueue;
use super::outbox::{Leaves, Leaving};
use super::queues::QueueNo;
use super::replays::{HOLD, LONG_QUEUE};
use super::waiting::To;
use walhook_core::attempt::Asked;
use walhook_core::event::{EndpointId, Event};
use walhook_core::id::ReplayId;
use walhook_core::persist::{DeadLetter, DeferReason, ReplayCounts};
use walhook_core::tick::Tick;

/// What is told of replays.
#[derive(Debug)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub enum ReplayInput {
    /// One begins or goes on, with what earlier leaders counted. Known ones keep their counts.
    Start(ReplayId, ReplayCounts),
    /// A delivery is to be sent again.
    Deliver(Replay),
    /// One has come to its end, or was cancelled: what is left of it in memory is not deferred.
    End(ReplayId),
}

/// A delivery to be sent again.
#[derive(Debug)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Replay {
    /// The replay.
    pub replay: ReplayId,
    /// What to send.
    pub event: Arc<Event>,
    /// Where to.
    pub endpoint: EndpointId,
}

impl Dispatcher {
    /// Whether there is room for more of a replay.
    #[must_use]
    pub fn wants_replay(&self) -> bool {
        self.replays.have_room() && self.wants_input()
    }

    /// Takes what is told of replays. Call only while [`Dispatcher::wants_replay`] says yes.
    pub(super) fn handle_replay(&mut self, input: ReplayInput, now: Tick) {
        match input {
            ReplayInput::Start(replay, counts) => self.replays.start(replay, counts),
            ReplayInput::End(replay) => self.replays.end(replay),
            ReplayInput::Deliver(Replay { replay, event, endpoint }) => {
                self.replays.enter_memory();
                self.arrive(event, To::One { endpoint, asked: Asked::Replay(replay) }, now);
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
        if it.deferred().is_some_and(DeferredQueue::is_open) {
            return Some(DeferReason::Breaker);
        }
        let in_memory = it.pending().filter(|in_memory| !in_memory.is_empty())?;
        let waits =
            |pending: &super::super::lane::Pending| now.since(pending.waits_since()) >= HOLD;
        let is_slow = in_memory.health().pool(now) == Pool::Slow
            || in_memory.first_ready().is_some_and(waits)
            || in_memory.len() >= LONG_QUEUE;
        is_slow.then_some(DeferReason::Held)
    }

    /// Where replays have all the room that they may have, what waits for too long makes room. A request
    /// in flight goes on; its outcome finds a row.
    pub(super) fn release_replays(&mut self, now: Tick) {
        if self.door.is_stopping() {
            return;
        }
        while let Some((queue, id)) = self.replays.take_overdue(now) {
            // It may have left since, and its queue been forgotten.
            let Some(in_memory) = self.queues.pending(queue) else { continue };
            let is_ours = |origin| matches!(origin, Origin::Replay(_));
            if !in_memory.get(id).is_some_and(|pending| is_ours(pending.origin)) {
                continue;
            }
            if in_memory.sent().any(|pending| pending.id == id) {
                self.keep_in_flight(queue, id);
            } else {
                let exit = Exit::Other(DeferReason::Held);
                self.leave(queue, &[id], exit, now);
            }
        }
    }

    /// What is on its way into the table; nothing where it is of a replay that was cancelled meanwhile.
    pub(super) fn unless_cancelled(
        &mut self,
        leaving: Box<Leaving>,
        now: Tick,
    ) -> Option<Box<Leaving>> {
        let Leaving { row, kind, counted, bytes, .. } = &*leaving;
        let cancelled = row.id.key.replay.filter(|replay| !self.replays.is_known(*replay));
        let Some(replay) = cancelled else { return Some(leaving) };
        let (key, counted, bytes) = (&row.id.key, *counted, *bytes);
        let (Leaves::Deferred(queue) | Leaves::Skipped(queue)) = *kind else {
            return Some(leaving);
        };
        if *kind == Leaves::Deferred(queue) {
            let backlog = self.queues.with_row(queue).backlog_mut();
            if backlog.needs_row(key) {
                // Who cancelled it has the row discarded.
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

    /// A delivery of a replay has ended: well, or with this letter.
    pub(super) fn end_replay(&mut self, replay: ReplayId, letter: Option<DeadLetter>) {
        let dead = letter.is_some();
        if let Some(letter) = letter {
            self.replays.die(replay, letter);
        }
        self.end_replayed(replay, |counts| match dead {
            true => counts.failed += 1,
            false => counts.done += 1,
        });
    }

    /// A delivery of a replay has ended.
    pub(super) fn end_replayed(&mut self, replay: ReplayId, count: impl FnOnce(&mut ReplayCounts)) {
        self.replays.leave_memory();
        self.replays.count(replay, count);
        self.outbox.touch();
    }
}

#[cfg(test)]
mod tests;
