//! The log of `walhook run`: it holds nobody up, and says why the program ends.

use std::io::Read;

use anyhow::{Context, Result, ensure};
use walhook_testkit::program::PATIENCE;

use crate::support::{World, text};

/// What a pipe holds, unless it is told otherwise.
const PIPE_BYTES: usize = 64 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_that_nobody_reads_holds_up_neither_deliveries_nor_the_end() -> Result<()> {
    let world = World::new().await?;
    world.hook(1, 1, "").await?;
    let (mut reader, writer) = std::io::pipe()?;
    let env = [("WALHOOK_LOG__LEVEL", "trace")];
    let mut running = world.start_logging_to(&["run"], &env, writer)?;
    // At this level far more than the pipe holds is said of so many.
    let insert =
        "INSERT INTO subscribers (id, account_id) SELECT n, 1 FROM generate_series(1, 500) n";
    world.sql.batch_execute(insert).await?;
    world.delivered(500).await?;
    world.sql.batch_execute("INSERT INTO subscribers (id, account_id) VALUES (501, 1)").await?;
    world.delivered(501).await?;
    let pid = i32::try_from(running.id().context("it has ended")?)?;
    let pid = rustix::process::Pid::from_raw(pid).context("no pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let status = tokio::time::timeout(PATIENCE, running.wait()).await??;
    ensure!(status.success(), "{status}");
    let mut held = Vec::new();
    reader.read_to_end(&mut held)?;
    ensure!(held.len() > PIPE_BYTES / 2, "the pipe was never full: {} bytes", held.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_ends_with_the_reason_in_its_own_format() -> Result<()> {
    let world = World::new().await?;
    world.sql.batch_execute("UPDATE walhook.meta SET host = 'elsewhere'").await?;
    let output = world.walhook(&["run"]).await?;
    let said = text(&output.stderr);
    let last: Vec<&str> = said.lines().rev().take(2).collect();
    ensure!(
        last[0].starts_with("error: ") && last[0].contains("recover --adopt-cluster"),
        "{said}"
    );
    ensure!(last[1].contains("ERROR") && last[1].contains("recover --adopt-cluster"), "{said}");
    for level in ["info", "off"] {
        let env = [("WALHOOK_LOG__FORMAT", "json"), ("WALHOOK_LOG__LEVEL", level)];
        let output = world.walhook_with(&["run"], &env).await?;
        ensure!(output.status.code() == Some(3), "{}", output.status);
        let said = text(&output.stderr);
        let mut last = serde_json::Value::Null;
        for line in said.lines() {
            last = serde_json::from_str(line).with_context(|| said.clone())?;
        }
        ensure!((&last["level"], &last["exit_code"]) == (&"ERROR".into(), &3.into()), "{said}");
        let reason = last["reason"].as_str().unwrap_or_default();
        ensure!(reason.contains("recover --adopt-cluster"), "{said}");
    }
    Ok(())
}
