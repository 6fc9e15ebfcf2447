//! One transaction of a million rows for one account, from its first row until the last is delivered or stored.

use std::time::Duration;

use tokio::time::interval;
use walhook_testkit::receiver::Behaviour;

use super::{Disturbance, Doing, Fact};
use crate::load::Options;
use crate::load::stage::{FIRST, PATIENCE, Stage};

/// From one statement of the transaction to the next, and how many of them a second.
const STATEMENT_EVERY: Duration = Duration::from_millis(100);
const STATEMENTS: i64 = 10;

/// See the module's documentation. Numbers are those at full scale.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Million {
    pub(crate) rows: i64,
    /// Rows that are written a second, at every scale.
    pub(crate) per_second: i64,
    /// What the endpoint takes for a request.
    pub(crate) delay: Duration,
}

impl Disturbance for Million {
    fn arrange<'a>(&'a self, stage: &'a mut Stage, _: &'a Options) -> Doing<'a> {
        Box::pin(async {
            let slow = stage.receiver().await?;
            slow.set_default(Behaviour::delay(self.delay));
            stage.add(FIRST..=FIRST, &slow).await?;
            stage.theirs.push(slow);
            Ok(Vec::new())
        })
    }

    fn disturb<'a>(&'a self, stage: &'a mut Stage, options: &'a Options) -> Doing<'a> {
        Box::pin(async move {
            let began = stage.others.now();
            let mut writer = stage.writer().await?;
            let mut transaction = writer.begin().await?;
            let mut tick = interval(STATEMENT_EVERY);
            let mut left = options.scaled(self.rows);
            while left > 0 {
                tick.tick().await;
                let rows = left.min(self.per_second / STATEMENTS);
                transaction.insert(FIRST, rows, "someone@example.com").await?;
                left -= rows;
            }
            transaction.commit().await?;
            let committed = stage.others.now();
            stage.world.settled(PATIENCE).await?;
            let stored = stage.others.now();
            Ok(vec![
                Fact::new("s until the COMMIT", (committed - began).as_secs_f64()),
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
