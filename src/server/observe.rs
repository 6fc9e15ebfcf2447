//! The task that asks the server, every few seconds, how the slot and the state tables stand, and
//! whether publication and catalog still hold what the rules need.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::coverage::Watcher;
use super::error::TaskError;
use super::held::Held;
use super::leadership::StartError;
use super::published::Problem;
use super::rulebook::{RulesError, compile_with};
use super::sessions::Sessions;
use super::tasks::{Until, Work};
use super::{Stop, published};
use crate::config::Config;
use crate::server::health::Teller;
use crate::server::metrics::Metrics;
use crate::server::trouble::Part;
use walhook_core::halt::Halt;
use walhook_core::lsn::Lsn;
use walhook_postgres::catalog::WhichTypes;
use walhook_postgres::refused_writes::{RefusedWrites, refused_writes};
use walhook_postgres::slot::{self, Slot};
use walhook_postgres::source::{self, Publication};
use walhook_postgres::sql::Connection;
use walhook_postgres::standbys;
use walhook_process::clock::unix_us;
use walhook_rules::rule::EndpointTable;
use walhook_state::Overview;

/// Often enough for an alert, seldom enough to cost nothing.
const EVERY: Duration = Duration::from_secs(5);

/// Where there is much to look at, so that a look takes long, the pause after it is so many times that: at most a tenth
/// of one of the server's cores.
const TIMES_THE_LOOK: u32 = 10;

/// But what has gone wrong is to be noticed within this time.
const AT_LEAST_EVERY: Duration = Duration::from_secs(30);

/// What becomes of changes that lack what a rule needs.
const DEAD: &str = "until then such changes become dead letters";

/// To have looked at everything takes no longer: statements have a time-out of their own, and the session
/// with the state database is another's for moments.
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);

/// Keeps the gauges that only the server knows, until there is a reason to halt. What cannot be asked
/// keeps its value.
pub(super) struct Observer {
    sessions: Arc<Sessions>,
    metrics: Arc<Metrics>,
    tell: Teller,
    watcher: Watcher,
    /// Told when cached routes may be outdated without a change that says so.
    evict: watch::Sender<Option<u32>>,
    /// Why it is to halt.
    halting: Option<Halting>,
    held: Held,
    /// The checkpoint, as it was last seen: it does not move while nothing can be stored.
    frontier: Option<Lsn>,
}

/// What one look has seen.
struct Seen {
    wal_end: Lsn,
    overview: Overview,
    published: Result<(), Halt>,
    watched: Result<(), Problem>,
    /// The tables whose own writes fail because they are published.
    refused: Vec<RefusedWrites>,
    /// What is wrong with the rules, or what they say of children.
    fit: Result<Vec<String>, String>,
}

impl Work for Observer {
    const NAME: &'static str = "observer";
    const PART: Part = Part::Observer;
    const UNTIL: Until = Until::Abort;
    const PAUSE: Duration = EVERY;

    async fn work(&mut self) -> Result<Infallible, TaskError> {
        self.halting = None;
        loop {
            let sessions = Arc::clone(&self.sessions);
            let client = sessions.source().await?;
            let began = Instant::now();
            let looked = timeout(LOOK_TIMEOUT, self.look(&client)).await;
            let Ok(looked) = looked else { return Err(TaskError::NoAnswer(LOOK_TIMEOUT)) };
            client.end();
            looked?;
            self.tell.works(Self::PART);
            sleep(pause(self.held.pause().unwrap_or(EVERY), began.elapsed())).await;
        }
    }
}

/// How long until the next look after one that took so long.
fn pause(usual: Duration, took: Duration) -> Duration {
    usual.max((took * TIMES_THE_LOOK).min(AT_LEAST_EVERY))
}

impl Observer {
    pub(super) fn new(
        sessions: Arc<Sessions>,
        metrics: Arc<Metrics>,
        tell: Teller,
        system_identifier: u64,
        evict: watch::Sender<Option<u32>>,
    ) -> Self {
        let watcher = Watcher::new(Arc::clone(&sessions), Arc::clone(&metrics), system_identifier);
        let (halting, held, frontier) = (None, Held::default(), None);
        Self { sessions, metrics, tell, watcher, evict, halting, held, frontier }
    }

    /// Looks once. A reason to halt is an error that stops the pipeline.
    async fn look(&mut self, client: &Connection) -> Result<(), TaskError> {
        self.metrics.waits.skew.set(skew_seconds(client).await?);
        let waited_for = standbys::waited_for(client, &self.sessions.config.source.slot).await?;
        self.held.look(waited_for, Instant::now(), &self.tell);
        // First: its alerts are for when what follows fails, as where the state database does not answer.
        let slot = slot::read(client, &self.sessions.config.source.slot).await?;
        self.measure(slot.as_ref());
        let Seen { wal_end, overview, published, watched, refused, fit } = self.ask(client).await?;
        self.frontier = Some(overview.frontier);
        self.measure(slot.as_ref());
        match watched {
            Ok(()) => self.tell.works(Part::Watch),
            Err(problem) => {
                let what = problem.describe(&self.sessions.config.source.publication);
                self.tell.fails_with(Part::Watch, Instant::now(), &what, &problem.fix);
                self.evict.send_replace(Some(seen_by_all(client).await?));
            }
        }
        self.tell_of_refused(refused);
        let (found, weak) = match (published, fit) {
            (Err(halt), _) => (Some(halt), Vec::new()),
            (Ok(()), Err(problem)) => (Some(Halt::RuleBroken(problem)), Vec::new()),
            (Ok(()), Ok(weak)) => (None, weak),
        };
        if found.is_none() && self.halting.is_some() {
            tracing::info!(
                "publication and tables are again as the rules need them: going on, without a halt"
            );
        }
        self.halting =
            found.map(|halt| self.halting.take().unwrap_or_else(|| Halting::new(halt, wal_end)));
        let due = self.halting.take_if(|halting| overview.frontier >= halting.seen_at);
        if let Some(Halting { halt, .. }) = due {
            return Err(TaskError::Stop(Stop::Halted(halt)));
        }
        if self.halting.is_none() {
            let lost = self.watcher.look(client, weak).await?;
            if lost.is_some() {
                // The endpoint table may be among those that have lost changes.
                self.evict.send_replace(lost);
            }
        }
        let dead_letters = overview.dead_letters.iter().map(|(_, count)| count).sum();
        self.metrics.dead_letters.set(dead_letters);
        self.metrics.gaps.set(i64::try_from(overview.gaps.len()).unwrap_or(i64::MAX));
        Ok(())
    }

    fn measure(&self, slot: Option<&Slot>) {
        let Some(slot) = slot else { return };
        self.metrics.set_slot(slot.retained_bytes(), slot.safe_bytes);
        if let Some(frontier) = self.frontier {
            self.metrics.set_checkpoint_lag(slot.wal_end.bytes_since(frontier));
        }
    }

    /// Going on helps those whose writes fail no less than to halt would, and all others more.
    fn tell_of_refused(&self, tables: Vec<RefusedWrites>) {
        if tables.is_empty() {
            return self.tell.works(Part::Writes);
        }
        let publication = self.sessions.config.source.publication.clone();
        let problem = StartError::RefusedWrites { publication, tables };
        self.tell.fails(Part::Writes, Instant::now(), &problem);
    }

    async fn ask(&self, client: &Connection) -> Result<Seen, TaskError> {
        let config = &self.sessions.config;
        let (wal_end, published, watched, refused, fit) = client
            .in_one_transaction(async {
                let name = &config.source.publication;
                let publication = source::publication(client, name).await?;
                let publication = publication.as_ref();
                let published = published::check(config, client, publication).await?;
                let watched = published::unwatched(config, client, publication).await?;
                let refused = refused_writes(client, name).await?;
                let fit = fit(config, client, publication).await?;
                // Last: what no longer fits became so before this end of the WAL.
                let slot = slot::read(client, &config.source.slot).await?;
                let wal_end = slot.map_or(Lsn::ZERO, |slot| slot.wal_end);
                Ok::<_, TaskError>((wal_end, published, watched, refused, fit))
            })
            .await?;
        let store = self.sessions.state().await?;
        let overview = store.overview().await;
        store.end();
        Ok(Seen { wal_end, overview: overview?, published, watched, refused, fit })
    }
}

/// How far the server's clock is ahead of this process's, as far as half of the way there and back tells: what
/// deliveries wait for begins by the one, and ends by the other.
async fn skew_seconds(client: &Connection) -> Result<f64, TaskError> {
    let sql = "SELECT pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())";
    let before_us = unix_us();
    let row = client.query_typed_one(sql, &[]).await?;
    let after_us = unix_us();
    let theirs: f64 = row.try_get(0)?;
    let ours_us = before_us.midpoint(after_us);
    #[expect(clippy::cast_precision_loss, reason = "microseconds of today are exact in a float")]
    Ok(theirs - ours_us as f64 / 1e6)
}

/// A transaction that every look-up from now on sees.
async fn seen_by_all(client: &Connection) -> Result<u32, TaskError> {
    let sql = "SELECT pg_catalog.pg_current_snapshot()::pg_catalog.text";
    let row = client.query_typed_one(sql, &[]).await?;
    let snapshot: &str = row.try_get(0)?;
    let xmin = snapshot.split(':').next().unwrap_or_default();
    let xmin: u64 = xmin.parse().map_err(TaskError::Xmin)?;
    Ok(u32::try_from(xmin.wrapping_sub(1) % (1 << 32)).unwrap_or_default())
}

/// What publication and catalog no longer hold, which halts when all from before is settled.
struct Halting {
    halt: Halt,
    /// The end of the WAL then, or a little later. What was written before is delivered first: with a corrected rule it
    /// might not be, and what is in flight would be sent twice.
    seen_at: Lsn,
}

impl Halting {
    fn new(halt: Halt, seen_at: Lsn) -> Self {
        tracing::error!(reason = %halt, "halting once all that came before is settled");
        Self { halt, seen_at }
    }
}

/// What is wrong with the rules now; else with children of their tables. A table that is not written to
/// sends no RELATION message that would tell.
async fn fit(
    config: &Config,
    client: &Connection,
    publication: Option<&Publication>,
) -> Result<Result<Vec<String>, String>, TaskError> {
    let (types, endpoints) = (WhichTypes::OfColumns, EndpointTable::LookedUp);
    // The number only goes into the ids of events.
    match compile_with(config, client, publication, types, 0, endpoints).await {
        Ok(rules) => Ok(Ok(rules.weak().iter().map(|weak| format!("{weak}; {DEAD}")).collect())),
        Err(error @ RulesError::Broken(_)) => Ok(Err(error.to_string().replace('\n', "; "))),
        Err(RulesError::Source(error)) => Err(TaskError::Source(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_that_takes_long_is_followed_by_a_longer_pause_up_to_half_a_minute() {
        for (took_ms, pause_ms) in [(0, 5_000), (400, 5_000), (900, 9_000), (9_000, 30_000)] {
            let [took, expected] = [took_ms, pause_ms].map(Duration::from_millis);
            assert_eq!(pause(EVERY, took), expected, "{took:?}");
        }
    }
}
