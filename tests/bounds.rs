//! The state tables reach `state.max_size`: one endpoint is suspended, its deliveries are a gap, and a
//! replay closes it.

use std::collections::HashSet;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use tokio::time::sleep;
use walhook_testkit::receiver::Behaviour;

use crate::support::{RULES, World, taken, text};

const MAX_BYTES: i64 = 8 << 20;

/// What comes between two measures, and the rows that are removed but not vacuumed yet.
const SLACK_BYTES: i64 = 4 << 20;

/// Rows between two measures.
const AT_ONCE: i64 = 300;

/// After so many rows: so that a quick machine does not write more between two measures than a slow
/// one.
const REST: Duration = Duration::from_millis(100);

const BOUNDED: &str = "[state]\nmax_size = \"8MiB\"\n\
                       [delivery]\nretry_base = \"200ms\"\nretry_cap = \"2s\"\n";

const SIZE: &str = "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c
                    WHERE c.relnamespace = 'walhook'::regnamespace AND c.relkind = 'r'";

const GROWING: &str = "SELECT count(*) FROM walhook.gaps WHERE growing";

const IN_GAPS: &str = "SELECT coalesce(sum(removed + skipped), 0) FROM walhook.gaps";

fn down() -> Behaviour {
    Behaviour::status(StatusCode::SERVICE_UNAVAILABLE)
}

async fn world() -> Result<World> {
    let world = World::with(BOUNDED, RULES, &[]).await?;
    for id in 1..=3 {
        world.hook(id, id, "").await?;
    }
    Ok(world)
}

/// Inserts rows of so many bytes that do not shrink, in one transaction.
async fn insert(world: &World, account: i64, ids: std::ops::Range<i64>, bytes: i64) -> Result<()> {
    let sql = "INSERT INTO subscribers (id, account_id, email)
               SELECT n, $1, (SELECT string_agg(md5(n::text || i::text), '') FROM generate_series(0, $4::bigint / 32) i)
               FROM generate_series($2::bigint, $3::bigint - 1) n";
    world.sql.execute(sql, &[&account, &ids.start, &ids.end, &bytes]).await?;
    Ok(())
}

async fn number(world: &World, sql: &str) -> Result<i64> {
    world.value(sql).await?.parse().with_context(|| sql.to_owned())
}

fn deferred(endpoint: i64) -> String {
    format!("SELECT count(*) FROM walhook.deliveries_pending WHERE endpoint = '{endpoint}'")
}

/// Sends the open gaps again by the commands that `gaps list` prints, which closes them.
async fn replay_gaps(world: &World) -> Result<()> {
    let listed = world.walhook_json(&["gaps", "list"]).await?;
    let gaps = listed["gaps"].as_array().context("no gaps")?.clone();
    ensure!(!gaps.is_empty(), "{listed}");
    for gap in gaps {
        let command = gap["replay"].as_str().with_context(|| gap.to_string())?;
        let args: Vec<&str> = command.split(' ').skip(1).collect();
        let replay = world.walhook_json(&args).await?;
        ensure!(replay["failed"] == 0 && replay["error"].is_null(), "{replay}");
    }
    let closed = world.walhook(&["gaps", "list", "--all"]).await?;
    let closed = text(&closed.stdout);
    ensure!(closed.contains("note: sent again by replay "), "{closed}");
    world.until("SELECT count(*) FROM walhook.gaps WHERE closed_at IS NULL", "0").await
}

/// Every one of these rows was taken by the account's endpoint.
fn ensure_taken(world: &World, path: &str, ids: std::ops::Range<i64>) -> Result<()> {
    let taken = taken(&world.mock.received()).remove(path).unwrap_or_default();
    let taken: HashSet<i64> = taken.into_iter().map(|(_, id)| id).collect();
    let missing = ids.filter(|id| !taken.contains(id)).count();
    ensure!(missing == 0, "{missing} were not taken by {path}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoint_with_most_deferred_rows_is_suspended_at_the_bound_and_a_replay_closes_its_gap()
-> Result<()> {
    let mut world = world().await?;
    world.mock.set_behaviour("/1", down());
    world.mock.set_behaviour("/3", down());
    let running = world.run().await?;
    let anchor = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walhook_anchor'";
    world.until(anchor, "1").await?;
    // Few rows that take more than half of the bound.
    insert(&world, 3, 3_000_000..3_000_800, 8_000).await?;
    world.until(&deferred(3), "800").await?;
    // Many that take less.
    let (mut ids, mut others, mut most) = (1..1, 2_000_000, 0);
    while number(&world, GROWING).await? == 0 {
        insert(&world, 1, ids.end..ids.end + AT_ONCE, 300).await?;
        insert(&world, 2, others..others + 5, 10).await?;
        (ids.end, others) = (ids.end + AT_ONCE, others + 5);
        ensure!(ids.end < 20_000, "nothing is suspended\n{}", running.log());
        sleep(REST).await;
        // No faster than it is stored: the rows that wait in memory are no question of the tables.
        let stored = format!("SELECT ({}) + ({IN_GAPS}) = {}", deferred(1), ids.end - ids.start);
        world.until(&stored, "t").await?;
        most = most.max(number(&world, SIZE).await?);
    }
    running.until_logged("state.max_size is reached: suspended the endpoint").await?;
    world.until(&deferred(1), "0").await?;
    world.until_metric("walhook_endpoints_stopped{state=\"suspended\"}", "1").await?;
    let listed = world.walhook_json(&["endpoints", "list", "--trouble"]).await?;
    let of_1 = &listed["endpoints"][0];
    ensure!(of_1["id"] == "1" && of_1["state"] == "suspended", "{listed}");
    let status = world.walhook_json(&["status"]).await?;
    ensure!(status["endpoints"]["suspended"] == 1, "{status}");
    let gaps = world.walhook_json(&["gaps", "list"]).await?;
    let gap = &gaps["gaps"][0];
    ensure!(gap["endpoint"] == "1" && gap["growing"] == true && gap["replay"].is_null(), "{gaps}");
    // What comes now is counted, and none of it stored.
    let before = number(&world, "SELECT skipped FROM walhook.gaps").await?;
    insert(&world, 1, ids.end..ids.end + 500, 300).await?;
    ids.end += 500;
    world.settled().await?;
    ensure!(number(&world, "SELECT skipped FROM walhook.gaps").await? == before + 500);
    let listed =
        world.walhook_json(&["events", "list", "--outcome", "gap", "--limit", "1"]).await?;
    let event = listed["lines"][0]["event_id"].as_str().with_context(|| listed.to_string())?;
    let shown = world.walhook_json(&["events", "show", event]).await?;
    let counted = &shown["deliveries"][0];
    ensure!(counted["state"] == "gap" && counted["gap"] == gap["id"], "{shown}");
    most = most.max(number(&world, SIZE).await?);
    ensure!(number(&world, IN_GAPS).await? == ids.end - ids.start, "in the gap, each once");
    ensure!(number(&world, "SELECT count(*) FROM walhook.gaps").await? == 1, "nobody else");
    println!("{} deliveries in the gap; the tables took {most} bytes", ids.end - ids.start);
    ensure!(most < MAX_BYTES + SLACK_BYTES, "{most}");
    running.kill().await?;

    // The next leader keeps it suspended, until the other endpoint has made room.
    world.mock.set_behaviour("/3", Behaviour::ok());
    let running = world.run().await?;
    running.until_logged("the endpoint is no longer suspended").await?;
    world.until(GROWING, "0").await?;
    world.until(&deferred(3), "0").await?;
    ensure_taken(&world, "/3", 3_000_000..3_000_800)?;
    insert(&world, 1, ids.end..ids.end + 10, 300).await?;
    world.until(&deferred(1), "10").await?;
    running.kill().await?;

    world.mock.set_behaviour("/1", Behaviour::ok());
    let running = world.run().await?;
    world.until(&deferred(1), "0").await?;
    replay_gaps(&world).await?;
    ensure_taken(&world, "/1", ids.start..ids.end + 10)?;
    ensure_taken(&world, "/2", 2_000_000..others)?;
    let late = |request: &walhook_testkit::receiver::Received| -> i64 {
        let body = request.json();
        let committed: jiff::Timestamp = body["timestamp"].as_str().unwrap().parse().unwrap();
        request.at_unix_us - committed.as_microsecond()
    };
    let others = world.mock.received();
    let latest = others.iter().filter(|r| r.path == "/2").map(late).max();
    println!("the other account's slowest delivery took {latest:?} us");
    ensure!(number(&world, "SELECT count(*) FROM walhook.dead_letters").await? == 0);
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_while_rows_are_removed_leave_each_delivery_a_row_or_counted_in_the_gap()
-> Result<()> {
    let ids = 1..9_001;
    let rows_and_gap = format!("SELECT ({}) + ({IN_GAPS})", deferred(1));
    let mut world = world().await?;
    world.mock.set_behaviour("/1", down());
    let running = world.run().await?;
    let anchor = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walhook_anchor'";
    world.until(anchor, "1").await?;
    running.kill().await?;
    for first in (ids.start..ids.end).step_by(1_000) {
        insert(&world, 1, first..first + 1_000, 2_400).await?;
    }
    // As by SIGKILL, right behind the transaction that removes some of the rows.
    // That removes 5,000 at most, and the last page whole, of 256: so it always removes some, and not all.
    for expected in [4_999 + 256, 9_000] {
        let armed = [("WALHOOK_FAILPOINT", "gap_committed:1")];
        let (status, log) = world.spawn_with(&armed)?.ended_with_log().await?;
        ensure!(status.signal() == Some(6), "{status}\n{log}");
        ensure!(number(&world, GROWING).await? == 1);
        let removed = number(&world, "SELECT removed FROM walhook.gaps").await?;
        println!("removed {removed} until this crash");
        ensure!((1..=expected).contains(&removed), "{removed}");
        ensure!(number(&world, &rows_and_gap).await? == 9_000);
    }
    let running = world.run().await?;
    world.settled().await?;
    ensure!(number(&world, &rows_and_gap).await? == ids.end - ids.start);
    world.until(GROWING, "0").await?;
    ensure!(number(&world, &rows_and_gap).await? == ids.end - ids.start);
    ensure!(number(&world, "SELECT count(*) FROM walhook.bodies").await? < 9_000, "bodies go too");
    running.kill().await?;
    world.mock.set_behaviour("/1", Behaviour::ok());
    let running = world.run().await?;
    world.until(&deferred(1), "0").await?;
    replay_gaps(&world).await?;
    ensure_taken(&world, "/1", ids)?;
    ensure!(running.terminate().await?.success());
    Ok(())
}
