//! What stands in `examples/` works: an outbox is written, and a receiver verifies what it is sent.

use anyhow::{Result, ensure};

use crate::example_receivers::PYTHON;
use crate::support::{SCHEMA, SECRET, World};

const TABLE: &str = include_str!("../examples/outbox_table.sql");
const WRITER: &str = include_str!("../examples/outbox.sql");
const RULES: &str = include_str!("../examples/outbox.toml");

#[tokio::test]
async fn examples_write_an_outbox_and_receive_what_becomes_of_it_verified() -> Result<()> {
    let mut receiver = PYTHON.start(SECRET).await?;
    let mut world = World::bare("", RULES, &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    world.sql.batch_execute(TABLE).await?;
    world.set_up().await?;
    let url = format!("http://127.0.0.1:{}/", receiver.port);
    let hook = "INSERT INTO webhooks (id, account_id, url, secret) VALUES (1, 42, $1, $2)";
    world.sql.execute(hook, &[&url, &SECRET]).await?;
    let running = world.run().await?;
    // In pieces, as psql sends it: each of its transactions is one.
    for statement in WRITER.split_inclusive(';') {
        world.sql.batch_execute(statement).await?;
    }
    let mut events = [receiver.event().await?, receiver.event().await?];
    events.sort_by_key(|event| event["type"].to_string());
    let [note, paid] = &events;
    ensure!(note["type"] == "order.note" && note["account_id"] == "42", "{note}");
    ensure!(note["data"]["text"] == "left at the door", "{note}");
    ensure!(paid["type"] == "order.paid" && paid["data"]["total"] == "19.90", "{paid}");
    world.settled().await?;
    ensure!(world.value("SELECT count(*) FROM walhook.dead_letters").await? == "0");
    ensure!(world.value("SELECT count(*) FROM outbox").await? == "0", "the table stays empty");
    running.kill().await?;
    Ok(())
}
