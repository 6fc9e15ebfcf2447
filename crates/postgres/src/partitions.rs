//! The partitions below a table, read without a lock on any.

use crate::op::EQ;

/// A query for the `oid` of each partition below the table that `oid` is an expression for, however deep.
///
/// Not `pg_partition_tree`: that locks each table of the tree until the transaction ends. A statement that asks about
/// a partition and then about its root would lock them in another order than the application's `DETACH PARTITION`
/// does, whose statement the server may then end as deadlocked.
pub(crate) fn partitions_of(oid: &str) -> String {
    format!(
        "WITH RECURSIVE parent (oid, is_top) AS (
             SELECT {oid}::pg_catalog.oid, true
             UNION
             SELECT i.inhrelid, false FROM parent
             JOIN pg_catalog.pg_inherits i ON i.inhparent {EQ} parent.oid AND NOT i.inhdetachpending
             JOIN pg_catalog.pg_class p ON p.oid {EQ} i.inhrelid AND p.relispartition)
         SELECT parent.oid FROM parent WHERE NOT parent.is_top"
    )
}

/// An array of the table's `oid` and of those below it, by which an index serves, whatever the planner takes it for.
pub(crate) fn tree_of(oid: &str) -> String {
    format!("ARRAY(SELECT {oid}::pg_catalog.oid UNION ALL ({}))", partitions_of(oid))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::fixture::{session, start};
    use crate::published::published_as;
    use crate::sql::Connection;
    use crate::{catalog, coverage, preflight, refused_writes, row_security, source};
    use walhook_core::catalog::TableName;

    /// With policies, and partitions published by their own names as well as through their root.
    const SCHEMA: &str = "
        CREATE TABLE orders (id bigint PRIMARY KEY, total numeric) PARTITION BY RANGE (id);
        CREATE TABLE low PARTITION OF orders FOR VALUES FROM (0) TO (10);
        CREATE TABLE high PARTITION OF orders FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id);
        CREATE TABLE higher PARTITION OF high FOR VALUES FROM (10) TO (20);
        CREATE TABLE plain (id bigint);
        CREATE TABLE heir () INHERITS (plain);
        ALTER TABLE low ENABLE ROW LEVEL SECURITY;
        CREATE POLICY positive ON low USING (total > 0);
        CREATE POLICY everything ON low USING (true);
        CREATE PUBLICATION by_root FOR TABLE orders WITH (publish_via_partition_root);
        CREATE PUBLICATION by_name FOR TABLE orders, low;
        CREATE PUBLICATION of_all FOR ALL TABLES;
        CREATE ROLE reader;";

    #[tokio::test]
    async fn partitions_are_those_of_the_server_s_own_function() {
        let (_cluster, client) = start().await;
        client.batch_execute(SCHEMA).await.unwrap();
        for table in ["orders", "high", "low", "higher", "plain", "heir"] {
            let below = partitions_of(&format!("'{table}'::regclass"));
            let differ = format!(
                "SELECT count(*) FROM (SELECT relid::oid FROM pg_partition_tree('{table}') WHERE level > 0) t (oid)
                     FULL JOIN ({below}) b USING (oid) WHERE t.oid IS NULL OR b.oid IS NULL"
            );
            let row = client.query_one(&differ, &[]).await.unwrap();
            assert_eq!(row.get::<_, i64>(0), 0, "{table}");
        }
        let row = client
            .query_one(
                &format!("SELECT count(*) FROM ({}) b", partitions_of("'orders'::regclass")),
                &[],
            )
            .await
            .unwrap();
        assert_eq!(row.get::<_, i64>(0), 3);
    }

    /// It is asked for table after table: with the whole of `pg_class` each time, that is quadratic.
    #[tokio::test]
    async fn tables_of_a_tree_are_found_by_an_index() {
        let (_cluster, client) = start().await;
        client.batch_execute(SCHEMA).await.unwrap();
        let tree = tree_of("'orders'::regclass");
        let explain = format!("EXPLAIN SELECT FROM pg_class c WHERE c.oid = ANY ({tree})");
        let plan = client.query(&explain, &[]).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
        assert!(!plan.iter().any(|line| line.contains("Seq Scan on pg_class c ")), "{plan:#?}");
        assert!(plan.iter().any(|line| line.contains("on pg_class c ")), "{plan:#?}");
    }

    /// Asks all that is asked of the catalog about tables.
    async fn ask_everything(client: &Connection) {
        let names = ["public.orders", "public.low", "public.high", "public.higher"];
        let tables: BTreeSet<TableName> = names.iter().map(|name| name.parse().unwrap()).collect();
        let catalog = catalog::load(client, names).await.unwrap();
        let low = catalog.find("public.low").unwrap().oid;
        let orders = catalog.find("public.orders").unwrap().oid;
        let hidden = row_security::hidden(client, &tables).await.unwrap();
        assert_eq!(hidden, []);
        for table in &tables {
            preflight::read_right(client, "reader", table).await.unwrap();
            assert!(source::table(client, table).await.unwrap().is_some());
        }
        for publication in ["by_root", "by_name", "of_all"] {
            assert!(source::publication(client, publication).await.unwrap().is_some());
            for table in &tables {
                published_as(client, publication, table, &tables, true).await.unwrap();
            }
            refused_writes::refused_writes(client, publication).await.unwrap();
            coverage::look(client, publication, &tables, 1).await.unwrap();
            catalog::standing(client, publication, low, &[orders]).await.unwrap();
        }
    }

    /// A session that held one and waited for another could have the application's `ALTER TABLE` end as deadlocked.
    #[tokio::test]
    async fn what_asks_the_catalog_holds_no_lock_on_the_tables_that_it_asks_about() {
        let (_cluster, client) = start().await;
        client.batch_execute(SCHEMA).await.unwrap();
        client.batch_execute("BEGIN").await.unwrap();
        ask_everything(&client).await;
        let held = "SELECT coalesce(string_agg(relation::regclass::text, ', '), '') FROM pg_locks
            WHERE pid = pg_backend_pid() AND relation >= 16384";
        let row = client.query_one(held, &[]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), "");
    }

    /// Nobody's deliveries are to wait while a table is rewritten, not even where it is a rule's own.
    #[tokio::test]
    async fn what_asks_the_catalog_waits_for_no_lock_on_the_tables_that_it_asks_about() {
        let (cluster, client) = start().await;
        client.batch_execute(SCHEMA).await.unwrap();
        let migration = session(&cluster).await;
        let lock =
            "BEGIN; LOCK TABLE orders, low, high, higher, plain, heir IN ACCESS EXCLUSIVE MODE";
        migration.batch_execute(lock).await.unwrap();
        // What waits fails. As a role for which policies are looked at.
        client.batch_execute("SET lock_timeout = '1s'; SET ROLE reader").await.unwrap();
        ask_everything(&client).await;
    }

    /// `DETACH PARTITION ... CONCURRENTLY` waits for the transactions that have read the root, often for minutes.
    #[tokio::test]
    async fn partition_that_is_being_detached_concurrently_is_covered_by_nobody_and_missed_by_nobody()
     {
        let (cluster, client) = start().await;
        client.batch_execute(SCHEMA).await.unwrap();
        let [reader, migration] = [session(&cluster).await, session(&cluster).await];
        reader.batch_execute("BEGIN; TABLE orders").await.unwrap();
        let detach =
            migration.batch_execute("ALTER TABLE orders DETACH PARTITION low CONCURRENTLY");
        let looks = async {
            let pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending";
            while client.query_one(pending, &[]).await.unwrap().get::<_, i64>(0) == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            let orders = BTreeSet::from(["public.orders".parse().unwrap()]);
            let looked = coverage::look(&client, "by_root", &orders, 1).await.unwrap();
            let seen = looked.tables.iter();
            let seen: Vec<_> = seen.map(|seen| (&*seen.name.name, seen.covered.lack)).collect();
            reader.batch_execute("COMMIT").await.unwrap();
            assert_eq!(
                BTreeMap::from_iter(seen),
                BTreeMap::from([("orders", None), ("higher", None)])
            );
        };
        let (detached, ()) = tokio::join!(detach, looks);
        detached.unwrap();
    }
}
