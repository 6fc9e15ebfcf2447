//! The tables that a publication publishes, read without a lock on any.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use crate::op::{EQ, GE, GT, NE, PLUS};
use crate::source::server_version;
use walhook_core::catalog::TableName;

/// Publications of schemas came with version 15.
const SCHEMAS: i32 = 150_000;

/// The first OID of a table that is no part of the system.
const FIRST_NORMAL_OBJECT: u32 = 16_384;

/// A query for the `oid` of each table that the publication publishes of which `publication` is an alias of a row of
/// `pg_publication`: those that `pg_publication_tables` shows on a server of this `version`.
///
/// Not that view: since version 16 it opens each published table, so that one that somebody holds `ACCESS EXCLUSIVE`
/// keeps whoever asks waiting for as long as that takes.
pub(crate) fn published_by(publication: &str, version: i32) -> String {
    let of_schema = format!(
        "OR EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s
                    WHERE s.pnpubid {EQ} {publication}.oid AND s.pnnspid {EQ} c.relnamespace)"
    );
    let of_schema = if version >= SCHEMAS { &*of_schema } else { "" };
    format!(
        "WITH RECURSIVE given (oid) AS (
             SELECT r.prrelid FROM pg_catalog.pg_publication_rel r WHERE r.prpubid {EQ} {publication}.oid
             UNION
             SELECT c.oid FROM pg_catalog.pg_class c
             WHERE ({publication}.puballtables AND NOT (c.relispartition AND {publication}.pubviaroot) {of_schema})
               AND c.relkind {EQ} ANY ('{{r,p}}'::pg_catalog.\"char\"[])
               AND c.relpersistence {EQ} 'p' AND c.oid {GE} {FIRST_NORMAL_OBJECT}::pg_catalog.oid
         ), tree (oid, is_below) AS (
             SELECT given.oid, false FROM given
             UNION
             SELECT i.inhrelid, true FROM tree
             JOIN pg_catalog.pg_inherits i ON i.inhparent {EQ} tree.oid AND NOT i.inhdetachpending
             JOIN pg_catalog.pg_class c ON c.oid {EQ} i.inhrelid AND c.relispartition)
         SELECT DISTINCT tree.oid FROM tree JOIN pg_catalog.pg_class c ON c.oid {EQ} tree.oid
         WHERE CASE WHEN {publication}.pubviaroot
                    THEN NOT tree.is_below
                        AND NOT EXISTS (SELECT FROM tree b WHERE b.oid {EQ} tree.oid AND b.is_below)
                    ELSE c.relkind {NE} 'p' END"
    )
}

/// The table as whose the publication publishes the changes of the partition `table`, where not as its own: the topmost
/// of those above it that it was given.
///
/// `more` and `via_root`: as though it had been given these too, and changes of partitions were published as their
/// root's; also where there is no such publication yet.
///
/// # Errors
/// When the server does not answer.
pub async fn published_as(
    client: &Client,
    publication: &str,
    table: &TableName,
    more: &BTreeSet<TableName>,
    via_root: bool,
) -> Result<Option<TableName>, tokio_postgres::Error> {
    let of_schema = format!(
        "OR EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s
                    WHERE s.pnpubid {EQ} p.oid AND s.pnnspid {EQ} c.relnamespace)"
    );
    let of_schema = if server_version(client).await? >= SCHEMAS { &*of_schema } else { "" };
    let sql = format!(
        "WITH RECURSIVE up (oid, height) AS (
             SELECT c.oid, 0 FROM pg_catalog.pg_class c
             JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
             WHERE n.nspname {EQ} $1 AND c.relname {EQ} $2
             UNION ALL
             SELECT i.inhparent, up.height {PLUS} 1 FROM up
             JOIN pg_catalog.pg_class c ON c.oid {EQ} up.oid AND c.relispartition
             JOIN pg_catalog.pg_inherits i ON i.inhrelid {EQ} up.oid AND NOT i.inhdetachpending)
         SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text
         FROM up JOIN pg_catalog.pg_class c ON c.oid {EQ} up.oid
         JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
         LEFT JOIN pg_catalog.pg_publication p ON p.pubname {EQ} $3
         WHERE up.height {GT} 0 AND (p.pubviaroot OR $6::pg_catalog.bool)
           AND (p.puballtables
                OR EXISTS (SELECT FROM pg_catalog.pg_publication_rel r
                           WHERE r.prpubid {EQ} p.oid AND r.prrelid {EQ} c.oid) {of_schema}
                OR EXISTS (SELECT FROM ROWS FROM (pg_catalog.unnest($4::pg_catalog.text[]),
                                                  pg_catalog.unnest($5::pg_catalog.text[])) AS m (nspname, relname)
                           WHERE n.nspname {EQ} m.nspname AND c.relname {EQ} m.relname))
         ORDER BY up.height DESC LIMIT 1"
    );
    let schemas: Vec<&str> = more.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = more.iter().map(|table| table.name.as_str()).collect();
    let row = client
        .query_opt(&sql, &[&table.schema, &table.name, &publication, &schemas, &names, &via_root])
        .await?;
    row.map(|row| Ok(TableName { schema: row.try_get(0)?, name: row.try_get(1)? })).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::start;
    use crate::source::publication;

    const SCHEMA: &str = "
        CREATE SCHEMA apart;
        CREATE TABLE orders (id bigint PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE low PARTITION OF orders FOR VALUES FROM (0) TO (10);
        CREATE TABLE high PARTITION OF orders FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id);
        CREATE TABLE apart.higher PARTITION OF high FOR VALUES FROM (10) TO (20);
        CREATE TABLE apart.root (id bigint) PARTITION BY RANGE (id);
        CREATE TABLE leaf PARTITION OF apart.root DEFAULT;
        CREATE TABLE plain (id bigint);
        CREATE TABLE apart.heir () INHERITS (plain);
        CREATE UNLOGGED TABLE unlogged (id bigint);
        CREATE TEMPORARY TABLE temporary (id bigint);
        CREATE VIEW seen AS SELECT * FROM plain;
        CREATE MATERIALIZED VIEW kept AS SELECT * FROM plain;";

    /// Where a root and a partition of it are given with their names, servers before 16 show both of them also where
    /// changes are published as the root's; so that is not asked of them.
    #[tokio::test]
    async fn published_tables_are_those_of_the_server_s_own_view() {
        let (_cluster, client) = start().await;
        client.batch_execute(SCHEMA).await.unwrap();
        let version = server_version(&client).await.unwrap();
        let mut given = vec!["", "FOR ALL TABLES", "FOR TABLE orders", "FOR TABLE high, plain"];
        given.extend(["FOR TABLE ONLY plain, leaf", "FOR TABLE low, apart.root"]);
        if version >= SCHEMAS {
            given.extend(["FOR TABLES IN SCHEMA apart", "FOR TABLES IN SCHEMA public, apart"]);
            given.push("FOR TABLES IN SCHEMA public, TABLE apart.higher");
        }
        for via_root in [false, true] {
            for (n, given) in given.iter().chain(["FOR TABLE orders, high, low"].iter()).enumerate()
            {
                if n == given.len() && via_root && version < 160_000 {
                    continue;
                }
                let create = format!(
                    "CREATE PUBLICATION one {given} WITH (publish_via_partition_root = {via_root})"
                );
                client.batch_execute(&create).await.unwrap();
                let published = published_by("p", version);
                let sql = format!(
                    "SELECT coalesce(string_agg(oid::regclass::text, ' ' ORDER BY oid::regclass::text), '')
                     FROM (SELECT o.oid FROM pg_publication p CROSS JOIN LATERAL ({published}) o) o"
                );
                let theirs = "SELECT coalesce(string_agg(t.name, ' ' ORDER BY t.name), '')
                    FROM (SELECT format('%I.%I', schemaname, tablename)::regclass::text AS name
                          FROM pg_publication_tables) t";
                let [ours, theirs] = [
                    client.query_one(&sql, &[]).await.unwrap().get::<_, String>(0),
                    client.query_one(theirs, &[]).await.unwrap().get::<_, String>(0),
                ];
                assert_eq!(ours, theirs, "{create}");
                client.batch_execute("DROP PUBLICATION one").await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn partition_below_a_root_that_was_given_is_published_as_that_one_alone() {
        let (_cluster, client) = start().await;
        client.batch_execute(SCHEMA).await.unwrap();
        let none = BTreeSet::new();
        for (given, via_root, table, expected) in [
            ("FOR TABLE orders, low", true, "public.low", Some("public.orders")),
            ("FOR TABLE orders, low", false, "public.low", None),
            ("FOR TABLE high, orders", true, "apart.higher", Some("public.orders")),
            ("FOR TABLE high", true, "apart.higher", Some("public.high")),
            ("FOR ALL TABLES", true, "public.high", Some("public.orders")),
            ("FOR ALL TABLES", true, "public.orders", None),
            ("FOR ALL TABLES", false, "public.high", None),
            ("FOR TABLE low", true, "public.low", None),
            ("FOR TABLE plain", true, "apart.heir", None),
        ] {
            let case = format!("{given} {via_root} {table}");
            let create = format!(
                "CREATE PUBLICATION one {given} WITH (publish_via_partition_root = {via_root})"
            );
            client.batch_execute(&create).await.unwrap();
            let table: TableName = table.parse().unwrap();
            let root = published_as(&client, "one", &table, &none, false).await.unwrap();
            assert_eq!(root.map(|root| root.to_string()).as_deref(), expected, "{case}");
            let found = publication(&client, "one").await.unwrap().unwrap();
            let is_own = expected.is_none() || !via_root;
            assert_eq!(found.tables.contains(&table), is_own, "{case}");
            client.batch_execute("DROP PUBLICATION one").await.unwrap();
        }
        let (low, orders) = ("public.low".parse().unwrap(), "public.orders".parse().unwrap());
        let more = BTreeSet::from([orders]);
        let root = published_as(&client, "none", &low, &more, true).await.unwrap();
        assert_eq!(root.as_ref(), more.first());
        assert_eq!(published_as(&client, "none", &low, &more, false).await.unwrap(), None);
    }
}
