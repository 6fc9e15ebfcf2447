//! The process runs out of files or ports of its own: nobody is blamed for it, and nothing is lost.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};
use walhook_testkit::receiver::Behaviour;

use crate::support::{PATIENCE, RULES, Running, World, get, text};

/// Attempts that were not sent, for want of something of walhook's own.
const LOCAL: &str = "walhook_attempts_total{outcome=\"local\"}";

fn limit(running: &Running, soft: u64) -> Result<u64> {
    let pid = Pid::from_raw(i32::try_from(running.pid()?)?).context("no pid")?;
    let limit = Rlimit { current: Some(soft), ..getrlimit(Resource::Nofile) };
    let before = prlimit(Some(pid), Resource::Nofile, limit)?;
    before.current.context("no limit")
}

/// The least number of a file that the process does not have open: with it as the limit there is no other.
fn first_free(running: &Running) -> Result<u64> {
    let files = std::fs::read_dir(format!("/proc/{}/fd", running.pid()?))?;
    let open: BTreeSet<u64> =
        files.filter_map(|file| file.ok()?.file_name().to_str()?.parse().ok()).collect();
    (0..).find(|n| !open.contains(n)).context("all are open")
}

async fn value(world: &World, series: &str) -> Result<u64> {
    let metrics = world.metrics().await?;
    let line = metrics.lines().find_map(|line| line.strip_prefix(series));
    Ok(line.with_context(|| format!("no {series}"))?.trim().parse()?)
}

async fn until_at_least(world: &World, series: &str, wanted: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while value(world, series).await? < wanted {
        ensure!(
            Instant::now() < deadline,
            "{series} does not reach {wanted}:\n{}",
            world.metrics().await?
        );
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// No attempt failed otherwise, nothing is dead, and no breaker is open.
async fn nobody_is_blamed(world: &World) -> Result<()> {
    for outcome in ["dns", "connect", "timeout", "protocol", "tls", "4xx", "5xx"] {
        let series = format!("walhook_attempts_total{{outcome=\"{outcome}\"}}");
        ensure!(value(world, &series).await? == 0, "an attempt ended as {outcome}");
    }
    for series in ["walhook_breakers_open", "walhook_dead_letters"] {
        ensure!(value(world, series).await? == 0, "{series}");
    }
    let opened = "walhook_endpoint_changes_total{change=\"breaker_opened\"}";
    ensure!(value(world, opened).await? == 0, "a breaker opened");
    Ok(())
}

#[tokio::test]
async fn endpoints_are_not_blamed_while_no_file_can_be_opened() -> Result<()> {
    let mut world = World::new().await?;
    for id in 1..=30 {
        world.hook(id, id, "").await?;
    }
    // A file that is closed meanwhile lets no more than one request a second through.
    world.mock.set_default(Behaviour { delay: Duration::from_secs(1), ..Behaviour::ok() });
    let running = world.run().await?;
    running.until_logged("the limit of open files suffices for all slots").await?;
    // Every session has its files once the first event has arrived.
    world.subscribe(1_000, 1).await?;
    world.delivered(1).await?;
    let before = limit(&running, first_free(&running)?)?;
    for id in 0..240 {
        world.subscribe(id, 1 + id % 30).await?;
    }
    // More for each than a breaker takes.
    until_at_least(&world, LOCAL, 400).await?;
    // More than there are descriptors set aside: each is there for the next.
    for _ in 0..64 {
        ensure!(get(world.admin, "/livez").await?.0 == 200);
    }
    let (status, body) = get(world.admin, "/readyz").await?;
    ensure!(status == 503 && body.contains("LimitNOFILE"), "{status} {body}");
    let faults = value(&world, "walhook_local_faults_total{kind=\"descriptors\"}").await?;
    ensure!(faults >= 400, "{faults}");
    nobody_is_blamed(&world).await?;
    let lines = running.log().lines().filter(|line| line.contains("no open file left")).count();
    ensure!((1..20).contains(&lines), "{lines} lines for {faults} faults");

    limit(&running, before)?;
    world.mock.clear_default();
    let received = world.delivered(241).await?;
    world.settled().await?;
    ensure!(received.iter().all(|request| request.attempt == 1), "none was an attempt");
    nobody_is_blamed(&world).await?;
    world.until("SELECT count(*) FROM walhook.dead_letters", "0").await?;
    let deadline = Instant::now() + PATIENCE;
    while get(world.admin, "/readyz").await?.0 != 200 {
        ensure!(Instant::now() < deadline, "it does not become ready again");
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

#[tokio::test]
async fn run_and_check_say_what_the_slots_need_where_the_limit_is_low() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 1, "").await?;
    let running = world.spawn_limited(300)?;
    running.until_logged("fewer requests are sent at once than [scheduler] says").await?;
    running.until_logged("LimitNOFILE=1376").await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    for (limit, verdict) in [(300, "warn"), (2_000, "pass")] {
        let said = text(&world.walhook_limited(&["check"], limit).await?.stdout);
        let expected = format!("{verdict}  open files: the limit here is {limit}");
        ensure!(said.contains(&expected), "{said}");
    }
    Ok(())
}

/// Runs the test below where there are few ports, for which it takes root.
#[tokio::test]
async fn endpoints_are_not_blamed_while_no_port_is_left() -> Result<()> {
    let inside = "ip link set lo up && echo 40000 40063 > /proc/sys/net/ipv4/ip_local_port_range && \
                  exec \"$0\" --exact --ignored --nocapture descriptors::few_ports";
    let exe = std::env::current_exe()?;
    let may = Command::new("unshare").args(["-n", "true"]).stderr(Stdio::null()).status().await;
    if !may.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no right to make a network namespace (unshare -n)");
        return Ok(());
    }
    let mut command = Command::new("unshare");
    command.args(["-n", "sh", "-c", inside]).arg(exe).kill_on_drop(true);
    let output = timeout(PATIENCE * 3, command.output()).await??;
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success() && said.contains("1 passed"), "{said}");
    Ok(())
}

#[tokio::test]
#[ignore = "needs a network namespace with few ports: see the test above"]
async fn few_ports() -> Result<()> {
    let rules = format!("[delivery]\ntimeout = \"30s\"\n{RULES}");
    let mut world = World::with("", &rules, &[]).await?;
    for id in 1..=30 {
        world.hook(id, id, "").await?;
        let slow = Behaviour { delay: Duration::from_secs(1), ..Behaviour::ok() };
        world.mock.set_behaviour(&format!("/{id}"), slow);
    }
    let _running = world.run().await?;
    for id in 0..600 {
        world.subscribe(id, 1 + id % 30).await?;
    }
    until_at_least(&world, LOCAL, 100).await?;
    ensure!(value(&world, "walhook_local_faults_total{kind=\"ports\"}").await? >= 100);
    let (status, body) = get(world.admin, "/readyz").await?;
    ensure!(status == 200 && body.contains("ip_local_port_range"), "{status} {body}");
    world.delivered(600).await?;
    nobody_is_blamed(&world).await
}
