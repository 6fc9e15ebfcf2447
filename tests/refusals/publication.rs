//! Publication and replica identity: what would lose changes, or make a table's own UPDATE fail.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::Instant;

use super::{Mistake, complaints, refused, world_of_sender};
use crate::support::{RULES, World, text};

const OF_RULES: &str = "DROP TABLE IF EXISTS log, made; ALTER PUBLICATION walhook
    SET TABLE subscribers, webhooks";

#[tokio::test]
async fn case_17_mistakes_in_identity_and_publication_are_named_with_their_fix() -> Result<()> {
    let mut world = world_of_sender("", RULES).await?;
    ensure!(complaints(&world).await?.is_empty());
    for mistake in [
        Mistake {
            breaks: "ALTER TABLE subscribers REPLICA IDENTITY DEFAULT",
            fixes: "ALTER TABLE subscribers REPLICA IDENTITY FULL",
            check: "fail  rule 3 (subscriber.deleted): on delete it needs the old value of account_id",
            fix: "ALTER TABLE public.subscribers REPLICA IDENTITY FULL",
            run: "needs the old value of account_id",
        },
        Mistake {
            breaks: "ALTER PUBLICATION walhook DROP TABLE subscribers",
            fixes: "ALTER PUBLICATION walhook ADD TABLE subscribers",
            check: "fail  publication: walhook does not hold public.subscribers",
            fix: "run `walhook setup`",
            run: "does not hold the table public.subscribers",
        },
        Mistake {
            breaks: "ALTER PUBLICATION walhook SET (publish = 'insert, update')",
            fixes: "ALTER PUBLICATION walhook SET (publish = 'insert, update, delete, truncate')",
            check: "fail  publication: walhook does not publish delete, which subscriber.deleted needs",
            fix: "run `walhook setup`",
            run: "does not publish deletes",
        },
        Mistake {
            breaks: "CREATE TABLE log (id int); INSERT INTO log VALUES (1);
                     ALTER PUBLICATION walhook ADD TABLE log",
            fixes: OF_RULES,
            check: "fail  replica identity: public.log has no replica identity, so that its own UPDATE",
            fix: "or ALTER TABLE public.log REPLICA IDENTITY FULL",
            run: "makes UPDATE and DELETE of public.log fail: it has no replica identity",
        },
        Mistake {
            breaks: "CREATE TABLE log (id int PRIMARY KEY DEFERRABLE);
                     ALTER PUBLICATION walhook ADD TABLE log",
            fixes: OF_RULES,
            check: "fail  replica identity: public.log has no replica identity",
            fix: "or ALTER TABLE public.log REPLICA IDENTITY FULL",
            run: "makes UPDATE and DELETE of public.log fail",
        },
    ] {
        refused(&mut world, &mistake).await.context(mistake.breaks)?;
    }
    let _leads = world.run().await?;
    Ok(())
}

#[tokio::test]
async fn row_filters_and_column_lists_that_hide_what_rules_need_are_named() -> Result<()> {
    let mut world = world_of_sender("", RULES).await?;
    if world.value("SELECT current_setting('server_version_num')::int / 10000").await? == "14" {
        return Ok(());
    }
    for mistake in [
        Mistake {
            breaks: "ALTER PUBLICATION walhook SET TABLE webhooks, subscribers WHERE (id > 0)",
            fixes: OF_RULES,
            check: "fail  publication: walhook has a row filter on public.subscribers",
            fix: "use `when` in the rule for public.subscribers",
            run: "has a row filter for the table public.subscribers",
        },
        Mistake {
            breaks: "ALTER PUBLICATION walhook SET TABLE webhooks, subscribers (id, account_id, email)",
            fixes: OF_RULES,
            check: "fail  rule 1 (subscriber.created): columns: the publication's column list leaves \
                    out status",
            fix: "with this column in it",
            run: "the publication's column list leaves out status",
        },
        // Its own rows fail to be updated, whoever they concern.
        Mistake {
            breaks: "CREATE TABLE log (id int PRIMARY KEY, a int);
                     ALTER PUBLICATION walhook ADD TABLE log (a)",
            fixes: OF_RULES,
            check: "fail  replica identity: public.log has a column list that its replica identity does not fit",
            fix: "publish public.log again without it",
            run: "log fail: it has a column list",
        },
        Mistake {
            breaks: "CREATE TABLE log (id int PRIMARY KEY, a int);
                     ALTER PUBLICATION walhook ADD TABLE log WHERE (a > 0)",
            fixes: OF_RULES,
            check: "fail  replica identity: public.log has a row filter that its replica identity does not fit",
            fix: "publish public.log again without it",
            run: "log fail: it has a row filter",
        },
    ] {
        refused(&mut world, &mistake).await.context(mistake.breaks)?;
    }
    Ok(())
}

/// Whether a table's own UPDATE fails, which is what the refusal is about.
async fn update_fails(world: &World, table: &str) -> bool {
    world.sql.batch_execute(&format!("UPDATE {table} SET id = id")).await.is_err()
}

#[tokio::test]
async fn refused_tables_are_those_whose_own_updates_fail() -> Result<()> {
    let world = world_of_sender("", RULES).await?;
    world
        .sql
        .batch_execute(
            "CREATE TABLE fine (id int PRIMARY KEY, n int);
             CREATE TABLE whole (id int, n int); ALTER TABLE whole REPLICA IDENTITY FULL;
             CREATE TABLE by_index (id int NOT NULL, n int);
             CREATE UNIQUE INDEX by_index_id ON by_index (id);
             ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_id;
             CREATE TABLE bare (id int, n int);
             CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
             CREATE TABLE late (id int PRIMARY KEY DEFERRABLE);
             CREATE TABLE made (id int, n int GENERATED ALWAYS AS (id + 1) STORED);
             ALTER TABLE made REPLICA IDENTITY FULL;
             CREATE TABLE parted (id int) PARTITION BY RANGE (id);
             CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
             INSERT INTO fine VALUES (1); INSERT INTO whole VALUES (1); INSERT INTO by_index VALUES (1);
             INSERT INTO bare VALUES (1); INSERT INTO nothing VALUES (1); INSERT INTO late VALUES (1);
             INSERT INTO made VALUES (1); INSERT INTO parted VALUES (1);
             ALTER PUBLICATION walhook ADD TABLE
                 fine, whole, by_index, bare, nothing, late, made, parted",
        )
        .await?;
    let mut tables =
        vec!["fine", "whole", "by_index", "bare", "nothing", "late", "made", "parted_1"];
    if world.value("SHOW server_version_num").await?.parse::<i32>()? >= 180_000 {
        let sql =
            "CREATE TABLE unreal (id int PRIMARY KEY, n int GENERATED ALWAYS AS (id) VIRTUAL);
                   CREATE TABLE seen (LIKE unreal INCLUDING ALL); INSERT INTO seen VALUES (1);
                   ALTER TABLE unreal REPLICA IDENTITY FULL; INSERT INTO unreal VALUES (1);
                   ALTER PUBLICATION walhook ADD TABLE unreal, seen";
        world.sql.batch_execute(sql).await?;
        tables.extend(["unreal", "seen"]);
    }
    let found = complaints(&world).await?;
    let mut failing = Vec::new();
    for table in tables {
        let named = found.iter().any(|line| {
            line.starts_with(&format!("fail  replica identity: public.{table} "))
                && line.contains("; ")
        });
        let fails = update_fails(&world, table).await;
        ensure!(named == fails, "{table}: named {named}, fails {fails}: {found:#?}");
        failing.extend(fails.then_some(table));
    }
    ensure!(failing.contains(&"late") && failing.contains(&"parted_1"), "{failing:?}");
    Ok(())
}

#[tokio::test]
async fn publication_younger_than_the_slot_is_named_and_halts() -> Result<()> {
    let mut world = world_of_sender("", RULES).await?;
    // So that the warning of PostgreSQL 18 would not even be sent.
    world.sql.batch_execute("ALTER ROLE sender SET client_min_messages = 'error'").await?;
    world.sql.batch_execute("DROP PUBLICATION walhook").await?;
    world.subscribe(1, 1).await?;
    world.sql.batch_execute("CREATE PUBLICATION walhook FOR TABLE subscribers, webhooks").await?;
    let found = complaints(&world).await?;
    let old =
        world.value("SELECT (current_setting('server_version_num')::int < 180000)::text").await?;
    let (expected, fix) = match &*old {
        "true" => (
            "fail  publication: walhook is younger than the slot walhook",
            "drop the slot; `walhook recover --accept-gap` makes a new one",
        ),
        _ => (
            "warn  publication: walhook may be younger than where the slot walhook reads",
            "it halts and says what to do",
        ),
    };
    ensure!(
        found.len() == 1 && found[0].starts_with(expected) && found[0].ends_with(fix),
        "{found:?}"
    );

    let (status, log) = world.spawn()?.ended_with_log().await?;
    ensure!(status.code() == Some(3), "{status}:\n{log}");
    ensure!(
        log.contains("publication \"walhook\"") && log.contains("recover --accept-gap"),
        "{log}"
    );
    Ok(())
}

#[tokio::test]
async fn slot_of_a_second_pipeline_beside_an_older_one_has_nothing_to_complain_of() -> Result<()> {
    let mut world = world_of_sender("", RULES).await?;
    ensure!(world.run().await?.terminate().await?.success());
    // The first slot holds an old `catalog_xmin`, which the second inherits.
    for id in 1..20 {
        world.subscribe(id, 1).await?;
    }
    world.edit_config("[source]", "[source]\nslot = \"two\"\npublication = \"two\"")?;
    let admin = world.cluster.url("postgres");
    let setup = world.walhook(&["setup", "--new-pipeline", "--admin-url", &admin]).await?;
    ensure!(setup.status.success(), "{}", text(&setup.stderr));
    // The first one does not run.
    let is_content = async |world: &World| {
        let found = complaints(world).await?;
        ensure!(found.len() == 1 && found[0].starts_with("warn  pipelines: "), "{found:?}");
        anyhow::Ok(())
    };
    is_content(&world).await?;
    let running = world.run().await?;
    is_content(&world).await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn publication_by_another_name_is_refused_and_costs_nothing() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    ensure!(running.terminate().await?.success());
    world.subscribe(2, 1).await?;

    world.edit_config("[source]", "[source]\npublication = \"other\"")?;
    let says = [
        "\"other\" does not exist",
        "set source.publication back to \"walhook\"",
        "Nothing is lost",
    ];
    let (status, log) = world.spawn()?.ended_with_log().await?;
    ensure!(status.code() == Some(2), "{status}:\n{log}");
    ensure!(says.iter().all(|part| log.contains(part)), "{log}");
    let setup = world.walhook(&["setup"]).await?;
    ensure!(setup.status.code() == Some(2), "{}", text(&setup.stdout));
    ensure!(says.iter().all(|part| text(&setup.stderr).contains(part)), "{}", text(&setup.stderr));
    let check = text(&world.walhook(&["check"]).await?.stdout);
    ensure!(says.iter().all(|part| check.contains(part)), "{check}");
    let made = "SELECT count(*) FROM pg_publication WHERE pubname = 'other'";
    ensure!(world.value(made).await? == "0");

    // Renamed in the database, too.
    world.sql.batch_execute("ALTER PUBLICATION walhook RENAME TO renamed").await?;
    let (status, log) = world.spawn()?.ended_with_log().await?;
    let renamed = "was renamed from \"walhook\" to \"renamed\"";
    ensure!(status.code() == Some(2) && log.contains(renamed), "{status}:\n{log}");
    world.sql.batch_execute("ALTER PUBLICATION renamed RENAME TO walhook").await?;

    world.edit_config("publication = \"other\"\n", "")?;
    let _running = world.run().await?;
    world.delivered(2).await?;
    Ok(())
}

#[tokio::test]
async fn instance_that_does_not_fit_is_refused_beside_a_leader_that_goes_on() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    let later = "CREATE TABLE later (id bigint PRIMARY KEY, account_id bigint NOT NULL)";
    world.sql.batch_execute(later).await?;
    let before = std::fs::read_to_string(world.config())?;
    let rule = |table: &str| {
        format!(
            "[[events]]\ntype = \"later.created\"\ntable = \"public.{table}\"\non = [\"insert\"]\n\
             account = \"account_id\"\ncolumns = [\"id\"]\n"
        )
    };
    let (not_published, no_table) = (rule("later"), rule("never"));
    for (toml, says) in [
        (format!("{before}\n{not_published}"), "does not hold the table public.later"),
        (format!("{before}\n{no_table}"), "public.never"),
        (
            before.replacen("[source]", "[source]\npublication = \"other\"", 1),
            "set source.publication back to \"walhook\"",
        ),
    ] {
        world.write_config(&toml)?;
        let beside = [("WALHOOK_ADMIN__LISTEN", "127.0.0.1:0")];
        let (status, log) = world.spawn_with(&beside)?.ended_with_log().await?;
        ensure!(status.code() == Some(2) && log.contains(says), "{says}: {status}:\n{log}");
    }

    world.write_config(&before)?;
    world.subscribe(2, 1).await?;
    world.delivered(2).await?;
    let output = world.walhook(&["status"]).await?;
    ensure!(output.status.success(), "status: {}", text(&output.stdout));
    ensure!(running.terminate().await?.success());
    Ok(())
}

/// As docs/install.md says.
#[tokio::test]
async fn publication_is_changed_without_a_loss_once_the_checkpoint_has_passed_the_new_one()
-> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    world.sql.batch_execute("CREATE PUBLICATION other FOR TABLE subscribers, webhooks").await?;
    let at = world.value("SELECT pg_current_wal_lsn()").await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;
    world
        .until(&format!("SELECT (frontier > '{at}')::text FROM walhook.checkpoint"), "true")
        .await?;
    ensure!(running.terminate().await?.success());
    world.subscribe(2, 1).await?;
    world.edit_config("[source]", "[source]\npublication = \"other\"")?;
    world.set_up().await?;
    let _running = world.run().await?;
    world.subscribe(3, 1).await?;
    world.delivered(3).await?;
    // Whether the new one held the tables all the time is not known.
    world.until("SELECT count(*) FROM walhook.gaps", "2").await?;
    let gaps = text(&world.walhook(&["gaps", "list"]).await?.stdout);
    ensure!(gaps.contains("source.publication names other now, where it named walhook"), "{gaps}");
    Ok(())
}

#[tokio::test]
async fn rule_that_loses_its_column_or_identity_while_nothing_is_written_halts() -> Result<()> {
    let mut world = world_of_sender("", RULES).await?;
    world.hook(1, 1, "").await?;
    let mut delivered = 0;
    for (breaks, fixes, says) in [
        (
            "ALTER TABLE subscribers RENAME status TO state",
            "ALTER TABLE subscribers RENAME state TO status",
            "rule 1 (subscriber.created): columns: public.subscribers has no column status",
        ),
        (
            "ALTER TABLE subscribers REPLICA IDENTITY DEFAULT",
            "ALTER TABLE subscribers REPLICA IDENTITY FULL",
            "rule 3 (subscriber.deleted): on delete it needs the old value of account_id",
        ),
    ] {
        let running = world.run().await?;
        delivered += 1;
        world.subscribe(delivered, 1).await?;
        world.sql.batch_execute(breaks).await?;
        let began = Instant::now();
        let (status, log) = running.ended_with_log().await?;
        ensure!(status.code() == Some(3) && log.contains(says), "{breaks}: {status}:\n{log}");
        ensure!(began.elapsed() < Duration::from_secs(40), "after {:?}", began.elapsed());
        // What was written before was delivered before.
        world.delivered(delivered.unsigned_abs()).await?;
        let status = text(&world.walhook(&["status"]).await?.stdout);
        ensure!(status.contains(says), "{status}");
        world.sql.batch_execute(fixes).await?;
    }
    ensure!(complaints(&world).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn writes_that_come_to_fail_later_are_told_by_who_leads_and_keep_no_later_start_away()
-> Result<()> {
    let rules = RULES.replace("\"update\"", "\"insert\"").replace("\"delete\"", "\"insert\"");
    let mut world = World::bare("", &rules, &[]).await?;
    world
        .sql
        .batch_execute(
            "CREATE TABLE subscribers (id bigint, account_id bigint NOT NULL, email text, status text)
                 PARTITION BY RANGE (id);
             CREATE TABLE low PARTITION OF subscribers FOR VALUES FROM (MINVALUE) TO (100);
             ALTER TABLE subscribers REPLICA IDENTITY FULL; ALTER TABLE low REPLICA IDENTITY FULL;
             CREATE TABLE webhooks (id bigint PRIMARY KEY, account_id bigint NOT NULL, url text NOT NULL,
                 event_types text[] NOT NULL DEFAULT '{*}', secret text, enabled boolean NOT NULL DEFAULT true)",
        )
        .await?;
    world.set_up().await?;
    let found = complaints(&world).await?;
    let key = "warn  replica identity: public.subscribers is partitioned and has no primary key";
    ensure!(found.iter().any(|line| line.starts_with(key)), "{found:#?}");
    world.hook(1, 1, "").await?;
    let mut running = world.run().await?;
    let attach = "CREATE TABLE high PARTITION OF subscribers FOR VALUES FROM (100) TO (200)";
    world.sql.batch_execute(attach).await?;
    world.subscribe(100, 1).await?;
    ensure!(update_fails(&world, "high").await);
    // What a restart finds is told as by who led before.
    let leaves = "ALTER PUBLICATION walhook DROP TABLE webhooks";
    let told = |part| format!("SELECT count(*) FROM walhook.troubles WHERE part = '{part}'");
    for (n, breaks) in [(1, ""), (2, leaves)] {
        running.until_logged("UPDATE and DELETE of public.high fail").await?;
        world.until(&told("writes"), "1").await?;
        world.sql.batch_execute(breaks).await?;
        ensure!(running.terminate().await?.success());
        running = world.run().await?;
        world.subscribe(100 + n, 1).await?;
        world.delivered(u64::try_from(n)? + 1).await?;
    }
    world.until(&told("watch"), "1").await?;
    let fixes =
        "ALTER TABLE high REPLICA IDENTITY FULL; ALTER PUBLICATION walhook ADD TABLE webhooks";
    world.sql.batch_execute(fixes).await?;
    world.until(&told("writes"), "0").await?;
    world.until(&told("watch"), "0").await?;
    ensure!(!update_fails(&world, "high").await);
    ensure!(running.terminate().await?.success());
    Ok(())
}
