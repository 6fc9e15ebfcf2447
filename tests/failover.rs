//! The primary is lost and a standby is promoted. Slots that follow a promotion came with PostgreSQL 17;
//! on older servers the tests of those have nothing to show, and say so.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};
use walhook_core::endpoint::Secret;
use walhook_postgres::sql::Connection;
use walhook_testkit::cluster::{Cluster, StopMode};

use crate::support::{PATIENCE, RULES, SCHEMA, World, taken, text};

const FAILOVER_SLOTS: i32 = 170_000;

/// Whether there is something to test; says so where there is not.
async fn has_failover_slots(world: &World) -> Result<bool> {
    let version: i32 = world.value("SHOW server_version_num").await?.parse()?;
    if version < FAILOVER_SLOTS {
        println!("PostgreSQL {version} has no failover slots: nothing to test");
    }
    Ok(version >= FAILOVER_SLOTS)
}

/// A primary with a standby that synchronises its slots, and the program's configuration for both.
/// `None` on a server that cannot.
async fn replicated() -> Result<Option<(World, Cluster)>> {
    // The walsender of our slot sends only what the standby has.
    let server = [("synchronized_standby_slots", "standby")];
    let world = World::bare("", RULES, &[]).await?;
    if !has_failover_slots(&world).await? {
        return Ok(None);
    }
    world.sql.batch_execute(SCHEMA).await?;
    world.value("SELECT pg_create_physical_replication_slot('standby', true)").await?;
    let standby = standby(&world, &SYNCHRONISES).await?;
    for (name, value) in server {
        world.sql.batch_execute(&format!("ALTER SYSTEM SET {name} = '{value}'")).await?;
    }
    world.value("SELECT pg_reload_conf()").await?;
    let (one, two) = (world.cluster.port(), standby.port());
    let hosts = format!("127.0.0.1:{one},127.0.0.1:{two}/postgres?target_session_attrs=read-write");
    world.edit_config(&format!("127.0.0.1:{one}/postgres"), &hosts)?;
    world.set_up().await?;
    Ok(Some((world, standby)))
}

/// What a standby needs to have our slot too.
const SYNCHRONISES: [(&str, &str); 3] = [
    ("primary_slot_name", "standby"),
    ("hot_standby_feedback", "on"),
    ("sync_replication_slots", "on"),
];

/// A running standby with these settings, made of a backup.
async fn standby(world: &World, settings: &[(&str, &str)]) -> Result<Cluster> {
    standby_of(&world.cluster, settings).await
}

async fn standby_of(cluster: &Cluster, settings: &[(&str, &str)]) -> Result<Cluster> {
    let session = session(cluster).await?;
    let version = "SELECT current_setting('server_version_num')::int";
    let (start, stop) = match session.query_one(version, &[]).await?.get::<_, i32>(0) {
        ..150_000 => ("pg_start_backup('standby', true, false)", "pg_stop_backup(false)"),
        150_000.. => ("pg_backup_start('standby', true)", "pg_backup_stop(false)"),
    };
    session.batch_execute(&format!("SELECT {start}")).await?;
    let primary = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", cluster.port());
    let settings = [&[("primary_conninfo", primary.as_str())], settings].concat();
    let mut standby = cluster.copy(&std::env::temp_dir(), &settings)?;
    let label = session.query_one(&format!("SELECT labelfile FROM {stop}"), &[]).await?;
    let label: String = label.get(0);
    write_as_server(&standby, "backup_label", &label)?;
    write_as_server(&standby, "standby.signal", "")?;
    standby.start_again().await?;
    Ok(standby)
}

async fn session(cluster: &Cluster) -> Result<Connection> {
    Ok(Connection::open(&Secret::new(cluster.url("postgres")), "test").await?)
}

/// Waits until a query's first value is true.
async fn until(session: &Connection, sql: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !session.query_one(sql, &[]).await?.get::<_, bool>(0) {
        ensure!(Instant::now() < deadline, "{sql}");
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Writes a file that the server may read.
fn write_as_server(cluster: &Cluster, name: &str, content: &str) -> Result<()> {
    let (owner, path) = (std::fs::metadata(cluster.data())?, cluster.data().join(name));
    std::fs::write(&path, content)?;
    Ok(std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))?)
}

/// Makes the standby the primary that `world` speaks to. Returns the old one.
async fn promote(world: &mut World, standby: Cluster) -> Result<Cluster> {
    let old = std::mem::replace(&mut world.cluster, standby);
    world.reconnect().await?;
    let promoted = world.value("SELECT pg_promote()").await?;
    ensure!(promoted == "t", "not promoted");
    Ok(old)
}

/// Waits until the standby's copy of our slot would outlive a promotion.
async fn until_synchronised(world: &World, standby: &Cluster) -> Result<()> {
    let session = session(standby).await?;
    let synced = "SELECT EXISTS (SELECT FROM pg_replication_slots
                  WHERE slot_name = 'walhook' AND synced AND NOT temporary)";
    for n in 0..600 {
        if session.query_one(synced, &[]).await?.get(0) {
            return Ok(());
        }
        // What the slot needs must be younger than what the standby began with.
        world.subscribe(1_000_000 + n, 99).await?;
        world.sql.batch_execute("CHECKPOINT").await?;
        sleep(Duration::from_millis(100)).await;
    }
    let slots = "SELECT string_agg(slot_name || ' ' || synced || ' ' || temporary, ', ')
                 FROM pg_replication_slots";
    let slots: Option<String> = session.query_one(slots, &[]).await?.get(0);
    anyhow::bail!("the standby's slots: {slots:?}; its log ends with:\n{}", standby.log_tail())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promotion_of_a_synchronised_standby_goes_on_without_a_gap() {
    let Some((mut world, standby)) = replicated().await.unwrap() else { return };
    world.hook(1, 1, "").await.unwrap();
    let running = world.run().await.unwrap();
    until_synchronised(&world, &standby).await.unwrap();
    for id in 1..=20 {
        world.subscribe(id, 1).await.unwrap();
    }
    world.delivered(20).await.unwrap();

    world.cluster.stop(StopMode::Immediate).await.unwrap();
    promote(&mut world, standby).await.unwrap();
    for id in 21..=40 {
        world.subscribe(id, 1).await.unwrap();
    }
    let received = world.delivered(40).await.with_context(|| running.log()).unwrap();
    let mut ids: Vec<i64> = taken(&received)["/1"].iter().map(|(_, id)| *id).collect();
    // Of different rows, which may overtake one another.
    ids.sort_unstable();
    assert_eq!(ids, (1..=40).collect::<Vec<i64>>());
    let timeline = world.value("SELECT timeline FROM walhook.meta").await.unwrap();
    assert_eq!(timeline, "2");
    assert!(running.log().contains("a standby that was promoted"), "{}", running.log());
    assert!(running.terminate().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promotion_of_a_standby_that_lacks_what_was_delivered_halts_and_can_be_adopted() {
    let Some((mut world, mut standby)) = replicated().await.unwrap() else { return };
    world.hook(1, 1, "").await.unwrap();
    let running = world.run().await.unwrap();
    until_synchronised(&world, &standby).await.unwrap();

    // From now on the standby receives nothing, and the primary does not wait for it.
    standby.stop(StopMode::Fast).await.unwrap();
    world.sql.batch_execute("ALTER SYSTEM RESET synchronized_standby_slots").await.unwrap();
    world.value("SELECT pg_reload_conf()").await.unwrap();
    for id in 1..=10 {
        world.subscribe(id, 1).await.unwrap();
    }
    world.delivered(10).await.with_context(|| world.cluster.log_tail() + &running.log()).unwrap();
    world.settled().await.unwrap();
    world.cluster.stop(StopMode::Immediate).await.unwrap();
    standby.start_again().await.unwrap();
    promote(&mut world, standby).await.unwrap();
    // The tables of state stand in the same database, so the new primary's are older as well: what
    // remembers the positions is the running leader.
    let (status, log) = running.ended_with_log().await.unwrap();
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains("left the old one's WAL at"), "{log}");

    let output = world.walhook(&["recover", "--adopt-cluster", "--yes"]).await.unwrap();
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}");
    let running = world.run().await.unwrap();
    world.subscribe(11, 1).await.unwrap();
    world.delivered(11).await.with_context(|| running.log()).unwrap();
    assert!(running.terminate().await.unwrap().success());
}

/// It stands first in the URL and takes writes, and the new one restarts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_primary_that_comes_back_is_told_and_not_followed() -> Result<()> {
    let Some((mut world, standby)) = replicated().await? else { return Ok(()) };
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    until_synchronised(&world, &standby).await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    world.settled().await?;
    world.cluster.stop(StopMode::Immediate).await?;
    let mut old = promote(&mut world, standby).await?;
    world.subscribe(2, 1).await?;
    world.delivered(2).await.with_context(|| running.log())?;

    old.start_again().await?;
    let there = session(&old).await?;
    let stored = "SELECT row_to_json(c)::text || row_to_json(l)::text || row_to_json(m)::text
                  FROM walhook.checkpoint c, walhook.lease l, walhook.meta m";
    let before: String = there.query_one(stored, &[]).await?.get(0);
    there.batch_execute("INSERT INTO public.subscribers VALUES (100, 1, 'old', 'old')").await?;
    world.cluster.stop(StopMode::Fast).await?;
    world.cluster.start_again().await?;
    world.reconnect().await?;
    world.subscribe(3, 1).await?;
    let says = "this is an old primary, on timeline 1; walhook has been on timeline 2";
    let unready = world.until_unready(&format!("{says}; fix: stop it")).await;
    unready.with_context(|| running.log())?;
    let active = "SELECT bool_or(active) FROM pg_replication_slots WHERE slot_name = 'walhook'";
    ensure!(!there.query_one(active, &[]).await?.get::<_, bool>(0), "it reads there");
    let after: String = there.query_one(stored, &[]).await?.get(0);
    ensure!(after == before, "it writes there: {after}, {before}");

    drop(there);
    old.stop(StopMode::Fast).await?;
    let received = world.delivered(3).await.with_context(|| running.log())?;
    let ids: Vec<i64> = taken(&received)["/1"].iter().map(|(_, id)| *id).collect();
    ensure!(ids == [1, 2, 3], "{ids:?}");
    ensure!(running.terminate().await?.success());
    Ok(())
}

/// Of the tables of state, in a server of their own: what was deferred last is missing from them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_that_went_back_with_its_standby_loses_no_deferred_delivery() -> Result<()> {
    let mut state = Cluster::start_distinct(&[]).await?;
    let mut standby = standby_of(&state, &[]).await?;
    let url = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?target_session_attrs=read-write",
        state.port(),
        standby.port()
    );
    let sections = format!(
        "[state]\nurl = \"{url}\"\n[delivery]\nretry_base = \"1s\"\nretry_cap = \"1s\"\n[wal]\nmax_hold = \"1s\""
    );
    let mut world = World::with(&sections, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    world.hook(2, 2, "?status=500").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    let there = session(&state).await?;
    // Its session is the standby's, and its rows are there.
    let caught_up: String = there.query_one("SELECT pg_current_wal_lsn()::text", &[]).await?.get(0);
    let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{caught_up}'");
    until(&session(&standby).await?, &sql).await?;
    standby.stop(StopMode::Fast).await?;
    let begun = world.value("SELECT pg_current_wal_insert_lsn()").await?;
    for id in 2..=11 {
        world.subscribe(id, 2).await?;
    }
    let deferred = "SELECT (SELECT count(*) FROM walhook.deferred)
                        + coalesce((SELECT sum(cardinality(event_ids)) FROM walhook.pages), 0) >= 10";
    until(&there, deferred).await.with_context(|| running.log())?;
    // The checkpoint passes them a moment after they are stored: what the standby has is older for certain then.
    until(&there, &format!("SELECT frontier > '{begun}' FROM walhook.checkpoint")).await?;
    let frontier = "SELECT frontier::text FROM walhook.checkpoint";
    let frontier: String = there.query_one(frontier, &[]).await?.get(0);
    let acknowledged = format!(
        "SELECT confirmed_flush_lsn >= '{frontier}' FROM pg_replication_slots
         WHERE slot_name = 'walhook'"
    );
    until(&world.sql, &acknowledged).await?;
    drop(there);

    state.stop(StopMode::Immediate).await?;
    standby.start_again().await?;
    let promoted = session(&standby).await?;
    promoted.batch_execute("SELECT pg_promote()").await?;
    let anew = "the state tables are older than what was stored in them";
    running.until_logged(anew).await?;
    // The slot has moved on with what was stored; what came after the tables' checkpoint the anchor slot has.
    let (status, log) = running.ended_with_log().await?;
    ensure!(status.code() == Some(3) && log.contains("after the checkpoint"), "{status}: {log}");
    let output = world.walhook(&["recover", "--accept-gap", "--yes"]).await?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    world.sql.batch_execute("UPDATE webhooks SET url = replace(url, '?status=500', '')").await?;
    let running = world.run().await?;
    let received = world.delivered(11).await.with_context(|| running.log())?;
    let mut ids: Vec<i64> = taken(&received)["/2"].iter().map(|(_, id)| *id).collect();
    ids.sort_unstable();
    ensure!(ids == (2..=11).collect::<Vec<i64>>(), "{ids:?}");
    ensure!(running.terminate().await?.success());
    Ok(())
}

/// The URL takes any of two hosts, and the first one restarts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standby_that_answers_for_the_primary_is_told_and_waited_out() -> Result<()> {
    let mut world = World::new().await?;
    let standby = standby(&world, &[]).await?;
    let (one, two) = (world.cluster.port(), standby.port());
    let host = |port: u16| format!("127.0.0.1:{port}");
    let both = format!("{},{}/postgres", host(one), host(two));
    world.edit_config(&format!("{}/postgres", host(one)), &both)?;
    // What halts for another host than that of the set-up is another matter.
    world.sql.batch_execute("UPDATE walhook.meta SET host = '127.0.0.1,127.0.0.1'").await?;
    world.hook(1, 1, "").await?;
    let checked = text(&world.walhook(&["check"]).await?.stdout);
    let warned = "source.url names several hosts, and takes a standby for the primary";
    ensure!(checked.contains(warned), "{checked}");
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    let caught_up = world.value("SELECT pg_current_wal_lsn()").await?;
    let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{caught_up}'");
    until(&session(&standby).await?, &sql).await.with_context(|| standby.log_tail())?;

    let (says, fix) = ("this server is a standby", "let the URL lead to the primary");
    world.cluster.stop(StopMode::Fast).await?;
    let unready = world.until_unready(&format!("{says}; fix: {fix}")).await;
    unready.with_context(|| running.log())?;
    let status = world.walhook(&["status"]).await?;
    let shown = text(&status.stdout);
    ensure!(status.status.code() != Some(3) && !shown.contains("SLOT PROBLEM"), "{shown}");
    ensure!(
        shown.contains(&format!("slot          unknown, it could not be read: {says}; {fix}")),
        "{shown}"
    );
    for command in [
        &["checkpoint", "show"][..],
        &["recover", "--accept-gap", "--yes"],
        &["recover", "--adopt-cluster", "--yes"],
        &["setup"],
    ] {
        let output = world.walhook(command).await?;
        let told = text(&output.stderr);
        ensure!(output.status.code() == Some(1), "{command:?}: {}: {told}", output.status);
        ensure!(told.contains(&format!("{says}; {fix}")), "{command:?}: {told}");
    }
    world.cluster.start_again().await?;
    world.reconnect().await?;
    world.subscribe(2, 1).await?;
    world.delivered(2).await.with_context(|| running.log())?;
    ensure!(running.terminate().await?.success());

    // An instance that starts while it answers.
    world.cluster.stop(StopMode::Fast).await?;
    let running = world.spawn()?;
    running.until_logged(says).await?;
    world.cluster.start_again().await?;
    world.reconnect().await?;
    world.subscribe(3, 1).await?;
    world.delivered(3).await.with_context(|| running.log())?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

/// The connection stands and the server answers on it, but sends nothing. Our role may see no statistics of others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_that_waits_for_a_standby_that_is_down_fails_with_its_name_until_it_goes_on()
-> Result<()> {
    let mut world = World::bare("", RULES, &[]).await?;
    if !has_failover_slots(&world).await? {
        return Ok(());
    }
    world.sql.batch_execute(SCHEMA).await?;
    world.sql.batch_execute("CREATE ROLE sender LOGIN").await?;
    let admin = world.cluster.url("postgres");
    world.edit_config("postgres://postgres@", "postgres://sender@")?;
    let output = world.walhook(&["setup", "--admin-url", &admin]).await?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;

    world.value("SELECT pg_create_physical_replication_slot('standby', true)").await?;
    world.sql.batch_execute("ALTER SYSTEM SET synchronized_standby_slots = 'standby'").await?;
    world.value("SELECT pg_reload_conf()").await?;
    world.until("SHOW synchronized_standby_slots", "standby").await?;
    world.subscribe(2, 1).await?;
    let why = "the server holds the stream back until the standbys of synchronized_standby_slots (standby) have \
               received it: no standby streams from standby";
    let fix = "start the standby, or amend synchronized_standby_slots";
    world.until_unready(&format!("{why}; fix: {fix}")).await?;
    ensure!(world.mock.stats().distinct == 1, "it was not held back");
    let metrics = world.metrics().await?;
    let fails = metrics.lines().find(|line| {
        line.starts_with("walhook_failing_seconds{") && line.contains("part=\"stream\"")
    });
    ensure!(fails.is_some_and(|line| !line.ends_with(" 0")), "{fails:?}");
    running.until_logged(why).await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = text(&world.walhook(&["status"]).await?.stdout);
        if status.contains("FAILING       stream, since ") && status.contains(why) {
            break;
        }
        ensure!(Instant::now() < deadline, "{status}");
        sleep(Duration::from_millis(50)).await;
    }
    let check = world.walhook(&["check"]).await?;
    let told = text(&check.stdout);
    ensure!(check.status.code() == Some(1), "{told}");
    let line = "fail  synchronized_standby_slots: no standby streams from standby: ";
    ensure!(told.contains(line) && told.contains(&format!("; {fix}")), "{told}");
    // The server says so every few seconds, we do not.
    let repeated = "does not have active_pid";
    let deadline = Instant::now() + PATIENCE;
    while world.cluster.log_tail().matches(repeated).count() < 3 {
        ensure!(Instant::now() < deadline, "{}", world.cluster.log_tail());
        sleep(Duration::from_millis(50)).await;
    }
    ensure!(running.log().matches(repeated).count() == 1, "{}", running.log());

    world.sql.batch_execute("ALTER SYSTEM RESET synchronized_standby_slots").await?;
    world.value("SELECT pg_reload_conf()").await?;
    world.delivered(2).await?;
    world.until_ready(true).await?;
    running.until_logged("works again: the stream goes on").await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}
