//! A leader with workers in traffic, and what becomes of it when one of them, or what is between, goes away.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};
use walhook_dispatch::dispatcher::UNPERSISTED_MAX;
use walhook_process::clock::unix_us;
use walhook_testkit::admin::without_pipeline;
use walhook_testkit::nats::Nats;
use walhook_testkit::program::{Program, Running};
use walhook_testkit::receiver::{Receiver, Settings};

use crate::support::audit::{Audit, Demand, End, Endpoint, audit, settled};
use crate::support::log_audit::{audit_log, left_out};
use crate::support::traffic::{self, Traffic};
use crate::support::{PATIENCE, RULES, SECRET, World};
use crate::turns::until_counted;

/// The pause between two transactions of a writer's session is at most this.
const REST: Duration = Duration::from_millis(20);

/// A leader, its workers, and what they stand on.
struct Fleet {
    nats: Nats,
    world: World,
    leader: Running,
    workers: Vec<(Program, Running)>,
    endpoints: Vec<Endpoint>,
    /// Lines of the delivery log that leaders before this one have left out.
    left_out: u64,
}

impl Fleet {
    /// So many workers serve.
    async fn start(workers: usize) -> Result<Self> {
        let nats = Nats::start("").await?;
        let sections = format!("[workers]\nurl = \"{}\"\n", nats.url());
        let mut world = traffic::world(&sections, &[]).await?;
        let endpoints = endpoints(&world).await?;
        let leader = lead(&mut world).await?;
        let mut fleet = Self { nats, world, leader, workers: Vec::new(), endpoints, left_out: 0 };
        for _ in 0..workers {
            fleet.hire().await?;
        }
        Ok(fleet)
    }

    /// One more worker.
    async fn hire(&mut self) -> Result<()> {
        let mut program = super::worker(&self.nats)?;
        let running = super::run(&mut program).await?;
        self.workers.push((program, running));
        self.until_serving(self.workers.len()).await
    }

    async fn until_serving(&self, workers: usize) -> Result<()> {
        let series = "walhook_workers{state=\"serving\"}";
        let serving = self.world.until_metric(series, &workers.to_string()).await;
        serving.with_context(|| self.leader.log_tail())
    }

    async fn until_lost(&self, workers: u64) -> Result<()> {
        // A busy machine may lose one more, for a moment.
        until_counted(&self.world, "walhook_workers_lost_total", workers).await
    }

    /// Waits until so many more requests have been taken.
    async fn until_taken(&self, more: u64) -> Result<()> {
        let wanted = self.world.mock.stats().taken + more;
        let what = format!("{more} requests more");
        let taken =
            self.world.mock.wait_until(&what, PATIENCE, |stats| stats.taken >= wanted).await;
        taken.with_context(|| self.leader.log_tail())
    }

    /// Ends the traffic, and compares what was committed, and what the delivery log says, with what was received.
    async fn audit(&self, traffic: Traffic, lives: &[End]) -> Result<Audit> {
        let oracle = traffic.stop().await;
        let all = settled(&self.world, &self.endpoints).await;
        all.with_context(|| self.leader.log_tail())?;
        let left_out = self.left_out + self.leaves_out().await?;
        audit_log(&self.world, &self.endpoints, left_out).await?;
        audit(&self.world, oracle, &self.endpoints, lives).await
    }

    /// How one life of the leader ends.
    async fn end(&mut self) -> Result<End> {
        self.left_out += self.leaves_out().await?;
        Ok(End { received: self.world.mock.stats().received, at_unix_us: unix_us() })
    }

    /// Lines of the delivery log that the leader has left out.
    async fn leaves_out(&self) -> Result<u64> {
        left_out(&self.world.metrics().await?).context("it does not say")
    }
}

pub(super) async fn endpoints(world: &World) -> Result<Vec<Endpoint>> {
    let mut endpoints = Vec::new();
    for (id, account, query) in
        [(11, 1, ""), (21, 2, "?delay=200ms"), (31, 3, "?delay=20ms"), (42, 4, "")]
    {
        world.hook(id, account, query).await?;
        endpoints.push(Endpoint { id, account, demand: Demand::Delivered, since: 0 });
    }
    Ok(endpoints)
}

pub(super) async fn lead(world: &mut World) -> Result<Running> {
    let admin = world.admin;
    let mut leader = world.spawn_role("leader")?;
    leader.until_leading(admin).await?;
    Ok(leader)
}

/// How often the leader was answered by a worker.
async fn sent_by_workers(world: &World) -> Result<u64> {
    let text = without_pipeline(&world.metrics().await?);
    let count = text.lines().find_map(|l| l.strip_prefix("walhook_bus_overhead_seconds_count "));
    Ok(count.context("no worker is counted")?.parse()?)
}

/// What the leader did not send, for a worker of the one before had.
async fn adopted(world: &World) -> Result<u64> {
    let text = without_pipeline(&world.metrics().await?);
    let mut sum = 0;
    for result in ["delivered", "running"] {
        let series = format!("walhook_adopted_total{{result=\"{result}\"}} ");
        let count = text.lines().find_map(|line| line.strip_prefix(&series));
        sum += count.context("it is not counted")?.parse::<u64>()?;
    }
    Ok(sum)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_stop_of_workers_and_leader_in_traffic_loses_and_doubles_nothing() -> Result<()> {
    let mut fleet = Fleet::start(2).await?;
    let traffic = Traffic::start(&fleet.world, 31, REST).await?;
    for _ in 0..2 {
        fleet.until_taken(100).await?;
        let (_program, running) = fleet.workers.remove(0);
        running.signal("TERM")?;
        let (status, log) = running.ended_with_log().await?;
        ensure!(status.success(), "{log}");
        fleet.hire().await?;
    }
    ensure!(sent_by_workers(&fleet.world).await? > 150, "the leader sent most itself");
    fleet.until_taken(100).await?;
    let end = fleet.end().await?;
    fleet.leader.signal("TERM")?;
    ensure!(fleet.leader.wait().await?.success(), "{}", fleet.leader.log_tail());
    fleet.leader = lead(&mut fleet.world).await?;
    fleet.until_serving(2).await?;
    fleet.until_taken(100).await?;
    let audit = fleet.audit(traffic, &[end]).await?;
    println!("rolling stop: {} deliveries, repeated {:?}", audit.delivered, audit.repeated);
    ensure!(audit.repeated_within == 0 && audit.repeated == [0], "{audit:?}");
    Ok(())
}

/// How a leader ends whose standby serves it.
async fn standby_serves_and_then_leads(
    seed: u64,
    ends: impl AsyncFnOnce(&mut Running) -> Result<()>,
) -> Result<(Running, World)> {
    let nats = Nats::start("").await?;
    let sections = format!("[workers]\nurl = \"{}\"\n", nats.url());
    let mut world = traffic::world(&sections, &[]).await?;
    let endpoints = endpoints(&world).await?;
    let first_admin = walhook_testkit::address::free_address()?;
    let mut leader = world.spawn_with(&[("WALHOOK_ADMIN__LISTEN", &first_admin.to_string())])?;
    leader.until_leading(first_admin).await?;
    let mut standby = world.spawn_with(&[])?;
    standby.until_logged("serving a leader").await?;
    let traffic = Traffic::start(&world, seed, REST).await?;
    let until_taken = async |more: u64, log: &Running| {
        let wanted = world.mock.stats().taken + more;
        let taken = world.mock.wait_until("more", PATIENCE, |stats| stats.taken >= wanted).await;
        taken.with_context(|| log.log_tail())
    };
    until_taken(200, &leader).await?;
    let text = without_pipeline(&world.metrics().await?);
    let carried = text.lines().find_map(|l| l.strip_prefix("walhook_worker_requests_total "));
    ensure!(carried.context("it is not counted")?.parse::<u64>()? > 100, "{carried:?}");
    let end = End { received: world.mock.stats().received, at_unix_us: unix_us() };
    ends(&mut leader).await?;
    standby.until_leading(world.admin).await?;
    until_taken(200, &standby).await?;
    let oracle = traffic.stop().await;
    settled(&world, &endpoints).await.with_context(|| standby.log_tail())?;
    let audit = audit(&world, oracle, &endpoints, &[end]).await?;
    println!("{} deliveries, repeated {:?}", audit.delivered, audit.repeated);
    ensure!(
        audit.repeated_within == 0 && audit.repeated == [0],
        "{audit:?}: {}",
        standby.log_tail()
    );
    Ok((standby, world))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standby_serves_the_leader_and_then_leads_and_nothing_is_lost_or_doubled() -> Result<()> {
    let stopped = async |leader: &mut Running| {
        leader.signal("TERM")?;
        ensure!(leader.wait().await?.success(), "{}", leader.log_tail());
        Ok(())
    };
    let (standby, _world) = standby_serves_and_then_leads(36, stopped).await?;
    ensure!(standby.terminate().await?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standby_that_served_a_killed_leader_sends_nothing_again_that_it_carried_itself()
-> Result<()> {
    let killed = async |leader: &mut Running| leader.kill_and_wait().await;
    let (standby, world) = standby_serves_and_then_leads(38, killed).await?;
    let adopted = adopted(&world).await?;
    println!("{adopted} taken over from itself");
    ensure!(adopted > 0, "{}", standby.log_tail());
    ensure!(standby.terminate().await?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_killed_with_all_in_flight_at_workers_repeats_nothing() -> Result<()> {
    let mut fleet = Fleet::start(2).await?;
    let traffic = Traffic::start(&fleet.world, 33, REST).await?;
    let (mut ends, mut in_flight, mut taken_over) = (Vec::new(), 0, 0);
    for _ in 0..3 {
        fleet.until_taken(100).await?;
        in_flight += fleet.world.in_flight().await.unwrap_or_default();
        ends.push(fleet.end().await?);
        fleet.leader.kill_and_wait().await?;
        fleet.leader = lead(&mut fleet.world).await?;
        fleet.until_serving(2).await?;
        fleet.until_taken(100).await?;
        taken_over += adopted(&fleet.world).await?;
    }
    let audit = fleet.audit(traffic, &ends).await?;
    println!(
        "leader killed three times with {in_flight} in flight in all: {taken_over} of the leader before's taken over, \
         {:?} repeated",
        audit.repeated
    );
    ensure!(audit.repeated == [0; 3] && audit.repeated_within == 0, "{audit:?}");
    ensure!(taken_over > 0, "{}", fleet.leader.log_tail());
    Ok(())
}

/// Accounts of one endpoint each, which takes four requests at a time at first.
const SLOW: i64 = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_killed_with_a_thousand_in_flight_at_workers_repeats_none_of_them() -> Result<()> {
    let nats = Nats::start("max_payload: 2MB").await?;
    // They are in flight together although a busy machine takes long to send them.
    let sections = format!(
        "[workers]\nurl = \"{}\"\nlocal = \"never\"\n[delivery]\ntimeout = \"60s\"\n",
        nats.url()
    );
    let mut world = World::with(&sections, RULES, &[]).await?;
    for id in 1..=SLOW {
        world.hook(id, id, "?delay=12s").await?;
    }
    let mut leader = lead(&mut world).await?;
    let mut workers = Vec::new();
    for _ in 0..2 {
        let mut program = super::worker(&nats)?;
        let running = super::run(&mut program).await?;
        workers.push((program, running));
    }
    world.until_metric("walhook_workers{state=\"serving\"}", "2").await?;
    let insert = format!(
        "INSERT INTO subscribers SELECT n, 1 + n % {SLOW} FROM generate_series(1, {}) n",
        4 * SLOW
    );
    world.sql.batch_execute(&insert).await?;
    let many = |stats: &walhook_testkit::receiver::Stats| stats.in_flight >= 1_000;
    world.mock.wait_until("a thousand in flight", PATIENCE, many).await?;
    leader.kill_and_wait().await?;
    let in_flight = world.mock.stats().in_flight;
    let leader = lead(&mut world).await?;
    world.delivered(4 * u64::try_from(SLOW)?).await.with_context(|| leader.log_tail())?;
    world.settled().await?;
    let duplicates = world.mock.stats().duplicates;
    println!("leader killed with {in_flight} in flight at workers: {duplicates} sent twice");
    ensure!(duplicates == 0, "{duplicates} of {in_flight}: {}", leader.log_tail());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_killed_with_one_of_its_workers_repeats_no_more_than_that_one_knew() -> Result<()> {
    let mut fleet = Fleet::start(2).await?;
    let traffic = Traffic::start(&fleet.world, 37, REST).await?;
    fleet.until_taken(100).await?;
    let in_flight = fleet.world.in_flight().await.unwrap_or_default();
    let end = fleet.end().await?;
    fleet.leader.kill_and_wait().await?;
    let (_, killed) = fleet.workers.remove(0);
    killed.kill().await?;
    let began = Instant::now();
    fleet.leader = lead(&mut fleet.world).await?;
    fleet.until_taken(20).await?;
    println!("20 more {:?} after the kill", began.elapsed());
    fleet.until_serving(1).await?;
    let audit = fleet.audit(traffic, &[end]).await?;
    println!("leader and worker killed with {in_flight} in flight: {:?} repeated", audit.repeated);
    // Beside what was in flight, what it had told a leader that did not store it.
    ensure!(audit.repeated[0] <= in_flight + u64::try_from(UNPERSISTED_MAX)?, "{audit:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_that_was_frozen_begins_nothing_after_the_thaw() -> Result<()> {
    let fleet = Fleet::start(2).await?;
    let traffic = Traffic::start(&fleet.world, 34, REST).await?;
    fleet.until_taken(100).await?;
    let frozen = &fleet.workers[0].1;
    frozen.signal("STOP")?;
    fleet.until_lost(1).await?;
    fleet.audit(traffic, &[]).await?;
    let before = fleet.world.mock.stats();
    frozen.signal("CONT")?;
    fleet.until_serving(2).await?;
    let after = fleet.world.mock.stats();
    // What it had begun before may still be answered; nothing new comes.
    ensure!(after.received <= before.received + before.in_flight, "{before:?} {after:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bus_that_is_killed_for_four_seconds_loses_nothing_and_the_leader_sends_meanwhile()
-> Result<()> {
    let mut fleet = Fleet::start(2).await?;
    let traffic = Traffic::start(&fleet.world, 35, REST).await?;
    fleet.until_taken(100).await?;
    fleet.nats.kill()?;
    let killed = Instant::now();
    fleet.world.until_metric("walhook_bus_connected", "0").await?;
    fleet.until_taken(50).await?;
    println!("the bus is away: 50 more after {:?}", killed.elapsed());
    sleep(Duration::from_secs(4).saturating_sub(killed.elapsed())).await;
    fleet.nats.start_again().await?;
    fleet.until_serving(2).await?;
    let sent = sent_by_workers(&fleet.world).await?;
    fleet.until_taken(100).await?;
    ensure!(sent_by_workers(&fleet.world).await? > sent, "the workers get nothing any more");
    let audit = fleet.audit(traffic, &[]).await?;
    println!("bus killed: {} repeated of {}", audit.repeated_within, audit.delivered);
    Ok(())
}

/// So many hosts that each of two workers is preferred for some.
const HOSTS: i64 = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_that_reaches_no_endpoint_is_quarantined_and_opens_no_breaker() -> Result<()> {
    let nats = Nats::start("").await?;
    let sections = format!("[workers]\nurl = \"{}\"\negress = \"own\"\n", nats.url());
    let mut world = World::with(&sections, RULES, &[]).await?;
    let mut receivers = Vec::new();
    for id in 1..=HOSTS {
        let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), Settings::default()).await?;
        let insert = "INSERT INTO webhooks (id, account_id, url, secret) VALUES ($1, 1, $2, $3)";
        world.sql.execute(insert, &[&id, &receiver.url("/"), &SECRET]).await?;
        receivers.push(receiver);
    }
    let leader = lead(&mut world).await?;
    let mut well = super::worker(&nats)?;
    let _well = super::run(&mut well).await?;
    // What it may contact is nothing: each request ends before it is sent.
    let mut cut_off = super::worker(&nats)?;
    cut_off.edit_config("allow = [\"127.0.0.0/8\"]", "deny = [\"127.0.0.0/8\"]")?;
    let _cut_off = super::run(&mut cut_off).await?;
    world.until_metric("walhook_workers{state=\"serving\"}", "2").await?;
    let (mut rows, began) = (0, Instant::now());
    loop {
        rows += 1;
        world.subscribe(rows, 1).await?;
        let text = without_pipeline(&world.metrics().await?);
        if text.contains("walhook_workers{state=\"quarantined\"} 1\n") {
            break;
        }
        ensure!(began.elapsed() < PATIENCE, "{}", leader.log_tail());
        sleep(Duration::from_millis(20)).await;
    }
    println!("quarantined {:?} after the first event, with {rows} events", began.elapsed());
    for receiver in &receivers {
        let all = u64::try_from(rows)?;
        let taken = receiver.wait_until("all", PATIENCE, |stats| stats.distinct >= all).await;
        taken.with_context(|| leader.log_tail())?;
        ensure!(receiver.stats().duplicates == 0, "{:?}", receiver.stats());
    }
    let opened = "walhook_endpoint_changes_total{change=\"breaker_opened\"}";
    world.until_metric(opened, "0").await?;
    Ok(())
}
