//! An endpoint that limits itself is sent what it takes, in virtual time; one that is dead is left alone as ever.

use std::collections::VecDeque;
use std::time::Duration;

use super::rig::{Rig, settings};
use super::{EndpointChange, Settings};
use crate::fixture;
use crate::retry::RetryPolicy;
use crate::settle::SettlePolicy;
use walhook_core::attempt::{DeliveryId, FailureKind, Outcome};
use walhook_core::tick::Tick;

const STEP: Duration = Duration::from_millis(4);
const ANSWERS_AFTER: Duration = Duration::from_millis(4);
const HOUR: Duration = Duration::from_secs(3_600);

/// Takes so many a second, and so many at once.
struct Limiter {
    rate: f64,
    burst: f64,
    left: f64,
    at: Tick,
    status: u16,
    retry_after: Option<Duration>,
}

impl Limiter {
    fn new(rate: f64, burst: f64, retry_after_s: Option<u64>) -> Self {
        let retry_after = retry_after_s.map(Duration::from_secs);
        Self { rate, burst, left: burst, at: Tick(0), status: 429, retry_after }
    }

    fn answer(&mut self, now: Tick) -> Outcome {
        self.left += now.since(self.at).as_secs_f64() * self.rate;
        (self.left, self.at) = (self.left.min(self.burst), now);
        if self.left < 1.0 {
            return fixture::answer(self.status, self.retry_after, "");
        }
        self.left -= 1.0;
        fixture::answered(204)
    }
}

/// What came of a run.
#[derive(Debug, Default)]
struct Run {
    sent: u32,
    taken: u32,
    breakers: usize,
    dead: usize,
}

/// So many events come at once, then some each second.
struct Life {
    rig: Rig,
    in_flight: VecDeque<(Tick, DeliveryId)>,
    began: Tick,
    per_second: f64,
    committed: u32,
}

impl Life {
    /// With the configuration's own times.
    fn new(at_once: u32, per_second: f64) -> Self {
        let retry = RetryPolicy::new(Duration::from_secs(10), 8 * HOUR).unwrap();
        let settle = SettlePolicy { quick_attempts: 2, retry, retry_for: 72 * HOUR };
        let mut rig = Rig::new(Settings { fast_slots: 256, slow_slots: 256, settle, ..settings() });
        (0..at_once).for_each(|_| _ = rig.commit("7"));
        Self { began: rig.now, rig, in_flight: VecDeque::new(), per_second, committed: 0 }
    }

    fn run(&mut self, within: Duration, mut answer: impl FnMut(Tick) -> Outcome) -> Run {
        let (mut run, end) = (Run::default(), self.rig.now + within);
        self.rig.changes();
        self.rig.stored.clear();
        while self.rig.now < end {
            self.rig.wait(STEP);
            let now = self.rig.now;
            let owed = now.since(self.began).as_secs_f64() * self.per_second;
            while f64::from(self.committed) < owed {
                self.committed += 1;
                self.rig.commit("7");
            }
            while let Some((_, id)) = self.in_flight.pop_front_if(|(at, _)| *at <= now) {
                let outcome = answer(now);
                run.taken += u32::from(outcome.delivered());
                self.rig.dispatcher.handle_outcome(id, &outcome, now);
            }
            self.rig.store_now();
            self.rig.read();
            for dispatch in self.rig.send() {
                run.sent += 1;
                self.in_flight.push_back((now + ANSWERS_AFTER, dispatch.attempt.first().id));
            }
        }
        let opened = |change: &EndpointChange| *change == EndpointChange::BreakerOpened;
        run.breakers = self.rig.changes().iter().filter(|it| opened(&it.change)).count();
        run.dead = self.rig.stored.iter().map(|batch| batch.died.len()).sum();
        run
    }

    fn left(&self) -> u64 {
        self.rig.dispatcher.queued() as u64 + self.rig.dispatcher.gauges().deferred
    }
}

#[test]
fn endpoint_that_limits_itself_is_sent_what_it_takes() {
    let cases = [
        (10.0, 1.0, Some(1), 1_500, 2.0),
        (10.0, 10.0, None, 1_500, 2.0),
        (10.0, 10.0, Some(30), 1_500, 2.0),
        (1.0, 1.0, Some(1), 150, 0.2),
        (1.0, 5.0, None, 150, 0.2),
    ];
    for (rate, burst, retry_after, at_once, per_second) in cases {
        let case = format!("{rate}/s, {burst} at once, Retry-After {retry_after:?}");
        let mut limiter = Limiter::new(rate, burst, retry_after);
        let mut life = Life::new(at_once, per_second);
        let run = life.run(Duration::from_secs(120), |now| limiter.answer(now));
        assert!(f64::from(run.taken) >= 0.7 * rate * 120.0, "{case}: {run:?}");
        assert!(run.sent < run.taken + run.taken / 3, "few are refused: {case}: {run:?}");
        assert_eq!((run.breakers, run.dead), (0, 0), "{case}: {run:?}");
        let run = life.run(Duration::from_secs(120), |now| limiter.answer(now));
        assert!(life.left() < u64::from(at_once / 5), "{case}: {run:?}, {} left", life.left());
    }
}

#[test]
fn endpoint_that_takes_so_many_a_minute_is_sent_them_each_minute() {
    let (mut minute, mut left) = (0, 0);
    let mut life = Life::new(3_000, 0.0);
    let run = life.run(Duration::from_secs(300), |now| {
        let second = now.0 / 1_000_000;
        if second / 60 != minute {
            (minute, left) = (second / 60, 600);
        }
        if left == 0 {
            let rest = Duration::from_secs(60 - second % 60);
            return fixture::answer(429, Some(rest), "");
        }
        left -= 1;
        fixture::answered(204)
    });
    assert!(run.taken >= 2_900, "{run:?}");
}

#[test]
fn endpoint_that_refuses_a_few_is_not_slowed() {
    let mut asked = 0;
    let mut life = Life::new(5_000, 0.0);
    let run = life.run(Duration::from_secs(8), |_| {
        asked += 1;
        if asked % 20 == 0 {
            fixture::answer(429, Some(Duration::from_secs(1)), "")
        } else {
            fixture::answered(204)
        }
    });
    assert!(run.taken > 4_500, "{run:?}");
}

#[test]
fn endpoint_that_is_dead_opens_its_breaker_whatever_it_says() {
    let failed = Outcome::failed(FailureKind::Connect, "refused", Duration::from_millis(1));
    let refused = |status| fixture::answer(status, None, "");
    let dead = [
        ("refuses connections", 1, failed),
        ("500", 1, refused(500)),
        ("503", 1, refused(503)),
        ("429", 60, refused(429)),
        ("503 for an hour", 60, fixture::answer(503, Some(HOUR), "")),
    ];
    for (case, within_s, answer) in dead {
        let mut life = Life::new(300, 2.0);
        let run = life.run(Duration::from_secs(within_s), |_| answer.clone());
        assert_eq!(run.breakers, 1, "{case}: {run:?}");
        let run = life.run(Duration::from_secs(120), |_| answer.clone());
        assert!(run.sent <= 40, "nothing but probes: {case}: {run:?}");
    }
}
