//! Whether an endpoint is worth a request: a breaker for each queue.
//!
//! ```text
//!                 fails too often                    its time has come
//!        closed ─────────────────► open ─────────────────────────────► half-open
//!           ▲                        ▲    a probe failed: twice as long    │
//!           │                        └─────────────────────────────────────┤
//!           └──────────────── a probe brought something through ◄──────────┘
//! ```
//!
//! While it is open nothing is sent, and what was queued is deferred. Half-open, one delivery at a time
//! is a probe, of another key each time: one that the endpoint will never take must not keep it shut.

use std::time::Duration;

use rand::{Rng, RngExt};

use walhook_core::attempt::DeliveryId;
use walhook_core::tick::Tick;

/// So many requests within [`WINDOW`] say enough about an endpoint.
const REQUESTS_MIN: u32 = 10;

/// Of these, so many in a hundred failed: it opens.
const FAILED_PERCENT: u32 = 70;

/// Of these, so many in a hundred had to be sent again on another connection: it opens although they
/// arrived, for each costs both sides twice.
const RESENT_PERCENT: u32 = 50;

/// So many timeouts in a row open it too: each holds a slot for many seconds.
const TIMEOUTS_MAX: u32 = 5;

/// What is remembered, second by second.
const WINDOW: Duration = Duration::from_secs(10);
const SECONDS: usize = 10;

/// How long it stays open at first, and at most.
const OPEN_FIRST: Duration = Duration::from_secs(30);
const OPEN_MAX: Duration = Duration::from_secs(600);

/// How a request went, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptHealth {
    /// The endpoint answered as it should.
    Well,
    /// It did not.
    Badly,
    /// It did not answer in time.
    Nowhere,
}

/// How the requests to an endpoint went lately.
#[derive(Debug, Clone, Default)]
pub struct FailureWindow {
    /// A second's place is its remainder.
    seconds: [Second; SECONDS],
    timeouts: u32,
}

/// The requests that ended within one second.
#[derive(Debug, Clone, Copy, Default)]
struct Second {
    second: u64,
    requests: u32,
    failed: u32,
    resent: u32,
}

impl FailureWindow {
    /// Takes how a request went, and whether it had to be sent again on another connection. True: the
    /// breaker is to open.
    pub fn note(&mut self, went: AttemptHealth, resent: bool, now: Tick) -> bool {
        let second = now.0 / 1_000_000;
        let place = usize::try_from(second).unwrap_or(0) % SECONDS;
        if let Some(slot) = self.seconds.get_mut(place) {
            if slot.second != second {
                *slot = Second { second, ..Second::default() };
            }
            slot.requests = slot.requests.saturating_add(1);
            slot.failed = slot.failed.saturating_add(u32::from(went != AttemptHealth::Well));
            slot.resent = slot.resent.saturating_add(u32::from(resent));
        }
        self.timeouts =
            if went == AttemptHealth::Nowhere { self.timeouts.saturating_add(1) } else { 0 };
        if went == AttemptHealth::Well && !resent {
            return false;
        }
        let within = |slot: &&Second| slot.second + WINDOW.as_secs() > second;
        let recent = || self.seconds.iter().filter(within);
        let requests: u32 = recent().map(|slot| slot.requests).sum();
        let failed: u32 = recent().map(|slot| slot.failed).sum();
        let resent: u32 = recent().map(|slot| slot.resent).sum();
        let often = requests >= REQUESTS_MIN
            && (failed * 100 >= requests * FAILED_PERCENT
                || resent * 100 > requests * RESENT_PERCENT);
        often || self.timeouts >= TIMEOUTS_MAX
    }
}

/// A breaker that is not closed.
#[derive(Debug, Clone)]
pub struct Breaker {
    /// Since when nothing but probes was sent.
    pub since: Tick,
    stage: Stage,
    /// How long it stays open after the next failure.
    next: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open(Tick),
    HalfOpen,
    Probing(DeliveryId),
}

impl Breaker {
    /// It opens.
    pub fn open(now: Tick, rng: &mut impl Rng) -> Self {
        let stage = Stage::Open(now + jittered(OPEN_FIRST, rng));
        Self { since: now, stage, next: OPEN_FIRST * 2 }
    }

    /// When it becomes half-open, while it is open.
    #[must_use]
    pub fn open_until(&self) -> Option<Tick> {
        match self.stage {
            Stage::Open(until) => Some(until),
            Stage::HalfOpen | Stage::Probing(_) => None,
        }
    }

    /// Somebody believes that the endpoint is well again: a probe may be sent at once.
    pub fn hasten(&mut self) {
        if let Stage::Open(_) = self.stage {
            self.stage = Stage::HalfOpen;
        }
    }

    /// Whether a probe may be sent now.
    #[must_use]
    pub fn wants_probe(&self, now: Tick) -> bool {
        match self.stage {
            Stage::Open(until) => until <= now,
            Stage::HalfOpen => true,
            Stage::Probing(_) => false,
        }
    }

    /// The delivery that is the probe.
    #[must_use]
    pub fn probe(&self) -> Option<DeliveryId> {
        match self.stage {
            Stage::Probing(id) => Some(id),
            Stage::Open(_) | Stage::HalfOpen => None,
        }
    }

    /// This delivery is the probe.
    pub fn begin_probe(&mut self, id: DeliveryId) {
        self.stage = Stage::Probing(id);
    }

    /// The probe was not sent.
    pub fn lose_probe(&mut self) {
        self.stage = Stage::HalfOpen;
    }

    /// The probe failed.
    pub fn reopen(&mut self, now: Tick, rng: &mut impl Rng) {
        self.stage = Stage::Open(now + jittered(self.next, rng));
        self.next = (self.next * 2).min(OPEN_MAX);
    }
}

/// Three to five quarters of it, so that many endpoints on one server are not all tried at once.
fn jittered(wait: Duration, rng: &mut impl Rng) -> Duration {
    wait * 3 / 4 + rng.random_range(Duration::ZERO..=wait / 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    proptest! {
        #[test]
        fn breaker_opens_when_a_scan_of_all_requests_says_so(
            requests in proptest::collection::vec(
                (0u64..3_000_000, 0u8..4, proptest::bool::weighted(0.4)), 1..120,
            ),
        ) {
            let mut failures = FailureWindow::default();
            let mut all: Vec<(Tick, AttemptHealth, bool)> = Vec::new();
            let mut now = Tick(0);
            for (after, kind, resent) in requests {
                now = now + Duration::from_micros(after);
                let went = match kind {
                    0 => AttemptHealth::Well,
                    1 => AttemptHealth::Nowhere,
                    _ => AttemptHealth::Badly,
                };
                all.push((now, went, resent));
                let second = |at: Tick| at.0 / 1_000_000;
                let recent = all.iter().filter(|(at, ..)| second(*at) + 10 > second(now));
                let recent: Vec<(AttemptHealth, bool)> = recent.map(|(_, went, sent)| (*went, *sent)).collect();
                let failed = recent.iter().filter(|(went, _)| *went != AttemptHealth::Well).count();
                let sent_again = recent.iter().filter(|(_, resent)| *resent).count();
                let in_a_row = all.iter().rev().take_while(|(_, went, _)| *went == AttemptHealth::Nowhere);
                let opens = (went != AttemptHealth::Well || resent)
                    && (recent.len() >= 10
                        && (failed * 10 >= recent.len() * 7 || sent_again * 2 > recent.len())
                        || in_a_row.count() >= 5);
                prop_assert_eq!(failures.note(went, resent, now), opens);
            }
        }
    }

    #[test]
    fn breaker_stays_open_twice_as_long_after_each_probe_that_fails() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut now = Tick(0);
        let mut breaker = Breaker::open(now, &mut rng);
        for expected_s in [30, 60, 120, 240, 480, 600, 600] {
            let until = breaker.open_until().unwrap();
            let wait_s = until.since(now).as_secs();
            assert!((expected_s * 3 / 4..=expected_s * 5 / 4).contains(&wait_s), "{wait_s} s");
            assert!(!breaker.wants_probe(until - Duration::from_micros(1)));
            assert!(breaker.wants_probe(until));
            now = until;
            breaker.begin_probe(DeliveryId(7));
            assert!(!breaker.wants_probe(now), "one at a time");
            breaker.lose_probe();
            assert!(breaker.wants_probe(now));
            breaker.begin_probe(DeliveryId(8));
            assert_eq!(breaker.probe(), Some(DeliveryId(8)));
            breaker.reopen(now, &mut rng);
        }
    }
}
