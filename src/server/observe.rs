//! The task that asks the server, every few seconds, how the slot and the state tables stand, and
//! whether publication and catalog still hold what the rules need.

use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;
use tokio::time::Instant;

use super::coverage::Watcher;
use super::source::compile_rules;
use super::{Stop, open_state, published};
use crate::config::Config;
use crate::server::health::Teller;
use crate::server::metrics::Metrics;
use crate::server::trouble::Part;
use walhook_core::halt::Halt;
use walhook_core::lsn::Lsn;
use walhook_postgres::slot;
use walhook_postgres::sql::Connection;
use walhook_rules::rule::EndpointTable;
use walhook_state::StateError;

/// Often enough for an alert, seldom enough to cost nothing.
const EVERY: Duration = Duration::from_secs(5);

/// A server that does not answer in this time is asked again later.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What becomes of changes that lack what a rule needs.
const DEAD: &str = "until then such changes become dead letters";

/// Who leads what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leading {
    pub(super) epoch: i64,
    pub(super) system_identifier: u64,
}

/// Keeps the gauges that only the server knows, until there is a reason to halt. What cannot be asked
/// keeps its value. `evict` is told when cached routes may be outdated without a change that says so.
///
/// Another leader's lease ends it too.
pub(super) async fn observe(
    config: &Config,
    metrics: &Metrics,
    tell: &Teller,
    leading: Leading,
    evict: &watch::Sender<Option<u32>>,
) -> Stop {
    let mut watcher = Watcher::new(config, metrics, leading.system_identifier);
    loop {
        let error = match watch(config, metrics, tell, &mut watcher, leading.epoch, evict).await {
            Ok(halt) => return Stop::Halted(halt),
            Err(error) => error,
        };
        if let Some(StateError::Fenced { .. }) = error.downcast_ref() {
            return Stop::Fenced;
        }
        tell.fails(Part::Observer, Instant::now(), error.as_ref());
        tokio::time::sleep(EVERY).await;
    }
}

/// Asks over and over, on the same sessions, until that fails.
async fn watch(
    config: &Config,
    metrics: &Metrics,
    tell: &Teller,
    watcher: &mut Watcher<'_>,
    epoch: i64,
    evict: &watch::Sender<Option<u32>>,
) -> anyhow::Result<Halt> {
    let client = Connection::open(&config.source.url, "walhook observer").await?;
    let mut state = open_state(config).await?;
    state.write_as(epoch);
    let mut misfit = None;
    loop {
        let asked = async {
            let slot = slot::read(&client, &config.source.slot).await?;
            let published = published::check(config, &client).await?;
            let watched = published::unwatched(config, &client).await?;
            let fit = fit(config, &client).await?;
            anyhow::Ok((slot, state.overview().await?, published, watched, fit))
        };
        let (slot, overview, published, watched, fit) =
            tokio::time::timeout(TIMEOUT, asked).await.context("no answer")??;
        if let Err(halt) = published {
            return Ok(halt);
        }
        match watched {
            Ok(()) => tell.works(Part::Watch),
            Err(halt) => {
                let fix = "see to it that the publication holds the table; `walhook setup` does it";
                tell.fails_with(Part::Watch, Instant::now(), &halt.to_string(), fix);
                evict.send_replace(Some(seen_by_all(&client).await?));
            }
        }
        let (misfits, weak) = match fit {
            Ok(weak) => (None, weak),
            Err(problem) => (Some(problem), Vec::new()),
        };
        let wal_end = slot.as_ref().map_or(Lsn::ZERO, |slot| slot.wal_end);
        misfit =
            misfits.map(|problem| misfit.take().unwrap_or_else(|| Misfit::new(problem, wal_end)));
        if let Some(Misfit { problem, .. }) = misfit.take_if(|m| overview.frontier >= m.seen_at) {
            return Ok(Halt::RuleBroken(problem));
        }
        if misfit.is_none() {
            let looked = watcher.look(&client, &mut state, weak);
            let lost = tokio::time::timeout(TIMEOUT, looked).await.context("no answer")??;
            if lost.is_some() {
                // The endpoint table may be among those that have lost changes.
                evict.send_replace(lost);
            }
        }
        let dead_letters = overview.dead_letters.iter().map(|(_, count)| count).sum();
        metrics.dead_letters.set(dead_letters);
        metrics.gaps.set(i64::try_from(overview.gaps.len()).unwrap_or(i64::MAX));
        if let Some(slot) = slot {
            metrics.set_slot(slot.retained_bytes(), slot.safe_bytes);
            metrics.set_checkpoint_lag(slot.wal_end.bytes_since(overview.frontier));
        }
        tell.works(Part::Observer);
        tokio::time::sleep(EVERY).await;
    }
}

/// A transaction that every look-up from now on sees.
async fn seen_by_all(client: &Connection) -> anyhow::Result<u32> {
    let sql = "SELECT pg_catalog.pg_current_snapshot()::pg_catalog.text";
    let row = client.query_typed_one(sql, &[]).await?;
    let snapshot: &str = row.try_get(0)?;
    let xmin: u64 = snapshot.split(':').next().unwrap_or_default().parse()?;
    Ok(u32::try_from(xmin.wrapping_sub(1) % (1 << 32)).unwrap_or_default())
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

/// What is wrong with the rules now; else with children of their tables. A table that is not written to
/// sends no RELATION message that would tell.
async fn fit(config: &Config, client: &Connection) -> anyhow::Result<Result<Vec<String>, String>> {
    // The number only goes into the ids of events.
    match compile_rules(config, client, 0, EndpointTable::LookedUp).await {
        Ok(rules) => Ok(Ok(rules.weak().iter().map(|weak| format!("{weak}; {DEAD}")).collect())),
        Err(Stop::Config(problem)) => Ok(Err(problem.replace('\n', "; "))),
        Err(stop) => Err(stop.into()),
    }
}
