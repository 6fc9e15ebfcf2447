//! walhook is stopped while all go on to commit, and starts again.

use std::time::Duration;

use tokio::time::sleep;

use super::{Disturbance, Doing, Fact};
use crate::load::Options;
use crate::load::stage::{PATIENCE, Stage};

/// See the module's documentation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopped {
    /// At full scale.
    pub(crate) lasts: Duration,
}

impl Disturbance for Stopped {
    fn disturb<'a>(&'a self, stage: &'a mut Stage, options: &'a Options) -> Doing<'a> {
        Box::pin(async move {
            stage.stop().await?;
            sleep(self.lasts.mul_f64(options.scale)).await;
            let missed = stage.small.committed().saturating_sub(stage.small.delivered());
            let leading = stage.run().await?;
            let began = stage.small.now();
            // All that was committed before it led again.
            let target = stage.small.committed();
            let caught_up = async || Ok(stage.small.delivered() >= target);
            stage.world.until("what was missed is delivered", PATIENCE, caught_up).await?;
            let seconds = (stage.small.now() - began).as_secs_f64();
            #[expect(clippy::cast_precision_loss, reason = "some rows")]
            let missed = missed as f64;
            Ok(vec![
                Fact::new("deliveries that it missed", missed),
                Fact::new("s from its start until it led", leading.as_secs_f64()),
                Fact::new("s from then until it had caught up", seconds),
            ])
        })
    }
}
