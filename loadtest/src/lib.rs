//! What the scenarios share: a throw-away PostgreSQL, the real `walhook` beside it, receivers, writers,
//! and books that hold what was committed against what arrived.
//!
//! ```text
//! writers ──► PostgreSQL ──► walhook ──► receivers
//!    └──► books ◄── sample, cpu ──┘  └───► books ──► report, baseline
//! ```
//!
//! Each scenario is a file of `src/bench`, a subcommand of the program `bench`, and a target of the
//! `Makefile` (`bench-outage`, `bench-million`, `bench-deferred`, `bench-replay`, `hostile`). It prints a table and
//! the outcome of its audit, and fails when the audit does. The program `figures` (`make bench`) compares what
//! walhook costs with the least that any program could do, and with what was reached before. `make loadtest`
//! runs what is in [`load`], with goose.

use std::future::Future;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};

pub mod baseline;
pub mod books;
pub mod cpu;
pub mod figure;
pub mod load;
pub mod plot;
pub mod receiver;
pub mod report;
pub mod sample;
pub mod traffic;
pub mod waits;
pub mod workers;
pub mod world;

/// The `walhook` to run: the one that was built beside this program, unless `WALHOOK_LOADTEST_PROGRAM`
/// names another.
///
/// # Errors
/// When there is none.
pub fn program() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("WALHOOK_LOADTEST_PROGRAM") {
        return Ok(program.into());
    }
    let own = std::env::current_exe()?;
    // Cargo puts tests a directory deeper.
    let directory = own.ancestors().skip(1).find(|directory| !directory.ends_with("deps"));
    let beside = directory.context("this program has no directory")?.join("walhook");
    ensure!(
        beside.is_file(),
        "{} is not there; build it, or name another in WALHOOK_LOADTEST_PROGRAM",
        beside.display()
    );
    Ok(beside)
}

/// Runs a scenario. Ctrl-C and SIGTERM end it early; what it started ends when it is dropped.
///
/// # Errors
/// Those of the scenario, or that it was interrupted.
pub async fn until_interrupted<T>(scenario: impl Future<Output = Result<T>>) -> Result<T> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = scenario => done,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}
