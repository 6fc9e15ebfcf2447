//! Where open transactions are kept while they do not fit into memory, and what happens where they cannot be.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use walhook_dispatch::dispatcher::UNPERSISTED_MAX;
use walhook_testkit::receiver::Received;

use crate::changes::rows;
use crate::disk::SmallDisk;
use crate::kills::{stand_by, until_standing_by};
use crate::replay::by_id;
use crate::support::{PATIENCE, RULES, Running, World, answers};
use crate::turns::{counted, until_counted};

/// Rows of a large transaction, of some 1,500 bytes each: three times what memory may keep of them.
const ROWS: i64 = 2_000;

/// Further rows of it, which [`goes_on`] writes.
const LATER: RangeInclusive<i64> = 50_001..=50_200;

const ROLLED_BACK_PART: &str = "SAVEPOINT a; UPDATE subscribers SET status = 'never';
    ROLLBACK TO SAVEPOINT a; INSERT INTO subscribers VALUES (30000, 42)";

/// A world with one mebibyte for open transactions, and these further keys of `[source]`.
async fn world(source: &str) -> Result<World> {
    world_of(source, &[]).await
}

/// The same, whose server has these settings.
async fn world_of(source: &str, server: &[(&str, &str)]) -> Result<World> {
    let world = World::with("", RULES, server).await?;
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

fn insert(rows: RangeInclusive<i64>) -> String {
    format!(
        "INSERT INTO subscribers (id, account_id, email)
         SELECT n, 42, pg_catalog.repeat('x', 1500) FROM generate_series({}, {}) n",
        rows.start(),
        rows.end()
    )
}

/// Opens a transaction, writes all of it and a part that is rolled back, and leaves it open.
async fn opened(world: &World) -> Result<walhook_postgres::sql::Connection> {
    let whale = world.connect().await?;
    whale.batch_execute(&format!("BEGIN; {}; {ROLLED_BACK_PART}", insert(1..=ROWS))).await?;
    Ok(whale)
}

/// The rows that [`opened`] leaves.
fn written() -> BTreeSet<i64> {
    (1..=ROWS).chain([30_000]).collect()
}

/// Those, and what [`goes_on`] adds.
fn written_and_later() -> BTreeSet<i64> {
    written().into_iter().chain(LATER).collect()
}

/// Writes more to an open transaction of which another process had received what came before. PostgreSQL streams what
/// was written before the confirmed position only as more changes come behind it, at the latest at the commit.
async fn goes_on(whale: &walhook_postgres::sql::Connection) -> Result<()> {
    whale.batch_execute(&insert(LATER)).await?;
    Ok(())
}

/// Commits, and holds what is delivered against what was written.
async fn commits(
    world: &World,
    whale: &walhook_postgres::sql::Connection,
) -> Result<Vec<Received>> {
    whale.batch_execute("COMMIT").await?;
    arrive(world, &written()).await
}

/// Waits until all of these rows are delivered, and holds what came against them.
async fn arrive(world: &World, expected: &BTreeSet<i64>) -> Result<Vec<Received>> {
    let all = u64::try_from(expected.len())?;
    world.delivered(all).await?;
    world.settled().await?;
    let received = world.mock.received();
    let whales: Vec<Received> = received.into_iter().filter(|one| one.path == "/1").collect();
    assert_eq!(rows(&whales).into_iter().collect::<BTreeSet<_>>(), *expected);
    let ids: BTreeSet<&str> = whales.iter().map(|one| one.id.as_str()).collect();
    assert_eq!(ids.len(), expected.len(), "an id for each event, and no other");
    Ok(whales)
}

fn files(directory: &Path) -> Result<usize> {
    Ok(names(directory)?.len())
}

fn names(directory: &Path) -> Result<BTreeSet<OsString>> {
    std::fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect()
}

/// Waits until the spool has exactly these files.
async fn until_names(directory: &Path, wanted: &BTreeSet<OsString>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let names = names(directory)?;
        if names == *wanted {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{names:?} in the spool, not {wanted:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until streaming is given up, and for the log, the metric and status to say so.
async fn is_told(world: &World, running: &Running, reason: &str) -> Result<()> {
    let series = format!("walhook_stream_fallbacks_total{{reason=\"{reason}\"}}");
    world.until_metric(&series, "1").await?;
    running.until_logged("large transactions are received when they have committed").await?;
    // It is shown a moment after it was logged.
    world.until("SELECT count(*) FROM walhook.troubles WHERE part = 'streaming'", "1").await?;
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
    ensure!(open["bytes"].as_u64() > Some(2 << 20), "{open}");
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
    goes_on(&whale).await?;
    until_counted(&world, "walhook_spool_bytes", 1 << 20).await?;
    assert_eq!(files(spool.path())?, 1);
    whale.batch_execute("COMMIT").await?;
    arrive(&world, &written_and_later()).await?;
    // Once more, by protocol 1: the same bodies, by the same ids.
    world.walhook_json(&["replay", "start", "--from", &from, "--endpoint", "1"]).await?;
    let replayed = "SELECT pg_catalog.count(*)::text FROM walhook.jobs WHERE finished_at IS NULL";
    world.until(replayed, "0").await?;
    let received = world.mock.received();
    assert_eq!(by_id(&received, true), by_id(&received, false));
    Ok(())
}

#[tokio::test]
async fn standby_leaves_the_living_leaders_file_and_removes_it_when_it_takes_over_from_the_killed()
-> Result<()> {
    let spool = TempDir::new()?;
    let mut world = world(&spool_in(spool.path())).await?;
    let leader = world.run().await?;
    let whale = opened(&world).await?;
    until_counted(&world, "walhook_spool_bytes", 1 << 20).await?;
    let of_leader = names(spool.path())?;
    assert_eq!(of_leader.len(), 1);
    let (mut standby, admin) = stand_by(&mut world).await?;
    assert_eq!(names(spool.path())?, of_leader, "its process lives");
    leader.kill().await?;
    standby.until_leading(admin).await?;
    world.admin = admin;
    standby.until_logged("removed what was left in the spool").await?;
    goes_on(&whale).await?;
    until_counted(&world, "walhook_spool_bytes", 1 << 20).await?;
    let of_standby = names(spool.path())?;
    assert_eq!(of_standby.len(), 1);
    assert!(of_standby.is_disjoint(&of_leader), "{of_standby:?}");
    whale.batch_execute("COMMIT").await?;
    arrive(&world, &written_and_later()).await?;
    until_names(spool.path(), &BTreeSet::new()).await?;
    assert_eq!(world.mock.stats().duplicates, 0);
    assert_eq!(counted(&world, "walhook_stream_fallbacks_total").await?, 0);
    Ok(())
}

/// When the transaction of a leader that is frozen commits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Commits {
    /// While it is frozen, and still has the slot: the COMMIT is sent to it.
    ToTheFrozen,
    /// When it is thawed, and another one leads.
    ToTheNext,
}

/// A leader with a spooled transaction is frozen, replaced and thawed. Two processes have files in one spool then.
async fn freeze(commits: Commits) -> Result<()> {
    let spool = TempDir::new()?;
    // So soon the server gives the slot of a frozen leader free.
    let mut world = world_of(&spool_in(spool.path()), &[("wal_sender_timeout", "2s")]).await?;
    let leader = world.run().await?;
    let thawed = world.admin;
    let whale = opened(&world).await?;
    until_counted(&world, "walhook_spool_bytes", 1 << 20).await?;
    let of_leader = names(spool.path())?;
    let (mut standby, admin) = stand_by(&mut world).await?;
    leader.signal("STOP")?;
    let (mut expected, mut bound) = (written_and_later(), 0);
    if commits == Commits::ToTheFrozen {
        whale.batch_execute("COMMIT").await?;
        expected = written();
        // When it is thawed it may play what it has, until it notices that another one leads.
        bound = UNPERSISTED_MAX;
    }
    standby.until_leading(admin).await?;
    world.admin = admin;
    if commits == Commits::ToTheNext {
        goes_on(&whale).await?;
        until_counted(&world, "walhook_spool_bytes", 1 << 20).await?;
        assert_eq!(files(spool.path())?, 2, "the frozen one lives, and so does its file");
    }
    let both = names(spool.path())?;
    assert!(both.is_superset(&of_leader), "{both:?}");
    leader.signal("CONT")?;
    until_standing_by(thawed).await.with_context(|| leader.log())?;
    leader.until_logged("another instance has taken over").await?;
    if commits == Commits::ToTheNext {
        until_names(spool.path(), &both.difference(&of_leader).cloned().collect()).await?;
        whale.batch_execute("COMMIT").await?;
    }
    arrive(&world, &expected).await?;
    until_names(spool.path(), &BTreeSet::new()).await?;
    ensure!(answers(admin, "/leaderz").await, "the new leader leads no more: {}", standby.log());
    assert_eq!(counted(&world, "walhook_stream_fallbacks_total").await?, 0);
    let duplicates = world.mock.stats().duplicates;
    ensure!(duplicates <= u64::try_from(bound)?, "{duplicates} duplicates, at most {bound}");
    Ok(())
}

#[tokio::test]
async fn frozen_leader_keeps_its_file_and_removes_it_when_it_is_thawed_and_stands_by() -> Result<()>
{
    freeze(Commits::ToTheNext).await
}

#[tokio::test]
async fn spooled_transaction_that_commits_while_its_leader_is_frozen_is_sent_by_the_next()
-> Result<()> {
    freeze(Commits::ToTheFrozen).await
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
    let keys = format!("{}\nspool_max = \"1MiB\"", spool_in(spool.path()));
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
        whale.batch_execute(&format!("BEGIN; {}", insert(1..=ROWS))).await?;
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
    ensure!(counted(&world, "walhook_streamed_aborted_bytes_total").await? > 10 << 20);
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
