//! `walhook check`: is everything in place? Changes nothing.

use super::{CommandResult, Common, print_json, print_line};
use crate::control::check;

/// What the command takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exits with 0 when nothing fails, also with warnings, and with 1 on a failure.

Examples:
  walhook check
  walhook check --json | jq '.findings[] | select(.verdict != \"pass\")'")]
pub struct Args {}

/// Checks.
///
/// # Errors
/// When a finding is a failure.
pub async fn run(_: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    let found = check::run(&config).await?;
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
