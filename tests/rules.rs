//! What makes an event, beyond a row's columns: truncates, logical messages.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde_json::{Value, json};
use walhook_testkit::receiver::{Behaviour, Received};

use crate::support::{SCHEMA, SECRET, World, bodies, text};

const MESSAGES: &str = r#"
[[events]]
type = "billing.note"
on = ["message"]
prefix = "billing"
account = "account"

[[events]]
type = "system.note"
on = ["message"]
prefix = "system"
account_value = "42"
"#;

const CREATED: &str = r#"
[[events]]
type = "subscriber.created"
table = "public.subscribers"
on = ["insert"]
account = "account_id"
columns = ["id"]
"#;

/// Everything that an account is told comes in the order of its commits.
const BY_ACCOUNT: &str = "[delivery]\nordering = \"account\"";

/// The `data` of all events that endpoint 1 took, in order.
fn data(received: &[Received]) -> Vec<Value> {
    bodies(received, "/1").into_iter().map(|body| body["data"].clone()).collect()
}

/// An SQL session that writes messages as short as the tests want them.
async fn with_emit(world: &World) -> Result<()> {
    let function = "CREATE FUNCTION emit(prefix text, content text) RETURNS void LANGUAGE sql
         AS 'SELECT pg_logical_emit_message(true, prefix, content)'";
    Ok(world.sql.batch_execute(function).await?)
}

/// Torture case 13.
#[tokio::test]
async fn case_13_truncate_of_two_tables_makes_an_event_for_each() -> Result<()> {
    let rule = |table: &str| {
        format!(
            "[[events]]\ntype = \"{table}.cleared\"\ntable = \"public.{table}\"\n\
             on = [\"truncate\"]\naccount_value = \"42\"\n"
        )
    };
    let rules = rule("subscribers") + &rule("orders") + CREATED;
    let mut world = World::bare("", &rules, &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    world.sql.batch_execute("CREATE TABLE orders (id bigint PRIMARY KEY)").await?;
    world.set_up().await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    world.subscribe(1, 42).await?;
    world.sql.batch_execute("BEGIN; TRUNCATE subscribers; ROLLBACK").await?;
    world.sql.batch_execute("TRUNCATE subscribers, orders").await?;
    world.subscribe(1, 42).await?;
    world.settled().await?;
    let received = world.delivered(4).await?;
    let told: BTreeSet<String> = bodies(&received, "/1")
        .iter()
        .filter(|body| body["operation"] == "truncate")
        .map(|body| json!([body["type"], body["account_id"], body["data"]]).to_string())
        .collect();
    let expected = ["orders.cleared", "subscribers.cleared"]
        .map(|event_type| json!([event_type, "42", {}]).to_string());
    assert_eq!(told, expected.into());
    assert_eq!(world.mock.stats().received, 4);
    Ok(())
}

#[tokio::test]
async fn messages_arrive_with_their_transaction_and_never_without() -> Result<()> {
    let mut world = World::with(BY_ACCOUNT, MESSAGES, &[]).await?;
    with_emit(&world).await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    for transaction in [
        r#"SELECT emit('billing', '{"account": 42, "paid": {"sum": 19.90, "n": 12345678901234567890}}')"#,
        r#"SELECT emit('billing', ' {"account": "42", "n": 2}')"#,
        "SELECT emit('billings', '{\"account\": 42}')",
        "BEGIN; SELECT emit('system', 'lost with its transaction'); ROLLBACK",
        "BEGIN; SELECT emit('system', 'before'); SAVEPOINT a; SELECT emit('system', 'lost');
         ROLLBACK TO a; SELECT emit('system', 'after'); COMMIT",
        "BEGIN; SELECT pg_logical_emit_message(false, 'system', 'no transaction'); ROLLBACK",
        r"SELECT pg_logical_emit_message(true, 'system', '\xff00'::bytea)",
        "SELECT emit('system', '[1, {\"a\": null}]')",
        "SELECT emit('system', '')",
    ] {
        world.sql.batch_execute(transaction).await?;
    }
    world.settled().await?;
    let received = world.delivered(7).await?;
    let expected = [
        json!({"account": 42, "paid": {"sum": 19.90, "n": 12_345_678_901_234_567_890_u64}}),
        json!({"account": "42", "n": 2}),
        json!("before"),
        json!("after"),
        json!("/wA="),
        json!([1, {"a": null}]),
        json!(""),
    ];
    assert_eq!(data(&received), expected);
    let first = String::from_utf8_lossy(&received[0].body).into_owned();
    assert!(
        first.contains(r#""type":"billing.note","operation":"message","timestamp""#),
        "{first}"
    );
    let embedded = r#""account_id":"42","data":{"account": 42, "paid": {"sum": 19.90, "n": 12345678901234567890}}}"#;
    assert!(first.ends_with(embedded), "{first}");
    assert_eq!(world.mock.stats().received, 7);
    Ok(())
}

#[tokio::test]
async fn message_without_its_account_is_a_dead_letter_and_holds_nobody_up() -> Result<()> {
    let mut world = World::with("", MESSAGES, &[]).await?;
    with_emit(&world).await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    let contents = ["plain", "{\"n\": 1}", "[42]", "{\"account\": [42]}", "{\"account\": 42}"];
    for content in contents {
        world.sql.execute("SELECT emit('billing', $1)", &[&content]).await?;
    }
    assert_eq!(data(&world.delivered(1).await?), [json!({"account": 42})]);
    world.settled().await?;
    let letters = "SELECT string_agg(d.detail, '|' ORDER BY b.commit_lsn) FROM walhook.dead_letters d
         JOIN walhook.bodies b USING (pipeline, event_id)
         WHERE d.reason = 'unroutable' AND b.event_type = 'billing.note' AND b.operation = 'message'";
    let details = [
        "the message's content is not JSON, so it names no account",
        "the message's content has no key account",
        "the message's content is not a JSON object",
        "the account under account is neither a string nor a number",
    ];
    let expected = details.map(|detail| format!("rule 1 (billing.note): {detail}")).join("|");
    assert_eq!(world.value(letters).await?, expected);
    world.until_metric("walhook_unroutable_total{reason=\"account\"}", "4").await
}

/// The server sends a message after the row that follows it where they stand in different
/// subtransactions: both have one LSN.
#[tokio::test]
async fn messages_between_rows_of_subtransactions_arrive_once_with_the_same_ids_after_a_kill()
-> Result<()> {
    let mut world = World::with(BY_ACCOUNT, &(MESSAGES.to_owned() + CREATED), &[]).await?;
    with_emit(&world).await?;
    world.hook(1, 42, "").await?;
    world.mock.set_behaviour("/1", Behaviour { hang: true, ..Behaviour::default() });
    let running = world.run().await?;
    for n in 0..40 {
        let id = 10 * n;
        let transaction = format!(
            "BEGIN; INSERT INTO subscribers VALUES ({id}, 42);
             SAVEPOINT a; SELECT emit('system', '{}'); RELEASE a;
             INSERT INTO subscribers VALUES ({}, 42);
             SELECT emit('system', '{}'); INSERT INTO subscribers VALUES ({}, 42);
             SAVEPOINT b; SELECT emit('system', '{}'); SAVEPOINT c;
             INSERT INTO subscribers SELECT n, 42 FROM generate_series({}, {}) n;
             ROLLBACK TO c; INSERT INTO subscribers VALUES ({}, 42); COMMIT",
            id + 1,
            id + 2,
            id + 3,
            id + 4,
            id + 5,
            id + 6,
            id + 7,
            id + 8
        );
        world.sql.batch_execute(&transaction).await?;
    }
    world.until_metric("walhook_events_total{type=\"system.note\"}", "120").await?;
    running.kill().await?;
    world.mock.set_behaviour("/1", Behaviour::ok());
    let running = world.run().await?;
    world.delivered(100).await?;
    running.kill().await?;
    let running = world.run().await?;
    world.delivered(280).await?;
    world.settled().await?;
    assert!(!running.log().contains("WARN"), "{}", running.log());

    let received = world.mock.received();
    let mut ids: BTreeMap<i64, BTreeSet<&str>> = BTreeMap::new();
    for request in &received {
        let data = &request.json()["data"];
        let n = data["id"].as_i64().or(data.as_i64()).unwrap();
        ids.entry(n).or_default().insert(&request.id);
    }
    let expected: Vec<i64> =
        (0..40).flat_map(|n| [0, 1, 2, 3, 4, 5, 8].map(|place| 10 * n + place)).collect();
    assert_eq!(ids.keys().copied().collect::<Vec<_>>(), expected);
    assert!(ids.values().all(|ids| ids.len() == 1), "{ids:?}");
    let distinct: BTreeSet<&str> = ids.values().flatten().copied().collect();
    assert_eq!(distinct.len(), 280);
    Ok(())
}

#[tokio::test]
async fn rules_that_cannot_work_are_refused_with_key_and_fix() -> Result<()> {
    let world = World::bare("", "", &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    let head = "[[events]]\ntype = \"t\"\ntable = \"public.subscribers\"\n";
    let message = "[[events]]\ntype = \"t\"\non = [\"message\"]\n";
    let columns = "columns = [\"id\"]\n";
    let mut rule = String::from("[log]\nlevel = \"info,walhook=debug\"\n\n");
    for (next, line) in [
        (
            format!("{head}on = [\"truncate\"]\naccount = \"account_id\"\n"),
            "events[0].account: names a column, and a truncate has no row",
        ),
        (format!("{head}on = [\"insert\"]\n{columns}"), "events[0].account: is missing"),
        (
            format!("{head}on = [\"truncate\"]\naccount_value = \"1\"\n{columns}"),
            "events[0].columns: is of no use to a truncate",
        ),
        (
            format!("{head}on = [\"insert\", \"message\"]\naccount_value = \"1\"\n"),
            "events[0].on: holds message beside others",
        ),
        (format!("{message}account_value = \"1\"\n"), "events[0].prefix: is missing"),
        (
            format!("{message}prefix = \"p\"\naccount = \"a\"\nwhen = \"true\"\n"),
            "events[0].when: is of no use to a message",
        ),
    ] {
        world.reconfigure(&rule, &next)?;
        rule = next;
        for command in ["check", "run"] {
            let output = world.walhook(&[command]).await?;
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{told}");
            assert!(told.contains(line) && told.trim().lines().count() == 1, "{told}");
        }
    }
    Ok(())
}

/// The blocks of a language in a page of the documentation, in order.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let opening = format!("\n```{language}\n");
    page.split(&opening).skip(1).filter_map(|block| block.split("\n```").next()).collect()
}

#[tokio::test]
async fn outbox_page_is_true() -> Result<()> {
    let page = include_str!("../docs/outbox.md");
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
