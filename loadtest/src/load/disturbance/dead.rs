//! Accounts whose endpoints are dead: a third each refuses connections, answers 500, and never answers.

use std::ops::RangeInclusive;
use std::sync::Arc;

use anyhow::Result;
use axum::http::StatusCode;
use tokio::time::sleep;
use walhook_testkit::receiver::Behaviour;
use walhook_testkit::traffic::Traffic;

use super::{Disturbance, Doing};
use crate::load::Options;
use crate::load::stage::{FIRST, Stage};
use crate::load::writing::Steady;

/// How they are dead.
const WAYS: i64 = 3;

/// See the module's documentation. Numbers are those at full scale.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dead {
    pub(crate) accounts: i64,
    /// Commits of all of them together.
    pub(crate) per_second: f64,
    /// Whether they are dead before their first event. If not, they all die at once when it is to be disturbed, and
    /// commit before that too.
    pub(crate) from_start: bool,
}

impl Dead {
    fn accounts(&self, options: &Options, way: i64) -> RangeInclusive<i64> {
        let each = (options.scaled(self.accounts) / WAYS).max(1);
        FIRST + way * each..=FIRST + (way + 1) * each - 1
    }

    fn die(stage: &mut Stage) {
        if let [refuses, fails, hangs] = &mut stage.theirs[..] {
            refuses.refuse();
            fails.set_default(Behaviour::status(StatusCode::INTERNAL_SERVER_ERROR));
            hangs.set_default(Behaviour::hang());
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    async fn write(&self, stage: &Stage, options: &Options) -> Result<Traffic> {
        let mut traffic = Traffic::default();
        for way in 0..WAYS {
            let accounts = self.accounts(options, way);
            let per_second = self.per_second / WAYS as f64;
            let steady = Steady { accounts, per_second, at_once: 1 };
            let writer = Arc::new(stage.writer().await?);
            steady.start(writer, Some(Arc::clone(&stage.pace)), &mut traffic);
        }
        Ok(traffic)
    }
}

impl Disturbance for Dead {
    fn arrange<'a>(&'a self, stage: &'a mut Stage, options: &'a Options) -> Doing<'a> {
        Box::pin(async move {
            for way in 0..WAYS {
                let receiver = stage.receiver().await?;
                stage.add(self.accounts(options, way), &receiver).await?;
                stage.theirs.push(receiver);
            }
            if self.from_start {
                Self::die(stage);
            }
            Ok(Vec::new())
        })
    }

    fn prepare<'a>(&'a self, stage: &'a mut Stage, options: &'a Options) -> Doing<'a> {
        Box::pin(async move {
            if !self.from_start {
                stage.beside = Some(self.write(stage, options).await?);
            }
            Ok(Vec::new())
        })
    }

    fn disturb<'a>(&'a self, stage: &'a mut Stage, options: &'a Options) -> Doing<'a> {
        Box::pin(async move {
            if self.from_start {
                stage.beside = Some(self.write(stage, options).await?);
            } else {
                Self::die(stage);
            }
            sleep(options.disturbed).await;
            if self.from_start
                && let Some(traffic) = stage.beside.take()
            {
                traffic.stop().await?;
            }
            Ok(Vec::new())
        })
    }

    fn relent<'a>(&'a self, stage: &'a mut Stage, _: &'a Options) -> Doing<'a> {
        Box::pin(async {
            if let [refuses, fails, hangs] = &mut stage.theirs[..] {
                refuses.listen()?;
                fails.set_default(Behaviour::ok());
                hangs.set_default(Behaviour::ok());
            }
            Ok(Vec::new())
        })
    }
}
