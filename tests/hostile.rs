//! A short share of `make hostile`: a victim beside what means it harm.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};
use walhook_testkit::receiver::Stats;

use crate::support::{PATIENCE, RULES, SECRET, World};

/// A metric's value.
async fn metric(world: &World, name: &str) -> Result<u64> {
    let metrics = world.metrics().await?;
    let prefix = format!("{name} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&prefix));
    Ok(value.with_context(|| format!("no {name}"))?.parse()?)
}

#[tokio::test]
async fn event_for_twenty_thousand_endpoints_is_counted_and_lets_a_victim_go_between() -> Result<()>
{
    const ENDPOINTS: u64 = 20_000;
    let mut world = World::new().await?;
    let sink = world.mock.url("/sink");
    let insert = "INSERT INTO webhooks (id, account_id, url, secret)
                  SELECT g, 7, $1, $2 FROM generate_series(1000, 999 + $3::bigint) g";
    let n = i64::try_from(ENDPOINTS)?;
    world.sql.execute(insert, &[&sink, &SECRET, &n]).await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    let before = running.resident_bytes()?;

    world.subscribe(2, 7).await?;
    world.mock.wait_until("the first ones", PATIENCE, |stats| stats.taken >= 500).await?;
    for id in 3_u64..8 {
        world.subscribe(i64::try_from(id)?, 1).await?;
        let has_it = |stats: &Stats| stats.by_path.get("/1").is_some_and(|n| *n >= id - 1);
        world.mock.wait_until("the victim's", PATIENCE, has_it).await?;
        let taken = world.mock.stats().taken;
        ensure!(taken < ENDPOINTS, "the victim waited for all of them");
    }
    // The gauges follow some time later, and what is known of the endpoints is kept for longer.
    let began = Instant::now();
    let counted = loop {
        let counted = metric(&world, "walhook_kept_bytes").await?
            + metric(&world, "walhook_queued_bytes").await?;
        if counted > ENDPOINTS * 300 {
            break counted;
        }
        ensure!(began.elapsed() < PATIENCE, "only {counted} bytes are counted");
        sleep(Duration::from_millis(20)).await;
    };
    let grown = running.resident_peak_bytes()?.saturating_sub(before);
    println!("{} KiB more are resident, {} KiB are counted", grown >> 10, counted >> 10);
    ensure!(grown < counted + (64 << 20), "{grown} bytes more are resident, {counted} are counted");

    let series = "walhook_deliveries_total{result=\"delivered\"}";
    world.until_metric(series, &(ENDPOINTS + 6).to_string()).await?;
    world.until_metric("walhook_queued_bytes", "0").await?;
    ensure!(metric(&world, "walhook_deferred").await? == 0);
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn event_for_more_endpoints_than_memory_is_given_for_is_a_dead_letter_beside_a_victim()
-> Result<()> {
    let mut world = World::with("\n[memory]\nlimit = \"1MiB\"\n", RULES, &[]).await?;
    let insert = "INSERT INTO webhooks (id, account_id, url, secret)
                  SELECT g, 7, 'http://127.0.0.1:9/', 's' FROM generate_series(1000, 5999) g";
    world.sql.batch_execute(insert).await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 7).await?;
    world.subscribe(2, 1).await?;
    world.delivered(1).await?;
    let letter = "SELECT reason || ': ' || detail FROM walhook.dead_letters";
    world.until("SELECT count(*) FROM walhook.dead_letters", "1").await?;
    let letter = world.value(letter).await?;
    ensure!(letter.starts_with("unroutable") && letter.contains("memory.limit"), "{letter}");
    world.settled().await?;
    world.until_metric("walhook_queued_bytes", "0").await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}
