//! When an endpoint gets no request although it could: its own rate limit, or we have nothing to send one with.

use std::time::Duration;

use rand::{Rng, RngExt};

use walhook_core::tick::Tick;
use walhook_core::waits::Cause;

/// The first wait of an endpoint for which we had no file, port or memory left.
const REST_MIN: Duration = Duration::from_millis(500);

/// The longest: what frees them is others' requests that end, or an operator.
const REST_MAX: Duration = Duration::from_secs(5);

/// Invariant: it never ends sooner than was said, unless the row says something else from then on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rest {
    /// When the last request was sent, and no other before then for the row's rate.
    sent_at: Tick,
    spaced_until: Tick,
    /// No other before then, for what the endpoint says of its own limit.
    paced_until: Tick,
    /// How often in a row we had nothing to send one with, and until when it waits for that.
    put_off: u32,
    put_off_until: Tick,
    /// Since when we have had nothing, while that is so.
    lacking: Option<Lacking>,
}

/// Since when we have had nothing to send a request with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lacking {
    /// When that began.
    pub since: Tick,
    /// What the queue's own clock said then: microseconds since 1970-01-01 UTC.
    pub active_us: i64,
}

impl Rest {
    /// A request is sent: the next one waits, where the row limits the rate.
    pub(super) fn space(&mut self, now: Tick, rate_per_second: Option<f64>) {
        self.sent_at = self.spaced_until.max(now);
        self.space_anew(rate_per_second);
    }

    /// This is the row's rate from now on: it counts from the last request.
    pub(super) fn space_anew(&mut self, rate_per_second: Option<f64>) {
        let spacing = rate_per_second
            .filter(|rate| *rate > 0.0)
            .map(|rate| Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX));
        self.spaced_until = self.sent_at + spacing.unwrap_or_default();
    }

    /// The next request waits for so long, for what the endpoint says of its own limit.
    pub(super) fn pace(&mut self, now: Tick, spacing: Duration) {
        self.paced_until = now + spacing;
    }

    /// A request was not sent, for want of something of our own. Returns until when none is: for 500 ms, then twice
    /// that and so on up to 5 s, less up to half by `rng`.
    ///
    /// `active_us`: what the queue's own clock says.
    pub(super) fn put_off(&mut self, now: Tick, active_us: i64, rng: &mut impl Rng) -> Tick {
        self.lacking.get_or_insert(Lacking { since: now, active_us });
        if self.put_off_until <= now {
            let rest = REST_MIN.saturating_mul(1 << self.put_off.min(8)).min(REST_MAX);
            self.put_off_until = now + rest.mul_f64(rng.random_range(0.5..=1.0));
            self.put_off = self.put_off.saturating_add(1);
        }
        self.end()
    }

    /// Whether the last request was not sent for want of something of our own.
    pub(super) fn is_put_off(&self) -> bool {
        self.put_off > 0
    }

    /// A request that began then was sent: we have what it takes. Returns since when we had not, where that was so.
    pub(super) fn was_sent(&mut self, started: Tick) -> Option<Lacking> {
        self.put_off = 0;
        self.lacking.take_if(|lacking| lacking.since <= started)
    }

    /// Why none is sent now, where none is.
    pub(super) fn why(&self, now: Tick) -> Option<Cause> {
        let cause = if self.put_off_until > now { Cause::Pool } else { Cause::RateLimit };
        self.until(now).map(|_| cause)
    }

    /// When the next request may go, where that is not now.
    pub(super) fn until(&self, now: Tick) -> Option<Tick> {
        Some(self.end()).filter(|end| *end > now)
    }

    fn end(&self) -> Tick {
        self.spaced_until.max(self.paced_until).max(self.put_off_until)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn rest_for_want_of_our_own_grows_up_to_five_seconds_until_a_request_is_sent() {
        let (mut rest, mut rng, mut now) = (Rest::default(), SmallRng::seed_from_u64(1), Tick(1));
        for most in [500, 1_000, 2_000, 4_000, 5_000, 5_000] {
            let until = rest.put_off(now, 0, &mut rng);
            let waits = until.since(now);
            let most = Duration::from_millis(most);
            assert!(waits >= most / 2 && waits <= most, "{waits:?} of {most:?}");
            assert_eq!(rest.put_off(now, 0, &mut rng), until, "others of that moment add nothing");
            assert_eq!(rest.until(now), Some(until));
            now = until;
            assert_eq!(rest.until(now), None);
        }
        rest.was_sent(now);
        assert!(rest.put_off(now, 0, &mut rng).since(now) <= REST_MIN);
    }

    #[test]
    fn requests_are_spaced_by_the_rate_of_the_row() {
        let (mut rest, now) = (Rest::default(), Tick(1));
        for rate in [None, Some(0.0), Some(-1.0)] {
            rest.space(now, rate);
            assert_eq!(rest.until(now), None);
        }
        rest.space(now, Some(4.0));
        rest.space(now, Some(4.0));
        assert_eq!(rest.until(now), Some(now + Duration::from_millis(500)));
    }

    #[test]
    fn rate_that_changes_counts_from_the_last_request() {
        let (mut rest, sent) = (Rest::default(), Tick(1));
        rest.space(sent, Some(0.001));
        let now = sent + Duration::from_secs(2);
        for (rate, seconds) in [(Some(0.1), 10), (Some(0.01), 100), (Some(0.25), 4)] {
            rest.space_anew(rate);
            assert_eq!(rest.until(now), Some(sent + Duration::from_secs(seconds)));
        }
        for rate in [Some(1_000.0), None] {
            rest.space_anew(Some(1e-9));
            assert!(rest.until(now).is_some());
            rest.space_anew(rate);
            assert_eq!(rest.until(now), None);
        }
    }

    #[test]
    fn what_we_lack_is_told_from_the_first_request_that_was_put_off_until_one_is_sent() {
        let (mut rest, mut rng) = (Rest::default(), SmallRng::seed_from_u64(1));
        assert_eq!(rest.was_sent(Tick(10)), None);
        rest.put_off(Tick(20), 120, &mut rng);
        rest.put_off(Tick(30), 130, &mut rng);
        assert_eq!(rest.was_sent(Tick(19)), None, "it had been sent before");
        assert_eq!(rest.was_sent(Tick(40)), Some(Lacking { since: Tick(20), active_us: 120 }));
        assert_eq!(rest.was_sent(Tick(50)), None);
    }
}
