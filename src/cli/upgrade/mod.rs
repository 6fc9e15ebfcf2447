//! `walhook upgrade`: over a major upgrade of PostgreSQL without a gap.
//!
//! pg_upgrade takes slots along (from 17 on) when they have read everything. A slot has never read
//! walhook's own last write, so `prepare` looks for itself that nothing is owed, and moves the slots
//! behind it. It writes first and moves then, and where the slots stand says that it came to its end.

mod finish;
mod prepare;

use super::{CommandResult, Common};

/// Slots are carried over by pg_upgrade where the old server has this version or a later one.
const CARRIED: i32 = 170_000;

/// Prepare a major upgrade of PostgreSQL, and go on after it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
  1 stop what writes to the published tables
  2 let `walhook run` deliver what is there, then stop every instance
  3 walhook upgrade prepare     again where something was written since
  4 stop the server, pg_upgrade, start the new server
  5 walhook upgrade finish
  6 walhook run, then let the writes in

To give the upgrade up before step 5 start the old server and `walhook run`: nothing is lost.")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// On the old server: see that nothing is owed, and move the slots to the end of the WAL
    Prepare(prepare::Prepare),
    /// On the new server: adopt it, and go on where the old one ended
    Finish(finish::Finish),
}

/// Runs the subcommand.
///
/// # Errors
/// When a database cannot be reached, or going on would lose something; the message says what to do.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    match args.command {
        Command::Prepare(args) => prepare::run(&config, args, common.json).await,
        Command::Finish(args) => finish::run(&config, args, common.json).await,
    }
}

#[cfg(test)]
mod tests;
