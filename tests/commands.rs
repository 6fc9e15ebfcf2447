//! The commands, as operators and scripts call them: what they print, and what they end with.

use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::{Instant, timeout};
use walhook_testkit::address::free_address;
use walhook_testkit::cluster::{Cluster, StopMode};
use walhook_testkit::receiver::Behaviour;

use crate::support::{PATIENCE, RULES, SECRET, World, answers, get, text};

/// What makes a delivery end as a dead letter in no time.
const IMPATIENT: &str = "[delivery]\nretry_base = \"10ms\"\nretry_cap = \"20ms\"\nretry_for = \"0s\"\ntimeout = \"60s\"\n\
                         header_prefix = \"acme\"";

/// A client of the admin server that says nothing would be waited for for a second at least.
const AT_ONCE: Duration = Duration::from_millis(800);

const ALL: [&str; 16] = [
    "demo",
    "setup",
    "check",
    "run",
    "status",
    "health",
    "checkpoint",
    "deferred",
    "dead-letters",
    "endpoints",
    "events",
    "recover",
    "teardown",
    "mock-endpoint",
    "config",
    "completions",
];

/// Runs the program without a world, so without a database.
async fn walhook(args: &[&str]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walhook"));
    command.args(args).stdin(std::process::Stdio::null()).kill_on_drop(true);
    Ok(timeout(PATIENCE, command.output()).await??)
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

/// Both streams.
fn said(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

#[tokio::test]
async fn help_of_every_command_says_what_it_does() -> Result<()> {
    let whole = walhook(&["--help"]).await?;
    for command in ALL {
        ensure!(text(&whole.stdout).contains(command), "--help does not name {command}");
        let output = walhook(&[command, "--help"]).await?;
        ensure!(output.status.success(), "{command} --help: {}", said(&output));
        let help = text(&output.stdout);
        let first = help.lines().next().unwrap_or_default();
        ensure!(first.split(' ').count() > 2 && !first.starts_with("Usage"), "{command}: {help}");
    }
    for (args, status) in [(&["--version"][..], 0), (&[][..], 2), (&["fly"][..], 2)] {
        ensure!(code(&walhook(args).await?) == status, "{args:?}");
    }
    let bash = walhook(&["completions", "bash"]).await?;
    ensure!(bash.status.success() && text(&bash.stdout).contains("dead-letters"));
    ensure!(code(&walhook(&["completions", "tcsh"]).await?) == 2);
    let example = ["config", "show", "--example"];
    ensure!(code(&walhook(&example).await?) == 0);
    ensure!(code(&walhook(&[&example[..], &["--json"]].concat()).await?) == 2, "it is TOML");
    Ok(())
}

#[tokio::test]
async fn configuration_that_is_wrong_ends_every_command_with_2_and_names_the_place() -> Result<()> {
    const GOOD: &str = "[source]\nurl = \"postgres://u:hush@127.0.0.1:1/d\"\n\
                        [endpoints]\ntable = \"public.webhooks\"\n";
    const RULE: &str = "[[events]]\ntype = \"a.b\"\ntable = \"public.t\"\non = [\"insert\"]\n\
                        account = \"account_id\"\ncolumns = [\"id\"]\n";
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("w.toml");
    let path = file.to_string_lossy();
    for (text, expected) in [
        ("[source]\nurll = \"x\"".to_owned(), vec!["urll", "url"]),
        (format!("{GOOD}[delivry]\n"), vec!["delivry", "delivery"]),
        (format!("{GOOD}[delivery]\ntimeout = \"fast\"\n"), vec!["delivery.timeout", "fast"]),
        (format!("{GOOD}[memory]\nlimit = \"many\"\n"), vec!["memory.limit", "many"]),
        (format!("{GOOD}{RULE}when = \"new.status ==\"\n"), vec!["a.b", "when"]),
        (GOOD.replace("[endpoints]\ntable = \"public.webhooks\"\n", ""), vec!["endpoints"]),
        ("[source".to_owned(), vec!["w.toml:1"]),
    ] {
        std::fs::write(&file, &text)?;
        for command in ["check", "run", "status"] {
            let output = walhook(&[command, "--config", &path]).await?;
            let said = said(&output);
            ensure!(code(&output) == 2, "{command} of {text:?}: {} {said}", output.status);
            ensure!(said.contains(&*path), "{command} does not name the file: {said}");
            for part in &expected {
                ensure!(said.contains(part), "{command} does not name {part}: {said}");
            }
            ensure!(!said.contains("hush"), "{said}");
        }
    }
    let missing = walhook(&["run", "--config", "/nowhere/w.toml"]).await?;
    ensure!(code(&missing) == 2 && said(&missing).contains("/nowhere/w.toml"), "{missing:?}");

    // What `run` would refuse, `validate` does too.
    std::fs::write(&file, GOOD)?;
    for args in [&["config", "validate"][..], &["run"]] {
        let output = walhook(&[args, &["--config", &*path]].concat()).await?;
        let said = said(&output);
        ensure!(code(&output) == 2 && said.contains("no [[events]] rule"), "{args:?}: {said}");
    }

    // Right, but there is nobody.
    std::fs::write(&file, format!("{GOOD}{RULE}"))?;
    let valid = walhook(&["config", "validate", "--config", &path, "--json"]).await?;
    ensure!(serde_json::from_slice::<Value>(&valid.stdout)?["rules"] == 1);
    for args in [&["config", "show"][..], &["config", "show", "--json"], &["status"], &["check"]] {
        let output = walhook(&[args, &["--config", &*path]].concat()).await?;
        let expected = i32::from(args.first() != Some(&"config"));
        ensure!(code(&output) == expected, "{args:?}: {}", said(&output));
        ensure!(!said(&output).contains("hush"), "{args:?}: {}", said(&output));
    }
    Ok(())
}

#[tokio::test]
async fn rules_that_do_not_fit_the_tables_are_named_by_check_and_stop_run() -> Result<()> {
    let mut world = World::new().await?;
    let columns = "columns = [\"id\", \"email\", \"status\"]";
    for (from, to, expected) in [
        (columns, "columns = [\"id\", \"emial\"]", ["subscriber.created", "emial"]),
        ("account = \"account_id\"", "account = \"tenant\"", ["subscriber.created", "tenant"]),
        (
            "table = \"public.subscribers\"",
            "table = \"public.subscriptions\"",
            ["subscriber.created", "public.subscriptions"],
        ),
    ] {
        world.edit_config(from, to)?;
        let check = world.walhook(&["check"]).await?;
        let (status, log) = world.spawn()?.ended_with_log().await?;
        ensure!(code(&check) == 1, "check of {to}: {}", said(&check));
        ensure!(status.code() == Some(2), "run of {to}: {status} {log}");
        for part in expected {
            ensure!(said(&check).contains(part), "check does not name {part}: {}", said(&check));
            ensure!(log.contains(part), "run does not name {part}: {log}");
        }
        world.edit_config(to, from)?;
    }
    let all = world.walhook(&["check"]).await?;
    ensure!(all.status.success(), "{}", said(&all));
    Ok(())
}

/// The one dead letter's id, as soon as it is stored.
async fn dead_letter(world: &World, attempts: i64) -> Result<i64> {
    let sql = format!("SELECT count(*) FROM walhook.dead_letters WHERE attempts = {attempts}");
    world.until(&sql, "1").await?;
    Ok(world.value("SELECT id FROM walhook.dead_letters").await?.parse()?)
}

#[tokio::test]
async fn dead_letters_are_shown_retried_and_discarded() -> Result<()> {
    let mut world = World::with(IMPATIENT, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    world.mock.set_behaviour("/1", Behaviour::status(StatusCode::INTERNAL_SERVER_ERROR));
    let running = world.run().await?;
    world.subscribe(10, 1).await?;
    let id = dead_letter(&world, 2).await?.to_string();

    let list = world.walhook_json(&["dead-letters", "list"]).await?;
    let letter = &list["dead_letters"][0];
    ensure!(letter["reason"] == "exhausted" && letter["last_status"] == 500, "{list}");
    ensure!(letter["endpoint"] == "1" && letter["account_id"] == "1", "{list}");
    let shown = world.walhook_json(&["dead-letters", "show", &id]).await?;
    let detail = shown["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains("500"), "the detail does not say why: {shown}");
    let received = world.mock.received();
    let first = received.first().context("nothing was tried")?;
    ensure!(shown["event_id"] == *first.id, "{shown}");
    ensure!(shown["body"] == first.json(), "{shown} is not {:?}", first.body);
    let plain = world.walhook(&["dead-letters", "show", &id]).await?;
    ensure!(text(&plain.stdout).contains(&text(&first.body)), "not to the byte: {}", said(&plain));
    let other = world.walhook(&["dead-letters", "list", "--account", "2"]).await?;
    ensure!(text(&other.stdout).contains("no dead letter fits"), "{}", said(&other));
    ensure!(code(&world.walhook(&["dead-letters", "show", "999"]).await?) == 1);
    ensure!(code(&world.walhook(&["dead-letters", "retry"]).await?) == 2);

    // It fails again: it stays, with what the retry came to added.
    let again = world.walhook(&["dead-letters", "retry", &id]).await?;
    ensure!(code(&again) == 1 && said(&again).contains("1 of 1 failed again"), "{}", said(&again));
    let after: i64 = world.value("SELECT attempts FROM walhook.dead_letters").await?.parse()?;
    ensure!(after > 2, "the retry's attempts do not count: {after}");

    // Fixed, it is taken: the same event, said to be a replay.
    world.mock.set_behaviour("/1", Behaviour::ok());
    let fixed = world.walhook_json(&["dead-letters", "retry", "--endpoint", "1"]).await?;
    ensure!(fixed["done"] == 1 && fixed["finished"] == true, "{fixed}");
    let received = world.delivered(1).await?;
    let last = received.last().context("nothing came")?;
    let header = |name: &str| last.headers.get(name).and_then(|value| value.to_str().ok());
    ensure!(header("acme-replay") == Some("true") && header("acme-attempt").is_some());
    ensure!(last.id == first.id && last.body == first.body && last.verified);
    ensure!(first.headers.get("acme-replay").is_none() && first.attempt == 1);
    ensure!(world.value("SELECT count(*) FROM walhook.dead_letters").await? == "0");
    ensure!(world.value("SELECT count(*) FROM walhook.bodies").await? == "0");

    // Of an endpoint that is removed, it stays until the operator discards it.
    world.mock.set_behaviour("/1", Behaviour::status(StatusCode::BAD_GATEWAY));
    world.subscribe(11, 1).await?;
    let id = dead_letter(&world, 2).await?.to_string();
    world.sql.batch_execute("DELETE FROM webhooks").await?;
    world.settled().await?;
    let removed = world.walhook(&["dead-letters", "retry", &id]).await?;
    ensure!(code(&removed) == 1, "{}", said(&removed));
    let shown = world.walhook_json(&["dead-letters", "show", &id]).await?;
    ensure!(shown["detail"].to_string().contains("the endpoint was removed"), "{shown}");

    // With no leader, the job stands until there is one.
    ensure!(running.terminate().await?.success());
    world.hook(1, 1, "").await?;
    world.mock.set_behaviour("/1", Behaviour::ok());
    let asked = world.walhook(&["dead-letters", "retry", &id, "--wait", "0s"]).await?;
    ensure!(asked.status.success() && said(&asked).contains("no leader runs"), "{}", said(&asked));
    let jobs = world.walhook_json(&["status"]).await?;
    ensure!(jobs["jobs"][0]["total"] == 1, "{jobs}");
    let running = world.run().await?;
    world.delivered(2).await?;
    world.until("SELECT count(*) FROM walhook.dead_letters", "0").await?;

    world.mock.set_behaviour("/1", Behaviour::status(StatusCode::BAD_GATEWAY));
    world.subscribe(12, 1).await?;
    dead_letter(&world, 2).await?;
    ensure!(code(&world.walhook(&["dead-letters", "discard", "--all"]).await?) == 2, "unasked");
    let discarded = world.walhook_json(&["dead-letters", "discard", "--all", "--yes"]).await?;
    ensure!(discarded["discarded"] == 1, "{discarded}");
    ensure!(world.value("SELECT count(*) FROM walhook.bodies").await? == "0");
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn secrets_appear_nowhere() -> Result<()> {
    const HUSH: [&str; 6] =
        ["hush-password", "hush-token", "hush-user", "hush-header", SECRET, "hush-raw"];
    let mut world = World::with(IMPATIENT, RULES, &[]).await?;
    world.edit_config("postgres://postgres@", "postgres://postgres:hush-password@")?;
    world.edit_config(
        "table = \"public.webhooks\"",
        "table = \"public.webhooks\"\nheaders = \"headers\"",
    )?;
    world.edit_config("info,walhook=debug", "debug,rustls=debug")?;
    let host = world.mock.address();
    world
        .sql
        .batch_execute(&format!(
            "ALTER TABLE webhooks ADD headers jsonb;
             INSERT INTO webhooks (id, account_id, url, secret, headers) VALUES
             (1, 1, 'http://{host}/1?token=hush-token', '{SECRET}', '{{\"x-key\": \"hush-header\"}}'),
             (2, 1, 'http://hush-user:hush-password@127.0.0.1:1/2?token=hush-token', 'hush-raw', NULL),
             (3, 1, 'http://[hush-token', '{SECRET}', NULL),
             (4, 1, 'http://10.0.0.1/?token=hush-token', '{SECRET}', NULL),
             (5, 1, 'http://{host}/5', '{SECRET}', '{{\"webhook-id\": \"hush-header\"}}'),
             (6, 1, 'http://{host}/6', 'whsec_hush-raw!', NULL)"
        ))
        .await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.until("SELECT count(*) FROM walhook.dead_letters", "6").await?;

    let mut outputs = vec![];
    for args in [
        &["status"][..],
        &["check"],
        &["checkpoint", "show"],
        &["config", "show"],
        &["setup"],
        &["setup", "--print-sql"],
        &["dead-letters", "list"],
        &["dead-letters", "retry", "--all"],
        &["deferred", "list"],
        &["endpoints", "list"],
        &["endpoints", "list", "--trouble"],
        &["endpoints", "test", "1"],
        &["endpoints", "test", "2"],
        &["endpoints", "test", "3"],
        &["endpoints", "test", "4"],
        &["endpoints", "test", "5"],
        &["endpoints", "test", "6"],
    ] {
        outputs.push(said(&world.walhook(args).await?));
        outputs.push(world.walhook_json(args).await?.to_string());
    }
    for id in world.walhook_json(&["dead-letters", "list"]).await?["dead_letters"]
        .as_array()
        .context("no list")?
        .iter()
        .map(|letter| letter["id"].to_string())
    {
        outputs.push(said(&world.walhook(&["dead-letters", "show", &id]).await?));
    }
    outputs.push(get(world.admin, "/metrics").await?.1);
    let (log, ended) = (running.log(), running.terminate().await?);
    ensure!(ended.success() && log.contains("DEBUG"), "{ended}");
    outputs.push(log);
    for secret in HUSH {
        for output in &outputs {
            let line = output.lines().find(|line| line.contains(secret));
            ensure!(line.is_none(), "{secret} appears: {}", line.unwrap_or_default());
        }
    }
    Ok(())
}

#[tokio::test]
async fn run_ends_in_order_on_a_signal_and_at_once_on_the_second() -> Result<()> {
    let mut world = World::with(IMPATIENT, RULES, &[]).await?;
    world.edit_config("[log]", "[log]\nformat = \"json\"")?;
    world.hook(1, 1, "").await?;
    for signal in ["TERM", "INT"] {
        let (mut took, mut log) = (Vec::new(), String::new());
        // A busy machine is late now and then; who waits for a client is late each time.
        while took.last().is_none_or(|took| *took >= AT_ONCE) {
            ensure!(took.len() < 6, "{signal}: {took:?}");
            let running = world.run().await?;
            // One client that has begun a request, and one that keeps its connection.
            let mut slow = tokio::net::TcpStream::connect(world.admin).await?;
            tokio::io::AsyncWriteExt::write_all(&mut slow, b"GET /livez HTTP/1.1\r\nhost:").await?;
            let _idle = tokio::net::TcpStream::connect(world.admin).await?;
            let asked = Instant::now();
            running.signal(signal)?;
            let (status, said) = running.ended_with_log().await?;
            took.push(asked.elapsed());
            ensure!(status.success(), "{signal}: {status}\n{said}");
            log = said;
        }
        for line in log.lines() {
            let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            ensure!(line["level"].is_string() && line["timestamp"].is_string(), "{line}");
        }
    }

    // What is in flight may end, and is stored.
    world.mock.set_behaviour("/1", Behaviour::delay(Duration::from_millis(700)));
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.mock.wait_until("a request", PATIENCE, |stats| stats.in_flight == 1).await?;
    running.signal("TERM")?;
    let (status, log) = running.ended_with_log().await?;
    ensure!(status.success() && log.contains("\"finished\":1"), "{status}\n{log}");
    ensure!(world.mock.stats().distinct == 1, "it did not wait");

    world.mock.set_behaviour("/1", Behaviour::hang());
    let mut running = world.run().await?;
    world.subscribe(2, 1).await?;
    world.mock.wait_until("a request", PATIENCE, |stats| stats.in_flight == 1).await?;
    running.signal("TERM")?;
    running.until_logged("shutting down").await?;
    // To the process and to its group, by `timeout`: that is one.
    running.signal("TERM")?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(running.has_ended()?.is_none(), "{}", running.log());
    let asked = Instant::now();
    running.signal("TERM")?;
    let (status, log) = running.ended_with_log().await?;
    ensure!(status.code() == Some(1) && log.contains("second signal"), "{status}\n{log}");
    // What hangs would take a minute.
    ensure!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());

    // Neither loses what was not answered, nor sends again what was.
    world.mock.set_behaviour("/1", Behaviour::ok());
    let running = world.run().await?;
    world.delivered(2).await?;
    ensure!(running.terminate().await?.success());
    ensure!(world.mock.stats().duplicates == 0);
    Ok(())
}

#[tokio::test]
async fn run_shows_its_health_and_refuses_a_port_that_is_taken() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    world.until_ready(true).await?;
    for path in ["/livez", "/leaderz"] {
        ensure!(answers(world.admin, path).await, "{path}: {:?}", get(world.admin, path).await?);
    }
    for (series, value) in [
        ("walhook_leader", "1"),
        // The endpoint's row, and the subscriber's.
        ("walhook_changes_total", "2"),
        ("walhook_events_total{type=\"subscriber.created\"}", "1"),
        ("walhook_deliveries_total{result=\"delivered\"}", "1"),
        ("walhook_attempts_total{outcome=\"2xx\"}", "1"),
    ] {
        world.until_metric(series, value).await?;
    }

    let (status, log) = world.spawn()?.ended_with_log().await?;
    let admin = world.admin.to_string();
    ensure!(status.code() == Some(1), "{status}: {log}");
    ensure!(log.contains(&admin) && log.contains("admin.listen"), "{log}");

    // With a port of its own it stands by: alive and ready, but no leader.
    let standby = free_address()?;
    let listen = standby.to_string();
    let second = world.spawn_with(&[("WALHOOK_ADMIN__LISTEN", &listen)])?;
    second.until_logged("standing by").await?;
    for (path, expected) in [("/livez", 200), ("/readyz", 200), ("/leaderz", 503)] {
        let (status, body) = get(standby, path).await?;
        ensure!(status == expected, "{path} of a standby: {status} {body}");
    }
    ensure!(second.terminate().await?.success());

    for args in [&["status"][..], &["check"], &["checkpoint", "show"]] {
        let json = world.walhook_json(args).await?;
        ensure!(json.is_object(), "{args:?}: {json}");
    }
    let status = world.walhook_json(&["status"]).await?;
    ensure!(status["leader"]["running"] == true && status["slot"]["active"] == true, "{status}");
    let refused = world.walhook(&["teardown", "--yes"]).await?;
    ensure!(
        code(&refused) == 1 && said(&refused).contains("stop that first"),
        "{}",
        said(&refused)
    );
    ensure!(running.terminate().await?.success());

    ensure!(code(&world.walhook(&["teardown"]).await?) == 2, "it did not ask");
    ensure!(world.walhook(&["teardown", "--yes"]).await?.status.success());
    let left = "SELECT (SELECT count(*) FROM pg_replication_slots)
        + (SELECT count(*) FROM pg_publication)
        + (SELECT count(*) FROM pg_namespace WHERE nspname = 'walhook')";
    ensure!(world.value(left).await? == "0");
    let (status, log) = world.spawn()?.ended_with_log().await?;
    ensure!(status.code() == Some(2) && log.contains("run `walhook setup`"), "{status}: {log}");
    Ok(())
}

#[tokio::test]
async fn case_27_state_in_another_cluster_holds_acknowledgement_back_while_it_is_away() -> Result<()>
{
    let mut state = Cluster::start_distinct(&[]).await?;
    let sections = format!("[state]\nurl = \"{}\"", state.url("postgres"));
    let mut world = World::with(&sections, RULES, &[]).await?;
    ensure!(
        world.value("SELECT count(*) FROM pg_namespace WHERE nspname = 'walhook'").await? == "0"
    );
    ensure!(world.walhook(&["check"]).await?.status.success());
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    let at = world.value("SELECT pg_current_wal_insert_lsn()").await?;
    let flushed = |lsn: &str| {
        format!(
            "SELECT confirmed_flush_lsn >= '{lsn}'::pg_lsn FROM pg_replication_slots
                 WHERE slot_name = 'walhook'"
        )
    };
    // The commit's own end is at most there.
    world.subscribe(2, 1).await?;
    world.until(&flushed(&at), "t").await?;

    state.stop(StopMode::Fast).await?;
    let before = world.value("SELECT pg_current_wal_insert_lsn()").await?;
    world.subscribe(3, 1).await?;
    running.until_logged("cannot store the checkpoint").await?;
    let passed = format!(
        "SELECT confirmed_flush_lsn > '{before}'::pg_lsn FROM pg_replication_slots
                 WHERE slot_name = 'walhook'"
    );
    ensure!(world.value(&passed).await? == "f", "acknowledged what is stored nowhere");
    ensure!(code(&world.walhook(&["status"]).await?) == 1);

    state.start_again().await?;
    world.delivered(3).await?;
    let at = world.value("SELECT pg_current_wal_insert_lsn()").await?;
    world.subscribe(4, 1).await?;
    world.until(&flushed(&at), "t").await?;
    ensure!(running.terminate().await?.success());
    ensure!(world.mock.stats().duplicates == 0 && world.mock.stats().distinct == 4);
    ensure!(world.walhook(&["status"]).await?.status.success());
    ensure!(world.walhook(&["teardown", "--yes"]).await?.status.success());
    Ok(())
}

#[tokio::test]
async fn mock_endpoint_counts_what_it_received() -> Result<()> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walhook"));
    let address = free_address()?;
    command.args(["mock-endpoint", "--json", "--secret", SECRET, "--listen", &address.to_string()]);
    command.stdout(std::process::Stdio::piped()).kill_on_drop(true);
    let child = command.stderr(std::process::Stdio::null()).spawn()?;
    let deadline = Instant::now() + PATIENCE;
    while !answers(address, "/stats").await {
        ensure!(Instant::now() < deadline, "it does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (status, _) = get(address, "/a").await?;
    ensure!(status == 401, "{status}");
    let pid = child.id().context("it has ended")?.to_string();
    ensure!(std::process::Command::new("kill").args(["-s", "TERM", &pid]).status()?.success());
    let output = timeout(PATIENCE, child.wait_with_output()).await??;
    let stats: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(output.status.success() && stats["received"] == 1 && stats["verified"] == 0, "{stats}");
    ensure!(code(&walhook(&["mock-endpoint", "--fail-rate", "2"]).await?) == 2);
    // It would refuse all that walhook sends, and blame that.
    let refused = walhook(&["mock-endpoint", "--secret", "whsec_!!!"]).await?;
    ensure!(code(&refused) == 2 && said(&refused).contains("--secret: "), "{}", said(&refused));
    ensure!(!said(&refused).contains("!!!"), "{}", said(&refused));
    Ok(())
}
