//! The pipeline in which faults are made, and what was found of them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};
use walhook_core::endpoint::Secret;
use walhook_postgres::sql::{Connection, SERVER_SEARCH_PATH};

use crate::support::{PATIENCE, SCHEMA, SECRET, World, docs, text};

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
pub(super) struct Asked {
    command: &'static str,
    says: &'static [&'static str],
}

pub(super) const fn asked(command: &'static str, says: &'static [&'static str]) -> Asked {
    Asked { command, says }
}

/// What was found so far.
pub(super) struct Found {
    pub(super) world: World,
    state: Connection,
    pub(super) rows: Vec<String>,
    /// What was not printed: all of it is told at the end.
    pub(super) missed: String,
    next: i64,
}

impl Found {
    /// The real program, whose role may do no more than `setup` granted it, with the state in a database of its own.
    pub(super) async fn begin() -> Result<Self> {
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
    pub(super) async fn subscribe(&mut self, account: i64) -> Result<i64> {
        self.next += 1;
        self.world.subscribe(self.next, account).await?;
        Ok(self.next)
    }

    pub(super) async fn status(&self, row: i64, status: &str) -> Result<()> {
        let update = "UPDATE subscribers SET status = $2 WHERE id = $1";
        self.world.sql.execute(update, &[&row, &status]).await?;
        Ok(())
    }

    pub(super) async fn run_sql(&self, sql: &str) -> Result<()> {
        self.world.sql.batch_execute(sql).await.with_context(|| sql.to_owned())
    }

    /// An endpoint at this URL.
    pub(super) async fn hook_at(&self, id: i64, url: &str) -> Result<()> {
        let insert = "INSERT INTO webhooks (id, account_id, url, secret) VALUES ($1, $1, $2, $3)";
        self.world.sql.execute(insert, &[&id, &url, &SECRET]).await?;
        Ok(())
    }

    /// The fault is there: each command prints what is said, as soon as it is known.
    pub(super) async fn found(&mut self, what: &str, asked: &[Asked]) -> Result<()> {
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

    /// Fills the state tables: of account 14 with few rows that take more than half of the bound, so that whoever is
    /// suspended stays so, and of account 13 with many, until it is.
    pub(super) async fn suspended(&mut self) -> Result<()> {
        for account in [13, 14] {
            self.world.hook(account, account, "?status=503").await?;
        }
        self.fill(14, 800, 8_000).await?;
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            let listed = self.world.walhook_json(&["endpoints", "list", "--account", "14"]).await?;
            if listed["endpoints"][0]["deferred"] == 800 {
                break;
            }
            ensure!(Instant::now() < deadline, "not all are deferred: {listed}");
            sleep(Duration::from_millis(200)).await;
        }
        loop {
            self.fill(13, 200, 300).await?;
            let listed = self.world.walhook_json(&["endpoints", "list", "--account", "13"]).await?;
            if listed["endpoints"][0]["state"] == "suspended" {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "nothing is suspended: {listed}");
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// So many rows of so many bytes that do not shrink, in one transaction.
    async fn fill(&mut self, account: i64, rows: i64, bytes: i64) -> Result<()> {
        let sql = "INSERT INTO subscribers (id, account_id, status)
            SELECT n, $1, (SELECT string_agg(md5(n::text || i::text), '') FROM generate_series(0, $4::bigint / 32) i)
            FROM generate_series($2::bigint, $3::bigint - 1) n";
        let first = 1_000_000 + self.next;
        self.next += rows;
        self.world.sql.execute(sql, &[&account, &first, &(first + rows), &bytes]).await?;
        Ok(())
    }

    /// Waits until a command prints all of this on one line.
    pub(super) async fn until_said(&self, command: &str, says: &[&str]) -> Result<()> {
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
    pub(super) async fn settled(&mut self) -> Result<()> {
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
    pub(super) fn compare(&self) -> Result<()> {
        let head = "| | What is wrong | Ask | It prints |\n|---|---|---|---|\n";
        let made = format!("\n{head}{}\n\n", self.rows.join("\n"));
        docs::hold("docs/operations.md", "faults: made by tests/faults_found.rs", &made)
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
