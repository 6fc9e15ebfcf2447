//! Endpoints that were dead come back, and what was deferred for them drains.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use walhook_testkit::receiver::Behaviour;
use walhook_testkit::traffic::Traffic;

use super::{Disturbance, Doing, Fact};
use crate::load::Options;
use crate::load::stage::{FIRST, PATIENCE, Stage};
use crate::load::writing::Rows;

/// What an endpoint takes for a request when it is back: all slots together then drain some 2,500 deliveries a second,
/// and CPU is left.
const DELAY: Duration = Duration::from_millis(100);

/// See the module's documentation. Numbers are those at full scale, of all accounts together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backlog {
    pub(crate) accounts: i64,
    pub(crate) rows: i64,
    pub(crate) per_second: f64,
}

impl Disturbance for Backlog {
    fn arrange<'a>(&'a self, stage: &'a mut Stage, _: &'a Options) -> Doing<'a> {
        Box::pin(async {
            let receiver = stage.receiver().await?;
            receiver.set_default(Behaviour::status(StatusCode::INTERNAL_SERVER_ERROR));
            stage.add(FIRST..=FIRST + self.accounts - 1, &receiver).await?;
            stage.theirs.push(receiver);
            Ok(Vec::new())
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "some rows")]
    fn prepare<'a>(&'a self, stage: &'a mut Stage, options: &'a Options) -> Doing<'a> {
        Box::pin(async move {
            let rows = (options.scaled(self.rows) / self.accounts).max(1);
            let mut traffic = Traffic::default();
            for account in FIRST..FIRST + self.accounts {
                let rows = Rows::of(account, rows, self.per_second / self.accounts as f64);
                let (writer, pace) = (stage.writer().await?, Arc::clone(&stage.pace));
                // Not told to stop: all of it is the backlog.
                traffic.spawn(|_| async move { rows.write(&writer, &pace, None).await });
            }
            traffic.stop().await?;
            stage.world.settled(PATIENCE).await?;
            let stored = stage.world.in_tables().await?;
            Ok(vec![Fact::new("deliveries that were deferred", stored as f64)])
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "some rows")]
    fn disturb<'a>(&'a self, stage: &'a mut Stage, _: &'a Options) -> Doing<'a> {
        Box::pin(async {
            let waiting = stage.waiting();
            stage.theirs.iter().for_each(|receiver| receiver.set_default(Behaviour::delay(DELAY)));
            let Some(took) = stage.drained(PATIENCE).await? else { return Ok(Vec::new()) };
            let seconds = took.as_secs_f64();
            Ok(vec![
                Fact::new("s until all was drained", seconds),
                Fact::new("deliveries drained a second", waiting as f64 / seconds),
            ])
        })
    }
}
