//! Whoever runs walhook is told what happens to endpoints: signed, across crashes, at nobody's cost.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use tokio::time::Instant;
use walhook_testkit::receiver::{Behaviour, Received};

use crate::support::{PATIENCE, RULES, SECRET, World};

/// One attempt, and no more.
const ONCE: &str = "[delivery]\nquick_attempts = 1\nretry_for = \"0s\"\n";

/// Its path is as secret as the receiver's secret.
const PATH: &str = "/ops-hush";

/// A world that tells its receiver's path [`PATH`] of what happens.
async fn world(sections: &str) -> Result<World> {
    let world = World::with(sections, RULES, &[]).await?;
    let url = world.mock.url(PATH);
    let notify = format!("[notify]\nurl = \"{url}\"\nsecret = \"{SECRET}\"\n[log]\n");
    world.edit_config("[log]\n", &notify)?;
    Ok(world)
}

fn told(world: &World, event_type: &str) -> Vec<Received> {
    let is_it = |r: &Received| r.path == PATH && r.json()["type"] == event_type;
    world.mock.received().into_iter().filter(is_it).collect()
}

/// Waits until the receiver has taken a notice of this type.
async fn until_told(world: &World, event_type: &str) -> Result<Received> {
    let taken = || told(world, event_type).into_iter().find(Received::is_taken);
    world.mock.wait_until(event_type, PATIENCE, |_| taken().is_some()).await?;
    taken().context("it was there")
}

#[tokio::test]
async fn endpoint_that_is_gone_and_comes_back_is_told_of_with_a_signature() -> Result<()> {
    let mut world = world("").await?;
    world.hook(1, 42, "").await?;
    world.mock.set_behaviour("/1", Behaviour::status(StatusCode::GONE));
    let running = world.run().await?;
    world.subscribe(1, 42).await?;
    let notice = until_told(&world, "endpoint.disabled").await?;
    ensure!(notice.verified, "the signature is wrong");
    let body = notice.json();
    ensure!(body["id"] == notice.id.as_str(), "{body}");
    let expected = serde_json::json!({
        "pipeline": "walhook", "endpoint_id": "1", "account_id": "42", "detail": "status 410",
        "count": 1, "since": body["timestamp"],
    });
    ensure!(body["data"] == expected, "{body}");
    world.until_metric("walhook_endpoint_changes_total{change=\"disabled\"}", "1").await?;
    let listed = world.walhook_json(&["endpoints", "list", "--trouble"]).await?;
    ensure!(listed.to_string().contains("disabled"), "{listed}");

    world.sql.batch_execute("UPDATE webhooks SET event_types = '{subscriber.*}'").await?;
    let notice = until_told(&world, "endpoint.recovered").await?;
    let data = &notice.json()["data"];
    ensure!(notice.verified && data["endpoint_id"] == "1" && data["account_id"] == "42", "{data}");
    world.until_metric("walhook_endpoint_changes_total{change=\"enabled\"}", "1").await?;
    world.until_metric("walhook_notices_total{result=\"sent\"}", "2").await?;
    running.until_logged("switched the endpoint on again").await?;
    let log = running.log();
    ensure!(!log.contains("hush") && !log.contains(SECRET), "a secret is in the log:\n{log}");
    let shown = world.walhook(&["config", "show"]).await?;
    ensure!(!String::from_utf8_lossy(&shown.stdout).contains("hush"));
    Ok(())
}

#[tokio::test]
async fn check_warns_of_a_notify_url_that_must_not_be_contacted() -> Result<()> {
    let world = world("").await?;
    let findings = async || -> Result<Vec<serde_json::Value>> {
        let report = world.walhook_json(&["check"]).await?;
        let findings = report["findings"].as_array().context("no findings")?.clone();
        Ok(findings.into_iter().filter(|f| f["what"] == "notify.url").collect())
    };
    ensure!(findings().await?[0]["verdict"] == "pass");
    world.edit_config(&world.mock.url(PATH), "https://10.0.0.7/ops-hush")?;
    let found = findings().await?;
    let said = found[0].to_string();
    ensure!(found[0]["verdict"] == "warn" && said.contains("private"), "{said}");
    ensure!(!said.contains("hush"), "{said}");
    Ok(())
}

#[tokio::test]
async fn many_exhausted_deliveries_are_one_notice_and_a_count() -> Result<()> {
    let mut world = world(ONCE).await?;
    // Seldom enough for the breaker.
    world.hook(1, 42, "?fail=0.2").await?;
    let running = world.run().await?;
    let insert =
        "INSERT INTO subscribers (id, account_id) SELECT n, 42 FROM generate_series(1, 300) n";
    world.sql.batch_execute(insert).await?;
    world.settled().await?;
    until_told(&world, "delivery.exhausted").await?;
    // What it told is taken off its count, and the next one waits.
    let pauses = "SELECT count(*) FROM walhook.notices WHERE due_at > now() + interval '5 minutes'";
    world.until(pauses, "1").await?;
    ensure!(running.terminate().await?.success());
    let dead = "SELECT count(*) FROM walhook.dead_letters WHERE reason = 'exhausted'";
    let dead: i64 = world.value(dead).await?.parse()?;
    ensure!(dead > 20, "{dead} dead letters");
    let told = told(&world, "delivery.exhausted");
    ensure!(told.len() == 1, "{} notices", told.len());
    // What it did not tell waits for the next one.
    let in_notice = told[0].json()["data"]["count"].as_i64().context("no count")?;
    let waits: i64 = world.value("SELECT sum(count) FROM walhook.notices").await?.parse()?;
    ensure!(in_notice > 0 && in_notice + waits == dead, "{in_notice} and {waits} of {dead}");
    Ok(())
}

#[tokio::test]
async fn notice_arrives_after_its_receiver_was_down_and_walhook_was_killed() -> Result<()> {
    let mut world = world("").await?;
    world.hook(1, 42, "").await?;
    world.hook(2, 43, "").await?;
    world.mock.set_behaviour("/1", Behaviour::status(StatusCode::GONE));
    world.mock.set_behaviour(PATH, Behaviour::status(StatusCode::BAD_GATEWAY));
    let running = world.run().await?;
    world.subscribe(1, 42).await?;
    world.until("SELECT count(*) FROM walhook.notices WHERE attempts > 0", "1").await?;
    world.until_metric("walhook_notices_total{result=\"failed\"}", "1").await?;
    world.mock.set_behaviour(PATH, Behaviour::hang());
    let hangs = |s: &walhook_testkit::receiver::Stats| s.in_flight == 1;
    world.mock.wait_until("the notice hangs", PATIENCE, hangs).await?;

    // Neither deliveries nor a shutdown wait for it.
    world.subscribe(2, 43).await?;
    world.mock.wait_until("the other's", PATIENCE, |s| s.by_path.contains_key("/2")).await?;
    let began = Instant::now();
    ensure!(running.terminate().await?.success());
    ensure!(began.elapsed() < Duration::from_secs(10), "the shutdown took {:?}", began.elapsed());
    let running = world.run().await?;
    world.mock.wait_until("the notice hangs again", PATIENCE, hangs).await?;
    running.kill().await?;

    world.mock.set_behaviour(PATH, Behaviour::ok());
    let _running = world.run().await?;
    let notice = until_told(&world, "endpoint.disabled").await?;
    let first = &told(&world, "endpoint.disabled")[0];
    ensure!(first.answered == 502 && notice.attempt > 1, "{notice:?}");
    ensure!(notice.id == first.id && notice.body == first.body, "it says the same");
    ensure!(notice.verified);
    Ok(())
}

#[tokio::test]
async fn recovery_of_an_endpoint_whose_breaker_was_open_is_told_by_the_next_leader() -> Result<()> {
    let mut world = world("").await?;
    world.hook(1, 42, "").await?;
    world.mock.set_behaviour("/1", Behaviour::status(StatusCode::INTERNAL_SERVER_ERROR));
    let running = world.run().await?;
    let insert =
        "INSERT INTO subscribers (id, account_id) SELECT n, 42 FROM generate_series(1, 30) n";
    world.sql.batch_execute(insert).await?;
    let open = "SELECT count(*) FROM walhook.backlog WHERE breaker_open_until IS NOT NULL";
    world.until(open, "1").await?;
    running.kill().await?;
    ensure!(told(&world, "endpoint.recovered").is_empty());

    world.mock.set_behaviour("/1", Behaviour::ok());
    let _running = world.run().await?;
    let notice = until_told(&world, "endpoint.recovered").await?;
    ensure!(notice.json()["data"]["detail"] == "it took a delivery", "{}", notice.json());
    world.until(open, "0").await?;
    Ok(())
}
