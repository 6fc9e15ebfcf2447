//! `walhook recover`: the ways back after a halt.

use std::time::Duration;

use super::confirm::confirm_or_tell;
use super::gaps;
use super::terminal::Terminal;
use super::{CommandResult, Common, print_json, print_line};
use crate::config::Config;
use crate::control::Progress;
use crate::control::recover::{self, Found, NothingView};
use walhook_core::lsn::Lsn;

/// What the command takes.
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("halt").required(true)
        .args(["accept_gap", "adopt_cluster", "skip_change"]),
    after_help = "\
Shows what it is about to give up, and asks. Refuses while an instance runs. What the anchor slot
still has is not given up: the slot is made of it. What was given up stands in `walhook status` and
`walhook gaps list`, with the command that sends it again where there is one; dead letters stay.
With --accept-gap, where nothing seems wrong with the slot, all that it keeps is read before that is
said, for its WAL may be damaged: with gigabytes of it that takes minutes, and a free slot.

Examples:
  walhook recover --accept-gap            the slot is gone or lost, or begins after the checkpoint;
                                          an older copy of the cluster was put in its place
  walhook recover --adopt-cluster --yes   another server was promoted, and is the right one
  walhook recover --skip-change 0/1BD0498 the transaction with this commit LSN cannot be read"
)]
pub struct Args {
    /// Give up what can be read from no slot any more; make a new slot where it is gone or lost
    #[arg(long)]
    accept_gap: bool,
    /// Go on at the database that answers now, which is another than the one that was set up, or was renamed
    #[arg(long)]
    adopt_cluster: bool,
    /// Give up what cannot be read of the transaction with this commit LSN, which the halt names
    #[arg(long, value_name = "LSN")]
    skip_change: Option<Lsn>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// How long to try to create a slot, which waits for the transactions open at that moment; or to
    /// read up to the transaction that is to be skipped
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// Recovers, after asking. With nothing to recover it says so and succeeds.
///
/// # Errors
/// [`Failure::Halted`](super::Failure::Halted) when the halt is not of the kind that was named; else when it
/// is not confirmed, the slot is in use or the publication is missing, or when a step fails.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    if let Some(commit) = args.skip_change {
        return skip(commit, &args, &config, common).await;
    }
    let plan = match recover::plan(&config, args.adopt_cluster).await? {
        Found::Nothing(why) => return nothing(&why, common),
        Found::Plan(plan) => plan,
    };
    confirm_or_tell("recover", &plan.text, &config.source.slot, args.yes, common.json)?;
    let terminal = Terminal::unless(common.json);
    let mut tell = |p: Progress<'_>| terminal.tell(p);
    let done = plan.carry_out(&config, args.wait, &mut tell).await?;
    if common.json {
        return print_json(&done);
    }
    let done = done.recovered;
    print_line(&format!("recovered  goes on from {}; start `walhook run`", done.to))?;
    done.gap.map_or(Ok(()), |gap| print_line(&format!("gap  {}", gaps::text(&gap))))
}

/// Past a transaction that cannot be read to its end.
async fn skip(commit: Lsn, args: &Args, config: &Config, common: &Common) -> CommandResult {
    let plan = match recover::plan_skip(config, commit, args.wait).await? {
        Found::Nothing(why) => return nothing(&why, common),
        Found::Plan(plan) => plan,
    };
    confirm_or_tell("recover", &plan.text, &config.source.slot, args.yes, common.json)?;
    let done = plan.carry_out().await?;
    if common.json {
        return print_json(&done);
    }
    print_line(&format!("recovered  skips the transaction {commit}; start `walhook run`"))
}

fn nothing(nothing: &NothingView, common: &Common) -> CommandResult {
    if common.json {
        return print_json(nothing);
    }
    print_line(&format!("nothing to recover: {}", nothing.detail))
}
