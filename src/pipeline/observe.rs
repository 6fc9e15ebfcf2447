//! The task that asks the server, every few seconds, how the slot and the state tables stand, and
//! whether publication and catalog still hold what the rules need.

use std::time::Duration;

use anyhow::Context;

use super::source::compile_rules;
use super::{Stop, open_state, published};
use crate::config::Config;
use crate::engine::halt::Halt;
use crate::engine::lsn::Lsn;
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
    let mut misfit = None;
    loop {
        let asked = async {
            let slot = slot::read(&client, &config.source.slot).await?;
            let published = published::check(config, &client).await?;
            let misfits = misfits(config, &client).await?;
            anyhow::Ok((slot, state.overview().await?, published, misfits))
        };
        let (slot, overview, published, misfits) =
            tokio::time::timeout(TIMEOUT, asked).await.context("no answer")??;
        if let Err(halt) = published {
            return Ok(halt);
        }
        let wal_end = slot.as_ref().map_or(Lsn::ZERO, |slot| slot.wal_end);
        misfit =
            misfits.map(|problem| misfit.take().unwrap_or_else(|| Misfit::new(problem, wal_end)));
        if let Some(Misfit { problem, .. }) = misfit.take_if(|m| overview.frontier >= m.seen_at) {
            return Ok(Halt::RuleBroken(problem));
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

/// Rules that no longer fit the catalog.
struct Misfit {
    problem: String,
    /// The end of the WAL then. What was written before it fitted, and is delivered first: with a
    /// corrected rule it might not.
    seen_at: Lsn,
}

impl Misfit {
    fn new(problem: String, seen_at: Lsn) -> Self {
        tracing::error!(%problem, "halting once all that came before is settled");
        Self { problem, seen_at }
    }
}

/// What is wrong with the rules now. A table that is not written to sends no RELATION message that
/// would tell.
async fn misfits(config: &Config, client: &Connection) -> anyhow::Result<Option<String>> {
    // The number only goes into the ids of events.
    match compile_rules(config, client, 0).await {
        Ok(_) => Ok(None),
        Err(Stop::Config(problem)) => Ok(Some(problem.replace('\n', "; "))),
        Err(stop) => Err(stop.into()),
    }
}
