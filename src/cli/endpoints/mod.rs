//! `walhook endpoints`: list, test.

mod list;
mod test;

#[cfg(test)]
mod tests;

use super::{CommandResult, Common};

/// List endpoints with how they stand, or send one a test event
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
}

/// Runs the subcommand.
///
/// # Errors
/// [`Failure::Failed`](super::Failure::Failed) when a database does not answer, when there is no such
/// endpoint, or when it does not take the test event.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    match args.command {
        Command::List(asked) => list::run(&config, &asked, common.json).await,
        Command::Test { id } => test::run(&config, &id, common.json).await,
    }
}
