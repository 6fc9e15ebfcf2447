//! What an endpoint's answers have taught: how long its requests hold a slot, how its last ones went, how many it
//! takes at once.
//!
//! Invariant: of each request that started, the end is told once, or that it was withdrawn.

use std::time::Duration;

use super::DEFAULT_MAX_IN_FLIGHT;
use super::throttle::Throttle;
use crate::breaker::{AttemptHealth, FailureWindow};
use crate::schedule::{AdaptiveLimit, AnswerTime, HoldEstimate, Pool};
use walhook_core::attempt::Meaning;
use walhook_core::tick::Tick;

/// See the module's documentation.
#[derive(Debug)]
pub struct Health {
    /// How long its requests hold a slot.
    hold: HoldEstimate,
    /// How long its answers take.
    answers: AnswerTime,
    /// How its requests went lately.
    failures: FailureWindow,
    /// How many it takes at once.
    limit: AdaptiveLimit,
    /// What it says of its own limit. Most say nothing.
    throttle: Option<Box<Throttle>>,
    /// It has answered the last large event.
    has_answered: bool,
}

impl Health {
    /// Nothing is known.
    pub(super) fn new() -> Self {
        Self {
            hold: HoldEstimate::new(),
            answers: AnswerTime::default(),
            failures: FailureWindow::default(),
            limit: AdaptiveLimit::new(DEFAULT_MAX_IN_FLIGHT),
            throttle: None,
            has_answered: false,
        }
    }

    /// The pool that its next request belongs to.
    #[must_use]
    pub fn pool(&self, now: Tick) -> Pool {
        self.hold.pool(now)
    }

    /// For how long its next request is expected to hold a slot.
    #[must_use]
    pub fn expected_hold(&self, now: Tick) -> Duration {
        self.hold.expected(now)
    }

    /// For how long its requests have held a slot, where one has ended.
    #[must_use]
    pub fn known_hold(&self) -> Option<Duration> {
        self.hold.known()
    }

    /// How long its answers usually take, where it has answered.
    #[must_use]
    pub fn usual_answer(&self) -> Option<Duration> {
        self.answers.usual()
    }

    /// How many requests it takes at once.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit.current()
    }

    /// How many it takes at once at most, whatever is learned of it.
    #[must_use]
    pub fn upper_limit(&self) -> u32 {
        self.limit.upper()
    }

    /// Its row says how many it takes at once.
    pub fn set_upper_limit(&mut self, upper: Option<u32>) {
        self.limit.set_upper(upper.unwrap_or(DEFAULT_MAX_IN_FLIGHT));
    }

    /// A request is sent.
    pub fn request_started(&mut self, now: Tick) {
        self.hold.started(now);
    }

    /// A request ended, and held its slot for so long.
    pub fn request_ended(&mut self, started: Tick, held_for: Duration) {
        self.hold.ended(started, held_for);
    }

    /// A request was given up, and has ended.
    pub fn request_given_up(&mut self) {
        self.hold.given_up();
    }

    /// What came of a request with a large event.
    pub fn large_ended(&mut self, meaning: Meaning) {
        match meaning {
            Meaning::Delivered | Meaning::Gone | Meaning::Refused { .. } => {
                self.has_answered = true;
            }
            Meaning::TimedOut | Meaning::Failed | Meaning::Aborted => self.has_answered = false,
            // It was not sent, or nobody knows.
            Meaning::Invalid | Meaning::Oversize | Meaning::Lost | Meaning::Local => {}
        }
    }

    /// Whether it has answered the last large event; not, where it had none.
    #[must_use]
    pub fn has_answered(&self) -> bool {
        self.has_answered
    }

    /// A request was not sent after all.
    pub fn request_withdrawn(&mut self, started: Tick) {
        self.hold.withdrawn(started);
    }

    /// It took a delivery after so long.
    pub fn answered(&mut self, elapsed: Duration) {
        self.answers.answered(elapsed);
    }

    /// How many it takes at once follows from how it answers; `in_flight`: with this one.
    pub fn adapt(&mut self, meaning: Meaning, in_flight: u32) {
        match meaning {
            Meaning::Delivered | Meaning::Gone => self.limit.succeeded(in_flight),
            Meaning::Refused { overloaded: true, .. } => self.limit.throttled(),
            Meaning::TimedOut => self.limit.timed_out(),
            Meaning::Refused { .. }
            | Meaning::Failed
            | Meaning::Invalid
            | Meaning::Aborted
            | Meaning::Oversize
            | Meaning::Lost
            | Meaning::Local => {}
        }
    }

    /// How long after a request the next one is sent, for what it says of its own limit.
    pub(super) fn spacing(&self) -> Option<Duration> {
        self.throttle.as_ref()?.spacing()
    }

    /// It says that a request which began then was too much. Whether it is sent fewer in a second.
    pub(super) fn slow_down(&mut self, started: Tick, now: Tick) -> bool {
        let lately = self.failures.well_lately(now);
        let throttle = self.throttle.get_or_insert_with(|| Box::new(Throttle::new()));
        throttle.refused(started, lately, now)
    }

    /// It took a request. `waits`: it could have been sent more.
    pub(super) fn speed_up(&mut self, waits: bool) {
        self.throttle.take_if(|throttle| !throttle.took(waits));
    }

    /// It is back after it was dead: it takes few at once at first.
    pub fn begin_again(&mut self) {
        self.limit.begin_again();
    }

    /// How a request went. Whether its breaker is to open.
    pub fn note(&mut self, went: AttemptHealth, resent: bool, now: Tick) -> bool {
        let takes_nothing =
            self.throttle.as_ref().is_some_and(|throttle| throttle.takes_nothing(now));
        self.failures.note(went, resent, now) || takes_nothing
    }

    /// How its requests went lately counts no more.
    pub fn forget_failures(&mut self) {
        self.failures = FailureWindow::default();
        if let Some(throttle) = &mut self.throttle {
            throttle.forget_refusals();
        }
    }
}
