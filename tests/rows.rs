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
