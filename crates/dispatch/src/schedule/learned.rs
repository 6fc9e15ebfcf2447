//! What is learned of one endpoint from its requests: how long it holds a slot, and how many it takes
//! at a time.

use std::time::Duration;

use super::{Pool, SLOW_AFTER};
use walhook_core::tick::{Tick, micros};

/// What an endpoint that never answered is expected to take.
const UNKNOWN_HOLD_US: u64 = 250_000;

/// A new sample counts for one part in so many. As in TCP's round-trip estimate (RFC 6298): one
/// hiccup does not make an endpoint slow, a dozen samples tell the truth.
const EWMA_PARTS: u64 = 8;

/// How long an endpoint's requests are expected to hold a slot.
///
/// The mean age of what is in flight is a lower bound: an endpoint that begins to hang is known to be
/// slow before its first request ends.
#[derive(Debug, Clone, Default)]
pub struct HoldEstimate {
    ewma_us: Option<u64>,
    in_flight: u64,
    /// The sum of their starts, in microseconds.
    starts_us: u128,
}

impl HoldEstimate {
    /// Nothing is known.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A request starts.
    pub fn started(&mut self, now: Tick) {
        self.in_flight += 1;
        self.starts_us += u128::from(now.0);
    }

    /// The request that started at `started` held its slot for `hold`.
    pub fn ended(&mut self, started: Tick, hold: Duration) {
        self.withdrawn(started);
        let hold = micros(hold);
        self.ewma_us =
            Some(self.ewma_us.map_or(hold, |ewma| ewma - ewma / EWMA_PARTS + hold / EWMA_PARTS));
    }

    /// A request was given up: the next one is expected to hold its slot for as long as a slow one.
    pub fn given_up(&mut self) {
        let slow = micros(SLOW_AFTER);
        self.ewma_us = Some(self.ewma_us.map_or(slow, |ewma| ewma.max(slow)));
    }

    /// The request that started at `started` was not sent after all: it tells nothing.
    pub fn withdrawn(&mut self, started: Tick) {
        let starts_us = self.starts_us.checked_sub(u128::from(started.0));
        let Some((in_flight, starts_us)) = self.in_flight.checked_sub(1).zip(starts_us) else {
            panic!("a request of an endpoint ends that did not start")
        };
        (self.in_flight, self.starts_us) = (in_flight, starts_us);
    }

    /// What the next request is expected to hold.
    #[must_use]
    pub fn expected(&self, now: Tick) -> Duration {
        Duration::from_micros(self.expected_us(now))
    }

    fn expected_us(&self, now: Tick) -> u64 {
        self.ewma_us.unwrap_or(UNKNOWN_HOLD_US).max(self.mean_age_us(now))
    }

    /// What its requests have held, where one has ended.
    #[must_use]
    pub fn known(&self) -> Option<Duration> {
        self.ewma_us.map(Duration::from_micros)
    }

    /// Which pool the next request belongs to.
    #[must_use]
    pub fn pool(&self, now: Tick) -> Pool {
        if self.expected_us(now) >= micros(SLOW_AFTER) { Pool::Slow } else { Pool::Fast }
    }

    fn mean_age_us(&self, now: Tick) -> u64 {
        let ages = u128::from(now.0) * u128::from(self.in_flight);
        let mean = ages.saturating_sub(self.starts_us).checked_div(u128::from(self.in_flight));
        mean.and_then(|us| u64::try_from(us).ok()).unwrap_or(0)
    }
}

/// How long an endpoint's answers take when it is well: a peak that is forgotten by an eighth with each answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AnswerTime(Option<Duration>);

impl AnswerTime {
    /// It took a request after so long.
    pub fn answered(&mut self, elapsed: Duration) {
        let faded = self.0.map_or(Duration::ZERO, |peak| peak / 8 * 7);
        self.0 = Some(elapsed.max(faded));
    }

    /// What its answers used to take; `None`: it never took one, as far as is known.
    #[must_use]
    pub fn usual(self) -> Option<Duration> {
        self.0
    }
}

/// How many requests an endpoint may have in flight: additive increase, multiplicative decrease.
///
/// Invariant: 1 ≤ current ≤ upper bound.
#[derive(Debug, Clone)]
pub struct AdaptiveLimit {
    current: u32,
    upper: u32,
}

impl AdaptiveLimit {
    /// Enough to learn how an endpoint takes several at once, little enough to do it no harm.
    const START: u32 = 4;

    /// The limit of an endpoint of which nothing is known; an upper bound of 0 counts as 1.
    #[must_use]
    pub fn new(upper: u32) -> Self {
        let upper = upper.max(1);
        Self { current: Self::START.min(upper), upper }
    }

    /// How many requests may be in flight now.
    #[must_use]
    pub fn current(&self) -> u32 {
        self.current
    }

    /// What it never exceeds.
    #[must_use]
    pub fn upper(&self) -> u32 {
        self.upper
    }

    /// Changes the upper bound, when the endpoint's row does.
    pub fn set_upper(&mut self, upper: u32) {
        self.upper = upper.max(1);
        self.current = self.current.min(self.upper);
    }

    /// A request succeeded; `in_flight` counts it too. Nothing is learnt from a limit that is not
    /// used at least by half.
    pub fn succeeded(&mut self, in_flight: u32) {
        if in_flight >= self.current.div_ceil(2) {
            self.current = self.current.saturating_add(1).min(self.upper);
        }
    }

    /// The endpoint answered 429 or 503: it has enough.
    pub fn throttled(&mut self) {
        self.current = (self.current / 2).max(1);
    }

    /// It is back after it was dead: what it took before says little.
    pub fn begin_again(&mut self) {
        self.current = self.current.min(Self::START);
    }

    /// No answer came in time.
    pub fn timed_out(&mut self) {
        self.current = 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn hold_estimate_follows_samples_and_starts_at_the_unknown() {
        let mut hold = HoldEstimate::new();
        assert_eq!(hold.expected(Tick(0)), Duration::from_micros(UNKNOWN_HOLD_US));
        hold.started(Tick(0));
        hold.ended(Tick(0), ms(80));
        assert_eq!(hold.expected(Tick(0)), ms(80));
        hold.started(Tick(0));
        hold.ended(Tick(0), ms(160));
        assert_eq!(hold.expected(Tick(0)), ms(90));
        for _ in 0..60 {
            hold.started(Tick(0));
            hold.ended(Tick(0), ms(5_000));
        }
        assert!(hold.expected(Tick(0)) > ms(4_900));
    }

    #[test]
    fn hold_estimate_turns_slow_while_requests_hang() {
        let mut hold = HoldEstimate::new();
        let start = Tick(7_000_000);
        hold.started(start);
        hold.started(start + ms(400));
        assert_eq!(hold.pool(start + ms(1_199)), Pool::Fast);
        assert_eq!(hold.expected(start + ms(1_200)), SLOW_AFTER);
        assert_eq!(hold.pool(start + ms(1_200)), Pool::Slow);
        hold.ended(start, ms(1_200));
        assert_eq!(hold.expected(start + ms(1_200)), ms(1_200));
        hold.ended(start + ms(400), ms(800));
        assert_eq!(hold.expected(start + ms(60_000)), ms(1_150), "nothing in flight has no age");
    }

    #[test]
    fn hold_estimate_is_slow_once_a_request_was_given_up_however_quick_those_before_were() {
        let mut hold = HoldEstimate::new();
        for held in [80; 20].into_iter().chain([1_000]) {
            hold.started(Tick(0));
            hold.ended(Tick(0), ms(held));
        }
        assert_eq!(hold.pool(Tick(0)), Pool::Fast);
        hold.given_up();
        assert_eq!(hold.pool(Tick(0)), Pool::Slow);
        hold.started(Tick(0));
        hold.ended(Tick(0), ms(5_000));
        hold.given_up();
        assert_eq!(hold.expected(Tick(0)), ms(1_500), "it is not made quicker");
    }

    #[test]
    fn adaptive_limit_grows_by_use_and_shrinks_by_trouble() {
        let mut limit = AdaptiveLimit::new(6);
        assert_eq!(limit.current(), 4);
        limit.succeeded(1);
        assert_eq!(limit.current(), 4, "not half used");
        for expected in [5, 6, 6] {
            limit.succeeded(limit.current());
            assert_eq!(limit.current(), expected);
        }
        limit.throttled();
        assert_eq!(limit.current(), 3);
        limit.succeeded(2);
        assert_eq!(limit.current(), 4);
        limit.timed_out();
        assert_eq!(limit.current(), 1);
        limit.throttled();
        assert_eq!(limit.current(), 1);
        limit.succeeded(1);
        assert_eq!(limit.current(), 2);
    }

    #[test]
    fn adaptive_limit_keeps_to_its_upper_bound() {
        assert_eq!(AdaptiveLimit::new(2).current(), 2);
        let mut limit = AdaptiveLimit::new(0);
        assert_eq!(limit.current(), 1);
        limit.set_upper(3);
        (0..9).for_each(|_| limit.succeeded(limit.current()));
        assert_eq!(limit.current(), 3);
        limit.set_upper(2);
        assert_eq!(limit.current(), 2);
    }
}
