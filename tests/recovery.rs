//! What would stop the stream for ever, and how an operator goes on from it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use walhook_testkit::cluster::StopMode;

use crate::support::{RULES, Running, World, taken, text};

/// `run` must end with a halt whose line says this.
async fn halts(world: &mut World, says: &str) -> Result<()> {
    ended_with_halt(world.spawn()?, says).await
}

async fn ended_with_halt(running: Running, says: &str) -> Result<()> {
    let (status, log) = running.ended_with_log().await?;
    let last = log.lines().last().unwrap_or_default();
    ensure!(status.code() == Some(3) && last.contains(says), "{status}, without {says:?}:\n{log}");
    Ok(())
}

/// `recover` must refuse to act unasked; then it must do so, and leave one open gap.
async fn recovers(world: &World, option: &[&str]) -> Result<Value> {
    let args = [&["recover"], option].concat();
    let asked = world.walhook(&args).await?;
    ensure!(asked.status.code() == Some(2), "{}", text(&asked.stderr));
    ensure!(text(&asked.stderr).contains("add --yes"), "{}", text(&asked.stderr));
    let before = world.walhook_json(&["gaps", "list"]).await?;
    let done = world.walhook_json(&[&args[..], &["--yes"]].concat()).await?;
    ensure!(done["recovered"]["to"].is_string(), "{done}");
    let after = world.walhook_json(&["gaps", "list"]).await?;
    let count = |gaps: &Value| gaps["gaps"].as_array().map_or(0, Vec::len);
    ensure!(count(&after) == count(&before) + 1, "{before} {after}");
    let gap = after["gaps"][count(&before)].clone();
    ensure!(gap["from_lsn"] == done["recovered"]["from"], "{gap} {done}");
    ensure!(gap["to_lsn"] == done["recovered"]["to"], "{gap} {done}");
    ensure!(gap["reason"] == done["recovered"]["reason"], "{gap} {done}");
    Ok(gap)
}

/// Deliveries must flow again, and `status` must be content but for the gaps.
async fn flows(world: &mut World, id: i64) -> Result<()> {
    let running = world.run().await?;
    let before = world.mock.stats().distinct;
    world.subscribe(id, 1).await?;
    world.delivered(before + 1).await?;
    let output = world.walhook(&["status"]).await?;
    let status = text(&output.stdout);
    ensure!(output.status.success() && !status.contains("gaps          none"), "{status}");
    world.until_metric("walhook_gaps", &open_gaps(world).await?).await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

/// Drops the slot: the server takes a moment to see that nobody streams from it any more.
async fn drop_slot(world: &World) -> Result<()> {
    let active = "SELECT count(active_pid) FROM pg_replication_slots WHERE slot_name = 'walhook'";
    world.until(active, "0").await?;
    Ok(world.sql.batch_execute("SELECT pg_drop_replication_slot('walhook')").await?)
}

async fn open_gaps(world: &World) -> Result<String> {
    world.value("SELECT count(*) FROM walhook.gaps WHERE closed_at IS NULL").await
}

#[tokio::test]
async fn change_too_large_to_be_read_is_a_dead_letter_by_its_position_and_memory_stays_flat()
-> Result<()> {
    // A change may take a quarter of this.
    let mut world = World::with("[memory]\nlimit = \"16MiB\"", RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    let before = running.resident_peak_bytes()?;

    world
        .sql
        .batch_execute(
            "CREATE TABLE notes (id int PRIMARY KEY, v text);
             ALTER PUBLICATION walhook ADD TABLE notes;
             BEGIN;
             INSERT INTO subscribers VALUES (2, 1, 'a@example.com', 'active');
             UPDATE subscribers SET email = repeat('x', 60000000) WHERE id = 1;
             INSERT INTO notes VALUES (1, repeat('x', 60000000));
             INSERT INTO subscribers VALUES (3, 1, 'a@example.com', 'active');
             COMMIT;
             DELETE FROM subscribers WHERE id = 1",
        )
        .await?;
    world.subscribe(4, 1).await?;
    let received = world.delivered(4).await?;
    world.settled().await?;
    let created = |id| ("subscriber.created".to_owned(), id);
    ensure!(taken(&received)["/1"] == [1, 2, 3, 4].map(created), "{:?}", taken(&received));

    let dead =
        "SELECT string_agg(concat_ws(' ', event_type, operation, reason, b.account = ''), ', '
                                  ORDER BY id)
                FROM walhook.dead_letters JOIN walhook.bodies b USING (pipeline, event_id)";
    let expected = "subscriber.updated update unroutable t, subscriber.deleted delete unroutable t";
    ensure!(world.value(dead).await? == expected, "{}", world.value(dead).await?);
    let letters = world.walhook_json(&["dead-letters", "list"]).await?.to_string();
    ensure!(letters.contains("more than a quarter of memory.limit"), "{letters}");
    let series = "walhook_unroutable_total{reason=\"too_large\"}";
    world.until_metric(series, "2").await?;
    let grown = running.resident_peak_bytes()? - before;
    // Any of the three would be 60 MB and more.
    ensure!(grown < 16 << 20, "{grown} bytes more were resident than before");
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn slot_that_is_lost_or_gone_or_recreated_is_recovered_from_with_a_gap() -> Result<()> {
    let server = [("max_slot_wal_keep_size", "16MB"), ("min_wal_size", "32MB")];
    let mut world = World::with("", RULES, &server).await?;
    // The anchor would have what is missing: below.
    world.edit_config("[endpoints]", "replay_window = \"0\"\n[endpoints]")?;
    world.hook(1, 1, "").await?;

    let fill = "SELECT pg_logical_emit_message(false, 'test', ''), pg_switch_wal()";
    for _ in 0..6 {
        world.sql.batch_execute(fill).await?;
    }
    world.sql.batch_execute("CHECKPOINT").await?;
    halts(&mut world, "slot \"walhook\" is lost").await?;
    let from = world.value("SELECT frontier FROM walhook.checkpoint").await?;
    let gap = recovers(&world, &["--accept-gap"]).await?;
    ensure!(gap["from_lsn"] == from.as_str(), "{gap}, not from {from}");
    flows(&mut world, 1).await?;

    drop_slot(&world).await?;
    world.subscribe(2, 1).await?;
    halts(&mut world, "slot \"walhook\" does not exist").await?;
    recovers(&world, &["--accept-gap"]).await?;
    flows(&mut world, 3).await?;

    drop_slot(&world).await?;
    let create = "SELECT pg_create_logical_replication_slot('walhook', 'pgoutput')";
    world.sql.batch_execute(create).await?;
    halts(&mut world, "begins at").await?;
    let begin = world
        .value("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'walhook'")
        .await?;
    let gap = recovers(&world, &["--accept-gap"]).await?;
    ensure!(gap["to_lsn"] == begin.as_str(), "{gap}, not to {begin}");
    flows(&mut world, 4).await?;
    let created = |id| ("subscriber.created".to_owned(), id);
    let taken = taken(&world.mock.received());
    ensure!(taken["/1"] == [1, 3, 4].map(created), "{taken:?}");

    // A gap stands until somebody closes it, with a note.
    let closed = world.walhook_json(&["gaps", "close", "1", "--note", "sent by hand"]).await?;
    ensure!(closed["closed"]["note"] == "sent by hand", "{closed}");
    ensure!(closed["closed"]["closed_at"].is_string(), "{closed}");
    let again = world.walhook(&["gaps", "close", "1"]).await?;
    ensure!(again.status.code() == Some(1), "{}", again.status);
    ensure!(text(&again.stderr).contains("no open gap 1"), "{}", text(&again.stderr));
    ensure!(open_gaps(&world).await? == "2");
    let all = text(&world.walhook(&["gaps", "list", "--all"]).await?.stdout);
    ensure!(all.contains("note: sent by hand") && all.contains("was lost"), "{all}");
    let status = text(&world.walhook(&["status"]).await?.stdout);
    ensure!(!status.contains("\"walhook\" is lost"), "{status}");
    Ok(())
}

#[tokio::test]
async fn slot_that_sends_what_is_prepared_halts_before_the_first_and_is_replaced_with_a_gap()
-> Result<()> {
    let mut world = World::with("", RULES, &[("max_prepared_transactions", "4")]).await?;
    // Of the anchor nothing would be given up.
    world.edit_config("[endpoints]", "replay_window = \"0\"\n[endpoints]")?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    world.settled().await?;
    ensure!(running.terminate().await?.success());
    drop_slot(&world).await?;
    world
        .sql
        .batch_execute(
            "SELECT pg_create_logical_replication_slot('walhook', 'pgoutput', false, true)",
        )
        .await?;
    let says = "sends transactions when they are prepared";
    halts(&mut world, says).await?;
    for (command, code) in [
        (&["check"][..], 1),
        (&["status"], 3),
        (&["setup"], 3),
        (&["recover", "--skip-change", "0/1"], 3),
    ] {
        let output = world.walhook(command).await?;
        let said = text(&output.stdout) + &text(&output.stderr);
        ensure!(output.status.code() == Some(code) && said.contains(says), "{command:?}: {said}");
    }
    recovers(&world, &["--accept-gap"]).await?;
    let running = world.run().await?;
    for (id, ends) in [(2, "ROLLBACK PREPARED 'p'"), (3, "COMMIT PREPARED 'p'")] {
        let prepares = format!(
            "BEGIN; INSERT INTO subscribers (id, account_id, email) VALUES ({id}, 1, 'p');
             PREPARE TRANSACTION 'p'"
        );
        world.sql.batch_execute(&prepares).await?;
        world.sql.batch_execute(ends).await?;
    }
    world.delivered(2).await?;
    world.settled().await?;
    let created = |id| ("subscriber.created".to_owned(), id);
    let taken = taken(&world.mock.received());
    ensure!(taken["/1"] == [1, 3].map(created), "{taken:?}");
    ensure!(running.terminate().await?.success());
    Ok(())
}

/// Where the anchor stands, once there is one.
async fn until_anchored(world: &World) -> Result<()> {
    let anchors = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walhook_anchor'";
    world.until(anchors, "1").await
}

#[tokio::test]
async fn slot_that_is_gone_or_recreated_is_made_of_the_anchor_and_only_the_rest_is_a_gap()
-> Result<()> {
    let mut world = World::with("", RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    world.settled().await?;
    until_anchored(&world).await?;
    ensure!(running.terminate().await?.success());

    let recovered =
        async |world: &World| world.walhook_json(&["recover", "--accept-gap", "--yes"]).await;
    // Gone.
    drop_slot(&world).await?;
    world.subscribe(2, 1).await?;
    halts(&mut world, "slot \"walhook\" does not exist").await?;
    let done = recovered(&world).await?;
    ensure!(done["recovered"]["bytes"] == 0 && done["recovered"]["gap"].is_null(), "{done}");
    let running = world.run().await?;
    world.delivered(2).await?;
    world.settled().await?;
    ensure!(running.terminate().await?.success());

    // Made again by somebody.
    drop_slot(&world).await?;
    world.subscribe(3, 1).await?;
    let create = "SELECT pg_create_logical_replication_slot('walhook', 'pgoutput')";
    world.sql.batch_execute(create).await?;
    halts(&mut world, "begins at").await?;
    let done = recovered(&world).await?;
    ensure!(done["recovered"]["gap"].is_null(), "{done}");
    let running = world.run().await?;
    world.delivered(3).await?;
    world.settled().await?;
    ensure!(running.terminate().await?.success());
    ensure!(open_gaps(&world).await? == "0");

    // The anchor has only the later part.
    drop_slot(&world).await?;
    world.subscribe(4, 1).await?;
    let advance = "SELECT pg_replication_slot_advance('walhook_anchor', pg_current_wal_lsn())";
    world.sql.batch_execute(advance).await?;
    world.subscribe(5, 1).await?;
    let done = recovered(&world).await?;
    let gap = &done["recovered"]["gap"];
    ensure!(gap["to_lsn"] == done["recovered"]["to"] && gap["replay"].is_null(), "{done}");
    ensure!(gap["no_replay"].as_str().is_some_and(|why| why.contains("no longer kept")), "{done}");
    let running = world.run().await?;
    world.delivered(4).await?;
    world.settled().await?;
    let created = |id| ("subscriber.created".to_owned(), id);
    let received = world.mock.received();
    ensure!(taken(&received)["/1"] == [1, 2, 3, 5].map(created), "{:?}", taken(&received));
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn gap_of_the_whole_stream_prints_the_replay_that_sends_it_where_its_wal_is_kept()
-> Result<()> {
    let mut world = World::with("", RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    until_anchored(&world).await?;
    world.settled().await?;
    ensure!(running.terminate().await?.success());
    world.until("SELECT count(active_pid) FROM pg_replication_slots", "0").await?;
    world.subscribe(1, 1).await?;
    let end = world.value("SELECT pg_current_wal_insert_lsn()").await?;
    let reset = ["checkpoint", "reset", "--to", &end, "--skip", "--yes"];
    ensure!(world.walhook(&reset).await?.status.success());
    let gaps = world.walhook_json(&["gaps", "list"]).await?;
    let command = gaps["gaps"][0]["replay"].as_str().context("no replay")?.to_owned();
    ensure!(command.contains(&format!("--to {end}")), "{command}");
    let status = text(&world.walhook(&["status"]).await?.stdout);
    ensure!(status.contains(&command), "{status}");

    let running = world.run().await?;
    world.subscribe(2, 1).await?;
    world.delivered(1).await?;
    let words: Vec<&str> = command.split(' ').skip(1).collect();
    let replayed = world.walhook(&words).await?;
    ensure!(replayed.status.success(), "{}", text(&replayed.stderr));
    let received = world.delivered(2).await?;
    let created = |id| ("subscriber.created".to_owned(), id);
    ensure!(taken(&received)["/1"] == [2, 1].map(created), "{:?}", taken(&received));
    // Then it is closed.
    let closed = "SELECT note FROM walhook.gaps WHERE closed_at IS NOT NULL";
    world.until(closed, "sent again by replay 1").await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn another_cluster_is_adopted_with_a_gap() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 1, "").await?;
    world.sql.batch_execute("UPDATE walhook.meta SET system_identifier = 7").await?;
    world.subscribe(1, 1).await?;
    halts(&mut world, "is not the database that walhook was set up for").await?;
    let other = world.walhook(&["recover", "--accept-gap", "--yes"]).await?;
    ensure!(other.status.code() == Some(3), "{}", other.status);
    ensure!(text(&other.stderr).contains("--adopt-cluster"), "{}", text(&other.stderr));
    ensure!(world.mock.stats().received == 0, "a copy sent something");
    recovers(&world, &["--adopt-cluster"]).await?;
    flows(&mut world, 2).await
}

fn copy_data(from: &Path, to: &Path) -> Result<()> {
    let status = std::process::Command::new("cp").arg("-a").args([from, to]).status()?;
    ensure!(status.success(), "cp -a {from:?} {to:?}");
    Ok(())
}

#[tokio::test]
async fn older_copy_of_the_cluster_is_recovered_from_with_a_gap() -> Result<()> {
    let mut state = walhook_testkit::cluster::Cluster::start_distinct(&[]).await?;
    let sections = format!("[state]\nurl = \"{}\"", state.url("postgres"));
    let mut world = World::with(&sections, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    let data = world.cluster.data();
    let older = data.with_extension("older");
    world.cluster.stop(StopMode::Fast).await?;
    copy_data(&data, &older)?;
    world.cluster.start_again().await?;
    world.reconnect().await?;

    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world
        .sql
        .batch_execute("SELECT pg_logical_emit_message(true, 'x', repeat('x', 99999))")
        .await?;
    world.subscribe(2, 1).await?;
    world.delivered(2).await?;
    ensure!(running.terminate().await?.success());
    world.cluster.stop(StopMode::Fast).await?;
    std::fs::remove_dir_all(&data)?;
    std::fs::rename(&older, &data)?;
    world.cluster.start_again().await?;
    world.reconnect().await?;

    world.subscribe(3, 1).await?;
    let check = world.walhook(&["check"]).await?;
    let printed = String::from_utf8_lossy(&check.stdout);
    ensure!(
        !check.status.success() && printed.contains("lies beyond the end of the WAL"),
        "{printed}"
    );
    halts(&mut world, "lies beyond the end of the WAL").await?;
    let done = world.walhook_json(&["recover", "--accept-gap", "--yes"]).await?;
    ensure!(done["recovered"]["to"].is_string() && done["recovered"]["bytes"].is_null(), "{done}");
    let gaps = world.walhook_json(&["gaps", "list"]).await?;
    ensure!(gaps["gaps"][0]["from_lsn"] == done["recovered"]["from"], "{gaps} {done}");
    // What the copy committed before the recovery is not left out.
    let running = world.run().await?;
    world.delivered(3).await?;
    ensure!(running.terminate().await?.success());
    state.stop(StopMode::Fast).await
}

/// As text it would take more than the 1 GB that PostgreSQL can hold in one piece.
const UNSENDABLE_BYTES: u64 = 542 << 20;

#[tokio::test]
async fn change_that_the_server_cannot_send_halts_and_is_skipped_with_a_gap() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 1, "").await?;
    let blob = world.cluster.data().join("blob");
    std::fs::File::create(&blob)?.set_len(UNSENDABLE_BYTES)?;
    let running = world.run().await?;
    world
        .sql
        .batch_execute(
            "CREATE TABLE blobs (id int PRIMARY KEY, b bytea);
             ALTER PUBLICATION walhook ADD TABLE blobs",
        )
        .await?;
    world.subscribe(1, 1).await?;
    world
        .sql
        .batch_execute(
            "BEGIN;
             INSERT INTO subscribers VALUES (2, 1, 'a@example.com', 'active');
             INSERT INTO blobs VALUES (1, pg_read_binary_file('blob'));
             INSERT INTO subscribers VALUES (3, 1, 'a@example.com', 'active');
             COMMIT",
        )
        .await?;
    world.subscribe(4, 1).await?;
    let (status, log) = running.ended_with_log().await?;
    let last = log.lines().last().unwrap_or_default();
    ensure!(status.code() == Some(3) && last.contains("invalid memory alloc"), "{status}:\n{log}");
    let (_, rest) = last.split_once("transaction with commit LSN ").context("no LSN")?;
    let commit = rest.split(' ').next().unwrap_or_default().to_owned();
    ensure!(last.contains(&format!("`walhook recover --skip-change {commit}`")), "{last}");
    let status = text(&world.walhook(&["status"]).await?.stdout);
    ensure!(status.contains("HALTED") && status.contains(&commit), "{status}");

    // Of another LSN it knows nothing, and says so.
    let wrong = world.walhook(&["recover", "--skip-change", "0/7", "--yes"]).await?;
    ensure!(wrong.status.code() == Some(1), "{}", wrong.status);
    ensure!(text(&wrong.stderr).contains("it lies before that"), "{}", text(&wrong.stderr));
    ensure!(open_gaps(&world).await? == "0");

    let gap = recovers(&world, &["--skip-change", &commit]).await?;
    let reason = gap["reason"].as_str().unwrap_or_default();
    let told = "read: 1 insert public.subscribers; given up: 1 insert public.blobs, 1 insert \
                public.subscribers";
    ensure!(gap["from_lsn"] == commit.as_str() && reason.contains(told), "{gap}");
    let again = world.walhook_json(&["recover", "--skip-change", &commit]).await?;
    ensure!(again["detail"].as_str().is_some_and(|d| d.contains("skipped already")), "{again}");

    flows(&mut world, 5).await?;
    let created = |id| ("subscriber.created".to_owned(), id);
    let mut taken = taken(&world.mock.received());
    // Of different rows: in any order.
    taken.values_mut().for_each(|events| events.sort());
    ensure!(taken["/1"] == [1, 2, 4, 5].map(created), "{taken:?}");
    // It does not come back, nor does the server keep it.
    let passed = format!(
        "SELECT frontier > '{commit}'::pg_lsn AND confirmed_flush_lsn > '{commit}'::pg_lsn
         FROM walhook.checkpoint, pg_replication_slots"
    );
    world.until(&passed, "t").await?;
    world.cluster.stop(StopMode::Immediate).await?;
    world.cluster.start_again().await?;
    world.reconnect().await?;
    flows(&mut world, 6).await
}
