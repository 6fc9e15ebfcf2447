//! Keeping the tables small: what they take, vacuum, and what is kept no longer.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::persist::dead_letters::remove;
use super::{Param, Scope, StateError, StateStore};
use walhook_core::room::StateSize;
use walhook_core::tick::micros;
use walhook_postgres::op::{EQ, GT, LT, MINUS, interval};

/// Dead letters, jobs or gaps removed in one transaction, during which the leader writes nothing.
const CHUNK: i64 = 1_000;

/// Pages of a table that are looked at to learn how large a row is.
const SAMPLED_PAGES: f64 = 64.0;

const PAGE_BYTES: f64 = 8192.0;

/// Dead rows, and their share of all, from which on a table is vacuumed; fewer rows near the bound.
const DEAD_ROWS_MIN: i64 = 10_000;
const DEAD_ROWS_MIN_NEAR: i64 = 500;
const DEAD_ROWS_SHARE: i64 = 5;

/// What rows of two of the tables hold that differs from row to row.
const HISTORY_AND_DETAIL: &str = "coalesce(pg_catalog.pg_column_size(history), 0)
    OPERATOR(pg_catalog.+) pg_catalog.length(detail)";

/// Of the tables the one that has a share of its own.
const UNROUTED: &str = "unrouted";

/// The tables that grow with what is deferred or dead, and what a row takes in them beside the columns
/// that [`StateStore::sizes`] measures: the others, the row's header, its entries in the indexes.
const TABLES: [(&str, &str, i64); 4] = [
    ("bodies", "pg_catalog.pg_column_size(row)", 260),
    ("deferred", HISTORY_AND_DETAIL, 340),
    ("dead_letters", HISTORY_AND_DETAIL, 300),
    (UNROUTED, "pg_catalog.pg_column_size(row)", 320),
];

impl StateStore {
    /// What the tables of the schema take, those of other pipelines in it included.
    ///
    /// Asks for statistics, and for the size of the rows on some pages.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn sizes(&self) -> Result<StateSize, StateError> {
        let total = format!(
            "SELECT coalesce(pg_catalog.sum(pg_catalog.pg_total_relation_size(c.oid)), 0)::bigint
                     FROM pg_catalog.pg_class c
                     WHERE c.relnamespace {EQ} pg_catalog.to_regnamespace($1)
                       AND c.relkind {EQ} 'r'"
        );
        let schema: [Param<'_>; 1] = [(&self.scope.s, Type::TEXT)];
        let total: i64 = self.connection.query_typed_one(&total, &schema).await?.try_get(0)?;
        let (mut used, mut unrouted_bytes) = (0, 0);
        for (table, measured, beside) in TABLES {
            let bytes = self.used(table, measured, beside).await?;
            used += bytes;
            if table == UNROUTED {
                unrouted_bytes = bytes;
            }
        }
        let total_bytes = u64::try_from(total).unwrap_or_default();
        let used_bytes = used.min(total_bytes);
        Ok(StateSize { total_bytes, used_bytes, unrouted_bytes })
    }

    async fn used(&self, table: &str, measured: &str, beside: i64) -> Result<u64, StateError> {
        let s = &self.scope.s;
        let sql = "SELECT pg_catalog.pg_stat_get_live_tuples(pg_catalog.to_regclass($1)),
                          pg_catalog.pg_relation_size(pg_catalog.to_regclass($1))::double precision";
        let name = format!("{s}.{table}");
        let row = self.connection.query_typed_one(sql, &[(&name, Type::TEXT)]).await?;
        let (rows, bytes): (i64, f64) = (row.try_get(0)?, row.try_get(1)?);
        let percent = (100.0 * SAMPLED_PAGES * PAGE_BYTES / bytes.max(1.0)).min(100.0);
        let sample = format!(
            "SELECT coalesce(pg_catalog.avg({measured}), 0)::bigint FROM {name}
             TABLESAMPLE pg_catalog.system ({percent})"
        );
        let of_row: i64 = self.connection.query_typed_one(&sample, &[]).await?.try_get(0)?;
        Ok(u64::try_from(rows.saturating_mul(of_row.saturating_add(beside))).unwrap_or_default())
    }

    /// The tables of which a good part is dead rows: what [`StateStore::vacuum`] is worth for. Tables
    /// that belong to another role are left to autovacuum.
    ///
    /// Autovacuum would come too, but minutes later, and rows come and go by the thousand a second.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn worth_a_vacuum(&self, is_near_bound: bool) -> Result<Vec<String>, StateError> {
        let worth = format!(
            "SELECT pg_catalog.quote_ident(c.relname) FROM pg_catalog.pg_class c
             WHERE c.relnamespace {EQ} pg_catalog.to_regnamespace($1)
               AND c.relkind {EQ} 'r'
               AND pg_catalog.pg_has_role(c.relowner, 'USAGE')
               AND pg_catalog.pg_stat_get_dead_tuples(c.oid) {GT} greatest(
                   $2, pg_catalog.pg_stat_get_live_tuples(c.oid) OPERATOR(pg_catalog./) $3)"
        );
        let params: [Param<'_>; 3] = [
            (&self.scope.s, Type::TEXT),
            (if is_near_bound { &DEAD_ROWS_MIN_NEAR } else { &DEAD_ROWS_MIN }, Type::INT8),
            (&DEAD_ROWS_SHARE, Type::INT8),
        ];
        let rows = self.connection.query_typed(&worth, &params).await?;
        Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
    }

    /// Vacuums a table that [`StateStore::worth_a_vacuum`] has named. Not inside a transaction; takes as
    /// long as the table is large, and blocks no writer.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn vacuum(&self, table: &str) -> Result<(), StateError> {
        let vacuum = format!("VACUUM (ANALYZE) {}.{table}", self.scope.s);
        Ok(self.connection.batch_execute(&vacuum).await?)
    }

    /// Counts the rows of the tables that grow, for [`StateStore::sizes`]: a crash of the server loses
    /// its statistics. Tables that belong to another role are left out.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn count_rows(&self) -> Result<(), StateError> {
        let tables: Vec<String> =
            TABLES.iter().map(|(table, ..)| format!("{}.{table}", self.scope.s)).collect();
        Ok(self.connection.batch_execute(&format!("ANALYZE {}", tables.join(", "))).await?)
    }

    /// Removes some of the dead letters, finished jobs and closed gaps that are older than
    /// `retention`, as the leader. Returns how many; 0 when there is none left.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn expire(&mut self, retention: Duration) -> Result<u64, StateError> {
        let epoch = self.led_epoch()?;
        let Scope { s, pipeline, .. } = &self.scope;
        let age_us = i64::try_from(micros(retention)).unwrap_or(i64::MAX);
        let params: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (&age_us, Type::INT8), (&CHUNK, Type::INT8)];
        let old = format!("(pg_catalog.now() {MINUS} {})", interval("$2"));
        let tx = self.connection.transaction().await?;
        super::fence_alone(&tx, &self.scope, epoch).await?;
        let letters = format!(
            "SELECT id FROM {s}.dead_letters WHERE pipeline {EQ} $1 AND died_at {LT} {old}
             ORDER BY died_at LIMIT $3"
        );
        let rows = tx.query_typed(&letters, &params).await?;
        let ids = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
        let mut removed =
            u64::try_from(remove(&tx, &self.scope, &ids, &vec![0; ids.len()]).await?).unwrap_or(0);
        for (table, since) in [("jobs", "finished_at"), ("gaps", "closed_at")] {
            let delete = format!(
                "DELETE FROM {s}.{table} WHERE id {EQ} ANY (ARRAY (
                     SELECT id FROM {s}.{table} WHERE pipeline {EQ} $1
                         AND {since} {LT} {old} LIMIT $3))"
            );
            removed += tx.execute_typed(&delete, &params).await?;
        }
        // Of endpoints that nothing is sent to any more, and of removed ones.
        let errors = format!(
            "DELETE FROM {s}.endpoint_errors WHERE ctid {EQ} ANY (ARRAY (
                 SELECT ctid FROM {s}.endpoint_errors WHERE pipeline {EQ} $1
                     AND last_at {LT} {old} LIMIT $3))"
        );
        removed += tx.execute_typed(&errors, &params).await?;
        if removed > 0 {
            let none = format!(
                "DELETE FROM {s}.dead_letter_counts
                 WHERE pipeline {EQ} $1 AND letters {EQ} 0::bigint"
            );
            tx.execute_typed(&none, &[(pipeline, Type::TEXT)]).await?;
        }
        tx.commit().await?;
        Ok(removed)
    }
}
