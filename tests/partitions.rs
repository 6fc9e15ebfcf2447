//! Partitioned tables: rules name the root, rows live in partitions that come and go.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::changes::rule;
use crate::support::{SCHEMA, World, bodies, text};

const PARTITIONED: &str = "
    CREATE TABLE orders (id bigint PRIMARY KEY, account_id bigint, total numeric) PARTITION BY RANGE (id);
    CREATE TABLE low PARTITION OF orders FOR VALUES FROM (0) TO (10);
    CREATE TABLE high PARTITION OF orders FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id);
    CREATE TABLE higher PARTITION OF high FOR VALUES FROM (10) TO (20);
    ALTER TABLE low REPLICA IDENTITY FULL; ALTER TABLE higher REPLICA IDENTITY FULL;
    ALTER TABLE orders REPLICA IDENTITY FULL; ALTER TABLE high REPLICA IDENTITY FULL";

/// Publishes partitions under their own names.
const BY_NAME: &str = "ALTER PUBLICATION walhook SET (publish_via_partition_root = false)";

/// A commit that is published moves the frontier at once, whatever becomes of it.
const PULSE: &str = "ALTER PUBLICATION walhook ADD TABLE subscribers";

/// A world with the partitioned table `orders`, whose publication is altered so after the set-up.
async fn world(alter: &str) -> Result<World> {
    let on = r#"["insert", "update", "delete"]"#;
    let rules = rule("order", "orders", on, r#"["id", "total"]"#, "")
        + "[[events]]\ntype = \"orders.cleared\"\ntable = \"public.orders\"\non = [\"truncate\"]\n\
           account_value = \"42\"\n";
    let world = World::bare("", &rules, &[]).await?;
    world.sql.batch_execute(&format!("{SCHEMA}; {PARTITIONED}")).await?;
    world.set_up().await?;
    world.sql.batch_execute(PULSE).await?;
    world.sql.batch_execute(alter).await?;
    world.hook(1, 42, "").await?;
    Ok(world)
}

/// The events of a row, in order: operation, total, and what was before.
fn of_row(bodies: &[Value], id: i64) -> Vec<Value> {
    let mine = bodies.iter().filter(|body| body["data"]["id"] == id);
    mine.map(|body| json!([body["operation"], body["data"]["total"], body["previous"]])).collect()
}

async fn run_each(world: &World, statements: &[&str]) -> Result<()> {
    for statement in statements {
        world.sql.batch_execute(statement).await?;
    }
    Ok(())
}

/// The dead letters' details.
async fn letters(world: &World) -> Result<String> {
    world.value("SELECT string_agg(reason || ' ' || detail, '; ') FROM walhook.dead_letters").await
}

/// Torture case 12.
#[tokio::test]
async fn case_12_row_moved_between_partitions_is_a_delete_and_an_insert_of_the_root() -> Result<()>
{
    for alter in ["", BY_NAME] {
        let mut world = world(alter).await?;
        let _running = world.run().await?;
        let statements = [
            "INSERT INTO orders VALUES (1, 42, 1.50)",
            "UPDATE orders SET total = 2 WHERE id = 1",
            "UPDATE orders SET id = 11 WHERE id = 1",
            // Columns in another order, and made after the start.
            "CREATE TABLE top (total numeric, account_id bigint, id bigint NOT NULL)",
            "ALTER TABLE top REPLICA IDENTITY FULL",
            "ALTER TABLE orders ATTACH PARTITION top FOR VALUES FROM (20) TO (30)",
            "INSERT INTO orders VALUES (21, 42, 3)",
            "DELETE FROM orders WHERE id = 11",
        ];
        run_each(&world, &statements).await?;
        world.settled().await?;
        let bodies = bodies(&world.delivered(6).await?, "/1");
        let first = [
            json!(["insert", "1.50", null]),
            json!(["update", "2", {"total": "1.50"}]),
            json!(["delete", "2", null]),
        ];
        assert_eq!(of_row(&bodies, 1), first, "{alter}");
        let moved = [json!(["insert", "2", null]), json!(["delete", "2", null])];
        assert_eq!(of_row(&bodies, 11), moved, "{alter}");
        assert_eq!(of_row(&bodies, 21), [json!(["insert", "3", null])], "{alter}");
        assert_eq!(world.mock.stats().received, 6, "{alter}");
    }
    Ok(())
}

#[tokio::test]
async fn partition_is_told_as_its_root_while_it_is_attached_and_no_longer() -> Result<()> {
    for alter in ["", BY_NAME] {
        let mut world = world(alter).await?;
        let _running = world.run().await?;
        let statements = [
            "CREATE TABLE top (LIKE orders)",
            "ALTER TABLE top REPLICA IDENTITY FULL",
            "INSERT INTO top VALUES (20, 42, 0)",
            "ALTER TABLE orders ATTACH PARTITION top FOR VALUES FROM (20) TO (30)",
            "INSERT INTO orders VALUES (21, 42, 1)",
            "INSERT INTO orders VALUES (1, 42, 1)",
        ];
        run_each(&world, &statements).await?;
        // Read while it is attached: of what is read later that cannot be told.
        world.delivered(2).await?;
        let statements = [
            "ALTER TABLE orders DETACH PARTITION top",
            "ALTER TABLE orders DETACH PARTITION low",
            "INSERT INTO top VALUES (22, 42, 2)",
            "INSERT INTO low VALUES (2, 42, 2)",
            "DROP TABLE low",
            "ALTER TABLE orders ATTACH PARTITION top FOR VALUES FROM (20) TO (30)",
            "INSERT INTO orders VALUES (23, 42, 3)",
        ];
        run_each(&world, &statements).await?;
        world.settled().await?;
        let bodies = bodies(&world.delivered(3).await?, "/1");
        let mut ids: Vec<i64> =
            bodies.iter().filter_map(|body| body["data"]["id"].as_i64()).collect();
        ids.sort_unstable();
        assert_eq!(ids, [1, 21, 23], "{alter}");
        assert_eq!(letters(&world).await?, "", "{alter}");
    }
    Ok(())
}

#[tokio::test]
async fn publication_of_all_tables_has_the_root_and_the_set_up_completes_it() -> Result<()> {
    let rules = rule("order", "orders", r#"["insert"]"#, r#"["id", "total"]"#, "");
    let mut world = World::bare("", &rules, &[]).await?;
    world.sql.batch_execute(&format!("{SCHEMA}; {PARTITIONED}")).await?;
    world.sql.batch_execute("CREATE PUBLICATION walhook FOR ALL TABLES").await?;
    world.set_up().await?;
    world.hook(1, 42, "").await?;
    let via_root = "SELECT pubviaroot FROM pg_publication";
    ensure!(world.value(via_root).await? == "t");
    // Likewise while it runs: their names alone tell nothing.
    let running = world.run().await?;
    run_each(&world, &[BY_NAME, "INSERT INTO orders VALUES (1, 42, 1)"]).await?;
    world.delivered(1).await?;
    ensure!(running.terminate().await?.success());
    let running = world.run().await?;
    run_each(&world, &["INSERT INTO orders VALUES (11, 42, 1)"]).await?;
    world.delivered(2).await?;
    ensure!(running.terminate().await?.success());
    world.set_up().await?;
    ensure!(world.value(via_root).await? == "t");
    Ok(())
}

#[tokio::test]
async fn table_of_its_own_in_the_publication_is_told_once_it_is_attached() -> Result<()> {
    let mut world = world(BY_NAME).await?;
    let statements = [
        "CREATE TABLE top (LIKE orders INCLUDING ALL)",
        "ALTER TABLE top REPLICA IDENTITY FULL",
        "ALTER PUBLICATION walhook ADD TABLE top",
    ];
    run_each(&world, &statements).await?;
    let _running = world.run().await?;
    let statements = ["INSERT INTO top VALUES (20, 42, 0)", "INSERT INTO orders VALUES (1, 42, 1)"];
    run_each(&world, &statements).await?;
    world.settled().await?;
    let statements = [
        // The stream describes it anew, and as before.
        "ALTER TABLE orders ATTACH PARTITION top FOR VALUES FROM (20) TO (30)",
        "INSERT INTO orders VALUES (21, 42, 2)",
    ];
    run_each(&world, &statements).await?;
    world.settled().await?;
    let bodies = bodies(&world.delivered(2).await?, "/1");
    let ids: Vec<&Value> = bodies.iter().map(|body| &body["data"]["id"]).collect();
    assert_eq!(ids, [1, 21]);
    Ok(())
}

/// What was a partition when the row was written cannot be told any more: that is never "no".
#[tokio::test]
async fn change_of_a_partition_that_is_gone_is_a_dead_letter() -> Result<()> {
    for gone in ["ALTER TABLE orders DETACH PARTITION low", "DROP TABLE low"] {
        let mut world = world(BY_NAME).await?;
        let statements = [
            "CREATE TABLE other (id bigint PRIMARY KEY)",
            "ALTER PUBLICATION walhook ADD TABLE other",
            "INSERT INTO orders VALUES (1, 42, 1)",
            "INSERT INTO other VALUES (1)",
            gone,
            "ALTER PUBLICATION walhook DROP TABLE other",
            "INSERT INTO orders VALUES (11, 42, 2)",
        ];
        run_each(&world, &statements).await?;
        let _running = world.run().await?;
        world.settled().await?;
        let bodies = bodies(&world.delivered(1).await?, "/1");
        assert_eq!(of_row(&bodies, 11), [json!(["insert", "2", null])], "{gone}");
        let letter = "unroutable rule 1 (order): public.low is no partition now, but may have been \
                      one of public.orders";
        assert_eq!(letters(&world).await?, letter, "{gone}");
        world.until_metric("walhook_unroutable_total{reason=\"table\"}", "1").await?;
    }
    Ok(())
}

#[tokio::test]
async fn partition_that_logs_less_than_a_rule_needs_halts_when_it_is_attached() -> Result<()> {
    let mut world = world(BY_NAME).await?;
    let running = world.run().await?;
    let statements = [
        "INSERT INTO orders VALUES (1, 42, 1)",
        "CREATE TABLE top PARTITION OF orders FOR VALUES FROM (20) TO (30)",
        "INSERT INTO orders VALUES (21, 42, 1)",
    ];
    run_each(&world, &statements).await?;
    let (status, log) = running.ended_with_log().await?;
    assert_eq!(status.code(), Some(3), "{log}");
    let reason = "rule 1 (order): on delete it needs the old value of account_id, and the replica \
                  identity of public.top logs only id";
    assert!(log.contains(reason), "{log}");
    world.sql.batch_execute("ALTER TABLE top REPLICA IDENTITY FULL").await?;
    let _running = world.run().await?;
    assert_eq!(bodies(&world.delivered(2).await?, "/1").len(), 2);
    Ok(())
}

#[tokio::test]
async fn truncate_of_the_root_is_an_event_or_one_for_each_published_partition() -> Result<()> {
    for (alter, events) in [("", 1), (BY_NAME, 2)] {
        let mut world = world(alter).await?;
        let _running = world.run().await?;
        let statements = ["INSERT INTO orders VALUES (1, 42, 1), (11, 42, 1)", "TRUNCATE orders"];
        run_each(&world, &statements).await?;
        world.settled().await?;
        let bodies = bodies(&world.delivered(2 + events).await?, "/1");
        let cleared = bodies.iter().filter(|body| body["type"] == "orders.cleared").count();
        assert_eq!(cleared as u64, events, "{alter}");
    }
    Ok(())
}

/// From then on its changes come as the root's, so that its rule would hear of none.
#[tokio::test]
async fn table_of_a_rule_that_becomes_a_partition_of_a_published_root_halts_before_a_row_is_missed()
-> Result<()> {
    let columns = r#"["id", "total"]"#;
    let archived = rule("archived", "archive", r#"["insert"]"#, columns, "");
    let rules = rule("order", "orders", r#"["insert"]"#, columns, "") + &archived;
    let mut world = World::bare("", &rules, &[]).await?;
    world.sql.batch_execute(&format!("{SCHEMA}; {PARTITIONED}")).await?;
    world.sql.batch_execute("CREATE TABLE archive (LIKE orders INCLUDING ALL)").await?;
    world.set_up().await?;
    world.hook(1, 42, "").await?;
    let running = world.run().await?;
    run_each(&world, &["INSERT INTO archive VALUES (20, 42, 1)"]).await?;
    world.delivered(1).await?;
    let statements = [
        "ALTER TABLE orders ATTACH PARTITION archive FOR VALUES FROM (20) TO (30)",
        "INSERT INTO archive VALUES (21, 42, 2)",
    ];
    run_each(&world, &statements).await?;
    let (status, log) = running.ended_with_log().await?;
    let reason = "public.archive as those of public.orders, which it is a partition of";
    ensure!(status.code() == Some(3) && log.contains(reason), "{status}: {log}");

    let (status, log) = world.spawn()?.ended_with_log().await?;
    ensure!(status.code() == Some(2) && log.contains(reason), "{status}: {log}");
    let check = text(&world.walhook(&["check"]).await?.stdout);
    let fix = "name public.orders in its place";
    ensure!(check.contains(reason) && check.contains(fix), "{check}");
    let setup = world.walhook(&["setup"]).await?;
    let told = text(&setup.stderr);
    ensure!(!setup.status.success() && told.contains(fix), "{told}");

    world.edit_config(&archived, "")?;
    let _running = world.run().await?;
    let bodies = bodies(&world.delivered(2).await?, "/1");
    let types: Vec<&Value> = bodies.iter().map(|body| &body["type"]).collect();
    assert_eq!(types, ["archived", "order"]);
    Ok(())
}

#[tokio::test]
async fn rule_for_a_partition_is_refused_where_its_root_is_published_or_would_be() -> Result<()> {
    let columns = r#"["id", "total"]"#;
    let mut world = World::bare("", &rule("low", "low", r#"["insert"]"#, columns, ""), &[]).await?;
    world.sql.batch_execute(&format!("{SCHEMA}; {PARTITIONED}")).await?;
    world.set_up().await?;
    world.hook(1, 42, "").await?;
    let running = world.run().await?;
    run_each(&world, &["INSERT INTO orders VALUES (1, 42, 1)"]).await?;
    world.delivered(1).await?;
    ensure!(running.terminate().await?.success());

    let alone = std::fs::read_to_string(world.config())?;
    let of_root = rule("order", "orders", r#"["insert"]"#, columns, "");
    world.write_config(&format!("{alone}\n{of_root}"))?;
    let refused = "public.low is a partition of public.orders, which the publication walhook has or is to have";
    let setup = world.walhook(&["setup"]).await?;
    ensure!(text(&setup.stderr).contains(refused), "{}", text(&setup.stderr));
    let holds = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'orders'";
    ensure!(world.value(holds).await? == "0");

    // All that is below a root, when all tables are published.
    let all = "DROP PUBLICATION walhook;
        CREATE PUBLICATION walhook FOR ALL TABLES WITH (publish_via_partition_root)";
    run_each(&world, &all.split(';').collect::<Vec<_>>()).await?;
    world.write_config(&alone.replace("public.low", "public.high"))?;
    let (status, log) = world.spawn()?.ended_with_log().await?;
    let reason = "public.high as those of public.orders, which it is a partition of";
    ensure!(status.code() == Some(2) && log.contains(reason), "{status}: {log}");
    let setup = text(&world.walhook(&["setup"]).await?.stderr);
    ensure!(setup.contains("name public.orders in its place"), "{setup}");
    Ok(())
}
