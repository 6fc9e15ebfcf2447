//! What an operator asks of an endpoint: that nothing is sent to it for a while, or that all flows again.
//!
//! What waits in memory for a paused endpoint is deferred, and so is all that arrives. Nothing is read
//! back, and the clock of its queues stands still: neither `retry_for` nor `disable_after` counts, so a
//! pause ends no delivery. What is in flight ends by itself. Operators' retries are not
//! deferred: they are dead letters meanwhile, and stay so.
//!
//! A pause is of the endpoint, not of one account's queue, and outlives the process: the table
//! `endpoint_state` says since when. That and the end of the job are stored in one transaction, so a
//! crash in between has the next leader do it again, which changes nothing more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::super::lane::{Origin, Pending};
use super::super::settle::{Place, Settlement};
use super::defer::Exit;
use super::ending::End;
use super::queues::QueueNo;
use super::{Dispatcher, EndpointChange, EndpointChanged};
use walhook_core::attempt::{DeliveryId, Outcome};
use walhook_core::event::{AccountId, EndpointId, Event};
use walhook_core::id::{DeadLetterId, JobId};
use walhook_core::persist::{
    DeadLetter, DeadReason, DeferReason, JobDone, PauseEndpoint, QueueId, Retried, RowKey,
};
use walhook_core::tick::Tick;

/// What operators' retries to a paused endpoint end with.
const PAUSED: &str = "the endpoint is paused; `walhook endpoints resume` lets its deliveries flow";

/// What an operator asks.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub enum OperatorInput {
    /// Nothing is to be sent to the endpoint until it is resumed.
    Pause {
        /// The job that asks.
        job: JobId,
        /// Which.
        endpoint: EndpointId,
        /// Why, for a person.
        #[cfg_attr(feature = "record", serde(with = "walhook_core::record::text"))]
        reason: String,
    },
    /// Deliveries to the endpoint flow again, whoever stopped them.
    Resume {
        /// The job that asks.
        job: JobId,
        /// Which.
        endpoint: EndpointId,
    },
    /// These rows of the table `deferred` were made due.
    RowsChanged(Vec<(QueueId, RowKey)>),
    /// These rows are removed by a transaction that commits from now on, if it does. Where it has, [`Self::RowsRemoved`]
    /// follows, before the next of this kind; where it does not follow, nobody says whether it has.
    RowsBeingRemoved(Vec<(QueueId, RowKey)>),
    /// These rows were removed, as was said before, and are not counted in the table `backlog` any more.
    RowsRemoved(Vec<(QueueId, RowKey)>),
    /// Rows of these queues are to be tried as soon as may be, and had no time that they waited for.
    Hurry(Vec<QueueId>),
}

impl Dispatcher {
    /// Does what an operator asks. False: it is so already.
    pub(super) fn handle_operator(&mut self, input: OperatorInput, now: Tick) -> bool {
        let (job, changed) = match input {
            OperatorInput::Pause { job, endpoint, reason } => {
                (job, self.pause(endpoint, reason, now))
            }
            OperatorInput::Resume { job, endpoint } => (job, self.resume(endpoint, now)),
            OperatorInput::RowsChanged(rows) => {
                self.look_again(rows, false, now);
                return true;
            }
            OperatorInput::RowsBeingRemoved(rows) => {
                self.expect_removals(&rows);
                return true;
            }
            OperatorInput::RowsRemoved(rows) => {
                self.look_again(rows, true, now);
                return true;
            }
            OperatorInput::Hurry(queues) => {
                self.try_at_once(queues, now);
                return true;
            }
        };
        self.outbox.end_job(JobDone { job, done: i64::from(changed) });
        changed
    }

    fn pause(&mut self, endpoint: EndpointId, reason: String, now: Tick) -> bool {
        if self.endpoints.is_paused(&endpoint) {
            return false;
        }
        // Its breaker's time ends where the pause begins.
        for queue in self.queues_of(&endpoint) {
            self.forget_breaker(queue, now);
        }
        let since_us = self.unix_us(now);
        self.endpoints.pause(&endpoint, since_us);
        let detail = reason.clone();
        self.outbox.pause(PauseEndpoint { endpoint: endpoint.clone(), reason, since_us });
        let mut queues = self.queues.of_endpoint(&endpoint).to_vec();
        queues.sort_unstable_by_key(|queue| self.queues.lane_id(*queue));
        for queue in queues {
            if let Some(in_memory) = self.queues.pending_mut(queue) {
                in_memory.health_mut().forget_failures();
            }
            self.clear(queue, now);
        }
        self.tell_of_operator(endpoint, EndpointChange::Paused, detail);
        true
    }

    fn resume(&mut self, endpoint: EndpointId, now: Tick) -> bool {
        let detail = "an operator resumed it".to_owned();
        if self.switch_on(&endpoint) {
            self.tell_of_operator(endpoint, EndpointChange::Enabled, detail);
            return true;
        }
        let Some(since_us) = self.endpoints.resume(&endpoint) else { return false };
        let stood_us = self.unix_us(now).saturating_sub(since_us).max(0);
        self.outbox.enable(endpoint.clone());
        for queue in self.queues_of(&endpoint) {
            if let Some(deferred) = self.queues.deferred_mut(queue) {
                deferred.end_pause(stood_us, now);
            }
            self.outdate(queue);
            self.look_after(queue, now);
        }
        self.tell_of_operator(endpoint, EndpointChange::Resumed, detail);
        true
    }

    fn tell_of_operator(&mut self, endpoint: EndpointId, change: EndpointChange, detail: String) {
        let account = self.account_of(&endpoint);
        self.tell(EndpointChanged { endpoint, account, change, detail });
    }

    /// Whose the endpoint is, as far as its routes or what waits for it tell.
    fn account_of(&self, endpoint: &EndpointId) -> Option<AccountId> {
        let of_queue = || {
            let last = self.queues.of_endpoint(endpoint).last()?;
            Some(&self.queues.id(*last).account)
        };
        self.routing.router.owner(endpoint).or_else(of_queue).cloned()
    }

    /// Rows of the table were made due, or `removed`. Those that wait in memory for their turn are read anew,
    /// and endpoints whose breaker is open are tried at once.
    fn look_again(&mut self, rows: Vec<(QueueId, RowKey)>, removed: bool, now: Tick) {
        let mut by_queue: BTreeMap<QueueId, BTreeSet<RowKey>> = BTreeMap::new();
        for (queue, key) in rows {
            by_queue.entry(queue).or_default().insert(key);
        }
        for (queue, keys) in by_queue {
            // Somebody's rows that we may know nothing of.
            let Some(queue) = self.queues.find(&queue) else { continue };
            let Some(deferred) = self.queues.deferred_mut(queue) else { continue };
            for key in &keys {
                deferred.backlog_mut().look_again(key, now);
            }
            self.unload(queue, &keys, now);
            // With what has left memory, nothing may be known any more.
            if let Some(deferred) = self.queues.deferred_mut(queue).filter(|_| removed) {
                keys.iter().for_each(|key| deferred.backlog_mut().removed_by_others(key));
                self.outdate(queue);
            }
            self.look_after(queue, now);
            self.bring_forward(queue, now);
        }
    }

    /// These rows may be gone from now on; of those that were told before, nobody says that any more.
    fn expect_removals(&mut self, rows: &[(QueueId, RowKey)]) {
        for queue in std::mem::take(&mut self.deferral.removing) {
            if let Some(deferred) = self.queues.deferred_mut(queue) {
                deferred.backlog_mut().forget_removals();
            }
        }
        for (queue, key) in rows {
            // Somebody's rows that we may know nothing of.
            let Some(queue) = self.queues.find(queue) else { continue };
            let Some(deferred) = self.queues.deferred_mut(queue) else { continue };
            deferred.backlog_mut().may_be_removed(key);
            if self.deferral.removing.last() != Some(&queue) {
                self.deferral.removing.push(queue);
            }
        }
    }

    /// Their rows wait for nothing but their turn, which an open breaker keeps from coming: their endpoints are tried
    /// at once. Nothing is known of rows that would change.
    fn try_at_once(&mut self, queues: Vec<QueueId>, now: Tick) {
        for queue in queues {
            if let Some(queue) = self.queues.find(&queue) {
                self.bring_forward(queue, now);
            }
        }
    }

    /// What stands behind one of them in memory leaves with it: it comes back later than they do.
    fn unload(&mut self, queue: QueueNo, keys: &BTreeSet<RowKey>, now: Tick) {
        let Some(in_memory) = self.queues.pending(queue) else { return };
        let is_row = |p: &&Pending| {
            matches!(p.origin, Origin::Deferred { .. }) && keys.contains(&p.row_key())
        };
        let ids: Vec<DeliveryId> =
            in_memory.idle().filter(is_row).map(|pending| pending.id).collect();
        let ids = in_memory.with_those_behind(&ids);
        self.leave_together(queue, ids, Exit::Other(DeferReason::Behind), now);
    }

    /// The endpoint's queues that go by way of the table.
    fn queues_of(&self, endpoint: &EndpointId) -> Vec<QueueNo> {
        let has_rows = |no: &QueueNo| self.queues.deferred(*no).is_some();
        let of_endpoint = self.queues.of_endpoint(endpoint).iter().copied();
        let mut queues: Vec<QueueNo> = of_endpoint.filter(has_rows).collect();
        queues.sort_unstable_by(|a, b| self.queues.id(*a).cmp(self.queues.id(*b)));
        queues
    }

    /// For how long the endpoint has been paused.
    pub(super) fn paused_us(&self, endpoint: &EndpointId, now: Tick) -> i64 {
        let since = self.endpoints.paused_since_us(endpoint);
        since.map_or(0, |since| self.unix_us(now).saturating_sub(since).max(0))
    }

    /// An operator's retry ends before it was queued: its endpoint is paused.
    pub(super) fn refuse_paused(
        &mut self,
        event: &Arc<Event>,
        endpoint: EndpointId,
        dead_letter: DeadLetterId,
        job: JobId,
    ) {
        let letter = DeadLetter {
            event: Arc::clone(event),
            endpoint: Some(endpoint),
            reason: DeadReason::Exhausted,
            detail: PAUSED.to_owned(),
            attempts: 0,
            last_status: None,
            history: Vec::new(),
            replay: None,
        };
        self.outbox.retried(Retried { dead_letter, job, error: Some(letter) });
    }
}

/// How operators' retries to a paused endpoint end.
pub(super) fn paused() -> End {
    End { reason: DeadReason::Exhausted, detail: PAUSED.to_owned(), last_status: None }
}

/// What becomes of a delivery that was in flight when its endpoint was paused: it does not end without
/// success, as long as there is another way.
pub(super) fn while_paused(settlement: Settlement, place: Place, outcome: &Outcome) -> Settlement {
    let detail = outcome.record.text.clone();
    match (settlement, place) {
        (Settlement::Delivered, _) => Settlement::Delivered,
        (
            Settlement::Retry { after } | Settlement::Defer { after },
            Place::Memory | Place::Table,
        ) => Settlement::Defer { after },
        (Settlement::Dead { .. } | Settlement::Disable { .. }, Place::Memory | Place::Table) => {
            Settlement::Defer { after: Duration::ZERO }
        }
        (_, Place::DeadLetters) => Settlement::Dead { reason: DeadReason::Exhausted, detail },
    }
}

#[cfg(test)]
mod tests;
