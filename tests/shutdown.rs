//! PostgreSQL stops, breaks and comes back under the running program, and is never held up by it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};
use walhook_testkit::cluster::StopMode;
use walhook_testkit::receiver::Behaviour;

use crate::kills::{endpoints, walsender_of};
use crate::support::audit::audit;
use crate::support::traffic::{self, Traffic};
use crate::support::{PATIENCE, Running, World};

/// Attempts that go on for as long as the endpoints are away.
const STUBBORN: &str = "[delivery]\ntimeout = \"3s\"\nconnect_timeout = \"1s\"\nquick_attempts = 1000\nretry_base = \"100ms\"\n\
                        retry_cap = \"1s\"\n";

/// What a server may take to stop where much else runs. One that is held up waits for `max_hold`, or its time-out: for
/// half a minute at least.
const SOON: Duration = Duration::from_secs(15);

/// Stops the server, and checks that it was not held up.
async fn stop_fast(world: &mut World) -> Result<()> {
    let begun = Instant::now();
    world.cluster.stop(StopMode::Fast).await?;
    let took = begun.elapsed();
    println!("stopped in {took:?}");
    ensure!(took < SOON, "the server was held up for {took:?}");
    Ok(())
}

async fn start_again(world: &mut World) -> Result<()> {
    world.cluster.start_again().await?;
    world.sql = world.connect().await?;
    Ok(())
}

/// Inserts rows of four accounts, each as long as told, in transactions of a hundred.
async fn backlog(world: &World, rows: i64, bytes: i32) -> Result<()> {
    let sql = format!(
        "DO $$ BEGIN FOR i IN 1..{rows} / 100 LOOP
             INSERT INTO subscribers (account_id, email)
                 SELECT n % 4 + 1, repeat('x', {bytes}) FROM generate_series(1, 100) n;
             COMMIT;
         END LOOP; END $$"
    );
    Ok(world.sql.batch_execute(&sql).await?)
}

/// A world whose endpoints of accounts 1 to 4 never answer.
async fn hanging(sections: &str, server: &[(&str, &str)]) -> Result<World> {
    let world = traffic::world(&format!("{STUBBORN}{sections}"), server).await?;
    world.mock.set_default(Behaviour::hang());
    for account in 1..=4 {
        world.hook(account, account, "").await?;
    }
    Ok(world)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_21_server_stops_at_once_while_every_endpoint_hangs() {
    let mut world = hanging("", &[]).await.unwrap();
    let _running = world.run().await.unwrap();
    backlog(&world, 400, 10).await.unwrap();
    world.mock.wait_until("hanging", PATIENCE, |stats| stats.in_flight >= 4).await.unwrap();
    stop_fast(&mut world).await.unwrap();
    start_again(&mut world).await.unwrap();
    world.mock.set_default(Behaviour::ok());
    let taken = world.delivered(400).await.unwrap();
    world.settled().await.unwrap();
    assert_eq!(taken.iter().filter(|request| request.is_taken()).count(), 400);
}

/// What has left memory: without an endpoint, where a busy machine takes over a second to look it up.
const STORED: &str = "(SELECT count(*) FROM walhook.deliveries_pending)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_21_server_stops_at_once_while_more_than_memory_holds_is_deferred() {
    let rows = 4_000;
    let mut world = hanging("[memory]\nlimit = \"1MiB\"\n", &[]).await.unwrap();
    let _running = world.run().await.unwrap();
    backlog(&world, rows, 2_000).await.unwrap();
    world.until(&format!("SELECT {STORED} > 2000"), "t").await.unwrap();
    stop_fast(&mut world).await.unwrap();
    start_again(&mut world).await.unwrap();
    world.mock.set_default(Behaviour::ok());
    world.until(&format!("SELECT {STORED}"), "0").await.unwrap();
    world.delivered(4_000).await.unwrap();
    world.settled().await.unwrap();
    assert_eq!(world.mock.stats().duplicates, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_23_connection_with_a_timeout_of_two_seconds_is_kept_while_more_than_memory_holds_is_deferred()
 {
    let sections = "[memory]\nlimit = \"1MiB\"\n";
    let mut world = hanging(sections, &[("wal_sender_timeout", "2s")]).await.unwrap();
    world.mock.set_default(Behaviour::delay(Duration::from_millis(500)));
    let running = world.run().await.unwrap();
    backlog(&world, 4_000, 2_000).await.unwrap();
    world.until(&format!("SELECT {STORED} > 500"), "t").await.unwrap();
    let connected = "SELECT pid, backend_start FROM pg_stat_replication";
    let walsender = world.value(connected).await.unwrap();
    assert!(!walsender.is_empty());
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        assert_eq!(world.value(connected).await.unwrap(), walsender, "{}", running.log());
        sleep(Duration::from_millis(100)).await;
    }
    world.mock.set_default(Behaviour::ok());
    world.delivered(4_000).await.unwrap();
    assert!(!running.log().contains("the stream ended"), "{}", running.log());
    assert_eq!(world.mock.stats().duplicates, 0);
}

/// Waits until the slot is in use (again).
async fn until_streaming(world: &World) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while walsender_of(world).await?.is_empty() {
        ensure!(Instant::now() < deadline, "nobody streams");
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Writes, breaks something again and again, and audits.
async fn through_breakage(
    seed: u64,
    times: u32,
    mut break_it: impl AsyncFnMut(&mut World) -> Result<()>,
) -> Result<(World, Running)> {
    // Long enough for a receiver on a busy machine: what it took too late would be sent twice.
    let patient = STUBBORN.replace("\ntimeout = \"3s\"", "\ntimeout = \"15s\"");
    let mut world = traffic::world(&patient, &[]).await?;
    let mut endpoints = endpoints(&world).await?;
    // Nothing ends in an endless loop of attempts.
    endpoints.retain(|endpoint| endpoint.id != 41);
    world.sql.batch_execute("DELETE FROM webhooks WHERE id = 41").await?;
    let running = world.run().await?;
    let traffic = Traffic::start(&world, seed, Duration::from_millis(20)).await?;
    for _ in 0..times {
        let before = world.mock.stats().received;
        let moved = |stats: &walhook_testkit::receiver::Stats| {
            stats.received >= before + 50 && stats.in_flight > 0
        };
        let waited = world.mock.wait_until("traffic", PATIENCE, moved).await;
        waited.with_context(|| running.log())?;
        break_it(&mut world).await?;
    }
    let before = world.mock.stats().received;
    let moved = |stats: &walhook_testkit::receiver::Stats| stats.received >= before + 50;
    world.mock.wait_until("traffic", PATIENCE, moved).await.with_context(|| running.log())?;
    let oracle = traffic.stop().await;
    world.settled().await.with_context(|| running.log())?;
    let audit = audit(&world, oracle, &endpoints, &[]).await?;
    println!("{audit:?}, doubtful {}", audit.doubtful);
    // The same process goes on: it knows what it has sent.
    ensure!(audit.repeated_within == 0, "{audit:?}");
    Ok((world, running))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_02_crashes_of_the_server_lose_nothing_and_cause_no_duplicates_while_walhook_lives() {
    let crash = async |world: &mut World| {
        world.cluster.stop(StopMode::Immediate).await?;
        start_again(world).await
    };
    through_breakage(11, 4, crash).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_24_nothing_is_lost_when_the_server_restarts_again_and_again_in_traffic() {
    let restart = async |world: &mut World| {
        stop_fast(world).await?;
        start_again(world).await
    };
    through_breakage(12, 3, restart).await.unwrap();
}

/// How often the leader has tried in vain to reach the source.
fn tries(running: &Running) -> usize {
    running.log().matches("cannot connect; trying again").count()
}

#[tokio::test]
async fn case_24_leader_backs_off_while_the_server_is_away_and_begins_anew_each_time() {
    let mut world = traffic::world("", &[]).await.unwrap();
    world.hook(1, 1, "").await.unwrap();
    let running = world.run().await.unwrap();
    for expected in 1..=2 {
        let before = tries(&running);
        stop_fast(&mut world).await.unwrap();
        let stopped = Instant::now();
        let mut at = Vec::new();
        // Waits of 50 ms to 1.6 s, each at least half of that: 1.6 s together, and half a second more
        // than the five before.
        while at.len() < 6 {
            assert!(stopped.elapsed() < PATIENCE, "{at:?}\n{}", running.log());
            let now = tries(&running) - before;
            at.resize(now.max(at.len()), stopped.elapsed());
            sleep(Duration::from_millis(5)).await;
        }
        println!("tried in vain after {at:?}");
        assert!(stopped.elapsed() > Duration::from_millis(1_000), "tried at {at:?}");
        // As many tries again would take 64 times as long.
        sleep(Duration::from_secs(2)).await;
        let more = tries(&running) - before - 6;
        assert!(more <= 2, "{more} more tries within two seconds");
        start_again(&mut world).await.unwrap();
        world.sql.batch_execute("INSERT INTO subscribers (account_id) VALUES (1)").await.unwrap();
        world.delivered(expected).await.unwrap();
    }
    assert!(running.terminate().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_its_sessions_are_terminated() {
    let terminate = async |world: &mut World| {
        until_streaming(world).await?;
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                   WHERE application_name LIKE 'walhook%'";
        let ended: i64 = world.value(sql).await?.parse()?;
        ensure!(ended >= 2, "only {ended} sessions");
        Ok(())
    };
    let (world, running) = through_breakage(13, 10, terminate).await.unwrap();
    // Each kind alone, with the other sessions at work.
    for only in ["backend_type = 'walsender'", "backend_type = 'client backend'"] {
        let sql = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE application_name LIKE 'walhook%' AND {only}"
        );
        until_streaming(&world).await.unwrap();
        let before = world.mock.stats();
        world.value(&sql).await.unwrap();
        world.sql.batch_execute("INSERT INTO subscribers (account_id) VALUES (1)").await.unwrap();
        let delivered = world.delivered(before.distinct + 1).await;
        delivered.with_context(|| format!("{only}\n{}", running.log())).unwrap();
        world.settled().await.unwrap();
        assert_eq!(world.mock.stats().duplicates, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_02_clean_restart_of_the_server_causes_no_duplicates() {
    let mut world = traffic::world("", &[]).await.unwrap();
    world.hook(1, 1, "").await.unwrap();
    let running = world.run().await.unwrap();
    for expected in 1..=3 {
        world.sql.batch_execute("INSERT INTO subscribers (account_id) VALUES (1)").await.unwrap();
        world.delivered(expected).await.unwrap();
        world.settled().await.unwrap();
        stop_fast(&mut world).await.unwrap();
        start_again(&mut world).await.unwrap();
    }
    world.sql.batch_execute("INSERT INTO subscribers (account_id) VALUES (1)").await.unwrap();
    world.delivered(4).await.unwrap();
    world.settled().await.unwrap();
    assert_eq!(world.mock.stats().duplicates, 0);
    assert!(running.terminate().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_15_idle_slot_retains_little_while_another_database_writes() {
    let mut world = traffic::world("", &[]).await.unwrap();
    world.hook(1, 1, "").await.unwrap();
    let _running = world.run().await.unwrap();
    world.sql.batch_execute("INSERT INTO subscribers (account_id) VALUES (1)").await.unwrap();
    world.delivered(1).await.unwrap();
    world.sql.batch_execute("CREATE DATABASE other").await.unwrap();
    let url = walhook_core::endpoint::Secret::new(world.cluster.url("other"));
    let other = walhook_postgres::sql::Connection::open(&url, "other").await.unwrap();
    other.batch_execute("CREATE TABLE public.t (a text)").await.unwrap();
    let written = "SELECT pg_current_wal_lsn() - '0/0'";
    let before: f64 = world.value(written).await.unwrap().parse().unwrap();
    for _ in 0..4 {
        let fill = "INSERT INTO public.t SELECT repeat('x', 1000) FROM generate_series(1, 48000)";
        other.batch_execute(fill).await.unwrap();
        // As max_wal_size makes the server do; the slot's restart position follows checkpoints.
        other.batch_execute("CHECKPOINT").await.unwrap();
    }
    let after: f64 = world.value(written).await.unwrap().parse().unwrap();
    assert!(after - before > 190e6, "{} bytes written", after - before);
    let retained = "SELECT pg_current_wal_lsn() - restart_lsn FROM pg_replication_slots
                    WHERE slot_name = 'walhook'";
    let begun = Instant::now();
    loop {
        let bytes: f64 = world.value(retained).await.unwrap().parse().unwrap();
        println!("{:?}: {bytes} bytes retained", begun.elapsed());
        if bytes < f64::from(32 << 20) {
            break;
        }
        // A busy server's slot passes over a checkpoint's record, and takes the next that tells of running
        // transactions: the background writer makes one every 15 s.
        assert!(begun.elapsed() < PATIENCE, "the slot retains {bytes} bytes");
        sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hangup_of_the_terminal_shuts_down_as_the_service_manager_does() {
    let mut world = traffic::world("", &[]).await.unwrap();
    world.hook(1, 1, "").await.unwrap();
    let running = world.run().await.unwrap();
    world.sql.batch_execute("INSERT INTO subscribers (account_id) VALUES (1)").await.unwrap();
    world.delivered(1).await.unwrap();
    running.signal("HUP").unwrap();
    let (status, log) = running.ended_with_log().await.unwrap();
    assert!(status.success() && log.contains("stopped by SIGHUP"), "{status}: {log}");
}
