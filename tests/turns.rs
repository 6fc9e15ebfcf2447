//! A transaction that came while it was open takes turns at its commit with those that committed later: they pass
//! it, but for what is of its accounts.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};
use walhook_dispatch::dispatcher::UNPERSISTED_MAX;

use crate::support::{PATIENCE, World, bodies, taken};

/// Rows of the large transaction.
const ROWS: i64 = 10_000;

/// A world with a whale, account 42, and a small account, 7, in which all but small transactions are streamed. A slow
/// machine takes longer for the whale's deliveries than they may hold WAL back by default: none is deferred here.
async fn world() -> Result<World> {
    let world = World::new().await?;
    world.edit_config(
        "[endpoints]",
        "stream_above = \"64KiB\"\n[wal]\nmax_hold = \"1h\"\n[endpoints]",
    )?;
    world.hook(1, 42, "").await?;
    world.hook(2, 7, "").await?;
    Ok(world)
}

/// A counter of its metrics, summed over its labels.
pub(crate) async fn counted(world: &World, name: &str) -> Result<u64> {
    Ok(sum(&world.metrics().await?, name))
}

fn sum(metrics: &str, name: &str) -> u64 {
    let of = metrics.lines().filter(|line| line.starts_with(name));
    of.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

pub(crate) async fn until_counted(world: &World, name: &str, least: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while counted(world, name).await? < least {
        ensure!(Instant::now() < deadline, "{name} does not reach {least}");
        sleep(std::time::Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Writes the large transaction, and leaves it open.
const WRITE: &str = "BEGIN;
    INSERT INTO subscribers SELECT n, 42 FROM generate_series(1, 10000) n;
    UPDATE subscribers SET status = 'last' WHERE id BETWEEN 9990 AND 10000";

#[tokio::test]
async fn small_account_does_not_wait_for_a_transaction_that_is_played() -> Result<()> {
    let mut world = world().await?;
    let _running = world.run().await?;
    world.subscribe(30_001, 7).await?;
    world.delivered(1).await?;
    let whale = world.connect().await?;
    whale.batch_execute(WRITE).await?;
    until_counted(&world, "walhook_streamed_rows_total", ROWS as u64 / 2).await?;
    assert_eq!(counted(&world, "walhook_events_total").await?, 1, "nothing before the commit");
    whale.batch_execute("COMMIT").await?;
    world.sql.batch_execute("DELETE FROM subscribers WHERE id = 30001").await?;
    let deadline = Instant::now() + PATIENCE;
    let small = |received: &[_]| taken(received).get("/2").is_some_and(|two| two.len() == 2);
    while !small(&world.mock.received()) {
        ensure!(Instant::now() < deadline, "the small account gets nothing");
        sleep(std::time::Duration::from_millis(1)).await;
    }
    world.delivered(ROWS as u64 + 11 + 2).await?;
    world.settled().await?;
    // From their commits, which are as good as one, until they were made. What was made last was delivered last.
    let small = read_ms(&world, &["--account", "7", "--type", "subscriber.deleted"]).await?;
    let last = read_ms(&world, &["--account", "42", "--limit", "1"]).await?;
    ensure!(
        small < last / 2.0,
        "made after {small} ms; the last of the transaction after {last} ms"
    );
    Ok(())
}

/// How long the newest of these deliveries stood behind what was read before it, by the delivery log.
async fn read_ms(world: &World, of: &[&str]) -> Result<f64> {
    let list = world.walhook_json(&[&["events", "list"], of].concat()).await?;
    let waits = &list["lines"][0]["waits_ms"];
    ensure!(waits["attempt"].as_f64() > Some(0.0), "{list}");
    Ok(waits["read"].as_f64().unwrap_or(0.0))
}

/// What a row's events say of it, in the order in which endpoint 1 first took them.
fn by_row(world: &World) -> BTreeMap<i64, Vec<String>> {
    let mut rows: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    for body in bodies(&world.mock.received(), "/1") {
        let status = body["data"]["status"].as_str().unwrap_or("new").to_owned();
        rows.entry(body["data"]["id"].as_i64().unwrap_or_default()).or_default().push(status);
    }
    rows
}

#[tokio::test]
async fn rows_keep_their_order_over_a_transaction_that_is_played_and_a_kill_in_it() -> Result<()> {
    let mut world = world().await?;
    let running = world.run().await?;
    let whale = world.connect().await?;
    whale.batch_execute(WRITE).await?;
    until_counted(&world, "walhook_streamed_rows_total", ROWS as u64 / 2).await?;
    whale.batch_execute("COMMIT").await?;
    let (mut made, mut later) = (0, BTreeSet::new());
    for id in 9_990..10_000 {
        // It is killed in the middle, however fast it is.
        if made > ROWS as u64 / 20 {
            break;
        }
        later.insert(id);
        // One that has to wait, and one that passes.
        let update = format!("UPDATE subscribers SET status = 'later' WHERE id = {id}");
        world.sql.batch_execute(&update).await?;
        world.subscribe(30_000 + id, 7).await?;
        made = counted(&world, "walhook_events_total").await.unwrap_or(made);
    }
    running.kill().await?;
    ensure!(made < ROWS as u64 + 11, "all was made before the kill: {made} events");
    let _running = world.run().await?;
    world.delivered(ROWS as u64 + 11 + 2 * later.len() as u64).await?;
    world.settled().await?;
    let rows = by_row(&world);
    for (id, said) in &rows {
        let expected: &[&str] = match id {
            id if later.contains(id) => &["new", "last", "later"],
            9_990..=10_000 => &["new", "last"],
            _ => &["new"],
        };
        assert_eq!(said, expected, "row {id}");
    }
    assert_eq!(rows.len() as i64, ROWS);
    let received = world.mock.received();
    let small = taken(&received).remove("/2").context("the small account's")?;
    let ids: BTreeSet<i64> = small.iter().map(|(_, id)| *id).collect();
    let passed: BTreeSet<i64> = later.iter().map(|id| 30_000 + id).collect();
    assert_eq!((small.len(), ids), (later.len(), passed));
    let distinct: HashSet<(&str, &str)> =
        received.iter().map(|request| (request.path.as_str(), request.id.as_str())).collect();
    let duplicates = received.len() - distinct.len();
    assert!(duplicates <= UNPERSISTED_MAX + 256, "{duplicates} came twice");
    Ok(())
}
