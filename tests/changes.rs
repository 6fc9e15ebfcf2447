//! What is committed arrives, as documented, and nothing else does.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use walhook_testkit::receiver::{Behaviour, Received};

use crate::support::{World, bodies, taken};

/// A rule that sends inserts of a table.
pub(crate) fn on_insert(event_type: &str, table: &str, columns: &str) -> String {
    rule(event_type, table, r#"["insert"]"#, columns, "")
}

pub(crate) fn rule(
    event_type: &str,
    table: &str,
    on: &str,
    columns: &str,
    further: &str,
) -> String {
    format!(
        "[[events]]\ntype = \"{event_type}\"\ntable = \"public.{table}\"\non = {on}\n\
         account = \"account_id\"\ncolumns = {columns}\n{further}\n"
    )
}

fn header<'a>(request: &'a Received, name: &str) -> Option<&'a str> {
    request.headers.get(name).and_then(|value| value.to_str().ok())
}

/// The ids of the rows that endpoint 1 took, in order.
pub(crate) fn rows(received: &[Received]) -> Vec<i64> {
    let taken = taken(received).remove("/1").unwrap_or_default();
    taken.into_iter().map(|(_, id)| id).collect()
}

/// The `data` of a type's events that endpoint 1 took, in order.
pub(crate) fn data_of(received: &[Received], event_type: &str) -> Vec<Value> {
    let bodies = bodies(received, "/1").into_iter();
    bodies.filter(|body| body["type"] == event_type).map(|body| body["data"].clone()).collect()
}

#[tokio::test]
async fn insert_update_and_delete_arrive_as_documented() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    let before = world.value("SELECT to_char(clock_timestamp(), 'YYYY-MM-DD\"T\"HH24:MI:SS.USZ')");
    let before = before.await?;
    world.subscribe(7, 42).await?;
    world.sql.batch_execute("UPDATE subscribers SET status = 'gone' WHERE id = 7").await?;
    world.sql.batch_execute("DELETE FROM subscribers WHERE id = 7").await?;
    let received = world.delivered(3).await?;

    let expected = [
        (
            "insert",
            r#""type":"subscriber.created","operation":"insert""#,
            r#""data":{"id":7,"email":"a@example.com","status":"active"}"#,
        ),
        (
            "update",
            r#""type":"subscriber.updated","operation":"update""#,
            r#""data":{"id":7,"email":"a@example.com","status":"gone"},"previous":{"status":"active"}"#,
        ),
        (
            "delete",
            r#""type":"subscriber.deleted","operation":"delete""#,
            r#""data":{"id":7,"email":"a@example.com","status":"gone"}"#,
        ),
    ];
    assert_eq!(received.len(), 3);
    let mut last_timestamp = before;
    for (request, (operation, kind, row)) in received.iter().zip(expected) {
        let body = request.json();
        let timestamp = body["timestamp"].as_str().unwrap().to_owned();
        let id = &request.id;
        let text = format!(
            "{{\"id\":\"{id}\",{kind},\"timestamp\":\"{timestamp}\",\"account_id\":\"42\",{row}}}"
        );
        assert_eq!(String::from_utf8_lossy(&request.body), text, "{operation}");
        assert!(timestamp.len() == 27 && timestamp > last_timestamp, "{timestamp}");
        let ulid = id.strip_prefix("evt_").unwrap();
        assert!(ulid.len() == 26 && ulid.bytes().all(|b| b.is_ascii_alphanumeric()), "{id}");
        assert!(request.verified, "the signature of {operation}");
        let agent = format!("walhook/{}", env!("CARGO_PKG_VERSION"));
        for (name, value) in [
            ("content-type", Some("application/json")),
            ("user-agent", Some(agent.as_str())),
            ("walhook-attempt", Some("1")),
            ("walhook-replay", None),
        ] {
            assert_eq!(header(request, name), value, "{name}");
        }
        last_timestamp = timestamp;
    }
    let ids: BTreeSet<&str> = received.iter().map(|request| request.id.as_str()).collect();
    assert_eq!(ids.len(), 3);
    Ok(())
}

#[tokio::test]
async fn dropped_column_of_a_rule_halts_until_the_rule_is_corrected() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 42, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 42).await?;
    world.delivered(1).await?;
    world.sql.batch_execute("ALTER TABLE subscribers DROP COLUMN email").await?;
    world.sql.batch_execute("INSERT INTO subscribers VALUES (2, 42, 'active')").await?;
    let (status, log) = running.ended_with_log().await?;
    assert_eq!(status.code(), Some(3), "{log}");
    let reason = "rule 1 (subscriber.created): columns: public.subscribers has no column email";
    assert!(log.contains(reason), "{log}");
    let status = world.walhook_json(&["status"]).await?;
    assert!(status["halted"]["reason"].as_str().unwrap().contains(reason), "{status}");

    world.reconfigure("\"email\", ", "")?;
    let _running = world.run().await?;
    let received = world.delivered(2).await?;
    assert_eq!(rows(&received), [1, 2]);
    assert_eq!(bodies(&received, "/1")[1]["data"], json!({"id": 2, "status": "active"}));
    assert!(world.walhook_json(&["status"]).await?["halted"].is_null());
    Ok(())
}

#[tokio::test]
async fn what_was_read_when_the_connection_broke_is_not_lost() -> Result<()> {
    // So little memory that read changes wait before the dispatcher takes them.
    let mut world = World::with("[memory]\nlimit = \"1MiB\"", crate::support::RULES, &[]).await?;
    world.hook(1, 42, "?delay=2ms").await?;
    let _running = world.run().await?;
    for round in 0..2 {
        let insert = format!(
            "INSERT INTO subscribers SELECT n, 42, repeat('x', 400)
             FROM generate_series({round} * 1000 + 1, {round} * 1000 + 1000) n"
        );
        // One transaction for the first, a transaction each for the others.
        world.sql.batch_execute(&insert).await?;
        let each = "DO $$ BEGIN FOR n IN 1..2000 LOOP
             INSERT INTO subscribers VALUES (BASE + n, 42); COMMIT; END LOOP; END $$";
        world
            .sql
            .batch_execute(&each.replace("BASE", &(10_000 + round * 2000).to_string()))
            .await?;
        world.delivered(round * 3000 + 300).await?;
        let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots";
        world.sql.batch_execute(end).await?;
    }
    let received = world.delivered(6_000).await?;
    assert_eq!(rows(&received).len(), 6_000);
    Ok(())
}

#[tokio::test]
async fn renamed_column_of_a_rule_halts_behind_what_was_written_before() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 42, "?delay=500ms").await?;
    let running = world.run().await?;
    // When the rule is corrected, these have a column that neither rule nor table knows any more.
    let insert = "INSERT INTO subscribers SELECT n, 42, 'e' FROM generate_series(1, 20) n";
    world.sql.batch_execute(insert).await?;
    world.sql.batch_execute("ALTER TABLE subscribers RENAME COLUMN email TO mail").await?;
    world.subscribe(21, 42).await?;
    let (status, log) = running.ended_with_log().await?;
    assert_eq!(status.code(), Some(3), "{log}");
    world.mock.set_behaviour("/1", Behaviour::ok());
    world.reconfigure("\"email\"", "\"mail\"")?;
    let _running = world.run().await?;
    let received = world.delivered(21).await?;
    assert_eq!(rows(&received).into_iter().collect::<BTreeSet<_>>(), (1..=21).collect());
    assert_eq!(world.mock.stats().duplicates, 0);
    Ok(())
}

#[tokio::test]
async fn rows_from_before_a_migration_that_was_made_while_stopped_keep_nobody_waiting() -> Result<()>
{
    let mut world =
        World::with("", &on_insert("created", "subscribers", r#"["id", "email"]"#), &[]).await?;
    world.hook(1, 42, "").await?;
    ensure!(world.run().await?.terminate().await?.success());
    world.subscribe(1, 42).await?;
    world.sql.batch_execute("ALTER TABLE subscribers ADD COLUMN plan text DEFAULT 'free'").await?;
    world.subscribe(2, 42).await?;
    world.reconfigure(r#"["id", "email"]"#, r#"["id", "plan"]"#)?;
    let running = world.run().await?;
    let received = world.delivered(2).await?;
    assert_eq!(data_of(&received, "created"), [json!({"id": 1}), json!({"id": 2, "plan": "free"})]);
    ensure!(running.terminate().await?.success());

    world.subscribe(3, 42).await?;
    world.sql.batch_execute("ALTER TABLE subscribers RENAME COLUMN plan TO tier").await?;
    world.subscribe(4, 42).await?;
    world.reconfigure(r#""plan""#, r#""tier""#)?;
    let running = world.run().await?;
    world.settled().await?;
    let received = world.delivered(3).await?;
    assert_eq!(rows(&received), [1, 2, 4]);
    let letter = "SELECT concat_ws('|', account, reason, detail) FROM walhook.dead_letters";
    let letter = world.value(letter).await?;
    assert!(letter.starts_with("42|unroutable|rule 1 (created): "), "{letter}");
    assert!(letter.contains("no column tier when the row was written, but plan"), "{letter}");

    // There and back, while it runs.
    let both = "BEGIN; ALTER TABLE subscribers RENAME COLUMN tier TO plan;
        INSERT INTO subscribers VALUES (5, 42, 'e');
        ALTER TABLE subscribers RENAME COLUMN plan TO tier; COMMIT";
    world.sql.batch_execute(both).await?;
    world.subscribe(6, 42).await?;
    world.settled().await?;
    assert_eq!(rows(&world.delivered(4).await?), [1, 2, 4, 6]);
    world.until_metric("walhook_unroutable_total{reason=\"table\"}", "2").await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn row_that_changes_its_account_is_told_to_the_new_one_alone() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 42, "").await?;
    world.hook(2, 43, "").await?;
    let _running = world.run().await?;
    world.subscribe(1, 42).await?;
    world.sql.batch_execute("UPDATE subscribers SET account_id = 43, status = 'moved'").await?;
    world.settled().await?;
    let received = world.delivered(2).await?;
    assert_eq!(bodies(&received, "/1").len(), 1);
    let told = &bodies(&received, "/2")[0];
    assert_eq!((&told["account_id"], &told["previous"]), (&json!("43"), &Value::Null));
    Ok(())
}

#[tokio::test]
async fn condition_on_a_value_that_the_wal_does_not_carry_is_a_dead_letter() -> Result<()> {
    let condition = "when = \"new.email != ''\"";
    let rules = rule("changed", "subscribers", r#"["update"]"#, r#"["id"]"#, condition);
    let mut world = World::with("", &rules, &[]).await?;
    let alter =
        "ALTER TABLE subscribers REPLICA IDENTITY DEFAULT, ALTER email SET STORAGE EXTERNAL";
    world.sql.batch_execute(alter).await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    let insert = "INSERT INTO subscribers VALUES (1, 42, repeat('x', 9000)), (2, 42, 'x')";
    world.sql.batch_execute(insert).await?;
    world.sql.batch_execute("UPDATE subscribers SET status = 'a'").await?;
    world.settled().await?;
    assert_eq!(rows(&world.delivered(1).await?), [2]);
    let letter = "SELECT concat_ws('|', endpoint, reason, detail) FROM walhook.dead_letters";
    let letter = world.value(letter).await?;
    assert!(letter.starts_with("|unroutable|rule 1 (changed): "), "{letter}");
    world.until_metric("walhook_unroutable_total{reason=\"condition\"}", "1").await
}

#[tokio::test]
async fn conditions_choose_and_the_first_rule_of_a_type_wins() -> Result<()> {
    let on = r#"["update"]"#;
    let left = "when = \"old.status != new.status && new.status == 'gone'\"";
    let rules = rule("left", "subscribers", on, r#"["id"]"#, left)
        + &rule("changed", "subscribers", on, r#"["status"]"#, "when = \"new.status == 'vip'\"")
        + &rule("changed", "subscribers", on, r#"["email"]"#, "rename = { email = \"mail\" }");
    let mut world = World::with("[delivery]\nordering = \"account\"", &rules, &[]).await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    world.subscribe(1, 42).await?;
    for change in ["status = 'vip'", "status = 'gone'", "email = 'b'"] {
        world.sql.batch_execute(&format!("UPDATE subscribers SET {change}")).await?;
    }
    world.settled().await?;
    let received = world.delivered(4).await?;
    assert_eq!(data_of(&received, "left"), [json!({"id": 1})]);
    let changed =
        [json!({"status": "vip"}), json!({"mail": "a@example.com"}), json!({"mail": "b"})];
    assert_eq!(data_of(&received, "changed"), changed);
    let ids: BTreeSet<&str> = received.iter().map(|request| request.id.as_str()).collect();
    assert_eq!(ids.len(), 4, "events of two types that one change makes have ids of their own");
    Ok(())
}

#[tokio::test]
async fn change_without_account_becomes_a_dead_letter_and_holds_nobody_up() -> Result<()> {
    let mut world = World::new().await?;
    world.sql.batch_execute("ALTER TABLE subscribers ALTER account_id DROP NOT NULL").await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    world.sql.batch_execute("INSERT INTO subscribers VALUES (1, 42), (2, NULL), (3, 42)").await?;
    world.settled().await?;
    assert_eq!(rows(&world.delivered(2).await?).len(), 2);
    let letter = "SELECT concat_ws('|', event_type, endpoint, reason, attempts, detail)
         FROM walhook.dead_letters JOIN walhook.bodies USING (pipeline, event_id)";
    let detail = "rule 1 (subscriber.created): the account column account_id is null";
    assert_eq!(world.value(letter).await?, format!("subscriber.created||unroutable|0|{detail}"));
    world.until_metric("walhook_unroutable_total{reason=\"account\"}", "1").await?;
    Ok(())
}

#[tokio::test]
async fn account_without_endpoints_gets_nothing_and_holds_nothing() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    let insert = "INSERT INTO subscribers SELECT n, n FROM generate_series(100, 1099) n";
    world.sql.batch_execute(insert).await?;
    world.subscribe(1, 42).await?;
    world.settled().await?;
    assert_eq!(rows(&world.delivered(1).await?), [1]);
    assert_eq!(world.value("SELECT count(*) FROM walhook.dead_letters").await?, "0");
    // The account's missing endpoints were cached: one that is added now is heard of.
    world.hook(2, 100, "").await?;
    world.sql.batch_execute("UPDATE subscribers SET status = 'x' WHERE id = 100").await?;
    let received = world.delivered(2).await?;
    assert_eq!(taken(&received)["/2"], [("subscriber.updated".to_owned(), 100)]);
    Ok(())
}
