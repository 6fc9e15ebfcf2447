//! `walhook upgrade`: over a major upgrade of PostgreSQL without a gap.

use std::time::Duration;

use super::confirm::confirm_or_tell;
use super::terminal::Terminal;
use super::{CommandResult, Common, gaps, print_json, print_line};
use crate::config::Config;
use crate::control::Progress;
use crate::control::upgrade::{self, PreparedView};

/// Prepare a major upgrade of PostgreSQL, and go on after it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
In this order:
  1 stop what writes to the published tables
  2 let `walhook run` deliver what is there, then stop every instance
  3 walhook upgrade prepare     again where something was written since
  4 stop the server, pg_upgrade, start the new server
  5 walhook upgrade finish
  6 walhook run, then let the writes in

To give the upgrade up before step 5 start the old server and `walhook run`: nothing is lost.

Examples:
  walhook upgrade prepare
  walhook upgrade finish")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// On the old server: see that nothing is owed, and move the slots to the end of the WAL
    Prepare(Prepare),
    /// On the new server: adopt it, and go on where the old one ended
    Finish(Finish),
}

#[derive(Debug, clap::Args)]
struct Prepare {
    /// How long to read what the slot has not acknowledged yet
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    wait: Duration,
}

#[derive(Debug, clap::Args)]
struct Finish {
    /// Do not ask, as it does where a gap would be recorded or the host is another
    #[arg(long)]
    yes: bool,
    /// How long to try to create a slot that did not come along
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// Runs the subcommand.
///
/// # Errors
/// When a database cannot be reached, or going on would lose something; the message says what to do.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    match args.command {
        Command::Prepare(args) => {
            let done = upgrade::prepare(&config, args.wait).await?;
            let text = || print_line(&prepared_text(&done));
            if common.json { print_json(&done) } else { text() }
        }
        Command::Finish(args) => finish(&config, &args, common.json).await,
    }
}

async fn finish(config: &Config, args: &Finish, json: bool) -> CommandResult {
    let plan = upgrade::plan_finish(config).await?;
    let is_confirmed = args.yes || plan.known;
    confirm_or_tell("upgrade finish", &plan.text, &config.source.slot, is_confirmed, json)?;
    let terminal = Terminal::unless(json);
    let mut tell = |p: Progress<'_>| terminal.tell(p);
    let done = plan.carry_out(config, args.wait, &mut tell).await?;
    if json {
        return print_json(&done);
    }
    let done = done.finished;
    print_line(&format!(
        "finished  goes on from {}; kept: {} deferred deliveries, {} dead letters. The replay window begins \
         here. Start `walhook run`",
        done.from, done.deferred, done.dead_letters
    ))?;
    done.gap.map_or(Ok(()), |gap| print_line(&format!("gap  {}", gaps::text(&gap))))
}

fn prepared_text(PreparedView { prepared }: &PreparedView) -> String {
    let [slot, anchor] = &prepared.slots;
    let mut lines = vec![format!(
        "prepared  nothing is owed before {}, where the slots {slot} and {anchor} stand",
        prepared.lsn,
    )];
    lines.push(format!(
        "kept      in the state tables: {} deferred deliveries, {} dead letters, {} open gaps",
        prepared.deferred, prepared.dead_letters, prepared.open_gaps
    ));
    lines.push(
        "window    begins anew here: what came before cannot be sent again any more".to_owned(),
    );
    if !prepared.other_slots.is_empty() {
        lines.push(format!(
            "others    pg_upgrade looks at these slots too: {}",
            prepared.other_slots.join(", ")
        ));
    }
    let next = prepared.next.iter().enumerate();
    lines.extend(next.map(|(n, step)| format!("next {}    {step}", n + 1)));
    lines.push("instead   `walhook run` goes on here as before".to_owned());
    lines.join("\n")
}
