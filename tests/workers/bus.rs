//! What the bus may be: three servers of which each fails, one that wants TLS and users, one that becomes too small;
//! and leaders and workers that are gone or frozen while it is well.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use walhook_dispatch::dispatcher::UNPERSISTED_MAX;
use walhook_process::clock::unix_us;
use walhook_testkit::address::free_address;
use walhook_testkit::nats::Nats;
use walhook_testkit::program::{Program, Running};
use walhook_testkit::tls::Authority;

use super::leading::{endpoints, lead};
use super::{run, silence, worker_of};
use crate::kills::{until_slot_left, until_standing_by, walsender_of};
use crate::support::audit::{Audit, End, Endpoint, audit, settled};
use crate::support::traffic::{self, Traffic};
use crate::support::{PATIENCE, RULES, World};

/// The pause between two transactions of a writer's session is at most this.
const REST: Duration = Duration::from_millis(20);

/// Of what a fault befalls: far above what it is (0.7 s), and far below the lease and a second that it was.
const SILENCE: Duration = Duration::from_secs(2);

/// No silence is longer, but for what the machine itself stands still for: `usual`, while all was well.
fn ensure_short(silence: Duration, usual: Duration) -> Result<()> {
    ensure!(silence < SILENCE + 2 * usual, "nothing was sent for {silence:?}, usually {usual:?}");
    Ok(())
}

/// Traffic, a leader, and two workers by a bus that the test has.
struct Fleet {
    world: World,
    leader: Running,
    workers: Vec<(Program, Running)>,
    endpoints: Vec<Endpoint>,
}

impl Fleet {
    /// `url` is what the configuration says of the bus.
    async fn start(url: &str, server: &[(&str, &str)]) -> Result<Self> {
        let mut world = traffic::world(&format!("[workers]\nurl = {url}\n"), server).await?;
        let endpoints = endpoints(&world).await?;
        let leader = lead(&mut world).await?;
        let mut workers = Vec::new();
        for _ in 0..2 {
            let mut program = worker_of(url)?;
            let running = run(&mut program).await?;
            workers.push((program, running));
        }
        let fleet = Self { world, leader, workers, endpoints };
        fleet.until_serving(2).await?;
        Ok(fleet)
    }

    async fn until_serving(&self, workers: usize) -> Result<()> {
        let series = "walhook_workers{state=\"serving\"}";
        let serving = self.world.until_metric(series, &workers.to_string()).await;
        serving.with_context(|| self.leader.log_tail())
    }

    /// Waits until so many more requests have been taken.
    async fn until_taken(&self, more: u64) -> Result<()> {
        let wanted = self.world.mock.stats().taken + more;
        let what = format!("{more} requests more");
        let taken = self.world.mock.wait_until(&what, PATIENCE, |stats| stats.taken >= wanted);
        taken.await.with_context(|| self.leader.log_tail())
    }

    async fn audit(&self, traffic: Traffic, lives: &[End]) -> Result<Audit> {
        let oracle = traffic.stop().await;
        settled(&self.world, &self.endpoints).await?;
        audit(&self.world, oracle, &self.endpoints, lives).await
    }

    fn end(&self) -> End {
        End { received: self.world.mock.stats().received, at_unix_us: unix_us() }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_three_servers_is_killed_in_turn_and_nothing_is_lost() -> Result<()> {
    let mut servers = Nats::start_three().await?;
    let urls: Vec<String> = servers.iter().map(|nats| format!("\"{}\"", nats.url())).collect();
    let fleet = Fleet::start(&format!("[{}]", urls.join(", ")), &[]).await?;
    let began = unix_us();
    let traffic = Traffic::start(&fleet.world, 41, REST).await?;
    fleet.until_taken(100).await?;
    let usual = silence(&fleet.world, began);
    let mut longest = Duration::ZERO;
    for server in &mut servers {
        let from = unix_us();
        server.kill()?;
        fleet.until_taken(200).await?;
        fleet.until_serving(2).await?;
        longest = longest.max(silence(&fleet.world, from));
        server.start_again().await?;
        fleet.until_taken(100).await?;
    }
    let found = fleet.audit(traffic, &[]).await?;
    println!(
        "three servers: silence {longest:?}, {} repeated of {}",
        found.repeated_within, found.delivered
    );
    ensure_short(longest, usual)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_workers_are_killed_at_once_and_the_leader_sends_itself() -> Result<()> {
    let nats = Nats::start("").await?;
    let mut fleet = Fleet::start(&format!("\"{}\"", nats.url()), &[]).await?;
    let began = unix_us();
    let traffic = Traffic::start(&fleet.world, 42, REST).await?;
    fleet.until_taken(100).await?;
    let usual = silence(&fleet.world, began);
    let (from, in_flight) = (unix_us(), fleet.world.mock.stats().in_flight);
    for (_, worker) in &mut fleet.workers {
        worker.kill_and_wait().await?;
    }
    fleet.until_taken(200).await?;
    fleet.until_serving(0).await?;
    fleet.until_taken(100).await?;
    let silence = silence(&fleet.world, from);
    let found = fleet.audit(traffic, &[]).await?;
    println!("all workers: in flight {in_flight}, silence {silence:?}, {found:?}");
    ensure_short(silence, usual)?;
    // What was on its way back counts as in flight too.
    ensure!(found.repeated_within <= in_flight + 128, "{found:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_that_was_frozen_orders_nothing_of_the_workers_of_the_one_after_it() -> Result<()> {
    // Only workers send: what comes twice came by a frame.
    let nats = Nats::start("max_payload: 2MB").await?;
    let url = format!("\"{}\"", nats.url());
    let mut fleet =
        Fleet::start(&format!("{url}\nlocal = \"never\""), &[("wal_sender_timeout", "2s")]).await?;
    let admin: SocketAddr = free_address()?;
    let listen = ("WALHOOK_ADMIN__LISTEN".to_owned(), admin.to_string());
    fleet.world.env.push(listen);
    let mut standby = fleet.world.spawn_role("leader")?;
    fleet.world.env.pop();
    until_standing_by(admin).await?;
    let traffic = Traffic::start(&fleet.world, 43, REST).await?;
    fleet.until_taken(100).await?;
    let walsender = walsender_of(&fleet.world).await?;
    fleet.leader.signal("STOP")?;
    let in_flight = fleet.world.mock.stats().in_flight;
    // What the workers have begun ends, and nobody hears of it.
    fleet.world.mock.wait_until("nothing runs", PATIENCE, |stats| stats.in_flight == 0).await?;
    let frozen = fleet.end();
    until_slot_left(&fleet.world, &walsender).await?;
    standby.until_leading(admin).await?;
    fleet.world.settled().await?;
    let thawed = fleet.end();
    fleet.leader.signal("CONT")?;
    until_standing_by(fleet.world.admin).await?;
    fleet.until_taken(100).await?;
    ensure!(standby.log().contains("a worker serves"), "{}", standby.log_tail());
    let found = fleet.audit(traffic, &[frozen, thawed]).await?;
    println!("leader frozen: in flight {in_flight}, {found:?}");
    ensure!(found.repeated[0] <= in_flight + u64::try_from(UNPERSISTED_MAX)?, "{found:?}");
    // Of what the new leader had sent, nothing comes again by frames of the old one.
    ensure!(found.repeated[1] == 0 && found.repeated_within == 0, "{found:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bus_with_tls_and_users_carries_what_check_says_that_it_does() -> Result<()> {
    let authority = Authority::ecdsa(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let user = |name: &str, publish: &str, subscribe: &str| {
        format!(
            "{{ user: {name}, password: hush, permissions: {{ publish: [{publish}], subscribe: [{subscribe}] }} }}"
        )
    };
    let (leads, hello) = ("\"walhook.walhook.lead\"", "\"walhook.walhook.hello\"");
    let leader = user(
        "leader",
        &format!("{leads}, \"walhook.walhook.w.>\""),
        &format!("{hello}, \"walhook.walhook.l.>\""),
    );
    let worker = user(
        "worker",
        &format!("{hello}, \"walhook.walhook.l.>\""),
        &format!("{leads}, \"walhook.walhook.w.*\""),
    );
    let users = format!("authorization {{ users: [{leader}, {worker}] }}\nmax_payload: 2MB");
    let nats = Nats::start_tls(&authority.issue("localhost")?, &users).await?;
    let bus = |user: &str| {
        let (port, file) = (nats.address().port(), authority.file());
        format!(
            "\"tls://localhost:{port}\"\ntls_ca = \"{file}\"\nuser = \"{user}\"\npassword = \"hush\""
        )
    };
    let sections = format!("[workers]\nurl = {}\nlocal = \"never\"\n", bus("leader"));
    let mut world = World::with(&sections, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    let leader = lead(&mut world).await?;
    let mut program = worker_of(&bus("worker"))?;
    let _worker = run(&mut program).await?;
    world.until_metric("walhook_workers{state=\"serving\"}", "1").await?;
    for id in 1..=20 {
        world.subscribe(id, 1).await?;
    }
    world.delivered(20).await.with_context(|| leader.log_tail())?;

    let said = async |password: &str| -> Result<String> {
        let env = [("WALHOOK_WORKERS__PASSWORD", password)];
        let output = world.walhook_with(&["check"], &env).await?;
        Ok(String::from_utf8([output.stdout, output.stderr].concat())?)
    };
    let well = said("hush").await?;
    for expected in ["takes us, with TLS", "we may publish to walhook.walhook.*", "1 of version"] {
        ensure!(well.contains(expected), "{expected}: {well}");
    }
    let ill = said("shout").await?;
    ensure!(ill.contains("refuses the credentials") && !ill.contains("shout"), "{ill}");
    // A worker's user may not lead.
    world.edit_config("user = \"leader\"", "user = \"worker\"")?;
    let ill = said("hush").await?;
    ensure!(
        ill.contains("Permissions Violation") && ill.contains("allow the leader's user"),
        "{ill}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn event_that_the_bus_takes_no_more_is_deferred_by_name_and_holds_up_no_other() -> Result<()>
{
    let mut nats = Nats::start("max_payload: 2MB").await?;
    let sections = format!(
        "[workers]\nurl = \"{}\"\nlocal = \"never\"\n[delivery]\nretry_base = \"100ms\"\nretry_cap = \"1s\"\n",
        nats.url()
    );
    let mut world = World::with(&sections, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    let leader = lead(&mut world).await?;
    let mut program = super::worker(&nats)?;
    let _worker = run(&mut program).await?;
    let serving = "walhook_workers{state=\"serving\"}";
    world.until_metric(serving, "1").await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;

    // Somebody makes it smaller, of which nobody is told before it is back.
    nats.kill()?;
    nats.configure("max_payload: 128KB")?;
    nats.start_again().await?;
    world.until_metric(serving, "1").await.with_context(|| leader.log_tail())?;
    let insert = "INSERT INTO subscribers VALUES (2, 1, repeat('x', 100000), 'active')";
    world.sql.batch_execute(insert).await?;
    for id in 3..=20 {
        world.subscribe(id, 1).await?;
    }
    world.delivered(19).await.with_context(|| leader.log_tail())?;
    let told = "SELECT detail FROM walhook.deliveries_pending";
    let why = "oversize: larger than a message of the bus may be";
    world
        .until(
            &format!("SELECT (count(*) = 1 AND min(detail) LIKE '{why}%')::text FROM ({told}) t"),
            "true",
        )
        .await?;
    world.settled().await?;
    let counted = world.metrics().await?;
    ensure!(counted.contains("outcome=\"oversize\""), "{counted}");

    nats.kill()?;
    nats.configure("max_payload: 2MB")?;
    nats.start_again().await?;
    let received = world.delivered(20).await.with_context(|| leader.log_tail())?;
    ensure!(received.iter().any(|request| request.body.len() > 100_000), "it came whole");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_add_no_session_of_postgresql() -> Result<()> {
    let sessions = "SELECT count(*) FROM pg_stat_activity
         WHERE backend_type IN ('client backend', 'walsender') AND application_name LIKE 'walhook%'";
    let nats = Nats::start("").await?;
    let sections = format!("[workers]\nurl = \"{}\"\n", nats.url());
    let mut world = World::with(&sections, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    let _leader = lead(&mut world).await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    world.until_ready(true).await?;
    let alone = world.value(sessions).await?;
    let mut workers = Vec::new();
    for _ in 0..8 {
        let mut program = super::worker(&nats)?;
        let running = run(&mut program).await?;
        workers.push((program, running));
    }
    world.until_metric("walhook_workers{state=\"serving\"}", "8").await?;
    world.until("SELECT count(*) FROM walhook.workers", "8").await?;
    for id in 2..=100 {
        world.subscribe(id, 1).await?;
    }
    world.delivered(100).await?;
    // A session for a while may have been among those of the leader alone.
    world.until(&format!("SELECT (({sessions}) <= {alone})::int::bigint"), "1").await?;
    println!("{alone} sessions with eight workers and without");
    Ok(())
}
