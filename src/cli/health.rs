//! `walhook health`: asks the instance of this configuration whether it does its part.
//!
//! For what watches processes and has no HTTP client at hand: a container's health check.

use super::{CommandResult, Common, print_json, print_line};
use crate::control::health::{self, Question};

/// Ask the instance that runs here with this configuration: is it ready? Exit 0 if so, else 1
///
/// Asks `admin.listen` for /readyz, as a container's health check does.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  walhook health
  walhook health --live || echo 'it does not run'")]
pub struct Args {
    /// Ask only whether it is alive (/livez): also a halted instance is, until it has ended
    #[arg(long)]
    live: bool,
}

/// Runs the command.
///
/// # Errors
/// When the instance does not answer, or answers that it is not ready.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let admin = common.load_admin()?;
    let question = if args.live { Question::Live } else { Question::Ready };
    let health = health::read(&admin, question).await?;
    if common.json {
        print_json(&health)?;
    } else if health.healthy {
        print_line(&health.answer)?;
    }
    if health.healthy {
        return Ok(());
    }
    Err(anyhow::anyhow!("not ready: {}", health.answer.replace('\n', "; ")).into())
}
