//! Many more accounts, each of which commits now and then.

use std::sync::Arc;

use tokio::time::sleep;
use walhook_testkit::traffic::Traffic;

use super::{Disturbance, Doing};
use crate::load::Options;
use crate::load::stage::Stage;
use crate::load::writing::Steady;

/// Sessions that write.
const SESSIONS: i64 = 4;

/// Rows of one transaction, each of another account.
const AT_ONCE: usize = 20;

/// See the module's documentation. Numbers are those at full scale.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crowd {
    pub(crate) accounts: i64,
    /// Rows that all of them together commit.
    pub(crate) per_second: f64,
}

impl Disturbance for Crowd {
    fn arrange<'a>(&'a self, stage: &'a mut Stage, options: &'a Options) -> Doing<'a> {
        Box::pin(async move {
            let receiver = stage.receiver().await?;
            stage.add(Stage::accounts(options, self.accounts), &receiver).await?;
            stage.theirs.push(receiver);
            Ok(Vec::new())
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "a handful of sessions")]
    fn disturb<'a>(&'a self, stage: &'a mut Stage, options: &'a Options) -> Doing<'a> {
        Box::pin(async move {
            let mut traffic = Traffic::default();
            let accounts = Stage::accounts(options, self.accounts);
            let each = (options.scaled(self.accounts) / SESSIONS).max(1);
            for session in 0..SESSIONS.min(options.scaled(self.accounts)) {
                let first = accounts.start() + session * each;
                let steady = Steady {
                    accounts: first..=first + each - 1,
                    per_second: self.per_second / SESSIONS as f64,
                    at_once: AT_ONCE.min(usize::try_from(each)?),
                };
                let writer = Arc::new(stage.writer().await?);
                steady.start(writer, Some(Arc::clone(&stage.pace)), &mut traffic);
            }
            sleep(options.disturbed).await;
            traffic.stop().await?;
            Ok(Vec::new())
        })
    }
}
