//! Waiting before a connection is tried again.

use std::time::Duration;

use rand::RngExt;
use tokio::time::sleep;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(200);

/// Waits that double from 50 ms to 5 s, each shortened by up to a half at random, so that many
/// instances do not come back at the same moment.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { next: FIRST }
    }

    /// Waits. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        let wait = self.next.mul_f64(rand::rng().random_range(0.5..=1.0));
        self.next = (self.next * 2).min(LONGEST);
        sleep(wait).await;
    }

    /// For what may pass at any moment: never waits longer than 200 ms.
    pub(super) fn stay_short(&mut self) {
        self.next = self.next.min(SHORT);
    }
}
