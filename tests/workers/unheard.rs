//! Workers that cannot tell what became of requests, and a leader that only workers may send for and that has none:
//! nothing may stand still in silence.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};
use walhook_testkit::admin::get;
use walhook_testkit::nats::Nats;

use super::leading::lead;
use super::{run, worker, worker_of};
use crate::support::{PATIENCE, RULES, World};

/// Attempts are overdue soon.
const SOON: &str =
    "[delivery]\ntimeout = \"1s\"\nconnect_timeout = \"1s\"\nretry_base = \"100ms\"\n";

pub(super) async fn walhook(world: &World, args: &[&str]) -> Result<String> {
    let output = world.walhook(args).await?;
    Ok(String::from_utf8([output.stdout, output.stderr].concat())?)
}

/// Waits until what fails says this.
pub(super) async fn until_troubled(world: &World, text: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, troubles) = get(world.admin, "/troubles").await?;
        if troubles.contains(text) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{troubles}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// A bus that does not carry outcomes, since a line is missing from the permissions of one of its users.
async fn outcomes_do_not_come(publishes: &str, hears: &str) -> Result<()> {
    let leader = format!(
        "{{ user: leader, password: a, permissions: {{ publish: [\"walhook.walhook.lead\", \"walhook.walhook.w.>\"], \
         subscribe: [\"walhook.walhook.hello\"{hears}] }} }}"
    );
    let its_worker = format!(
        "{{ user: worker, password: b, permissions: {{ publish: [\"walhook.walhook.hello\"{publishes}], \
         subscribe: [\"walhook.walhook.lead\", \"walhook.walhook.w.*\"] }} }}"
    );
    let nats = Nats::start(&format!("authorization {{ users: [{leader}, {its_worker}] }}")).await?;
    let bus = |user: &str, password: &str| {
        format!("\"{}\"\nuser = \"{user}\"\npassword = \"{password}\"", nats.url())
    };
    let sections = format!("[workers]\nurl = {}\n{SOON}", bus("leader", "a"));
    let mut world = World::with(&sections, RULES, &[]).await?;
    for id in 1..=4 {
        world.hook(id, id, "").await?;
    }
    let leader = lead(&mut world).await?;
    let mut program = worker_of(&bus("worker", "b"))?;
    let _worker = run(&mut program).await?;
    world.until_metric("walhook_workers{state=\"serving\"}", "1").await?;

    for id in 1..=40 {
        world.subscribe(id, 1 + id % 4).await?;
    }
    world.until_metric("walhook_workers{state=\"mute\"}", "1").await?;
    // What it had is sent again by the leader, which sends everything else too.
    for id in 41..=80 {
        world.subscribe(id, 1 + id % 4).await?;
    }
    world.delivered(80).await.with_context(|| leader.log_tail())?;
    world.settled().await.with_context(|| leader.log_tail())?;
    world.until_ready(true).await?;

    leader.until_logged("a worker is heard, and what becomes of its requests is not").await?;
    let (status, troubles) = get(world.admin, "/troubles").await?;
    ensure!(status == 200 && troubles.contains("\"outcomes\""), "{troubles}");
    let said = walhook(&world, &["status"]).await?;
    ensure!(said.contains("FAILING") && said.contains("walhook.walhook.l.>"), "{said}");
    let said = walhook(&world, &["workers", "list"]).await?;
    ensure!(said.contains("mute"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_that_may_not_publish_its_outcomes_is_told_and_the_leader_sends() -> Result<()> {
    outcomes_do_not_come("", ", \"walhook.walhook.l.>\"").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_that_may_not_hear_outcomes_says_so_and_sends_itself() -> Result<()> {
    outcomes_do_not_come(", \"walhook.walhook.l.>\"", "").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_that_only_workers_may_send_for_is_not_ready_without_one_and_says_why() -> Result<()>
{
    let mut nats = Nats::start("max_payload: 2MB").await?;
    let sections = format!("[workers]\nurl = \"{}\"\nlocal = \"never\"\n", nats.url());
    let mut world = World::with(&sections, RULES, &[]).await?;
    for id in 1..=3 {
        world.hook(id, id, "").await?;
    }
    let _leader = lead(&mut world).await?;
    for id in 1..=3 {
        world.subscribe(id, id).await?;
    }
    let said = world.until_ready(false).await?;
    ensure!(said.contains("nobody sends") && said.contains("start workers"), "{said}");
    let said = walhook(&world, &["status"]).await?;
    ensure!(said.contains("FAILING") && said.contains("sending, since"), "{said}");
    ensure!(said.contains("pool: ") && !said.contains("turn: "), "{said}");

    let mut program = worker(&nats)?;
    program.edit_config("127.0.0.0/8", "127.0.0.0/16")?;
    let refused = run(&mut program).await?;
    until_troubled(&world, "is refused").await?;
    refused.kill().await?;

    let mut program = worker(&nats)?;
    let _worker = run(&mut program).await?;
    world.delivered(3).await?;
    world.until_ready(true).await?;

    nats.kill()?;
    let said = world.until_ready(false).await?;
    ensure!(said.contains("the bus is away"), "{said}");
    nats.start_again().await?;
    world.until_ready(true).await?;
    Ok(())
}
