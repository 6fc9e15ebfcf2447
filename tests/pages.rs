//! Deferred deliveries in pages: over an upgrade from tables of the version before, and back to it; and beside
//! a dump of the state tables.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::{Child, Command};
use tokio::time::{Instant, interval};
use walhook_process::clock::unix_us;
use walhook_testkit::extent::is_long;
use walhook_testkit::receiver::Received;

use crate::kills::from_env;
use crate::support::{RULES, World, taken, text};

const PENDING: &str = "SELECT count(*) FROM walhook.deliveries_pending WHERE endpoint <> ''";
const ROWS: &str = "SELECT count(*) FROM walhook.deferred";
const PAGES: &str = "SELECT count(*) FROM walhook.pages";

/// Changes of account 1, a row each, in one transaction.
async fn changes(world: &World, from: i64, to: i64) -> Result<()> {
    let insert = "INSERT INTO subscribers (id, account_id)
                  SELECT n, 1 FROM generate_series($1::bigint, $2::bigint) n";
    world.sql.execute(insert, &[&from, &to]).await?;
    Ok(())
}

async fn set_version(world: &World, version: &str) -> Result<()> {
    let done = world.walhook_json(&["setup", "--schema-version", version]).await?;
    let steps = done["steps"].as_array().map(Vec::len);
    ensure!(steps == Some(1) && done["steps"][0]["did"] == "changed", "{done}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_survive_an_upgrade_to_pages_and_the_way_back_while_a_leader_runs() -> Result<()>
{
    let mut world = World::with("", RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    // Tables of the version before: who leads on them writes rows.
    set_version(&world, "1").await?;
    let running = world.run().await?;
    ensure!(world.walhook(&["endpoints", "pause", "1"]).await?.status.success());
    changes(&world, 1, 100).await?;
    world.until(PENDING, "100").await?;
    ensure!(world.value(ROWS).await? == "100");

    // Raised under a leader, which goes on with rows; the next one writes pages.
    let raised = world.walhook_json(&["setup"]).await?;
    let version = |done: &serde_json::Value| {
        let steps = done["steps"].as_array().cloned().unwrap_or_default();
        steps.into_iter().find(|step| step["step"] == "schema version")
    };
    ensure!(version(&raised).is_some_and(|step| step["did"] == "changed"), "{raised}");
    changes(&world, 101, 200).await?;
    world.until(PENDING, "200").await?;
    ensure!(world.value(PAGES).await? == "0", "the version was raised after the lease was taken");
    running.kill().await?;
    let running = world.run().await?;
    changes(&world, 201, 700).await?;
    world.until(PENDING, "700").await?;
    ensure!(world.value(ROWS).await? == "200" && world.value(PAGES).await? != "0");
    let listed = world.walhook_json(&["deferred", "list", "--endpoint", "1", "--limit", "1000"]);
    let listed = listed.await?;
    ensure!(listed["deferred"].as_array().map(Vec::len) == Some(700), "{listed}");
    running.kill().await?;

    // Back, under a leader: it is fenced off, and leads on with rows.
    let running = world.run().await?;
    set_version(&world, "1").await?;
    ensure!(world.value(PAGES).await? == "0");
    ensure!(world.value(ROWS).await? == "700");
    ensure!(world.value("SELECT count(*) FROM walhook.bodies").await? == "700");
    changes(&world, 701, 800).await?;
    world.until(PENDING, "800").await?;
    ensure!(world.value(ROWS).await? == "800");
    running.kill().await?;

    // And on once more: rows and pages of one queue.
    ensure!(world.walhook(&["setup"]).await?.status.success());
    let running = world.run().await?;
    changes(&world, 801, 1_000).await?;
    world.until(PENDING, "1000").await?;
    ensure!(world.value(PAGES).await? != "0");
    ensure!(world.walhook(&["endpoints", "resume", "1"]).await?.status.success());
    world.until(PENDING, "0").await?;
    let received = world.delivered(1_000).await?;
    let ids: Vec<i64> = taken(&received)["/1"].iter().map(|(_, id)| *id).collect();
    ensure!(ids.len() == 1_000, "{} were sent, some again", ids.len());
    for table in ["pages", "page_done", "deferred", "bodies", "backlog"] {
        let left = world.value(&format!("SELECT count(*) FROM walhook.{table}")).await?;
        ensure!(left == "0", "{left} in {table}");
    }
    ensure!(running.terminate().await?.success());
    Ok(())
}

/// A leader of the version before, at `path`; killed when dropped.
fn spawn_before(world: &World, path: &str) -> Result<Child> {
    let mut command = Command::new(path);
    command.arg("run").arg("--config").arg(world.config());
    command.env("WALHOOK_ADMIN__LISTEN", "127.0.0.1:0").kill_on_drop(true);
    Ok(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "wants the version before: WALHOOK_TEST_BEFORE=path/to/walhook"]
async fn version_before_and_this_one_lead_in_turn_through_upgrade_and_rollback() -> Result<()> {
    let before: String =
        from_env("WALHOOK_TEST_BEFORE").context("WALHOOK_TEST_BEFORE is not set")?;
    let led = "SELECT active FROM pg_replication_slots WHERE slot_name = 'walhook'";
    let mut world = World::with("", RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    set_version(&world, "1").await?;
    let mut old = spawn_before(&world, &before)?;
    world.until(led, "t").await?;
    ensure!(world.walhook(&["endpoints", "pause", "1"]).await?.status.success());
    changes(&world, 1, 100).await?;
    world.until(PENDING, "100").await?;

    // This version stands by; raised, the version before leads on until it ends, and never again.
    let mut new = world.spawn()?;
    ensure!(world.walhook(&["setup"]).await?.status.success());
    changes(&world, 101, 200).await?;
    world.until(PENDING, "200").await?;
    ensure!(world.value(ROWS).await? == "200");
    old.kill().await?;
    new.until_leading(world.admin).await?;
    changes(&world, 201, 700).await?;
    world.until(PENDING, "700").await?;
    ensure!(world.value(ROWS).await? == "200" && world.value(PAGES).await? != "0");
    let refused = spawn_before(&world, &before)?.wait_with_output().await?;
    ensure!(!refused.status.success() && text(&refused.stderr).contains("run a later walhook"));

    // Back: the version before reads all, and delivers it.
    new.kill().await?;
    set_version(&world, "1").await?;
    let mut old = spawn_before(&world, &before)?;
    world.until(led, "t").await?;
    changes(&world, 701, 800).await?;
    world.until(PENDING, "800").await?;
    ensure!(world.walhook(&["endpoints", "resume", "1"]).await?.status.success());
    world.until(PENDING, "0").await?;
    let received = world.delivered(800).await?;
    ensure!(taken(&received)["/1"].len() == 800);
    old.kill().await?;
    Ok(())
}

/// For so long, commits one for endpoint 1 every 100 ms, the first of this id, and many for two endpoints of which one is
/// paused and resumed; and returns how long the slowest of the former took.
async fn flows(world: &World, first: i64, time: Duration) -> Result<Duration> {
    let mut committed = BTreeMap::new();
    let (mut tick, until) = (interval(Duration::from_millis(100)), Instant::now() + time);
    for n in 1_i64.. {
        tick.tick().await;
        if Instant::now() >= until {
            break;
        }
        world.subscribe(first + n, 1).await?;
        committed.insert(first + n, unix_us());
        if n % 10 == 0 {
            let insert = "INSERT INTO subscribers (id, account_id)
                          SELECT n, 2 FROM generate_series($1::bigint, $1::bigint + 199) n";
            world.sql.execute(insert, &[&(1_000_000 + (first + n) * 1_000)]).await?;
            let switch = if n % 40 == 0 { "resume" } else { "pause" };
            ensure!(world.walhook(&["endpoints", switch, "2"]).await?.status.success());
        }
    }
    slowest(world, &committed).await
}

/// The longest time from the COMMIT of one of these subscribers to its delivery at endpoint 1.
async fn slowest(world: &World, committed: &BTreeMap<i64, i64>) -> Result<Duration> {
    world.settled().await?;
    let received = world.mock.received();
    let of_one = received.iter().filter(|request| request.path == "/1");
    let arrived: BTreeMap<i64, i64> =
        of_one.filter_map(|request| Some((subscriber(request)?, request.at_unix_us))).collect();
    ensure!(committed.keys().all(|id| arrived.contains_key(id)), "{} came", arrived.len());
    let took = committed.iter().map(|(id, at)| arrived[id] - at).max().unwrap_or_default();
    Ok(Duration::from_micros(u64::try_from(took).unwrap_or_default()))
}

/// The subscriber that a request tells of.
fn subscriber(request: &Received) -> Option<i64> {
    let body: serde_json::Value = serde_json::from_slice(&request.body).ok()?;
    body["data"]["id"].as_i64()
}

/// For 10 s; for five minutes where there is time for long tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dump_of_every_state_table_delays_no_delivery_while_others_are_deferred_and_drained()
-> Result<()> {
    let dump = Duration::from_secs(if is_long() { 300 } else { 10 });
    let mut world = World::with("", RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    world.hook(2, 2, "").await?;
    world.hook(3, 2, "?status=500").await?;
    let running = world.run().await?;
    // What a busy machine takes for itself.
    let usual = flows(&world, 0, Duration::from_secs(4)).await?;

    // What pg_dump does: one snapshot, a share lock on every table until the end, and all rows read.
    let dumping = world.connect().await?;
    dumping.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    let tables = "SELECT quote_ident(relname) FROM pg_class
                  WHERE relnamespace = 'walhook'::regnamespace AND relkind IN ('r', 'p', 'v')";
    let tables = dumping.query(tables, &[]).await?;
    ensure!(tables.len() > 10, "{} tables", tables.len());
    for table in &tables {
        let table: String = table.get(0);
        dumping.batch_execute(&format!("SELECT count(*) FROM walhook.{table}")).await?;
    }

    let slowest = flows(&world, 100_000, dump).await?;
    println!("the slowest beside the dump after {slowest:?}, before it after {usual:?}");
    let most = Duration::from_secs(1) + 2 * usual;
    ensure!(slowest < most, "a delivery took {slowest:?}, and before the dump {usual:?}");
    dumping.batch_execute("ROLLBACK").await?;

    let discarded = world.walhook(&["deferred", "discard", "--endpoint", "3", "--yes"]).await?;
    ensure!(discarded.status.success(), "{}", text(&discarded.stderr));
    ensure!(world.walhook(&["endpoints", "resume", "2"]).await?.status.success());
    world
        .until("SELECT count(*) FROM walhook.deliveries_pending WHERE endpoint = '2'", "0")
        .await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}
