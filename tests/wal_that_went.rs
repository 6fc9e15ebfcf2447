//! The source goes back in time, and the tables of state, in another server, do not: the positions that they name come
//! again, and mean something else.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::time::sleep;
use walhook_testkit::cluster::{Cluster, StopMode};

use crate::support::{PATIENCE, RULES, Running, World, taken, text};

/// How the source goes back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goes {
    /// To a point in time, from which on it has a timeline of its own.
    Restored,
    /// An older copy is put in its place.
    Copied,
}

/// A world whose source will go back to where a request of account 1 was under way.
struct Back {
    world: World,
    state: Cluster,
    copy: PathBuf,
}

const PARTED: &str = "left the old one's WAL at";
const OLDER: &str = "lies beyond the end of the WAL";

impl Back {
    /// A running program, and the copy. Endpoint 1 hangs, 2 takes all, 3 is paused.
    async fn start() -> Result<(Self, Running)> {
        let state = Cluster::start_distinct(&[]).await?;
        let sections = format!(
            "[state]\nurl = \"{}\"\n[delivery]\ntimeout = \"10m\"\n\
             [wal]\nmax_hold = \"60s\"",
            state.url("postgres")
        );
        let mut world = World::with(&sections, RULES, &[]).await?;
        for (id, query) in [(1, "?hang"), (2, ""), (3, "")] {
            world.hook(id, id, query).await?;
        }
        let running = world.run().await?;
        ensure!(world.walhook(&["endpoints", "pause", "3"]).await?.status.success());
        world.subscribe(1, 2).await?;
        world.delivered(1).await?;
        world.subscribe(2, 1).await?;
        world.mock.wait_until("a request", PATIENCE, |it| it.in_flight >= 1).await?;
        world.cluster.stop(StopMode::Fast).await?;
        let data = world.cluster.data();
        let copy = data.with_extension("older");
        let copied = std::process::Command::new("cp").arg("-a").args([&data, &copy]).status()?;
        ensure!(copied.success(), "cp -a");
        world.cluster.start_again().await?;
        world.reconnect().await?;
        world.until_ready(true).await?;
        Ok((Self { world, state, copy }, running))
    }

    /// A first value of the state database.
    async fn stored(&self, sql: &str) -> Result<String> {
        let url = walhook_core::endpoint::Secret::new(self.state.url("postgres"));
        let session = walhook_postgres::sql::Connection::open(&url, "test").await?;
        Ok(session.query_one(sql, &[]).await?.get(0))
    }

    /// What is committed now is settled ahead of the checkpoint: ids 100 to 299 delivered, 300 to 309 deferred.
    async fn settle_ahead(&self) -> Result<()> {
        for id in 100..300 {
            self.world.subscribe(id, 2).await?;
        }
        for id in 300..310 {
            self.world.subscribe(id, 3).await?;
        }
        self.world.delivered(201).await?;
        let rows = "SELECT concat_ws(' ', count(*), (SELECT count(*) > 0 FROM walhook.settled))
                    FROM walhook.deliveries_pending";
        for _ in 0..600 {
            if self.stored(rows).await? == "10 t" {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
        anyhow::bail!("deferred and settled: {}", self.stored(rows).await?)
    }

    async fn go(&mut self, goes: Goes) -> Result<()> {
        let data = self.world.cluster.data();
        self.world.cluster.stop(StopMode::Fast).await?;
        std::fs::remove_dir_all(&data)?;
        std::fs::rename(&self.copy, &data)?;
        if goes == Goes::Restored {
            // Of an archive that has no more than the copy.
            let settings = data.join("postgresql.conf");
            let settings_then = std::fs::read_to_string(&settings)?;
            std::fs::write(&settings, settings_then + "\nrestore_command = 'false'\n")?;
            std::fs::write(data.join("recovery.signal"), "")?;
            let owner = std::fs::metadata(&data)?;
            let (uid, gid) = {
                use std::os::unix::fs::MetadataExt;
                (owner.uid(), owner.gid())
            };
            std::os::unix::fs::chown(data.join("recovery.signal"), Some(uid), Some(gid))?;
        }
        self.world.cluster.start_again().await?;
        self.world.reconnect().await?;
        self.world.until("SELECT pg_is_in_recovery()", "f").await?;
        // Endpoints are well again.
        let well = "UPDATE webhooks SET url = split_part(url, '?', 1)";
        Ok(self.world.sql.batch_execute(well).await?)
    }

    /// `run` must halt so, again and again, and `check` say it.
    async fn halts(&mut self, says: &str) -> Result<()> {
        for _ in 0..2 {
            let (status, log) = self.world.spawn()?.ended_with_log().await?;
            let last = log.lines().last().unwrap_or_default();
            ensure!(status.code() == Some(3) && last.contains(says), "{status}: {log}");
        }
        let check = self.world.walhook(&["check"]).await?;
        let said = text(&check.stdout);
        ensure!(!check.status.success() && said.contains(says), "{said}");
        Ok(())
    }

    async fn recovers(&self, option: &str) -> Result<Value> {
        self.world.walhook_json(&["recover", option, "--yes"]).await
    }

    /// What is committed now must be sent, and what was deferred; account 1 gets what was under way.
    async fn loses_nothing(&mut self, deferred: i64) -> Result<()> {
        for id in 400..440 {
            self.world.subscribe(id, 2).await?;
        }
        for id in 500..510 {
            self.world.subscribe(id, 3).await?;
        }
        let running = self.world.run().await?;
        ensure!(self.world.walhook(&["endpoints", "resume", "3"]).await?.status.success());
        let wanted = |path: &str| match path {
            "/1" => vec![2],
            "/2" => (400..440).collect(),
            _ => (300..300 + deferred).chain(500..510).collect::<Vec<i64>>(),
        };
        let lacks = || {
            let taken = taken(&self.world.mock.received());
            ["/1", "/2", "/3"].into_iter().find_map(|path| {
                let there = taken.get(path).map(Vec::as_slice).unwrap_or_default();
                let lacks: Vec<i64> = wanted(path)
                    .into_iter()
                    .filter(|id| !there.iter().any(|(_, there)| there == id))
                    .collect();
                (!lacks.is_empty()).then(|| format!("{path} lacks {lacks:?}"))
            })
        };
        for _ in 0..1200 {
            if lacks().is_none() {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        if let Some(lacks) = lacks() {
            anyhow::bail!("{lacks}\n{}", running.log());
        }
        ensure!(running.terminate().await?.success());
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_after_a_restore_halts_by_what_was_settled_and_goes_on_without_a_loss_once_adopted()
-> Result<()> {
    let (mut back, running) = Back::start().await?;
    back.settle_ahead().await?;
    running.kill().await?;
    back.go(Goes::Restored).await?;
    back.halts(PARTED).await?;
    let done = back.recovers("--adopt-cluster").await?;
    // The WAL is the same up to there, and the slot reaches back: nothing is missing.
    ensure!(done["recovered"]["gap"].is_null() && done["recovered"]["bytes"] == 0, "{done}");
    back.loses_nothing(10).await?;
    let gaps = back.world.walhook_json(&["gaps", "list"]).await?;
    ensure!(gaps["gaps"].as_array().is_some_and(Vec::is_empty), "{gaps}");
    back.state.stop(StopMode::Fast).await
}

/// Nothing is settled there: what remembers how far it read is the halt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn halt_of_who_lived_through_a_restore_stays_after_a_restart() -> Result<()> {
    let (mut back, running) = Back::start().await?;
    // They wait behind the one that hangs.
    back.world.sql.batch_execute("UPDATE subscribers SET status = 'b' WHERE id = 2").await?;
    let end = back.world.value("SELECT pg_current_wal_lsn()").await?;
    let received = format!("SELECT sent_lsn >= '{end}' FROM pg_stat_replication");
    back.world.until(&received, "t").await?;
    sleep(Duration::from_millis(500)).await;
    back.go(Goes::Restored).await?;
    let (status, log) = running.ended_with_log().await?;
    let last = log.lines().last().unwrap_or_default();
    ensure!(status.code() == Some(3) && last.contains(PARTED), "{status}: {log}");
    back.halts(PARTED).await?;
    back.recovers("--adopt-cluster").await?;
    back.loses_nothing(0).await?;
    back.state.stop(StopMode::Fast).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restore_that_has_all_that_was_read_goes_on_by_itself() -> Result<()> {
    let (mut back, running) = Back::start().await?;
    running.kill().await?;
    // The copy is as old as the last that was committed.
    back.go(Goes::Restored).await?;
    let check = text(&back.world.walhook(&["check"]).await?.stdout);
    ensure!(!check.contains("is not the database"), "{check}");
    back.loses_nothing(0).await?;
    ensure!(back.stored("SELECT timeline::text FROM walhook.meta").await? == "2");
    back.state.stop(StopMode::Fast).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_copy_that_ends_within_what_was_settled_halts_and_is_recovered_from_without_a_loss()
-> Result<()> {
    for other_host in [false, true] {
        let (mut back, running) = Back::start().await?;
        back.settle_ahead().await?;
        running.kill().await?;
        back.go(Goes::Copied).await?;
        let option = if other_host {
            let port = back.world.cluster.port();
            let there = |host: &str| format!("{host}:{port}/postgres");
            back.world.edit_config(&there("127.0.0.1"), &there("localhost"))?;
            back.halts("names other hosts").await?;
            "--adopt-cluster"
        } else {
            back.halts(OLDER).await?;
            "--accept-gap"
        };
        let done = back.recovers(option).await?;
        ensure!(done["recovered"]["gap"].is_object(), "{done}");
        back.loses_nothing(10).await.context(option)?;
        back.state.stop(StopMode::Fast).await?;
    }
    Ok(())
}
