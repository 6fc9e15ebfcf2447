//! Workers that cannot tell what became of requests, and a leader that only workers may send for and that has none:
//! nothing may stand still in silence.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};
use walhook_testkit::admin::get;
use walhook_testkit::nats::Nats;

use super::leading::lead;
use super::{run, worker, worker_of};
use crate::support::{PATIENCE, RULES, World};

/// Attempts are overdue soon, and what failed is tried again soon.
const SOON: &str = "[delivery]\ntimeout = \"1s\"\nconnect_timeout = \"1s\"\nretry_base = \"100ms\"\n\
    retry_cap = \"1s\"\n";

pub(super) async fn walhook(world: &World, args: &[&str]) -> Result<String> {
    let output = world.walhook(args).await?;
    Ok(String::from_utf8([output.stdout, output.stderr].concat())?)
}

/// Waits until what fails says this.
pub(super) async fn until_troubled(world: &World, text: &str) -> Result<()> {
    until_said(world.admin, text, true).await
}

/// Waits until what fails says this, or does not.
pub(super) async fn until_said(admin: SocketAddr, text: &str, wanted: bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, troubles) = get(admin, "/troubles").await?;
        if troubles.contains(text) == wanted {
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
    let said = world.until_unready("nobody sends").await?;
    ensure!(said.contains("start workers"), "{said}");
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
    world.until_unready("the bus is away").await?;
    nats.start_again().await?;
    world.until_ready(true).await?;
    Ok(())
}

/// A bus with a user for the leader, whose permissions are these, and one for workers, with all of theirs but `less`.
async fn bus_with(leader: &str, less: &str) -> Result<(Nats, String, String)> {
    let worker = [
        ("publish", ["walhook.walhook.hello", "walhook.walhook.l.>"]),
        ("subscribe", ["walhook.walhook.lead", "walhook.walhook.w.*"]),
    ];
    let worker = worker.map(|(may, subjects)| {
        let subjects = subjects.iter().filter(|subject| **subject != less);
        let subjects: Vec<_> = subjects.map(|subject| format!("\"{subject}\"")).collect();
        format!("{may}: [{}]", subjects.join(", "))
    });
    let nats = Nats::start(&format!(
        "max_payload: 2MB\nauthorization {{ users: [ {{ user: leader, password: a, permissions: {{ publish: [{leader}], \
         subscribe: [\"walhook.walhook.hello\", \"walhook.walhook.l.>\"] }} }}, \
         {{ user: worker, password: b, permissions: {{ {} }} }} ] }}",
        worker.join(", ")
    ))
    .await?;
    let of = |user: &str, password: &str| {
        format!("\"{}\"\nuser = \"{user}\"\npassword = \"{password}\"", nats.url())
    };
    let (leader, worker) = (of("leader", "a"), of("worker", "b"));
    Ok((nats, leader, worker))
}

/// The leader of this configuration, with three endpoints.
async fn led(bus: &str, local: &str) -> Result<(World, walhook_testkit::program::Running)> {
    let sections = format!("[workers]\nurl = {bus}\nlocal = \"{local}\"\n{SOON}");
    let mut world = World::with(&sections, RULES, &[]).await?;
    for id in 1..=3 {
        world.hook(id, id, "").await?;
    }
    let leader = lead(&mut world).await?;
    Ok((world, leader))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_that_may_not_publish_to_workers_sends_itself_and_names_the_permission() -> Result<()>
{
    let (_nats, of_leader, of_worker) = bus_with("\"walhook.walhook.lead\"", "").await?;
    let (world, leader) = led(&of_leader, "fallback").await?;
    let mut program = worker_of(&of_worker)?;
    let _worker = run(&mut program).await?;
    until_troubled(&world, "walhook.walhook.w.>").await?;
    for id in 1..=30 {
        world.subscribe(id, 1 + id % 3).await?;
    }
    world.delivered(30).await.with_context(|| leader.log_tail())?;
    world.settled().await.with_context(|| leader.log_tail())?;
    world.until_metric("walhook_workers{state=\"serving\"}", "0").await?;
    let (_, said) = get(world.admin, "/troubles").await?;
    ensure!(said.contains("Permissions Violation for Publish"), "{said}");
    world.until_ready(true).await?;
    // The worker hears the leader, and no grant.
    program.until_unready("grants no lease").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_that_only_workers_may_send_for_names_what_the_bus_refuses() -> Result<()> {
    let (_nats, of_leader, of_worker) = bus_with("\"walhook.walhook.w.>\"", "").await?;
    let (world, _leader) = led(&of_leader, "never").await?;
    let mut program = worker_of(&of_worker)?;
    let _worker = run(&mut program).await?;
    world.until_unready("nobody sends").await?;
    until_troubled(&world, "Permissions Violation for Publish to \\\"walhook.walhook.lead").await?;
    world.until_unready("walhook.walhook.lead, walhook.walhook.w.>").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_that_may_not_say_that_it_is_there_is_not_ready_and_names_the_permission()
-> Result<()> {
    let publishes = "\"walhook.walhook.lead\", \"walhook.walhook.w.>\"";
    let (_nats, of_leader, of_worker) = bus_with(publishes, "walhook.walhook.hello").await?;
    let (_world, _leader) = led(&of_leader, "fallback").await?;
    let mut program = worker_of(&of_worker)?;
    let worker = run(&mut program).await?;
    let said = program.until_unready("grants no lease").await?;
    ensure!(
        said.contains("Permissions Violation for Publish to \"walhook.walhook.hello"),
        "{said}"
    );
    until_said(program.admin, "walhook.walhook.hello", true).await?;
    let log = worker.log_tail();
    ensure!(log.matches("the bus refused something").count() == 1, "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bus_that_is_away_is_told_also_where_the_leader_sends() -> Result<()> {
    let mut nats = Nats::start("max_payload: 2MB").await?;
    let (world, _leader) = led(&format!("\"{}\"", nats.url()), "fallback").await?;
    nats.kill()?;
    until_troubled(&world, "the bus is away").await?;
    world.until_ready(true).await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = walhook(&world, &["status"]).await?;
        if said.lines().any(|line| line.starts_with("workers ") && line.contains("none; since ")) {
            break;
        }
        ensure!(Instant::now() < deadline, "{said}");
        sleep(Duration::from_millis(100)).await;
    }
    nats.start_again().await?;
    until_said(world.admin, "the bus is away", false).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_too_large_for_the_bus_go_on_once_a_server_that_runs_is_told_to_take_them()
-> Result<()> {
    let mut nats = Nats::start("max_payload: 2MB").await?;
    let (world, leader) = led(&format!("\"{}\"", nats.url()), "never").await?;
    let mut program = worker(&nats)?;
    let _worker = run(&mut program).await?;
    world.until_metric("walhook_workers{state=\"serving\"}", "1").await?;
    // Made smaller while it runs, which its clients learn when they connect anew.
    nats.reload("max_payload: 128KB")?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    let connected = leader.log_tail().matches("the bus is connected").count();
    nats.kill()?;
    nats.start_again().await?;
    let deadline = Instant::now() + PATIENCE;
    while leader.log_tail().matches("the bus is connected").count() == connected {
        ensure!(Instant::now() < deadline, "{}", leader.log_tail());
        sleep(Duration::from_millis(100)).await;
    }
    let large =
        "INSERT INTO subscribers (id, account_id, email) VALUES (2, 2, repeat('x', 200000))";
    world.sql.batch_execute(large).await?;
    until_troubled(&world, "\"oversize\"").await?;
    nats.reload("max_payload: 2MB")?;
    world.delivered(2).await.with_context(|| leader.log_tail())?;
    until_said(world.admin, "\"oversize\"", false).await?;
    Ok(())
}
