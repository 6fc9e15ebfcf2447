//! The server itself: that it is away, is a standby, or gives too few sessions.

use anyhow::{Context, Result, ensure};
use walhook_testkit::cluster::StopMode;

use super::{complaints, world_of_sender};
use crate::support::RULES;

#[tokio::test]
async fn limit_with_too_few_sessions_is_told_and_waited_for() -> Result<()> {
    let mut world = world_of_sender("", RULES).await?;
    world.hook(1, 1, "").await?;
    world.sql.batch_execute("ALTER ROLE sender CONNECTION LIMIT 3").await?;
    let found = complaints(&world).await?;
    let line =
        found.iter().find(|line| line.starts_with("fail  sessions: the role sender may have 3"));
    let line = line.with_context(|| format!("{found:?}"))?;
    ensure!(line.ends_with("ALTER ROLE \"sender\" CONNECTION LIMIT 19"), "{line}");

    let running = world.spawn()?;
    running.until_logged("a leader needs 7 by source.url").await?;
    running.until_logged("leading: streaming from the slot").await?;
    world.subscribe(1, 1).await?;
    // Which sessions it gets is a matter of who asks first.
    running.until_logged("too many connections for role").await?;

    world.sql.batch_execute("ALTER ROLE sender CONNECTION LIMIT -1").await?;
    world.delivered(1).await?;
    world.settled().await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn what_waiting_may_cure_is_waited_for_at_the_start_and_said() -> Result<()> {
    let mut world = world_of_sender("", RULES).await?;
    world.hook(1, 1, "").await?;
    // The server is away, then takes no more connections, then somebody holds a lock.
    world.cluster.stop(StopMode::Fast).await?;
    let mut running = world.spawn()?;
    running.until_logged("nobody listens there; start the server").await?;
    ensure!(running.has_ended()?.is_none(), "{}", running.log());
    world.cluster.start_again().await?;
    world.reconnect().await?;
    running.until_leading(world.admin).await?;
    ensure!(running.terminate().await?.success());

    world.sql.batch_execute("ALTER ROLE sender CONNECTION LIMIT 0").await?;
    let mut running = world.spawn()?;
    running.until_logged("too many connections for role").await?;
    ensure!(running.has_ended()?.is_none(), "{}", running.log());
    world.sql.batch_execute("ALTER ROLE sender CONNECTION LIMIT -1").await?;
    running.until_leading(world.admin).await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;

    // After the start, what a start would refuse ends nothing.
    world
        .sql
        .batch_execute("REVOKE ALL ON SCHEMA walhook FROM sender; ALTER ROLE sender NOLOGIN")
        .await?;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'sender'";
    world.sql.batch_execute(end).await?;
    running.until_logged("not permitted to log in").await?;
    ensure!(running.has_ended()?.is_none(), "{}", running.log());
    world.sql.batch_execute("ALTER ROLE sender LOGIN").await?;
    running.until_logged("permission denied for schema walhook").await?;
    ensure!(running.has_ended()?.is_none(), "{}", running.log());
    world.sql.batch_execute("GRANT USAGE ON SCHEMA walhook TO sender").await?;
    world.subscribe(2, 1).await?;
    world.delivered(2).await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn standby_is_refused() -> Result<()> {
    let mut world = world_of_sender("", RULES).await?;
    world.cluster.stop(StopMode::Fast).await?;
    std::fs::write(world.cluster.data().join("standby.signal"), "")?;
    world.cluster.start_again().await?;
    let found = complaints(&world).await?;
    ensure!(
        found == ["fail  server: is a standby; let source.url lead to the primary"],
        "{found:?}"
    );
    Ok(())
}
