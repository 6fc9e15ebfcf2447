//! What makes an event, beyond a row's columns: truncates and logical messages; and, below, outboxes and what is
//! built of columns.

mod columns;
mod outbox;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde_json::{Value, json};
use walhook_testkit::receiver::{Behaviour, Received};

use crate::support::{SCHEMA, World, bodies};

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

#[tokio::test]
async fn rule_whose_pattern_looks_for_a_backslash_is_warned_of_and_starts() -> Result<()> {
    let when = r"when = '''new.email.matches('^\\\\w+@')'''";
    let mut world = World::bare("", &format!("{CREATED}{when}\n"), &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    world.set_up().await?;
    let running = world.run().await?;
    let says = r"rule 1 (subscriber.created): when: the pattern looks for a literal backslash followed by `w`";
    running.until_logged(says).await?;
    assert!(running.terminate().await?.success());
    Ok(())
}
