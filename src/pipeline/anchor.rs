//! The task that keeps the replay window: the anchor slot trails the checkpoint, and the history says
//! which position a time was at.
//!
//! Nothing here holds delivery up. Without an anchor there is no replay, and a warning.

use std::time::Duration;

use anyhow::Context;

use super::open_state;
use crate::config::Config;
use crate::engine::lsn::Lsn;
use crate::io::anchor;
use crate::io::metrics::Metrics;
use crate::io::op::TIMES;
use crate::io::slot::{self, Slot};
use crate::io::sql::Connection;

/// How often the anchor is looked at.
const EVERY: Duration = Duration::from_secs(5);

/// How often the history gets an entry.
const RECORD_EVERY_US: i64 = 60_000_000;

/// The anchor moves when it is behind its place by this part of the window, for each move reads the
/// WAL in between.
const STEP: u64 = 16;

/// Keeps the window until it is dropped.
pub(super) async fn keep(config: &Config, epoch: i64, metrics: &Metrics) {
    let mut said = String::new();
    loop {
        if let Err(error) = watch(config, epoch, metrics).await {
            let problem = format!("{error:#}");
            if problem != said {
                tracing::warn!(%problem, "cannot keep the replay window; delivery goes on");
                said = problem;
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Keeps it on the same sessions until that fails.
async fn watch(config: &Config, epoch: i64, metrics: &Metrics) -> anyhow::Result<()> {
    let (slot, window) = (&config.source.slot, config.source.replay_window.0);
    let client = Connection::open(&config.source.url, "walhook replay window").await?;
    let mut store = open_state(config).await?;
    store.write_as(epoch);
    let mut recorded_us = 0;
    loop {
        let checkpoint = store.frontier().await?;
        let anchor = hold(&client, slot, window, checkpoint).await?;
        metrics
            .replay_window
            .set(i64::try_from(anchor.map_or(0, |a| a.retained)).unwrap_or(i64::MAX));
        let (wal_end, now_us) = source_time(&client).await?;
        if now_us >= recorded_us + RECORD_EVERY_US {
            let oldest = anchor.map_or(checkpoint, |anchor| anchor.at);
            store.record_history(now_us, wal_end, oldest).await?;
            recorded_us = now_us;
        }
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
    let useless = found.as_ref().is_some_and(Slot::is_lost);
    if useless {
        tracing::warn!(
            slot = %name,
            "the replay window is lost: the server removed its WAL (max_slot_wal_keep_size); it begins \
             anew now"
        );
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
