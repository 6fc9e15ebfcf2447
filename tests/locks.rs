//! Tables of the state that somebody locks: what only reports waits, deliveries do not.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::Instant;

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
    locker.batch_execute("ROLLBACK").await?;
    world.delivered(1).await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}
