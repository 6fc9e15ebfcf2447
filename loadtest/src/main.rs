//! Runs a load scenario with goose: its users are small accounts that commit at times drawn beforehand.
//!
//! ```text
//! make loadtest                                        lists the scenarios
//! make loadtest SCENARIO=whale-50ms
//! make loadtest SCENARIO=whale-50ms SCALE=0.1 LOADTEST="--disturbed 10s"
//! ```
//!
//! What goose reports as `SMALL <phase>` is the time from when a commit of a small account was due to the 2xx. The
//! rest of what is measured is printed as tables and written as a page and JSON: see `walhook_loadtest::load`.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use goose::config::GooseConfiguration;
use goose::prelude::*;
use walhook_loadtest::load::users::{Recorded, User};
use walhook_loadtest::load::{Options, run, scenario};
use walhook_loadtest::until_interrupted;

/// The class of the users, in the rows of goose's report, which shows the beginning of a name only.
const CLASS: &str = "SMALL";

/// goose has its users ask for one, so they wait here.
static USERS: Mutex<Vec<User>> = Mutex::new(Vec::new());

#[derive(Debug, Parser)]
#[command(
    about = "Runs a load scenario against a throw-away PostgreSQL; without a name, lists them"
)]
struct Cli {
    /// Which one
    scenario: Option<String>,
    /// How long a disturbance lasts that has no end of its own; the calm before and behind it half as long each
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    disturbed: Duration,
    /// How long the soak takes
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Rows, accounts, endpoints, and the time for which walhook is stopped, are multiplied by it
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Of the times of commits
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where page and figures go
    #[arg(long, default_value = "target/loadtest")]
    out: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let Some(name) = &cli.scenario else {
        for scenario in scenario::all() {
            println!("  {:<16} {}", scenario.name, scenario.about);
        }
        return Ok(());
    };
    let scenario = scenario::named(name)
        .with_context(|| format!("{name:?} is no scenario; without a name they are listed"))?;
    ensure!(cli.scale > 0.0, "a scale is above 0");
    std::fs::create_dir_all(&cli.out)
        .with_context(|| format!("cannot make {}", cli.out.display()))?;
    let options = Options {
        disturbed: cli.disturbed,
        soak: Duration::from_secs_f64(cli.minutes * 60.0),
        scale: cli.scale,
        seed: cli.seed,
    };
    let report = cli.out.join(format!("{name}-goose.html")).display().to_string();
    let outcome = until_interrupted(run(scenario, &options, |users| attack(users, report))).await?;
    outcome.print();
    outcome.write(&cli.out)?;
    println!("page: {}", cli.out.join(format!("{name}.html")).display());
    outcome.ensure()
}

/// goose's part: one user for each account, which runs once and ends by itself.
async fn attack(users: Vec<User>, report: String) -> Result<()> {
    let count = users.len().to_string();
    *USERS.lock().unwrap_or_else(PoisonError::into_inner) = users;
    let configuration = GooseConfiguration::parse_args_default(&[
        "--host",
        "http://127.0.0.1",
        "--users",
        &count,
        "--increase-rate",
        &count,
        "--iterations",
        "1",
        "--no-telnet",
        "--quiet",
        "--no-transaction-metrics",
        "--no-scenario-metrics",
        "--report-file",
        &report,
    ])?;
    let account = scenario!("Small account")
        .register_transaction(transaction!(account).set_name("commit, and be told"));
    GooseAttack::initialize_with_config(configuration)?
        .register_scenario(account)
        .execute()
        .await?;
    Ok(())
}

async fn account(goose: &mut GooseUser) -> TransactionResult {
    let user = USERS.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let Some(mut user) = user else { return Ok(()) };
    while let Some(Recorded { phase, took }) = user.next().await {
        let (took, status, why) = match took {
            Some(took) => (took, Some(200), None),
            None => (Duration::ZERO, None, Some("the webhook did not come")),
        };
        goose
            .record_custom_request_duration(CLASS, phase, took, why.is_none(), status, why)
            .await?;
    }
    Ok(())
}
