//! When a failed delivery is tried again: exponential backoff with full jitter.
//!
//! Full jitter spreads the deliveries of an endpoint that was down over the whole wait, so that its
//! first moment of health is not its next outage.
//!
//! Source: "Exponential Backoff And Jitter" (AWS Architecture Blog).

use std::time::Duration;

use rand::{Rng, RngExt};

/// No delivery waits longer in memory: while it waits, it holds the checkpoint back, and this is what
/// `wal.max_hold` grants by default. What is to wait longer is deferred.
pub const QUICK_RETRY_MAX: Duration = Duration::from_secs(30);

/// How long to wait after a failure.
///
/// Invariant: 0 < base ≤ cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct RetryPolicy {
    base: Duration,
    cap: Duration,
}

/// The policy makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Retries would follow each other without a pause.
    #[error("retry_base is 0s; set it above 0, such as 10s")]
    BaseIsZero,
    /// The cap is below the base.
    #[error("retry_cap {cap:?} is below retry_base {base:?}; raise retry_cap")]
    CapBelowBase {
        /// The base.
        base: Duration,
        /// The cap.
        cap: Duration,
    },
}

impl RetryPolicy {
    /// Waits of up to `base`, doubled with each further failure, and never above `cap`.
    ///
    /// # Errors
    ///
    /// [`PolicyError`], when not 0 < base ≤ cap.
    pub fn new(base: Duration, cap: Duration) -> Result<Self, PolicyError> {
        if base.is_zero() {
            return Err(PolicyError::BaseIsZero);
        }
        if cap < base {
            return Err(PolicyError::CapBelowBase { base, cap });
        }
        Ok(Self { base, cap })
    }

    /// The longest wait after `failures` failures before the last one: min(cap, base · 2^failures).
    #[must_use]
    pub fn ceiling(&self, failures: u32) -> Duration {
        let factor = 2u32.saturating_pow(failures);
        self.base.saturating_mul(factor).min(self.cap)
    }

    /// A wait that an endpoint asks for, as far as it is granted: at most the cap.
    #[must_use]
    pub fn bounded(&self, wait: Duration) -> Duration {
        wait.min(self.cap)
    }

    /// The longest wait of all.
    #[must_use]
    pub fn cap(&self) -> Duration {
        self.cap
    }

    /// A wait drawn evenly from zero to [`RetryPolicy::ceiling`].
    #[must_use]
    pub fn delay(&self, failures: u32, rng: &mut impl Rng) -> Duration {
        rng.random_range(Duration::ZERO..=self.ceiling(failures))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn retry_policy_is_validated_when_it_is_built() {
        assert_eq!(RetryPolicy::new(seconds(0), seconds(1)), Err(PolicyError::BaseIsZero));
        let (base, cap) = (seconds(2), seconds(1));
        assert_eq!(RetryPolicy::new(base, cap), Err(PolicyError::CapBelowBase { base, cap }));
        assert!(RetryPolicy::new(base, base).is_ok());
    }

    #[test]
    fn retry_delay_doubles_up_to_the_cap_and_is_spread_over_the_whole_range() {
        let policy = RetryPolicy::new(seconds(10), seconds(8 * 3600)).unwrap();
        let ceilings = [0, 1, 2, 11, 12, u32::MAX].map(|n| policy.ceiling(n).as_secs());
        assert_eq!(ceilings, [10, 20, 40, 20_480, 28_800, 28_800]);
        let mut rng = SmallRng::seed_from_u64(1);
        let delays: Vec<Duration> = (0..1_000).map(|_| policy.delay(1, &mut rng)).collect();
        let share = |of: fn(&&Duration) -> bool| delays.iter().filter(of).count();
        assert!((400..600).contains(&share(|delay| **delay < Duration::from_secs(10))));
        assert!(share(|delay| **delay < Duration::from_secs(1)) > 20);
        assert!(share(|delay| **delay > Duration::from_secs(19)) > 20);
    }

    proptest! {
        #[test]
        fn retry_delay_never_exceeds_its_ceiling(
            base_ms in 1u64..u64::MAX / 2, more_ms: u32, failures: u32, seed: u64,
        ) {
            let base = Duration::from_millis(base_ms);
            let cap = base + Duration::from_millis(u64::from(more_ms));
            let policy = RetryPolicy::new(base, cap).unwrap();
            let delay = policy.delay(failures, &mut SmallRng::seed_from_u64(seed));
            prop_assert!(delay <= policy.ceiling(failures) && policy.ceiling(failures) <= cap);
            prop_assert!(policy.ceiling(failures) >= base);
        }

    }

    #[test]
    fn wait_that_an_endpoint_asks_for_is_bounded() {
        let policy = RetryPolicy::new(seconds(1), seconds(60)).unwrap();
        assert_eq!(policy.bounded(seconds(5)), seconds(5));
        assert_eq!(policy.bounded(Duration::MAX), seconds(60));
    }
}
