//! What the publication covers, from one look to the next: what was lost in between is a gap, and
//! what only looks like it is none.

use anyhow::{Context, Result, ensure};

use crate::support::{RULES, SCHEMA, World, text};

/// Waits until a look has begun after this moment.
async fn looked(world: &World) -> Result<()> {
    let now = world.value("SELECT pg_current_wal_insert_lsn()").await?;
    world.until(&format!("SELECT lsn >= '{now}' FROM walhook.coverage"), "t").await
}

async fn run_each(world: &World, statements: &str) -> Result<()> {
    // One transaction each: what is put back in the same one was never away.
    for statement in statements.split(';').map(str::trim).filter(|s| !s.is_empty()) {
        world.sql.batch_execute(statement).await.with_context(|| statement.to_owned())?;
    }
    Ok(())
}

async fn gaps(world: &World) -> Result<Vec<serde_json::Value>> {
    let listed = world.walhook_json(&["gaps", "list"]).await?;
    Ok(listed["gaps"].as_array().cloned().unwrap_or_default())
}

async fn close_all(world: &World) -> Result<()> {
    world.sql.batch_execute("UPDATE walhook.gaps SET closed_at = now()").await?;
    Ok(())
}

/// Runs `statements` while nothing runs, and returns the gaps that the next start finds.
async fn found_after(world: &mut World, statements: &str) -> Result<Vec<serde_json::Value>> {
    let running = world.run().await?;
    looked(world).await?;
    ensure!(running.terminate().await?.success());
    close_all(world).await?;
    run_each(world, statements).await?;
    let running = world.run().await.with_context(|| statements.to_owned())?;
    looked(world).await?;
    let found = gaps(world).await?;
    ensure!(running.terminate().await?.success());
    Ok(found)
}

async fn loses(world: &mut World, statements: &str, reason: &str, table: &str) -> Result<()> {
    let found = found_after(world, statements).await?;
    let [gap] = &found[..] else { anyhow::bail!("{statements}: {found:?}") };
    let said = gap["reason"].as_str().unwrap_or_default();
    ensure!(said.contains(reason) && gap["table"] == table, "{statements}: {gap}");
    ensure!(gap["no_replay"].as_str().unwrap_or_default().contains("no slot's stream"), "{gap}");
    Ok(())
}

async fn keeps(world: &mut World, statements: &str) -> Result<()> {
    let found = found_after(world, statements).await?;
    ensure!(found.is_empty(), "{statements}: {found:?}");
    Ok(())
}

const OTHERS: &str = "CREATE ROLE keeper SUPERUSER; CREATE TABLE other (id bigint PRIMARY KEY);
    CREATE TABLE parts (id bigint PRIMARY KEY, account_id bigint) PARTITION BY RANGE (id)";

#[tokio::test]
async fn publication_that_was_changed_and_put_back_while_stopped_is_a_gap_that_names_the_table()
-> Result<()> {
    let mut world = World::new().await?;
    run_each(&world, OTHERS).await?;
    let altered = "operations may have been switched off";
    let away = "taken out of the publication walhook and put back";
    for (statements, reason) in [
        (
            "ALTER PUBLICATION walhook DROP TABLE subscribers; INSERT INTO subscribers VALUES (1, 1);
             ALTER PUBLICATION walhook ADD TABLE subscribers",
            away,
        ),
        (
            "ALTER PUBLICATION walhook SET TABLE webhooks, subscribers WHERE (id < 0);
             INSERT INTO subscribers VALUES (2, 1);
             ALTER PUBLICATION walhook SET TABLE webhooks, subscribers",
            away,
        ),
        (
            "ALTER TABLE subscribers RENAME TO subscribers_old;
             CREATE TABLE subscribers (LIKE subscribers_old INCLUDING ALL);
             ALTER TABLE subscribers REPLICA IDENTITY FULL;
             INSERT INTO subscribers VALUES (3, 1);
             ALTER PUBLICATION walhook ADD TABLE subscribers",
            "is another table than before",
        ),
    ] {
        loses(&mut world, statements, reason, "public.subscribers").await?;
    }
    // Of both tables that are needed, for nobody knows which operation it was.
    for (statements, reason) in [
        (
            "ALTER PUBLICATION walhook SET (publish = 'delete'); INSERT INTO subscribers VALUES (4, 1);
             ALTER PUBLICATION walhook SET (publish = 'insert, update, delete, truncate')",
            altered,
        ),
        (
            // To an owner it does not explain two more.
            "ALTER PUBLICATION walhook SET (publish = 'delete'); INSERT INTO subscribers VALUES (5, 1);
             ALTER PUBLICATION walhook SET (publish = 'insert, update, delete, truncate');
             ALTER PUBLICATION walhook OWNER TO keeper; SELECT pg_stat_force_next_flush()",
            altered,
        ),
        (
            "DROP PUBLICATION walhook; CREATE PUBLICATION walhook FOR TABLE webhooks, subscribers
             WITH (publish_via_partition_root = true)",
            "dropped and created again",
        ),
    ] {
        let found = found_after(&mut world, statements).await?;
        let told = |gap: &serde_json::Value| gap["reason"].as_str().unwrap_or("").contains(reason);
        ensure!(found.len() == 2 && found.iter().all(told), "{statements}: {found:?}");
        let find = found.iter().find(|gap| gap["table"] == "public.subscribers").unwrap();
        let rows = world.value(&find["find"].as_str().unwrap().replace('*', "count(*)")).await?;
        ensure!(rows == if reason == altered { "1" } else { "0" }, "{statements}: {rows} rows: {find}");
    }
    let listed = text(&world.walhook(&["gaps", "list"]).await?.stdout);
    ensure!(listed.contains("find the rows: SELECT * FROM public.subscribers WHERE"), "{listed}");
    Ok(())
}

#[tokio::test]
async fn publication_whose_owner_name_or_other_tables_change_is_no_gap() -> Result<()> {
    let mut world = World::new().await?;
    run_each(&world, OTHERS).await?;
    for statements in [
        "ALTER PUBLICATION walhook OWNER TO keeper",
        "ALTER PUBLICATION walhook ADD TABLE other; INSERT INTO other VALUES (1);
         ALTER PUBLICATION walhook DROP TABLE other",
        "ALTER TABLE subscribers RENAME TO elsewhere; ALTER TABLE elsewhere RENAME TO subscribers",
        "VACUUM FULL subscribers; VACUUM FULL pg_publication; TRUNCATE subscribers",
        "ALTER TABLE subscribers ADD COLUMN more int; ALTER TABLE subscribers ALTER more TYPE bigint",
        "ALTER TABLE subscribers REPLICA IDENTITY DEFAULT; ALTER TABLE subscribers REPLICA IDENTITY FULL",
        // As pg_upgrade leaves it: another version, and no id is what it was.
        "UPDATE walhook.coverage SET seen = replace(seen, 'version', 'version 1');
         DROP PUBLICATION walhook; CREATE PUBLICATION walhook FOR TABLE webhooks, subscribers",
    ] {
        keeps(&mut world, statements).await?;
    }

    // A rule that needs more of the publication.
    world.reconfigure(
        "[[events]]\ntype = \"subscriber.created\"",
        "[[events]]\ntype = \"parts.cleared\"\n\
        table = \"public.parts\"\non = [\"truncate\"]\naccount_value = \"1\"\n\
        [[events]]\ntype = \"subscriber.created\"",
    )?;
    world.set_up().await?;
    keeps(&mut world, "").await
}

/// Emptied and filled in one transaction.
async fn no_gap_where_the_endpoint_table_is_replaced(publication: &str) -> Result<()> {
    let mut world = World::bare("", RULES, &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    world.sql.batch_execute(&format!("CREATE PUBLICATION walhook {publication}")).await?;
    world.set_up().await?;
    world.hook(1, 1, "").await?;
    for emptying in ["DELETE FROM webhooks", "TRUNCATE webhooks"] {
        let (before, running) = (world.mock.stats().distinct, world.run().await?);
        looked(&world).await?;
        world.subscribe(1, 1).await?;
        world.delivered(before + 1).await?;
        let replace = format!(
            "BEGIN; CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM webhooks; {emptying};
             INSERT INTO webhooks SELECT * FROM kept; DELETE FROM subscribers WHERE id = 1; COMMIT"
        );
        world.sql.batch_execute(&replace).await?;
        world.delivered(before + 2).await?;
        looked(&world).await?;
        ensure!(gaps(&world).await?.is_empty(), "{emptying}: {:?}", gaps(&world).await?);
        ensure!(running.terminate().await?.success());
    }
    Ok(())
}

#[tokio::test]
async fn endpoint_table_that_is_emptied_and_filled_in_one_transaction_is_no_gap() -> Result<()> {
    no_gap_where_the_endpoint_table_is_replaced("FOR TABLE webhooks, subscribers").await
}

#[tokio::test]
async fn endpoint_table_that_is_emptied_and_filled_is_no_gap_where_all_tables_are_published()
-> Result<()> {
    no_gap_where_the_endpoint_table_is_replaced("FOR ALL TABLES").await
}

#[tokio::test]
async fn table_that_was_unlogged_or_in_another_schema_for_a_time_is_a_gap() -> Result<()> {
    let unlogged = (
        "ALTER TABLE subscribers SET UNLOGGED; INSERT INTO subscribers VALUES (1, 1);
                     ALTER TABLE subscribers SET LOGGED",
        "may have been unlogged",
    );
    let moved = (
        "ALTER TABLE subscribers SET SCHEMA away; INSERT INTO away.subscribers VALUES (2, 1);
                  ALTER TABLE away.subscribers SET SCHEMA public",
        "taken out of the publication",
    );
    let left = (
        "ALTER PUBLICATION walhook DROP TABLES IN SCHEMA public;
                 INSERT INTO subscribers VALUES (3, 1);
                 ALTER PUBLICATION walhook ADD TABLES IN SCHEMA public",
        "taken out of the publication",
    );
    for (publication, losing, keeping) in [
        ("FOR ALL TABLES", vec![unlogged], vec![moved.0, "DELETE FROM subscribers"]),
        ("FOR TABLES IN SCHEMA public", vec![unlogged, moved, left], vec![]),
    ] {
        let mut world = World::bare("", RULES, &[]).await?;
        world.sql.batch_execute(SCHEMA).await?;
        let create = format!("CREATE SCHEMA away; CREATE PUBLICATION walhook {publication}");
        world.sql.batch_execute(&create).await?;
        world.set_up().await?;
        for statements in [
            "VACUUM FULL subscribers; CLUSTER subscribers USING subscribers_pkey",
            "TRUNCATE subscribers",
            "ALTER TABLE subscribers ALTER email TYPE varchar(9)",
        ] {
            keeps(&mut world, statements).await?;
        }
        for (statements, reason) in losing {
            let found = found_after(&mut world, statements).await?;
            let gap = found.iter().find(|gap| gap["table"] == "public.subscribers");
            let said = gap.and_then(|gap| gap["reason"].as_str()).unwrap_or_default();
            ensure!(said.contains(reason), "{publication}: {statements}: {found:?}");
        }
        for statements in keeping {
            keeps(&mut world, statements).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn publication_that_is_changed_and_put_back_between_two_looks_is_an_alarmed_gap() -> Result<()>
{
    let mut world = World::new().await?;
    let running = world.run().await?;
    looked(&world).await?;
    // The route of account 2 is known, and what makes an endpoint of it is lost.
    world.hook(1, 1, "").await?;
    world.subscribe(1, 1).await?;
    world.subscribe(2, 2).await?;
    world.delivered(1).await?;
    world.settled().await?;
    run_each(&world, "ALTER PUBLICATION walhook DROP TABLE webhooks").await?;
    world.hook(2, 2, "").await?;
    run_each(&world, "ALTER PUBLICATION walhook ADD TABLE webhooks").await?;
    world.until_metric("walhook_gaps", "1").await?;
    running
        .until_logged("a gap: events of that time may have gone to endpoints as they were")
        .await?;
    world.subscribe(3, 2).await?;
    world.delivered(2).await?;
    let status = text(&world.walhook(&["status"]).await?.stdout);
    ensure!(status.contains("public.webhooks was taken out of the publication"), "{status}");
    ensure!(running.terminate().await?.success());
    Ok(())
}

/// They come and go with all that they hold, and without a change in the stream.
#[tokio::test]
async fn partitions_of_the_endpoint_table_that_are_attached_or_detached_count_at_once() -> Result<()>
{
    let mut world = World::bare("", RULES, &[]).await?;
    let parted = "DROP TABLE webhooks;
        CREATE TABLE webhooks (id bigint, account_id bigint NOT NULL, url text NOT NULL,
            event_types text[] NOT NULL DEFAULT '{*}', secret text, enabled boolean NOT NULL DEFAULT true,
            PRIMARY KEY (id, account_id)) PARTITION BY LIST (account_id);
        CREATE TABLE w1 PARTITION OF webhooks FOR VALUES IN (1);
        CREATE TABLE w2 PARTITION OF webhooks FOR VALUES IN (2)";
    world.sql.batch_execute(&format!("{SCHEMA}; {parted}")).await?;
    world.set_up().await?;
    world.hook(1, 1, "").await?;
    world.hook(2, 2, "").await?;
    let _running = world.run().await?;
    for account in 1..=3 {
        world.subscribe(account, account).await?;
    }
    world.delivered(2).await?;
    // One that is made there has nothing before it is seen.
    run_each(&world, "CREATE TABLE w4 PARTITION OF webhooks FOR VALUES IN (4)").await?;
    looked(&world).await?;
    world.until("SELECT (seen LIKE '%public.w4%')::text FROM walhook.coverage", "true").await?;
    ensure!(gaps(&world).await?.is_empty());

    let statements = "ALTER TABLE webhooks DETACH PARTITION w1;
        CREATE TABLE w3 (LIKE webhooks INCLUDING ALL);
        INSERT INTO w3 SELECT 3, 3, pg_catalog.regexp_replace(url, '1$', '3'), event_types, secret FROM w1;
        ALTER TABLE webhooks ATTACH PARTITION w3 FOR VALUES IN (3)";
    run_each(&world, statements).await?;
    world.until("SELECT (seen LIKE '%public.w3%')::text FROM walhook.coverage", "true").await?;
    let found = gaps(&world).await?;
    let reasons: Vec<&str> = found.iter().filter_map(|gap| gap["reason"].as_str()).collect();
    let reasons = reasons.join("; ");
    for moved in ["public.w3 was attached", "public.w1 was detached"] {
        ensure!(reasons.contains(moved), "{reasons}");
    }
    // The routes are outdated a moment after the gap is stored.
    for n in 0.. {
        ensure!(n < 100, "the endpoint that was attached gets nothing");
        world.subscribe(100 + n, 3).await?;
        world.settled().await?;
        if world.mock.received().iter().any(|request| request.path == "/3") {
            break;
        }
    }
    world.subscribe(300, 1).await?;
    world.settled().await?;
    let to_the_detached = world.mock.received();
    let count = to_the_detached.iter().filter(|request| request.path == "/1").count();
    ensure!(count == 1, "{count} requests to the endpoint that was detached");
    Ok(())
}
