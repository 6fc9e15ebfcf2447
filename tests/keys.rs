//! Columns that hold ids and accounts: what SQL joins is delivered, and what is deleted is forgotten,
//! whatever the type and however it is printed.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};

use crate::support::{PATIENCE, SECRET, World, text};

/// A type, and two of its values, as literals.
type Case = (&'static str, &'static str, &'static str);

const NUMBERS: [Case; 7] = [
    ("smallint", "-7", "8"),
    ("int", "7", "-2147483648"),
    ("bigint", "9223372036854775807", "8"),
    ("numeric", "42.00", "1e30"),
    ("numeric(10,2)", "42", "43.5"),
    ("oid", "4294967295", "8"),
    ("over_bigint", "7", "8"),
];

const TEXTS: [Case; 7] = [
    ("text", "'Ac me'", "'acme '"),
    ("varchar(20)", "'acme'", "'ACME'"),
    ("char(8)", "'acme'", "'other'"),
    ("name", "'acme'", "'other'"),
    ("citext", "'Acme'", "'other'"),
    ("over_text", "'acme'", "'é😀'"),
    ("mood", "'happy'", "'so so'"),
];

const OTHERS: [Case; 6] = [
    ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "'{a0eebc999c0b4ef8bb6d6bb9bd380a12}'"),
    ("boolean", "true", "false"),
    ("inet", "'10.0.0.1'", "'10.0.0.1/24'"),
    ("date", "'2024-02-29'", "'infinity'"),
    ("timestamptz", "'2024-02-29 12:00:00.5+02'", "'1900-01-01 00:00+00'"),
    ("bytea", r"'\xdeadbeef00'", r"'\x00'"),
];

const TYPES: &str = "
    CREATE DOMAIN over_bigint AS bigint CHECK (VALUE > 0);
    CREATE DOMAIN over_text AS text CHECK (VALUE <> '');
    CREATE TYPE mood AS ENUM ('happy', 'so so')";

const RULE: &str = r#"
[[events]]
type = "event.created"
table = "public.events_0"
on = ["insert"]
account = "account_id"
columns = ["id"]
"#;

const WEIGHTS: &str = "[accounts]\ntable = \"public.weights_0\"\n";

/// A cluster with the tables of each case, and the configuration of the first.
async fn world(cases: &[Case]) -> Result<World> {
    let world = World::bare(WEIGHTS, RULE, &[]).await?;
    world.reconfigure("public.webhooks", "public.hooks_0")?;
    world.sql.batch_execute(TYPES).await?;
    if cases.iter().any(|(kind, ..)| *kind == "citext") {
        world.sql.batch_execute("CREATE EXTENSION citext").await?;
    }
    let mut tables = String::new();
    for (n, (kind, first, _)) in cases.iter().enumerate() {
        // The weight is one that the log has to complain of, once it is found.
        write!(
            tables,
            "CREATE TABLE events_{n} (id bigint PRIMARY KEY, account_id {kind} NOT NULL);
             CREATE TABLE hooks_{n} (id {kind} PRIMARY KEY, account_id {kind} NOT NULL,
                 url text NOT NULL, event_types text[] NOT NULL DEFAULT '{{*}}',
                 secret text NOT NULL DEFAULT '{SECRET}', enabled boolean NOT NULL DEFAULT true);
             CREATE TABLE weights_{n} (id {kind} PRIMARY KEY, weight numeric);
             INSERT INTO weights_{n} VALUES ({first}, 0);"
        )?;
    }
    world.sql.batch_execute(&tables).await?;
    Ok(world)
}

/// One type, from `setup` to the end of `run`.
async fn follow(world: &mut World, n: usize, (_, first, other): Case) -> Result<()> {
    world.set_up().await?;
    let running = world.run().await?;
    let world = &*world;
    let hook = async |owner: &str, path: &str| -> Result<()> {
        let url = world.mock.url(path);
        let insert = format!(
            "INSERT INTO hooks_{n} (id, account_id, url) VALUES ({owner}, {owner}, '{url}')"
        );
        Ok(world.sql.batch_execute(&insert).await?)
    };
    let (of_first, of_other, again) =
        (format!("/{n}-first"), format!("/{n}-other"), format!("/{n}-again"));
    hook(first, &of_first).await?;
    hook(other, &of_other).await?;
    let event = async |id: i64, owner: &str, path: &str| -> Result<()> {
        let insert = format!("INSERT INTO events_{n} VALUES ({id}, {owner})");
        world.sql.batch_execute(&insert).await?;
        if path.is_empty() {
            return Ok(());
        }
        let there = || {
            let mut taken = world.mock.received().into_iter();
            taken.any(|request| request.path == path && request.json()["data"]["id"] == id)
        };
        world.mock.wait_until(path, PATIENCE, |_| there()).await
    };
    let followed = async {
        event(1, first, &of_first).await?;
        running.until_logged("the account's weight is no number above 0").await?;
        world.sql.batch_execute(&format!("DELETE FROM hooks_{n} WHERE id = {first}")).await?;
        event(2, first, "").await?;
        let end = world.value("SELECT pg_current_wal_insert_lsn()").await?;
        event(3, other, &of_other).await?;
        let settled = format!("SELECT frontier >= '{end}' FROM walhook.checkpoint");
        world.until(&settled, "t").await?;
        hook(first, &again).await?;
        event(4, first, &again).await?;
        world.until("SELECT count(*) FROM walhook.dead_letters", "0").await
    };
    followed.await.with_context(|| running.log())?;
    let received = world.mock.received();
    let at = |path: &str| received.iter().filter(|request| request.path == path).count();
    assert_eq!((at(&of_first), at(&of_other), at(&again)), (1, 1, 1), "{}", running.log());
    ensure!(running.terminate().await?.success());
    Ok(())
}

async fn follow_all(cases: &[Case]) -> Result<()> {
    let mut world = world(cases).await?;
    for (n, case) in cases.iter().enumerate() {
        if n > 0 {
            world.reconfigure(&format!("_{}\"", n - 1), &format!("_{n}\""))?;
        }
        follow(&mut world, n, *case).await.with_context(|| case.0)?;
    }
    Ok(())
}

#[tokio::test]
async fn account_and_id_of_a_number_type_are_compared_as_sql_joins_them() -> Result<()> {
    follow_all(&NUMBERS).await
}

#[tokio::test]
async fn account_and_id_of_a_text_type_are_compared_as_sql_joins_them() -> Result<()> {
    follow_all(&TEXTS).await
}

#[tokio::test]
async fn account_and_id_of_any_other_type_are_compared_as_sql_joins_them() -> Result<()> {
    follow_all(&OTHERS).await
}

#[tokio::test]
async fn check_names_a_key_whose_type_has_no_equality() -> Result<()> {
    let world = World::bare("", RULE, &[]).await?;
    world.reconfigure("public.webhooks", "public.hooks_0")?;
    world
        .sql
        .batch_execute(
            "CREATE TABLE events_0 (id bigint PRIMARY KEY, account_id text NOT NULL);
             CREATE TABLE hooks_0 (id text PRIMARY KEY, account_id text NOT NULL, url text NOT NULL,
                 event_types text[] NOT NULL, secret text, enabled boolean NOT NULL)",
        )
        .await?;
    world.set_up().await?;
    let passed = world.walhook(&["check"]).await?;
    ensure!(!text(&passed.stdout).contains("no equality"), "{}", text(&passed.stdout));
    for kind in ["json", "xml", "point"] {
        let alter =
            format!("ALTER TABLE hooks_0 ALTER account_id TYPE {kind} USING account_id::{kind}");
        world.sql.batch_execute(&alter).await?;
        let output = world.walhook(&["check"]).await?;
        let said = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{kind}: {said}");
        let named = said.lines().any(|line| line.contains("account_id") && line.contains(kind));
        assert!(named, "{kind}: {said}");
        let alter = "ALTER TABLE hooks_0 ALTER account_id TYPE text USING account_id::text";
        world.sql.batch_execute(alter).await?;
    }
    Ok(())
}
