//! `walhook replay`: sends a past range again, beside the live stream.
//!
//! The leader does the sending; what must reach it goes through the table of jobs. Only a dry run is
//! made here: it reads the range and counts.

mod bounds;
mod dry_run;
mod print;

use std::time::Duration;

use anyhow::anyhow;
use serde_json::json;

pub(super) use bounds::{Moment, Window};

use crate::config::Config;
use crate::engine::replay::{ReplayFilter, ReplayRange};
use crate::io::state::{StateStore, StoredReplay};

use super::job::{self, Awaited};
use super::status::open_state;
use super::{CommandResult, Common, Failure, print_json, print_line};

/// Send past events again: same ids, same bodies, marked as replays
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Events keep their ids, so a receiver that drops repeats by webhook-id drops these too. They go to the
endpoints of now, carry the header <prefix>-replay: true, and take what the live stream leaves.

Examples:
  walhook replay start --from 2h --endpoint 17 --dry-run
  walhook replay start --from 2026-11-23T17:00:00Z --to 2026-11-23T18:00:00Z --account 42
  walhook replay start --from 16/B374D848 --type 'subscriber.*'")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Have the leader send a range again
    Start(Start),
    /// List replays, the latest first
    List {
        /// At most so many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=1_000))]
        limit: i64,
    },
    /// End a replay; what it has sent stays sent
    Cancel {
        /// Its id
        id: i64,
    },
}

#[derive(Debug, clap::Args)]
struct Start {
    /// Where it begins: an LSN, an RFC 3339 time, an age such as 2h, or oldest: as far back as can be
    #[arg(long, value_name = "POSITION", value_parser = Moment::parse)]
    from: Moment,
    /// Where it ends; the checkpoint when left out
    #[arg(long, value_name = "POSITION", value_parser = Moment::parse)]
    to: Option<Moment>,
    /// Events of this account only
    #[arg(long, value_name = "ID")]
    account: Option<String>,
    /// Deliveries to this endpoint only
    #[arg(long, value_name = "ID")]
    endpoint: Option<String>,
    /// Events of this type only; also a pattern such as subscriber.*; may be repeated
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Only count what would be sent
    #[arg(long)]
    dry_run: bool,
    /// How long to wait for its end, showing the progress; 0s does not wait
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// Runs the subcommand.
///
/// # Errors
/// [`Failure::Failed`] when the range is not within the replay window, which the message prints, or
/// when the replay ended early.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    match args.command {
        Command::Start(start) => run_start(&config, start, common.json).await,
        Command::List { limit } => {
            let replays = open_state(&config).await?.replays(limit).await?;
            if common.json {
                print_json(&json!({ "replays": replays }))
            } else {
                print_line(&print::list(&replays))
            }
        }
        Command::Cancel { id } => cancel(&config, id, common.json).await,
    }
}

async fn run_start(config: &Config, start: Start, json: bool) -> CommandResult {
    let mut state = open_state(config).await?;
    let window = Window::read(config, &state).await?;
    let filter = ReplayFilter {
        account: start.account,
        endpoint: start.endpoint,
        types: start.types,
        ..ReplayFilter::default()
    };
    let range = window.range(&state, start.from, start.to, filter).await?;
    if start.dry_run {
        let counts = dry_run::count(config, &range).await?;
        return if json { print_json(&counts) } else { print_line(&counts.to_text(&range)) };
    }
    carry_out(config, &mut state, &range, start.wait, json).await
}

/// Asks the leader for the replay, and waits for its end.
pub(super) async fn carry_out(
    config: &Config,
    state: &mut StateStore,
    range: &ReplayRange,
    wait: Duration,
    json: bool,
) -> CommandResult {
    let replay = state.create_replay(range).await?;
    job::note_without_leader(config, &format!("replay {} begins when one does", replay.id)).await;
    let replay = job::wait_for(state, replay, wait).await?;
    if json {
        print_json(&replay)?;
    } else {
        print_line(&print::line(&replay))?;
    }
    match &replay.error {
        Some(error) => Err(anyhow!("replay {}: {error}", replay.id).into()),
        None if !replay.finished && !wait.is_zero() => {
            Err(anyhow!("replay {} is not finished; it goes on without this command", replay.id)
                .into())
        }
        None => Ok(()),
    }
}

impl Awaited for StoredReplay {
    fn is_finished(&self) -> bool {
        self.finished
    }

    fn progress(&self) -> String {
        print::bar(self)
    }

    async fn look_again(&self, state: &StateStore) -> Result<Self, Failure> {
        Ok(state.replay(self.id).await?.ok_or_else(|| anyhow!("replay {} is gone", self.id))?)
    }
}

async fn cancel(config: &Config, id: i64, json: bool) -> CommandResult {
    let mut state = open_state(config).await?;
    if !state.cancel_replay(id).await? {
        let why = match state.replay(id).await? {
            Some(_) => format!("replay {id} has ended already"),
            None => format!("there is no replay {id}; `walhook replay list` shows them"),
        };
        return Err(anyhow!(why).into());
    }
    if json {
        print_json(&json!({ "cancelled": id }))
    } else {
        print_line(&format!("cancelled replay {id}; requests under way may still arrive"))
    }
}

#[cfg(test)]
mod tests;
