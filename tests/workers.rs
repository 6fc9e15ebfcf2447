//! Workers: processes that send for the leader, over a nats-server of the test's own.

mod leading;

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use walhook_testkit::admin::get;
use walhook_testkit::nats::Nats;
use walhook_testkit::program::Program;

/// A worker's whole configuration.
fn worker(nats: &Nats) -> Result<Program> {
    let url = nats.url();
    Program::new(env!("CARGO_BIN_EXE_walhook"), |admin: SocketAddr| {
        format!(
            "[workers]\nurl = \"{url}\"\n[egress]\nallow = [\"127.0.0.0/8\"]\n[admin]\nlisten = \"{admin}\"\n"
        )
    })
}

async fn run(program: &mut Program) -> Result<walhook_testkit::program::Running> {
    let running = program.spawn_role("worker")?;
    running.until_logged("walhook starts as a worker").await?;
    Ok(running)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_needs_no_database_waits_for_a_leader_and_ends_when_told_to() -> Result<()> {
    let mut nats = Nats::start("").await?;
    let mut program = worker(&nats)?;
    let running = run(&mut program).await?;
    running.until_logged("the bus is connected").await?;
    let said = program.until_ready(false).await?;
    assert!(said.contains("no leader was heard yet"), "{said}");
    assert_eq!(get(program.admin, "/livez").await?.0, 200);
    assert_eq!(get(program.admin, "/leaderz").await?.0, 503);
    program.until_metric("walhook_worker_lease_seconds", "0").await?;
    program.until_metric("walhook_worker_in_flight", "0").await?;
    let health = program.walhook(&["health"]).await?;
    assert_eq!(health.status.code(), Some(1));
    let said = String::from_utf8(health.stderr)?;
    assert!(said.contains("not ready: no leader was heard yet"), "{said}");
    assert_eq!(program.walhook(&["health", "--live"]).await?.status.code(), Some(0));

    nats.kill()?;
    running.until_logged("the bus is away; connecting again and again").await?;
    nats.start_again().await?;
    let ended = running.terminate().await?;
    ensure!(ended.success(), "{ended}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_starts_without_its_bus_and_refuses_what_it_cannot_be_run_with() -> Result<()> {
    let mut nats = Nats::start("").await?;
    nats.kill()?;
    let mut program = worker(&nats)?;
    let running = run(&mut program).await?;
    running.until_logged("the bus is away").await?;
    ensure!(running.terminate().await?.success(), "it does not end well");

    for (args, from, to, expected) in [
        (&["run", "--role", "worker", "--record", "x"][..], "", "", "record at the leader"),
        (&["run", "--role", "worker"][..], "[workers]", "[worker]", "did you mean workers?"),
        (&["run", "--role", "worker"][..], "nats://127.0.0.1", "nats://192.0.2.1", "in the clear"),
        (&["run"][..], "", "", "source.url is missing"),
    ] {
        let program = worker(&nats)?;
        if !from.is_empty() {
            program.edit_config(from, to)?;
        }
        let output = program.walhook(args).await?;
        let said = String::from_utf8(output.stderr)?;
        assert!(output.status.code() == Some(2) && said.contains(expected), "{args:?}: {said}");
    }
    Ok(())
}
