//! Queues that are to be empty but for what is in flight, and are cleared some deliveries at a time.
//!
//! Nothing is sent to an endpoint whose breaker opens, that is paused, suspended, switched off or removed, or whose row
//! cannot be used. What waits for it in memory leaves, or ends. Of one endpoint that may be hundreds of
//! thousands, and so may be what stands behind one delivery that failed; while they are moved nobody else has a turn.
//! So a queue that holds many stands in a line, in turns of accounts, and has a few moved in each round of polls.
//!
//! # Invariants
//!
//! - While a queue is cleared nothing of it is sent, nor read back.
//! - What becomes of its deliveries is found anew in each turn, and is nothing once the reason is gone: then what is
//!   left is sent.
//! - Of those that share a key, what leaves takes all with it that stands behind it by then. So what is left is older
//!   than every row of its keys, and may be sent at any moment.
//! - What ends is the oldest, which waits to become a dead letter no sooner than the state database takes it.

use std::collections::BTreeMap;

use super::super::lane::{Origin, Pending};
use super::Dispatcher;
use super::defer::Exit;
use super::ending::{End, Ended};
use super::operator::paused;
use super::queues::{AccountNo, QueueNo};
use super::turns::Turns;
use walhook_core::attempt::DeliveryId;
use walhook_core::persist::{DeadReason, DeferReason};
use walhook_core::tick::Tick;

/// One queue has this part, in its turn, of what is moved in one round.
const PART_IN_TURN: usize = 4;

/// This part of it leaves in any case, so that much does not wait for a place in the line.
const PART_AT_LEAST: usize = 16;

/// Queues that are looked at in one round.
const LOOKED_AT_ONCE: usize = 64;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Clearing {
    /// Deliveries that are moved in one round.
    at_once: usize,
    line: Turns<AccountNo, QueueNo>,
    /// What of a queue in line is to leave with others that have left.
    later: BTreeMap<QueueNo, Vec<Later>>,
    /// Deliveries that were moved since the last round began.
    moved: usize,
    /// The last round has moved none: all wait for the state database.
    is_stuck: bool,
}

impl Clearing {
    /// Nothing is to be moved; in one round, so many deliveries are.
    pub(super) fn new(at_once: usize) -> Self {
        let (line, later, moved, is_stuck) = Default::default();
        Self { at_once, line, later, moved, is_stuck }
    }

    /// Deliveries that are moved of one queue in its turn.
    fn in_turn(&self) -> usize {
        self.at_once.div_ceil(PART_IN_TURN)
    }

    /// Deliveries that leave in any case.
    fn at_least(&self) -> usize {
        self.at_once.div_ceil(PART_AT_LEAST)
    }

    /// Deliveries that may yet be moved in this round.
    fn left(&self) -> usize {
        self.at_once.saturating_sub(self.moved)
    }

    /// These of the queue are to leave so, oldest first.
    fn put_later(&mut self, queue: QueueNo, ids: Vec<DeliveryId>, exit: Exit) {
        if !ids.is_empty() {
            self.later.entry(queue).or_default().push(Later { ids, exit });
        }
    }

    /// The newest of the queue that are to leave, and how.
    fn take_later(&mut self, queue: QueueNo, at_most: usize) -> Option<(Vec<DeliveryId>, Exit)> {
        let of_queue = self.later.get_mut(&queue)?;
        let Later { ids, exit } = of_queue.last_mut()?;
        let (some, exit) = (ids.split_off(ids.len().saturating_sub(at_most)), *exit);
        if ids.is_empty() {
            of_queue.pop();
        }
        if of_queue.is_empty() {
            self.later.remove(&queue);
        }
        Some((some, exit))
    }

    /// The state database has taken some: more may wait for it.
    pub(super) fn note_taken(&mut self) {
        self.is_stuck = false;
    }

    /// Whether some can be moved now.
    pub(super) fn is_ready(&self) -> bool {
        self.line.len() > 0 && !self.is_stuck
    }
}

/// These are to leave so.
#[derive(Debug)]
struct Later {
    ids: Vec<DeliveryId>,
    exit: Exit,
}

/// What becomes of all that waits in memory for an endpoint.
enum Fate {
    /// It leaves, for this reason; operators' retries end so, or stay.
    Leaves(DeferReason, Option<End>),
    /// It ends so; `None`: it is dropped.
    Ends(Option<End>),
}

impl Dispatcher {
    /// What waits in memory for the queue's endpoint leaves, or ends: some of it now.
    pub(super) fn clear(&mut self, queue: QueueNo, now: Tick) {
        if self.queues.is_cleared(queue) || self.queues.pending(queue).is_none() {
            return;
        }
        if self.clear_some(queue, self.deferral.clearing.left(), now) {
            self.begin_clearing(queue, now);
        }
    }

    /// These leave memory, oldest first, with all that stand behind them. Most of them later, where they are many.
    pub(super) fn leave_together(
        &mut self,
        queue: QueueNo,
        mut ids: Vec<DeliveryId>,
        exit: Exit,
        now: Tick,
    ) {
        let clearing = &mut self.deferral.clearing;
        let at_once = clearing.left().max(clearing.at_least());
        if ids.len() > at_once {
            clearing.put_later(queue, ids.split_off(at_once), exit);
            self.begin_clearing(queue, now);
        }
        self.deferral.clearing.moved += ids.len();
        self.leave(queue, &ids, exit, now);
    }

    /// Goes on with the queues in line. Call before [`Dispatcher::poll_attempt`].
    pub(super) fn clear_next(&mut self, now: Tick) {
        self.deferral.clearing.moved = 0;
        if self.door.is_stopping() {
            return;
        }
        for _ in 0..self.deferral.clearing.line.len().min(LOOKED_AT_ONCE) {
            let left = self.deferral.clearing.left();
            let next = if left > 0 { self.deferral.clearing.line.pop() } else { None };
            let Some((account, queue)) = next else { break };
            // It may have been emptied otherwise, and forgotten.
            let is_there = self.queues.pending(queue).is_some();
            let at_most = left.min(self.deferral.clearing.in_turn());
            if is_there && self.clear_some(queue, at_most, now) {
                self.deferral.clearing.line.push(account, queue);
            } else {
                self.end_clearing(queue, now);
            }
        }
        self.deferral.clearing.is_stuck = self.deferral.clearing.moved == 0;
    }

    fn begin_clearing(&mut self, queue: QueueNo, now: Tick) {
        if !self.queues.set_cleared(queue, true) {
            return;
        }
        let held_from = self.held_from(queue);
        self.queues.in_use(queue).hold_from(held_from);
        self.queues.refresh(queue, now);
        self.sync(queue);
        let account = self.queues.at(queue).account();
        self.deferral.clearing.line.push(account, queue);
        self.deferral.clearing.is_stuck = false;
    }

    fn end_clearing(&mut self, queue: QueueNo, now: Tick) {
        self.deferral.clearing.later.remove(&queue);
        if self.queues.get(queue).is_none() {
            return;
        }
        self.queues.set_cleared(queue, false);
        let held_from = self.held_from(queue);
        if let Some(in_memory) = self.queues.pending_mut(queue) {
            in_memory.hold_from(held_from);
            self.queues.refresh(queue, now);
            self.sync(queue);
            self.queues.rest_if_idle(queue);
        }
        self.look_after(queue, now);
    }

    /// From where on nothing of the queue is sent for now.
    pub(super) fn held_from(&self, queue: QueueNo) -> Option<DeliveryId> {
        let is_cleared = self.queues.is_cleared(queue);
        if is_cleared { Some(DeliveryId(0)) } else { self.routing.starts.held_from(queue) }
    }

    /// Moves some of the queue. Whether there is more.
    fn clear_some(&mut self, queue: QueueNo, at_most: usize, now: Tick) -> bool {
        if let Some((ids, exit)) = self.deferral.clearing.take_later(queue, at_most) {
            // What came since may share a key with one of them, and none with what has left.
            let mut older = self.queues.in_use(queue).with_those_behind(&ids);
            let newest = older.split_off(older.len().saturating_sub(at_most));
            self.deferral.clearing.put_later(queue, older, exit);
            self.deferral.clearing.moved += newest.len();
            self.leave(queue, &newest, exit, now);
            return true;
        }
        match self.fate(queue, now) {
            None => false,
            Some(Fate::Leaves(reason, end)) => self.leave_newest(queue, reason, end, at_most, now),
            Some(Fate::Ends(why)) => self.end_oldest(queue, why.as_ref(), at_most, now),
        }
    }

    fn fate(&mut self, queue: QueueNo, now: Tick) -> Option<Fate> {
        let stopped = self.why_stopped(queue);
        if stopped == Some(DeferReason::Paused) {
            return Some(Fate::Leaves(DeferReason::Paused, Some(paused())));
        }
        let lane = self.queues.lane_id(queue)?;
        let (_, lane) = self.queues.lane(lane);
        let routes = self.routing.router.get_pinned(lane.routes(), now);
        let unusable =
            routes.and_then(|routes| self.usable(&routes, &self.queues.id(queue).endpoint).err());
        match (stopped, unusable) {
            (Some(DeferReason::Overflow), why) => {
                let end = why.map(|why| why.unwrap_or_else(removed));
                Some(Fate::Leaves(DeferReason::Overflow, end))
            }
            (_, Some(why)) => Some(Fate::Ends(why)),
            (stopped, None) => stopped.map(|reason| Fate::Leaves(reason, None)),
        }
    }

    /// The newest leave; operators' retries, which are dead letters meanwhile, end so or stay. Whether there is more.
    fn leave_newest(
        &mut self,
        queue: QueueNo,
        reason: DeferReason,
        end: Option<End>,
        at_most: usize,
        now: Tick,
    ) -> bool {
        let at_most = at_most.max(self.deferral.clearing.at_least());
        let is_retry = |pending: &Pending| matches!(pending.origin, Origin::Retry { .. });
        let goes = |pending: &&Pending| end.is_some() || !is_retry(pending);
        let idle = self.queues.in_use(queue).idle().rev().filter(goes);
        let mut ids: Vec<(DeliveryId, bool)> =
            idle.map(|pending| (pending.id, is_retry(pending))).take(at_most + 1).collect();
        let is_more = ids.len() > at_most;
        ids.truncate(at_most);
        ids.reverse();
        self.deferral.clearing.moved += ids.len();
        let (retries, others): (Vec<_>, Vec<_>) = ids.into_iter().partition(|(_, retry)| *retry);
        for (id, _) in retries {
            if let Some(end) = &end {
                self.die(queue, id, end.clone(), now);
                self.queues.rest_if_idle(queue);
            }
        }
        let others: Vec<DeliveryId> = others.into_iter().map(|(id, _)| id).collect();
        self.leave(queue, &others, Exit::Other(reason), now);
        is_more
    }

    /// The oldest end, or are dropped. Requests in flight end by themselves. Whether there is more.
    fn end_oldest(&mut self, queue: QueueNo, why: Option<&End>, at_most: usize, now: Tick) -> bool {
        let account = &self.queues.at(queue).id().account;
        if why.is_some() && !self.outbox.takes_letters(account) {
            return true;
        }
        let idle = self.queues.in_use(queue).idle();
        let mut ids: Vec<(DeliveryId, Origin)> =
            idle.map(|pending| (pending.id, pending.origin)).take(at_most + 1).collect();
        let is_more = ids.len() > at_most;
        ids.truncate(at_most);
        self.deferral.clearing.moved += ids.len();
        for (delivery, origin) in ids {
            self.give_up(queue, delivery, origin, why, now);
            self.queues.rest_if_idle(queue);
        }
        self.sync(queue);
        self.look_after(queue, now);
        is_more
    }

    /// Ends one for an endpoint that cannot be used, or is gone (`None`).
    fn give_up(
        &mut self,
        queue: QueueNo,
        delivery: DeliveryId,
        origin: Origin,
        why: Option<&End>,
        now: Tick,
    ) {
        match (why, origin) {
            (Some(end), _) => self.die(queue, delivery, end.clone(), now),
            (None, Origin::Stream { .. } | Origin::Deferred { .. }) => {
                self.door.reports.dropped();
                self.settle(queue, delivery, Ended::Dropped, now);
            }
            (None, Origin::Replay(replay)) => {
                self.door.reports.dropped();
                self.log_dropped(queue, delivery, now);
                self.end_replayed(replay, |counts| counts.dropped += 1);
                self.forget(queue, delivery);
            }
            (None, Origin::Retry { .. }) => self.die(queue, delivery, removed(), now),
        }
    }
}

/// How an operator's retry ends whose endpoint is gone.
fn removed() -> End {
    let (reason, detail) = (DeadReason::EndpointDisabled, "the endpoint was removed".to_owned());
    End { reason, detail, last_status: None }
}

#[cfg(test)]
mod tests;
