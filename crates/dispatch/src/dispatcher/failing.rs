//! What happens when an endpoint fails, and when it takes something again: see [`super::failures`].

use std::time::Duration;

use super::queues::QueueNo;
use super::{Dispatcher, EndpointChange};
use walhook_core::persist::PersistBatch;
use walhook_core::position::EventId;
use walhook_core::tick::Tick;

/// Of an error, so many bytes are kept and logged: answers may bring a thousand, and there may be very many.
const ERROR_MAX: usize = 240;

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

    /// The rows that are to be written or removed now.
    pub(super) fn hand_out_failing(&mut self, batch: &mut PersistBatch, now: Tick) {
        for (queue, error) in self.endpoints.failing.hand_out(batch, now) {
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
    use super::super::failures::KNOWN_MIN;
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
