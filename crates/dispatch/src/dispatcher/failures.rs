//! Endpoints that fail: since when, how often, by what. For the log, which is told of the first failure and of
//! the recovery; and for whoever lists endpoints, by the table `endpoint_errors`.
//!
//! ```text
//! failure ─► told, stored at once ─► failure ─► stored a minute later ─► success ─► told, row removed
//! ```
//!
//! A row is written when an endpoint begins to fail, then once a minute at most while it does, and is removed
//! when it takes something again: nothing is written for a delivery. An endpoint that fails now and then
//! would be told of at each of its failures, so what is known of one is kept, with its row, until ten
//! seconds after the row was written. Memory: an entry for each endpoint that fails, up to a bound; those
//! beyond are not told of one by one.
//!
//! One that is switched off, or goes to another account, takes nothing there any more, and would fail for ever. So
//! where its row changes, its account is looked up, and what the routes do not send to is forgotten.
//!
//! # Invariants
//!
//! - Each that is known has a row, or one is due for it; its time stands among those that are due, once.
//! - `accounts` names exactly the queues that are known.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use walhook_core::event::{AccountId, EndpointId};
use walhook_core::persist::{EndpointError, PersistBatch, QueueId};
use walhook_core::tick::Tick;

/// A row that was written is written again, or removed, after so long at the earliest.
const LINGERS: Duration = Duration::from_secs(10);

/// While it goes on failing, its row is written again after so long.
const REWRITTEN: Duration = Duration::from_secs(60);

/// Rows written with one state transaction.
const ROWS_MAX: usize = 1_000;

/// What is known of one, roughly, with its names and its error.
pub(super) const FAILING_BYTES: usize = 768;

/// In any case so many are known.
pub(super) const KNOWN_MIN: usize = 1_024;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Failures {
    queues: BTreeMap<QueueId, Box<Failing>>,
    /// By endpoint: the accounts in whose queues it fails.
    accounts: BTreeSet<(EndpointId, AccountId)>,
    /// When rows are to be written or removed.
    due: BTreeSet<(Tick, QueueId)>,
    max: usize,
}

#[derive(Debug)]
struct Failing {
    error: EndpointError,
    /// The log was told of it.
    told: bool,
    /// It has taken something since.
    well: bool,
    /// When its row was written last; before that, when it began to fail.
    written: Tick,
    stored: bool,
    due: Option<Tick>,
}

impl Failures {
    /// Goes on with what an earlier leader knew.
    pub(super) fn new(memory_limit: usize, stored: Vec<EndpointError>, now: Tick) -> Self {
        let max = (memory_limit / 32 / FAILING_BYTES).max(KNOWN_MIN);
        let failing = |error: EndpointError| {
            let (told, well, stored) = (true, false, true);
            (
                error.queue.clone(),
                Box::new(Failing { error, told, well, written: now, stored, due: None }),
            )
        };
        let queues: BTreeMap<_, _> = stored.into_iter().map(failing).collect();
        let accounts = queues.keys().map(by_endpoint).collect();
        Self { queues, accounts, due: BTreeSet::new(), max }
    }

    /// Those that are known.
    pub(super) fn len(&self) -> usize {
        self.queues.len()
    }

    /// The accounts in whose queues the endpoint fails.
    pub(super) fn accounts_of(&self, endpoint: &EndpointId) -> impl Iterator<Item = &AccountId> {
        let from = (endpoint.clone(), AccountId::new(""));
        let of_endpoint = self.accounts.range(from..).take_while(move |(of, _)| of == endpoint);
        of_endpoint.map(|(_, account)| account)
    }

    /// The account's queues whose endpoints fail.
    pub(super) fn of_account(&self, account: &AccountId) -> impl Iterator<Item = &QueueId> {
        let from = QueueId { account: account.clone(), endpoint: EndpointId::new("") };
        self.queues.range(from..).map(|(queue, _)| queue).take_while(move |q| q.account == *account)
    }

    /// All queues whose endpoints fail.
    pub(super) fn all(&self) -> impl Iterator<Item = &QueueId> {
        self.queues.keys()
    }

    /// Whether a row is to be written or removed now.
    pub(super) fn is_due(&self, now: Tick) -> bool {
        self.due.first().is_some_and(|(due, _)| *due <= now)
    }

    fn plan(&mut self, queue: &QueueId, at: Tick) {
        let Some(failing) = self.queues.get_mut(queue) else {
            panic!("the row of an endpoint is planned that does not fail")
        };
        if let Some(before) = failing.due.replace(at) {
            self.due.remove(&(before, queue.clone()));
        }
        self.due.insert((at, queue.clone()));
    }

    fn take_due(&mut self, now: Tick) -> Option<QueueId> {
        let first = self.due.first().filter(|(due, _)| *due <= now).cloned()?;
        self.due.remove(&first);
        Some(first.1)
    }

    /// A request failed. `is_told`: the log has been told of it otherwise. Returns whether that is the first one since
    /// it has taken something: false too where too many are known.
    pub(super) fn begin(
        &mut self,
        queue: &QueueId,
        at_us: i64,
        error: &str,
        is_told: bool,
        now: Tick,
    ) -> bool {
        let is_full = self.queues.len() >= self.max;
        let Some(failing) = self.queues.get_mut(queue) else {
            if is_full {
                return false;
            }
            let error = EndpointError {
                queue: queue.clone(),
                since_us: at_us,
                failed: 1,
                last_us: at_us,
                error: error.to_owned(),
            };
            let (told, well, stored) = (true, false, false);
            let failing = Failing { error, told, well, written: now, stored, due: None };
            self.queues.insert(queue.clone(), Box::new(failing));
            self.accounts.insert(by_endpoint(queue));
            self.plan(queue, now);
            return true;
        };
        if std::mem::take(&mut failing.well) {
            (failing.error.since_us, failing.error.failed, failing.told) = (at_us, 0, is_told);
        }
        failing.error.failed = failing.error.failed.saturating_add(1);
        (failing.error.last_us, failing.error.error) = (at_us, error.to_owned());
        let wait = if failing.told { REWRITTEN } else { LINGERS };
        let at = (failing.written + wait).max(now);
        if failing.due.is_none_or(|due| at < due) {
            self.plan(queue, at);
        }
        false
    }

    /// A request was taken. Returns what had failed before, where it did.
    pub(super) fn end(&mut self, queue: &QueueId, now: Tick) -> Option<Failed> {
        let failing = self.queues.get_mut(queue)?;
        if std::mem::replace(&mut failing.well, true) {
            return None;
        }
        let EndpointError { since_us, failed: requests, .. } = failing.error;
        let failed = Failed { since_us, requests, told: failing.told };
        let at = (failing.written + LINGERS).max(now);
        self.plan(queue, at);
        Some(failed)
    }

    /// The endpoint is gone, or is not sent to any more. False: it did not fail.
    pub(super) fn forget(&mut self, queue: &QueueId, now: Tick) -> bool {
        let Some(failing) = self.queues.get_mut(queue) else { return false };
        (failing.well, failing.told) = (true, true);
        self.plan(queue, now);
        true
    }

    /// The rows that are to be written or removed now. Returns those of which the log is to be told, with the error.
    pub(super) fn hand_out(
        &mut self,
        batch: &mut PersistBatch,
        now: Tick,
    ) -> Vec<(QueueId, String)> {
        let mut untold = Vec::new();
        for _ in 0..ROWS_MAX {
            let Some(queue) = self.take_due(now) else { break };
            let Some(failing) = self.queues.get_mut(&queue) else {
                panic!("the row of an endpoint is due that does not fail")
            };
            failing.due = None;
            if failing.well {
                if failing.stored {
                    batch.errors_gone.push(queue.clone());
                }
                self.queues.remove(&queue);
                self.accounts.remove(&by_endpoint(&queue));
                continue;
            }
            (failing.written, failing.stored) = (now, true);
            batch.errors.push(failing.error.clone());
            if !std::mem::replace(&mut failing.told, true) {
                untold.push((queue, failing.error.error.clone()));
            }
        }
        untold
    }
}

fn by_endpoint(queue: &QueueId) -> (EndpointId, AccountId) {
    (queue.endpoint.clone(), queue.account.clone())
}

/// What an endpoint failed by until it took something.
#[derive(Debug)]
pub(super) struct Failed {
    /// Since when: microseconds since 1970-01-01 UTC.
    pub(super) since_us: i64,
    pub(super) requests: u64,
    /// The log was told of it.
    pub(super) told: bool,
}

#[cfg(test)]
mod tests;
