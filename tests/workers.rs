//! Workers: processes that send for the leader, over a nats-server of the test's own.

mod bus;
mod cut_off;
mod leading;
mod permissions;
mod shared;
mod unheard;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use tokio::time::sleep;
use walhook_testkit::admin::get;
use walhook_testkit::nats::Nats;
use walhook_testkit::program::{PATIENCE, Program, Running};
use walhook_testkit::proxy::{Network, Proxy};
use walhook_testkit::receiver::Behaviour;

use crate::kills::endpoints;
use crate::support::audit::{Audit, Endpoint, audit, settled};
use crate::support::log_audit::{audit_log, left_out};
use crate::support::traffic::{self, Traffic};
use crate::support::{RULES, World};
use crate::turns::until_counted;

/// The pause between two transactions of a writer's session is at most this.
const REST: Duration = Duration::from_millis(10);

/// Few attempts soon after one another, so that all comes to its end while the test runs.
const QUICK: &str = "[delivery]\nretry_base = \"100ms\"\nretry_cap = \"5s\"\n";

/// A worker's whole configuration.
fn worker(nats: &Nats) -> Result<Program> {
    worker_of(&format!("\"{}\"", nats.url()))
}

/// The same; `url` is what the configuration says of the bus.
fn worker_of(url: &str) -> Result<Program> {
    Program::new(env!("CARGO_BIN_EXE_walhook"), |admin: SocketAddr| {
        format!(
            "[workers]\nurl = {url}\n[egress]\nallow = [\"127.0.0.0/8\"]\n[admin]\nlisten = \"{admin}\"\n"
        )
    })
}

async fn run(program: &mut Program) -> Result<Running> {
    let running = program.spawn_role("worker")?;
    running.until_logged("walhook starts as a worker").await?;
    Ok(running)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_needs_no_database_waits_for_a_leader_and_ends_when_told_to() -> Result<()> {
    let mut nats = Nats::start("").await?;
    let mut program = worker(&nats)?;
    let running = run(&mut program).await?;
    running.until_logged("the bus is connected").await?;
    program.until_unready("no leader was heard yet").await?;
    assert_eq!(get(program.admin, "/livez").await?.0, 200);
    assert_eq!(get(program.admin, "/leaderz").await?.0, 503);
    program.until_metric("walhook_worker_lease_seconds", "0").await?;
    program.until_metric("walhook_worker_in_flight", "0").await?;
    let health = program.walhook(&["health"]).await?;
    assert_eq!(health.status.code(), Some(1));
    let said = String::from_utf8(health.stderr)?;
    assert!(said.contains("not ready: no leader was heard yet"), "{said}");
    assert_eq!(program.walhook(&["health", "--live"]).await?.status.code(), Some(0));

    nats.kill()?;
    running.until_logged("the bus is away; connecting again and again").await?;
    nats.start_again().await?;
    let ended = running.terminate().await?;
    ensure!(ended.success(), "{ended}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_starts_without_its_bus_and_refuses_what_it_cannot_be_run_with() -> Result<()> {
    let mut nats = Nats::start("").await?;
    nats.kill()?;
    let mut program = worker(&nats)?;
    let running = run(&mut program).await?;
    running.until_logged("the bus is away").await?;
    ensure!(running.terminate().await?.success(), "it does not end well");

    for (args, from, to, expected) in [
        (&["run", "--role", "worker", "--record", "x"][..], "", "", "record at the leader"),
        (&["run", "--role", "worker"][..], "[workers]", "[worker]", "did you mean workers?"),
        (&["run", "--role", "worker"][..], "nats://127.0.0.1", "nats://192.0.2.1", "in the clear"),
        (&["run"][..], "", "", "source.url is missing"),
    ] {
        let program = worker(&nats)?;
        if !from.is_empty() {
            program.edit_config(from, to)?;
        }
        let output = program.walhook(args).await?;
        let said = String::from_utf8(output.stderr)?;
        assert!(output.status.code() == Some(2) && said.contains(expected), "{args:?}: {said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_configuration_is_looked_at_as_a_workers() -> Result<()> {
    let hello = "\"walhook.walhook.hello\"";
    let user = |name: &str, publish: &str| {
        format!(
            "{{ user: {name}, password: hush, permissions: {{ publish: [{publish}], \
             subscribe: [\"walhook.walhook.lead\", \"walhook.walhook.w.*\"] }} }}"
        )
    };
    let (may, mute) =
        (user("may", &format!("{hello}, \"walhook.walhook.l.>\"")), user("mute", hello));
    let nats = Nats::start(&format!("authorization {{ users: [{may}, {mute}] }}")).await?;
    let program = worker_of(&format!("\"{}\"\nuser = \"may\"\npassword = \"hush\"", nats.url()))?;
    let said = async |args: &[&str]| -> Result<(Option<i32>, String)> {
        let output = program.walhook(args).await?;
        let text = String::from_utf8([output.stdout, output.stderr].concat())?;
        Ok((output.status.code(), text))
    };
    for (args, code, expected) in [
        (&["config", "validate"][..], 2, "for a worker's configuration say --role worker"),
        (&["config", "show"][..], 2, "say --role worker"),
        (&["check"][..], 2, "say --role worker"),
        (&["config", "validate", "--role", "worker"][..], 0, "valid, for a worker"),
        (&["config", "show", "--role", "worker"][..], 0, "connect_timeout = \"5s\""),
        (&["check", "--role", "worker"][..], 0, "pass  bus: we may publish to walhook.walhook.*"),
    ] {
        let (status, text) = said(args).await?;
        assert!(status == Some(code) && text.contains(expected), "{args:?}: {status:?} {text}");
        assert!(!text.contains("hush"), "{text}");
    }
    program.edit_config("\"may\"", "\"mute\"")?;
    let (status, text) = said(&["check", "--role", "worker"]).await?;
    assert!(status == Some(1) && text.contains("Permissions Violation"), "{text}");
    assert!(text.contains("allow the workers' user to publish"), "{text}");
    Ok(())
}

/// A leader with traffic, and its workers.
struct Fleet {
    nats: Nats,
    /// Between the leader and the bus.
    network: Proxy,
    world: World,
    workers: Vec<(Program, Running)>,
    endpoints: Vec<Endpoint>,
}

impl Fleet {
    /// So many workers, and nothing runs of the leader yet.
    async fn new(workers: usize, keys: &str) -> Result<Self> {
        // Only workers send in some tests: then the bus has to take the largest event.
        let nats = Nats::start("max_payload: 2MB").await?;
        let network = Proxy::start(nats.address()).await?;
        let url = format!("nats://{}", network.address());
        let sections = format!("[workers]\nurl = \"{url}\"\n{keys}{QUICK}");
        let world = traffic::world(&sections, &[]).await?;
        let endpoints = endpoints(&world).await?;
        let mut fleet = Self { nats, network, world, workers: Vec::new(), endpoints };
        for _ in 0..workers {
            fleet.add_worker().await?;
        }
        Ok(fleet)
    }

    async fn add_worker(&mut self) -> Result<()> {
        let mut program = worker(&self.nats)?;
        let running = run(&mut program).await?;
        self.workers.push((program, running));
        Ok(())
    }

    /// Waits until the leader has so many workers.
    async fn until_serving(&self, workers: usize) -> Result<()> {
        let series = "walhook_workers{state=\"serving\"}";
        self.world.until_metric(series, &workers.to_string()).await
    }

    /// Waits until so many more requests have come.
    async fn until_more(&self, requests: u64) -> Result<()> {
        let before = self.world.mock.stats().received;
        let more = |stats: &walhook_testkit::receiver::Stats| {
            stats.received >= before + requests && stats.in_flight > 0
        };
        self.world.mock.wait_until("requests", PATIENCE, more).await
    }

    /// Lets everything settle, and audits it, and what the delivery log tells of it.
    async fn audit(&self, traffic: Traffic) -> Result<Audit> {
        let oracle = traffic.stop().await;
        settled(&self.world, &self.endpoints).await?;
        let audit = audit(&self.world, oracle, &self.endpoints, &[]).await?;
        let left_out = left_out(&self.world.metrics().await?).context("it does not say")?;
        audit_log(&self.world, &self.endpoints, left_out).await?;
        Ok(audit)
    }
}

/// The longest time without a request, from a moment until the last that came.
fn silence(world: &World, from_unix_us: i64) -> Duration {
    let received = world.mock.received();
    let mut at: Vec<i64> = received.iter().map(|request| request.at_unix_us).collect();
    at.retain(|at| *at > from_unix_us);
    at.push(from_unix_us);
    at.sort_unstable();
    let longest = at.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
    Duration::from_micros(u64::try_from(longest).unwrap_or(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_does_not_start_on_a_bus_too_small_for_what_only_workers_may_send() -> Result<()> {
    let nats = Nats::start("max_payload: 1MB").await?;
    let sections = format!("[workers]\nurl = \"{}\"\nlocal = \"never\"\n", nats.url());
    let world = traffic::world(&sections, &[]).await?;
    let output = world.walhook(&["run"]).await?;
    let said = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("set max_payload = 1114112 or more"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_that_is_killed_loses_nothing_and_doubles_at_most_what_it_had() -> Result<()> {
    let mut fleet = Fleet::new(2, "local = \"never\"\n").await?;
    let leader = fleet.world.run_with(&["--role", "leader"]).await?;
    fleet.until_serving(2).await?;
    let traffic = Traffic::start(&fleet.world, 13, REST).await?;
    fleet.until_more(200).await?;
    let from = walhook_process::clock::unix_us();
    let in_flight = fleet.world.mock.stats().in_flight;
    let (_, killed) = fleet.workers.remove(0);
    killed.kill().await?;
    fleet.until_serving(1).await.with_context(|| leader.log_tail())?;
    fleet.until_more(200).await?;
    until_counted(&fleet.world, "walhook_workers_lost_total", 1).await?;
    let silence = silence(&fleet.world, from);
    let found = fleet.audit(traffic).await?;
    println!("in flight {in_flight}, silence {silence:?}, {found:?}");
    // What was on its way back counts as in flight too.
    let bound = in_flight + 64;
    assert!(found.repeated_within <= bound, "{} of {bound} sent twice", found.repeated_within);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_are_replaced_one_by_one_lose_and_double_nothing() -> Result<()> {
    let mut fleet = Fleet::new(2, "local = \"never\"\n").await?;
    let leader = fleet.world.run_with(&["--role", "leader"]).await?;
    fleet.until_serving(2).await?;
    let traffic = Traffic::start(&fleet.world, 14, REST).await?;
    for _ in 0..2 {
        fleet.until_more(200).await?;
        fleet.add_worker().await?;
        fleet.until_serving(3).await.with_context(|| leader.log_tail())?;
        // Its log stands in its program's directory.
        let (_program, old) = fleet.workers.remove(0);
        old.signal("TERM")?;
        let (ended, log) = old.ended_with_log().await?;
        ensure!(ended.success() && log.contains("has heard of all that it sent"), "{ended}: {log}");
        fleet.until_serving(2).await?;
    }
    fleet.until_more(200).await?;
    let found = fleet.audit(traffic).await?;
    println!("{found:?}");
    assert_eq!(found.repeated_within, 0);
    Ok(())
}

/// Traffic, and something that befalls the bus; then all is as before, and nothing is lost.
async fn while_the_bus(befalls: impl AsyncFn(&mut Fleet) -> Result<()>, seed: u64) -> Result<()> {
    let mut fleet = Fleet::new(2, "").await?;
    let leader = fleet.world.run_with(&["--role", "leader"]).await?;
    fleet.until_serving(2).await?;
    let traffic = Traffic::start(&fleet.world, seed, REST).await?;
    fleet.until_more(200).await?;
    // It is 0.6 s on a machine that has nothing else to do, and was a lease and a second, three, each time. A busy machine
    // stands still now and then.
    let mut silences = Vec::new();
    while silences.last().is_none_or(|silence| *silence >= Duration::from_secs(2)) {
        assert!(silences.len() < 4, "nothing was sent for {silences:?}");
        let from = walhook_process::clock::unix_us();
        befalls(&mut fleet).await?;
        fleet.until_serving(2).await.with_context(|| leader.log_tail())?;
        fleet.until_more(200).await?;
        silences.push(silence(&fleet.world, from));
    }
    let found = fleet.audit(traffic).await?;
    println!("silence {silences:?}, {found:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bus_that_is_killed_for_four_seconds_loses_nothing_and_the_leader_sends_meanwhile()
-> Result<()> {
    let killed = async |fleet: &mut Fleet| {
        fleet.nats.kill()?;
        sleep(Duration::from_secs(4)).await;
        fleet.nats.start_again().await
    };
    while_the_bus(killed, 15).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn network_that_swallows_all_between_leader_and_bus_loses_nothing() -> Result<()> {
    let swallowed = async |fleet: &mut Fleet| {
        fleet.network.set(Network::Swallows);
        sleep(Duration::from_secs(4)).await;
        fleet.network.set(Network::Passes);
        Ok(())
    };
    while_the_bus(swallowed, 16).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bus_that_is_frozen_for_four_seconds_loses_nothing() -> Result<()> {
    let frozen = async |fleet: &mut Fleet| {
        fleet.nats.signal("STOP")?;
        sleep(Duration::from_secs(4)).await;
        fleet.nats.signal("CONT")
    };
    while_the_bus(frozen, 17).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_commands_work_as_without_workers_and_workers_send_what_they_ask() -> Result<()> {
    let nats = Nats::start("max_payload: 2MB").await?;
    let sections = format!(
        "[workers]\nurl = \"{}\"\nlocal = \"never\"\n\
         [delivery]\nretry_base = \"10ms\"\nretry_cap = \"20ms\"\nretry_for = \"0s\"\n",
        nats.url()
    );
    let mut world = World::with(&sections, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    let leader = world.run_with(&["--role", "leader"]).await?;
    let mut program = worker(&nats)?;
    let worker = run(&mut program).await?;
    world.until_metric("walhook_workers{state=\"serving\"}", "1").await?;
    let anchor = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walhook_anchor'";
    world.until(anchor, "1").await?;
    world.settled().await?;
    let from = world.value("SELECT frontier FROM walhook.checkpoint").await?;
    for id in 1..=10 {
        world.subscribe(id, 1).await?;
    }
    world.delivered(10).await?;

    world.walhook_json(&["endpoints", "pause", "1", "--reason", "moving"]).await?;
    for id in 11..=20 {
        world.subscribe(id, 1).await?;
    }
    let pending = "SELECT count(*) FROM walhook.deliveries_pending";
    world.until(pending, "10").await?;
    world.walhook_json(&["endpoints", "resume", "1"]).await?;
    world.delivered(20).await?;
    world.until(pending, "0").await?;

    world.mock.set_behaviour("/1", Behaviour::status(StatusCode::BAD_GATEWAY));
    world.subscribe(21, 1).await?;
    world.until("SELECT count(*) FROM walhook.dead_letters", "1").await?;
    world.mock.set_behaviour("/1", Behaviour::ok());
    let retried = world.walhook_json(&["dead-letters", "retry", "--endpoint", "1"]).await?;
    ensure!(retried["done"] == 1 && retried["finished"] == true, "{retried}");

    let replay = world.walhook_json(&["replay", "start", "--from", &from]).await?;
    ensure!(replay["done"] == 21 && replay["failed"] == 0, "{replay}");
    let reset = world.walhook_json(&["checkpoint", "reset", "--to", &from, "--yes"]).await?;
    ensure!(reset["done"] == 21, "everything since, as a replay: {reset}");

    ensure!(leader.terminate().await?.success());
    ensure!(worker.terminate().await?.success());
    Ok(())
}
