//! `walhook endpoints`: list, test, pause, resume.

mod list;
mod pause;
mod test;

#[cfg(test)]
mod tests;

use super::{CommandResult, Common};

/// List endpoints with how they stand, send one a test event, pause or resume one
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List endpoints, by id: host, account, state, deferred deliveries, dead letters
    List(list::List),
    /// Send an endpoint a signed event of type webhook.test, and show what it answers
    Test {
        /// Its id
        id: String,
    },
    /// Have the leader send nothing to an endpoint: its deliveries wait in order until it is resumed
    Pause(pause::Pause),
    /// Have the leader send to an endpoint again, whether an operator paused it or walhook switched it off
    Resume(pause::Resume),
}

/// Runs the subcommand.
///
/// # Errors
/// [`Failure::Failed`](super::Failure::Failed) when a database does not answer, when there is no such
/// endpoint, when it does not take the test event, or when the leader did not act within the wait.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    match args.command {
        Command::List(asked) => list::run(&config, &asked, common.json).await,
        Command::Test { id } => test::run(&config, &id, common.json).await,
        Command::Pause(asked) => pause::pause(&config, asked, common.json).await,
        Command::Resume(asked) => pause::resume(&config, asked, common.json).await,
    }
}
