//! Permissions of the bus's users that are taken away while leader and workers run, and given back: nobody is started
//! again, and what is said of it is true before and after.

use anyhow::{Context, Result, ensure};
use walhook_testkit::admin::get;
use walhook_testkit::nats::Nats;

use super::leading::lead;
use super::unheard::{until_said, until_troubled};
use super::{run, worker_of};
use crate::support::{RULES, World};

/// What the two users may subscribe to.
fn users(leader: &str, worker: &str) -> String {
    format!(
        "max_payload: 2MB\nauthorization {{ users: [ {{ user: leader, password: a, permissions: {{ \
         publish: [\"walhook.walhook.lead\", \"walhook.walhook.w.>\"], subscribe: [{leader}] }} }}, \
         {{ user: worker, password: b, permissions: {{ publish: [\"walhook.walhook.hello\", \"walhook.walhook.l.>\"], \
         subscribe: [{worker}] }} }} ] }}"
    )
}

const OF_LEADER: &str = "\"walhook.walhook.hello\", \"walhook.walhook.l.>\"";
const OF_WORKER: &str = "\"walhook.walhook.lead\", \"walhook.walhook.w.*\"";
const NOTHING: &str = "\"nothing\"";

const VIOLATION: &str = "Permissions Violation for Subscription";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_that_the_bus_withdraws_and_allows_again_heal_by_themselves() -> Result<()> {
    let nats = Nats::start(&users(OF_LEADER, OF_WORKER)).await?;
    let bus = |user: &str, password: &str| {
        format!("\"{}\"\nuser = \"{user}\"\npassword = \"{password}\"", nats.url())
    };
    let sections = format!("[workers]\nurl = {}\nlocal = \"never\"\n", bus("leader", "a"));
    let mut world = World::with(&sections, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    let leader = lead(&mut world).await?;
    let mut program = worker_of(&bus("worker", "b"))?;
    let worker = run(&mut program).await?;
    let serving = "walhook_workers{state=\"serving\"}";
    world.until_metric(serving, "1").await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;

    // The leader's.
    nats.reload(&users(NOTHING, OF_WORKER))?;
    world.until_unready(VIOLATION).await.with_context(|| leader.log_tail())?;
    until_troubled(&world, "let the leader's user of the bus").await?;
    world.subscribe(2, 1).await?;
    nats.reload(&users(OF_LEADER, OF_WORKER))?;
    world.delivered(2).await.with_context(|| leader.log_tail())?;
    world.until_ready(true).await?;
    until_said(world.admin, VIOLATION, false).await?;
    leader.until_logged("the bus has refused nothing any more").await?;

    // The workers'.
    nats.reload(&users(OF_LEADER, NOTHING))?;
    let said = program.until_unready(VIOLATION).await.with_context(|| worker.log_tail())?;
    ensure!(said.contains("no leader is heard"), "{said}");
    until_said(program.admin, "subscribe to walhook.walhook.lead, walhook.walhook.w.", true)
        .await?;
    world.subscribe(3, 1).await?;
    nats.reload(&users(OF_LEADER, OF_WORKER))?;
    world.delivered(3).await.with_context(|| worker.log_tail())?;
    program.until_ready(true).await?;
    until_said(program.admin, VIOLATION, false).await?;
    world.until_ready(true).await?;
    until_said(world.admin, "\"bus\"", false).await?;
    for log in [leader.log_tail(), worker.log_tail()] {
        ensure!(log.matches("the bus is connected").count() <= 1, "{log}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_without_a_bus_says_so_and_since_when() -> Result<()> {
    let mut nats = Nats::start("").await?;
    nats.kill()?;
    let mut program = super::worker(&nats)?;
    let worker = run(&mut program).await?;
    until_said(program.admin, "the bus is away: IO error: Connection refused", true).await?;
    let (_, troubles) = get(program.admin, "/troubles").await?;
    ensure!(
        troubles.contains("\"since\"") && troubles.contains("check --role worker"),
        "{troubles}"
    );
    let said = program.until_unready("s the bus is away: IO error").await?;
    ensure!(said.contains("no leader was heard yet\nfor "), "{said}");
    nats.start_again().await?;
    until_said(program.admin, "the bus is away", false).await?;
    nats.kill()?;
    until_said(program.admin, "the bus is away", true).await?;
    worker.signal("TERM")?;
    let (status, log) = worker.ended_with_log().await?;
    ensure!(status.success() && log.contains("it has heard no leader, and sent nothing"), "{log}");
    Ok(())
}
