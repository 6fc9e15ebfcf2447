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

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::queues::QueueNo;
use super::{Dispatcher, EndpointChange};
use walhook_core::persist::{EndpointError, PersistBatch, QueueId};
use walhook_core::position::EventId;
use walhook_core::tick::Tick;

/// A row that was written is written again, or removed, after so long at the earliest.
const LINGERS: Duration = Duration::from_secs(10);

/// While it goes on failing, its row is written again after so long.
const REWRITTEN: Duration = Duration::from_secs(60);

/// Rows written with one state transaction.
const ROWS_MAX: usize = 1_000;

/// Of an error, so many bytes are kept and logged: answers may bring a thousand, and there may be very many.
const ERROR_MAX: usize = 240;

/// What is known of one, roughly, with its names and its error.
pub(super) const FAILING_BYTES: usize = 768;

/// In any case so many are known.
const KNOWN_MIN: usize = 1_024;

#[derive(Debug, Default)]
pub(super) struct Failures {
    queues: BTreeMap<QueueId, Box<Failing>>,
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
        Self { queues: stored.into_iter().map(failing).collect(), due: BTreeSet::new(), max }
    }

    pub(super) fn len(&self) -> usize {
        self.queues.len()
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
}

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
        let at_us = self.unix_us(now);
        let error = shortened(error);
        let is_full = self.endpoints.failing.queues.len() >= self.endpoints.failing.max;
        let name = self.queues.id(queue);
        let Some(failing) = self.endpoints.failing.queues.get_mut(name) else {
            if is_full {
                return;
            }
            let stored = EndpointError {
                queue: name.clone(),
                since_us: at_us,
                failed: 1,
                last_us: at_us,
                error: error.clone(),
            };
            let (told, well, stored_before) = (true, false, false);
            let failing = Failing {
                error: stored,
                told,
                well,
                written: now,
                stored: stored_before,
                due: None,
            };
            self.endpoints.failing.queues.insert(name.clone(), Box::new(failing));
            self.endpoints.failing.plan(name, now);
            self.outbox.touch();
            if !is_told {
                self.tell_of(
                    &self.queues.id(queue).clone(),
                    EndpointChange::Failing,
                    format!("event {event}: {error}"),
                );
            }
            return;
        };
        if std::mem::take(&mut failing.well) {
            (failing.error.since_us, failing.error.failed, failing.told) = (at_us, 0, is_told);
        }
        failing.error.failed = failing.error.failed.saturating_add(1);
        (failing.error.last_us, failing.error.error) = (at_us, error);
        let wait = if failing.told { REWRITTEN } else { LINGERS };
        let at = (failing.written + wait).max(now);
        if failing.due.is_none_or(|due| at < due) {
            self.endpoints.failing.plan(name, at);
        }
    }

    /// A request was taken.
    pub(super) fn end_failing(&mut self, queue: QueueNo, now: Tick) {
        if self.endpoints.failing.queues.is_empty() {
            return;
        }
        let at_us = self.unix_us(now);
        let name = self.queues.id(queue);
        let Some(failing) = self.endpoints.failing.queues.get_mut(name) else { return };
        if std::mem::replace(&mut failing.well, true) {
            return;
        }
        let (told, at) = (failing.told, (failing.written + LINGERS).max(now));
        let us = u64::try_from(at_us.saturating_sub(failing.error.since_us)).unwrap_or(0);
        let lasted = Duration::from_millis(us / 1_000);
        let failed = failing.error.failed;
        self.endpoints.failing.plan(name, at);
        self.outbox.touch();
        if told {
            let lasted = humantime::format_duration(lasted);
            let detail =
                format!("it took a delivery after {lasted}, in which {failed} requests failed");
            self.tell_of(&name.clone(), EndpointChange::Recovered, detail);
        }
    }

    /// The endpoint is gone, and so is what was known of its failures.
    pub(super) fn forget_failing(&mut self, queue: QueueNo, now: Tick) {
        let name = self.queues.id(queue);
        if let Some(failing) = self.endpoints.failing.queues.get_mut(name) {
            (failing.well, failing.told) = (true, true);
            self.endpoints.failing.plan(name, now);
            self.outbox.touch();
        }
    }

    /// The rows that are to be written or removed now.
    pub(super) fn hand_out_failing(&mut self, batch: &mut PersistBatch, now: Tick) {
        let mut untold = Vec::new();
        for _ in 0..ROWS_MAX {
            let Some(queue) = self.endpoints.failing.take_due(now) else { break };
            let Some(failing) = self.endpoints.failing.queues.get_mut(&queue) else {
                panic!("the row of an endpoint is due that does not fail")
            };
            failing.due = None;
            if failing.well {
                if failing.stored {
                    batch.errors_gone.push(queue.clone());
                }
                self.endpoints.failing.queues.remove(&queue);
                continue;
            }
            (failing.written, failing.stored) = (now, true);
            batch.errors.push(failing.error.clone());
            if !std::mem::replace(&mut failing.told, true) {
                untold.push((queue, failing.error.error.clone()));
            }
        }
        for (queue, error) in untold {
            self.tell_of(&queue, EndpointChange::Failing, error);
        }
    }
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
mod tests {
    use super::*;
    use crate::dispatcher::rig::{Rig, settings};
    use walhook_core::event::{AccountId, EndpointId};
    use walhook_core::position::Position;

    fn queue_of(rig: &mut Rig, name: &str) -> QueueNo {
        rig.dispatcher.queues.intern(&AccountId::new(name), &EndpointId::new(name))
    }

    fn told(rig: &mut Rig) -> Vec<(EndpointChange, String)> {
        rig.changes().into_iter().map(|changed| (changed.change, changed.detail)).collect()
    }

    fn one(rig: &mut Rig, status: u16) {
        rig.commit("7");
        let sent = rig.send();
        assert!(!sent.is_empty());
        sent.iter().for_each(|dispatch| rig.answer(dispatch.attempt.first().id, status));
    }

    #[test]
    fn first_failure_of_an_endpoint_is_told_and_stored_at_once_and_the_next_ones_are_not() {
        let mut rig = Rig::new(settings());
        one(&mut rig, 503);
        let first = told(&mut rig);
        assert!(matches!(&first[..], [(EndpointChange::Failing, d)] if d.contains("status 503")));
        rig.store();
        let errors: Vec<_> = rig.stored.iter().flat_map(|batch| &batch.errors).collect();
        assert_eq!((errors.len(), errors[0].failed, &*errors[0].error), (1, 1, "status 503"));
        // A minute of failures is one row more, and no line.
        for _ in 0..600 {
            rig.wait(Duration::from_millis(100));
            let queue = queue_of(&mut rig, "7");
            rig.dispatcher.begin_failing(
                queue,
                EventId::derive(1, &Position::FIRST, "t", 0),
                "timeout: x",
                false,
                rig.now,
            );
        }
        rig.store();
        let errors: Vec<_> = rig.stored.iter().flat_map(|batch| &batch.errors).collect();
        assert_eq!((errors.len(), errors[1].failed), (2, 601));
        assert_eq!(errors[1].error, "timeout: x");
        assert!(told(&mut rig).is_empty());
    }

    #[test]
    fn recovery_is_told_with_what_failed_and_the_row_goes() {
        let mut rig = Rig::new(settings());
        one(&mut rig, 500);
        rig.store();
        rig.wait(Duration::from_secs(100));
        one(&mut rig, 200);
        let changes = told(&mut rig);
        let (last, detail) = changes.last().unwrap();
        assert_eq!(*last, EndpointChange::Recovered);
        assert!(
            detail.contains("in which 1 requests failed") && detail.contains("1m 40s"),
            "{detail}"
        );
        rig.store();
        let gone = rig.stored.iter().flat_map(|batch| &batch.errors_gone).count();
        assert_eq!((gone, rig.dispatcher.endpoints.failing.len()), (1, 0));
    }

    #[test]
    fn endpoint_that_fails_every_other_time_is_told_of_now_and_then() {
        let mut rig = Rig::new(settings());
        let queue = queue_of(&mut rig, "7");
        let event = EventId::derive(1, &Position::FIRST, "t", 0);
        for _ in 0..300 {
            rig.wait(Duration::from_millis(50));
            rig.dispatcher.begin_failing(queue, event, "status 500", false, rig.now);
            rig.wait(Duration::from_millis(50));
            rig.dispatcher.end_failing(queue, rig.now);
            rig.store();
        }
        let lines = told(&mut rig).len();
        let rows: usize = rig.stored.iter().map(|b| b.errors.len() + b.errors_gone.len()).sum();
        // Ten seconds apart, while the rig's time went on for a minute or more.
        let most = 2 * usize::try_from(rig.now.0 / 10_000_000).unwrap();
        assert!(lines <= most && rows <= most, "{lines} lines, {rows} rows, at most {most}");
        assert!(lines >= 2);
    }

    #[test]
    fn failures_of_very_many_endpoints_are_known_up_to_a_bound() {
        let mut rig = Rig::new(super::super::Settings { memory_limit: 1 << 20, ..settings() });
        let event = EventId::derive(1, &Position::FIRST, "t", 0);
        for n in 0..3_000 {
            let id = n.to_string();
            let queue = queue_of(&mut rig, &id);
            rig.dispatcher.begin_failing(queue, event, &"x".repeat(2_000), false, rig.now);
        }
        assert_eq!(rig.dispatcher.endpoints.failing.len(), KNOWN_MIN);
        let line = &told(&mut rig)[0].1;
        assert!(line.len() < 400, "{line}");
    }
}
