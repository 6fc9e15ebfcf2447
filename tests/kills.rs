//! The program is killed, ended, frozen and replaced in the middle of traffic.
//!
//! The choice of what is written, when it is killed and in which state is a function of a seed.
//! `WALHOOK_TEST_SEED=7` runs that seed alone, `WALHOOK_TEST_KILLS=20` kills so often with each seed;
//! a failure names its seed. `cargo nextest run --no-capture kills::` prints the tables.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};
use walhook_dispatch::dispatcher::UNPERSISTED_MAX;
use walhook_postgres::sql::Connection;
use walhook_process::clock::unix_us;

use walhook_testkit::change::{Change, Kind};
use walhook_testkit::extent::is_long;
use walhook_testkit::oracle::Oracle;

use crate::support::audit::{Audit, Demand, End, Endpoint, audit, settled};
use crate::support::traffic::{self, FLAPPING, TOUCHED, Traffic};
use crate::support::{PATIENCE, Running, SECRET, World, answers, get, taken};

/// Without `WALHOOK_TEST_SEED`; all of them by `make test-long`.
const SEEDS: [u64; 4] = [1, 2, 3, 4];

/// Without `WALHOOK_TEST_KILLS`; `make test-long` kills oftener.
const KILLS: usize = 5;

/// The pause between two transactions of a writer's session is at most this.
const REST: Duration = Duration::from_millis(25);

/// Few attempts soon after one another, so that dead letters come while the test runs.
const QUICK: &str = "[delivery]\nretry_base = \"100ms\"\nretry_cap = \"5s\"\n";

pub(crate) fn from_env<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// All of them would take too long for `make test`.
fn seeds() -> Vec<u64> {
    if is_long() { SEEDS.to_vec() } else { vec![1] }
}

/// Registers endpoints of every behaviour.
pub(crate) async fn endpoints(world: &World) -> Result<Vec<Endpoint>> {
    let mut endpoints = Vec::new();
    for (id, account, query, demand) in [
        (11, 1, "", Demand::Delivered),
        (21, 2, "?delay=300ms", Demand::Delivered),
        (22, 2, "?delay=20ms", Demand::Delivered),
        (31, 3, "?fail=0.4", Demand::Ended),
        (32, 3, "?delay=5ms", Demand::Delivered),
        (42, 4, "", Demand::Delivered),
        (FLAPPING, 5, "", Demand::Nothing),
        (TOUCHED, 5, "?delay=50ms", Demand::Delivered),
    ] {
        world.hook(id, account, query).await?;
        endpoints.push(Endpoint { id, account, demand, since: 0 });
    }
    // Nobody listens there: connections are refused.
    let insert = "INSERT INTO webhooks (id, account_id, url, secret) VALUES (41, 4, 'http://127.0.0.1:1/41', $1)";
    world.sql.execute(insert, &[&SECRET]).await?;
    endpoints.push(Endpoint { id: 41, account: 4, demand: Demand::Ended, since: 0 });
    Ok(endpoints)
}

/// Registers an endpoint for account 6 while everything runs: what is written from now on is owed.
async fn register_later(world: &World, id: i64) -> Result<Endpoint> {
    world.hook(id, 6, "?delay=10ms").await?;
    let since = world.value("SELECT last_value FROM change_number").await?.parse()?;
    Ok(Endpoint { id, account: 6, demand: Demand::Delivered, since })
}

/// One life of the program: what the receiver knew when it was killed.
#[derive(Debug)]
struct Death {
    /// What else was the matter.
    state: &'static str,
    in_flight: u64,
    end: End,
}

/// Waits until requests are in flight, after so many more have been answered.
async fn until_busy(world: &World, more: u64) -> Result<()> {
    let before = world.mock.stats().received;
    let busy = |stats: &walhook_testkit::receiver::Stats| {
        stats.received >= before + more && stats.in_flight > 0
    };
    world.mock.wait_until("requests in flight", PATIENCE, busy).await
}

/// Kills it, and waits until the receiver has noticed, so that what it answers next is to another life.
async fn kill(world: &World, running: Running, state: &'static str) -> Result<Death> {
    let in_flight = world.mock.stats().in_flight;
    running.kill().await?;
    until_heard_out(world).await?;
    Ok(Death { state, in_flight, end: ending(world) })
}

/// Waits until the receiver has read all that a process had sent it which has ended, and is done with it. What lies in a
/// socket still is no request yet to the receiver, and would be one of the next life.
pub(crate) async fn until_heard_out(world: &World) -> Result<()> {
    let port = world.mock.address().port();
    let left = connections_to(port)?;
    // Whoever leads next has connections of its own, which may stay.
    let deadline = Instant::now() + Duration::from_secs(5);
    while !left.is_disjoint(&connections_to(port)?) && Instant::now() < deadline {
        sleep(Duration::from_millis(5)).await;
    }
    let noticed = |stats: &walhook_testkit::receiver::Stats| stats.in_flight == 0;
    world.mock.wait_until("no request in flight", PATIENCE, noticed).await
}

/// The receiver's ends of the connections to this port that it has not closed, also of those that it has not accepted.
fn connections_to(port: u16) -> Result<BTreeSet<String>> {
    const OPEN: [&str; 2] = ["01", "08"];
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    let here = format!("0100007F:{port:04X}");
    let ours = |line: &str| -> Option<String> {
        let mut fields = line.split_whitespace().skip(1);
        let (local, peer, state) = (fields.next()?, fields.next()?, fields.next()?);
        (local == here && OPEN.contains(&state)).then(|| peer.to_owned())
    };
    Ok(table.lines().filter_map(ours).collect())
}

fn ending(world: &World) -> End {
    End { received: world.mock.stats().received, at_unix_us: unix_us() }
}

/// Kills by the seed while writers write; then lets everything settle, and audits.
async fn kill_by_seed(seed: u64, kills: usize) -> Result<String> {
    let mut world = traffic::world(QUICK, &[]).await?;
    let mut endpoints = endpoints(&world).await?;
    let mut rng = SmallRng::seed_from_u64(seed);
    let traffic = Traffic::start(&world, seed, REST).await?;
    let mut deaths = Vec::new();
    for number in 0..kills {
        if rng.random_ratio(1, 4) {
            // Killed while it starts, perhaps with the lease just taken.
            let starting = world.spawn()?;
            sleep(Duration::from_millis(rng.random_range(0..400))).await;
            deaths.push(kill(&world, starting, "starting").await?);
        }
        let running = world.run().await?;
        until_busy(&world, rng.random_range(0..400)).await?;
        if number == 1 {
            endpoints.push(register_later(&world, 61).await?);
        }
        let mut state = "";
        let holder = world.connect().await?;
        if rng.random_ratio(1, 3) {
            // Outcomes cannot be stored for a while: they will be forgotten.
            state = "stalled";
            holder.batch_execute("BEGIN; SELECT 1 FROM walhook.lease FOR UPDATE").await?;
            sleep(Duration::from_millis(rng.random_range(100..1_500))).await;
        } else {
            until_busy(&world, 1).await?;
        }
        deaths.push(kill(&world, running, state).await?);
        drop(holder);
        sleep(Duration::from_millis(rng.random_range(0..300))).await;
    }
    let running = world.run().await?;
    until_busy(&world, 100).await?;
    let oracle = traffic.stop().await;
    settled(&world, &endpoints).await.with_context(|| running.log())?;
    let [_, doubtful, rolled_back] = oracle.changes();
    ensure!(rolled_back > 0 && doubtful == 0, "{rolled_back}, {doubtful}");
    let lives: Vec<End> = deaths.iter().map(|death| death.end).collect();
    let audit = audit(&world, oracle, &endpoints, &lives).await?;
    let shown = table(seed, &deaths, &audit);
    ensure!(audit.dead + audit.deferred > 0, "no endpoint failed\n{shown}");
    for (death, repeated) in deaths.iter().zip(&audit.repeated) {
        let bound = death.in_flight + u64::try_from(UNPERSISTED_MAX)?;
        ensure!(*repeated <= bound, "{repeated} duplicates, at most {bound} are allowed\n{shown}");
    }
    ensure!(audit.repeated_within == 0, "duplicates without a kill\n{shown}");
    ensure!(running.terminate().await?.success(), "the last life did not end well");
    Ok(shown)
}

fn table(seed: u64, deaths: &[Death], audit: &Audit) -> String {
    let mut shown = String::new();
    let lives = audit.repeated.iter().zip(&audit.unstored_ms);
    for (kill, (death, (repeated, unstored_ms))) in deaths.iter().zip(lives).enumerate() {
        let Death { state, in_flight, .. } = death;
        let _ = writeln!(
            shown,
            "{seed:>5} {kill:>5} {in_flight:>10} {repeated:>11} {unstored_ms:>12}  {state}"
        );
    }
    let Audit { committed, delivered, dead, received, .. } = audit;
    let _ = writeln!(
        shown,
        "{seed:>5} committed {committed}, delivered {delivered}, dead letters {dead}, requests {received}"
    );
    shown
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_invented_when_it_is_killed_with_requests_in_flight() {
    let seeds = from_env("WALHOOK_TEST_SEED").map_or_else(seeds, |seed| vec![seed]);
    let kills = from_env("WALHOOK_TEST_KILLS").unwrap_or(KILLS);
    println!(" seed  kill  in flight  duplicates  unstored ms  state");
    for seed in seeds {
        match kill_by_seed(seed, kills).await {
            Ok(shown) => print!("{shown}"),
            Err(error) => panic!("WALHOOK_TEST_SEED={seed} WALHOOK_TEST_KILLS={kills}: {error:#}"),
        }
    }
}

/// The bound of the promise itself, at its limit: thousands of requests answered, none of it stored.
/// The checkpoint is held back by a slow endpoint while another one joins; what is read again then
/// was written before it was there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoint_that_joined_before_a_crash_gets_no_older_event_behind_a_newer_one() {
    let mut world = traffic::world("", &[]).await.unwrap();
    world.hook(1, 1, "?delay=12s").await.unwrap();
    world.hook(3, 2, "").await.unwrap();
    let running = world.run().await.unwrap();
    let sql = world.connect().await.unwrap();
    sql.batch_execute("INSERT INTO subscribers (id, account_id) VALUES (1, 1)").await.unwrap();
    world.mock.wait_until("a request", PATIENCE, |stats| stats.in_flight == 1).await.unwrap();
    sql.batch_execute("INSERT INTO subscribers (id, account_id) VALUES (2, 2)").await.unwrap();
    // Routed, to the one endpoint that its account has.
    world.mock.wait_until("the older event", PATIENCE, |stats| stats.taken == 1).await.unwrap();
    world.hook(2, 2, "").await.unwrap();
    sql.batch_execute("UPDATE subscribers SET version = nextval('change_number') WHERE id = 2")
        .await
        .unwrap();
    world.mock.wait_until("the newer event", PATIENCE, |stats| stats.taken == 3).await.unwrap();
    kill(&world, running, "").await.unwrap();

    let _running = world.run().await.unwrap();
    sql.batch_execute("DELETE FROM subscribers WHERE id = 2").await.unwrap();
    let last = |stats: &walhook_testkit::receiver::Stats| stats.distinct == 3;
    world.mock.wait_until("the last event", PATIENCE, last).await.unwrap();
    // Nor does anything come behind it.
    world.settled().await.unwrap();
    let events = taken(&world.mock.received()).remove("/2").unwrap();
    let expected = ["subscriber.updated", "subscriber.deleted"].map(|name| (name.to_owned(), 2));
    assert_eq!(events, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicates_stay_within_the_bound_when_outcomes_cannot_be_stored() {
    let mut world = traffic::world("", &[]).await.unwrap();
    let mut endpoints = Vec::new();
    for account in 1..=40 {
        world.hook(account, account, "").await.unwrap();
        let (id, demand) = (account, Demand::Delivered);
        endpoints.push(Endpoint { id, account, demand, since: 0 });
    }
    let running = world.run().await.unwrap();
    // The checkpoint passes the registration: an endpoint's first event waits to be stored otherwise.
    world.settled().await.unwrap();
    let rows = 12_000;
    let sql =
        "INSERT INTO subscribers (account_id) SELECT n % 40 + 1 FROM generate_series(1, $1::int) n
               RETURNING id, version, account_id";
    let mut oracle = Oracle::default();
    for row in world.sql.query(sql, &[&rows]).await.unwrap() {
        let change = Change { kind: Kind::Created, id: row.get(0), version: row.get(1) };
        oracle.committed(row.get(2), &[change], Duration::ZERO);
    }
    world.mock.wait_until("the first request", PATIENCE, |stats| stats.taken > 0).await.unwrap();
    // Not before: a state transaction that stood still since then would stop all sending after a second.
    let holder = world.connect().await.unwrap();
    holder.batch_execute("BEGIN; SELECT 1 FROM walhook.lease FOR UPDATE").await.unwrap();
    let before = world.mock.stats().received;
    // It stops by itself; still for a second is stopped.
    let mut last = (Instant::now(), 0);
    while last.0.elapsed() < Duration::from_secs(1) {
        let taken = world.mock.stats().taken;
        if taken != last.1 {
            last = (Instant::now(), taken);
        }
        sleep(Duration::from_millis(20)).await;
    }
    let sent = world.mock.stats().received - before;
    let most = u64::try_from(UNPERSISTED_MAX).unwrap() + 256;
    assert!(sent <= most, "{sent} sent and not stored, at most {most} are allowed");
    let death = kill(&world, running, "stalled").await.unwrap();
    drop(holder);
    let _running = world.run().await.unwrap();
    settled(&world, &endpoints).await.unwrap();
    let audit = audit(&world, oracle, &endpoints, &[death.end]).await.unwrap();
    println!("in flight {}, duplicates {}", death.in_flight, audit.repeated[0]);
    assert!(audit.repeated[0] <= most, "{audit:?}");
    assert!(audit.repeated[0] > 0, "nothing was unstored: {audit:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_in_traffic_loses_nothing_and_sends_nothing_twice() {
    let mut world = traffic::world(QUICK, &[]).await.unwrap();
    let endpoints = endpoints(&world).await.unwrap();
    let traffic = Traffic::start(&world, 5, REST).await.unwrap();
    for _ in 0..3 {
        let running = world.run().await.unwrap();
        until_busy(&world, 100).await.unwrap();
        let begun = Instant::now();
        assert!(running.terminate().await.unwrap().success());
        println!("drained in {:?}", begun.elapsed());
        assert_eq!(world.mock.stats().in_flight, 0, "left a request behind");
    }
    let _running = world.run().await.unwrap();
    let oracle = traffic.stop().await;
    settled(&world, &endpoints).await.unwrap();
    let audit = audit(&world, oracle, &endpoints, &[]).await.unwrap();
    println!("{audit:?}");
    assert_eq!(audit.repeated_within, 0);
}

/// A second instance of the same pipeline, with an admin server of its own.
pub(crate) async fn stand_by(world: &mut World) -> Result<(Running, SocketAddr)> {
    let admin = walhook_testkit::address::free_address()?;
    let standby = world.spawn_with(&[("WALHOOK_ADMIN__LISTEN", &admin.to_string())])?;
    until_standing_by(admin).await.with_context(|| standby.log())?;
    Ok((standby, admin))
}

/// Waits until an instance is ready and does not lead.
pub(crate) async fn until_standing_by(admin: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let leads = get(admin, "/leaderz").await.map(|(status, _)| status);
        if leads.is_ok_and(|status| status == 503) && answers(admin, "/readyz").await {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "it does not stand by");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the slot is not this walsender's any more.
pub(crate) async fn until_slot_left(world: &World, walsender: &str) -> Result<Instant> {
    let deadline = Instant::now() + PATIENCE;
    while walsender_of(world).await? == walsender {
        ensure!(Instant::now() < deadline, "walsender {walsender} keeps the slot");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(Instant::now())
}

pub(crate) async fn walsender_of(world: &World) -> Result<String> {
    world.value("SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'walhook'").await
}

/// Less than any time-out that a standby could wait for instead (10 s). It takes a fraction of a second on a machine of
/// its own, and some seconds where much else runs.
const TAKEOVER: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_25_standby_takes_over_by_itself_when_the_leader_is_killed() {
    let mut world = traffic::world(QUICK, &[]).await.unwrap();
    let endpoints = endpoints(&world).await.unwrap();
    let leader = world.run().await.unwrap();
    let (mut standby, admin) = stand_by(&mut world).await.unwrap();
    let traffic = Traffic::start(&world, 6, REST).await.unwrap();
    until_busy(&world, 200).await.unwrap();
    assert!(answers(admin, "/readyz").await && !answers(admin, "/leaderz").await);
    let walsender = walsender_of(&world).await.unwrap();
    let death = kill(&world, leader, "").await.unwrap();
    let free = until_slot_left(&world, &walsender).await.unwrap();
    standby.until_leading(admin).await.unwrap();
    let took = free.elapsed();
    println!("took over {took:?} after the slot was free");
    assert!(took < TAKEOVER, "{took:?}\n{}", standby.log());
    until_busy(&world, 100).await.unwrap();
    let oracle = traffic.stop().await;
    settled(&world, &endpoints).await.unwrap();
    let audit = audit(&world, oracle, &endpoints, &[death.end]).await.unwrap();
    println!("in flight {}, {audit:?}", death.in_flight);
    assert!(audit.repeated[0] <= death.in_flight + u64::try_from(UNPERSISTED_MAX).unwrap());
    assert_eq!(audit.repeated_within, 0);
}

/// Holds the checkpoint's row until the leader's state transaction, which has its lock on the lease by
/// then, waits for it.
async fn catch_in_transaction(world: &World) -> Result<Connection> {
    let holder = world.connect().await?;
    holder.batch_execute("BEGIN; SELECT FROM walhook.checkpoint FOR UPDATE").await?;
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE application_name = 'walhook state' AND wait_event_type = 'Lock'";
    let deadline = Instant::now() + PATIENCE;
    while world.value(waiting).await? == "0" {
        ensure!(Instant::now() < deadline, "the leader stores nothing");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(holder)
}

/// The leader is frozen, replaced and thawed.
async fn freeze(seed: u64, in_transaction: bool) -> Result<()> {
    let mut world = traffic::world(QUICK, &[("wal_sender_timeout", "2s")]).await?;
    let endpoints = endpoints(&world).await?;
    let leader = world.run().await?;
    let (mut standby, admin) = stand_by(&mut world).await?;
    let traffic = Traffic::start(&world, seed, REST).await?;
    until_busy(&world, 200).await?;
    let walsender = walsender_of(&world).await?;
    let holder = if in_transaction { Some(catch_in_transaction(&world).await?) } else { None };
    leader.signal("STOP")?;
    drop(holder);
    let in_flight = world.mock.stats().in_flight;
    let end = ending(&world);
    let free = until_slot_left(&world, &walsender).await?;
    standby.until_leading(admin).await?;
    let took = free.elapsed();
    println!("took over {took:?} after the slot was free");
    ensure!(took < TAKEOVER, "{took:?}\n{}", standby.log());
    until_busy(&world, 100).await?;
    let epoch = world.value("SELECT epoch FROM walhook.lease").await?;
    leader.signal("CONT")?;
    until_standing_by(world.admin).await?;
    let log = leader.log();
    ensure!(log.contains("another instance has taken over"), "{log}");
    ensure!(answers(admin, "/leaderz").await, "the new leader leads no more");
    until_busy(&world, 100).await?;
    let oracle = traffic.stop().await;
    settled(&world, &endpoints).await?;
    ensure!(world.value("SELECT epoch FROM walhook.lease").await? == epoch, "led twice");
    let audit = audit(&world, oracle, &endpoints, &[end]).await?;
    println!("in flight {in_flight}, {audit:?}");
    let bound = in_flight + u64::try_from(UNPERSISTED_MAX)?;
    let repeated = audit.repeated[0] + audit.repeated_within;
    ensure!(repeated <= bound, "more than {bound}: {audit:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_26_thawed_leader_is_fenced_and_stands_by() {
    freeze(7, false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_26_leader_frozen_within_a_state_transaction_is_replaced_as_soon() {
    freeze(8, true).await.unwrap();
}
