//! The task that asks the server, every few seconds, how the slot and the state tables stand, and
//! whether the publication still holds what the rules need.

use std::time::Duration;

use anyhow::Context;

use super::{open_state, published};
use crate::config::Config;
use crate::engine::halt::Halt;
use crate::io::metrics::Metrics;
use crate::io::slot;
use crate::io::sql::Connection;

/// Often enough for an alert, seldom enough to cost nothing.
const EVERY: Duration = Duration::from_secs(5);

/// A server that does not answer in this time is asked again later.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Keeps the gauges that only the server knows, until there is a reason to halt. What cannot be asked
/// keeps its value.
pub(super) async fn observe(config: &Config, metrics: &Metrics) -> Halt {
    loop {
        let error = match watch(config, metrics).await {
            Ok(halt) => return halt,
            Err(error) => error,
        };
        tracing::debug!(error = %format!("{error:#}"), "cannot observe the slot");
        tokio::time::sleep(EVERY).await;
    }
}

/// Asks over and over, on the same sessions, until that fails.
async fn watch(config: &Config, metrics: &Metrics) -> anyhow::Result<Halt> {
    let client = Connection::open(&config.source.url, "walhook observer").await?;
    let state = open_state(config).await?;
    loop {
        let asked = async {
            let slot = slot::read(&client, &config.source.slot).await?;
            let published = published::check(config, &client).await?;
            anyhow::Ok((slot, state.overview().await?, published))
        };
        let (slot, overview, published) =
            tokio::time::timeout(TIMEOUT, asked).await.context("no answer")??;
        if let Err(halt) = published {
            return Ok(halt);
        }
        let dead_letters = overview.dead_letters.iter().map(|(_, count)| count).sum();
        metrics.dead_letters.set(dead_letters);
        metrics.gaps.set(i64::try_from(overview.gaps.len()).unwrap_or(i64::MAX));
        if let Some(slot) = slot {
            metrics.set_slot(slot.retained_bytes(), slot.safe_bytes);
            metrics.set_checkpoint_lag(slot.wal_end.bytes_since(overview.frontier));
        }
        tokio::time::sleep(EVERY).await;
    }
}
