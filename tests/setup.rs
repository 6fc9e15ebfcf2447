//! `walhook setup` with the rights that one has on other people's servers, and in trouble.

use anyhow::{Context, Result, ensure};
use tokio::time::Instant;
use walhook_core::endpoint::Secret;
use walhook_postgres::sql::{Connection, SERVER_SEARCH_PATH};
use walhook_testkit::script::statements;

use crate::support::{PATIENCE, RULES, SCHEMA, World, text};

/// What separates the administrator's part of the printed script from our own role's.
const OURS: &str = "-- Part 2";

/// A world whose database belongs to `keeper`, who is no superuser, and where walhook is `sender`, who
/// has no rights at all.
async fn managed_world() -> Result<World> {
    let world = World::bare("", RULES, &[("max_slot_wal_keep_size", "1GB")]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    world
        .sql
        .batch_execute(
            "CREATE ROLE keeper LOGIN; CREATE ROLE sender LOGIN;
             ALTER DATABASE postgres OWNER TO keeper;
             ALTER TABLE subscribers OWNER TO keeper; ALTER TABLE webhooks OWNER TO keeper",
        )
        .await?;
    world.edit_config("postgres://postgres@", "postgres://sender@")?;
    Ok(world)
}

fn url_of(world: &World, role: &str) -> String {
    world.cluster.url("postgres").replace("//postgres@", &format!("//{role}@"))
}

async fn connect(world: &World, role: &str) -> Result<Connection> {
    Connection::open_with_path(&Secret::new(url_of(world, role)), "test", SERVER_SEARCH_PATH)
        .await
        .map_err(Into::into)
}

async fn run_statements(client: &Connection, script: &str) -> Result<()> {
    // A slot cannot be created in a transaction that has written, so one statement at a time.
    for statement in statements(script) {
        client.batch_execute(&statement).await.with_context(|| statement.clone())?;
    }
    Ok(())
}

/// `check` finds nothing, `setup` has nothing to do, and events are delivered.
async fn works(world: &mut World) -> Result<()> {
    world.hook(1, 1, "").await?;
    let output = world.walhook(&["check"]).await?;
    let lines = text(&output.stdout);
    ensure!(lines.lines().all(|line| line.starts_with("pass")), "check: {lines}");
    let steps = world.walhook_json(&["setup"]).await?;
    let steps = steps["steps"].as_array().context("no steps")?;
    ensure!(steps.iter().all(|step| step["did"] == "exists"), "{steps:?}");
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn printed_grants_and_nothing_more_suffice_for_a_role_and_an_administrator_without_rights()
-> Result<()> {
    let mut world = managed_world().await?;
    let printed = world.walhook_json(&["setup", "--print-sql"]).await?;
    let script = printed["sql"].as_str().context("no script")?;
    let (admins, ours) = script.split_once(OURS).context("no second part")?;
    // The one statement that is a superuser's up to PostgreSQL 15.
    let right = "ALTER ROLE \"sender\" REPLICATION;\n";
    ensure!(admins.contains(right), "{admins}");
    world.sql.batch_execute(right).await?;
    run_statements(&connect(&world, "keeper").await?, &admins.replace(right, "")).await?;
    run_statements(&connect(&world, "sender").await?, &format!("{OURS}{ours}")).await?;
    works(&mut world).await
}

#[tokio::test]
async fn printed_script_for_rds_grants_its_role_instead() -> Result<()> {
    let world = managed_world().await?;
    world
        .sql
        .batch_execute(
            "CREATE ROLE rds_replication; GRANT rds_replication TO keeper WITH ADMIN OPTION",
        )
        .await?;
    let printed = world.walhook_json(&["setup", "--print-sql=rds"]).await?;
    let script = printed["sql"].as_str().context("no script")?;
    let (admins, _) = script.split_once(OURS).context("no second part")?;
    run_statements(&connect(&world, "keeper").await?, admins).await?;
    let member = "SELECT pg_has_role('sender', 'rds_replication', 'USAGE')::text";
    ensure!(world.value(member).await? == "true");
    Ok(())
}

#[tokio::test]
async fn setup_by_an_administrator_who_may_not_replicate_makes_the_slot_as_our_role() -> Result<()>
{
    let mut world = managed_world().await?;
    let admin = url_of(&world, "keeper");
    let refused = world.walhook(&["setup", "--admin-url", &admin]).await?;
    let error = text(&refused.stderr);
    ensure!(refused.status.code() == Some(1), "{error}");
    ensure!(error.contains("may not run: ALTER ROLE \"sender\" REPLICATION"), "{error}");

    world.sql.batch_execute("ALTER ROLE sender REPLICATION").await?;
    let output = world.walhook(&["setup", "--admin-url", &admin]).await?;
    ensure!(output.status.success(), "setup: {}", text(&output.stderr));
    works(&mut world).await
}

#[tokio::test]
async fn case_18_setup_killed_while_it_creates_the_slot_leaves_none_behind() -> Result<()> {
    let world = World::bare("", RULES, &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    let other = world.connect().await?;
    other
        .batch_execute("BEGIN; INSERT INTO webhooks (id, account_id, url) VALUES (1, 1, '')")
        .await?;
    let mut child = world.start(&["setup", "--wait", "10m"])?;
    let slots = "SELECT count(*)::text FROM pg_replication_slots";
    world.until(slots, "1").await?;
    child.kill().await?;
    world.until(slots, "0").await?;
    other.batch_execute("ROLLBACK").await?;
    // It would have been made by now, had somebody still waited for that.
    world.set_up().await?;
    ensure!(world.value(slots).await? == "1");
    Ok(())
}

#[tokio::test]
async fn setup_waits_for_open_transactions_and_goes_on_when_they_end() -> Result<()> {
    let world = World::bare("", RULES, &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    let other = world.connect().await?;
    other
        .batch_execute("BEGIN; INSERT INTO webhooks (id, account_id, url) VALUES (1, 1, '')")
        .await?;
    let mut child = world.start(&["setup", "--wait", "10m"])?;
    // Longer than one attempt takes.
    world.until("SELECT count(*)::text FROM pg_replication_slots", "1").await?;
    let began = Instant::now();
    world.until("SELECT count(*)::text FROM pg_replication_slots", "0").await?;
    ensure!(began.elapsed() < PATIENCE && child.try_wait()?.is_none(), "it gave up");
    other.batch_execute("COMMIT").await?;
    ensure!(child.wait().await?.success());
    Ok(())
}

#[tokio::test]
async fn case_19_setup_without_a_free_slot_names_those_that_are_used() -> Result<()> {
    let world = World::bare("", RULES, &[("max_replication_slots", "1")]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    let occupy = "SELECT pg_create_physical_replication_slot('somebody')";
    world.sql.batch_execute(occupy).await?;
    let output = world.walhook(&["setup"]).await?;
    let error = text(&output.stderr);
    let expected = "max_replication_slots = 1 are used by somebody (inactive): drop one";
    ensure!(output.status.code() == Some(1) && error.contains(expected), "{error}");
    let check = text(&world.walhook(&["check"]).await?.stdout);
    ensure!(check.contains("fail  max_replication_slots: none left"), "{check}");

    world.sql.batch_execute("SELECT pg_drop_replication_slot('somebody')").await?;
    world.set_up().await?;
    let check = text(&world.walhook(&["check"]).await?.stdout);
    ensure!(check.contains("warn  max_replication_slots: 0 left, but walhook needs 2"), "{check}");
    Ok(())
}
