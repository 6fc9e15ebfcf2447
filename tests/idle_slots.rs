//! `idle_replication_slot_timeout`, from PostgreSQL 18 on: the anchor slot is never read from.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::{Instant, sleep};

use crate::support::{PATIENCE, RULES, World, text};

const LOST: &str = "SELECT concat_ws(' ', slot_name, invalidation_reason) FROM pg_replication_slots
                    WHERE slot_name = ";

/// The server looks for idle slots at each checkpoint only.
async fn until_lost(world: &World, slot: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while world.value(&format!("{LOST} '{slot}'")).await? != format!("{slot} idle_timeout") {
        ensure!(Instant::now() < deadline, "the slot is not given up");
        world.sql.batch_execute("CHECKPOINT").await?;
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[tokio::test]
async fn idle_timeout_takes_no_slot_of_a_leader_and_that_of_a_stopped_one_is_named_with_the_fix()
-> Result<()> {
    let mut world = World::with("", RULES, &[]).await?;
    let version: i32 = world.value("SHOW server_version_num").await?.parse()?;
    if version < 180_000 {
        return Ok(());
    }
    world.sql.batch_execute("ALTER SYSTEM SET idle_replication_slot_timeout = '5s'").await?;
    world.sql.batch_execute("SELECT pg_reload_conf()").await?;
    world.until("SHOW idle_replication_slot_timeout", "5s").await?;
    let check = text(&world.walhook(&["check"]).await?.stdout);
    ensure!(check.contains("warn  idle_replication_slot_timeout: 5s"), "{check}");
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.until("SELECT count(*) FROM pg_replication_slots", "2").await?;
    // Nothing is written, and state cannot be read either for a while.
    let locker = world.connect().await?;
    locker.batch_execute("BEGIN; LOCK TABLE walhook.checkpoint").await?;
    let idle = Instant::now();
    while idle.elapsed() < Duration::from_secs(15) {
        world.sql.batch_execute("CHECKPOINT").await?;
        sleep(Duration::from_millis(500)).await;
    }
    locker.batch_execute("ROLLBACK").await?;
    let lost = "SELECT count(*) FROM pg_replication_slots WHERE invalidation_reason IS NOT NULL";
    ensure!(world.value(lost).await? == "0", "{}", running.log());
    running.kill().await?;

    until_lost(&world, "walhook").await?;
    until_lost(&world, "walhook_anchor").await?;
    let (status, log) = world.spawn()?.ended_with_log().await?;
    ensure!(status.code() == Some(3), "{status}:\n{log}");
    let (status, check) = (world.walhook(&["status"]).await?, world.walhook(&["check"]).await?);
    let replay = world.walhook(&["replay", "start", "--from", "1h", "--dry-run"]).await?;
    let recover = world.walhook(&["recover", "--accept-gap", "--yes"]).await?;
    ensure!(recover.status.success(), "{}", text(&recover.stderr));
    let gaps = text(&world.walhook(&["gaps", "list"]).await?.stdout);
    for said in [log, text(&status.stdout), text(&check.stdout), text(&replay.stderr), gaps] {
        let named = "idle_replication_slot_timeout = 5s";
        ensure!(said.contains(named) && said.contains("to 0, or to longer"), "{said}");
    }
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}
