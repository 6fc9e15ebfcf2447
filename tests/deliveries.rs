//! The delivery log: what it tells of each delivery, and that it stops none.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use tokio::time::{Instant, sleep};
use walhook_core::attempt::Asked;
use walhook_core::delivery_log::{Entry, What};
use walhook_core::endpoint::Secret;
use walhook_core::position::EventId;
use walhook_core::waits::Cause;
use walhook_state::{DeliveryFilter, StateStore};
use walhook_testkit::receiver::Behaviour;

use crate::support::{PATIENCE, RULES, World};

/// Attempts follow each other soon.
const QUICK: &str = "[delivery]\nretry_base = \"50ms\"\nretry_cap = \"400ms\"\n";

async fn open(world: &World) -> Result<StateStore> {
    let url = Secret::new(world.cluster.url("postgres"));
    Ok(StateStore::open(&url, "walhook", "walhook").await?)
}

/// All lines of an account, the oldest first.
async fn lines(store: &StateStore, account: &str) -> Result<Vec<Entry>> {
    let filter = DeliveryFilter { account: Some(account.into()), ..DeliveryFilter::default() };
    let mut lines = store.deliveries(&filter, 100_000, None).await?.entries;
    lines.reverse();
    Ok(lines)
}

/// Waits until the account's lines are as wanted, and returns them.
async fn until(
    store: &StateStore,
    account: &str,
    wanted: impl Fn(&[Entry]) -> bool,
) -> Result<Vec<Entry>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let lines = lines(store, account).await?;
        if wanted(&lines) {
            return Ok(lines);
        }
        ensure!(Instant::now() < deadline, "account {account}: {lines:#?}");
        sleep(Duration::from_millis(50)).await;
    }
}

fn ends_with(word: &'static str) -> impl Fn(&[Entry]) -> bool {
    move |lines| lines.last().is_some_and(|line| line.word() == word)
}

fn words(lines: &[Entry]) -> Vec<&'static str> {
    lines.iter().map(|line| line.word()).collect()
}

#[tokio::test]
async fn log_tells_of_each_delivery_how_it_went_across_a_kill_and_a_takeover() {
    log_tells_of_each_delivery().await.unwrap();
}

async fn log_tells_of_each_delivery() -> Result<()> {
    // The condition fails where the address is null.
    let rules = RULES.replacen(
        "columns = [\"id\", \"email\", \"status\"]",
        "columns = [\"id\", \"email\", \"status\"]\nwhen = \"new.email.size() > 0\"",
        1,
    );
    let mut world = World::with(QUICK, &rules, &[]).await?;
    for account in 1..=5 {
        world.hook(account, account, "").await?;
    }
    let down = || Behaviour::status(StatusCode::SERVICE_UNAVAILABLE);
    world.mock.set_behaviour("/2", down());
    world.mock.set_behaviour("/3", Behaviour::status(StatusCode::GONE));
    let running = world.run().await?;
    let anchor = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walhook_anchor'";
    world.until(anchor, "1").await?;
    world.settled().await?;
    let from = world.value("SELECT frontier FROM walhook.checkpoint").await?;
    for account in 1..=3 {
        world.subscribe(account, account).await?;
    }
    let pause = ["endpoints", "pause", "4", "--reason", "maintenance"];
    ensure!(world.walhook(&pause).await?.status.success());
    world.subscribe(4, 4).await?;
    world.sql.batch_execute("INSERT INTO subscribers VALUES (5, 5, NULL, 'x')").await?;
    let store = open(&world).await?;

    let delivered = until(&store, "1", ends_with("delivered")).await?;
    ensure!(words(&delivered) == ["delivered"], "{delivered:#?}");
    let line = &delivered[0];
    ensure!(line.status == Some(200) && line.attempt == 1 && line.elapsed_us > 0, "{line:?}");
    ensure!(line.at_us >= line.committed_us && &*line.event_type == "subscriber.created");
    let attempt_us = line.waits.us(Cause::Attempt);
    ensure!(attempt_us > 0 && line.waits.total_us() >= attempt_us, "{line:?}");
    let request = &world.mock.received().into_iter().find(|r| r.path == "/1").context("none")?;
    ensure!(line.event.to_string() == request.id);

    let failing = until(&store, "2", |lines| words(lines).contains(&"deferred")).await?;
    ensure!(words(&failing)[..3] == ["failed", "failed", "deferred"], "{failing:#?}");
    ensure!(failing[0].status == Some(503) && failing[0].excerpt.starts_with("status 503"));
    let dead = until(&store, "3", ends_with("dead")).await?;
    // A 410 on a connection that another account has used is asked for again on one of its own.
    let told = words(&dead);
    ensure!(told.ends_with(&["failed", "dead"]) && told.len() <= 3, "{dead:#?}");
    let paused = until(&store, "4", ends_with("deferred")).await?;
    ensure!(words(&paused) == ["deferred"] && paused[0].what.reason() == Some("paused"));
    let unroutable = until(&store, "5", ends_with("unroutable")).await?;
    ensure!(unroutable.len() == 1 && unroutable[0].endpoint().is_none(), "{unroutable:#?}");

    // Another leader goes on with the story.
    running.kill().await?;
    world.mock.set_behaviour("/2", Behaviour::ok());
    let running = world.run().await?;
    let delivered = until(&store, "2", ends_with("delivered")).await?;
    let numbers: Vec<u32> = delivered.iter().map(|line| line.attempt).filter(|n| *n > 0).collect();
    ensure!(numbers.is_sorted() && numbers.last() > Some(&2), "{delivered:#?}");
    let resume = ["endpoints", "resume", "4"];
    ensure!(world.walhook(&resume).await?.status.success());
    let resumed = until(&store, "4", ends_with("delivered")).await?;
    ensure!(words(&resumed) == ["deferred", "delivered"], "{resumed:#?}");
    world.mock.set_behaviour("/3", Behaviour::ok());
    ensure!(world.walhook(&["endpoints", "resume", "3"]).await?.status.success());
    let letters = world.walhook_json(&["dead-letters", "list", "--endpoint", "3"]).await?;
    let id = letters["dead_letters"][0]["id"].to_string();
    ensure!(world.walhook(&["dead-letters", "retry", &id]).await?.status.success());
    let retried = until(&store, "3", ends_with("delivered")).await?;
    let asked = retried.last().and_then(|line| line.asked);
    ensure!(matches!(asked, Some(Asked::Retry { .. })), "{retried:#?}");
    world.settled().await?;
    let replay = ["replay", "start", "--from", &from, "--account", "1"];
    ensure!(world.walhook(&replay).await?.status.success(), "{}", running.log());
    let replayed = until(&store, "1", |lines| lines.len() > 1).await?;
    let asked = replayed.last().and_then(|line| line.asked);
    ensure!(matches!(asked, Some(Asked::Replay(_))), "{replayed:#?}");
    ensure!(store.story(replayed[0].event, 10).await? == replayed);
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn each_delivery_that_an_endpoint_took_stands_in_the_log_across_kills() {
    each_delivery_stands_in_the_log().await.unwrap();
}

async fn each_delivery_stands_in_the_log() -> Result<()> {
    let mut world = World::with(QUICK, RULES, &[]).await?;
    for account in 1..=20 {
        world.hook(account, account, if account % 5 == 0 { "?fail=0.3" } else { "" }).await?;
    }
    let mut events = 0;
    for round in 0..4i64 {
        let running = world.run().await?;
        let insert = "INSERT INTO subscribers (id, account_id, email)
                      SELECT $1::bigint * 10000 + n, 1 + n % 20, 'a' FROM generate_series(1, 400) n";
        world.sql.execute(insert, &[&round]).await?;
        events += 400;
        if round < 3 {
            let some = world.mock.stats().distinct + 150;
            world.mock.wait_until("some", PATIENCE, |stats| stats.distinct >= some).await?;
            running.kill().await?;
            continue;
        }
        world.delivered(events).await?;
        world.until_metric("walhook_deferred", "0").await?;
        world.settled().await?;
        ensure!(running.terminate().await?.success());
    }
    let store = open(&world).await?;
    let filter = DeliveryFilter { outcome: Some("delivered".into()), ..DeliveryFilter::default() };
    let told = store.deliveries(&filter, 100_000, None).await?.entries;
    let told: BTreeSet<(String, String)> =
        told.iter().map(|l| (format!("/{}", l.endpoint), l.event.to_string())).collect();
    let taken = world.mock.received().into_iter().filter(|request| request.is_taken());
    let taken: BTreeSet<(String, String)> = taken.map(|r| (r.path, r.id)).collect();
    ensure!(taken.len() == 1_600, "{}", taken.len());
    ensure!(told == taken, "{:#?}", told.symmetric_difference(&taken).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn oldest_lines_go_at_the_bound_and_the_tables_of_state_count_none_of_them() {
    oldest_lines_go_at_the_bound().await.unwrap();
}

async fn oldest_lines_go_at_the_bound() -> Result<()> {
    let sections = format!("{QUICK}[deliveries]\nmax_size = \"1MiB\"\n");
    let mut world = World::with(&sections, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    let long = "x".repeat(900);
    world.hook(2, 2, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    let store = open(&world).await?;
    let first = until(&store, "1", ends_with("delivered")).await?;
    ensure!(story(&store, first[0].event).await? == 1);
    // Pages that hold what cannot be compressed stand for those of millions of deliveries.
    let fill = format!(
        "INSERT INTO walhook.delivery_log SELECT pipeline, partition, last + n, 1, 0, from_us, to_us, 0, 0, NULL,
             decode(repeat(md5(n::text), 62), 'hex')
         FROM walhook.delivery_log, generate_series(1, 1500) n WHERE last = 1 AND '{long}' <> ''"
    );
    world.sql.batch_execute(&fill).await?;
    let pages = "SELECT count(*) < 1200 FROM walhook.delivery_log";
    world.until(pages, "t").await.with_context(|| running.log())?;
    ensure!(story(&store, first[0].event).await? == 0, "the oldest goes first");
    let shown = world.walhook_json(&["events", "show", &first[0].event.to_string()]).await?;
    ensure!(shown["deliveries"] == serde_json::json!([]) && shown["note"].is_string(), "{shown}");
    let bytes = "SELECT sum(octet_length(data)) > 500000 FROM walhook.delivery_log";
    ensure!(world.value(bytes).await? == "t", "more went than had to");
    ensure!(running.terminate().await?.success());
    Ok(())
}

async fn story(store: &StateStore, event: EventId) -> Result<usize> {
    Ok(store.story(event, 10).await?.len())
}

#[tokio::test]
async fn log_that_cannot_be_written_stops_no_delivery_and_is_told() {
    log_that_cannot_be_written().await.unwrap();
}

async fn log_that_cannot_be_written() -> Result<()> {
    let mut world = World::with(QUICK, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    let broken = "ALTER TABLE walhook.delivery_log ADD CONSTRAINT none CHECK (lines < 0) NOT VALID";
    world.sql.batch_execute(broken).await?;
    let running = world.run().await?;
    for id in 1..=20 {
        world.subscribe(id, 1).await?;
    }
    world.delivered(20).await?;
    world.settled().await?;
    running.until_logged("cannot store lines of the delivery log").await?;
    let dropped = "walhook_delivery_log_entries_total{result=\"dropped\"}";
    world.until_metric(dropped, "20").await?;
    ensure!(world.mock.stats().duplicates == 0);
    let store = open(&world).await?;
    ensure!(lines(&store, "1").await?.is_empty());
    world.sql.batch_execute("ALTER TABLE walhook.delivery_log DROP CONSTRAINT none").await?;
    let deadline = Instant::now() + PATIENCE;
    let mut id = 100;
    while lines(&store, "1").await?.is_empty() {
        ensure!(Instant::now() < deadline, "{}", running.log());
        id += 1;
        world.subscribe(id, 1).await?;
        sleep(Duration::from_millis(20)).await;
    }
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn only_failures_are_kept_where_the_configuration_says_so() {
    only_failures_are_kept().await.unwrap();
}

async fn only_failures_are_kept() -> Result<()> {
    let sections = format!("{QUICK}[deliveries]\nkeep = \"failures\"\nexcerpts = false\n");
    let mut world = World::with(&sections, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    world.hook(2, 2, "").await?;
    // A 410 on a connection that another account used would be asked for once more.
    let own_host = "UPDATE webhooks SET url = replace(url, '127.0.0.1', 'localhost') WHERE id = 2";
    world.sql.batch_execute(own_host).await?;
    world.mock.set_behaviour("/2", Behaviour::status(StatusCode::GONE));
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.subscribe(2, 2).await?;
    let store = open(&world).await?;
    let dead = until(&store, "2", ends_with("dead")).await?;
    ensure!(dead.iter().all(|line| line.excerpt.is_empty()), "{dead:#?}");
    world.delivered(1).await?;
    world.settled().await?;
    ensure!(lines(&store, "1").await?.is_empty());
    ensure!(dead.iter().all(|line| line.what != What::Delivered));
    ensure!(running.terminate().await?.success());
    Ok(())
}
