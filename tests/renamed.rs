//! The source's database has another name than at the set-up: it was renamed, or it is a copy of that one.

use anyhow::{Result, ensure};
use walhook_core::endpoint::Secret;
use walhook_postgres::sql::{Connection, SERVER_SEARCH_PATH};

use crate::support::{World, text};

async fn connect(world: &World, database: &str) -> Result<Connection> {
    let url = Secret::new(world.cluster.url(database));
    Ok(Connection::open_with_path(&url, "test", SERVER_SEARCH_PATH).await?)
}

/// Runs a statement that nobody may be connected to the source's database for.
async fn from_beside(world: &mut World, sql: &str) -> Result<()> {
    world.sql = connect(world, "template1").await?;
    // Sessions that have just ended may still be there.
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname NOT IN ('template1')";
    world.until(others, "0").await?;
    Ok(world.sql.batch_execute(sql).await?)
}

/// A pipeline with one event that was delivered, and one that was committed since.
async fn world() -> Result<World> {
    let mut world = World::new().await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    ensure!(running.terminate().await?.success());
    world.subscribe(2, 1).await?;
    Ok(world)
}

#[tokio::test]
async fn database_that_was_renamed_is_taken_note_of_and_nothing_is_lost() -> Result<()> {
    let mut world = world().await?;
    from_beside(&mut world, "ALTER DATABASE postgres RENAME TO app").await?;
    world.sql = connect(&world, "app").await?;
    world.edit_config("/postgres\"", "/app\"")?;
    let (status, log) = world.spawn()?.ended_with_log().await?;
    let said = log.lines().last().unwrap_or_default();
    ensure!(status.code() == Some(3), "{status}: {log}");
    ensure!(said.contains("to the database app, and walhook was set up for postgres"), "{said}");
    ensure!(said.contains("nothing is lost") && !said.contains("gap"), "{said}");

    let recovered = world.walhook(&["recover", "--adopt-cluster", "--yes"]).await?;
    let (plan, done) = (text(&recovered.stderr), text(&recovered.stdout));
    ensure!(recovered.status.success(), "{plan}");
    ensure!(plan.contains("The slot walhook is this database's own"), "{plan}");
    ensure!(plan.contains("Nothing is given up") && !(plan + &done).contains("gap"), "{done}");
    let running = world.run().await?;
    world.delivered(2).await?;
    ensure!(running.terminate().await?.success());
    ensure!(world.value("SELECT count(*) FROM walhook.gaps").await? == "0");
    Ok(())
}

#[tokio::test]
async fn copy_of_a_database_is_not_taken_for_it_and_gets_a_pipeline_only_where_one_is_asked_for()
-> Result<()> {
    let mut world = world().await?;
    from_beside(&mut world, "CREATE DATABASE copy TEMPLATE postgres").await?;
    world.sql = connect(&world, "copy").await?;
    world.edit_config("/postgres\"", "/copy\"")?;
    for command in [&["setup"][..], &["recover", "--adopt-cluster", "--yes"]] {
        let refused = world.walhook(command).await?;
        let said = text(&refused.stderr);
        ensure!(!refused.status.success(), "{command:?} took the copy for it");
        ensure!(said.contains("copy") && said.contains("postgres"), "{command:?}: {said}");
    }
    let recover = text(&world.walhook(&["recover", "--adopt-cluster"]).await?.stderr);
    ensure!(recover.contains("not postgres under another name: the slot walhook"), "{recover}");
    ensure!(recover.contains("belongs to postgres"), "{recover}");

    // With a slot of its own it would send to the endpoints that were copied.
    world.edit_config("[source]", "[source]\nslot = \"second\"")?;
    let refused = world.walhook(&["setup"]).await?;
    let said = text(&refused.stderr);
    ensure!(refused.status.code() == Some(2), "{}: {said}", refused.status);
    ensure!(said.contains("pipeline walhook of the database postgres"), "{said}");
    ensure!(said.contains("send to your customers") && said.contains("--new-pipeline"), "{said}");
    let slots =
        "SELECT string_agg(slot_name, ' ') FROM pg_replication_slots WHERE slot_name = 'second'";
    ensure!(world.value(slots).await?.is_empty(), "it made a slot");

    // Where that is meant, it begins with what is committed from then on, and the first one goes on.
    let made = world.walhook(&["setup", "--new-pipeline"]).await?;
    ensure!(made.status.success(), "{}", text(&made.stderr));
    let begins = "SELECT (frontier = confirmed_flush_lsn)::text FROM walhook.checkpoint
                  JOIN pg_replication_slots ON slot_name = pipeline WHERE pipeline = 'second'";
    ensure!(world.value(begins).await? == "true");
    let running = world.run().await?;
    world.subscribe(3, 1).await?;
    world.delivered(2).await?;
    ensure!(running.terminate().await?.success());
    world.edit_config("\nslot = \"second\"", "")?;
    world.edit_config("/copy\"", "/postgres\"")?;
    let running = world.run().await?;
    world.delivered(3).await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}
