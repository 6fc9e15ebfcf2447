//! What of a row the WAL carries, and what is told of it: replica identities, TOAST, keys, TRUNCATE.

use anyhow::Result;
use serde_json::json;

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

#[tokio::test]
async fn changed_primary_key_is_told_and_keeps_its_place() -> Result<()> {
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
