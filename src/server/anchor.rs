//! The task that keeps the replay window: the anchor slot trails the checkpoint, and the history says
//! which position a time was at.
//!
//! Nothing here holds delivery up. Without an anchor there is no replay, and a warning.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;

use super::open_state;
use crate::config::Config;
use crate::server::health::Teller;
use crate::server::metrics::Metrics;
use crate::server::trouble::Part;
use walhook_core::lsn::Lsn;
use walhook_postgres::anchor;
use walhook_postgres::op::TIMES;
use walhook_postgres::slot;
use walhook_postgres::sql::Connection;

/// How often the anchor is looked at.
const EVERY: Duration = Duration::from_secs(5);

/// How often the history gets an entry.
const RECORD_EVERY_US: i64 = 60_000_000;

/// The anchor moves when it is behind its place by this part of the window, for each move reads the
/// WAL in between.
const STEP: u64 = 16;

/// The anchor is touched so many times within `idle_replication_slot_timeout`: one that comes late, or
/// finds the slot being copied, must not lose it.
const TOUCHES: u32 = 5;

/// Between two touches at least: the time-out may be a second.
const TOUCH_EVERY_MIN: Duration = Duration::from_millis(100);

/// Keeps the window until it is dropped.
pub(super) async fn keep(config: &Config, epoch: i64, metrics: &Metrics, tell: &Teller) {
    loop {
        let Err(error) = keep_on_one_session(config, epoch, metrics, tell).await;
        tell.fails(Part::ReplayWindow, Instant::now(), error.as_ref());
        tokio::time::sleep(EVERY).await;
    }
}

/// Until the source's session ends. A state database that is away does not keep the anchor from being
/// touched.
async fn keep_on_one_session(
    config: &Config,
    epoch: i64,
    metrics: &Metrics,
    tell: &Teller,
) -> anyhow::Result<Infallible> {
    let client = Connection::open(&config.source.url, "walhook replay window").await?;
    let window = async {
        while !client.is_closed() {
            let Err(error) = watch(&client, config, epoch, metrics, tell).await;
            tell.fails(Part::ReplayWindow, Instant::now(), error.as_ref());
            tokio::time::sleep(EVERY).await;
        }
    };
    tokio::select! {
        touched = touch(&client, &config.source.slot) => touched,
        () = window => anyhow::bail!("the session of the replay window ended"),
    }
}

/// Keeps the server from giving the anchor up for being idle: it is never read from, and from version 18
/// on `idle_replication_slot_timeout` may be set. A slot counts as used when it was moved, were it to
/// where it is.
async fn touch(client: &Connection, slot: &str) -> anyhow::Result<Infallible> {
    loop {
        let Some(timeout) = slot::idle_timeout(client).await? else {
            tokio::time::sleep(EVERY).await;
            continue;
        };
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
        tokio::time::sleep((timeout / TOUCHES).clamp(TOUCH_EVERY_MIN, EVERY)).await;
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

/// Keeps it on the same sessions until that fails.
async fn watch(
    client: &Connection,
    config: &Config,
    epoch: i64,
    metrics: &Metrics,
    tell: &Teller,
) -> anyhow::Result<Infallible> {
    let (slot, window) = (&config.source.slot, config.source.replay_window.0);
    let mut store = open_state(config).await?;
    store.write_as(epoch);
    let mut recorded_us = 0;
    loop {
        let checkpoint = store.frontier().await?;
        let anchor = hold(client, slot, window, checkpoint).await?;
        metrics
            .replay_window
            .set(i64::try_from(anchor.map_or(0, |a| a.retained)).unwrap_or(i64::MAX));
        let (wal_end, now_us) = source_time(client).await?;
        if now_us >= recorded_us + RECORD_EVERY_US {
            let oldest = anchor.map_or(checkpoint, |anchor| anchor.at);
            store.record_history(now_us, wal_end, oldest).await?;
            recorded_us = now_us;
        }
        tell.works(Part::ReplayWindow);
        tokio::time::sleep(EVERY).await;
    }
}
/// Where the anchor stands, and how much WAL it keeps.
#[derive(Debug, Clone, Copy)]
struct Anchor {
    at: Lsn,
    retained: u64,
}

/// Brings the anchor to its place: `window` behind the checkpoint, or gone where there is no window.
async fn hold(
    client: &Connection,
    slot: &str,
    window: u64,
    checkpoint: Lsn,
) -> anyhow::Result<Option<Anchor>> {
    let name = anchor::name(slot);
    let mut found = anchor::read(client, slot).await?;
    if found.as_ref().is_some_and(|found| !found.is_ours()) {
        if window == 0 {
            return Ok(None);
        }
        anyhow::bail!(
            "the slot {name} is another program's: drop or rename it, and the window begins"
        );
    }
    let why = found.as_ref().and_then(|found| found.lost.as_ref());
    let useless = why.is_some();
    if let Some(why) = why {
        let fix = why.fix();
        tracing::warn!(slot = %name, "the replay window is lost: {why}; it begins anew now. {fix}");
    }
    if found.is_some() && (useless || window == 0) {
        anchor::drop(client, slot).await.with_context(|| format!("cannot drop the slot {name}"))?;
        found = None;
    }
    if window == 0 {
        return Ok(None);
    }
    if found.is_none() {
        let cannot =
            || format!("cannot create the slot {name}; see `walhook check` for free slots");
        anchor::create(client, slot).await.with_context(cannot)?;
        found = anchor::read(client, slot).await?;
    }
    let Some(found) = found else { return Ok(None) };
    let at = found.confirmed_flush.unwrap_or_default();
    let place = Lsn(checkpoint.0.saturating_sub(window));
    if place.bytes_since(at) > window / STEP {
        anchor::advance(client, slot, place)
            .await
            .with_context(|| format!("cannot advance the slot {name}"))?;
    }
    Ok(Some(Anchor { at, retained: found.retained_bytes() }))
}

/// The end of the source's WAL, and its clock a moment later, in microseconds since 1970-01-01 UTC. In
/// this order: what is committed after that moment stands behind that position.
async fn source_time(client: &Connection) -> anyhow::Result<(Lsn, i64)> {
    let wal_end = slot::wal_end(client).await?;
    let sql = format!(
        "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) {TIMES} 1000000)::bigint"
    );
    Ok((wal_end, client.query_one(&sql, &[]).await?.try_get(0)?))
}
