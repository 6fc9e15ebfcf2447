//! `walhook completions`: a completion script for a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, CommandResult, Common};

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
/// When it cannot be written.
pub async fn run(args: Args, _: &Common) -> CommandResult {
    let mut script = vec![];
    clap_complete::generate(args.shell, &mut Cli::command(), "walhook", &mut script);
    super::write_out(&script)
}
