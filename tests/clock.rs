//! The wall clock of the machine steps by hours, forward and back: only stamps follow it.
//!
//! Works on Linux: a preloaded library, compiled here, gives the program a clock that the test sets.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use tempfile::TempDir;
use walhook_core::endpoint::Secret;
use walhook_process::clock::unix_us;
use walhook_sign as sign;
use walhook_testkit::receiver::{Behaviour, Received};

use crate::support::{PATIENCE, RULES, Running, SECRET, World, answers};

const HOUR: i64 = 3_600;

/// What the endpoint that fails asks for, so that its deliveries wait in the table.
const RETRY_AFTER_S: u32 = 4;

/// Few enough not to open the breaker.
const WAITING: i64 = 4;

/// One attempt from memory: whatever fails is deferred.
const SECTIONS: &str = "[delivery]\nquick_attempts = 1\nretry_base = \"100ms\"\n";

/// A wall clock that can be set.
struct WallClock {
    step: File,
    env: [(String, String); 2],
    _dir: TempDir,
}

impl WallClock {
    fn new() -> Result<Self> {
        let dir = TempDir::new()?;
        let (library, path) = (dir.path().join("step.so"), dir.path().join("step"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clock/step.c");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", source, "-o"]).arg(&library);
        let compiled = cc.output().context("cc, which links this very test, cannot be run")?;
        ensure!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let step = OpenOptions::new().create_new(true).write(true).open(&path)?;
        let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
        let env =
            [("LD_PRELOAD".to_owned(), text(library)), ("CLOCK_STEP_FILE".to_owned(), text(path))];
        let clock = Self { step, env, _dir: dir };
        clock.set(0)?;
        Ok(clock)
    }

    /// From now on it is so many seconds ahead of the true one, or behind.
    fn set(&self, seconds: i64) -> Result<()> {
        // In place: the program has the file mapped.
        Ok(self.step.write_all_at(&seconds.to_ne_bytes(), 0)?)
    }

    /// Starts `walhook run` by this clock, and waits until it leads.
    async fn run(&self, world: &mut World) -> Result<Running> {
        let env: Vec<(&str, &str)> = self.env.iter().map(|(n, v)| (&**n, &**v)).collect();
        let mut running = world.spawn_with(&env)?;
        running.until_leading(world.admin).await?;
        Ok(running)
    }
}

fn failing() -> Behaviour {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    Behaviour { retry_after: Some(RETRY_AFTER_S), ..Behaviour::status(status) }
}

/// Has deliveries of so many rows from `first` on fail, and waits until they are deferred.
async fn defer_some(world: &World, first: i64) -> Result<()> {
    // Those of before have been taken; that is to be stored too, lest they are counted again.
    world
        .until("SELECT count(*) FROM walhook.deliveries_pending WHERE endpoint <> ''", "0")
        .await?;
    world.mock.set_behaviour("/1", failing());
    for id in first..first + WAITING {
        world.subscribe(id, 1).await?;
    }
    let deferred = "SELECT count(*) FROM walhook.deliveries_pending WHERE attempts > 0";
    world.until(deferred, &WAITING.to_string()).await?;
    world.mock.set_behaviour("/1", Behaviour::ok());
    Ok(())
}

/// When each of them was tried, in true seconds.
fn tried(world: &World) -> BTreeMap<i64, Vec<f64>> {
    let mut tried = BTreeMap::<i64, Vec<f64>>::new();
    for request in world.mock.received().iter().filter(|r| r.path == "/1") {
        let id = request.json()["data"]["id"].as_i64().unwrap_or_default();
        tried.entry(id).or_default().push(request.at_unix_us as f64 / 1e6);
    }
    tried
}

/// Waits until those rows are taken, and checks that each waited as it was asked to, and not much longer. A busy machine
/// may have tried one again before it knew that the others were deferred: that one waited twice.
async fn ensure_waited(world: &World, first: i64) -> Result<()> {
    let rows = first..first + WAITING;
    let all = || {
        let received = world.mock.received();
        let taken = received.iter().filter(|r| r.path == "/1" && r.is_taken());
        let taken: BTreeSet<i64> = taken.filter_map(|r| r.json()["data"]["id"].as_i64()).collect();
        rows.clone().all(|id| taken.contains(&id))
    };
    world.mock.wait_until("the rows that waited", PATIENCE, |_| all()).await?;
    for (id, times) in tried(world).range(rows.clone()) {
        let asked = f64::from(RETRY_AFTER_S);
        for pair in times.windows(2) {
            let waited = pair[1] - pair[0];
            ensure!((asked - 0.1..asked + 30.0).contains(&waited), "row {id} waited {waited} s");
        }
        ensure!(times.len() >= 2, "row {id} was sent {} times", times.len());
    }
    Ok(())
}

/// Sends a row to the endpoint that is well, and returns the request's stamp less the true time.
async fn stamp_ahead_s(world: &World, id: i64) -> Result<i64> {
    world.subscribe(id, 2).await?;
    let find = || {
        let is_it = |r: &Received| r.path == "/2" && r.json()["data"]["id"] == id;
        world.mock.received().into_iter().find(is_it)
    };
    world.mock.wait_until("the row", PATIENCE, |_| find().is_some()).await?;
    let request = find().context("it was there")?;
    let header = |name: &str| request.headers[name].to_str().unwrap_or_default().to_owned();
    let timestamp: i64 = header("webhook-timestamp").parse()?;
    let (signature, secret) = (header("webhook-signature"), Secret::new(SECRET));
    ensure!(sign::verify(&request.id, timestamp, &request.body, &signature, &secret));
    Ok(timestamp - request.at_unix_us / 1_000_000)
}

#[tokio::test]
async fn steps_of_the_wall_clock_move_stamps_and_nothing_else() -> Result<()> {
    let mut world = World::with(SECTIONS, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    world.hook(2, 2, "").await?;
    let clock = WallClock::new()?;
    let mut running = clock.run(&mut world).await?;
    ensure!(stamp_ahead_s(&world, 1).await?.abs() <= 5);
    for (n, hours) in (1..).zip([3, -2, 30, -30, 0]) {
        defer_some(&world, n * 100).await?;
        clock.set(hours * HOUR)?;
        let ahead = stamp_ahead_s(&world, n * 100 + 50).await?;
        ensure!((ahead - hours * HOUR).abs() <= 5, "{ahead} s after a step to {hours} h");
        // The checkpoint goes on while they wait.
        world.settled().await?;
        ensure_waited(&world, n * 100).await?;
    }
    world
        .until("SELECT count(*) FROM walhook.deliveries_pending WHERE endpoint <> ''", "0")
        .await?;
    ensure!(world.value("SELECT count(*) FROM walhook.dead_letters").await? == "0");
    ensure!(world.value("SELECT epoch FROM walhook.lease").await? == "1", "the lease was lost");
    ensure!(answers(world.admin, "/readyz").await, "not ready");
    ensure!(world.mock.stats().duplicates == 0);
    ensure!(running.has_ended()?.is_none());
    let log = running.log();
    ensure!(!log.contains("panicked") && !log.contains("reconnect"), "{log}");
    ensure!(running.terminate().await?.success());
    Ok(())
}

/// What waits was stored by one clock and is read by another.
#[tokio::test]
async fn deferred_rows_keep_their_times_when_the_next_leader_has_another_clock() -> Result<()> {
    let mut world = World::with(SECTIONS, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    world.hook(2, 2, "").await?;
    let clock = WallClock::new()?;
    let mut running = clock.run(&mut world).await?;
    // Beyond retry_for and disable_after, forward and back.
    for (n, hours) in (1..).zip([1_000, -1_000, 0]) {
        defer_some(&world, n * 100).await?;
        running.kill().await?;
        clock.set(hours * HOUR)?;
        running = clock.run(&mut world).await?;
        let ahead = stamp_ahead_s(&world, n * 100 + 50).await?;
        ensure!((ahead - hours * HOUR).abs() <= 5, "{ahead} s after a step to {hours} h");
        ensure_waited(&world, n * 100).await?;
    }
    world
        .until("SELECT count(*) FROM walhook.deliveries_pending WHERE endpoint <> ''", "0")
        .await?;
    ensure!(world.value("SELECT count(*) FROM walhook.dead_letters").await? == "0");
    ensure!(world.value("SELECT count(*) FROM walhook.endpoint_state").await? == "0");
    let at = "SELECT (extract(epoch FROM updated_at) * 1000000)::int8 FROM walhook.checkpoint";
    let stored: i64 = world.value(at).await?.parse()?;
    ensure!((unix_us() - stored).abs() < 60_000_000, "the checkpoint is stamped by the server");
    tokio::time::timeout(PATIENCE, running.terminate()).await??;
    Ok(())
}
