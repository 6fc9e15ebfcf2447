//! One connection: that it is counted, and for how long requests may begin on it.
//!
//! It leads to where its host's name led when it was opened, also when the name leads elsewhere since: where requests
//! never pause, nothing else would end it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// A connection takes no more requests after this time, and up to [`AGE_SPREAD`] more: a customer who moves waits no
/// longer, and a connection a minute is nothing beside what it carries.
const AGE_MIN: Duration = Duration::from_secs(45);

/// So that connections which were opened at once do not all end at once.
const AGE_SPREAD: Duration = Duration::from_secs(30);

/// One connection among those that are counted.
#[derive(Debug)]
pub(in super::super) struct Open {
    counted: Arc<AtomicUsize>,
    until: Instant,
}

impl Open {
    /// The one with this number, which is counted already.
    pub(super) fn new(counted: &Arc<AtomicUsize>, number: u32, now: Instant) -> Self {
        Self { counted: Arc::clone(counted), until: now + age(number) }
    }

    /// From when on no request begins on it.
    pub(in super::super) fn until(&self) -> Instant {
        self.until
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.counted.fetch_sub(1, Relaxed);
    }
}

/// Evenly spread for numbers that follow each other, however few (by the golden ratio).
fn age(number: u32) -> Duration {
    const GOLDEN: u32 = 0x9e37_79b9;
    AGE_MIN + AGE_SPREAD.mul_f64(f64::from(number.wrapping_mul(GOLDEN)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_connections_that_are_opened_at_once_are_spread() {
        for first in [0, 77, u32::MAX - 50] {
            let mut tenths = [0; 10];
            for n in 0..100 {
                let after = age(first.wrapping_add(n)).checked_sub(AGE_MIN).unwrap();
                let tenth = after.as_millis() * 10 / (AGE_SPREAD.as_millis() + 1);
                tenths[usize::try_from(tenth).unwrap()] += 1;
            }
            assert!(tenths.iter().all(|ends| (7..=13).contains(ends)), "{tenths:?}");
        }
    }
}
