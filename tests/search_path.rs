//! No statement of ours calls what a hostile schema in the `search_path` shadows.
//!
//! Two nets. One runs the program with the pin taken away, on a server where a schema shadows all of
//! `pg_catalog`, and nobody may use what is in it: a mere reference is an error in the server's log.
//! The other reads each statement in the source, also those that the first does not come by.

mod statements;

use std::fs;

use anyhow::{Result, ensure};
use axum::http::StatusCode;
use walhook_testkit::receiver::Behaviour;

use crate::support::{RULES, SCHEMA, World, text};

const HOSTILE: &str = "hostile, pg_catalog, pg_temp";

/// The roles: ours, and an administrator who is no superuser, whom rights would not bind.
const ROLES: &str = "
    CREATE ROLE walhook LOGIN REPLICATION;
    CREATE ROLE boss LOGIN REPLICATION;
    GRANT CREATE ON DATABASE postgres TO boss;
    CREATE TABLE accounts (id bigint PRIMARY KEY, weight double precision);
    CREATE TABLE parted (id bigint PRIMARY KEY, account_id bigint) PARTITION BY RANGE (id);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (1000);
    CREATE VIEW hooks AS SELECT * FROM webhooks;
    ALTER TABLE subscribers OWNER TO boss; ALTER TABLE webhooks OWNER TO boss;
    ALTER TABLE accounts OWNER TO boss; ALTER VIEW hooks OWNER TO boss;
    ALTER TABLE parted OWNER TO boss; ALTER TABLE parted_1 OWNER TO boss;
    ALTER TABLE webhooks ENABLE ROW LEVEL SECURITY;
    CREATE POLICY all_rows ON webhooks FOR SELECT USING (true);";

const PARTED: &str = r#"
[[events]]
type = "parted.created"
table = "public.parted"
on = ["insert"]
account = "account_id"
columns = ["id"]
"#;

const SECTIONS: &str = r#"
[accounts]
table = "public.accounts"
[delivery]
quick_attempts = 1
retry_base = "1h"
[notify]
url = "http://127.0.0.1:1/notices"
secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
"#;

/// The errors in the server's log that a name could be the cause of, each with its statement.
fn errors(world: &World) -> Result<Vec<String>> {
    let log = fs::read_to_string(world.cluster.data().with_file_name("log"))?;
    let mut found: Vec<String> = Vec::new();
    let mut within = false;
    for line in log.lines() {
        let of = |words: &[&str]| words.iter().any(|word| line.contains(word));
        if of(&[" ERROR: ", " FATAL: ", " PANIC: "]) {
            within = true;
            found.push(String::new());
        } else {
            within &= line.starts_with('\t')
                || of(&[" STATEMENT: ", " DETAIL: ", " HINT: ", " CONTEXT: ", " QUERY: "]);
        }
        if let Some(last) = found.last_mut().filter(|_| within) {
            last.push_str(line.trim());
            last.push('\n');
        }
    }
    Ok(found)
}

/// What a run gives rise to that has nothing to do with names.
const HARMLESS: [&str; 9] = [
    "the database system is starting up",
    // Before there is a state schema.
    "relation \"walhook.",
    "schema \"walhook\" does not exist",
    "canceling statement due to lock timeout",
    "terminating",
    "replication slot \"walhook",
    "could not receive data",
    "connection to client lost",
    "canceling statement due to user request",
];

async fn ok(world: &World, args: &[&str]) -> Result<String> {
    let output = world.walhook(args).await?;
    let said = text(&output.stdout) + &text(&output.stderr);
    ensure!(output.status.success(), "{args:?}: {said}\n{:#?}", errors(world)?);
    Ok(said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "one test of one thing, step by step")]
async fn statements_refer_to_nothing_of_a_hostile_schema_in_the_path() -> Result<()> {
    let mut world = World::bare(SECTIONS, &format!("{RULES}{PARTED}"), &[]).await?;
    world.sql.batch_execute(&format!("{SCHEMA};{ROLES}")).await?;
    world.sql.batch_execute(include_str!("search_path/shadows.sql")).await?;
    let (superuser, ours) = ("postgres://postgres@", "postgres://walhook@");
    world.edit_config(superuser, ours)?;
    let hooks = "table = \"public.hooks\"\nwatch = [\"public.webhooks\"]\nsearch_path";
    world.edit_config("table = \"public.webhooks\"", &format!("{hooks} = \"{HOSTILE}\""))?;
    let admin = world.cluster.url("postgres").replace(superuser, "postgres://boss@");
    world.env.push(("WALHOOK_TEST_SEARCH_PATH".to_owned(), HOSTILE.to_owned()));

    // Set up, by way of each complaint; the first wait ends in vain, and names who is waited for.
    world.walhook(&["check"]).await?;
    let other = world.connect().await?;
    other.batch_execute("BEGIN; SELECT pg_current_xact_id()").await?;
    let waited = world.walhook(&["setup", "--admin-url", &admin, "--wait", "1s"]).await?;
    ensure!(text(&waited.stderr).contains("open transactions of pid"), "{waited:?}");
    other.batch_execute("ROLLBACK").await?;
    ok(&world, &["setup", "--admin-url", &admin]).await?;
    ok(&world, &["setup"]).await?;
    ok(&world, &["setup", "--print-sql"]).await?;
    ok(&world, &["check"]).await?;

    // One that takes all, one that fails, one that is gone.
    let hook = async |id: i64, account: i64| world.hook(id, account, "").await;
    for id in 1..=3 {
        hook(id, id).await?;
    }
    world.sql.batch_execute("INSERT INTO accounts VALUES (1, 2), (2, 1)").await?;
    world.mock.set_behaviour("/2", Behaviour::status(StatusCode::SERVICE_UNAVAILABLE));
    world.mock.set_behaviour("/3", Behaviour::status(StatusCode::GONE));
    let running = world.run().await?;
    let standby = world.spawn_with(&[("WALHOOK_ADMIN__LISTEN", "127.0.0.1:0")])?;
    for id in 1..=30 {
        world.subscribe(id, 1 + id % 3).await?;
    }
    world.sql.batch_execute("INSERT INTO parted VALUES (1, 1)").await?;
    world.delivered(11).await?;
    world
        .until("SELECT count(*) FROM walhook.deliveries_pending WHERE endpoint <> ''", "10")
        .await?;
    world.until("SELECT count(*) FROM walhook.dead_letters", "10").await?;

    for args in [
        &["status"][..],
        &["check"],
        &["checkpoint", "show"],
        &["endpoints", "list"],
        &["endpoints", "list", "--trouble"],
        &["endpoints", "test", "1"],
        &["endpoints", "pause", "1"],
        &["endpoints", "resume", "1"],
        &["deferred", "list", "--since", "1h", "--until", "1s"],
        &["deferred", "retry", "--endpoint", "2"],
        &["deferred", "discard", "--endpoint", "2", "--yes"],
        &["dead-letters", "list", "--account", "3"],
        &["dead-letters", "show", "1"],
        &["dead-letters", "discard", "1", "--yes"],
        &["replay", "start", "--from", "1h", "--dry-run"],
        &["replay", "start", "--from", "1h", "--endpoint", "1"],
        &["replay", "list"],
        &["gaps", "list"],
        &["health"],
    ] {
        // Some have nothing to do, which is their business.
        let output = world.walhook(args).await?;
        ensure!(output.status.code() != Some(101), "{args:?}: {output:?}");
    }
    world.mock.set_behaviour("/3", Behaviour::ok());
    ok(&world, &["endpoints", "resume", "3"]).await?;
    ok(&world, &["dead-letters", "retry", "--all"]).await?;
    world.until("SELECT count(*) FROM walhook.dead_letters", "0").await?;
    world.walhook(&["replay", "start", "--from", "1h", "--wait", "0s"]).await?;
    world.walhook(&["replay", "cancel", "2"]).await?;
    world.settled().await?;
    drop(standby);
    ensure!(running.terminate().await?.success());

    // What nobody reads any more, and the ways to go on.
    world.walhook(&["recover", "--skip-change", "0/1", "--yes"]).await?;
    world.sql.batch_execute("UPDATE walhook.meta SET timeline = 7").await?;
    ok(&world, &["recover", "--adopt-cluster", "--yes"]).await?;
    world.sql.batch_execute("SELECT pg_drop_replication_slot('walhook')").await?;
    ok(&world, &["recover", "--accept-gap", "--yes"]).await?;
    ok(&world, &["gaps", "close", "1", "--note", "seen"]).await?;
    ok(&world, &["checkpoint", "reset", "--to", "FFFF/0", "--skip", "--yes"]).await.ok();
    let running = world.run().await?;
    world.subscribe(100, 1).await?;
    world.settled().await?;
    ensure!(running.terminate().await?.success());
    ok(&world, &["teardown", "--yes", "--admin-url", &admin]).await?;

    let mut found = errors(&world)?;
    found.retain(|error| !HARMLESS.iter().any(|harmless| error.contains(harmless)));
    ensure!(found.is_empty(), "{found:#?}");
    Ok(())
}
