//! Rights, and the tables that walhook reads: what our role may not read or do, and what is not there.

use anyhow::{Context, Result, ensure};

use super::{Mistake, complaints, refused, text, world_of_sender};
use crate::support::RULES;

#[tokio::test]
async fn mistakes_of_a_new_user_in_rights_and_columns_are_named_with_their_fix() -> Result<()> {
    let mut world = world_of_sender("", RULES).await?;
    for mistake in [
        Mistake {
            breaks: "ALTER ROLE sender NOREPLICATION",
            fixes: "ALTER ROLE sender REPLICATION",
            check: "fail  privileges: sender may not replicate; ALTER ROLE \"sender\" REPLICATION",
            fix: "or run `walhook setup --admin-url`",
            run: "privileges: sender may not replicate; ALTER ROLE \"sender\" REPLICATION",
        },
        Mistake {
            breaks: "ALTER ROLE sender NOLOGIN",
            fixes: "ALTER ROLE sender LOGIN",
            check: "fail  connection: source.url: no session with 127.0.0.1:",
            fix: "ALTER ROLE \"sender\" LOGIN",
            run: "ALTER ROLE \"sender\" LOGIN",
        },
        Mistake {
            breaks: "REVOKE SELECT ON webhooks FROM sender",
            fixes: "GRANT SELECT ON webhooks TO sender",
            check: "fail  privileges: sender may not read public.webhooks",
            fix: "TO \"sender\"",
            run: "privileges: sender may not read public.webhooks; GRANT SELECT ON",
        },
        Mistake {
            breaks: "ALTER TABLE webhooks RENAME secret TO signing_key",
            fixes: "ALTER TABLE webhooks RENAME signing_key TO secret",
            check: "fail  endpoints.secret: public.webhooks has no column secret",
            fix: "name the column in endpoints.secret",
            run: "endpoints.secret: public.webhooks has no column secret; there are id, account_id",
        },
        Mistake {
            breaks: "ALTER TABLE webhooks ALTER enabled DROP DEFAULT, ALTER enabled TYPE text",
            fixes: "ALTER TABLE webhooks ALTER enabled TYPE boolean USING enabled::boolean",
            check: "fail  endpoints.enabled: public.webhooks.enabled is text",
            fix: "it must be boolean",
            run: "endpoints.enabled: public.webhooks.enabled is text; it must be boolean",
        },
        Mistake {
            breaks: "ALTER TABLE webhooks RENAME TO hooks",
            fixes: "ALTER TABLE hooks RENAME TO webhooks",
            check: "fail  endpoints.table: public.webhooks does not exist",
            fix: "correct endpoints.table, or create it",
            run: "endpoints.table: public.webhooks does not exist; correct endpoints.table",
        },
        Mistake {
            breaks: "ALTER SCHEMA walhook RENAME TO away",
            fixes: "ALTER SCHEMA away RENAME TO walhook",
            check: "fail  state: the schema walhook has 0 of ",
            fix: "run `walhook setup --admin-url`",
            run: "run `walhook setup`",
        },
        Mistake {
            breaks: "REVOKE USAGE ON SCHEMA walhook FROM sender",
            fixes: "GRANT USAGE ON SCHEMA walhook TO sender",
            check: "fail  state: ",
            fix: "",
            run: "run `walhook setup --admin-url`, which grants our role what it needs",
        },
        Mistake {
            breaks: "DROP TABLE walhook.gaps CASCADE",
            fixes: "SELECT",
            check: "fail  state: the schema walhook has ",
            fix: "run `walhook setup --admin-url`",
            run: "run `walhook setup`",
        },
    ] {
        if mistake.fixes == "SELECT" {
            // Last: only `setup` brings it back.
            world.sql.batch_execute(mistake.breaks).await?;
            let (status, log) = world.spawn()?.ended_with_log().await?;
            ensure!(status.code() == Some(2) && log.contains(mistake.run), "{status}: {log}");
            ensure!(complaints(&world).await?.iter().any(|line| line.starts_with(mistake.check)));
            continue;
        }
        refused(&mut world, &mistake).await.context(mistake.breaks)?;
    }
    Ok(())
}

#[tokio::test]
async fn rows_that_row_level_security_hides_are_named_and_the_printed_fix_shows_them() -> Result<()>
{
    let mut world = world_of_sender("", RULES).await?;
    let line = "fail  row-level security: hides rows of public.webhooks from the role sender; ";
    for breaks in [
        "ALTER TABLE webhooks ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE webhooks ENABLE ROW LEVEL SECURITY;
         CREATE POLICY few ON webhooks USING (id < 0)",
    ] {
        world.sql.batch_execute(breaks).await?;
        let found = complaints(&world).await?;
        ensure!(found.len() == 1 && found[0].starts_with(line), "{breaks}: {found:#?}");
        let (status, log) = world.spawn()?.ended_with_log().await?;
        ensure!(status.code() == Some(2), "{status}:\n{log}");
        ensure!(log.contains("hides rows of public.webhooks from the role sender"), "{log}");

        let fix = found[0].strip_prefix(line).and_then(|fix| fix.split(", or ").next());
        world.sql.batch_execute(fix.context("no fix")?).await?;
        ensure!(complaints(&world).await?.is_empty());
        world.sql.batch_execute("DROP POLICY walhook ON webhooks").await?;
    }
    // A restrictive policy hides rows that another shows.
    world
        .sql
        .batch_execute(
            "CREATE POLICY walhook ON webhooks FOR SELECT TO sender USING (true);
             CREATE POLICY less ON webhooks AS RESTRICTIVE USING (id > 0)",
        )
        .await?;
    ensure!(complaints(&world).await?.iter().any(|found| found.starts_with(line)));
    world.sql.batch_execute("ALTER ROLE sender BYPASSRLS").await?;
    ensure!(complaints(&world).await?.is_empty());

    // Taken away while it runs.
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    world.sql.batch_execute("ALTER ROLE sender NOBYPASSRLS").await?;
    world.until_unready("row-level security may hide rows of public.webhooks").await?;
    world.hook(2, 2, "").await?;
    world.subscribe(2, 2).await?;
    world.subscribe(3, 1).await?;
    world.delivered(2).await?;
    world.sql.batch_execute("ALTER ROLE sender BYPASSRLS").await?;
    world.delivered(3).await?;
    world.until_ready(true).await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn state_that_row_level_security_hides_is_named_by_every_command() -> Result<()> {
    let mut world = world_of_sender("", RULES).await?;
    world.hook(1, 1, "").await?;
    let all = |change: &str| {
        format!(
            "DO $$ DECLARE t regclass; BEGIN
               FOR t IN SELECT oid FROM pg_class WHERE relnamespace = 'walhook'::regnamespace AND relkind = 'r'
               LOOP EXECUTE format('ALTER TABLE %s {change} ROW LEVEL SECURITY', t); END LOOP; END $$"
        )
    };
    let named = |said: &str| {
        let known = said.contains("row-level security") && said.contains("BYPASSRLS");
        let astray =
            ["another instance has taken over", "walhook setup` first", "drop_replication"];
        known && !astray.iter().any(|words| said.contains(words))
    };
    // While it runs, and at its start.
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    world.sql.batch_execute(&all("ENABLE")).await?;
    world.subscribe(2, 1).await?;
    world.until_unready("row-level security").await?;
    // It would wait for the state, to store what was sent.
    running.kill().await?;
    let (status, log) = world.spawn()?.ended_with_log().await?;
    ensure!(status.code() == Some(2) && named(&log), "{status}:\n{log}");

    let admin = world.cluster.url("postgres");
    for arguments in [
        &["setup"][..],
        &["setup", "--admin-url", &admin],
        &["recover", "--accept-gap", "--yes"],
        &["status"],
    ] {
        let output = world.walhook(arguments).await?;
        let said = text(&output.stderr);
        ensure!(!output.status.success() && named(&said), "{arguments:?}: {said}");
    }
    let found = complaints(&world).await?;
    let line = "fail  state: row-level security hides rows of state tables in the schema walhook";
    ensure!(found.iter().any(|found| found.starts_with(line)), "{found:#?}");

    world.sql.batch_execute("ALTER ROLE sender BYPASSRLS").await?;
    ensure!(complaints(&world).await?.is_empty());
    let running = world.run().await?;
    world.delivered(2).await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn view_on_a_protected_table_is_judged_by_who_reads_it() -> Result<()> {
    let mut world = world_of_sender("", RULES).await?;
    world
        .sql
        .batch_execute(
            "CREATE ROLE keeper; ALTER TABLE webhooks OWNER TO keeper;
             ALTER TABLE webhooks ENABLE ROW LEVEL SECURITY;
             CREATE VIEW hooks AS SELECT * FROM webhooks; ALTER VIEW hooks OWNER TO keeper;
             GRANT SELECT ON hooks TO sender",
        )
        .await?;
    let watch = "table = \"public.hooks\"\nwatch = [\"public.webhooks\"]";
    world.edit_config("table = \"public.webhooks\"", watch)?;
    ensure!(complaints(&world).await?.is_empty(), "the owner sees all");
    let mistake = Mistake {
        breaks: "ALTER TABLE webhooks FORCE ROW LEVEL SECURITY",
        fixes: "ALTER TABLE webhooks NO FORCE ROW LEVEL SECURITY",
        check: "fail  row-level security: hides rows of public.webhooks from the role keeper",
        fix: "BYPASSRLS where a restrictive policy stands against that",
        run: "from the role keeper",
    };
    refused(&mut world, &mistake).await
}
