//! Transactions that are filled and rolled back, one behind the other: all of it is decoded, sent and kept in vain.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Disturbance, Doing, Fact};
use crate::load::Options;
use crate::load::stage::{FIRST, Stage};
use crate::load::writing::Beat;

/// What a row takes, about: below what PostgreSQL would compress, so that its WAL is as large as what it sends.
const ROW_BYTES: usize = 1_000;

/// See the module's documentation. Numbers are those at full scale.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RolledBack {
    /// What a transaction takes when it is rolled back.
    pub(crate) bytes: usize,
    /// Rows that are written a second, at every scale.
    pub(crate) per_second: i64,
}

impl Disturbance for RolledBack {
    fn arrange<'a>(&'a self, stage: &'a mut Stage, _: &'a Options) -> Doing<'a> {
        Box::pin(async {
            // It is to get nothing; what comes nevertheless is found in the audit.
            let receiver = stage.receiver().await?;
            stage.add(FIRST..=FIRST, &receiver).await?;
            stage.theirs.push(receiver);
            Ok(Vec::new())
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "some gigabytes")]
    fn disturb<'a>(&'a self, stage: &'a mut Stage, options: &'a Options) -> Doing<'a> {
        Box::pin(async move {
            let until = Instant::now() + options.disturbed;
            let full = options.scaled(i64::try_from(self.bytes / ROW_BYTES)?);
            let text = "x".repeat(ROW_BYTES);
            let mut writer = stage.writer().await?;
            let mut beat = Beat::of(self.per_second, Arc::clone(&stage.pace));
            let (mut transactions, mut all) = (0_u32, 0);
            while Instant::now() < until {
                let mut transaction = writer.begin().await?;
                let mut left = full;
                while left > 0 && Instant::now() < until {
                    beat.next().await;
                    let rows = left.min(beat.rows);
                    transaction.insert(FIRST, rows, &text).await?;
                    left -= rows;
                }
                transaction.roll_back().await?;
                transactions += 1;
                all += full - left;
            }
            Ok(vec![
                Fact::new("transactions that were rolled back", f64::from(transactions)),
                Fact::new("GB in them", all as f64 * ROW_BYTES as f64 / 1e9),
            ])
        })
    }
}
