//! Where requests go, and what happens when none may.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::{PATIENCE, RULES, SECRET, World, answers, get, text};

#[tokio::test]
async fn log_mode_sends_nothing_and_settles_each_delivery_by_logging_it() -> Result<()> {
    let mut world = World::with("[delivery]\nmode = \"log\"", RULES, &[]).await?;
    let running = world.run().await?;
    running.until_logged("NOTHING IS SENT").await?;
    world.hook(7, 42, "").await?;
    world.hook(8, 42, "").await?;
    for id in 1..=3 {
        world.subscribe(id, 42).await?;
    }
    // The checkpoint passes them: nothing is kept back to be sent later.
    world.settled().await?;
    world.until_metric("walhook_deliveries_total{result=\"logged\"}", "6").await?;
    world.until_metric("walhook_deliveries_total{result=\"delivered\"}", "0").await?;
    world.until_metric("walhook_attempts_total{outcome=\"2xx\"}", "0").await?;
    ensure!(answers(world.admin, "/readyz").await);

    let log = running.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("not sent")).collect();
    ensure!(lines.len() == 6, "{log}");
    for part in ["event=evt_", "type=subscriber.created", "account=42", "endpoint=7"] {
        ensure!(lines.iter().any(|line| line.contains(part)), "{part} is not in {lines:?}");
    }
    ensure!(!log.contains("a@example.com") && !log.contains(SECRET), "{log}");

    let status = text(&world.walhook(&["status"]).await?.stdout);
    ensure!(status.contains("MODE          log: nothing is sent"), "{status}");
    ensure!(world.walhook_json(&["status"]).await?["mode"] == "log");
    // The delivery log tells no lie, and what would be sent again is not given up for a line.
    let counts = world.walhook_json(&["events", "count", "--outcome", "logged"]).await?;
    ensure!(counts["lines"] == 6 && counts["by"][0]["status"].is_null(), "{counts}");
    let taken = world.walhook_json(&["events", "count", "--outcome", "delivered"]).await?;
    ensure!(taken["lines"] == 0, "{taken}");
    let listed = world.walhook_json(&["events", "list", "--limit", "1"]).await?;
    let line = &listed["lines"][0];
    ensure!(line["what"] == "logged", "{listed}");
    let event = line["event_id"].as_str().context("an id")?;
    let shown = world.walhook_json(&["events", "show", event]).await?;
    ensure!(shown["deliveries"][0]["state"] == "logged", "{shown}");
    for again in [
        &["dead-letters", "retry", "--all"][..],
        &["replay", "start", "--from", "oldest"],
        &["events", "resend", event],
    ] {
        let refused = world.walhook(again).await?;
        let told = text(&refused.stderr);
        ensure!(refused.status.code() == Some(1), "{again:?}: {told}");
        ensure!(told.contains("nothing is sent from here"), "{again:?}: {told}");
    }
    let stats = world.mock.stats();
    ensure!(stats.received == 0 && stats.in_flight == 0, "{stats:?}");
    Ok(())
}

/// A proxy that opens every tunnel that it does not refuse, and keeps the heads of what it was asked.
struct Proxy {
    address: SocketAddr,
    /// Whether it answers 407 to all.
    refuses: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<String>>>,
    _task: JoinSet<Result<()>>,
}

impl Proxy {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let refuses = Arc::<AtomicBool>::default();
        let (log, refused) = (Arc::clone(&asked), Arc::clone(&refuses));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut tunnels = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await?;
                tunnels.spawn(tunnel(stream, Arc::clone(&log), Arc::clone(&refused)));
            }
        });
        Ok(Self { address, refuses, asked, _task: task })
    }
}

async fn tunnel(
    mut stream: TcpStream,
    asked: Arc<Mutex<Vec<String>>>,
    refuses: Arc<AtomicBool>,
) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = text(&head);
    let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
    asked.lock().unwrap().push(head);
    if refuses.load(Ordering::Relaxed) {
        stream.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await?;
        return Ok(());
    }
    if target == "*" {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await?;
        return Ok(());
    }
    let mut endpoint = TcpStream::connect(target).await?;
    stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    tokio::io::copy_bidirectional(&mut stream, &mut endpoint).await?;
    Ok(())
}

#[tokio::test]
async fn proxy_gets_every_request_by_address_and_its_password_is_never_shown() -> Result<()> {
    let proxy = Proxy::start().await?;
    let mut world = World::with("", RULES, &[]).await?;
    let url = format!("http://me:hush-password@{}", proxy.address);
    world.reconfigure("[egress]\n", &format!("[egress]\nproxy = \"{url}\"\n"))?;
    let running = world.run().await?;
    // By name: the proxy must be asked for the address all the same.
    let endpoint = world.mock.url("/7").replace("127.0.0.1", "localhost");
    let insert = "INSERT INTO webhooks (id, account_id, url, secret) VALUES (7, 42, $1, $2)";
    world.sql.execute(insert, &[&endpoint, &SECRET]).await?;
    for id in 1..=5 {
        world.subscribe(id, 42).await?;
    }
    let received = world.delivered(5).await?;
    let host = world.mock.address().to_string().replace("127.0.0.1", "localhost");
    ensure!(received.iter().all(|request| request.headers["host"] == host));
    let asked = proxy.asked.lock().unwrap().clone();
    let connect = format!("CONNECT {} HTTP/1.1", world.mock.address());
    let basic = "proxy-authorization: Basic bWU6aHVzaC1wYXNzd29yZA==";
    ensure!(!asked.is_empty(), "nothing went through the proxy");
    ensure!(
        asked.iter().all(|head| head.starts_with(&connect) && head.contains(basic)),
        "{asked:?}"
    );

    let shown = world.walhook(&["config", "show"]).await?;
    let shown = text(&shown.stdout) + &text(&shown.stderr);
    ensure!(shown.contains("proxy") && !shown.contains("hush"), "{shown}");
    ensure!(!running.log().contains("hush") && !running.log().contains("bWU6"));
    Ok(())
}

#[tokio::test]
async fn check_judges_the_proxy_by_endpoints_that_are_well() -> Result<()> {
    let proxy = Proxy::start().await?;
    let world = World::with("", RULES, &[]).await?;
    let url = format!("http://{}", proxy.address);
    world.reconfigure("[egress]\n", &format!("[egress]\nproxy = \"{url}\"\n"))?;
    // Nobody listens there, each has a host of its own, and all of them stand before the one that is well.
    for id in 10..20 {
        world.hook(id, id, "").await?;
        world
            .sql
            .batch_execute(&format!(
                "UPDATE webhooks SET url = 'http://127.0.0.{id}:1/' WHERE id = {id};
                 INSERT INTO walhook.backlog (pipeline, endpoint, account, deferred, stopped_us, failing_since)
                     VALUES ('walhook', '{id}', '{id}', 1, 0, '2026-01-02T03:04:05Z')"
            ))
            .await?;
    }
    world.hook(2, 2, "").await?;
    let check = text(&world.walhook(&["check"]).await?.stdout);
    ensure!(check.contains("pass  egress.proxy: opens tunnels"), "{check}");
    Ok(())
}

#[tokio::test]
async fn proxy_that_fails_is_a_trouble_of_ours_and_no_endpoint_is_to_blame() -> Result<()> {
    let proxy = Proxy::start().await?;
    proxy.refuses.store(true, Ordering::Relaxed);
    let sections = "[delivery]\nretry_base = \"100ms\"\nretry_cap = \"200ms\"\nretry_for = \"1s\"\n\
                    disable_after = \"2s\"\n";
    let mut world = World::with(sections, RULES, &[]).await?;
    let url = format!("http://me:hush-password@{}", proxy.address);
    world.reconfigure("[egress]\n", &format!("[egress]\nproxy = \"{url}\"\n"))?;
    let running = world.run().await?;
    for id in 1..=20 {
        world.hook(id, id, "").await?;
    }
    for id in 0..100 {
        world.subscribe(id, 1 + id % 20).await?;
    }
    running.until_logged("egress.proxy lets nothing through").await?;
    // Those that were under way together found it failing each, and each of them is known by then.
    world.until_metric("walhook_in_flight", "0").await?;
    let (since, before) = (Instant::now(), proxy.asked.lock().unwrap().len());
    let why = world.until_unready("407 Proxy").await?;
    ensure!(why.contains("407 Proxy Authentication Required; give the user"), "{why}");
    ensure!(why.contains("no endpoint is blamed") && why.contains("fix: start the proxy"), "{why}");
    let status = text(&world.walhook(&["status"]).await?.stdout);
    ensure!(status.contains("FAILING") && status.contains("407 Proxy"), "{status}");
    let check = world.walhook(&["check"]).await?;
    let said = text(&check.stdout);
    ensure!(said.contains("fail  egress.proxy: it answered 407"), "{said}");
    // For longer than an endpoint that fails is kept.
    while since.elapsed() < Duration::from_secs(4) {
        ensure!(get(world.admin, "/readyz").await?.0 == 503);
        sleep(Duration::from_millis(200)).await;
    }
    let metrics = world.metrics().await?;
    let failing = "walhook_failing_seconds{delivery=\"stops\",part=\"proxy\"";
    let line = metrics.lines().find(|line| line.starts_with(failing)).unwrap_or_default();
    ensure!(!line.is_empty() && !line.ends_with(" 0"), "{line}");
    let asked = proxy.asked.lock().unwrap().len() - before;
    let most = 10 + 2 * usize::try_from(since.elapsed().as_secs())?;
    ensure!(asked <= most, "a proxy that fails was asked {asked} times");

    proxy.refuses.store(false, Ordering::Relaxed);
    world.delivered(100).await?;
    world.settled().await?;
    world.until_ready(true).await?;
    for query in ["dead_letters", "endpoint_state"] {
        world.until(&format!("SELECT count(*) FROM walhook.{query}"), "0").await?;
    }
    for series in ["walhook_breakers_open", "walhook_endpoints_stopped{state=\"disabled\"}"] {
        world.until_metric(series, "0").await?;
    }
    let opened = "walhook_endpoint_changes_total{change=\"breaker_opened\"}";
    world.until_metric(opened, "0").await?;
    let check = text(&world.walhook(&["check"]).await?.stdout);
    ensure!(check.contains("pass  egress.proxy: opens tunnels"), "{check}");
    for shown in [&why, &status, &said, &check, &running.log()] {
        ensure!(!shown.contains("hush") && !shown.contains("bWU6"), "{shown}");
    }
    Ok(())
}

/// An endpoint that reads a request and then does this, for ever.
async fn misbehaving(how: &'static [u8], again: bool) -> Result<(String, JoinSet<Result<()>>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await?;
            connections.spawn(async move {
                let _request = stream.read(&mut [0; 4096]).await;
                while stream.write_all(how).await.is_ok() && again {}
                // Until the client has gone, unless it is to be cut off.
                let _gone = stream.read(&mut [0; 4096]).await;
            });
        }
    });
    Ok((url, task))
}

#[tokio::test]
async fn case_30_endpoints_that_misbehave_cost_other_accounts_and_memory_nothing() -> Result<()> {
    let sections = "[delivery]\ntimeout = \"1s\"\nconnect_timeout = \"1s\"\nquick_attempts = 1\nretry_for = \"0s\"";
    let mut world = World::with(sections, RULES, &[]).await?;
    let mut servers = Vec::new();
    for (how, again) in [
        (&b""[..], false),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n", false),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n", true),
        (b"HTTP/1.1 200 OK\r\nx: ", true),
        (b"HTTP/1.1 500 Oops\r\ncontent-length: 99999999999\r\n\r\n", true),
        (b"220 mail ESMTP\r\n", true),
        (
            b"HTTP/1.1 302 Go\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n",
            false,
        ),
    ] {
        servers.push(misbehaving(how, again).await?);
    }
    for (n, (url, _)) in servers.iter().enumerate() {
        let id = i64::try_from(n)?;
        let insert = "INSERT INTO webhooks (id, account_id, url, secret) VALUES ($1, $1, $2, $3)";
        world.sql.execute(insert, &[&id, url, &SECRET]).await?;
    }
    world.hook(99, 99, "").await?;
    let running = world.run().await?;
    let insert = "INSERT INTO subscribers (id, account_id)
        SELECT n, CASE WHEN n % 8 = 7 THEN 99 ELSE n % 8 END FROM generate_series(0, 799) n";
    world.sql.batch_execute(insert).await?;
    // The well-behaved account has its hundred while the others' time out one after the other.
    let received = world.delivered(100).await?;
    ensure!(received.iter().all(|request| request.path == "/99"));
    let resident = running.resident_bytes()?;
    ensure!(resident < 200 << 20, "{resident} bytes are resident");

    // Each of the others is a failed attempt with its reason.
    let deadline = Instant::now() + PATIENCE;
    for outcome in ["timeout", "protocol", "3xx", "5xx"] {
        let none = format!("walhook_attempts_total{{outcome=\"{outcome}\"}} 0\n");
        while world.metrics().await?.contains(&none) {
            ensure!(Instant::now() < deadline, "no attempt ended as {outcome}");
            sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}
