//! Over a major upgrade with the real pg_upgrade, which `scripts/postgres-versions upgrade` installs.
//!
//! That package is PostgreSQL 18; slots move as from 17 on, whatever the new version is.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use walhook_testkit::cluster::{Cluster, StopMode, find_server_binaries};

use crate::support::{RULES, SCHEMA, World, taken, text};

/// What makes another pipeline of the configuration.
const OTHER: [(&str, &str); 2] =
    [("WALHOOK_SOURCE__SLOT", "other"), ("WALHOOK_SOURCE__PUBLICATION", "other")];

/// Whether the test is for the server that the others run on: elsewhere it has nothing to learn.
fn is_the_second_server() -> bool {
    std::env::var_os("PG_BIN_DIR").is_some()
}

/// The directory of a PostgreSQL 18 with pg_upgrade.
fn newest() -> Result<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/postgres-versions");
    let found = std::process::Command::new("sh").args([script, "upgrade"]).output()?;
    ensure!(found.status.success(), "no pg_upgrade: {}", text(&found.stderr));
    Ok(text(&found.stdout).trim().into())
}

/// A world on an old server, set up; and the new cluster, which is stopped.
async fn worlds(old: PathBuf, new: PathBuf) -> Result<(World, Cluster)> {
    // What autovacuum commits is not read by the slots, as what anybody else does.
    let old = Cluster::start_with(old, &[("autovacuum", "off")]).await?;
    let world = World::on(old, "", RULES).await?;
    world.sql.batch_execute(SCHEMA).await?;
    world.set_up().await?;
    let mut new = Cluster::start_with(new, &[]).await?;
    new.stop(StopMode::Fast).await?;
    Ok((world, new))
}

/// Runs pg_upgrade on the two stopped clusters, and returns what it says.
fn pg_upgrade(old: &Cluster, new: &Cluster) -> Result<(bool, String)> {
    let output = new
        .command("pg_upgrade")
        .arg("-b")
        .arg(old.bin())
        .arg("-B")
        .arg(new.bin())
        .arg("-d")
        .arg(old.data())
        .arg("-D")
        .arg(new.data())
        .args(["-U", "postgres", "-p", &old.port().to_string(), "-P", &new.port().to_string()])
        .arg("-s")
        .arg(new.socket_dir())
        .output()
        .context("pg_upgrade")?;
    Ok((output.status.success(), text(&output.stdout) + &text(&output.stderr)))
}

/// Stops the old server, and starts it again.
async fn start_old_again(world: &mut World) -> Result<()> {
    world.cluster.start_again().await?;
    world.reconnect().await
}

/// The world goes on at the new cluster.
async fn move_to(world: &mut World, mut new: Cluster) -> Result<()> {
    new.start_again().await?;
    let (from, to) = (world.cluster.url("postgres"), new.url("postgres"));
    world.reconfigure(&from, &to)?;
    world.cluster = new;
    world.reconnect().await
}

async fn prepared(world: &World) -> Result<serde_json::Value> {
    Ok(world.walhook_json(&["upgrade", "prepare"]).await?["prepared"].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_upgrade_after_prepare_loses_and_repeats_nothing_and_leaves_no_gap() -> Result<()> {
    if is_the_second_server() {
        return Ok(());
    }
    let newest = newest()?;
    let (mut world, new) = worlds(newest.clone(), newest).await?;
    world.hook(1, 1, "").await?;
    world.hook(2, 2, "").await?;
    let running = world.run().await?;
    ensure!(world.walhook(&["endpoints", "pause", "2"]).await?.status.success());
    world.subscribe(1, 1).await?;
    // Waits in the tables, and goes along.
    world.subscribe(2, 2).await?;
    world
        .until("SELECT count(*) FROM walhook.deliveries_pending WHERE endpoint <> ''", "1")
        .await?;
    world.delivered(1).await?;
    ensure!(
        world.walhook(&["upgrade", "prepare"]).await?.status.code() == Some(1),
        "a leader runs"
    );
    ensure!(running.terminate().await?.success());

    // A writer comes after the prepare: pg_upgrade refuses, and nothing is lost.
    let first = prepared(&world).await?;
    ensure!(first["slots_carried"] == true && first["deferred"] == 1, "{first}");
    world.subscribe(3, 1).await?;
    world.cluster.stop(StopMode::Fast).await?;
    let (done, said) = pg_upgrade(&world.cluster, &new)?;
    ensure!(!done && said.contains("logical replication slots"), "{said}");
    start_old_again(&mut world).await?;
    let owed = world.walhook(&["upgrade", "prepare"]).await?;
    ensure!(owed.status.code() == Some(1), "{}", owed.status);
    ensure!(text(&owed.stderr).contains("1 changes that rules cover"), "{}", text(&owed.stderr));
    let running = world.run().await?;
    world.delivered(2).await?;
    ensure!(running.terminate().await?.success());

    // Given up once more, with nothing in between; then in earnest, and again after somebody's write.
    prepared(&world).await?;
    ensure!(world.walhook(&["status"]).await?.status.success());
    let running = world.run().await?;
    ensure!(running.terminate().await?.success());
    prepared(&world).await?;
    world.sql.batch_execute("CREATE TABLE of_somebody ()").await?;
    // A second pipeline: what its prepare writes, the first one's slots have not read, and a prepare that
    // holds writes nothing.
    world.env = OTHER.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    world.walhook_json(&["setup", "--new-pipeline"]).await?;
    prepared(&world).await?;
    world.env.clear();
    let last = prepared(&world).await?;
    ensure!(last["other_slots"] == serde_json::json!(["other", "other_anchor"]), "{last}");
    world.cluster.stop(StopMode::Fast).await?;
    let (done, said) = pg_upgrade(&world.cluster, &new)?;
    ensure!(done, "{said}");
    move_to(&mut world, new).await?;

    let (status, log) = world.spawn()?.ended_with_log().await?;
    ensure!(status.code() == Some(3) && log.contains("walhook upgrade finish"), "{status}: {log}");
    // Writers that are early are no loss either.
    world.subscribe(4, 1).await?;
    let finished = &world.walhook_json(&["upgrade", "finish"]).await?["finished"];
    ensure!(finished["slot_carried"] == true && finished["gap"].is_null(), "{finished}");
    ensure!(finished["deferred"] == 1, "{finished}");
    let gaps = world.walhook_json(&["gaps", "list", "--all"]).await?;
    ensure!(gaps["gaps"] == serde_json::json!([]), "{gaps}");
    world.env = OTHER.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let other = &world.walhook_json(&["upgrade", "finish"]).await?["finished"];
    ensure!(other["slot_carried"] == true, "{other}");
    world.env.clear();
    let running = world.run().await?;
    world.delivered(3).await?;
    ensure!(world.walhook(&["endpoints", "resume", "2"]).await?.status.success());
    let received = world.delivered(4).await?;
    let created = |id| ("subscriber.created".to_owned(), id);
    ensure!(taken(&received)["/1"] == [1, 3, 4].map(created), "{:?}", taken(&received));
    ensure!(taken(&received)["/2"] == [created(2)], "{:?}", taken(&received));
    ensure!(received.len() == 4, "something was sent twice: {received:?}");
    // The window begins anew, and reaches over what came since.
    let anchors = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walhook_anchor'";
    world.until(anchors, "1").await?;
    ensure!(running.terminate().await?.success());
    let again = world.walhook(&["upgrade", "finish", "--yes"]).await?;
    ensure!(text(&again.stderr).contains("nothing to finish"), "{}", text(&again.stderr));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_upgrade_whose_slot_was_made_again_records_a_gap() -> Result<()> {
    if is_the_second_server() {
        return Ok(());
    }
    let newest = newest()?;
    // Of the distribution's version, where it is older than 17: no slot goes along then.
    let old = find_server_binaries()?;
    let (mut world, new) = worlds(old, newest).await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    ensure!(running.terminate().await?.success());
    let carried = prepared(&world).await?["slots_carried"] == true;
    world.cluster.stop(StopMode::Fast).await?;
    if !carried {
        let checksums = ["--enable", "--no-sync", "-D"];
        let mut enable = world.cluster.command("pg_checksums");
        let enabled = enable.args(checksums).arg(world.cluster.data()).output()?;
        ensure!(enabled.status.success(), "{}", text(&enabled.stderr));
    }
    let (done, said) = pg_upgrade(&world.cluster, &new)?;
    ensure!(done, "{said}");
    move_to(&mut world, new).await?;
    // Lost with what came before somebody made the slot again.
    world.subscribe(2, 1).await?;
    if carried {
        world.sql.batch_execute("SELECT pg_drop_replication_slot('walhook')").await?;
    }
    let unasked = world.walhook(&["upgrade", "finish"]).await?;
    ensure!(unasked.status.code() == Some(2), "{}", unasked.status);
    let finished = &world.walhook_json(&["upgrade", "finish", "--yes"]).await?["finished"];
    let reason = finished["gap"]["reason"].as_str().unwrap_or_default();
    ensure!(finished["slot_carried"] == false, "{finished}");
    ensure!(reason.contains(if carried { "did not come along" } else { "takes no slots along" }));
    let running = world.run().await?;
    world.subscribe(3, 1).await?;
    let received = world.delivered(2).await?;
    let created = |id| ("subscriber.created".to_owned(), id);
    ensure!(taken(&received)["/1"] == [1, 3].map(created), "{:?}", taken(&received));
    ensure!(running.terminate().await?.success());
    Ok(())
}
