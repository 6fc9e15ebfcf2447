//! `walhook completions`: a completion script for a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, CommandResult, Common, Failure};

/// What the command takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  walhook completions bash > /etc/bash_completion.d/walhook")]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// When standard output is closed.
pub async fn run(args: Args, _: &Common) -> CommandResult {
    let mut script = vec![];
    clap_complete::generate(args.shell, &mut Cli::command(), "walhook", &mut script);
    let written = std::io::Write::write_all(&mut std::io::stdout(), &script);
    written.map_err(|error| Failure::Failed(error.into()))
}
