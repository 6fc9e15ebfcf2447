//! Replays: past events that are sent again, a few at a time, in the lanes of the live ones.
//!
//! Whoever feeds them reads the past and routes it. Here a replayed delivery is like an operator's
//! retry: it holds no keys and waits for none, has its quick attempts, and then ends, well or as a dead
//! letter of the replay. Few are taken in at once, so what an account's own live events wait for them
//! is bounded by as many requests; other accounts are protected by the scheduler, as from anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::event::{EndpointId, Event};
use super::super::persist::{DeadLetter, DeadReason, PersistBatch, QueueId, ReplayCounts, Retried};
use super::super::tick::Tick;
use super::Dispatcher;
use super::fan_out::To;

/// Replayed deliveries in memory at once: as many requests in flight, at most.
const REPLAYS_MAX: usize = 16;

/// What is told of replays.
#[derive(Debug)]
pub enum ReplayInput {
    /// One begins or goes on, with what earlier leaders counted. Known ones keep their counts.
    Start(ReplayCounts),
    /// A delivery is to be sent again.
    Deliver(Replay),
    /// One has come to its end, or was cancelled: what is left of it is not counted.
    End(i64),
}

/// A delivery to be sent again.
#[derive(Debug)]
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
    /// Those whose counts are not stored.
    changed: BTreeMap<i64, ReplayCounts>,
    letters: Vec<DeadLetter>,
    pending: usize,
}

impl Replays {
    /// What the next state transaction is to store.
    pub(super) fn hand_out(&mut self, batch: &mut PersistBatch) {
        batch.replayed = std::mem::take(&mut self.changed).into_values().collect();
        batch.dead_letters.append(&mut self.letters);
    }

    fn end(&mut self, job: i64, letter: Option<DeadLetter>) {
        if let Some(counts) = self.counts.get_mut(&job) {
            match &letter {
                None => counts.done += 1,
                Some(_) => counts.failed += 1,
            }
            self.changed.insert(job, *counts);
        }
        self.letters.extend(letter);
    }
}

impl Dispatcher {
    /// Whether there is room for more of a replay.
    #[must_use]
    pub fn wants_replay(&self) -> bool {
        self.replays.pending < REPLAYS_MAX && self.wants_input()
    }

    /// Takes what is told of replays. Call only while [`Dispatcher::wants_replay`] says yes.
    pub fn handle_replay(&mut self, input: ReplayInput, now: Tick) {
        match input {
            ReplayInput::Start(counts) => {
                self.replays.counts.entry(counts.job).or_insert(counts);
            }
            ReplayInput::End(job) => {
                self.replays.counts.remove(&job);
            }
            ReplayInput::Deliver(replay) => self.deliver_again(replay, now),
        }
    }

    fn deliver_again(&mut self, replay: Replay, now: Tick) {
        let Replay { job, event, endpoint } = replay;
        let queue = QueueId { account: event.account.clone(), endpoint };
        if self.is_stopped(&queue) {
            // To wait for it would hold the replay up for everyone.
            let detail = "the endpoint is paused or suspended, or its breaker is open".to_owned();
            let letter = DeadLetter {
                event,
                endpoint: Some(queue.endpoint),
                reason: DeadReason::Exhausted,
                detail,
                attempts: 0,
                last_status: None,
                history: Vec::new(),
                replay: job,
            };
            self.replays.end(job, Some(letter));
            self.durable.touch();
            return;
        }
        self.replays.pending += 1;
        let to = To::One { endpoint: queue.endpoint, dead_letter: None, job };
        self.arrive(event, to, now);
    }

    /// An operator's retry, or a delivery of a replay, has ended: well, or with this letter.
    pub(super) fn end_retry(
        &mut self,
        dead_letter: Option<i64>,
        job: i64,
        letter: Option<DeadLetter>,
    ) {
        if let Some(dead_letter) = dead_letter {
            self.durable.retried(Retried { dead_letter, job, error: letter });
            return;
        }
        self.replays.pending = self.replays.pending.saturating_sub(1);
        self.replays.end(job, letter.map(|letter| DeadLetter { replay: job, ..letter }));
        self.durable.touch();
    }
}
