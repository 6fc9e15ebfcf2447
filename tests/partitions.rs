//! Partitioned tables: rules name the root, rows live in partitions that come and go.

use anyhow::Result;
use serde_json::{Value, json};

use crate::changes::rule;
use crate::support::{SCHEMA, World, bodies};

#[tokio::test]
async fn partitioned_table_sends_as_its_root() -> Result<()> {
    let on = r#"["insert", "update", "delete"]"#;
    let rules = rule("order", "orders", on, r#"["id", "total"]"#, "");
    let mut world = World::bare("", &rules, &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    world
        .sql
        .batch_execute(
            "CREATE TABLE orders (id bigint PRIMARY KEY, account_id bigint, total numeric)
                 PARTITION BY RANGE (id);
             CREATE TABLE low PARTITION OF orders FOR VALUES FROM (0) TO (10);
             CREATE TABLE high PARTITION OF orders FOR VALUES FROM (10) TO (20);
             ALTER TABLE low REPLICA IDENTITY FULL; ALTER TABLE high REPLICA IDENTITY FULL;
             ALTER TABLE orders REPLICA IDENTITY FULL",
        )
        .await?;
    world.set_up().await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    for statement in [
        "INSERT INTO orders VALUES (1, 42, 1.50)",
        "UPDATE orders SET total = 2 WHERE id = 1",
        "UPDATE orders SET id = 11 WHERE id = 1",
        // Columns in another order, and made after the start.
        "CREATE TABLE top (total numeric, account_id bigint, id bigint NOT NULL)",
        "ALTER TABLE orders ATTACH PARTITION top FOR VALUES FROM (20) TO (30)",
        "INSERT INTO orders VALUES (21, 42, 3)",
        "DELETE FROM orders WHERE id = 11",
    ] {
        world.sql.batch_execute(statement).await?;
    }
    let received = world.delivered(6).await?;
    let bodies = bodies(&received, "/1");
    let of_row = |id: i64| -> Vec<Value> {
        let mine = bodies.iter().filter(|body| body["data"]["id"] == id);
        mine.map(|body| json!([body["operation"], body["data"]["total"], body["previous"]]))
            .collect()
    };
    assert_eq!(
        of_row(1),
        [
            json!(["insert", "1.50", null]),
            json!(["update", "2", {"total": "1.50"}]),
            json!(["delete", "2", null]),
        ]
    );
    assert_eq!(of_row(11), [json!(["insert", "2", null]), json!(["delete", "2", null])]);
    assert_eq!(of_row(21), [json!(["insert", "3", null])]);
    Ok(())
}
