//! A table that is an outbox: its rows are events as they stand.

use anyhow::Result;
use serde_json::{Value, json};

use super::BY_ACCOUNT;
use crate::support::{SCHEMA, World, bodies};

/// The blocks of a language in a page of the documentation, in order.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let opening = format!("\n```{language}\n");
    page.split(&opening).skip(1).filter_map(|block| block.split("\n```").next()).collect()
}

#[tokio::test]
async fn outbox_page_is_true() -> Result<()> {
    let page = include_str!("../../docs/outbox.md");
    let (sql, rules, told) = (blocks(page, "sql"), blocks(page, "toml"), blocks(page, "json"));
    assert_eq!((sql.len(), rules.len(), told.len()), (3, 2, 2));
    let mut world = World::bare(BY_ACCOUNT, &rules.join("\n\n"), &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    world.sql.batch_execute(sql[0]).await?;
    world.set_up().await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    world.sql.batch_execute(sql[1]).await?;
    world.sql.batch_execute(sql[2]).await?;
    world.settled().await?;
    let received = world.delivered(2).await?;
    // But for what differs each time, to the byte.
    let shape = |body: &str| -> String {
        let from = body.find("\"type\"").unwrap();
        let (head, rest) = body[from..].split_once("\"timestamp\":\"").unwrap();
        head.to_owned() + rest.split_once("\",").unwrap().1
    };
    let bodies = received.iter().map(|request| shape(std::str::from_utf8(&request.body).unwrap()));
    let expected = told.iter().map(|body| shape(&body.replace("\n ", "")));
    assert_eq!(bodies.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    assert_eq!(world.mock.stats().received, 2);
    assert_eq!(world.value("SELECT count(*) FROM outbox").await?, "0");
    Ok(())
}

#[tokio::test]
async fn outbox_rows_that_cannot_be_sent_are_dead_letters_and_hold_nobody_up() -> Result<()> {
    let rules = r#"
[[events]]
type = "order.*"
table = "public.outbox"
on = ["insert"]
account = "account_id"
type_column = "type"
data_column = "data"
max_bytes = "1KiB"
"#;
    let mut world = World::bare(BY_ACCOUNT, rules, &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    let table =
        "CREATE TABLE outbox (id bigint PRIMARY KEY, account_id bigint, type text, data text)";
    world.sql.batch_execute(table).await?;
    world.set_up().await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    world
        .sql
        .batch_execute(
            "INSERT INTO outbox VALUES (1, 42, 'order.paid', '{\"n\": 1}'), (2, 42, 'oder.paid', '2'),
                 (3, 42, 'order.paid', 'three'), (4, 42, NULL, '4'), (5, NULL, 'order.paid', '5'),
                 (6, 42, 'order.paid', '\"' || repeat('6', 2000) || '\"'), (7, 42, 'order.sent', NULL)",
        )
        .await?;
    world.settled().await?;
    let received = world.delivered(2).await?;
    let told: Vec<Value> =
        bodies(&received, "/1").iter().map(|body| json!([body["type"], body["data"]])).collect();
    assert_eq!(told, [json!(["order.paid", {"n": 1}]), json!(["order.sent", null])]);
    let letters = "SELECT string_agg(concat_ws(' ', b.event_type, b.account, d.detail), '|'
             ORDER BY b.change_lsn, b.n)
         FROM walhook.dead_letters d JOIN walhook.bodies b USING (pipeline, event_id)
         WHERE d.reason = 'unroutable'";
    let expected = [
        "order.* 42 rule 1 (order.*): the type column type holds none of order.*",
        "order.paid 42 rule 1 (order.*): the data column data does not hold JSON",
        "order.* 42 rule 1 (order.*): the type column type is null",
        "order.paid  rule 1 (order.*): the account column account_id is null",
        "order.paid 42 rule 1 (order.*): the event's data takes 2009 bytes, more than max_bytes = 1024",
    ];
    assert_eq!(world.value(letters).await?, expected.join("|"));
    for (reason, count) in [("type", 2), ("value", 1), ("account", 1), ("too_large", 1)] {
        let series = format!("walhook_unroutable_total{{reason=\"{reason}\"}}");
        world.until_metric(&series, &count.to_string()).await?;
    }
    world.until_metric("walhook_events_total{type=\"order.*\"}", "2").await
}
