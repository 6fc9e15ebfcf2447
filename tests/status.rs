//! `walhook status` where there is much to do: whose it is, and what it waits for.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::time::Instant;
use walhook_testkit::receiver::Behaviour;

use crate::support::{PATIENCE, RULES, World, get, text};

/// More than may be in flight at once to one endpoint, and few enough to stay in memory.
const MANY: i64 = 3_000;

/// What `status` says once `enough` of it is so.
async fn status_until(world: &World, enough: impl Fn(&Value) -> bool) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = world.walhook_json(&["status"]).await?;
        if enough(&status) {
            return Ok(status);
        }
        ensure!(Instant::now() < deadline, "status goes on to say {status}");
    }
}

#[tokio::test]
async fn status_says_whose_deliveries_wait_in_memory_and_why() -> Result<()> {
    let patient = "[delivery]\ntimeout = \"60s\"\n[wal]\nmax_hold = \"1h\"";
    let mut world = World::with(patient, RULES, &[]).await?;
    world.hook(7, 42, "").await?;
    world.hook(8, 43, "").await?;
    world.mock.set_behaviour("/7", Behaviour::hang());
    let running = world.run().await?;
    let sql = format!(
        "INSERT INTO subscribers SELECT n, 42, 'a@example.com', 'active' FROM generate_series(1, {MANY}) n"
    );
    world.sql.batch_execute(&sql).await?;
    world.subscribe(MANY + 1, 43).await?;
    world.delivered(1).await?;

    let status = status_until(&world, |status| {
        let account = &status["work"]["accounts"][0];
        let amount = |what: &str| account[what].as_i64().unwrap_or(0);
        let in_flight = amount("in_flight");
        in_flight > 0 && amount("waiting") + in_flight == MANY
    })
    .await?;
    let work = &status["work"];
    let account = &work["accounts"][0];
    ensure!(account["account_id"] == "42" && account["endpoint"] == "7", "{work}");
    ensure!(account["cause"] == "endpoint_limit", "{work}");
    ensure!(work["waiting_accounts"] == 1 && work["accounts"].as_array().map(Vec::len) == Some(1));
    let oldest = &work["oldest"];
    ensure!(oldest["account_id"] == "42" && oldest["endpoint"] == "7", "{work}");
    ensure!(oldest["cause"] == "attempt" && oldest["attempts"] == 1, "{work}");
    ensure!(work["p99_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{work}");

    // The leader says it from memory.
    let (code, said) = get(world.admin, "/work").await?;
    let said: Value = serde_json::from_str(&said)?;
    ensure!(code == 200 && said["accounts"][0]["account_id"] == "42", "{said}");

    // It has a second for that: a busy leader may be late once.
    let deadline = Instant::now() + PATIENCE;
    let parts =
        ["deliveries in memory, ", "waits         account 42: ", "endpoint_limit: its endpoint"];
    loop {
        let plain = text(&world.walhook(&["status"]).await?.stdout);
        if parts.iter().all(|part| plain.contains(part)) {
            break;
        }
        ensure!(Instant::now() < deadline, "{parts:?} are not all in:\n{plain}");
    }
    // Ids are for whoever asks there, never for what collects metrics.
    let (_, metrics) = get(world.admin, "/metrics").await?;
    ensure!(!metrics.contains("\"42\""), "an account's id stands in the metrics");
    running.kill().await?;
    Ok(())
}

#[tokio::test]
async fn status_says_whom_to_ask_where_the_leader_is_not_here() -> Result<()> {
    let mut world = World::new().await?;
    let idle = world.walhook_json(&["status"]).await?;
    ensure!(idle["work"].is_null() && idle["work_error"] == "no leader runs", "{idle}");
    let running = world.run().await?;
    let there = format!("http://{}", world.admin);
    // The configuration of another machine: nobody answers here.
    let listen = format!("listen = \"{}\"", world.admin);
    world.edit_config(&listen, "listen = \"127.0.0.1:1\"")?;
    let elsewhere = world.walhook_json(&["status"]).await?;
    let why = elsewhere["work_error"].as_str().context("it is known")?;
    ensure!(why.contains("127.0.0.1:1") && why.contains("--admin http://"), "{why}");
    let asked = world.walhook_json(&["status", "--admin", &there]).await?;
    ensure!(asked["work"]["pending"] == 0 && asked["work"]["oldest"].is_null(), "{asked}");
    ensure!(asked["work_error"].is_null(), "{asked}");
    ensure!(world.walhook(&["status", "--admin", "nowhere"]).await?.status.code() == Some(2));
    running.kill().await?;
    Ok(())
}
