//! One session that writes large transactions, with parts that are rolled back, and holds them open while others
//! commit.

use std::time::Duration;

use anyhow::Result;
use rand::RngExt;
use rand::rngs::SmallRng;
use walhook_testkit::oracle::Shared;
use walhook_testkit::traffic::{Stop, Transaction, Writer};

use super::{ACCOUNTS, opened};

/// What a row takes, less the rest of its columns: below what PostgreSQL would compress.
const EMAIL_BYTES: usize = 1_000;

/// Steps of one transaction.
const STEPS: u32 = 6;

/// What PostgreSQL streams, from 64 rows on.
pub(super) const STREAM_ABOVE: &str = "64KiB";

/// Open transactions may keep an eighth of it in memory. From half of that on, some 500 rows, the largest is spooled.
pub(super) const MEMORY: &str = "8MiB";

/// Rows of one step. So all but a few transactions are streamed.
const ROWS: i64 = 30;

/// And of some transactions, which do not fit into memory.
const MANY_ROWS: i64 = 150;

/// Before a step, at most. Others commit meanwhile.
const OPEN: Duration = Duration::from_millis(900);

/// Between two transactions, at most.
const REST: Duration = Duration::from_millis(2_000);

pub(super) struct Session {
    pub(super) url: String,
    pub(super) rng: SmallRng,
    pub(super) oracle: Shared,
}

impl Session {
    pub(super) async fn write(mut self, mut stop: Stop) -> Result<()> {
        let mut writer = None;
        while !stop.is_told() {
            let Some(open) = opened(&mut writer, &self.url, &self.oracle, &mut stop).await else {
                continue;
            };
            // The connection was lost.
            if self.transaction(open, &mut stop).await.is_err() {
                writer = None;
            }
            stop.within(REST.mul_f64(self.rng.random())).await;
        }
        Ok(())
    }

    async fn transaction(&mut self, writer: &mut Writer, stop: &mut Stop) -> Result<()> {
        let rows = if self.rng.random_ratio(1, 3) { MANY_ROWS } else { ROWS };
        let mut transaction = writer.begin().await?;
        let mut kept = Vec::new();
        for _ in 0..STEPS {
            stop.within(OPEN.mul_f64(self.rng.random())).await;
            if self.rng.random_ratio(1, 3) {
                self.nested(&mut transaction, rows).await?;
            } else {
                kept.extend(self.insert(&mut transaction, rows).await?);
            }
        }
        // Nobody else knows of these rows yet.
        let some: Vec<i64> = kept.iter().copied().step_by(5).collect();
        transaction.update(&some).await?;
        if self.rng.random_ratio(1, 4) {
            return transaction.roll_back().await;
        }
        transaction.commit().await?;
        // Right behind it: the events of these rows may not pass those of the large transaction.
        let mut behind = writer.begin().await?;
        behind.update(&some).await?;
        behind.commit().await
    }

    /// A part within a part; either may be rolled back, the inner one also after it was released.
    async fn nested(&mut self, transaction: &mut Transaction<'_>, rows: i64) -> Result<()> {
        let outer = transaction.savepoint().await?;
        self.insert(transaction, rows / 2).await?;
        let inner = transaction.savepoint().await?;
        let ids = self.insert(transaction, rows / 2).await?;
        transaction.delete(&ids[..ids.len() / 4]).await?;
        if self.rng.random() {
            transaction.release(inner).await?;
        } else {
            transaction.roll_back_to(inner).await?;
        }
        if self.rng.random() {
            transaction.release(outer).await
        } else {
            transaction.roll_back_to(outer).await
        }
    }

    async fn insert(&mut self, transaction: &mut Transaction<'_>, rows: i64) -> Result<Vec<i64>> {
        let account = self.rng.random_range(1..=ACCOUNTS);
        transaction.insert(account, rows, &"x".repeat(EMAIL_BYTES)).await
    }
}
