//! How soon others deliver when the leader is killed, again and again, or asked to end.
//! `WALHOOK_TEST_KILLS=20 cargo nextest run --no-capture takeover::` measures more of them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};
use walhook_process::clock::unix_us;
use walhook_testkit::receiver::Stats;

use crate::kills::{from_env, until_slot_left, until_standing_by, walsender_of};
use crate::support::traffic::{self, Traffic};
use crate::support::{PATIENCE, Running, World};

/// Without `WALHOOK_TEST_KILLS`.
const TAKEOVERS: usize = 3;

/// The pause between two transactions of a writer's session is at most this: something is always due.
const REST: Duration = Duration::from_millis(5);

/// A second on a machine of its own. The tests beside this one take most of it, so this only tells a
/// standby from one that waits for a time-out, of which the shortest has 10 s.
const SOON: Duration = Duration::from_secs(8);

async fn spawn(world: &mut World) -> Result<(SocketAddr, Running)> {
    let admin = walhook_testkit::address::free_address()?;
    Ok((admin, world.spawn_with(&[("WALHOOK_ADMIN__LISTEN", &admin.to_string())])?))
}

/// Kills the leader, and measures from when the slot is free to the first request of the next.
async fn take_over(world: &World, leader: Running, standby: SocketAddr) -> Result<Duration> {
    until_standing_by(standby).await?;
    let walsender = walsender_of(world).await?;
    leader.kill().await?;
    until_slot_left(world, &walsender).await?;
    let free_us = unix_us();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let received = world.mock.received();
        if let Some(first) = received.iter().find(|request| request.at_unix_us > free_us) {
            return Ok(Duration::from_micros(u64::try_from(first.at_unix_us - free_us)?));
        }
        ensure!(Instant::now() < deadline, "nothing is delivered after the takeover");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_25_standby_delivers_soon_after_the_slot_of_a_killed_leader_is_free() {
    let takeovers = from_env("WALHOOK_TEST_KILLS").unwrap_or(TAKEOVERS);
    let mut world = traffic::world("", &[]).await.unwrap();
    for account in 1..=traffic::ACCOUNTS {
        world.hook(account, account, "").await.unwrap();
    }
    let (admin, mut leader) = spawn(&mut world).await.unwrap();
    leader.until_leading(admin).await.unwrap();
    let traffic = Traffic::start(&world, 15, REST).await.unwrap();
    let mut took = Vec::new();
    for _ in 0..takeovers {
        let (admin, mut standby) = spawn(&mut world).await.unwrap();
        let measured = take_over(&world, leader, admin).await;
        took.push(measured.with_context(|| standby.log()).unwrap());
        standby.until_leading(admin).await.unwrap();
        leader = standby;
    }
    traffic.stop().await;
    took.sort_unstable();
    let (median, most) = (took[took.len() / 2], took[took.len() - 1]);
    println!("{takeovers} takeovers, slot free to first request: median {median:?}, max {most:?}");
    assert!(most < SOON, "{took:?}");
    assert!(leader.terminate().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_that_is_asked_to_end_serves_others_while_an_endpoint_hangs() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 1, "?delay=12s").await?;
    world.hook(2, 2, "").await?;
    let mut leader = world.run().await?;
    world.subscribe(1, 1).await?;
    // Nobody can know yet that it hangs.
    world.mock.wait_until("a request", PATIENCE, |stats| stats.in_flight == 1).await?;
    leader.signal("TERM")?;
    for id in 2..=4 {
        world.subscribe(id, 2).await?;
        let all =
            |stats: &Stats| stats.by_path.get("/2").is_some_and(|n| *n + 1 >= id.unsigned_abs());
        world.mock.wait_until("a delivery while another is slow", PATIENCE, all).await?;
    }
    ensure!(leader.has_ended()?.is_none(), "it did not wait for what is in flight");
    ensure!(world.mock.stats().in_flight == 1, "{:?}", world.mock.stats());
    ensure!(leader.ended().await?.success());

    let _next = world.run().await?;
    world.subscribe(5, 2).await?;
    world.delivered(5).await?;
    ensure!(world.mock.stats().duplicates == 0, "{:?}", world.mock.stats());
    Ok(())
}
