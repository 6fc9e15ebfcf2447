//! What was delivered once is sent again, beside live traffic.

use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

use anyhow::ensure;

use super::{Disturbance, Doing, Fact};
use crate::load::Options;
use crate::load::stage::{FIRST, PATIENCE, Stage};

/// Whose events are sent again.
const ACCOUNTS: RangeInclusive<i64> = FIRST..=FIRST + 49;

/// Rows of one transaction.
const TRANSACTION: i64 = 500;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Past {
    /// Changes of the window, at full scale.
    pub(crate) rows: i64,
    /// Where the window begins and ends.
    window: Mutex<[String; 2]>,
}

impl Past {
    pub(crate) fn of(rows: i64) -> Self {
        Self { rows, window: Mutex::default() }
    }

    fn window(&self) -> [String; 2] {
        self.window.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Disturbance for Past {
    fn arrange<'a>(&'a self, stage: &'a mut Stage, _: &'a Options) -> Doing<'a> {
        Box::pin(async {
            let receiver = stage.receiver().await?;
            stage.add(ACCOUNTS, &receiver).await?;
            stage.theirs.push(receiver);
            Ok(Vec::new())
        })
    }

    fn prepare<'a>(&'a self, stage: &'a mut Stage, options: &'a Options) -> Doing<'a> {
        Box::pin(async move {
            let from = stage.position().await?;
            let writer = stage.writer().await?;
            let mut left = options.scaled(self.rows);
            for account in ACCOUNTS.cycle() {
                let rows = left.min(TRANSACTION);
                writer.insert(account, rows, "someone@example.com").await?;
                left -= rows;
                if left == 0 {
                    break;
                }
            }
            ensure!(stage.drained(PATIENCE).await?.is_some(), "the window is not delivered");
            stage.world.settled(PATIENCE).await?;
            let to = stage.position().await?;
            *self.window.lock().unwrap_or_else(PoisonError::into_inner) = [from, to];
            Ok(Vec::new())
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "some rows")]
    fn disturb<'a>(&'a self, stage: &'a mut Stage, _: &'a Options) -> Doing<'a> {
        Box::pin(async {
            let [from, to] = self.window();
            let began = stage.others.now();
            let command = ["replay", "start", "--from", &from, "--to", &to];
            stage.world.walhook.beside(&command).await?;
            let all = stage.others.committed();
            let sent_again = async || Ok(stage.others.replayed() == all);
            stage.world.until("all of it is sent again", PATIENCE, sent_again).await?;
            let seconds = (stage.others.now() - began).as_secs_f64();
            Ok(vec![
                Fact::new("deliveries sent again", all as f64),
                Fact::new("of them a second", all as f64 / seconds),
            ])
        })
    }
}
