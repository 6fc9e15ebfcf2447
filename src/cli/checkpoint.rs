//! `walhook checkpoint`: where the pipeline goes on, from where it could, and how to reset it.

use std::time::Duration;

use anyhow::anyhow;

use super::confirm::confirm_or_tell;
use super::replay::{Wait, carry_out};
use super::{CommandResult, Common, Failure, print_json, print_line};
use crate::config::Config;
use crate::control::checkpoint::{self, PositionsView};
use crate::control::replay::Moment;
use crate::control::{Databases, bytes};

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
    Reset(Reset),
}

#[derive(Debug, clap::Args)]
struct Reset {
    /// Where to: an LSN, an RFC 3339 time, an age such as 2h, or oldest: as far back as can be
    #[arg(long, value_name = "POSITION", value_parser = Moment::parse)]
    to: Moment,
    /// Forward, too: what lies in between is never sent
    #[arg(long)]
    skip: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Back: how long to wait for the end of the replay; 0s does not wait
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// Runs the subcommand.
///
/// # Errors
/// When a database cannot be reached, there is no slot, or the position is not a possible one.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    match args.command {
        Command::Show => {
            let positions = checkpoint::show(&config).await?;
            if common.json { print_json(&positions) } else { print_line(&text(&positions)) }
        }
        Command::Reset(args) => reset(&config, &args, common.json).await,
    }
}

/// Back sends again, forward skips.
async fn reset(config: &Config, args: &Reset, json: bool) -> CommandResult {
    let databases = Databases::of(config);
    let plan = checkpoint::plan(config, args.to).await?;
    let text = plan.text();
    match plan {
        checkpoint::Reset::Replay(range) => {
            confirm_or_tell("checkpoint reset", &text, databases.pipeline(), args.yes, json)?;
            carry_out(config, &range, Wait::for_range(args.wait), json).await.map(drop)
        }
        checkpoint::Reset::Skip(skip) => {
            if !args.skip {
                return Err(Failure::Usage(anyhow!("{text} If that is meant, add --skip")));
            }
            skip.refuse_while_active(databases).await?;
            confirm_or_tell("checkpoint reset", &text, databases.pipeline(), args.yes, json)?;
            let done = skip.carry_out(databases).await?;
            if json {
                return print_json(&done);
            }
            let (from, to) = (done.skipped.from, done.skipped.to);
            print_line(&format!("skipped {from} to {to}; start `walhook run`"))
        }
    }
}

fn text(positions: &PositionsView) -> String {
    let or_none = |lsn: &Option<String>| lsn.clone().unwrap_or_else(|| "none".to_owned());
    let possible = positions.possible.as_ref().map_or_else(
        || format!("none: the slot is lost: {}", positions.lost.as_deref().unwrap_or_default()),
        |possible| format!("{} to {}", possible.from, possible.to),
    );
    let replayable = positions.replayable.as_ref().map_or_else(
        || format!("none: {}", positions.no_replay.as_deref().unwrap_or_default()),
        |window| format!("{} to {}", window.from, window.to),
    );
    let mut text = format!(
        "checkpoint           {}, written {}, {} behind the WAL\n\
         confirmed_flush_lsn  {}\n\
         restart_lsn          {}\n\
         current WAL          {}\n\
         possible range       {possible}\n\
         can be sent again    {replayable}",
        positions.frontier,
        positions.written_at,
        bytes(positions.lag_bytes),
        or_none(&positions.confirmed_flush_lsn),
        or_none(&positions.restart_lsn),
        positions.current_lsn,
    );
    if positions.missing_bytes > 0 {
        text.push_str(&format!(
            "\nGAP                  the slot can no longer send the {} that follow the checkpoint; \
             `walhook recover --accept-gap` records that and goes on",
            bytes(positions.missing_bytes)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::contract::sample;

    #[test]
    fn checkpoint_is_shown_with_the_range_that_is_possible_or_why_there_is_none() {
        let shown = text(&sample::positions());
        assert!(shown.contains("possible range       0/200 to 0/300"), "{shown}");
        assert!(
            shown.contains("GAP                  the slot can no longer send the 256 B"),
            "{shown}"
        );
        let shown = text(&sample::positions_of_a_lost_slot());
        assert!(shown.contains("possible range       none: the slot is lost: "), "{shown}");
        assert!(shown.contains("can be sent again    none: no window"), "{shown}");
        assert!(!shown.contains("GAP"), "{shown}");
    }
}
