//! The network fails, where a closed connection does not tell of it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};

use crate::support::{PATIENCE, RULES, World, answers, get};
use walhook_testkit::cluster::Cluster;
use walhook_testkit::proxy::{Network, Proxy};

/// Puts a network between the program and its server.
async fn behind_a_network(world: &mut World) -> Result<Proxy> {
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], world.cluster.port()))).await?;
    let url = format!("postgres://postgres@{}/postgres", proxy.address());
    world.env.push(("WALHOOK_SOURCE__URL".to_owned(), url));
    Ok(proxy)
}

async fn until_ready(world: &World, wanted: bool) -> Result<Duration> {
    let began = Instant::now();
    while answers(world.admin, "/readyz").await != wanted {
        ensure!(began.elapsed() < PATIENCE, "ready is not {wanted}");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(began.elapsed())
}

#[tokio::test]
async fn case_22_network_that_swallows_everything_is_noticed_and_bridged() -> Result<()> {
    let mut world = World::with("", RULES, &[("wal_sender_timeout", "2s")]).await?;
    let network = behind_a_network(&mut world).await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    world.settled().await?;

    network.set(Network::Swallows);
    let noticed = until_ready(&world, false).await.with_context(|| running.log())?;
    println!("not ready after {noticed:?}");
    world.subscribe(2, 1).await?;
    network.set(Network::Passes);
    let resumed = until_ready(&world, true).await.with_context(|| running.log())?;
    println!("ready again after {resumed:?}");
    world.delivered(2).await.with_context(|| running.log())?;
    world.settled().await?;
    ensure!(world.mock.stats().duplicates == 0, "{:?}", world.mock.stats());

    // A reset is noticed at once, and bridged as well.
    network.set(Network::Cuts);
    world.subscribe(3, 1).await?;
    running.until_logged("Connection reset").await?;
    network.set(Network::Passes);
    world.delivered(3).await.with_context(|| running.log())?;
    world.settled().await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn case_23_server_without_a_timeout_is_warned_of_and_a_frozen_leader_still_loses_the_slot()
-> Result<()> {
    let server = [("wal_sender_timeout", "0")];
    let mut world = World::with("", RULES, &server).await?;
    world.env.push(("WALHOOK_SOURCE__LEASE_TIMEOUT".to_owned(), "1s".to_owned()));
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    running.until_logged("wal_sender_timeout is 0").await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    running.signal("STOP")?;
    world.until("SELECT active FROM pg_replication_slots WHERE slot_name = 'walhook'", "f").await?;
    running.signal("CONT")?;
    world.subscribe(2, 1).await?;
    world.delivered(2).await.with_context(|| running.log())?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

/// When each of these lines was logged, in seconds of its day.
fn logged_at(log: &str, says: &str) -> Vec<f64> {
    let at = |line: &str| {
        let time = line.split_once('T')?.1.split_once('Z')?.0;
        time.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))
    };
    log.lines().filter(|line| line.contains(says)).filter_map(at).collect()
}

#[tokio::test]
async fn stream_that_breaks_off_at_the_same_place_is_not_well_again_and_is_opened_ever_more_seldom()
-> Result<()> {
    // What walhook stores is not to be in the stream: nothing comes before it breaks.
    let state = Cluster::start_distinct(&[]).await?;
    let sections = format!("[state]\nurl = \"{}\"", state.url("postgres"));
    let mut world = World::with(&sections, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    const AGAIN: &str = "streaming again";
    const WORKS: &str = "works again: the stream goes on";
    let deadline = Instant::now() + PATIENCE;
    let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
               WHERE slot_name = 'walhook' AND active";
    while logged_at(&running.log(), AGAIN).len() < 9 {
        ensure!(Instant::now() < deadline, "{}", running.log_tail());
        world.sql.batch_execute(end).await?;
        sleep(Duration::from_millis(20)).await;
    }
    let (status, body) = get(world.admin, "/readyz").await?;
    let log = running.log();
    ensure!(status == 503 && body.contains("stream"), "{status} {body}");
    // The first stream had held or not; those after it never did.
    ensure!(log.matches(WORKS).count() <= 1, "{log}");
    let at = logged_at(&log, AGAIN);
    let waits: Vec<f64> = at.windows(2).map(|two| (two[1] - two[0]).rem_euclid(86_400.0)).collect();
    // Behind the first one 100 ms, then twice as long each time up to 5 s, shortened by up to a half.
    ensure!(waits[5] > 1.5 && waits[6] > 2.4 && waits[7] > 2.4, "{waits:?}");

    // The next one brings something.
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    until_ready(&world, true).await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}
