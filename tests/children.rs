//! Tables that inherit from one that a rule names, also as hypertables' chunks do: their rows are its.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::changes::rule;
use crate::support::{SCHEMA, World, bodies, text};

const ALL: &str = r#"["insert", "update", "delete"]"#;

/// A child in another schema, with a column of its own before the parent's and another key; one of two
/// parents; and one two levels down.
const FAMILY: &str = "
    CREATE SCHEMA chunks;
    CREATE TABLE orders (id bigint PRIMARY KEY, account_id bigint, total numeric);
    CREATE TABLE refunds (account_id bigint, id bigint);
    ALTER TABLE orders REPLICA IDENTITY FULL; ALTER TABLE refunds REPLICA IDENTITY FULL;
    CREATE TABLE chunks.first (secret text, total numeric, id bigint NOT NULL, account_id bigint, PRIMARY KEY (secret));
    ALTER TABLE chunks.first INHERIT orders; ALTER TABLE chunks.first REPLICA IDENTITY FULL;
    CREATE TABLE middle () INHERITS (orders); ALTER TABLE middle REPLICA IDENTITY FULL;
    CREATE TABLE twin (PRIMARY KEY (id)) INHERITS (middle, refunds); ALTER TABLE twin REPLICA IDENTITY FULL";

async fn run_each(world: &World, statements: &[&str]) -> Result<()> {
    for statement in statements {
        world.sql.batch_execute(statement).await.with_context(|| (*statement).to_owned())?;
    }
    Ok(())
}

/// A world with that family, whose publication is made so, or by the set-up.
async fn world(publication: &str) -> Result<World> {
    let rules = rule("order", "orders", ALL, r#"["*"]"#, "")
        + &rule("refund", "refunds", r#"["insert"]"#, r#"["id"]"#, "");
    let world = World::bare("", &rules, &[]).await?;
    world.sql.batch_execute(&format!("{SCHEMA}; {FAMILY}")).await?;
    if !publication.is_empty() {
        world.sql.batch_execute(&format!("CREATE PUBLICATION walhook {publication}")).await?;
    }
    world.set_up().await?;
    world.hook(1, 42, "").await?;
    Ok(world)
}

async fn gaps(world: &World) -> Result<String> {
    world
        .value(
            "SELECT string_agg(source_table || ': ' || reason, '; ' ORDER BY id) FROM walhook.gaps",
        )
        .await
}

#[tokio::test]
async fn child_is_covered_with_the_columns_of_its_parent_whatever_the_publication() -> Result<()> {
    let new = "BEGIN; CREATE TABLE late (more int) INHERITS (orders); \
               ALTER TABLE late REPLICA IDENTITY FULL; INSERT INTO late VALUES (5, 42, 5); COMMIT";
    for (publication, first) in
        [("", 0), ("FOR ALL TABLES", 1), ("FOR TABLES IN SCHEMA public, chunks", 1)]
    {
        let mut world = world(publication).await?;
        let _running = world.run().await?;
        world.until("SELECT count(*) FROM walhook.coverage", "1").await?;
        let statements = [
            "INSERT INTO orders VALUES (1, 42, 1)",
            "INSERT INTO chunks.first VALUES ('hush', 2, 2, 42)",
            "UPDATE orders SET total = 3 WHERE id = 2",
            "DELETE FROM orders WHERE id = 2",
            "INSERT INTO twin VALUES (4, 42, 4)",
            new,
        ];
        run_each(&world, &statements).await?;
        world.delivered(6 + first).await?;
        if first == 0 {
            world
                .until("SELECT count(*) FROM pg_publication_tables WHERE tablename = 'late'", "1")
                .await?;
        }
        run_each(&world, &["INSERT INTO late VALUES (6, 42, 6)"]).await?;
        let bodies = bodies(&world.delivered(7 + first).await?, "/1");
        let data = |kind: &str, id: i64| {
            let of = bodies.iter().filter(move |b| b["type"] == kind && b["data"]["id"] == id);
            of.map(|body| body["data"].clone()).collect::<Vec<_>>()
        };
        let first_child = json!({"total": "2", "id": 2, "account_id": 42});
        ensure!(data("order", 2).first() == Some(&first_child), "{:?}", data("order", 2));
        ensure!(data("order", 2).len() == 3, "{publication}: {:?}", data("order", 2));
        ensure!(data("order", 4).len() == 1 && data("refund", 4).len() == 1, "{publication}");
        ensure!(
            data("order", 5).len() as u64 == first && data("order", 6).len() == 1,
            "{publication}"
        );
        world.settled().await?;
        let expected = match first {
            0 => {
                "public.late: public.late (a child of public.orders) is new, and was not in the \
                  publication walhook at first"
            }
            _ => "",
        };
        ensure!(gaps(&world).await? == expected, "{publication}: {}", gaps(&world).await?);
    }
    Ok(())
}

#[tokio::test]
async fn child_that_may_not_be_added_alarms_and_the_time_until_then_is_its_gap() -> Result<()> {
    let mut world = world("").await?;
    run_each(
        &world,
        &[
            "CREATE ROLE sender LOGIN REPLICATION IN ROLE pg_read_all_data",
            "GRANT ALL ON SCHEMA walhook TO sender",
            "GRANT ALL ON ALL TABLES IN SCHEMA walhook TO sender",
            "GRANT ALL ON ALL SEQUENCES IN SCHEMA walhook TO sender",
        ],
    )
    .await?;
    world.edit_config("postgres://postgres@", "postgres://sender@")?;
    let running = world.run().await?;
    world.until("SELECT count(*) FROM walhook.coverage", "1").await?;
    let statements = [
        "CREATE TABLE late (PRIMARY KEY (id)) INHERITS (orders)",
        "INSERT INTO late VALUES (1, 42, 1)",
        "CREATE TABLE gone (PRIMARY KEY (id)) INHERITS (orders)",
        "INSERT INTO gone VALUES (2, 42, 2)",
        "CREATE TABLE keyless () INHERITS (orders)",
        "CREATE UNLOGGED TABLE forgetful (PRIMARY KEY (id)) INHERITS (orders)",
    ];
    run_each(&world, &statements).await?;
    // Four lack it, and three log less than the rule for deletes needs.
    running
        .until_logged("public.late (a child of public.orders) is not in the publication")
        .await?;
    world.until("SELECT cardinality(alarms) >= 7 FROM walhook.coverage", "t").await?;
    let status = text(&world.walhook(&["status"]).await?.stdout);
    for said in [
        "NOT COVERED",
        "ALTER PUBLICATION walhook ADD TABLE ONLY public.late",
        "ALTER TABLE public.forgetful SET LOGGED",
        "public.keyless (a child of public.orders) has no replica identity",
    ] {
        ensure!(status.contains(said), "{said}: {status}");
    }
    let check = text(&world.walhook(&["check"]).await?.stdout);
    for said in ["public.late", "public.forgetful", "public.keyless", "belongs to another role"] {
        ensure!(check.contains(said), "{said}: {check}");
    }
    let (code, _) = crate::support::get(world.admin, "/readyz").await?;
    ensure!(code == 200, "it goes on");
    let statements = [
        "DROP TABLE gone",
        "ALTER TABLE forgetful SET LOGGED",
        "ALTER PUBLICATION walhook ADD TABLE ONLY late, ONLY forgetful",
    ];
    run_each(&world, &statements).await?;
    world.until("SELECT count(*) FROM walhook.gaps", "3").await?;
    let found = gaps(&world).await?;
    for said in [
        "public.late (a child of public.orders) until now, was not in the publication walhook",
        "public.gone (a child of public.orders) was dropped or detached, and until then was not in",
    ] {
        ensure!(found.contains(said), "{found}");
    }
    let sql = "SELECT find_rows FROM walhook.gaps WHERE source_table = 'public.late'";
    let find = world.value(sql).await?;
    ensure!(world.value(&find).await? == "1", "{find}");
    run_each(&world, &["INSERT INTO late VALUES (3, 42, 3)"]).await?;
    world.delivered(1).await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn child_that_logs_less_than_a_rule_needs_is_named_and_its_deletes_are_dead_letters()
-> Result<()> {
    let mut world = world("").await?;
    run_each(&world, &["ALTER TABLE twin REPLICA IDENTITY DEFAULT"]).await?;
    let check = world.walhook(&["check"]).await?;
    let said = text(&check.stdout);
    let weak = "on delete it needs the old value of account_id, and the replica identity of public.twin \
                logs only id";
    ensure!(check.status.code() == Some(1) && said.contains(weak), "{said}");
    let running = world.run().await?;
    run_each(&world, &["INSERT INTO twin VALUES (1, 42, 1)", "DELETE FROM twin"]).await?;
    world.delivered(2).await?;
    world
        .until("SELECT count(*) FROM walhook.dead_letters WHERE reason = 'unroutable'", "1")
        .await?;
    running.until_logged(weak).await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn leaf_that_makes_no_wal_is_named_with_its_fix() -> Result<()> {
    let mut world =
        World::bare("", &rule("order", "orders", r#"["insert"]"#, r#"["id"]"#, ""), &[]).await?;
    let statements = [
        SCHEMA,
        "CREATE TABLE orders (id bigint, account_id bigint) PARTITION BY RANGE (id)",
        "ALTER TABLE orders REPLICA IDENTITY FULL",
        "CREATE UNLOGGED TABLE low PARTITION OF orders FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE high PARTITION OF orders FOR VALUES FROM (10) TO (20)",
        "ALTER TABLE low REPLICA IDENTITY FULL; ALTER TABLE high REPLICA IDENTITY FULL",
        "CREATE FOREIGN DATA WRAPPER away; CREATE SERVER there FOREIGN DATA WRAPPER away",
        "CREATE FOREIGN TABLE far PARTITION OF orders FOR VALUES FROM (20) TO (30) SERVER there",
    ];
    run_each(&world, &statements).await?;
    world.set_up().await?;
    world.hook(1, 42, "").await?;
    let check = text(&world.walhook(&["check"]).await?.stdout);
    ensure!(check.contains("ALTER TABLE public.low SET LOGGED"), "{check}");
    ensure!(
        check.contains("public.far (a partition of public.orders) is a foreign table"),
        "{check}"
    );
    let running = world.run().await?;
    running.until_logged("public.low (a partition of public.orders) is unlogged").await?;
    world.until_metric("walhook_uncovered_tables", "2").await?;
    run_each(&world, &["INSERT INTO orders VALUES (1, 42), (11, 42)"]).await?;
    world.delivered(1).await?;
    run_each(&world, &["ALTER TABLE low SET LOGGED"]).await?;
    world.until("SELECT count(*) FROM walhook.gaps WHERE source_table = 'public.low'", "1").await?;
    run_each(&world, &["INSERT INTO orders VALUES (2, 42)"]).await?;
    world.delivered(2).await?;
    // While it switches back again between two looks, that is one more.
    world.until_metric("walhook_uncovered_tables", "1").await?;
    let statements = ["ALTER TABLE high SET UNLOGGED", "ALTER TABLE high SET LOGGED"];
    run_each(&world, &statements).await?;
    world
        .until("SELECT count(*) FROM walhook.gaps WHERE source_table = 'public.high'", "1")
        .await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}
