//! What fails, and what is told of it: the tables in `docs/operations/health-and-metrics.md` are made here.
//!
//! Each way to fail is tried on the real program: `/readyz`, `walhook status`, the metric and the log must tell it
//! within 15 s, accounts that are known and new ones must get what the table says, and all must be
//! well by itself once the cause is gone. With `WALHOOK_UPDATE_DOCS=1` the tables are written anew.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};
use walhook_core::endpoint::Secret;
use walhook_postgres::sql::{Connection, SERVER_SEARCH_PATH};
use walhook_testkit::cluster::StopMode;

use crate::disk::SmallDisk;
use crate::support::{PATIENCE, RULES, Running, SCHEMA, World, docs, get, text};

/// How soon each failure is told.
const SOON: Duration = Duration::from_secs(15);

/// What the known account has got so far, and which number comes next.
struct Tried {
    next: i64,
    delivered: u64,
    rows: Vec<String>,
}

/// What the table says of one way to fail.
struct Outage<'a> {
    what: &'a str,
    part: &'a str,
    says: &'a str,
    known: bool,
    new: bool,
}

async fn world(state: bool) -> Result<World> {
    let mut world = World::bare("", RULES, &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    world.sql.batch_execute("CREATE ROLE sender LOGIN").await?;
    world.edit_config("postgres://postgres@", "postgres://sender@")?;
    if state {
        world.sql.batch_execute("CREATE DATABASE state OWNER sender").await?;
        let url = world.cluster.url("state").replace("postgres://postgres@", "postgres://sender@");
        world.env.push(("WALHOOK_STATE__URL".to_owned(), url));
    }
    let admin = world.cluster.url("postgres");
    let output = world.walhook(&["setup", "--admin-url", &admin]).await?;
    ensure!(output.status.success(), "setup: {}", text(&output.stderr));
    Ok(world)
}

/// Runs a statement, as soon as no other session is in its way.
async fn once_free(world: &World, sql: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = world.sql.batch_execute(sql).await {
        ensure!(Instant::now() < deadline, "{sql}: {error:?}");
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn failing(world: &World, part: &str) -> Result<bool> {
    let (_, metrics) = get(world.admin, "/metrics").await?;
    let series = |line: &&str| {
        line.starts_with("walhook_failing_seconds{") && line.contains(&format!("part=\"{part}\""))
    };
    let line = metrics.lines().find(series).context("no such part")?;
    Ok(!line.ends_with(" 0"))
}

impl Tried {
    fn new() -> Self {
        Self { next: 1, delivered: 0, rows: Vec::new() }
    }

    /// An endpoint of an account that nobody has heard of.
    async fn newcomer(&mut self, world: &World) -> Result<i64> {
        self.next += 1;
        world.hook(self.next, self.next, "").await?;
        Ok(self.next)
    }

    async fn send(&mut self, world: &World, account: i64) -> Result<()> {
        self.next += 1;
        world.subscribe(self.next, account).await
    }

    /// Account 1 is known by now.
    async fn make_known(&mut self, world: &World) -> Result<()> {
        self.send(world, 1).await?;
        self.delivered += 1;
        world.delivered(self.delivered).await?;
        Ok(())
    }

    /// It fails now: `newcomer` is an account whose endpoint nobody has looked up.
    async fn told(
        &mut self,
        world: &World,
        running: &Running,
        log_before: usize,
        newcomer: Option<i64>,
        outage: Outage<'_>,
    ) -> Result<()> {
        let Outage { what, part, says, known, new } = outage;
        if let Some(newcomer) = newcomer {
            self.send(world, newcomer).await?;
        }
        let deadline = Instant::now() + SOON;
        let line = loop {
            let (status, body) = get(world.admin, "/readyz").await?;
            let line = body.lines().find(|line| line.contains(says)).map(str::to_owned);
            if status == 503
                && let Some(line) = line
            {
                break line;
            }
            ensure!(Instant::now() < deadline, "{what}: /readyz says {status} {body}");
            sleep(Duration::from_millis(100)).await;
        };
        ensure!(line.contains("; fix: "), "{what}: {line}");
        ensure!(failing(world, part).await?, "{what}: the metric does not tell of {part}");
        let deadline = Instant::now() + PATIENCE;
        let told = loop {
            let output = world.walhook(&["status"]).await?;
            let told = text(&output.stdout);
            let begin = format!("FAILING       {part}, since ");
            if told.lines().any(|line| line.starts_with(&begin) && line.contains("; fix: ")) {
                break told;
            }
            ensure!(Instant::now() < deadline, "{what}: status says {told}");
            sleep(Duration::from_millis(100)).await;
        };
        ensure!(!told.contains("HALTED"), "{what}: {told}");
        let log = running.log();
        let log = log.get(log_before..).unwrap_or_default();
        ensure!(log.contains(says), "{what}: the log does not say {says}:\n{log}");
        let before = self.delivered;
        if newcomer.is_some() {
            // Those that are known, while it fails.
            self.send(world, 1).await?;
            if known {
                self.delivered += 1;
                world.delivered(self.delivered).await?;
            } else {
                sleep(Duration::from_secs(1)).await;
            }
            let now = world.mock.stats().distinct;
            ensure!(now == before + u64::from(known) + u64::from(new), "{what}: {now} of {before}");
            self.delivered = before + 2;
        }
        let gets = |gets| match (newcomer.is_some(), gets) {
            (false, _) => "nothing can be committed",
            (true, true) => "delivered at once",
            (true, false) => "waits, delivered afterwards",
        };
        self.rows.push(format!(
            "| {what} | 503 within 15 s: {says} | `{part}` | {} | {} |",
            gets(known),
            gets(new)
        ));
        Ok(())
    }

    /// The cause is gone: all is well by itself.
    async fn well(&self, world: &World, running: &mut Running) -> Result<()> {
        ensure!(running.has_ended()?.is_none(), "it has ended:\n{}", running.log());
        world.delivered(self.delivered).await.with_context(|| running.log())?;
        world.until_ready(true).await?;
        ensure!(world.mock.stats().distinct == self.delivered);
        Ok(())
    }

    /// Holds the table of this name in the documentation against what was seen.
    fn compare(&self, name: &str) -> Result<()> {
        let head = "| What fails | `/readyz` and the log say | `status` and metric: part | A known account's events | A new account's |\n|---|---|---|---|---|\n";
        let made = format!("\n{head}{}\n\n", self.rows.join("\n"));
        let page = "docs/operations/health-and-metrics.md";
        docs::hold(page, &format!("{name}: made by tests/outages.rs"), &made)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outage_of_look_ups_is_told_and_known_accounts_do_not_notice() -> Result<()> {
    let mut world = world(false).await?;
    world.hook(1, 1, "").await?;
    let mut running = world.run().await?;
    let mut tried = Tried::new();
    tried.make_known(&world).await?;
    let lookups = "cannot look endpoints up";
    for (what, breaks, fixes) in [
        (
            "endpoint table locked",
            "BEGIN; LOCK TABLE webhooks IN ACCESS EXCLUSIVE MODE",
            "ROLLBACK",
        ),
        (
            "SELECT revoked",
            "REVOKE SELECT ON webhooks FROM sender",
            "GRANT SELECT ON webhooks TO sender",
        ),
        (
            "column dropped or renamed",
            "ALTER TABLE webhooks RENAME secret TO signing_secret",
            "ALTER TABLE webhooks RENAME signing_secret TO secret",
        ),
        (
            "column of another type",
            "ALTER TABLE webhooks ALTER enabled DROP DEFAULT, ALTER enabled TYPE text USING 'yes'",
            "ALTER TABLE webhooks ALTER enabled TYPE boolean USING true, ALTER enabled SET DEFAULT true",
        ),
        (
            "row-level security switched on",
            "ALTER TABLE webhooks ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE webhooks DISABLE ROW LEVEL SECURITY",
        ),
        (
            "connection limit of the role reached",
            "ALTER ROLE sender CONNECTION LIMIT 1; SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE application_name = 'walhook look-ups'",
            "ALTER ROLE sender CONNECTION LIMIT -1",
        ),
    ] {
        let newcomer = tried.newcomer(&world).await?;
        let other = world.connect().await?;
        let before = running.log().len();
        other.batch_execute(breaks).await?;
        let outage = Outage { what, part: "lookups", says: lookups, known: true, new: false };
        tried.told(&world, &running, before, Some(newcomer), outage).await?;
        other.batch_execute(fixes).await?;
        tried.well(&world, &mut running).await.context(what)?;
    }
    ensure!(running.log().matches("works again: endpoints are looked up").count() >= 6);
    ensure!(running.terminate().await?.success());
    tried.compare("look-ups")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "one test of one thing, step by step")]
async fn outage_of_state_or_stream_is_told_and_ends_by_itself() -> Result<()> {
    let mut world = world(true).await?;
    world.hook(1, 1, "").await?;
    let mut running = world.run().await?;
    let mut tried = Tried::new();
    tried.make_known(&world).await?;
    let url = world.cluster.url("state");
    let state = Connection::open_with_path(&Secret::new(url), "test", SERVER_SEARCH_PATH).await?;
    let end_state = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = 'state' AND usename = 'sender'";
    for (what, breaks, fixes) in [
        (
            "state database does not let us in",
            format!("ALTER DATABASE state ALLOW_CONNECTIONS false; {end_state}"),
            "ALTER DATABASE state ALLOW_CONNECTIONS true".to_owned(),
        ),
        (
            "state database read-only",
            format!(
                "ALTER ROLE sender IN DATABASE state SET default_transaction_read_only = on; {end_state}"
            ),
            format!(
                "ALTER ROLE sender IN DATABASE state RESET default_transaction_read_only; {end_state}"
            ),
        ),
        (
            "right to the state tables revoked",
            "REVOKE INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA walhook FROM sender".to_owned(),
            "GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA walhook TO sender".to_owned(),
        ),
    ] {
        let before = running.log().len();
        // Known before, so that only the state fails.
        let newcomer = tried.newcomer(&world).await?;
        if what.starts_with("right") { &state } else { &world.sql }.batch_execute(&breaks).await?;
        let says = "cannot store the checkpoint";
        // What is sent before the first failure is known counts too.
        let outage = Outage { what, part: "state", says, known: false, new: false };
        tried.told_state(&world, &running, before, newcomer, outage).await?;
        if what.starts_with("right") { &state } else { &world.sql }.batch_execute(&fixes).await?;
        tried.well(&world, &mut running).await.context(what)?;
    }

    if let Some(disk) = SmallDisk::mount()? {
        let owner = std::fs::metadata(world.cluster.data())?;
        let place = disk.filler().with_file_name("tablespace");
        std::fs::create_dir(&place)?;
        chown(&place, Some(owner.uid()), Some(owner.gid()))?;
        std::fs::set_permissions(&place, PermissionsExt::from_mode(0o700))?;
        ensure!(running.terminate().await?.success());
        drop(state);
        let place = place.to_string_lossy().into_owned();
        world.sql.batch_execute(&format!("CREATE TABLESPACE small LOCATION '{place}'")).await?;
        once_free(&world, "ALTER DATABASE state SET TABLESPACE small").await?;
        running = world.run().await?;
        tried.make_known(&world).await?;
        let before = running.log().len();
        disk.fill()?;
        // Without a secret, each delivery is a dead letter, which takes room.
        world
            .sql
            .batch_execute(
                "INSERT INTO webhooks (id, account_id, url) VALUES (9999, 9999, 'http://127.0.0.1:1/');
                 INSERT INTO subscribers SELECT g, 9999, repeat('x', 500) FROM generate_series(100000, 102000) g",
            )
            .await?;
        let what = "disk of the state database full";
        let newcomer = tried.newcomer(&world).await?;
        let says = "cannot store the checkpoint";
        let outage = Outage { what, part: "state", says, known: false, new: false };
        tried.told_state(&world, &running, before, newcomer, outage).await?;
        std::fs::remove_file(disk.filler())?;
        tried.well(&world, &mut running).await.context(what)?;
        // Back to the cluster's own disk before the small one goes.
        ensure!(running.terminate().await?.success());
        once_free(&world, "ALTER DATABASE state SET TABLESPACE pg_default").await?;
        once_free(&world, "DROP TABLESPACE small").await?;
        running = world.run().await?;
    }

    let what = "connection limit reached, stream lost";
    let newcomer = tried.newcomer(&world).await?;
    let before = running.log().len();
    world
        .sql
        .batch_execute(
            "ALTER ROLE sender CONNECTION LIMIT 1; SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE backend_type = 'walsender'",
        )
        .await?;
    let says = "the stream is interrupted";
    let outage = Outage { what, part: "stream", says, known: false, new: false };
    tried.told(&world, &running, before, Some(newcomer), outage).await?;
    world.sql.batch_execute("ALTER ROLE sender CONNECTION LIMIT -1").await?;
    tried.well(&world, &mut running).await.context(what)?;

    let what = "server down, or not to be reached";
    let before = running.log().len();
    world.cluster.stop(StopMode::Fast).await?;
    let outage = Outage { what, part: "stream", says, known: false, new: false };
    tried.told(&world, &running, before, None, outage).await?;
    world.cluster.start_again().await?;
    world.reconnect().await?;
    tried.make_known(&world).await?;
    tried.well(&world, &mut running).await.context(what)?;

    // A lost slot is no outage: going on would lose changes. The limit keeps it from being taken again.
    world.sql.batch_execute("ALTER ROLE sender CONNECTION LIMIT 1").await?;
    let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active";
    world.sql.batch_execute(end).await?;
    once_free(&world, "SELECT pg_drop_replication_slot('walhook')").await?;
    world.sql.batch_execute("ALTER ROLE sender CONNECTION LIMIT -1").await?;
    let (status, log) = running.ended_with_log().await?;
    ensure!(status.code() == Some(3) && log.contains("does not exist"), "{status}: {log}");
    let shown = text(&world.walhook(&["status"]).await?.stdout);
    ensure!(shown.contains("HALTED"), "{shown}");
    tried.rows.push(
        "| slot dropped or lost | halts with exit code 3 within 15 s: replication slot … does not exist \
         any more | `HALTED`; no series | not sent until `recover` | not sent until `recover` |"
            .to_owned(),
    );
    tried.compare("state and stream")
}

impl Tried {
    /// As [`Tried::told`], where sending stops only once it is known that nothing can be stored: what was
    /// sent just before counts as delivered.
    async fn told_state(
        &mut self,
        world: &World,
        running: &Running,
        log_before: usize,
        newcomer: i64,
        outage: Outage<'_>,
    ) -> Result<()> {
        // Something to store, so that it fails; it is sent before that is known, and not again.
        self.send(world, 1).await?;
        let deadline = Instant::now() + SOON;
        while get(world.admin, "/readyz").await?.0 == 200 {
            ensure!(Instant::now() < deadline, "{}: /readyz is 200", outage.what);
            sleep(Duration::from_millis(100)).await;
        }
        let sent = world.mock.stats().distinct - self.delivered;
        self.delivered += sent;
        self.told(world, running, log_before, Some(newcomer), outage).await?;
        // What was not sent before it was known is sent afterwards.
        self.delivered += 1 - sent.min(1);
        Ok(())
    }
}
