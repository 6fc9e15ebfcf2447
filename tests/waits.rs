//! Why deliveries waited, against the receiver's own clock.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use walhook_testkit::receiver::Behaviour;

use crate::support::{PATIENCE, RULES, SCHEMA, World};

/// How long the receiver takes to answer.
const DELAY: Duration = Duration::from_millis(50);

/// Deliveries of each kind.
const EACH: i64 = 60;

/// What the causes of all deliveries come to, in seconds.
async fn causes(world: &World) -> Result<BTreeMap<String, f64>> {
    let mut causes = BTreeMap::new();
    for line in world.metrics().await?.lines() {
        let Some(rest) = line.strip_prefix("walhook_wait_seconds_total{") else { continue };
        let (labels, value) = rest.split_once("} ").context("a series without a value")?;
        let (_, cause) = labels.split_once("cause=\"").context("a series without a cause")?;
        let (cause, _) = cause.split_once('"').context("a cause without an end")?;
        *causes.entry(cause.to_owned()).or_default() += value.parse::<f64>()?;
    }
    Ok(causes)
}

/// From each delivery's commit to its answer, all together, in seconds, as receiver and database saw it.
fn seen(world: &World) -> Result<f64> {
    let mut seen_us = 0;
    for request in world.mock.received().iter().filter(|request| request.is_taken()) {
        let json = request.json();
        let at: jiff::Timestamp = json["timestamp"].as_str().context("no timestamp")?.parse()?;
        seen_us += request.answered_at_unix_us - at.as_microsecond();
    }
    Ok(Duration::from_micros(u64::try_from(seen_us)?).as_secs_f64())
}

#[tokio::test]
async fn causes_of_waiting_add_up_to_what_the_receiver_saw() -> Result<()> {
    let sections = "[delivery]\nretry_base = \"1s\"\nretry_cap = \"2s\"\n";
    let mut world = World::bare(sections, RULES, &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    let limits = "ALTER TABLE webhooks ADD max_in_flight int, ADD rate_per_second float8";
    world.sql.batch_execute(limits).await?;
    let columns =
        "[endpoints]\nmax_in_flight = \"max_in_flight\"\nrate_per_second = \"rate_per_second\"";
    world.edit_config("[endpoints]", columns)?;
    world.set_up().await?;
    for id in 1..=5 {
        world.hook(id, id, "?delay=50ms").await?;
    }
    world.sql.batch_execute("UPDATE webhooks SET rate_per_second = 10 WHERE id = 1").await?;
    world.sql.batch_execute("UPDATE webhooks SET max_in_flight = 1 WHERE id = 2").await?;
    let broken = Behaviour { delay: DELAY, ..Behaviour::status(StatusCode::BAD_GATEWAY) };
    world.mock.set_behaviour("/4", broken);
    let running = world.run().await?;
    world.walhook_json(&["endpoints", "pause", "5"]).await?;

    // A rate, a limit, one row's order, a receiver that is down, and a pause.
    for n in 0..EACH {
        for account in [1, 2, 4, 5] {
            world.subscribe(1_000 * account + n, account).await?;
        }
        if n == 0 {
            world.subscribe(3_000, 3).await?;
        } else {
            let update = "UPDATE subscribers SET status = $1 WHERE id = 3000";
            world.sql.execute(update, &[&n.to_string()]).await?;
        }
    }
    let all = u64::try_from(EACH)? * 5;
    let healthy = all / 5 * 3;
    world.mock.wait_until("the healthy ones", PATIENCE, |stats| stats.distinct >= healthy).await?;
    world.mock.set_behaviour("/4", Behaviour::delay(DELAY));
    world.walhook_json(&["endpoints", "resume", "5"]).await?;
    world.delivered(all).await?;
    world.settled().await?;

    let (causes, seen) = (causes(&world).await?, seen(&world)?);
    let told: f64 = causes.values().sum();
    println!("{told:.3} s told, {seen:.3} s seen: {causes:.1?}");
    ensure!(world.mock.stats().duplicates == 0, "a repeat would count in what was seen");
    ensure!((told / seen - 1.0).abs() <= 0.01, "told {told} s, seen {seen} s: {causes:?}");
    for cause in ["rate_limit", "endpoint_limit", "order", "retry", "stopped", "attempt"] {
        // Few wait for a retry before the breaker opens, each for up to a second, as chance has it.
        ensure!(causes[cause] > 0.1, "no delivery waited for {cause}: {causes:?}");
    }
    ensure!(running.terminate().await?.success());
    Ok(())
}
