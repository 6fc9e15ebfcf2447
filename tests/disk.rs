//! The disk that holds the tables of state is full.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use walhook_core::endpoint::Secret;
use walhook_postgres::sql::{Connection, SERVER_SEARCH_PATH};

use crate::support::{PATIENCE, RULES, SCHEMA, World};

/// A file system of 24 MiB in memory; gone when dropped.
pub(crate) struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` where we may not mount.
    pub(crate) fn mount() -> Result<Option<Self>> {
        let dir = TempDir::new()?;
        let mount = ["-t", "tmpfs", "-o", "size=24m,mode=755", "walhook-test"];
        let mounted = Command::new("mount").args(mount).arg(dir.path()).output();
        Ok(mounted.is_ok_and(|output| output.status.success()).then_some(Self(dir)))
    }

    pub(crate) fn filler(&self) -> PathBuf {
        self.0.path().join("filler")
    }

    /// Writes until nothing more goes in.
    pub(crate) fn fill(&self) -> Result<()> {
        use std::io::Write as _;
        let mut file = std::fs::File::create(self.filler())?;
        for piece in [1 << 20, 4 << 10] {
            while file.write_all(&vec![0; piece]).is_ok() {}
        }
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// A world whose state database lies on that disk, and a session with that.
async fn world_on(disk: &SmallDisk) -> Result<(World, Connection)> {
    let mut world = World::bare("", RULES, &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    let owner = std::fs::metadata(world.cluster.data())?;
    let place = disk.0.path().join("tablespace");
    std::fs::create_dir(&place)?;
    chown(&place, Some(owner.uid()), Some(owner.gid()))?;
    std::fs::set_permissions(disk.0.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let place = place.to_string_lossy();
    world.sql.batch_execute(&format!("CREATE TABLESPACE small LOCATION '{place}'")).await?;
    world.sql.batch_execute("CREATE DATABASE state TABLESPACE small").await?;
    let url = world.cluster.url("state");
    world.env.push(("WALHOOK_STATE__URL".to_owned(), url.clone()));
    world.set_up().await?;
    let state = Connection::open_with_path(&Secret::new(url), "test", SERVER_SEARCH_PATH).await?;
    Ok((world, state))
}

#[tokio::test]
async fn full_disk_of_the_state_database_holds_the_checkpoint_back_until_there_is_room()
-> Result<()> {
    let Some(disk) = SmallDisk::mount()? else {
        println!("no right to mount a small disk: nothing to test");
        return Ok(());
    };
    let (mut world, state) = world_on(&disk).await?;
    let count = async || -> Result<i64> {
        Ok(state.query_one("SELECT count(*) FROM walhook.dead_letters", &[]).await?.get(0))
    };

    // Without a secret, each delivery of account 2 is a dead letter, which takes room.
    world.hook(1, 1, "").await?;
    let insert = "INSERT INTO webhooks (id, account_id, url) VALUES (2, 2, 'http://127.0.0.1:1/')";
    world.sql.batch_execute(insert).await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    disk.fill()?;
    for id in 2..=200 {
        world.subscribe(id, 2).await?;
    }
    let committed = world.value("SELECT pg_current_wal_insert_lsn()").await?;
    running.until_logged("No space left on device").await?;
    let acknowledged = format!(
        "SELECT confirmed_flush_lsn >= '{committed}' FROM pg_replication_slots
         WHERE slot_name = 'walhook'"
    );
    ensure!(world.value(&acknowledged).await? == "f", "acknowledged what is stored nowhere");
    let stored = count().await?;
    ensure!(stored < 199, "all {stored} dead letters found room");

    std::fs::remove_file(disk.filler())?;
    world.subscribe(201, 1).await?;
    world.delivered(2).await.with_context(|| running.log())?;
    world.until(&acknowledged, "t").await.with_context(|| running.log())?;
    ensure!(count().await? == 199, "{} dead letters", count().await?);
    ensure!(world.mock.stats().duplicates == 0, "{:?}", world.mock.stats());
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn delivery_log_makes_room_on_a_full_disk_before_anything_waits_for_a_person() -> Result<()> {
    let Some(disk) = SmallDisk::mount()? else {
        println!("no right to mount a small disk: nothing to test");
        return Ok(());
    };
    let (mut world, state) = world_on(&disk).await?;
    world.hook(1, 1, "").await?;
    let insert = "INSERT INTO webhooks (id, account_id, url) VALUES (2, 2, 'http://127.0.0.1:1/')";
    world.sql.batch_execute(insert).await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    let count = async |what: &str| -> Result<i64> {
        Ok(state.query_one(&format!("SELECT count(*) FROM walhook.{what}"), &[]).await?.get(0))
    };
    let deadline = Instant::now() + PATIENCE;
    while count("delivery_log").await? == 0 {
        ensure!(Instant::now() < deadline, "no line is stored: {}", running.log());
        sleep(Duration::from_millis(20)).await;
    }
    // Pages that hold what cannot be compressed stand for those of millions of deliveries. A table that has lost pages
    // before, as by its retention, has its maps and its index's: there is room for nothing that is new.
    let log = "INSERT INTO walhook.delivery_log SELECT pipeline, partition, last + n, 1, 0, from_us, to_us, 0, 0,
                   '\\x00', decode(repeat(md5(n::text), 62), 'hex')
               FROM walhook.delivery_log, generate_series(1, 4000) n WHERE last = 1";
    state.batch_execute(log).await?;
    state.batch_execute("DELETE FROM walhook.delivery_log WHERE last > 1").await?;
    for _ in 0..2 {
        state.batch_execute("VACUUM walhook.delivery_log").await?;
    }
    state.batch_execute(log).await?;
    state.batch_execute("VACUUM walhook.delivery_log").await?;
    disk.fill()?;
    for id in 2..=200 {
        world.subscribe(id, 2).await?;
    }
    let committed = world.value("SELECT pg_current_wal_insert_lsn()").await?;
    world.subscribe(201, 1).await?;
    world.delivered(2).await.with_context(|| running.log())?;
    let acknowledged = format!(
        "SELECT confirmed_flush_lsn >= '{committed}' FROM pg_replication_slots
         WHERE slot_name = 'walhook'"
    );
    world.until(&acknowledged, "t").await.with_context(|| running.log())?;
    ensure!(count("dead_letters").await? == 199, "{} dead letters", count("dead_letters").await?);
    ensure!(running.log().contains("removed the older half of the delivery log"));
    let left = count("delivery_log").await?;
    ensure!(left < 2_100, "{left} pages are left");
    ensure!(world.mock.stats().duplicates == 0, "{:?}", world.mock.stats());
    ensure!(running.terminate().await?.success());
    Ok(())
}
