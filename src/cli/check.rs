//! `walhook check`: is everything in place? Changes nothing.

use super::run::Role;
use super::{CommandResult, Common, Failure, print_json, print_line};
use crate::config::WorkerConfig;
use crate::control::check::{self, CheckView};

/// What the command takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exits with 0 when nothing fails, also with warnings, and with 1 on a failure.

Examples:
  walhook check
  walhook check --role worker                  as a worker, which has no database
  walhook check --json | jq '.findings[] | select(.verdict != \"pass\")'")]
pub struct Args {
    /// For a process with this role
    #[arg(long, value_enum, default_value_t, value_name = "ROLE")]
    role: Role,
}

/// Checks.
///
/// # Errors
/// When a finding is a failure.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let found = match args.role {
        Role::Worker => check_worker(&common.load_worker()?).await?,
        Role::All | Role::Leader => check::run(&common.load_all()?).await,
    };
    if common.json {
        print_json(&found)?;
    } else {
        found.findings.iter().try_for_each(|finding| print_line(&finding.to_string()))?;
    }
    if found.failures == 0 {
        return Ok(());
    }
    let (failures, warnings) = (found.failures, found.warnings);
    Err(anyhow::anyhow!("check: failures: {failures}, warnings: {warnings}").into())
}

/// A configuration with `[workers]` is refused before.
#[cfg(not(feature = "workers"))]
#[expect(clippy::unused_async, reason = "as where there are some")]
async fn check_worker(_: &WorkerConfig) -> Result<CheckView, Failure> {
    Err(Failure::Usage(anyhow::anyhow!("this build has no workers")))
}

#[cfg(feature = "workers")]
async fn check_worker(config: &WorkerConfig) -> Result<CheckView, Failure> {
    Ok(check::run_worker(config).await)
}
