//! Workers that reach nobody, where only workers send.

use anyhow::{Result, ensure};
use walhook_testkit::nats::Nats;

use super::leading::lead;
use super::unheard::walhook;
use super::{run, worker};
use crate::support::{RULES, World};

/// So many accounts with an endpoint each.
const ACCOUNTS: i64 = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_worker_that_reaches_nobody_is_named_and_gives_way_to_one_that_does() -> Result<()> {
    let nats = Nats::start("max_payload: 2MB").await?;
    let sections = format!(
        "[workers]\nurl = \"{}\"\nlocal = \"never\"\negress = \"own\"\n[delivery]\nretry_base = \"100ms\"\n\
         retry_cap = \"1s\"\n",
        nats.url()
    );
    let mut world = World::with(&sections, RULES, &[]).await?;
    for id in 1..=ACCOUNTS {
        world.hook(id, id, "").await?;
    }
    let leader = lead(&mut world).await?;
    // What it may contact is nothing: each request ends before it is sent, as without a resolver.
    let mut cut_off = worker(&nats)?;
    cut_off.edit_config("allow = [\"127.0.0.0/8\"]", "deny = [\"127.0.0.0/8\"]")?;
    let _cut_off = run(&mut cut_off).await?;
    world.until_metric("walhook_workers{state=\"serving\"}", "1").await?;
    for id in 1..=ACCOUNTS {
        world.subscribe(id, id).await?;
    }
    let quarantined = "walhook_workers{state=\"quarantined\"}";
    world.until_metric(quarantined, "1").await?;
    leader.until_logged("a worker could not reach endpoints that others reach, or").await?;
    let listed = walhook(&world, &["workers", "list"]).await?;
    ensure!(listed.contains("quarantined"), "{listed}");
    ensure!(world.mock.stats().received == 0, "{:?}", world.mock.stats());
    let mut well = worker(&nats)?;
    let _well = run(&mut well).await?;
    world.delivered(u64::try_from(ACCOUNTS)?).await?;
    world.until_metric(quarantined, "1").await?;
    Ok(())
}
