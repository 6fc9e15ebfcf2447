//! Three whales that come and go, for as long as is wanted.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;
use walhook_testkit::receiver::Behaviour;
use walhook_testkit::traffic::{Stop, Traffic, Writer};

use super::{Disturbance, Doing};
use crate::load::Options;
use crate::load::stage::{FIRST, Stage};
use crate::load::watch::Pace;
use crate::load::writing::Rows;

const WHALES: i64 = 3;

/// What an endpoint of theirs takes for a request.
const DELAY: Duration = Duration::from_millis(50);

/// From one coming of a whale to its next; the whales come in turn.
const EVERY: Duration = Duration::from_secs(60);

/// See the module's documentation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Soak {
    /// Of one coming, at full scale.
    pub(crate) rows: i64,
    pub(crate) per_second: f64,
}

impl Disturbance for Soak {
    fn arrange<'a>(&'a self, stage: &'a mut Stage, _: &'a Options) -> Doing<'a> {
        Box::pin(async {
            let receiver = stage.receiver().await?;
            receiver.set_default(Behaviour::delay(DELAY));
            stage.add(FIRST..=FIRST + WHALES - 1, &receiver).await?;
            stage.theirs.push(receiver);
            Ok(Vec::new())
        })
    }

    fn disturb<'a>(&'a self, stage: &'a mut Stage, options: &'a Options) -> Doing<'a> {
        Box::pin(async move {
            let mut traffic = Traffic::default();
            let mut first = Duration::ZERO;
            for account in FIRST..FIRST + WHALES {
                let rows = Rows::of(account, options.scaled(self.rows), self.per_second);
                let (writer, pace) = (Arc::new(stage.writer().await?), Arc::clone(&stage.pace));
                traffic.spawn(move |stop| come_and_go(rows, first, writer, pace, stop));
                first += EVERY / 3;
            }
            sleep(options.soak).await;
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
}

async fn come_and_go(
    rows: Rows,
    first: Duration,
    writer: Arc<Writer>,
    pace: Arc<Pace>,
    mut stop: Stop,
) -> Result<()> {
    if stop.within(first).await {
        return Ok(());
    }
    loop {
        rows.write(&writer, &pace, Some(&mut stop)).await?;
        if stop.within(EVERY).await {
            return Ok(());
        }
    }
}
