//! `walhook replay`: sends a past range again, beside the live stream.
//!
//! The leader does the sending; what must reach it goes through the table of jobs. Only a dry run is
//! made here: it reads the range and counts.

mod print;

use std::time::Duration;

use anyhow::anyhow;

use super::run::until_signal;
use super::terminal::Terminal;
use super::{CommandResult, Common, Failure, print_json, print_line};
use crate::config::Config;
use crate::control::event_type::type_or_pattern;
use crate::control::replay::{self, Asked, Moment, ReplayRange, ReplayView};
use crate::control::{Databases, Progress, ensure_live};

pub(super) use print::bar;

/// Send past events again: same ids, same bodies, marked as replays
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Events keep their ids, so a receiver that drops repeats by webhook-id drops these too. They go to
the endpoints of now, carry the header <prefix>-replay: true, and take what the live stream leaves.

What an endpoint does not take is deferred under the replay's id and tried again as all that is
deferred, and so is what is for an endpoint that is paused or whose breaker is open: the replay
reads on. So at its end, deliveries may wait. That is no failure; a dead letter is, and then the
command exits with 1.

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
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    account: Option<String>,
    /// Deliveries to this endpoint only
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    endpoint: Option<String>,
    /// Events of this type only; also a pattern such as subscriber.*; may be repeated
    #[arg(long = "type", value_name = "TYPE", value_parser = type_or_pattern)]
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

    /// For the end of all of its deliveries.
    pub(super) fn for_everything(at_most: Duration) -> Self {
        Self { at_most: at_most.min(FOREVER), for_all: true }
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
    let databases = Databases::of(&config);
    match args.command {
        Command::Start(start) => {
            let Start { from, to, account, endpoint, types, dry_run, wait } = start;
            let asked = Asked { from, to, account, endpoint, types };
            if !dry_run {
                ensure_live(&config)?;
            }
            let (range, left_out_bytes) = replay::range(&config, asked).await?;
            let max_hold = config.wal.max_hold;
            if dry_run {
                let counts = replay::count(&config, &range, left_out_bytes).await?;
                if common.json {
                    return print_json(&counts);
                }
                return print_line(&print::counts_text(&counts, &range, max_hold));
            }
            let wait = wait.unwrap_or(Wait::for_range(Duration::from_secs(3_600)));
            let sent = carry_out(&config, &range, wait, common.json).await?;
            if !common.json && sent.finished && sent.is_of_nothing() {
                print_line(
                    "nothing was sent; the same command with --dry-run says what the range has",
                )?;
                let left_out = print::left_out(range.to, left_out_bytes, max_hold);
                return left_out.map_or(Ok(()), |left_out| print_line(&left_out));
            }
            Ok(())
        }
        Command::List { limit } => {
            let list = replay::list(databases, limit).await?;
            if common.json { print_json(&list) } else { print_line(&print::list(&list.replays)) }
        }
        Command::Cancel { id } => {
            let cancelled = replay::cancel(databases, id).await?;
            if common.json {
                return print_json(&cancelled);
            }
            print_line(&format!(
                "cancelled replay {id}: what waits of it is discarded; requests under way may still arrive"
            ))
        }
    }
}

/// Asks the leader for the replay, and waits for its end. Returns it as it is then.
pub(super) async fn carry_out(
    config: &Config,
    range: &ReplayRange,
    wait: Wait,
    json: bool,
) -> Result<ReplayView, Failure> {
    let terminal = Terminal::new();
    let databases = Databases::of(config);
    let started = replay::start(config, range, &mut |p| terminal.tell(p)).await?;
    let id = started.id;
    let Wait { at_most, for_all } = wait;
    let mut tell = |p: Progress<'_>| terminal.tell(p);
    let waiting = replay::wait_for(databases, started, for_all, at_most, &mut tell);
    let replay = tokio::select! {
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
    if !at_most.is_zero() {
        verdict(&replay, for_all)?;
    }
    Ok(replay)
}

/// Whether nothing went wrong with what was waited for.
fn verdict(replay: &ReplayView, for_all: bool) -> CommandResult {
    let ReplayView { id, dead, in_gaps, waiting, .. } = replay;
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
