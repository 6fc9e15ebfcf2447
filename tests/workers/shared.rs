//! Two pipelines with the same subjects on one bus, such as staging and production with the defaults.

use anyhow::{Context, Result, ensure};
use walhook_testkit::cluster::Cluster;
use walhook_testkit::nats::Nats;

use super::leading::lead;
use super::unheard::{until_troubled, walhook};
use super::{run, worker};
use crate::support::{RULES, SCHEMA, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pipelines_on_one_subject_deliver_everything_and_say_so() -> Result<()> {
    let nats = Nats::start("max_payload: 2MB").await?;
    let sections = format!("[workers]\nurl = \"{}\"\n", nats.url());
    let mut first = World::with(&sections, RULES, &[]).await?;
    let cluster = Cluster::start_distinct(&[]).await?;
    let mut second = World::on(cluster, &sections, RULES).await?;
    second.sql.batch_execute(SCHEMA).await?;
    second.set_up().await?;
    for world in [&first, &second] {
        for id in 1..=4 {
            world.hook(id, id, "").await?;
        }
    }
    let leader_of_first = lead(&mut first).await?;
    let mut programs = [worker(&nats)?, worker(&nats)?];
    let mut workers = Vec::new();
    for program in &mut programs {
        workers.push(run(program).await?);
    }
    first.until_metric("walhook_workers{state=\"serving\"}", "2").await?;
    // Its epoch is the first one's: both are new.
    let leader_of_second = lead(&mut second).await?;
    for id in 1..=60 {
        for world in [&first, &second] {
            world.subscribe(id, 1 + id % 4).await?;
        }
    }
    for (world, leader) in [(&first, &leader_of_first), (&second, &leader_of_second)] {
        let requests = world.delivered(60).await.with_context(|| leader.log_tail())?;
        ensure!(requests.len() == 60, "{} requests", requests.len());
        world.settled().await.with_context(|| leader.log_tail())?;
    }
    first.until_metric("walhook_workers{state=\"serving\"}", "2").await?;
    second.until_metric("walhook_workers{state=\"serving\"}", "0").await?;

    let shared = "another pipeline uses the subject walhook on this bus";
    until_troubled(&second, shared).await?;
    second.until_ready(true).await?;
    let said = walhook(&second, &["status"]).await?;
    ensure!(said.contains("give each pipeline its own workers.subject"), "{said}");
    let said = walhook(&second, &["check"]).await?;
    ensure!(said.contains(&format!("fail  workers: {shared}")), "{said}");
    let said = walhook(&first, &["check"]).await?;
    ensure!(!said.contains(shared), "{said}");
    for program in &programs {
        let (_, said) = walhook_testkit::admin::get(program.admin, "/troubles").await?;
        ensure!(said.contains(shared), "{said}");
        let output = program.walhook(&["check", "--role", "worker"]).await?;
        let said = String::from_utf8(output.stdout)?;
        ensure!(said.contains(&format!("fail  leader: {shared}")), "{said}");
        program.until_ready(true).await?;
    }
    Ok(())
}
