//! One connection: that it is counted, and for how long requests may begin on it.
//!
//! It leads to where its host's name led when it was opened, also when the name leads elsewhere since: where requests
//! never pause, nothing else would end it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use super::super::spread::spread;

/// A connection takes no more requests after this time, and up to [`AGE_SPREAD_MS`] more: a customer who moves waits no
/// longer, and a connection a minute is nothing beside what it carries.
const AGE_MIN: Duration = Duration::from_secs(45);

/// In milliseconds: connections that were opened at once do not all end at once.
const AGE_SPREAD_MS: u32 = 30_000;

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

fn age(number: u32) -> Duration {
    AGE_MIN + Duration::from_millis(spread(number, AGE_SPREAD_MS).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_takes_requests_for_45_to_75_seconds() {
        let ages = || (0..1_000).map(age);
        let (shortest, longest) = (ages().min().unwrap(), ages().max().unwrap());
        assert_eq!((shortest.as_secs(), longest.as_secs()), (45, 74));
    }
}
