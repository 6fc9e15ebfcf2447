//! The checkpoint: where the pipeline goes on, from where it could, and how it is moved.

#[cfg(test)]
mod tests;

use anyhow::{Context, anyhow};
use serde::Serialize;

use super::holder::refuse_while_active;
use super::replay::{Moment, Window};
use super::{Databases, Failure, bytes};
use crate::config::Config;
use walhook_core::event::rfc3339;
use walhook_core::halt::Halt;
use walhook_core::lsn::Lsn;
use walhook_core::replay::{ReplayFilter, ReplayRange};
use walhook_postgres::slot::{self, Slot};
use walhook_postgres::sql::Connection;
use walhook_state::Overview;

/// The checkpoint, and the positions that are possible.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PositionsView {
    /// The checkpoint.
    pub(crate) frontier: String,
    /// When it was written last.
    pub(crate) written_at: String,
    /// Of the slot: what the server will not send again.
    pub(crate) confirmed_flush_lsn: Option<String>,
    /// Of the slot: where decoding begins.
    pub(crate) restart_lsn: Option<String>,
    /// The end of the WAL.
    pub(crate) current_lsn: String,
    /// Null when the slot can send nothing.
    pub(crate) possible: Option<RangeView>,
    /// Why the slot can send nothing, where it is lost.
    pub(crate) lost: Option<String>,
    /// The WAL between the checkpoint and the end.
    pub(crate) lag_bytes: u64,
    /// What lies between the checkpoint and the first position that the slot can still send.
    pub(crate) missing_bytes: u64,
    /// What can be sent again; null without a replay window.
    pub(crate) replayable: Option<RangeView>,
    /// Why there is none.
    pub(crate) no_replay: Option<String>,
}

/// A range of positions.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct RangeView {
    /// Where it begins.
    pub(crate) from: String,
    /// Where it ends.
    pub(crate) to: String,
}

impl PositionsView {
    fn new(overview: &Overview, slot: &Slot, window: Result<Window, String>) -> Self {
        // Below confirmed_flush the server sends nothing, whatever is asked for: it starts there
        // without a word. `restart_lsn` is only where decoding begins.
        let from = slot.confirmed_flush.filter(|_| !slot.is_lost());
        let range = |from: Lsn, to: Lsn| RangeView { from: from.to_string(), to: to.to_string() };
        Self {
            frontier: overview.frontier.to_string(),
            written_at: rfc3339(overview.frontier_at_us),
            confirmed_flush_lsn: slot.confirmed_flush.map(|lsn| lsn.to_string()),
            restart_lsn: slot.restart.map(|lsn| lsn.to_string()),
            current_lsn: slot.wal_end.to_string(),
            possible: from.map(|from| range(from, slot.wal_end)),
            lag_bytes: slot.wal_end.bytes_since(overview.frontier),
            missing_bytes: from.unwrap_or(slot.wal_end).bytes_since(overview.frontier),
            lost: slot.lost.as_ref().map(|why| format!("{why}. {}", why.fix())),
            no_replay: window.as_ref().err().cloned(),
            replayable: window.ok().map(|window| range(window.oldest, window.checkpoint)),
        }
    }
}

/// The checkpoint, and the positions that are possible.
///
/// # Errors
/// When a database does not answer, or there is no slot.
pub(crate) async fn show(config: &Config) -> Result<PositionsView, Failure> {
    let databases = Databases::of(config);
    let state = databases.open_state().await?;
    // The slot first: what a leader confirms is never ahead of the checkpoint at that moment.
    let slot = databases.read_slot().await.context("cannot read the slot from the source")?;
    // Without an anchor there is nothing to send again, and that is no failure here.
    let window = Window::read(config, &state).await.map_err(|failure| failure.to_string());
    let mut overview = state.overview().await?;
    overview.frontier = databases.checkpoint(&state, slot.as_ref()).await?;
    let slot = slot.ok_or_else(|| Halt::SlotMissing {
        slot: config.source.slot.clone(),
        from: overview.frontier,
    })?;
    Ok(PositionsView::new(&overview, &slot, window))
}

/// What a reset comes to.
#[derive(Debug)]
pub(crate) enum Reset {
    /// Back: this is sent again, as a replay.
    Replay(ReplayRange),
    /// Forward: what lies in between is given up.
    Skip(Skip),
}

/// What is given up.
#[derive(Debug)]
pub(crate) struct Skip {
    checkpoint: Lsn,
    to: Lsn,
    source: Connection,
}

/// What was given up.
#[derive(Debug, Serialize)]
pub(crate) struct SkippedView {
    /// From the old checkpoint to the new one.
    pub(crate) skipped: RangeView,
}

impl Reset {
    /// What it does, for whoever is to confirm it.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Replay(range) => format!(
                "This sends again, with the same ids, what was committed from {} to the checkpoint {} \
                 ({} of WAL), to the endpoints of now. `walhook replay start --dry-run` counts it.",
                range.from,
                range.to,
                bytes(range.to.bytes_since(range.from))
            ),
            Self::Skip(Skip { checkpoint, to, .. }) => format!(
                "This gives up what was committed from the checkpoint {checkpoint} to {to} ({} of WAL) \
                 and is not delivered yet. It is recorded in `gaps`.",
                bytes(to.bytes_since(*checkpoint))
            ),
        }
    }
}

/// What a reset to this moment comes to. Changes nothing.
///
/// # Errors
/// When a database does not answer, or the moment is not a possible one.
pub(crate) async fn plan(config: &Config, to: Moment) -> Result<Reset, Failure> {
    let state = Databases::of(config).open_state().await?;
    let checkpoint = state.frontier().await?;
    let to = match to {
        Moment::Position(to) if to > checkpoint => to,
        Moment::Position(_) | Moment::Time(_) | Moment::Oldest => {
            let window = Window::read(config, &state).await?;
            let range = window.range(&state, to, None, ReplayFilter::default()).await?;
            return Ok(Reset::Replay(range));
        }
    };
    let source = Databases::of(config).open_source("walhook checkpoint").await?;
    let wal_end = slot::wal_end(&source).await.context("cannot read the end of the WAL")?;
    if to > wal_end {
        return Err(anyhow!(
            "{to} lies beyond the end of the WAL; the checkpoint {checkpoint} can be moved forward to \
             at most {wal_end}"
        )
        .into());
    }
    Ok(Reset::Skip(Skip { checkpoint, to, source }))
}

impl Skip {
    /// Refuses while an instance runs.
    ///
    /// # Errors
    /// With the process that reads the slot.
    pub(crate) async fn refuse_while_active(&self, databases: Databases<'_>) -> anyhow::Result<()> {
        refuse_while_active(databases, &self.source).await
    }

    /// Moves the checkpoint forward over what is not delivered, and records that.
    ///
    /// # Errors
    /// When the state database does not answer.
    pub(crate) async fn carry_out(&self, databases: Databases<'_>) -> Result<SkippedView, Failure> {
        let Self { checkpoint, to, .. } = *self;
        let reason = "skipped with `walhook checkpoint reset --skip`";
        databases.open_state().await?.accept_gap(checkpoint, to, reason, None).await?;
        let skipped = RangeView { from: checkpoint.to_string(), to: to.to_string() };
        Ok(SkippedView { skipped })
    }
}
