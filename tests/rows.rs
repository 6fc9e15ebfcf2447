//! What of a row the WAL carries, and what is told of it: replica identities, TOAST, keys, TRUNCATE.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::changes::{rows, rule};
use crate::support::{World, bodies};

#[tokio::test]
async fn truncate_of_a_rules_table_sends_nothing_and_breaks_nothing() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    world.subscribe(1, 42).await?;
    world.sql.batch_execute("TRUNCATE subscribers").await?;
    world.sql.batch_execute("BEGIN; TRUNCATE subscribers, webhooks CASCADE; ROLLBACK").await?;
    world.subscribe(1, 42).await?;
    world.settled().await?;
    assert_eq!(rows(&world.delivered(2).await?), [1, 1]);
    assert_eq!(world.mock.stats().received, 2);
    Ok(())
}

/// Torture case 12.
#[tokio::test]
async fn case_12_changed_primary_key_is_told_and_keeps_its_place() -> Result<()> {
    for identity in ["DEFAULT", "FULL"] {
        let rules = rule("changed", "subscribers", r#"["insert", "update"]"#, r#"["id"]"#, "");
        let mut world = World::with("", &rules, &[]).await?;
        let alter = format!("ALTER TABLE subscribers REPLICA IDENTITY {identity}");
        world.sql.batch_execute(&alter).await?;
        world.hook(1, 42, "?delay=10ms").await?;
        let _running = world.run().await?;
        world.subscribe(1, 42).await?;
        for id in 2..=20 {
            let update = format!("UPDATE subscribers SET id = {id} WHERE id = {}", id - 1);
            world.sql.batch_execute(&update).await?;
        }
        let received = world.delivered(20).await?;
        assert_eq!(rows(&received), (1..=20).collect::<Vec<_>>(), "{identity}");
        for (old, body) in (1..).zip(&bodies(&received, "/1")[1..]) {
            assert_eq!(body["previous"], json!({ "id": old }), "{identity}");
        }
    }
    Ok(())
}

/// A migration while walhook was down: what was written before it is told by the types of then.
#[tokio::test]
async fn row_is_told_by_its_types_although_they_were_dropped_since() -> Result<()> {
    let rules = rule("kept", "kept", r#"["insert"]"#, r#"["*"]"#, "");
    let mut world = World::bare("", &rules, &[]).await?;
    let types = "
        CREATE TYPE mood AS ENUM ('happy'); CREATE DOMAIN percent AS integer;
        CREATE DOMAIN document AS jsonb; CREATE DOMAIN numbers AS bigint[];
        CREATE TABLE kept (id bigint PRIMARY KEY, account_id bigint, mood mood, moods mood[],
            share percent, document document, numbers numbers)";
    world.sql.batch_execute(&format!("{}; {types}", crate::support::SCHEMA)).await?;
    world.set_up().await?;
    world.hook(1, 42, "").await?;
    let insert = "INSERT INTO kept VALUES (1, 42, 'happy', '{happy}', 5, '{\"a\":1}', '{1,NULL}')";
    world.sql.batch_execute(insert).await?;
    let migration = "
        ALTER TABLE kept ALTER mood TYPE text, ALTER moods TYPE text[], ALTER share TYPE bigint,
            DROP document, DROP numbers;
        DROP TYPE mood; DROP DOMAIN percent; DROP DOMAIN document; DROP DOMAIN numbers;
        INSERT INTO kept VALUES (2, 42, 'sad', '{sad}', 6)";
    world.sql.batch_execute(migration).await?;
    let _running = world.run().await?;
    world.settled().await?;
    let bodies = bodies(&world.delivered(2).await?, "/1");
    let row = |id: i64| &bodies.iter().find(|body| body["data"]["id"] == id).unwrap()["data"];
    let before = json!({
        "id": 1, "account_id": 42, "mood": "happy", "moods": ["happy"], "share": 5,
        "document": {"a": 1}, "numbers": [1, null],
    });
    assert_eq!(row(1), &before);
    let after = json!({"id": 2, "account_id": 42, "mood": "sad", "moods": ["sad"], "share": 6});
    assert_eq!(row(2), &after);
    Ok(())
}

const DOCUMENTS: &str = "
    CREATE TABLE documents (id bigint PRIMARY KEY, account_id bigint, code text NOT NULL, note text, doc text);
    ALTER TABLE documents ALTER code SET STORAGE EXTERNAL, ALTER doc SET STORAGE EXTERNAL;
    CREATE UNIQUE INDEX documents_code ON documents (code)";

/// A document's events under a replica identity, in short: what each says of `doc`, which was there
/// before and is TOASTed, as is `code`.
async fn told_of_toast(identity: &str) -> Result<Vec<Value>> {
    let columns = r#"["id", "code", "note", "doc"]"#;
    let rules = rule("document", "documents", r#"["insert", "update"]"#, columns, "");
    let mut world = World::bare("", &rules, &[]).await?;
    world.sql.batch_execute(&format!("{}; {DOCUMENTS}", crate::support::SCHEMA)).await?;
    world.set_up().await?;
    let alter = format!("ALTER TABLE documents REPLICA IDENTITY {identity}");
    world.sql.batch_execute(&alter).await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    let statements = [
        "INSERT INTO documents VALUES (1, 42, repeat('k', 2500), 'a', repeat('x', 9000))",
        "UPDATE documents SET note = 'b'",
        "UPDATE documents SET code = 'short'",
        "UPDATE documents SET doc = 'new'",
        "UPDATE documents SET doc = NULL",
    ];
    for statement in statements {
        world.sql.batch_execute(statement).await?;
    }
    world.settled().await?;
    let received = world.delivered(5).await?;
    assert_eq!(received.len(), 5, "{identity}");
    // Long values by their length.
    let short = |value: &Value| match value.as_str() {
        Some(text) if text.len() > 100 => json!(text.len()),
        _ => value.clone(),
    };
    let each = |row: &Value| -> Value {
        let row = row.as_object().into_iter().flatten();
        row.filter(|(name, _)| *name != "id")
            .map(|(name, value)| (name.clone(), short(value)))
            .collect()
    };
    let told = bodies(&received, "/1");
    Ok(told
        .iter()
        .map(|body| json!([each(&body["data"]), each(&body["previous"]), body["unchanged"]]))
        .collect())
}

/// Torture case 11. The fourth identity, NOTHING, is refused: see the refusals.
#[tokio::test]
async fn case_11_toast_is_told_as_unchanged_or_as_it_is_whatever_the_identity() -> Result<()> {
    let inserted = json!([{"code": 2500, "note": "a", "doc": 9000}, {}, null]);

    // The default logs a key that changed, and nothing here.
    let expected = [
        inserted.clone(),
        json!([{"note": "b"}, {}, ["code", "doc"]]),
        json!([{"code": "short", "note": "b"}, {}, ["doc"]]),
        json!([{"code": "short", "note": "b", "doc": "new"}, {}, null]),
        json!([{"code": "short", "note": "b", "doc": null}, {}, null]),
    ];
    assert_eq!(told_of_toast("DEFAULT").await?, expected);

    // An index logs its columns where they change, and where they are TOASTed.
    let expected = [
        inserted.clone(),
        json!([{"code": 2500, "note": "b"}, {}, ["doc"]]),
        json!([{"code": "short", "note": "b"}, {"code": 2500}, ["doc"]]),
        json!([{"code": "short", "note": "b", "doc": "new"}, {}, null]),
        json!([{"code": "short", "note": "b", "doc": null}, {}, null]),
    ];
    assert_eq!(told_of_toast("USING INDEX documents_code").await?, expected);

    let expected = [
        inserted,
        json!([{"code": 2500, "note": "b", "doc": 9000}, {"note": "a"}, null]),
        json!([{"code": "short", "note": "b", "doc": 9000}, {"code": 2500}, null]),
        json!([{"code": "short", "note": "b", "doc": "new"}, {"doc": 9000}, null]),
        json!([{"code": "short", "note": "b", "doc": null}, {"doc": "new"}, null]),
    ];
    assert_eq!(told_of_toast("FULL").await?, expected);
    Ok(())
}

/// Rules that compare each of three columns, under the types that `kinds` holds before its migration, or after it.
fn comparing(after: bool) -> String {
    let [n, f, s] = if after { ["'2'", "'true'", "1"] } else { ["2", "true", "'done'"] };
    [
        ("paid", format!("new.n == {n}")),
        ("flag", format!("new.f != {f}")),
        ("done", format!("new.s == {s}")),
    ]
    .iter()
    .map(|(name, when)| {
        rule(name, "kinds", r#"["insert"]"#, r#"["id"]"#, &format!("when = \"{when}\""))
    })
    .collect()
}

const KINDS: &str =
    "CREATE TABLE kinds (id bigint PRIMARY KEY, account_id bigint, n int, f bool, s text)";
const ALTER_KINDS: &str = "ALTER TABLE kinds ALTER n TYPE text, ALTER f TYPE text USING f::text,
    ALTER s TYPE int USING (s = 'done')::int";

async fn kinds(sections: &str) -> Result<World> {
    let world = World::bare(sections, &comparing(false), &[]).await?;
    world.sql.batch_execute(&format!("{}; {KINDS}", crate::support::SCHEMA)).await?;
    world.set_up().await?;
    world.hook(1, 42, "").await?;
    Ok(world)
}

/// What endpoint 1 got, each as type and row, without order.
fn typed(received: &[walhook_testkit::receiver::Received]) -> BTreeSet<String> {
    let bodies = bodies(received, "/1").into_iter();
    bodies
        .map(|body| format!("{} {}", body["type"].as_str().unwrap(), body["data"]["id"]))
        .collect()
}

#[tokio::test]
async fn altered_type_of_a_compared_column_halts_before_its_first_row() -> Result<()> {
    // Row by row, and as one transaction that is streamed while it is open.
    for (sections, rows) in [("", 1), ("stream_above = \"64KiB\"\n", 3000)] {
        let mut world = kinds("").await?;
        world.edit_config("[endpoints]", &format!("{sections}[endpoints]"))?;
        let running = world.run().await?;
        world.sql.batch_execute("INSERT INTO kinds VALUES (1, 42, 2, false, 'done')").await?;
        world.delivered(3).await?;
        let migration = format!(
            "BEGIN; {ALTER_KINDS}; INSERT INTO kinds VALUES (2, 42, '2', 'false', 1);
             INSERT INTO kinds SELECT n, 42, '1', 'true', 0 FROM generate_series(3, 2 + {rows}) n; COMMIT"
        );
        world.sql.batch_execute(&migration).await?;
        let (status, log) = running.ended_with_log().await?;
        assert_eq!(status.code(), Some(3), "{log}");
        let reason =
            "rule 1 (paid): when: new.n can never match this literal; compare it with a string";
        assert!(log.contains(&format!("{reason}; rule 2 (flag): ")), "{log}");

        for (wrong, right) in
            [("n == 2", "n == '2'"), ("f != true", "f != 'true'"), ("s == 'done'", "s == 1")]
        {
            world.reconfigure(wrong, right)?;
        }
        let running = world.run().await?;
        world.settled().await?;
        let wanted = ["paid 1", "flag 1", "done 1", "paid 2", "flag 2", "done 2"];
        assert_eq!(typed(&world.delivered(6).await?), wanted.map(str::to_owned).into(), "{rows}");
        assert_eq!(world.value("SELECT count(*) FROM walhook.dead_letters").await?, "0");
        ensure!(running.terminate().await?.success());
    }
    Ok(())
}

#[tokio::test]
async fn row_from_before_a_compared_columns_type_was_altered_is_a_dead_letter() -> Result<()> {
    let mut world = kinds("").await?;
    world.sql.batch_execute("INSERT INTO kinds VALUES (1, 42, 2, false, 'done')").await?;
    world.sql.batch_execute(ALTER_KINDS).await?;
    world.sql.batch_execute("INSERT INTO kinds VALUES (2, 42, '2', 'false', 1)").await?;
    world.reconfigure(&comparing(false), &comparing(true))?;
    let running = world.run().await?;
    world.settled().await?;
    let wanted = ["paid 2", "flag 2", "done 2"];
    assert_eq!(typed(&world.delivered(3).await?), wanted.map(str::to_owned).into());
    let letters =
        "SELECT count(*) FROM walhook.dead_letters WHERE detail LIKE '%was of another type%'";
    assert_eq!(world.value(letters).await?, "3");
    ensure!(running.terminate().await?.success());
    Ok(())
}
