//! Where going on would lose data silently, walhook halts: exit code 3, the reason and the fix on
//! standard error and in `status`, and nothing is touched.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::Instant;
use walhook_core::endpoint::Secret;
use walhook_postgres::sql::{Connection, SERVER_SEARCH_PATH};
use walhook_testkit::cluster::{Cluster, StopMode};
use walhook_testkit::receiver::Behaviour;

use crate::support::{PATIENCE, RULES, World, bodies, text};

/// Some seconds, and what a busy machine adds: far less than the minute that a request which hangs may take.
const SOON: Duration = Duration::from_secs(30);

/// `run` must halt for a reason that says all of this, and `status` must show it.
const CONFIRMED: &str =
    "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'walhook'";

async fn halts(world: &mut World, expected: &[&str]) -> Result<()> {
    let (status, log) = world.spawn()?.ended_with_log().await?;
    ensure!(status.code() == Some(3), "{status}, not a halt:\n{log}");
    shown(world, &log, expected).await
}

async fn shown(world: &World, log: &str, expected: &[&str]) -> Result<()> {
    let said = log.lines().last().unwrap_or_default();
    let output = world.walhook(&["status"]).await?;
    ensure!(output.status.code() == Some(3), "status: {}", output.status);
    let status = text(&output.stdout);
    let halted = status.lines().find(|line| line.starts_with("HALTED")).unwrap_or_default();
    let json = world.walhook_json(&["status"]).await?;
    let stored = json["halted"]["reason"].as_str().unwrap_or_default();
    for part in expected {
        ensure!(said.contains(part), "standard error does not say {part:?}: {said}");
        ensure!(halted.contains(part), "status does not say {part:?}: {status}");
        ensure!(stored.contains(part), "status --json does not say {part:?}: {json}");
    }
    Ok(())
}

/// `run` must lead again, and forget the halt.
async fn goes_on(world: &mut World) -> Result<()> {
    let running = world.run().await?;
    let output = world.walhook(&["status"]).await?;
    ensure!(output.status.success(), "status: {}", text(&output.stdout));
    ensure!(running.terminate().await?.success());
    Ok(())
}

/// Drops the slot, as soon as nobody streams from it.
pub(crate) async fn drop_slot(world: &World) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) =
        world.sql.batch_execute("SELECT pg_drop_replication_slot('walhook')").await
    {
        ensure!(Instant::now() < deadline, "{error}");
    }
    Ok(())
}

async fn run_sql(world: &World, sql: &str) -> Result<()> {
    world.sql.batch_execute(sql).await.with_context(|| sql.to_owned())
}

#[tokio::test]
async fn halt_names_its_reason_and_ends_when_that_is_fixed() -> Result<()> {
    let mut world = World::new().await?;
    goes_on(&mut world).await?;
    let system = world.value("SELECT system_identifier FROM walhook.meta").await?;

    let set_system = |system: &str| format!("UPDATE walhook.meta SET system_identifier = {system}");
    for (breaks, fixes, expected) in [
        (
            set_system("7"),
            set_system(&system),
            vec!["not the database", &*system, "it was 7", "recover --adopt-cluster"],
        ),
        (
            "UPDATE walhook.meta SET timeline = 9".to_owned(),
            "UPDATE walhook.meta SET timeline = 1".to_owned(),
            vec!["its timeline is 1, it was 9", "recover --adopt-cluster"],
        ),
        (
            "UPDATE walhook.meta SET database = 'production'".to_owned(),
            "UPDATE walhook.meta SET database = 'postgres'".to_owned(),
            vec![
                "postgres, and walhook was set up for production",
                "it would send to your customers",
            ],
        ),
        (
            "UPDATE walhook.checkpoint SET frontier = '0/100'".to_owned(),
            "UPDATE walhook.checkpoint
             SET frontier = (SELECT confirmed_flush_lsn FROM pg_replication_slots
                             WHERE slot_name = 'walhook')"
                .to_owned(),
            vec!["\"walhook\" begins at", "after the checkpoint 0/100", "recover --accept-gap"],
        ),
    ] {
        run_sql(&world, &breaks).await?;
        halts(&mut world, &expected).await.with_context(|| breaks)?;
        run_sql(&world, &fixes).await?;
        goes_on(&mut world).await.with_context(|| fixes)?;
    }

    run_sql(&world, "ALTER SCHEMA walhook RENAME TO away").await?;
    let (status, log) = world.spawn()?.ended_with_log().await?;
    ensure!(status.code() == Some(2) && log.contains("run `walhook setup`"), "{status}: {log}");
    run_sql(&world, "ALTER SCHEMA away RENAME TO walhook").await?;

    run_sql(&world, "DROP PUBLICATION walhook").await?;
    let unpublished = ["publication \"walhook\" does not exist", "`walhook setup` makes it"];
    halts(&mut world, &unpublished).await?;
    run_sql(&world, "CREATE PUBLICATION walhook FOR TABLE subscribers, webhooks").await?;

    drop_slot(&world).await?;
    let frontier = world.value("SELECT frontier FROM walhook.checkpoint").await?;
    let gone = ["slot \"walhook\" does not exist", &*frontier, "recover --accept-gap"];
    halts(&mut world, &gone).await?;
    ensure!(
        world
            .value("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walhook'")
            .await?
            == "0"
    );
    let setup = world.walhook(&["setup"]).await?;
    ensure!(setup.status.code() == Some(3), "setup must not hide the gap: {}", setup.status);

    // Made again behind our back, it begins where a gap ends.
    world.subscribe(1, 1).await?;
    run_sql(&world, "SELECT pg_create_logical_replication_slot('walhook', 'pgoutput')").await?;
    let begin = world.value(CONFIRMED).await?;
    halts(&mut world, &[&format!("begins at {begin}, after the checkpoint {frontier}")]).await
}

#[tokio::test]
async fn halt_where_the_slot_is_another_program_s_names_its_kind_and_ends_with_it() -> Result<()> {
    let mut world = World::new().await?;
    goes_on(&mut world).await?;
    run_sql(&world, "CREATE DATABASE elsewhere").await?;
    let elsewhere = Connection::open_with_path(
        &Secret::new(world.cluster.url("elsewhere")),
        "test",
        SERVER_SEARCH_PATH,
    )
    .await?;
    let here = world.connect().await?;
    drop_slot(&world).await?;
    let logical = "SELECT pg_create_logical_replication_slot('walhook', 'pgoutput')";
    let decoding = "SELECT pg_create_logical_replication_slot('walhook', 'test_decoding')";
    let physical = "SELECT pg_create_physical_replication_slot('walhook')";
    // In use for as long as its session lasts: whoever has it is no instance to stand by for.
    let temporary = "SELECT pg_create_logical_replication_slot('walhook', 'pgoutput', true)";
    for (session, create, kind) in [
        (&elsewhere, logical, "another database"),
        (&here, decoding, "\"test_decoding\""),
        (&here, physical, "a physical slot"),
        (&elsewhere, temporary, "a temporary one"),
    ] {
        session.batch_execute(create).await?;
        let (status, log) = world.spawn()?.ended_with_log().await?;
        ensure!(status.code() == Some(3), "{status}, not a halt:\n{log}");
        shown(&world, &log, &["is not ours", kind]).await?;
        if !create.ends_with("true)") {
            session.batch_execute("SELECT pg_drop_replication_slot('walhook')").await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn case_04_halt_of_a_leader_whose_slot_was_recreated_states_the_gap_from_its_checkpoint()
-> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 1, "?hang").await?;
    let running = world.run().await?;
    // Received and on its way, so in memory only: the gap holds it too.
    world.subscribe(1, 1).await?;
    let committed = world.value("SELECT pg_current_wal_insert_lsn()").await?;
    world.mock.wait_until("a request", PATIENCE, |stats| stats.in_flight == 1).await?;

    run_sql(
        &world,
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active",
    )
    .await?;
    drop_slot(&world).await?;
    run_sql(&world, "SELECT pg_create_logical_replication_slot('walhook', 'pgoutput')").await?;
    let begin = world.value(CONFIRMED).await?;

    let (status, log) = running.ended_with_log().await?;
    ensure!(status.code() == Some(3), "{status}:\n{log}");
    let before = format!("SELECT frontier < '{committed}'::pg_lsn FROM walhook.checkpoint");
    ensure!(world.value(&before).await? == "t", "the checkpoint passed what was not answered");
    let checkpoint = world.value("SELECT frontier FROM walhook.checkpoint").await?;
    // It may have looked before the slot was there again.
    let missing = format!("changes committed after {checkpoint} cannot be read");
    let recreated = format!("begins at {begin}, after the checkpoint {checkpoint}");
    let expected = if log.contains(&missing) { missing } else { recreated };
    shown(&world, &log, &[&expected, "recover --accept-gap"]).await?;
    let after = world.value(CONFIRMED).await?;
    ensure!(after == begin, "the slot was moved from {begin} to {after}");
    Ok(())
}

#[tokio::test]
async fn case_16_halt_of_a_leader_whose_slot_is_lost_comes_within_seconds_and_leaves_the_slot()
-> Result<()> {
    let server = [("max_slot_wal_keep_size", "16MB"), ("min_wal_size", "32MB")];
    let mut world = World::with("[delivery]\ntimeout = \"60s\"", RULES, &server).await?;
    world.hook(1, 1, "?hang").await?;
    let running = world.run().await?;
    // What is not answered keeps the slot where it is.
    world.subscribe(1, 1).await?;
    world.mock.wait_until("a request", PATIENCE, |stats| stats.in_flight == 1).await?;
    for _ in 0..6 {
        run_sql(&world, "SELECT pg_logical_emit_message(false, 'test', ''), pg_switch_wal()")
            .await?;
    }
    run_sql(&world, "CHECKPOINT").await?;
    let lost_at = Instant::now();
    ensure!(
        world
            .value("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'walhook'")
            .await?
            == "lost"
    );

    let (status, log) = running.ended_with_log().await?;
    ensure!(status.code() == Some(3), "{status}:\n{log}");
    ensure!(lost_at.elapsed() < SOON, "after {:?}", lost_at.elapsed());
    let expected = ["slot \"walhook\" is lost", "max_slot_wal_keep_size", "recover --accept-gap"];
    shown(&world, &log, &expected).await?;
    ensure!(log.lines().count() < 20, "a hot loop:\n{log}");
    let stopped = Instant::now();
    halts(&mut world, &expected).await?;
    ensure!(stopped.elapsed() < SOON, "after {:?}", stopped.elapsed());
    let slot = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'walhook'";
    ensure!(world.value(slot).await? == "lost", "the slot was recreated");
    Ok(())
}

/// Copies a stopped cluster's data; the port stays that of the directory's configuration.
fn copy_data(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let status = std::process::Command::new("cp").arg("-a").args([from, to]).status()?;
    ensure!(status.success(), "cp -a {from:?} {to:?}");
    Ok(())
}

#[tokio::test]
async fn case_05_halt_when_another_cluster_or_an_older_copy_answers_at_our_address() -> Result<()> {
    let mut state = Cluster::start_distinct(&[]).await?;
    let sections = format!("[state]\nurl = \"{}\"", state.url("postgres"));
    let mut world = World::with(&sections, RULES, &[]).await?;
    goes_on(&mut world).await?;
    let data = world.cluster.data();
    let (ours, older) = (data.with_extension("ours"), data.with_extension("older"));
    world.cluster.stop(StopMode::Fast).await?;
    copy_data(&data, &older)?;

    // Another cluster, with the same port.
    std::fs::rename(&data, &ours)?;
    state.stop(StopMode::Fast).await?;
    copy_data(&state.data(), &data)?;
    state.start_again().await?;
    std::fs::copy(ours.join("postgresql.conf"), data.join("postgresql.conf"))?;
    world.cluster.start_again().await?;
    halts(&mut world, &["its system identifier is", "recover --adopt-cluster"]).await?;
    // What there is to do is one thing, also where a slot lacks.
    let status = text(&world.walhook(&["status"]).await?.stdout);
    ensure!(!status.contains("--accept-gap"), "{status}");
    let check = text(&world.walhook(&["check"]).await?.stdout);
    let slot = check.lines().find(|line| line.starts_with("fail  slot"));
    ensure!(slot.is_some_and(|line| !line.contains("walhook setup")), "{check}");
    world.cluster.stop(StopMode::Fast).await?;
    std::fs::remove_dir_all(&data)?;
    std::fs::rename(&ours, &data)?;
    world.cluster.start_again().await?;
    world.reconnect().await?;
    goes_on(&mut world).await?;

    // An older copy of the same cluster, slot included.
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    for id in 2..100 {
        world.subscribe(id, 2).await?;
    }
    world.subscribe(100, 1).await?;
    world.delivered(2).await?;
    ensure!(running.terminate().await?.success());
    world.cluster.stop(StopMode::Fast).await?;
    std::fs::remove_dir_all(&data)?;
    std::fs::rename(&older, &data)?;
    world.cluster.start_again().await?;
    halts(&mut world, &["beyond the end of the WAL", "older copy", "recover --accept-gap"]).await
}

#[tokio::test]
async fn halt_when_the_publication_goes_while_it_runs_and_rows_are_written_without_it() -> Result<()>
{
    let mut world = World::new().await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    let anchors = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walhook_anchor'";
    world.until(anchors, "1").await?;
    run_sql(&world, "DROP PUBLICATION walhook").await?;
    world.subscribe(2, 1).await?;
    let (status, log) = running.ended_with_log().await?;
    ensure!(status.code() == Some(3), "{status}:\n{log}");
    // PostgreSQL 15 ends the stream, 18 warns and would leave the rows out.
    shown(&world, &log, &["publication \"walhook\"", "drop the slot"]).await?;

    // There again, it does not help: the row was written without it.
    let frontier = world.value("SELECT frontier FROM walhook.checkpoint").await?;
    let setup = world.walhook(&["setup"]).await?;
    let said = text(&setup.stdout) + &text(&setup.stderr);
    ensure!(setup.status.success() && said.contains("if `walhook run` halts again"), "{said}");
    let began = Instant::now();
    halts(&mut world, &["publication \"walhook\"", "recover --accept-gap"]).await?;
    ensure!(began.elapsed() < SOON, "after {:?}", began.elapsed());
    let nothing = text(&world.walhook(&["recover", "--accept-gap", "--yes"]).await?.stdout);
    ensure!(nothing.contains("another matter") && nothing.contains("drop the slot"), "{nothing}");

    // The anchor slot cannot be read past it either, so it is no way to less of a gap.
    run_sql(&world, "SELECT pg_drop_replication_slot('walhook')").await?;
    let done = world.walhook_json(&["recover", "--accept-gap", "--yes"]).await?;
    let gap = &done["recovered"]["gap"];
    ensure!(gap.is_object() && gap["replay"].is_null(), "{done}");
    let why = "the publication is younger than what was written from";
    ensure!(gap["no_replay"].as_str().is_some_and(|text| text.contains(why)), "{done}");
    let running = world.run().await?;
    world.subscribe(3, 1).await?;
    world.delivered(2).await?;

    // Nor can a replay read past it, and it says so at once, as its dry run does.
    for dry_run in [&["--dry-run"][..], &[]] {
        let replay = [&["replay", "start", "--from", &frontier], dry_run].concat();
        let replay = world.walhook(&replay).await?;
        let said = text(&replay.stdout) + &text(&replay.stderr);
        ensure!(said.contains("cannot be sent again: send it by hand"), "{dry_run:?}: {said}");
        let helps_no_more = ["walhook setup", "put back", "walhook check"];
        ensure!(!helps_no_more.iter().any(|fix| said.contains(fix)), "{dry_run:?}: {said}");
    }
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn halt_when_a_rules_table_is_renamed_loses_nothing_and_ends_when_it_is_named_back()
-> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    run_sql(&world, "ALTER TABLE subscribers RENAME TO people").await?;
    run_sql(&world, "INSERT INTO people (id, account_id) VALUES (1, 1)").await?;
    let (status, log) = running.ended_with_log().await?;
    ensure!(status.code() == Some(3), "{status}:\n{log}");
    shown(&world, &log, &["there is no table public.subscribers any more", "nothing is lost"])
        .await?;
    let setup = text(&world.walhook(&["setup"]).await?.stderr);
    ensure!(setup.contains("if it was renamed or moved, correct the configuration"), "{setup}");
    run_sql(&world, "ALTER TABLE people RENAME TO subscribers").await?;
    let running = world.run().await?;
    world.subscribe(2, 1).await?;
    world.delivered(2).await?;
    ensure!(world.value("SELECT count(*) FROM walhook.gaps").await? == "0");
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn halt_that_the_catalog_gives_waits_for_what_is_in_flight_and_sends_nothing_twice()
-> Result<()> {
    let mut world = World::new().await?;
    // Longer than from one look to the next.
    world.hook(1, 1, "?delay=7s").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.mock.wait_until("a request", PATIENCE, |stats| stats.in_flight == 1).await?;
    run_sql(&world, "ALTER PUBLICATION walhook SET (publish = 'insert')").await?;
    let (status, log) = running.ended_with_log().await?;
    ensure!(status.code() == Some(3), "{status}:\n{log}");
    shown(&world, &log, &["does not publish updates"]).await?;

    let publishes = "ALTER PUBLICATION walhook SET (publish = 'insert, update, delete, truncate')";
    run_sql(&world, publishes).await?;
    world.mock.set_behaviour("/1", Behaviour::ok());
    let running = world.run().await?;
    world.subscribe(2, 1).await?;
    world.delivered(2).await?;
    world.settled().await?;
    let received = world.mock.received();
    ensure!(received.len() == 2, "{} requests for 2 events", received.len());
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn endpoint_table_that_leaves_the_publication_halts_nothing_and_is_looked_up_anew()
-> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    run_sql(&world, "ALTER PUBLICATION walhook DROP TABLE webhooks").await?;
    let told = "SELECT count(*) FROM walhook.troubles WHERE part = 'watch'";
    world.until(told, "1").await?;

    // Nothing in the stream tells of an endpoint that comes now.
    world.hook(2, 1, "").await?;
    let deadline = Instant::now() + PATIENCE;
    for id in 2.. {
        world.subscribe(id, 1).await?;
        let received = world.delivered(u64::try_from(id)?).await?;
        if !bodies(&received, "/2").is_empty() {
            break;
        }
        ensure!(Instant::now() < deadline, "the second endpoint gets nothing: {}", running.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    world.set_up().await?;
    world.until(told, "0").await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn halt_when_a_table_leaves_the_publication_or_is_made_again() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 1, "").await?;
    for (leave, missing) in [
        ("DROP TABLE subscribers; CREATE TABLE subscribers (id bigint PRIMARY KEY, account_id bigint NOT NULL,
              email text, status text); ALTER TABLE subscribers REPLICA IDENTITY FULL", "public.subscribers"),
        ("ALTER PUBLICATION walhook SET (publish = 'insert')", "does not publish updates"),
    ] {
        let running = world.run().await?;
        run_sql(&world, leave).await?;
        let (status, log) = running.ended_with_log().await?;
        ensure!(status.code() == Some(3), "{leave}: {status}:\n{log}");
        shown(&world, &log, &["publication \"walhook\"", missing, "walhook setup"]).await?;

        // It does not start until that is put right.
        let (status, _) = world.spawn()?.ended_with_log().await?;
        ensure!(status.code() == Some(2), "{leave}: {status} when started again");
        world.set_up().await?;
        run_sql(&world, "ALTER PUBLICATION walhook SET (publish = 'insert, update, delete, truncate')")
            .await?;
    }
    let _running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    Ok(())
}
