//! `walhook checkpoint`: where the pipeline goes on, from where it could, and how to reset it.

mod reset;

use anyhow::Context;
use serde::Serialize;

use crate::config::Config;
use walhook_core::event::rfc3339;
use walhook_core::halt::Halt;
use walhook_postgres::slot::Slot;
use walhook_state::Overview;

use super::replay::Window;
use super::status::{bytes, checkpoint, open_state, read_slot};
use super::{CommandResult, Common, print_json, print_line};

/// Show the checkpoint, or reset it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Back: everything since is sent again, as a replay beside the live stream, whose own checkpoint never
moves back. Forward: what lies in between is never sent; that needs --skip and is recorded as a gap.

Examples:
  walhook checkpoint reset --to 2026-11-23T17:00:00Z
  walhook checkpoint reset --to 16/B374D848 --skip")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show the checkpoint, and the range of positions that is possible
    Show,
    /// Send everything since a past position again, or skip forward to a later one
    Reset(reset::Reset),
}

/// Runs the subcommand.
///
/// # Errors
/// When a database cannot be reached, there is no slot, or the position is not a possible one.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    match args.command {
        Command::Show => show(&config, common.json).await,
        Command::Reset(args) => reset::run(&config, args, common.json).await,
    }
}

async fn show(config: &Config, json: bool) -> CommandResult {
    let state = open_state(config).await?;
    // The slot first: what a leader confirms is never ahead of the checkpoint at that moment.
    let slot = read_slot(config).await.context("cannot read the slot from the source")?;
    // Without an anchor there is nothing to send again, and that is no failure here.
    let window = Window::read(config, &state).await.map_err(|failure| failure.to_string());
    let mut overview = state.overview().await?;
    overview.frontier = checkpoint(config, &state, slot.as_ref()).await?;
    let slot = slot.ok_or_else(|| Halt::SlotMissing {
        slot: config.source.slot.clone(),
        from: overview.frontier,
    })?;
    let report = Report::new(&overview, &slot, window);
    if json { print_json(&report) } else { print_line(&report.to_text()) }
}

/// What `show` prints. Times are RFC 3339 in UTC.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Report {
    frontier: String,
    written_at: String,
    confirmed_flush_lsn: Option<String>,
    restart_lsn: Option<String>,
    current_lsn: String,
    /// Null when the slot can send nothing.
    possible: Option<Possible>,
    /// Why the slot can send nothing, where it is lost.
    lost: Option<String>,
    lag_bytes: u64,
    /// What lies between the checkpoint and the first position that the slot can still send.
    missing_bytes: u64,
    /// What can be sent again; null without a replay window.
    replayable: Option<Possible>,
    /// Why there is none.
    no_replay: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Possible {
    from: String,
    to: String,
}

impl Report {
    fn new(overview: &Overview, slot: &Slot, window: Result<Window, String>) -> Self {
        // Below confirmed_flush the server sends nothing, whatever is asked for: it starts there
        // without a word. `restart_lsn` is only where decoding begins.
        let from = slot.confirmed_flush.filter(|_| !slot.is_lost());
        Self {
            frontier: overview.frontier.to_string(),
            written_at: rfc3339(overview.frontier_at_us),
            confirmed_flush_lsn: slot.confirmed_flush.map(|lsn| lsn.to_string()),
            restart_lsn: slot.restart.map(|lsn| lsn.to_string()),
            current_lsn: slot.wal_end.to_string(),
            possible: from
                .map(|from| Possible { from: from.to_string(), to: slot.wal_end.to_string() }),
            lag_bytes: slot.wal_end.bytes_since(overview.frontier),
            missing_bytes: from.unwrap_or(slot.wal_end).bytes_since(overview.frontier),
            lost: slot.lost.as_ref().map(|why| format!("{why}. {}", why.fix())),
            no_replay: window.as_ref().err().cloned(),
            replayable: window.ok().map(|window| Possible {
                from: window.oldest.to_string(),
                to: window.checkpoint.to_string(),
            }),
        }
    }

    fn to_text(&self) -> String {
        let or_none = |lsn: &Option<String>| lsn.clone().unwrap_or_else(|| "none".to_owned());
        let possible = self.possible.as_ref().map_or_else(
            || format!("none: the slot is lost: {}", self.lost.as_deref().unwrap_or_default()),
            |possible| format!("{} to {}", possible.from, possible.to),
        );
        let replayable = self.replayable.as_ref().map_or_else(
            || format!("none: {}", self.no_replay.as_deref().unwrap_or_default()),
            |window| format!("{} to {}", window.from, window.to),
        );
        let mut text = format!(
            "checkpoint           {}, written {}, {} behind the WAL\n\
             confirmed_flush_lsn  {}\n\
             restart_lsn          {}\n\
             current WAL          {}\n\
             possible range       {possible}\n\
             can be sent again    {replayable}",
            self.frontier,
            self.written_at,
            bytes(self.lag_bytes),
            or_none(&self.confirmed_flush_lsn),
            or_none(&self.restart_lsn),
            self.current_lsn,
        );
        if self.missing_bytes > 0 {
            text.push_str(&format!(
                "\nGAP                  the slot can no longer send the {} that follow the checkpoint; \
                 `walhook recover --accept-gap` records that and goes on",
                bytes(self.missing_bytes)
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::state_fixture::Fixture;
    use walhook_core::halt::Lost;

    #[tokio::test]
    async fn checkpoint_shows_the_possible_range_and_a_gap() {
        let fixture = Fixture::start().await;
        let (_file, common) = fixture.common(true);
        let show = async || run(Args { command: Command::Show }, &common).await;
        let error = show().await.unwrap_err();
        assert!(format!("{error:?}").contains("walhook recover --accept-gap"), "{error:?}");

        let slot = "SELECT pg_create_logical_replication_slot('p', 'pgoutput')";
        fixture.admin.query_one(slot, &[]).await.unwrap();
        show().await.unwrap();
        let config = fixture.config();
        let mut overview = fixture.open().await.overview().await.unwrap();
        let mut slot = read_slot(&config).await.unwrap().unwrap();
        let behind = Report::new(&overview, &slot, Err("no window".to_owned()));
        assert!(behind.missing_bytes > 0 && behind.to_text().contains("GAP"), "0/100 is long gone");

        overview.frontier = slot.confirmed_flush.unwrap();
        let report = Report::new(&overview, &slot, Err("no window".to_owned()));
        assert_eq!(report.missing_bytes, 0);
        assert_eq!(report.possible.as_ref().unwrap().from, report.frontier);
        assert!(!report.to_text().contains("GAP"));

        slot.lost = Some(Lost::IdleTimeout("5s".to_owned()));
        let report = Report::new(&overview, &slot, Err("no window".to_owned()));
        assert_eq!(report.possible, None);
        let text = report.to_text();
        assert!(text.contains("idle_replication_slot_timeout = 5s"), "{text}");
        assert!(text.contains("can be sent again    none: no window"), "{text}");
    }
}
