//! Twenty faults, each made on purpose, and the one or two commands that find it: the table in `docs/operations.md` is
//! made here, with `WALHOOK_UPDATE_DOCS=1`, and compared otherwise.
//!
//! What a row of the table says was printed, on one line, by the real program while the fault was there.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use tokio::time::{Instant, sleep};
use walhook_core::endpoint::Secret;
use walhook_postgres::sql::{Connection, SERVER_SEARCH_PATH};
use walhook_testkit::receiver::Behaviour;

use crate::support::{PATIENCE, SCHEMA, SECRET, World, text};

/// One attempt each, so that what failed waits for hours; small tables and a small window, so that both fill.
const SECTIONS: &str = r#"
[delivery]
quick_attempts = 1
retry_base = "8h"
[wal]
max_hold = "1s"
[state]
max_size = "8MiB"
"#;

const RULES: &str = r#"
[[events]]
type = "subscriber.created"
table = "public.subscribers"
on = ["insert"]
account = "account_id"
columns = ["id", "status"]

[[events]]
type = "subscriber.unsubscribed"
table = "public.subscribers"
on = ["update"]
account = "account_id"
when = "old.status != new.status && new.status == 'unsubscribed'"
columns = ["id", "status"]

[[events]]
type = "subscriber.touched"
table = "public.subscribers"
on = ["update"]
account = "account_id"
when = "new.status == 'touched'"
columns = ["id", "status"]
"#;

const SERVER: [(&str, &str); 2] = [("max_slot_wal_keep_size", "64MB"), ("min_wal_size", "32MB")];

/// A command, and what it prints on one line: these parts, in this order.
struct Asked {
    command: &'static str,
    says: &'static [&'static str],
}

const fn asked(command: &'static str, says: &'static [&'static str]) -> Asked {
    Asked { command, says }
}

/// What was found so far.
struct Found {
    world: World,
    state: Connection,
    rows: Vec<String>,
    /// What was not printed: all of it is told at the end.
    missed: String,
    next: i64,
}

impl Found {
    /// The real program, whose role may do no more than `setup` granted it, with the state in a database of its own.
    async fn begin() -> Result<Self> {
        let mut world = World::bare(SECTIONS, RULES, &SERVER).await?;
        world.sql.batch_execute(SCHEMA).await?;
        world.sql.batch_execute("ALTER TABLE webhooks ADD rate_per_second float8").await?;
        world.sql.batch_execute("CREATE ROLE sender LOGIN").await?;
        world.sql.batch_execute("CREATE DATABASE state OWNER sender").await?;
        world.edit_config("postgres://postgres@", "postgres://sender@")?;
        world.edit_config("[endpoints]", "[endpoints]\nrate_per_second = \"rate_per_second\"")?;
        let url = world.cluster.url("state").replace("postgres://postgres@", "postgres://sender@");
        world.env.push(("WALHOOK_STATE__URL".to_owned(), url));
        let admin = world.cluster.url("postgres");
        let output = world.walhook(&["setup", "--admin-url", &admin]).await?;
        ensure!(output.status.success(), "setup: {}", text(&output.stderr));
        let url = Secret::new(world.cluster.url("state"));
        let state = Connection::open_with_path(&url, "test", SERVER_SEARCH_PATH).await?;
        Ok(Self { world, state, rows: Vec::new(), missed: String::new(), next: 1_000 })
    }

    /// A row of an account, which makes an event.
    async fn subscribe(&mut self, account: i64) -> Result<i64> {
        self.next += 1;
        self.world.subscribe(self.next, account).await?;
        Ok(self.next)
    }

    async fn status(&self, row: i64, status: &str) -> Result<()> {
        let update = "UPDATE subscribers SET status = $2 WHERE id = $1";
        self.world.sql.execute(update, &[&row, &status]).await?;
        Ok(())
    }

    async fn run_sql(&self, sql: &str) -> Result<()> {
        self.world.sql.batch_execute(sql).await.with_context(|| sql.to_owned())
    }

    /// An endpoint at this URL.
    async fn hook_at(&self, id: i64, url: &str) -> Result<()> {
        let insert = "INSERT INTO webhooks (id, account_id, url, secret) VALUES ($1, $1, $2, $3)";
        self.world.sql.execute(insert, &[&id, &url, &SECRET]).await?;
        Ok(())
    }

    /// The fault is there: each command prints what is said, as soon as it is known.
    async fn found(&mut self, what: &str, asked: &[Asked]) -> Result<()> {
        ensure!((1..=2).contains(&asked.len()), "{what}: {} commands", asked.len());
        for Asked { command, says } in asked {
            if let Err(error) = self.until_said(command, says).await {
                self.missed.push_str(&format!("{what}: {error}\n"));
            }
        }
        let lines = |cell: &dyn Fn(&Asked) -> String| {
            asked.iter().map(cell).collect::<Vec<_>>().join("<br>")
        };
        let commands = lines(&|asked| format!("`{}`", asked.command));
        let says = lines(&|asked| format!("`{}`", asked.says.join(" … ")));
        self.rows.push(format!("| {} | {what} | {commands} | {says} |", self.rows.len() + 1));
        Ok(())
    }

    /// Waits until a command prints all of this on one line.
    async fn until_said(&self, command: &str, says: &[&str]) -> Result<()> {
        let args: Vec<&str> = command.split(' ').skip(1).collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.world.walhook(&args).await?;
            let printed = text(&output.stdout) + &text(&output.stderr);
            if printed.lines().any(|line| is_said(line, says)) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{command} does not say {says:?}:\n{printed}");
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until the checkpoint has passed all that is committed now.
    async fn settled(&mut self) -> Result<()> {
        let end = self.world.value("SELECT pg_current_wal_insert_lsn()").await?;
        let passed = "SELECT frontier >= $1::text::pg_lsn FROM walhook.checkpoint";
        let deadline = Instant::now() + PATIENCE;
        // Of an account without endpoints: the checkpoint goes on with it.
        while !self.state.query_one(passed, &[&end]).await?.get::<_, bool>(0) {
            ensure!(Instant::now() < deadline, "the checkpoint does not reach {end}");
            self.subscribe(-1).await?;
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Holds the table in the documentation against what was found.
    fn compare(&self) -> Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
        let docs = std::fs::read_to_string(&path)?;
        let (begin, end) = ("<!-- faults: made by tests/faults_found.rs -->\n", "<!-- end -->");
        let (before, rest) = docs.split_once(begin).context("no table in the documentation")?;
        let (table, after) = rest.split_once(end).context("the table has no end")?;
        let head = "| | What is wrong | Ask | It prints |\n|---|---|---|---|\n";
        let made = format!("\n{head}{}\n\n", self.rows.join("\n"));
        if std::env::var_os("WALHOOK_UPDATE_DOCS").is_some() {
            std::fs::write(&path, format!("{before}{begin}{made}{end}{after}"))?;
        } else {
            ensure!(table == made, "WALHOOK_UPDATE_DOCS=1 writes this to the docs:\n{made}");
        }
        Ok(())
    }
}

/// Whether a line has all of it, in this order.
fn is_said(line: &str, parts: &[&str]) -> bool {
    let mut rest = line;
    parts.iter().all(|part| match rest.split_once(part) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_faults_are_found_by_two_commands_each_and_the_table_says_which() -> Result<()> {
    let mut found = Found::begin().await?;
    let running = found.world.run().await?;
    let tried = async {
        of_rows(&mut found).await?;
        of_endpoints(&mut found).await?;
        of_requests(&mut found).await?;
        of_waiting(&mut found).await?;
        of_databases(&mut found).await
    };
    tried.await.with_context(|| running.log_tail())?;
    ensure!(running.terminate().await?.success());
    of_the_pipeline(&mut found).await?;
    ensure!(found.missed.is_empty(), "{}", found.missed);
    ensure!(found.rows.len() == 20, "{:#?}", found.rows);
    found.compare()
}

/// A change that becomes no event, or one that nobody wants.
async fn of_rows(found: &mut Found) -> Result<()> {
    found.world.hook(1, 1, "").await?;
    let row = found.subscribe(1).await?;
    found.world.delivered(1).await?;
    found.status(row, "bounced").await?;
    found.settled().await?;
    found
        .found(
            "the rule's condition is false for the row",
            &[asked(
                "walhook replay start --from oldest --account 1 --type subscriber.unsubscribed --dry-run",
                &["would send 0 deliveries of 0 events"],
            )],
        )
        .await?;
    found.subscribe(2).await?;
    found
        .found(
            "the account has no endpoint",
            &[asked("walhook endpoints list --account 2", &["no endpoint fits"])],
        )
        .await?;
    found.world.hook(3, 3, "").await?;
    found.run_sql("UPDATE webhooks SET event_types = '{subscriber.deleted}' WHERE id = 3").await?;
    found.subscribe(3).await?;
    found.settled().await?;
    found
        .found(
            "the endpoint does not want the event's type",
            &[asked(
                "walhook replay start --from oldest --account 3 --dry-run",
                &["subscriber.created", "0: no endpoint that is switched on wants it"],
            )],
        )
        .await
}

/// An endpoint to which nothing is sent.
async fn of_endpoints(found: &mut Found) -> Result<()> {
    found.world.hook(4, 4, "?status=410").await?;
    found.subscribe(4).await?;
    found
        .found(
            "the endpoint is switched off: it answered 410",
            &[asked("walhook endpoints list --account 4", &["disabled", "status 410"])],
        )
        .await?;
    found.world.hook(5, 5, "").await?;
    found.world.walhook(&["endpoints", "pause", "5", "--reason", "being moved"]).await?;
    found.subscribe(5).await?;
    found
        .found(
            "an operator paused the endpoint",
            &[asked("walhook endpoints list --account 5", &["paused", "being moved"])],
        )
        .await
}

/// A request that fails, and how.
async fn of_requests(found: &mut Found) -> Result<()> {
    found.hook_at(6, "http://10.0.0.1/").await?;
    found.hook_at(7, "http://no-such-host.invalid/").await?;
    let plain = found.world.mock.url("/8").replace("http://", "https://");
    found.hook_at(8, &plain).await?;
    found.world.hook(9, 9, "?status=401").await?;
    found.world.hook(10, 10, "?status=503").await?;
    for account in 6..=9 {
        found.subscribe(account).await?;
    }
    for _ in 0..20 {
        found.subscribe(10).await?;
    }
    for (what, asked) in [
        (
            "the endpoint's address is not allowed ([egress])",
            asked("walhook deferred list --account 6", &["failed", "forbidden", "10.0.0.1"]),
        ),
        ("DNS has no such name", asked("walhook deferred list --account 7", &["failed", "dns: "])),
        ("TLS fails", asked("walhook deferred list --account 8", &["failed", "tls: "])),
        (
            "the receiver answers 401",
            asked("walhook deferred list --account 9", &["failed", "status 401"]),
        ),
        (
            "the endpoint failed too often: its breaker is open",
            asked(
                "walhook endpoints list --account 10",
                &["breaker_open", "it failed too often, and is tried again at"],
            ),
        ),
    ] {
        found.found(what, &[asked]).await?;
    }
    Ok(())
}

/// A delivery that waits for others, or for room.
async fn of_waiting(found: &mut Found) -> Result<()> {
    found.world.hook(11, 11, "").await?;
    found.run_sql("UPDATE webhooks SET rate_per_second = 0.001 WHERE id = 11").await?;
    for _ in 0..3 {
        found.subscribe(11).await?;
    }
    found
        .found(
            "the endpoint has a rate limit",
            &[asked("walhook deferred list --account 11", &["held"])],
        )
        .await?;
    found.world.hook(12, 12, "").await?;
    found.world.mock.set_behaviour("/12", Behaviour::status(StatusCode::SERVICE_UNAVAILABLE));
    let row = found.subscribe(12).await?;
    found.until_said("walhook deferred list --account 12", &["failed", "status 503"]).await?;
    found.world.mock.set_behaviour("/12", Behaviour::ok());
    found.status(row, "touched").await?;
    found
        .found(
            "an earlier event of the same row waits",
            &[asked("walhook deferred list --account 12", &["behind"])],
        )
        .await?;
    found.world.hook(13, 13, "?status=503").await?;
    let many = "INSERT INTO subscribers (id, account_id, status)
        SELECT n, 13, (SELECT string_agg(md5(n::text || i::text), '') FROM generate_series(0, 250) i)
        FROM generate_series($1::bigint, $1::bigint + 99) n";
    let deadline = Instant::now() + PATIENCE;
    loop {
        found.next += 100;
        found.world.sql.execute(many, &[&(1_000_000 + found.next)]).await?;
        let listed = found.world.walhook_json(&["endpoints", "list", "--account", "13"]).await?;
        if listed["endpoints"][0]["state"] == "suspended" {
            break;
        }
        ensure!(Instant::now() < deadline, "nothing is suspended: {listed}");
        sleep(Duration::from_millis(200)).await;
    }
    found
        .found(
            "the state tables are full, and the endpoint is suspended",
            &[
                asked("walhook endpoints list --account 13", &["suspended", "state.max_size"]),
                asked("walhook gaps list", &["endpoint 13 only", "deliveries"]),
            ],
        )
        .await
}

/// A database that does not do its part.
async fn of_databases(found: &mut Found) -> Result<()> {
    found.run_sql("REVOKE SELECT ON webhooks FROM sender").await?;
    found
        .found(
            "endpoints cannot be looked up",
            &[asked(
                "walhook status",
                &[
                    "FAILING",
                    "lookups, since",
                    "cannot look endpoints up",
                    "permission denied",
                    "fix: ",
                ],
            )],
        )
        .await?;
    found.run_sql("GRANT SELECT ON webhooks TO sender").await?;
    found.world.until_ready(true).await?;
    let away = "ALTER DATABASE state ALLOW_CONNECTIONS false";
    found.run_sql(away).await?;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'state'";
    found.run_sql(end).await?;
    found
        .found(
            "the state database is down",
            &[asked(
                "walhook status",
                &["FAILING", "state, since", "cannot store the checkpoint", "fix: "],
            )],
        )
        .await?;
    found.run_sql("ALTER DATABASE state ALLOW_CONNECTIONS true").await?;
    found.world.until_ready(true).await?;
    Ok(())
}

/// Nothing is sent for anyone, or something never will be.
async fn of_the_pipeline(found: &mut Found) -> Result<()> {
    found
        .found("no instance leads", &[asked("walhook status", &["leader", "none runs (last: "])])
        .await?;
    let running = found.world.run().await?;
    found.run_sql("ALTER PUBLICATION walhook DROP TABLE subscribers").await?;
    let (status, log) = running.ended_with_log().await?;
    ensure!(status.code() == Some(3), "{status}: {log}");
    found
        .found(
            "the publication does not hold the table",
            &[asked(
                "walhook status",
                &["HALTED", "publication", "does not hold the table public.subscribers"],
            )],
        )
        .await?;
    found.run_sql("ALTER PUBLICATION walhook ADD TABLE subscribers").await?;
    let running = found.world.run().await?;
    found
        .found(
            "what was committed for a time is in no stream: a gap",
            &[asked("walhook gaps list", &["table public.subscribers only"])],
        )
        .await?;
    found.run_sql("ALTER TABLE subscribers REPLICA IDENTITY DEFAULT").await?;
    found.run_sql("UPDATE subscribers SET status = 'unsubscribed' WHERE account_id = 1").await?;
    let (status, log) = running.ended_with_log().await?;
    ensure!(status.code() == Some(3), "{status}: {log}");
    found
        .found(
            "the replica identity logs too little for the rule",
            &[
                asked(
                    "walhook status",
                    &["HALTED", "replica identity", "logs only id", "ALTER TABLE"],
                ),
                asked("walhook check", &["fail", "replica identity"]),
            ],
        )
        .await?;
    found.run_sql("ALTER TABLE subscribers REPLICA IDENTITY FULL").await?;
    for _ in 0..20 {
        found.run_sql("SELECT pg_logical_emit_message(false, 'test', ''), pg_switch_wal()").await?;
    }
    found.run_sql("CHECKPOINT").await?;
    let (status, log) = found.world.spawn()?.ended_with_log().await?;
    ensure!(status.code() == Some(3), "{status}: {log}");
    found
        .found(
            "the slot is lost",
            &[asked("walhook status", &["HALTED", "is lost", "recover --accept-gap"])],
        )
        .await
}
