//! Tables of the state that somebody locks: what only reports waits, deliveries do not.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::Instant;

use crate::halts::drop_slot;
use crate::support::{World, get};

/// A state transaction without an answer is given up after 30 s: the delivery must not have waited for that.
const AT_ONCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn lock_of_what_status_shows_keeps_no_delivery_waiting() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    let locker = world.connect().await?;
    locker.batch_execute("BEGIN; LOCK TABLE walhook.troubles IN ACCESS EXCLUSIVE MODE").await?;
    // Something fails, which is to be shown.
    world.sql.batch_execute("ALTER PUBLICATION walhook DROP TABLE webhooks").await?;
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'
                 AND query LIKE '%walhook%troubles%'";
    world.until(waits, "t").await?;
    for id in 2..5 {
        let began = Instant::now();
        world.subscribe(id, 1).await?;
        world.delivered(u64::try_from(id)?).await?;
        ensure!(began.elapsed() < AT_ONCE, "after {:?}:\n{}", began.elapsed(), running.log());
    }
    locker.batch_execute("ROLLBACK").await?;
    world.until("SELECT count(*) FROM walhook.troubles WHERE part = 'watch'", "1").await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn lock_that_holds_a_state_transaction_up_is_told_before_it_is_given_up() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    let locker = world.connect().await?;
    locker.batch_execute("BEGIN; LOCK TABLE walhook.checkpoint IN ACCESS EXCLUSIVE MODE").await?;
    let began = Instant::now();
    world.subscribe(1, 1).await?;
    let said = loop {
        let (status, body) = get(world.admin, "/readyz").await?;
        if status == 503 {
            break body;
        }
        ensure!(began.elapsed() < Duration::from_secs(25), "still ready: {body}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    ensure!(said.contains("no answer within 8s"), "{said}");
    // What tells how near the slot is to being lost goes on meanwhile: 2 MiB are written.
    let retained = async || -> Result<f64> {
        let metrics = world.metrics().await?;
        let line = metrics.lines().find(|line| line.starts_with("walhook_slot_retained_bytes "));
        Ok(line.and_then(|line| line.rsplit(' ').next()).unwrap_or_default().parse()?)
    };
    let before = retained().await?;
    let wal = "SELECT pg_logical_emit_message(true, 'x', repeat('x', 2097152)) IS NOT NULL";
    world.value(wal).await?;
    while retained().await? < before + 2e6 {
        ensure!(began.elapsed() < Duration::from_secs(60), "the gauge stands still at {before}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    locker.batch_execute("ROLLBACK").await?;
    world.delivered(1).await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn halt_whose_reason_cannot_be_stored_ends_the_process_and_stands_in_its_log() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    world.settled().await?;
    let locker = world.connect().await?;
    locker.batch_execute("BEGIN; LOCK TABLE walhook.checkpoint IN ACCESS EXCLUSIVE MODE").await?;
    let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'walhook'";
    world.sql.batch_execute(end).await?;
    drop_slot(&world).await?;
    let (status, log) = running.ended_with_log().await?;
    let last = log.lines().last().unwrap_or_default();
    ensure!(status.code() == Some(3), "{status}:\n{log}");
    ensure!(last.contains("replication slot") && log.contains("cannot store the reason"), "{log}");
    Ok(())
}
