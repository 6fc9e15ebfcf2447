//! `walhook replay`: sends a past range again, beside the live stream.
//!
//! The leader does the sending; what must reach it goes through the table of jobs. Only a dry run is
//! made here: it reads the range and counts.

mod bounds;
mod dry_run;
mod print;

use std::time::Duration;

use anyhow::{Context, anyhow};
use serde_json::json;

pub(super) use bounds::{Moment, Window};

use crate::config::Config;
use walhook_core::replay::{ReplayFilter, ReplayRange};
use walhook_postgres::lookup::{self, Lookups, Which};
use walhook_state::{StateStore, StoredReplay};

use super::job::{self, Awaited};
use super::run::until_signal;
use super::status::open_state;
use super::{CommandResult, Common, Failure, print_json, print_line};

/// Send past events again: same ids, same bodies, marked as replays
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Events keep their ids, so a receiver that drops repeats by webhook-id drops these too. They go to the
endpoints of now, carry the header <prefix>-replay: true, and take what the live stream leaves.

What an endpoint does not take is deferred under the replay's id and tried again as all that is deferred,
and so is what is for an endpoint that is paused or whose breaker is open: the replay reads on. So at its
end, deliveries may wait. That is no failure; a dead letter is, and then the command exits with 1.

Examples:
  walhook replay start --from oldest --wait
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
    /// End a replay, and discard what waits of it; what it has sent stays sent
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
    /// Wait until nothing of it waits any more, each delivery taken or dead, at most so long when a time is
    /// given; 0s does not wait at all. Without it: until the range is read to its end, at most 1h
    #[arg(long, num_args = 0..=1, value_name = "TIME", default_missing_value = "forever",
          value_parser = Wait::parse)]
    wait: Option<Wait>,
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wait {
    at_most: Duration,
    /// Not only for the end of the range.
    for_all: bool,
}

/// As good as for ever, and clocks can still be added to.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

impl Wait {
    /// For the end of the range.
    pub(super) fn for_range(at_most: Duration) -> Self {
        Self { at_most, for_all: false }
    }

    fn parse(text: &str) -> Result<Self, humantime::DurationError> {
        let for_all = true;
        match text {
            "forever" => Ok(Self { at_most: FOREVER, for_all }),
            text => humantime::parse_duration(text)
                .map(|time| Self { at_most: time.min(FOREVER), for_all }),
        }
    }
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
    if let Some(endpoint) = &start.endpoint {
        ensure_endpoint(config, endpoint).await?;
    }
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
    let wait = start.wait.unwrap_or(Wait::for_range(Duration::from_secs(3_600)));
    carry_out(config, &mut state, &range, wait, json).await
}

/// A replay goes to the endpoints of now, so to one that is not there it would send nothing, and say
/// nothing of that.
async fn ensure_endpoint(config: &Config, id: &str) -> CommandResult {
    let source = lookup::connect(config.lookups(), "walhook replay").await.context("source.url")?;
    let ids = [id.to_owned()];
    let which = Which { ids: Some(&ids), limit: 1, ..Which::default() };
    let rows = Lookups::of(config.lookups()).list(&source, which).await;
    let rows = rows.context("cannot read the endpoint table")?;
    let table = &config.endpoints.table;
    match rows.first() {
        None => Err(anyhow!(
            "{table} has no endpoint {id}, so nothing would be sent; `walhook endpoints list` shows them"
        )
        .into()),
        Some(row) if !row.enabled => Err(anyhow!(
            "endpoint {id} is switched off in {table}, so nothing would be sent; switch its row on first"
        )
        .into()),
        Some(_) => Ok(()),
    }
}

/// Asks the leader for the replay, and waits for its end.
pub(super) async fn carry_out(
    config: &Config,
    state: &mut StateStore,
    range: &ReplayRange,
    wait: Wait,
    json: bool,
) -> CommandResult {
    let replay = state.create_replay(range).await?;
    let id = replay.id;
    job::note_without_leader(config, &format!("replay {id} begins when one does")).await;
    let Wait { at_most, for_all } = wait;
    let waiting = job::wait_for(state, Waited { replay, for_all }, at_most);
    let Waited { replay, .. } = tokio::select! {
        ended = waiting => ended?,
        signal = until_signal() => {
            signal.map_err(anyhow::Error::from)?;
            return Err(anyhow!(
                "interrupted: replay {id} goes on without this command; `walhook replay list` shows how \
                 far it is, `walhook replay cancel {id}` ends it"
            )
            .into());
        }
    };
    if json {
        print_json(&replay)?;
    } else {
        print_line(&print::line(&replay))?;
        print::remarks(&replay).iter().try_for_each(|remark| print_line(remark))?;
    }
    if at_most.is_zero() { Ok(()) } else { verdict(&replay, for_all) }
}

/// Whether nothing went wrong with what was waited for.
fn verdict(replay: &StoredReplay, for_all: bool) -> CommandResult {
    let StoredReplay { id, dead, in_gaps, waiting, .. } = replay;
    if let Some(error) = &replay.error {
        return Err(anyhow!("replay {id}: {error}").into());
    }
    if *dead > 0 {
        return Err(anyhow!(
            "{dead} deliveries of replay {id} are dead letters: `walhook dead-letters list --replay {id}` \
             shows them and why"
        )
        .into());
    }
    if *in_gaps > 0 {
        return Err(
            anyhow!("{in_gaps} deliveries of replay {id} are counted in gaps, not sent").into()
        );
    }
    if !replay.finished {
        return Err(anyhow!("replay {id} is not finished; it goes on without this command").into());
    }
    if for_all && *waiting > 0 {
        return Err(anyhow!(
            "{waiting} deliveries of replay {id} still wait; they go on without this command"
        )
        .into());
    }
    Ok(())
}

/// A replay, and what of it is waited for.
struct Waited {
    replay: StoredReplay,
    for_all: bool,
}

impl Awaited for Waited {
    fn is_finished(&self) -> bool {
        let Self { replay, for_all } = self;
        if *for_all && replay.error.is_none() { replay.is_over() } else { replay.finished }
    }

    fn progress(&self) -> String {
        print::bar(&self.replay)
    }

    async fn look_again(&self, state: &StateStore) -> Result<Self, Failure> {
        let id = self.replay.id;
        let replay = state.replay(id).await?.ok_or_else(|| anyhow!("replay {id} is gone"))?;
        Ok(Self { replay, for_all: self.for_all })
    }
}

async fn cancel(config: &Config, id: i64, json: bool) -> CommandResult {
    let mut state = open_state(config).await?;
    if !state.cancel_replay(id).await? {
        let why = match state.replay(id).await? {
            Some(_) => format!("replay {id} has ended already, and nothing of it waits"),
            None => format!("there is no replay {id}; `walhook replay list` shows them"),
        };
        return Err(anyhow!(why).into());
    }
    if json {
        print_json(&json!({ "cancelled": id }))
    } else {
        print_line(&format!(
            "cancelled replay {id}: what waits of it is discarded; requests under way may still arrive"
        ))
    }
}

#[cfg(test)]
mod tests;
