//! Which relations of a schema are walhook's own?
//!
//! A name tells nothing where the schema is the application's too: it may have `jobs` and `endpoints` of its own. A table
//! is walhook's where it has every column that `setup` makes a table of that name with, and an index or a view where it
//! stands on such a table. So nothing has to be marked: it holds of what any version has made, and after dump and restore.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use super::schema::{columns, indexes, tables, views};
use walhook_postgres::op::EQ;

/// What stands in a schema under names that walhook needs there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relations {
    /// Those of [`tables`] that are walhook's, in that order.
    pub tables: Vec<&'static str>,
    /// Those of [`views`] that are.
    pub views: Vec<&'static str>,
    /// What is not, each with its kind, for people.
    pub foreign: Vec<String>,
}

/// A relation, as the catalog shows it.
#[derive(Debug)]
struct Seen {
    name: String,
    /// `relkind` of pg_class.
    kind: String,
    columns: Vec<String>,
    /// Of an index its table; of a view the relations of its schema that it reads.
    stands_on: Vec<String>,
}

impl Relations {
    /// Looks what is there.
    ///
    /// # Errors
    /// The server's.
    pub async fn find(client: &Client, schema: &str) -> Result<Self, tokio_postgres::Error> {
        let sql = format!(
            "SELECT c.relname::pg_catalog.text, c.relkind::pg_catalog.text,
                    ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attribute a
                          WHERE a.attrelid {EQ} c.oid AND NOT a.attisdropped),
                    ARRAY(SELECT t.relname::pg_catalog.text FROM pg_catalog.pg_class t
                          WHERE t.relnamespace {EQ} n.oid
                            AND (EXISTS (SELECT FROM pg_catalog.pg_index i
                                         WHERE i.indexrelid {EQ} c.oid AND i.indrelid {EQ} t.oid)
                                 OR EXISTS (SELECT FROM pg_catalog.pg_rewrite w
                                            JOIN pg_catalog.pg_depend d ON d.objid {EQ} w.oid
                                            WHERE w.ev_class {EQ} c.oid AND d.refobjid {EQ} t.oid
                                              AND d.classid {EQ} 'pg_catalog.pg_rewrite'::pg_catalog.regclass
                                              AND d.refclassid {EQ} 'pg_catalog.pg_class'::pg_catalog.regclass)))
             FROM pg_catalog.pg_class c
             JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
             WHERE n.nspname {EQ} $1 AND c.relname {EQ} ANY ($2)
             ORDER BY c.relname"
        );
        let names: Vec<&str> = [tables(), views(), indexes()].concat();
        let mut seen = Vec::new();
        for row in client.query(&sql, &[&schema, &names]).await? {
            seen.push(Seen {
                name: row.try_get(0)?,
                kind: row.try_get(1)?,
                columns: row.try_get(2)?,
                stands_on: row.try_get(3)?,
            });
        }
        Ok(Self::of(&seen))
    }

    /// Whether this table is there, and walhook's.
    #[must_use]
    pub fn has(&self, table: &str) -> bool {
        self.tables.contains(&table)
    }

    fn of(seen: &[Seen]) -> Self {
        let found = |name: &str| seen.iter().find(|seen| seen.name == name);
        let mut all = tables();
        all.retain(|name| found(name).is_some_and(|seen| seen.is_table_with(&columns(name))));
        let on_ours = |seen: &Seen| seen.stands_on.iter().any(|table| all.contains(&&**table));
        let is_ours = |name: &str, kind: &str| {
            found(name).is_some_and(|seen| seen.kind == kind && on_ours(seen))
        };
        let mut reading = views();
        reading.retain(|name| is_ours(name, "v"));
        let mut ours: BTreeSet<&str> = all.iter().chain(&reading).copied().collect();
        ours.extend(indexes().into_iter().filter(|name| is_ours(name, "i")));
        let foreign = seen.iter().filter(|seen| !ours.contains(&*seen.name));
        let foreign = foreign.map(|seen| format!("{} {}", seen.kind(), seen.name)).collect();
        Self { tables: all, views: reading, foreign }
    }
}

impl Seen {
    fn is_table_with(&self, columns: &[&str]) -> bool {
        self.kind == "r"
            && columns.iter().all(|column| self.columns.iter().any(|has| has == column))
    }

    /// The kind in words.
    fn kind(&self) -> &'static str {
        match &*self.kind {
            "v" => "view",
            "m" => "materialized view",
            "i" | "I" => "index",
            "S" => "sequence",
            "c" => "type",
            "f" => "foreign table",
            _ => "table",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, SCHEMA};
    use crate::schema_sql;
    use walhook_postgres::ident::quote_ident;

    #[tokio::test]
    async fn relations_are_ours_by_what_they_hold_and_not_by_their_name() {
        let fixture = Fixture::start().await;
        let client = &fixture.admin;
        let found = Relations::find(client, SCHEMA).await.unwrap();
        let all = Relations { tables: tables(), views: views(), foreign: vec![] };
        assert_eq!(found, all);
        assert_eq!(Relations::find(client, "nowhere").await.unwrap(), Relations::default());

        // What later versions added to tables and views, and tables that an earlier one lacks.
        let s = quote_ident(SCHEMA);
        let older = format!(
            "DROP VIEW {s}.endpoints; DROP TABLE {s}.replay_discards;
             ALTER TABLE {s}.jobs DROP COLUMN late_done; DROP INDEX {s}.notices_due"
        );
        client.batch_execute(&older).await.unwrap();
        let found = Relations::find(client, SCHEMA).await.unwrap();
        assert_eq!(found.tables.len(), tables().len() - 1);
        assert_eq!((found.views, found.foreign), (vec!["deliveries_pending"], vec![]));
        client.batch_execute(&schema_sql(SCHEMA)).await.unwrap();
        assert_eq!(Relations::find(client, SCHEMA).await.unwrap(), all);
    }

    #[tokio::test]
    async fn relations_of_the_application_are_foreign_whatever_they_are() {
        let fixture = Fixture::start().await;
        let make = "CREATE SCHEMA app; SET search_path = app;
            CREATE TABLE jobs (id bigint PRIMARY KEY, pipeline text, payload jsonb);
            CREATE VIEW endpoints AS SELECT id, pipeline, 'x' AS endpoint FROM jobs;
            CREATE MATERIALIZED VIEW lease AS SELECT * FROM jobs;
            CREATE TABLE meta (LIKE jobs) PARTITION BY RANGE (id);
            CREATE SEQUENCE slots; CREATE TYPE gaps AS (id bigint);
            CREATE INDEX notices_due ON jobs (pipeline);
            CREATE INDEX gaps_growing ON jobs (payload); CREATE TABLE other ()";
        fixture.admin.batch_execute(make).await.unwrap();
        let found = Relations::find(&fixture.admin, "app").await.unwrap();
        assert!(found.tables.is_empty() && found.views.is_empty(), "{found:?}");
        let foreign = "view endpoints, type gaps, index gaps_growing, table jobs, materialized view lease, \
                       table meta, index notices_due, sequence slots";
        assert_eq!(found.foreign.join(", "), foreign);
    }
}
