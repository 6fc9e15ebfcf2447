//! The scenarios that take minutes and move millions of rows. One program, for it links for long.
//!
//! ```text
//! make bench-million BENCH="--rows 100000 --json million.json"
//! cargo build --release -p walhook -p walhook-loadtest && target/release/bench million --help
//! ```

#[path = "../bench/deferred.rs"]
mod deferred;
#[path = "../bench/hostile.rs"]
mod hostile;
#[path = "../bench/million.rs"]
mod million;
#[path = "../bench/outage.rs"]
mod outage;
#[path = "../bench/replay.rs"]
mod replay;

use anyhow::Result;
use clap::{Parser, Subcommand};
use walhook_loadtest::until_interrupted;

#[derive(Debug, Parser)]
#[command(about = "Runs a scenario against a throw-away PostgreSQL, and audits what came of it")]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Every endpoint is dead for minutes, and comes back
    Outage(outage::Args),
    /// A transaction of a million rows for a slow endpoint, beside small accounts
    Million(million::Args),
    /// A million deferred rows: start, fill, drain; then rounds of filling and draining
    Deferred(deferred::Args),
    /// One victim beside each hostile behaviour in turn
    Hostile(hostile::Args),
    /// A past window is sent again beside live traffic
    Replay(replay::Args),
}

#[tokio::main]
async fn main() -> Result<()> {
    let Cli { scenario } = Cli::parse();
    until_interrupted(async {
        match scenario {
            Scenario::Outage(args) => outage::run(args).await,
            Scenario::Million(args) => million::run(args).await,
            Scenario::Deferred(args) => deferred::run(args).await,
            Scenario::Hostile(args) => hostile::run(args).await,
            Scenario::Replay(args) => replay::run(args).await,
        }
    })
    .await
}
