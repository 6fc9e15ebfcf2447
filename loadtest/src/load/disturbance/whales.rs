//! Accounts with far more rows than others, whose endpoints take their time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use walhook_testkit::receiver::Behaviour;
use walhook_testkit::traffic::Traffic;

use super::{Capacity, Disturbance, Doing};
use crate::load::Options;
use crate::load::stage::{FIRST, Stage};
use crate::load::writing::Rows;

/// Requests that one endpoint has in flight at most, where its row says nothing.
const ENDPOINT_LIMIT: u32 = 64;

/// An endpoint's limit begins at 4 and doubles with each round of answers, until it is there: 4 times, and one.
const ROUNDS: u32 = 5;

/// Fast slots by default, less those that are kept for idle accounts.
const FAST_SLOTS: u32 = 248;

/// Between the accounts, so that each has room for the ids of its endpoints.
const APART: i64 = 100_000;

/// Rows of one transaction where they are written as fast as it goes.
const LARGE: i64 = 1_000;

/// See the module's documentation. Numbers are those at full scale, of all whales together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Whales {
    pub(crate) whales: i64,
    pub(crate) rows: i64,
    /// Each row is updated so often behind its insert, and has its order to keep.
    pub(crate) updates: u32,
    /// What an endpoint takes for a request.
    pub(crate) delay: Duration,
    /// Of one whale.
    pub(crate) endpoints: i64,
    /// Changes that are committed a second; none: as fast as it goes, whatever the machine has left.
    pub(crate) per_second: Option<f64>,
}

impl Whales {
    fn account(whale: i64) -> i64 {
        FIRST + whale * APART
    }
}

impl Disturbance for Whales {
    fn arrange<'a>(&'a self, stage: &'a mut Stage, options: &'a Options) -> Doing<'a> {
        Box::pin(async move {
            let slow = stage.receiver().await?;
            slow.set_default(Behaviour::delay(self.delay));
            for whale in 0..self.whales {
                let account = Self::account(whale);
                if self.endpoints == 1 {
                    stage.add(account..=account, &slow).await?;
                } else {
                    stage.add_fan_out(account, options.scaled(self.endpoints), &slow).await?;
                }
            }
            stage.theirs.push(slow);
            Ok(Vec::new())
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "a handful of whales")]
    fn disturb<'a>(&'a self, stage: &'a mut Stage, options: &'a Options) -> Doing<'a> {
        Box::pin(async move {
            let mut traffic = Traffic::default();
            for whale in 0..self.whales {
                let rows = (options.scaled(self.rows) / self.whales).max(1);
                let mut rows = Rows::of(Self::account(whale), rows, 1.0);
                rows.updates = self.updates;
                rows.per_second = self.per_second.map(|all| all / self.whales as f64);
                if self.endpoints > 1 {
                    rows.at_once = 1;
                } else if self.per_second.is_none() {
                    rows.at_once = LARGE;
                }
                // They know nothing of each other: their commits do not come at one moment.
                if let Some(per_second) = rows.per_second {
                    let gap = rows.at_once as f64 / per_second;
                    rows.after = Duration::from_secs_f64(gap * whale as f64 / self.whales as f64);
                }
                rows.start(stage.writer().await?, Arc::clone(&stage.pace), &mut traffic);
            }
            sleep(options.disturbed).await;
            traffic.stop().await?;
            Ok(Vec::new())
        })
    }

    fn relent<'a>(&'a self, stage: &'a mut Stage, _: &'a Options) -> Doing<'a> {
        Box::pin(async {
            stage.theirs.iter().for_each(|receiver| receiver.set_default(Behaviour::ok()));
            Ok(Vec::new())
        })
    }

    fn capacity(&self) -> Option<Capacity> {
        let endpoints = u32::try_from(self.whales * self.endpoints).unwrap_or(u32::MAX);
        let of_endpoints = endpoints.saturating_mul(ENDPOINT_LIMIT);
        // Without a delay it is the machine that bounds, not the slots.
        let in_flight = of_endpoints.min(FAST_SLOTS);
        let after = self.delay * ROUNDS;
        (!self.delay.is_zero()).then_some(Capacity { in_flight, delay: self.delay, after })
    }
}
