//! What happens when an endpoint fails, and when it takes something again: see [`super::failures`].

use std::time::Duration;

use super::queues::QueueNo;
use super::{Dispatcher, EndpointChange};
use walhook_core::endpoint::{Endpoint, Routes};
use walhook_core::event::{AccountId, EndpointId, Scope};
use walhook_core::persist::{PersistBatch, QueueId};
use walhook_core::position::EventId;
use walhook_core::tick::Tick;

/// Of an error, so many bytes are kept and logged: answers may bring a thousand, and there may be very many.
const ERROR_MAX: usize = 240;

/// At the start those that fail are looked up if they are no more than this: one batch.
const ASKED_AT_ONCE: usize = 500;

impl Dispatcher {
    /// A request failed. `is_told`: the log has been told of it otherwise.
    pub(super) fn begin_failing(
        &mut self,
        queue: QueueNo,
        event: EventId,
        error: &str,
        is_told: bool,
        now: Tick,
    ) {
        let (at_us, error) = (self.unix_us(now), shortened(error));
        let name = self.queues.id(queue);
        let routes = self.routing.router.last(&name.account);
        if routes.is_some_and(|routes| !is_sent_to(&routes, &name.endpoint)) {
            // It was under way when the endpoint was switched off, or went to another account.
            return;
        }
        if self.endpoints.failing.begin(name, at_us, &error, is_told, now) {
            self.outbox.touch();
            if !is_told {
                let detail = format!("event {event}: {error}");
                self.tell_of(&name.clone(), EndpointChange::Failing, detail);
            }
        }
    }

    /// A request was taken.
    pub(super) fn end_failing(&mut self, queue: QueueNo, now: Tick) {
        if self.endpoints.failing.len() == 0 {
            return;
        }
        let name = self.queues.id(queue);
        let Some(failed) = self.endpoints.failing.end(name, now) else { return };
        self.outbox.touch();
        if failed.told {
            let us = self.unix_us(now).saturating_sub(failed.since_us);
            let ms = u64::try_from(us).unwrap_or(0) / 1_000;
            let lasted = humantime::format_duration(Duration::from_millis(ms));
            let requests = failed.requests;
            let detail =
                format!("it took a delivery after {lasted}, in which {requests} requests failed");
            self.tell_of(&name.clone(), EndpointChange::Recovered, detail);
        }
    }

    /// The endpoint is gone, and so is what was known of its failures.
    pub(super) fn forget_failing(&mut self, queue: QueueNo, now: Tick) {
        if self.endpoints.failing.forget(self.queues.id(queue), now) {
            self.outbox.touch();
        }
    }

    /// Rows have changed: whether the account still sends to what fails among them is asked for. Where any row may
    /// have changed, each is seen to when its account is looked up: to ask for all would keep others waiting.
    pub(super) fn ask_for_failing(&mut self, scope: &Scope) {
        let Scope::Endpoint { endpoints, .. } = scope else { return };
        let failing = &self.endpoints.failing;
        for account in endpoints.iter().flat_map(|id| failing.accounts_of(id)) {
            self.routing.router.want(account);
        }
    }

    /// Likewise at the start. Of very many, each is seen to when its account is looked up.
    pub(super) fn ask_for_all_failing(&mut self) {
        let failing = &self.endpoints.failing;
        if failing.len() <= ASKED_AT_ONCE {
            failing.all().for_each(|queue| self.routing.router.want(&queue.account));
        }
    }

    /// The account's routes have come: what it does not send to any more does not fail.
    pub(super) fn take_failing(&mut self, account: &AccountId, routes: &Routes, now: Tick) {
        if self.endpoints.failing.len() == 0 {
            return;
        }
        let of_account = self.endpoints.failing.of_account(account);
        let over = of_account.filter(|queue| !is_sent_to(routes, &queue.endpoint));
        let over: Vec<QueueId> = over.cloned().collect();
        for queue in over {
            self.endpoints.failing.forget(&queue, now);
            self.outbox.touch();
        }
    }

    /// The rows that are to be written or removed now.
    pub(super) fn hand_out_failing(&mut self, batch: &mut PersistBatch, now: Tick) {
        for (queue, error) in self.endpoints.failing.hand_out(batch, now) {
            self.tell_of(&queue, EndpointChange::Failing, error);
        }
    }
}

/// Whether the account sends to the endpoint, as far as its routes say.
fn is_sent_to(routes: &Routes, endpoint: &EndpointId) -> bool {
    let is_usable = |endpoint: &Endpoint| endpoint.enabled && endpoint.invalid.is_none();
    routes.refused.is_some() || routes.endpoint(endpoint).is_some_and(|e| is_usable(e))
}

/// The beginning of an error, where it is long.
fn shortened(error: &str) -> String {
    let mut end = error.len().min(ERROR_MAX);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    let (start, rest) = error.split_at(end);
    if rest.is_empty() { start.to_owned() } else { format!("{start}...") }
}

#[cfg(test)]
mod tests;
