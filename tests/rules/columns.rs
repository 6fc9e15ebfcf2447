//! What a rule builds of columns: with every digit, and of generated ones where they are published.

use anyhow::Result;

use super::BY_ACCOUNT;
use crate::support::{SCHEMA, SECRET, World, text};

#[tokio::test]
async fn data_expression_keeps_every_digit_of_columns_and_sends_what_it_builds() -> Result<()> {
    let rules = r#"
[[events]]
type = "order.changed"
table = "public.orders"
on = ["update"]
account = "account_id"
columns = ["id", "total"]
rename = { total = "sum" }
data = "{'order': row, 'from': old.total, 'to': {'doc': new.doc, 'big': new.big}, 'up': new.n > old.n, 'next': new.n + 1}"
"#;
    let mut world = World::bare(BY_ACCOUNT, rules, &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    let table =
        "CREATE TABLE orders (id bigint PRIMARY KEY, account_id bigint, total numeric, doc json,
             big bigint, n integer);
         ALTER TABLE orders REPLICA IDENTITY FULL";
    world.sql.batch_execute(table).await?;
    world.set_up().await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    let doc = r#"{"b": 1.50, "a": 12345678901234567890}"#;
    let insert = format!(
        "INSERT INTO orders VALUES (1, 42, 12345678901234567890.10, '{doc}', 9223372036854775807, 1),
             (2, 42, 1, '[]', 2, 2147483647)"
    );
    world.sql.batch_execute(&insert).await?;
    world.sql.batch_execute("UPDATE orders SET total = total + 0.01, n = 2 WHERE id = 1").await?;
    world.sql.batch_execute("UPDATE orders SET n = NULL WHERE id = 2").await?;
    world.settled().await?;
    let received = world.delivered(1).await?;
    let data = format!(
        r#""data":{{"order":{{"id":1,"sum":"12345678901234567890.11"}},"from":"12345678901234567890.10",\
"to":{{"doc":{doc},"big":9223372036854775807}},"up":true,"next":3}},\
"previous":{{"sum":"12345678901234567890.10"}}}}"#
    )
    .replace("\\\n", "");
    let body = String::from_utf8_lossy(&received[0].body).into_owned();
    assert!(body.ends_with(&data), "{body}\n{data}");
    let letter = "SELECT concat_ws(' ', reason, detail) FROM walhook.dead_letters";
    let expected = "unroutable rule 1 (order.changed): data: ";
    assert!(world.value(letter).await?.starts_with(expected));
    world.until_metric("walhook_unroutable_total{reason=\"value\"}", "1").await
}

const GENERATED: &str = "
    CREATE TABLE people (id bigint PRIMARY KEY, owner bigint NOT NULL, email text,
        account text GENERATED ALWAYS AS ('a' || owner) STORED,
        shout text GENERATED ALWAYS AS (upper(email)) STORED);
    ALTER TABLE people REPLICA IDENTITY FULL;
    CREATE TABLE webhooks (id bigint PRIMARY KEY, owner bigint NOT NULL,
        account_id text GENERATED ALWAYS AS ('a' || owner) STORED, url text NOT NULL,
        event_types text[] NOT NULL DEFAULT '{*}', secret text, enabled boolean NOT NULL DEFAULT true)";

fn of_people(account: &str, rest: &str) -> String {
    format!(
        "[[events]]\ntype = \"person.saved\"\ntable = \"public.people\"\non = [\"insert\", \"update\"]\n\
         account = \"{account}\"\n{rest}\n"
    )
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one test of one thing, step by step")]
async fn generated_columns_serve_rules_where_the_publication_publishes_them() -> Result<()> {
    let named =
        of_people("account", "columns = [\"id\", \"shout\"]\nwhen = \"new.shout.startsWith('A')\"");
    let mut world = World::bare("", &named, &[]).await?;
    world.sql.batch_execute(GENERATED).await?;
    let version: i32 = world.value("SHOW server_version_num").await?.parse()?;
    if version < 180_000 {
        // None is ever published: `check` and `run` refuse each by its name.
        world.sql.batch_execute("ALTER TABLE people REPLICA IDENTITY DEFAULT").await?;
        world.set_up().await?;
        let check = text(&world.walhook(&["check"]).await?.stdout);
        for key in
            ["account: the column account", "columns: the column shout", "when: the column shout"]
        {
            let line =
                format!("fail  rule 1 (person.saved): {key} of public.people is generated, ");
            assert!(check.contains(&line), "{key}: {check}");
        }
        assert!(check.contains("before version 18; use the columns it is made from"), "{check}");
        let (status, log) = world.spawn()?.ended_with_log().await?;
        assert!(status.code() == Some(2) && log.contains("is generated"), "{status}: {log}");
        // With * they are left out.
        world.edit_config(
            "columns = [\"id\", \"shout\"]\nwhen = \"new.shout.startsWith('A')\"",
            "columns = [\"*\"]",
        )?;
        world.edit_config("account = \"account\"", "account_value = \"a7\"")?;
    } else {
        world.set_up().await?;
        world
            .sql
            .batch_execute("ALTER PUBLICATION walhook SET (publish_generated_columns = none)")
            .await?;
        let check = text(&world.walhook(&["check"]).await?.stdout);
        assert!(
            check.contains(
                "columns: the column shout of public.people is generated, and the publication \
                                does not publish it; ALTER PUBLICATION"
            ),
            "{check}"
        );
        let (status, _) = world.spawn()?.ended_with_log().await?;
        assert_eq!(status.code(), Some(2));
        // By the publication's option, then by a column list.
        world
            .sql
            .batch_execute("ALTER PUBLICATION walhook SET (publish_generated_columns = stored)")
            .await?;
    }
    let url = world.mock.url("/1");
    let hook =
        format!("INSERT INTO webhooks (id, owner, url, secret) VALUES (1, 7, '{url}', '{SECRET}')");
    world.sql.batch_execute(&hook).await?;
    let running = world.run().await?;
    world.sql.batch_execute("INSERT INTO people (id, owner, email) VALUES (1, 7, 'ann')").await?;
    let received = world.delivered(1).await?;
    let data = received[0].json()["data"].clone();
    if version < 180_000 {
        assert_eq!(data, serde_json::json!({ "id": 1, "owner": 7, "email": "ann" }));
        return Ok(());
    }
    assert_eq!(data, serde_json::json!({ "id": 1, "shout": "ANN" }));
    // What the condition reads is there, also of the old row.
    world.sql.batch_execute("INSERT INTO people (id, owner, email) VALUES (2, 7, 'bob')").await?;
    world.sql.batch_execute("UPDATE people SET email = 'abe' WHERE id = 2").await?;
    let received = world.delivered(2).await?;
    assert_eq!(received[1].json()["previous"], serde_json::json!({ "shout": "BOB" }));
    assert!(running.terminate().await?.success());

    let columns = "columns = [\"id\", \"shout\"]\nwhen = \"new.shout.startsWith('A')\"";
    world.edit_config(columns, "columns = [\"*\"]")?;
    let running = world.run().await?;
    world.sql.batch_execute("INSERT INTO people (id, owner, email) VALUES (3, 7, 'cid')").await?;
    let received = world.delivered(3).await?;
    assert_eq!(
        received[2].json()["data"],
        serde_json::json!({ "id": 3, "owner": 7, "email": "cid", "account": "a7", "shout": "CID" })
    );
    assert!(running.terminate().await?.success());

    // One that is virtual is never published, and the whole row then neither.
    world
        .sql
        .batch_execute(
            "ALTER TABLE people REPLICA IDENTITY DEFAULT;
             ALTER TABLE people ADD unseen int GENERATED ALWAYS AS (id * 2) VIRTUAL",
        )
        .await?;
    world.edit_config("columns = [\"*\"]", "columns = [\"unseen\"]")?;
    let check = text(&world.walhook(&["check"]).await?.stdout);
    assert!(
        check.contains(
            "the column unseen of public.people is generated, and PostgreSQL does not publish \
                            generated columns that are virtual"
        ),
        "{check}"
    );
    let (status, _) = world.spawn()?.ended_with_log().await?;
    assert_eq!(status.code(), Some(2));
    Ok(())
}

#[tokio::test]
async fn label_that_an_enum_has_no_more_is_told_by_check_and_at_the_start() -> Result<()> {
    let rules = r#"
[[events]]
type = "order.done"
table = "public.orders"
on = ["update"]
account = "account_id"
columns = ["id"]
when = "old.state != 'done' && new.state in ['done', 'new']"
"#;
    let mut world = World::bare("", rules, &[]).await?;
    let orders = "CREATE TYPE state AS ENUM ('new', 'done'); CREATE DOMAIN stage AS state;
        CREATE TABLE orders (id bigint PRIMARY KEY, account_id bigint, state stage);
        ALTER TABLE orders REPLICA IDENTITY FULL";
    world.sql.batch_execute(&format!("{SCHEMA}; {orders}")).await?;
    world.set_up().await?;
    let check = text(&world.walhook(&["check"]).await?.stdout);
    assert!(!check.contains("label"), "{check}");

    world.sql.batch_execute("ALTER TYPE state RENAME VALUE 'done' TO 'closed'").await?;
    let says = ["old", "new"].map(|side| {
        format!(
            "rule 1 (order.done): when: {side}.state is compared with \"done\", which is no label of its enum; it \
             has new, closed"
        )
    });
    let check = text(&world.walhook(&["check"]).await?.stdout);
    assert!(says.iter().all(|says| check.contains(&format!("warn  {says}"))), "{check}");
    let running = world.run().await?;
    running.until_logged(&says[1]).await
}

#[tokio::test]
async fn delete_sends_of_the_named_columns_what_the_identity_logs_and_check_says_so() -> Result<()>
{
    let rules = r#"
[[events]]
type = "order.deleted"
table = "public.orders"
on = ["delete"]
account = "account_id"
columns = ["id", "state"]
"#;
    let mut world = World::bare("", rules, &[]).await?;
    let orders = "CREATE TABLE orders (id bigint NOT NULL, account_id bigint NOT NULL, state text);
        CREATE UNIQUE INDEX orders_key ON orders (account_id, id);
        ALTER TABLE orders REPLICA IDENTITY USING INDEX orders_key";
    world.sql.batch_execute(&format!("{SCHEMA}; {orders}")).await?;
    world.set_up().await?;
    let check = text(&world.walhook(&["check"]).await?.stdout);
    let says = "warn  rule 1 (order.deleted): of a delete it sends no state: the replica identity of public.orders logs \
                only account_id, id";
    assert!(check.contains(says), "{check}");
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    world.sql.batch_execute("INSERT INTO orders VALUES (1, 42, 'new'); DELETE FROM orders").await?;
    let received = world.delivered(1).await?;
    assert_eq!(received[0].json()["data"], serde_json::json!({"id": 1}));
    Ok(())
}
