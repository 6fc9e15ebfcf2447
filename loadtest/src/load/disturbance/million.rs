//! Transactions of a million rows, each of one account, from the first row until the last is delivered or stored. They
//! are open at once, are written in turn, and commit one behind the other.

use std::sync::Arc;
use std::time::Duration;

use walhook_testkit::receiver::Behaviour;

use super::{Disturbance, Doing, Fact};
use crate::load::Options;
use crate::load::stage::{FIRST, PATIENCE, Stage};
use crate::load::writing::Beat;

/// See the module's documentation. Numbers are those at full scale.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Million {
    /// How many, at every scale.
    pub(crate) transactions: u32,
    /// Of each.
    pub(crate) rows: i64,
    /// Rows that are written a second, in all of them together, at every scale.
    pub(crate) per_second: i64,
    /// What an endpoint takes for a request.
    pub(crate) delay: Duration,
}

impl Disturbance for Million {
    fn arrange<'a>(&'a self, stage: &'a mut Stage, _: &'a Options) -> Doing<'a> {
        Box::pin(async {
            let slow = stage.receiver().await?;
            slow.set_default(Behaviour::delay(self.delay));
            stage.add(FIRST..=FIRST + i64::from(self.transactions) - 1, &slow).await?;
            stage.theirs.push(slow);
            Ok(Vec::new())
        })
    }

    fn disturb<'a>(&'a self, stage: &'a mut Stage, options: &'a Options) -> Doing<'a> {
        Box::pin(async move {
            let began = stage.others.now();
            let mut writers = Vec::new();
            for _ in 0..self.transactions {
                writers.push(stage.writer().await?);
            }
            let mut open = Vec::new();
            for (account, writer) in (FIRST..).zip(&mut writers) {
                open.push((account, writer.begin().await?));
            }
            let mut beat = Beat::of(self.per_second, Arc::clone(&stage.pace));
            let mut left = options.scaled(self.rows);
            while left > 0 {
                let rows = left.min(beat.rows);
                for (account, transaction) in &mut open {
                    beat.next().await;
                    transaction.insert(*account, rows, "someone@example.com").await?;
                }
                left -= rows;
            }
            for (_, transaction) in open {
                transaction.commit().await?;
            }
            let committed = stage.others.now();
            stage.world.settled(PATIENCE * self.transactions).await?;
            let stored = stage.others.now();
            Ok(vec![
                Fact::new("s until the last COMMIT", (committed - began).as_secs_f64()),
                Fact::new(
                    "s behind it until all is delivered or stored",
                    (stored - committed).as_secs_f64(),
                ),
            ])
        })
    }

    fn relent<'a>(&'a self, stage: &'a mut Stage, _: &'a Options) -> Doing<'a> {
        Box::pin(async {
            stage.theirs.iter().for_each(|receiver| receiver.set_default(Behaviour::ok()));
            Ok(Vec::new())
        })
    }
}
