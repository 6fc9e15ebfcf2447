//! The task that keeps the replay window: the anchor slot trails the checkpoint, and the history says
//! which position a time was at.
//!
//! Nothing here holds delivery up. Without an anchor there is no replay, and a warning.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;

use super::error::TaskError;
use super::sessions::{Sessions, WINDOW, in_turn};
use super::tasks::{Until, Work};
use crate::server::health::Teller;
use crate::server::metrics::Metrics;
use crate::server::trouble::Part;
use walhook_core::lsn::Lsn;
use walhook_postgres::anchor;
use walhook_postgres::op::TIMES;
use walhook_postgres::slot::{self, Slot};
use walhook_postgres::sql::Connection;

/// How often the anchor is looked at.
const EVERY: Duration = Duration::from_secs(5);

/// How often the history gets an entry.
const RECORD_EVERY: Duration = Duration::from_secs(60);

/// The anchor moves when it is behind its place by this part of the window, for each move reads the
/// WAL in between.
const STEP: u64 = 16;

/// The anchor is touched so many times within `idle_replication_slot_timeout`: one that comes late, or
/// finds the slot being copied, must not lose it.
const TOUCHES: u32 = 5;

/// Between two touches at least: the time-out may be a second.
const TOUCH_EVERY_MIN: Duration = Duration::from_millis(100);

/// Keeps the window. A state database that is away does not keep the anchor from being touched.
pub(super) struct ReplayWindow {
    pub(super) sessions: Arc<Sessions>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tell: Teller,
}

impl Work for ReplayWindow {
    const NAME: &'static str = "replay window";
    const PART: Part = Part::ReplayWindow;
    const UNTIL: Until = Until::Abort;
    const PAUSE: Duration = EVERY;

    async fn work(&mut self) -> Result<Infallible, TaskError> {
        let mut recorded = None;
        loop {
            let checkpoint = in_turn(self.checkpoint()).await?;
            let anchor = self.hold(checkpoint).await?;
            self.metrics
                .replay_window
                .set(i64::try_from(anchor.map_or(0, |a| a.retained)).unwrap_or(i64::MAX));
            if recorded.is_none_or(|at: Instant| at.elapsed() >= RECORD_EVERY) {
                let (wal_end, now_us) = in_turn(self.time()).await?;
                let oldest = anchor.map_or(checkpoint, |anchor| anchor.at);
                in_turn(self.record(now_us, wal_end, oldest)).await?;
                recorded = Some(Instant::now());
            }
            self.tell.works(Self::PART);
            sleep(EVERY).await;
        }
    }
}

impl ReplayWindow {
    async fn checkpoint(&self) -> Result<Lsn, TaskError> {
        let store = self.sessions.state().await?;
        let frontier = store.frontier().await;
        store.end();
        Ok(frontier?)
    }

    async fn record(&self, now_us: i64, wal_end: Lsn, oldest: Lsn) -> Result<(), TaskError> {
        let mut store = self.sessions.state().await?;
        let recorded = store.record_history(now_us, wal_end, oldest).await;
        store.end();
        Ok(recorded?)
    }

    /// The end of the source's WAL, and its clock a moment later, in microseconds since 1970-01-01 UTC.
    /// In this order: what is committed after that moment stands behind that position.
    async fn time(&self) -> Result<(Lsn, i64), TaskError> {
        let client = self.sessions.source().await?;
        let time = source_time(&client).await;
        client.end();
        Ok(time?)
    }

    async fn read(&self) -> Result<Option<Slot>, TaskError> {
        let client = self.sessions.source().await?;
        let anchor = anchor::read(&client, &self.sessions.config.source.slot).await;
        client.end();
        Ok(anchor?)
    }

    /// Brings the anchor to its place: the window behind the checkpoint, or gone where there is none.
    async fn hold(&self, checkpoint: Lsn) -> Result<Option<Anchor>, TaskError> {
        let source = &self.sessions.config.source;
        let (window, name) = (source.replay_window.0, anchor::name(&source.slot));
        let mut found = in_turn(self.read()).await?;
        if found.as_ref().is_some_and(|found| !found.is_ours()) {
            if window == 0 {
                return Ok(None);
            }
            return Err(TaskError::AnchorTaken { name });
        }
        let lost = found.as_ref().and_then(|found| found.lost.as_ref());
        let is_useless = lost.is_some() || window == 0;
        if let Some(why) = lost {
            let fix = why.fix();
            tracing::warn!(slot = %name, "the replay window is lost: {why}; it begins anew now. {fix}");
        }
        if found.is_some() && is_useless {
            self.change(Change::Drop).await?;
            found = None;
        }
        if window == 0 {
            return Ok(None);
        }
        if found.is_none() {
            self.change(Change::Create).await?;
            found = in_turn(self.read()).await?;
        }
        let Some(found) = found else { return Ok(None) };
        let at = found.confirmed_flush.unwrap_or_default();
        let place = Lsn(checkpoint.0.saturating_sub(window));
        if place.bytes_since(at) > window / STEP {
            self.change(Change::Advance(place)).await?;
        }
        Ok(Some(Anchor { at, retained: found.retained_bytes() }))
    }

    /// Changes the anchor, on a session that is open for it: the server may have much WAL to read.
    async fn change(&self, change: Change) -> Result<(), TaskError> {
        let slot = &self.sessions.config.source.slot;
        let name = anchor::name(slot);
        let client = self.sessions.own_source(WINDOW).await?;
        let (changed, cannot) = match change {
            Change::Create => (
                anchor::create(&client, slot).await,
                format!("cannot create the slot {name}; see `walhook check` for free slots"),
            ),
            Change::Advance(to) => (
                anchor::advance(&client, slot, to).await,
                format!("cannot advance the slot {name}"),
            ),
            Change::Drop => {
                (anchor::drop(&client, slot).await, format!("cannot drop the slot {name}"))
            }
        };
        changed.map_err(|source| TaskError::Anchor { cannot, source })
    }
}

/// What is done to the anchor.
enum Change {
    Create,
    Advance(Lsn),
    Drop,
}

/// Keeps the server from giving the anchor up for being idle: it is never read from, and from version 18
/// on `idle_replication_slot_timeout` may be set. A slot counts as used when it was moved, were it to
/// where it is.
///
/// Where that is set, and only there, it has a session of its own: its turn must not come too late.
pub(super) struct Touching {
    pub(super) sessions: Arc<Sessions>,
}

impl Work for Touching {
    const NAME: &'static str = "replay window's slot";
    const PART: Part = Part::ReplayWindow;
    const UNTIL: Until = Until::Abort;
    const PAUSE: Duration = EVERY;

    async fn work(&mut self) -> Result<Infallible, TaskError> {
        loop {
            if in_turn(self.timeout()).await?.is_some() {
                let client = self.sessions.own_source(WINDOW).await?;
                self.touch(&client).await?;
            }
            sleep(EVERY).await;
        }
    }
}

impl Touching {
    async fn timeout(&self) -> Result<Option<Duration>, TaskError> {
        let client = self.sessions.source().await?;
        let timeout = slot::idle_timeout(&client).await;
        client.end();
        Ok(timeout?)
    }

    /// For as long as the server has a time-out.
    async fn touch(&self, client: &Connection) -> Result<(), TaskError> {
        let slot = &self.sessions.config.source.slot;
        while let Some(timeout) = slot::idle_timeout(client).await? {
            if let Some(anchor) = anchor::read(client, slot).await?
                && let Some(at) = anchor.confirmed_flush.filter(|_| !anchor.is_lost())
                && anchor.is_ours()
            {
                match anchor::advance(client, slot, at).await {
                    // It is used at this moment, was moved on, or is gone: the next look tells.
                    Err(error) if error.code().is_some_and(is_passing) => {}
                    touched => touched?,
                }
            }
            sleep((timeout / TOUCHES).clamp(TOUCH_EVERY_MIN, EVERY)).await;
        }
        Ok(())
    }
}

fn is_passing(code: &SqlState) -> bool {
    [
        SqlState::OBJECT_IN_USE,
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        SqlState::UNDEFINED_OBJECT,
        SqlState::INVALID_PARAMETER_VALUE,
    ]
    .contains(code)
}

/// Where the anchor stands, and how much WAL it keeps.
#[derive(Debug, Clone, Copy)]
struct Anchor {
    at: Lsn,
    retained: u64,
}

async fn source_time(client: &Connection) -> Result<(Lsn, i64), tokio_postgres::Error> {
    let wal_end = slot::wal_end(client).await?;
    let sql = format!(
        "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) {TIMES} 1000000)::bigint"
    );
    Ok((wal_end, client.query_typed_one(&sql, &[]).await?.try_get(0)?))
}
