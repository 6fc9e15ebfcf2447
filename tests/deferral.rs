//! Deliveries that leave memory for the table `deferred`: in order, across kills, at nobody else's cost.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use tokio::time::{Instant, sleep};
use walhook_testkit::receiver::Behaviour;

use crate::support::{PATIENCE, RULES, World, taken};

/// Attempts follow each other soon.
const QUICK: &str = "[delivery]\ntimeout = \"2s\"\nconnect_timeout = \"1s\"\nretry_base = \"50ms\"\n\
                     retry_cap = \"400ms\"\n";

/// Little memory: what one endpoint does not take soon fills it.
const SMALL: &str =
    "\n[memory]\nlimit = \"1MiB\"\n\n[wal]\nmax_hold = \"2s\"\nmax_retained = \"16MiB\"\n";

const DEFERRED: &str = "SELECT count(*) FROM walhook.deliveries_pending WHERE endpoint <> ''";

fn down() -> Behaviour {
    Behaviour::status(StatusCode::SERVICE_UNAVAILABLE)
}

/// Rows with several versions each, in as many transactions.
async fn versions(
    world: &World,
    account: i64,
    rows: i64,
    updates: RangeInclusive<i64>,
) -> Result<()> {
    let insert = "INSERT INTO subscribers (id, account_id)
                  SELECT $1::bigint * 1000000 + n, $1 FROM generate_series(1, $2::bigint) n";
    world.sql.execute(insert, &[&account, &rows]).await?;
    for n in updates {
        let update = "UPDATE subscribers SET status = $2 WHERE account_id = $1";
        world.sql.execute(update, &[&account, &n.to_string()]).await?;
    }
    Ok(())
}

/// What an endpoint took of each row first comes in the order of its commits.
fn ensure_in_order(world: &World, path: &str, expected: usize) -> Result<()> {
    let mut seen = BTreeMap::<String, usize>::new();
    let mut last = BTreeMap::<i64, i64>::new();
    for request in world.mock.received().iter().filter(|r| r.path == path && r.is_taken()) {
        let again = seen.entry(request.id.clone()).or_default();
        *again += 1;
        if *again > 1 {
            continue;
        }
        let body: serde_json::Value = serde_json::from_slice(&request.body)?;
        let id = body["data"]["id"].as_i64().unwrap();
        let version = body["data"]["status"].as_str().map_or(0, |s| s.parse().unwrap_or(0));
        let before = last.insert(id, version);
        ensure!(before.is_none_or(|before| before < version), "{id}: {version} after {before:?}");
    }
    ensure!(seen.len() == expected, "{path} took {} of {expected}", seen.len());
    Ok(())
}

#[tokio::test]
async fn deliveries_to_an_endpoint_that_was_down_come_in_order_across_kills() -> Result<()> {
    let mut world = World::with(QUICK, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    world.hook(2, 2, "").await?;
    world.mock.set_behaviour("/1", down());
    let running = world.run().await?;
    versions(&world, 1, 20, 1..=9).await?;
    versions(&world, 2, 20, 1..=9).await?;
    // The checkpoint passes them all, although one endpoint has taken nothing.
    world.settled().await?;
    ensure!(taken(&world.mock.received())["/2"].len() == 200);
    ensure!(world.value(DEFERRED).await? == "200");
    running.kill().await?;

    let running = world.run().await?;
    versions(&world, 1, 0, 10..=10).await?;
    world.until(DEFERRED, "220").await?;
    ensure!(world.value("SELECT sum(deferred) FROM walhook.backlog").await? == "220");
    running.kill().await?;
    world.mock.set_behaviour("/1", Behaviour::ok());
    let before = world.mock.stats().received;
    let running = world.run().await?;
    world.mock.wait_until("some taken", PATIENCE, |s| s.received >= before + 30).await?;
    running.kill().await?;

    let running = world.run().await?;
    world.until(DEFERRED, "0").await?;
    ensure_in_order(&world, "/1", 220)?;
    world.until("SELECT count(*) FROM walhook.backlog", "0").await?;
    world.until("SELECT count(*) FROM walhook.bodies", "0").await?;
    ensure!(world.value("SELECT count(*) FROM walhook.dead_letters").await? == "0");
    world.until_metric("walhook_deferred", "0").await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn case_21_dead_endpoint_and_full_memory_delay_no_other_account_and_hold_no_wal() -> Result<()>
{
    let mut world = World::with(&format!("{QUICK}{SMALL}"), RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    world.hook(2, 2, "").await?;
    world.mock.set_behaviour("/1", Behaviour::hang());
    let running = world.run().await?;
    // Several times what memory holds, for an endpoint that hangs.
    versions(&world, 1, 2_000, 1..=4).await?;
    let began = Instant::now();
    world.subscribe(9_000_001, 2).await?;
    let other = |r: &&walhook_testkit::receiver::Received| r.path == "/2" && r.is_taken();
    let deadline = Instant::now() + PATIENCE;
    while !world.mock.received().iter().any(|r| other(&r)) {
        ensure!(Instant::now() < deadline, "the other account waits\n{}", running.log());
        sleep(Duration::from_millis(20)).await;
    }
    println!(
        "the other account's event took {:?} behind 10,000 of a dead endpoint",
        began.elapsed()
    );
    world.settled().await?;
    world.until(DEFERRED, "10000").await?;
    let retained = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn) < 16 << 20
                    FROM pg_replication_slots WHERE slot_name = 'walhook'";
    world.until(retained, "t").await?;
    world.mock.set_behaviour("/1", Behaviour::ok());
    ensure!(running.terminate().await?.success());

    // A leader that begins with them delivers them.
    let running = world.run().await?;
    world.until(DEFERRED, "0").await?;
    ensure_in_order(&world, "/1", 10_000)?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn delivery_that_fails_for_retry_for_becomes_a_dead_letter_with_its_history() -> Result<()> {
    // The waits before the third attempt are 3 s at most, half of what there is: a busy machine has the rest. Ten
    // attempts, which would open the breaker and stop the clock, come once in some ten thousands of runs.
    let sections = "[delivery]\nretry_base = \"1s\"\nretry_cap = \"8s\"\nretry_for = \"6s\"\n";
    let mut world = World::with(sections, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    world.mock.set_behaviour("/1", Behaviour::status(StatusCode::UNPROCESSABLE_ENTITY));
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.until(DEFERRED, "1").await?;
    world.until("SELECT reason FROM walhook.dead_letters", "exhausted").await?;
    let told = "SELECT attempts > 2 AND last_status = 422 AND jsonb_array_length(history) > 1
                FROM walhook.dead_letters";
    ensure!(world.value(told).await? == "t");
    world.until(DEFERRED, "0").await?;
    // What comes next goes directly.
    world.mock.set_behaviour("/1", Behaviour::ok());
    world.subscribe(2, 1).await?;
    world.delivered(1).await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

/// Short, so that half a minute has many of each.
const MANY: &str = "\n[wal]\nmax_hold = \"1s\"\nmax_retained = \"4MiB\"\n";

#[tokio::test]
async fn case_20_endpoint_that_hangs_costs_neither_connection_nor_other_accounts_nor_wal()
-> Result<()> {
    let server = [("wal_sender_timeout", "3s")];
    let mut world = World::with(&format!("{QUICK}{MANY}"), RULES, &server).await?;
    world.hook(1, 1, "").await?;
    world.hook(2, 2, "").await?;
    world.mock.set_behaviour("/1", Behaviour::hang());
    let running = world.run().await?;
    let walsender = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'walhook'";
    let connected = world.value(walsender).await?;
    let written = "SELECT (pg_current_wal_lsn() - '0/0')::bigint";
    let retained = "SELECT (pg_current_wal_lsn() - confirmed_flush_lsn)::bigint
                    FROM pg_replication_slots WHERE slot_name = 'walhook'";
    let first: u64 = world.value(written).await?.parse()?;
    let (began, mut most, mut slowest, mut n) = (Instant::now(), 0, Duration::ZERO, 0);
    // Several times every limit of time there is, and of WAL.
    while began.elapsed() < Duration::from_secs(15) || n < 100 {
        n += 1;
        world.subscribe(1_000_000 + n, 1).await?;
        world.value("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 700000))").await?;
        world.subscribe(2_000_000 + n, 2).await?;
        let committed = Instant::now();
        let count = u64::try_from(n)?;
        world.mock.wait_until("the other account", PATIENCE, |s| s.distinct >= count).await?;
        slowest = slowest.max(committed.elapsed());
        most = most.max(world.value(retained).await?.parse::<u64>()?);
        sleep(Duration::from_millis(100)).await;
    }
    let all = world.value(written).await?.parse::<u64>()? - first;
    println!("{n} events each; {all} bytes of WAL, {most} retained; the slowest took {slowest:?}");
    ensure!(all > 64 << 20 && most < 32 << 20, "{most} of {all} bytes of WAL were retained");
    ensure!(slowest < Duration::from_secs(5), "the other account waited for {slowest:?}");
    ensure!(world.value(walsender).await? == connected, "the connection did not last");
    world.mock.set_behaviour("/1", Behaviour::ok());
    world.walhook_json(&["deferred", "retry", "--endpoint", "1"]).await?;
    // The last ones may not have left memory yet.
    world.settled().await?;
    world.until(DEFERRED, "0").await?;
    ensure_in_order(&world, "/1", usize::try_from(n)?)?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn case_33_every_endpoint_dead_under_load_then_back_bounds_memory_and_wal_and_loses_nothing()
-> Result<()> {
    let mut world = World::with(&format!("{QUICK}{SMALL}"), RULES, &[]).await?;
    for account in 1..=6 {
        world.hook(account, account, "").await?;
        let dead = if account % 2 == 0 { Behaviour::hang() } else { down() };
        world.mock.set_behaviour(&format!("/{account}"), dead);
    }
    let running = world.run().await?;
    let before = running.resident_peak_bytes()?;
    for account in 1..=6 {
        versions(&world, account, 200, 1..=4).await?;
    }
    world.settled().await?;
    world.until(DEFERRED, "6000").await?;
    let metrics = world.metrics().await?;
    let queued = metrics.lines().find_map(|line| line.strip_prefix("walhook_queued_bytes "));
    let queued: u32 = queued.context("no walhook_queued_bytes")?.parse()?;
    ensure!(queued <= 1 << 20, "{queued} bytes are queued, with a limit of 1 MiB");
    let retained = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn) < 16 << 20
                    FROM pg_replication_slots WHERE slot_name = 'walhook'";
    world.until(retained, "t").await?;
    for account in 1..=6 {
        world.mock.set_behaviour(&format!("/{account}"), Behaviour::ok());
    }
    world.until(DEFERRED, "0").await?;
    let grown = running.resident_peak_bytes()? - before;
    println!("{} KiB more were resident at most", grown >> 10);
    // 31 to 57 MiB were seen in debug builds, with 32 slots as with 1,280; what of it is code that is read
    // for the first time is not known. So the counted bytes above are the sharper check.
    ensure!(grown < 96 << 20, "{grown} bytes more were resident");
    for account in 1..=6 {
        ensure_in_order(&world, &format!("/{account}"), 1_000)?;
    }
    ensure!(world.value("SELECT count(*) FROM walhook.dead_letters").await? == "0");
    world.until("SELECT count(*) FROM walhook.backlog", "0").await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn endpoint_that_was_dead_has_all_its_deliveries_soon_after_it_is_back() -> Result<()> {
    // With the default waits, which grow to hours.
    let mut world = World::new().await?;
    world.hook(1, 1, "").await?;
    world.mock.set_behaviour("/1", down());
    let running = world.run().await?;
    versions(&world, 1, 40, 1..=2).await?;
    world.until(DEFERRED, "120").await?;
    world.until_metric("walhook_breakers_open", "1").await?;
    // Longer than the waits of what failed before the breaker opened.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(22) {
        sleep(Duration::from_millis(200)).await;
    }
    let attempts = "SELECT max(attempts) FROM walhook.deliveries_pending";
    ensure!(world.value(attempts).await?.parse::<i64>()? <= 2, "a probe was counted");
    world.mock.set_behaviour("/1", Behaviour::ok());
    let back = Instant::now();
    world.until(DEFERRED, "0").await?;
    let took = back.elapsed();
    println!("all 120 were there after {took:?}");
    ensure!(took < Duration::from_secs(20), "{took:?}");
    ensure_in_order(&world, "/1", 120)?;
    world.until_metric("walhook_breakers_open", "0").await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}
