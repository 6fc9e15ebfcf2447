//! Where open transactions are kept while they do not fit into memory, and what happens where they cannot be.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use walhook_testkit::receiver::Received;

use crate::changes::rows;
use crate::disk::SmallDisk;
use crate::replay::by_id;
use crate::support::{Running, World};
use crate::turns::{counted, until_counted};

/// Rows of a large transaction, of some 1,500 bytes each: six times what memory may keep of them.
const ROWS: i64 = 4_000;

const ROLLED_BACK_PART: &str = "SAVEPOINT a; UPDATE subscribers SET status = 'never';
    ROLLBACK TO SAVEPOINT a; INSERT INTO subscribers VALUES (30000, 42)";

/// A world with one mebibyte for open transactions, and these further keys of `[source]`.
async fn world(source: &str) -> Result<World> {
    let world = World::new().await?;
    let keys = format!("stream_above = \"64KiB\"\n{source}\n[endpoints]");
    world.edit_config("[endpoints]", &keys)?;
    world.reconfigure("[admin]", "[memory]\nlimit = \"8MiB\"\n[admin]")?;
    world.hook(1, 42, "").await?;
    world.hook(2, 7, "").await?;
    Ok(world)
}

fn spool_in(directory: &Path) -> String {
    format!("spool = \"{}\"", directory.display())
}

fn insert(first: i64) -> String {
    format!(
        "INSERT INTO subscribers (id, account_id, email)
         SELECT n, 42, pg_catalog.repeat('x', 1500) FROM generate_series({first}, {}) n",
        first + ROWS - 1
    )
}

/// Opens a transaction, writes all of it and a part that is rolled back, and leaves it open.
async fn opened(world: &World) -> Result<walhook_postgres::sql::Connection> {
    let whale = world.connect().await?;
    whale.batch_execute(&format!("BEGIN; {}; {ROLLED_BACK_PART}", insert(1))).await?;
    Ok(whale)
}

/// Commits, and holds what is delivered against what was written.
async fn commits(
    world: &World,
    whale: &walhook_postgres::sql::Connection,
) -> Result<Vec<Received>> {
    whale.batch_execute("COMMIT").await?;
    let all = u64::try_from(ROWS + 1)?;
    world.delivered(all).await?;
    world.settled().await?;
    let received = world.mock.received();
    let whales: Vec<Received> = received.into_iter().filter(|one| one.path == "/1").collect();
    let expected: BTreeSet<i64> = (1..=ROWS).chain([30_000]).collect();
    assert_eq!(rows(&whales).into_iter().collect::<BTreeSet<_>>(), expected);
    let ids: BTreeSet<&str> = whales.iter().map(|one| one.id.as_str()).collect();
    assert_eq!(ids.len(), expected.len(), "an id for each event, and no other");
    Ok(whales)
}

fn files(directory: &Path) -> Result<usize> {
    Ok(std::fs::read_dir(directory)?.count())
}

/// Waits until streaming is given up, and for the log, the metric and status to say so.
async fn is_told(world: &World, running: &Running, reason: &str) -> Result<()> {
    let series = format!("walhook_stream_fallbacks_total{{reason=\"{reason}\"}}");
    world.until_metric(&series, "1").await?;
    running.until_logged("large transactions are received when they have committed").await?;
    let status = world.walhook_json(&["status"]).await?;
    let troubles = status["troubles"].as_array().context("troubles")?;
    let told = troubles.iter().find(|trouble| trouble["part"] == "streaming");
    let told = told.context("status does not say that streaming is given up")?;
    ensure!(told["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{told}");
    ensure!(status["halted"].is_null(), "{status}");
    Ok(())
}

/// The same, on a stream that was opened again.
async fn falls_back(world: &World, running: &Running, reason: &str) -> Result<()> {
    is_told(world, running, reason).await?;
    running.until_logged("streaming again").await?;
    // Nobody waits for the transaction, which is open still.
    world.subscribe(40_000, 7).await?;
    world.delivered(1).await?;
    Ok(())
}

#[tokio::test]
async fn open_transaction_is_spooled_shown_and_sent_at_its_commit_without_what_was_rolled_back()
-> Result<()> {
    let spool = TempDir::new()?;
    let mut world = world(&spool_in(spool.path())).await?;
    let _running = world.run().await?;
    let whale = opened(&world).await?;
    until_counted(&world, "walhook_streamed_aborted_bytes_total", 1).await?;
    until_counted(&world, "walhook_spool_bytes", 1 << 20).await?;
    world.until_metric("walhook_open_transactions", "1").await?;
    assert_eq!(files(spool.path())?, 1);
    let xid = whale.query_one("SELECT pg_catalog.pg_current_xact_id()::text", &[]).await?;
    let xid: u64 = xid.get::<_, String>(0).parse()?;
    // The row behind the savepoint comes with the commit: it is less than what PostgreSQL streams.
    let shown = "SELECT pg_catalog.max(row_count)::text FROM walhook.open_transactions";
    world.until(shown, &ROWS.to_string()).await?;
    let status = world.walhook_json(&["status"]).await?;
    let open = &status["open_transactions"][0];
    assert_eq!((open["xid"].as_u64(), open["state"].as_str()), (Some(xid), Some("open")));
    assert_eq!((open["rows"].as_i64(), open["kept_in"].as_str()), (Some(ROWS), Some("spool")));
    ensure!(open["bytes"].as_u64() > Some(4 << 20), "{open}");
    assert_eq!(counted(&world, "walhook_events_total").await?, 0, "nothing before the commit");
    commits(&world, &whale).await?;
    world.until_metric("walhook_spool_bytes", "0").await?;
    world.until("SELECT pg_catalog.count(*)::text FROM walhook.open_transactions", "0").await?;
    assert_eq!(files(spool.path())?, 0);
    assert_eq!(counted(&world, "walhook_stream_fallbacks_total").await?, 0);
    assert_eq!(world.mock.stats().duplicates, 0);
    Ok(())
}

#[tokio::test]
async fn killed_with_a_spooled_transaction_open_it_leaves_nothing_and_loses_nothing() -> Result<()>
{
    let spool = TempDir::new()?;
    let mut world = world(&spool_in(spool.path())).await?;
    let running = world.run().await?;
    let anchor = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walhook_anchor'";
    world.until(anchor, "1").await?;
    world.settled().await?;
    let from = world.value("SELECT frontier FROM walhook.checkpoint").await?;
    let whale = opened(&world).await?;
    until_counted(&world, "walhook_spool_bytes", 1 << 20).await?;
    running.kill().await?;
    assert_eq!(files(spool.path())?, 1, "nobody was there to remove it");
    let running = world.run().await?;
    running.until_logged("removed what was left in the spool").await?;
    until_counted(&world, "walhook_spool_bytes", 1 << 20).await?;
    assert_eq!(files(spool.path())?, 1);
    commits(&world, &whale).await?;
    // Once more, by protocol 1: the same bodies, by the same ids.
    world.walhook_json(&["replay", "start", "--from", &from, "--endpoint", "1"]).await?;
    let replayed = "SELECT pg_catalog.count(*)::text FROM walhook.jobs WHERE finished_at IS NULL";
    world.until(replayed, "0").await?;
    let received = world.mock.received();
    assert_eq!(by_id(&received, true), by_id(&received, false));
    Ok(())
}

#[tokio::test]
async fn without_a_spool_a_transaction_that_memory_does_not_hold_is_read_when_it_has_committed()
-> Result<()> {
    let mut world = world("").await?;
    let running = world.run().await?;
    let whale = opened(&world).await?;
    falls_back(&world, &running, "memory").await?;
    commits(&world, &whale).await?;
    Ok(())
}

#[tokio::test]
async fn spool_that_is_full_is_done_without() -> Result<()> {
    let spool = TempDir::new()?;
    let keys = format!("{}\nspool_max = \"2MiB\"", spool_in(spool.path()));
    let mut world = world(&keys).await?;
    let running = world.run().await?;
    let whale = opened(&world).await?;
    falls_back(&world, &running, "spool_full").await?;
    commits(&world, &whale).await?;
    assert_eq!(files(spool.path())?, 0);
    Ok(())
}

#[tokio::test]
async fn spool_whose_disk_is_full_is_done_without() -> Result<()> {
    let Some(disk) = SmallDisk::mount()? else {
        println!("no right to mount a small disk: nothing to test");
        return Ok(());
    };
    let directory = disk.filler().with_file_name("spool");
    let mut world = world(&spool_in(&directory)).await?;
    let running = world.run().await?;
    disk.fill()?;
    let whale = opened(&world).await?;
    falls_back(&world, &running, "disk").await?;
    commits(&world, &whale).await?;
    Ok(())
}

#[tokio::test]
async fn spool_that_may_not_grow_or_cannot_be_made_is_done_without() -> Result<()> {
    let spool = TempDir::new()?;
    let mut limited = world(&spool_in(spool.path())).await?;
    let running = limited.run().await?;
    let pid = running.pid()?.to_string();
    let set = Command::new("prlimit").args(["--pid", &pid, "--fsize=500000:500000"]).status()?;
    ensure!(set.success(), "prlimit");
    let whale = opened(&limited).await?;
    falls_back(&limited, &running, "disk").await?;
    commits(&limited, &whale).await?;
    drop(running);

    // As of a file system that is read-only, also for root.
    let mut unmade = world("spool = \"/proc/walhook\"").await?;
    let running = unmade.run().await?;
    running.until_logged("open transactions are kept in memory alone").await?;
    let whale = opened(&unmade).await?;
    falls_back(&unmade, &running, "disk").await?;
    commits(&unmade, &whale).await?;
    Ok(())
}

#[tokio::test]
async fn writer_that_fills_and_rolls_back_leaves_nothing_and_others_go_on() -> Result<()> {
    let spool = TempDir::new()?;
    let mut world = world(&spool_in(spool.path())).await?;
    let _running = world.run().await?;
    let whale = world.connect().await?;
    for round in 0..5_i64 {
        whale.batch_execute(&format!("BEGIN; {}", insert(1))).await?;
        world.subscribe(40_000 + round, 7).await?;
        world.delivered(u64::try_from(round + 1)?).await?;
        whale.batch_execute("ROLLBACK").await?;
    }
    until_counted(&world, "walhook_streamed_transactions_total{result=\"aborted\"}", 5).await?;
    world.settled().await?;
    world.until_metric("walhook_spool_bytes", "0").await?;
    world.until_metric("walhook_open_transactions", "0").await?;
    assert_eq!(files(spool.path())?, 0);
    assert_eq!(world.mock.stats().received, 5);
    ensure!(counted(&world, "walhook_streamed_aborted_bytes_total").await? > 20 << 20);
    Ok(())
}

#[tokio::test]
async fn streaming_that_is_off_receives_nothing_before_the_commit() -> Result<()> {
    let mut world = world("streaming = \"off\"").await?;
    let _running = world.run().await?;
    let whale = opened(&world).await?;
    world.subscribe(40_000, 7).await?;
    world.delivered(1).await?;
    assert_eq!(counted(&world, "walhook_streamed_rows_total").await?, 0);
    commits(&world, &whale).await?;
    assert_eq!(counted(&world, "walhook_streamed_rows_total").await?, 0);
    Ok(())
}

#[tokio::test]
async fn spool_that_does_not_give_back_what_it_has_lets_the_leader_begin_anew_and_loses_nothing()
-> Result<()> {
    let spool = TempDir::new()?;
    let mut world = world(&spool_in(spool.path())).await?;
    let running = world.run().await?;
    let whale = opened(&world).await?;
    until_counted(&world, "walhook_spool_bytes", 1 << 20).await?;
    for file in std::fs::read_dir(spool.path())? {
        File::options().write(true).open(file?.path())?.set_len(0)?;
    }
    commits(&world, &whale).await?;
    running.until_logged("leading anew, from the checkpoint and without streaming").await?;
    is_told(&world, &running, "disk").await
}
