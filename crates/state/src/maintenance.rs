//! Keeping the tables small: what they take, vacuum, and what is kept no longer.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::persist::dead_letters::remove;
use super::{Param, Scope, StateError, StateStore};
use walhook_core::room::StateSize;
use walhook_core::tick::micros;
use walhook_postgres::op::{EQ, GT, LT, MINUS, NE, PLUS, TIMES, interval};

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

/// What pages hold, as it is stored; but positions and times before they are compressed.
const PAGE: &str = "pg_catalog.pg_column_size(data)
    OPERATOR(pg_catalog.+) pg_catalog.pg_column_size(event_ids)
    OPERATOR(pg_catalog.+) pg_catalog.pg_column_size(event_types)
    OPERATOR(pg_catalog.+) 36 OPERATOR(pg_catalog.*) deliveries";

/// Of the tables the one that has a share of its own.
const UNROUTED: &str = "unrouted";

/// The tables of which rows are removed with time, and the column that says since when a row is old.
const OLD: [(&str, &str); 4] = [
    ("dead_letters", "died_at"),
    ("jobs", "finished_at"),
    ("gaps", "closed_at"),
    ("endpoint_errors", "last_at"),
];

/// The tables that grow with what is deferred or dead, and what a row takes in them beside the columns
/// that [`StateStore::sizes`] measures: the others, the row's header, its entries in the indexes.
const TABLES: [(&str, &str, i64); 5] = [
    ("bodies", "pg_catalog.pg_column_size(row)", 260),
    ("deferred", HISTORY_AND_DETAIL, 340),
    ("pages", PAGE, 800),
    ("dead_letters", HISTORY_AND_DETAIL, 300),
    (UNROUTED, "pg_catalog.pg_column_size(row)", 320),
];

/// What the rows of the `n`th of the tables named in `$2` take: their number times the mean of those on
/// some pages, in bytes.
fn used_sql(s: &str, n: usize, (table, measured, beside): (&str, &str, i64)) -> String {
    let oid = format!("pg_catalog.to_regclass(($2)[{n}])");
    let percent = format!(
        "least({} OPERATOR(pg_catalog./) greatest(
             pg_catalog.pg_relation_size({oid})::double precision, 1.0::double precision),
             100.0::double precision)",
        100.0 * SAMPLED_PAGES * PAGE_BYTES
    );
    format!(
        "(SELECT pg_catalog.pg_stat_get_live_tuples({oid}) {TIMES}
              (coalesce(pg_catalog.avg({measured}), 0)::bigint {PLUS} {beside}::bigint)
          FROM {s}.{table} TABLESAMPLE pg_catalog.system ({percent}))"
    )
}

impl StateStore {
    /// What the tables of the schema take, those of other pipelines in it included; but not the delivery log.
    ///
    /// Asks for statistics, and for the size of the rows on some pages: by one statement, for it is asked
    /// every second.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn sizes(&self) -> Result<StateSize, StateError> {
        let s = &self.scope.s;
        let names: Vec<String> = TABLES.iter().map(|(table, ..)| format!("{s}.{table}")).collect();
        // It has a bound of its own.
        let log = format!("{s}.delivery_log");
        let used: Vec<String> =
            TABLES.iter().zip(1..).map(|(table, n)| used_sql(s, n, *table)).collect();
        let sql = format!(
            "SELECT (SELECT coalesce(pg_catalog.sum(pg_catalog.pg_total_relation_size(c.oid)), 0)::bigint
                     FROM pg_catalog.pg_class c
                     WHERE c.relnamespace {EQ} pg_catalog.to_regnamespace($1)
                       AND c.relkind {EQ} 'r'
                       AND c.oid {NE} pg_catalog.to_regclass($3)), {}",
            used.join(", ")
        );
        let params: [Param<'_>; 3] =
            [(s, Type::TEXT), (&names, Type::TEXT_ARRAY), (&log, Type::TEXT)];
        let row = self.connection.query_typed_one(&sql, &params).await?;
        let bytes = |column: usize| -> Result<u64, StateError> {
            Ok(u64::try_from(row.try_get::<_, i64>(column)?).unwrap_or_default())
        };
        let (total_bytes, mut used, mut unrouted_bytes) = (bytes(0)?, 0, 0);
        for (column, (table, ..)) in TABLES.iter().enumerate() {
            let of_table = bytes(column + 1)?;
            used += of_table;
            if *table == UNROUTED {
                unrouted_bytes = of_table;
            }
        }
        Ok(StateSize { total_bytes, used_bytes: used.min(total_bytes), unrouted_bytes })
    }

    /// The tables of which a good part is dead rows: what [`StateStore::vacuum`] is worth for. What a row
    /// keeps outside its table, in pieces, counts by these. Tables that belong to another role are left to
    /// autovacuum.
    ///
    /// Autovacuum would come too, but minutes later, and rows come and go by the thousand a second.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn worth_a_vacuum(&self, is_near_bound: bool) -> Result<Vec<String>, StateError> {
        let rows = |kind: &str| {
            let count = format!("pg_catalog.pg_stat_get_{kind}_tuples");
            format!("({count}(c.oid) {PLUS} coalesce({count}(c.reltoastrelid), 0::bigint))")
        };
        let worth = format!(
            "SELECT pg_catalog.quote_ident(c.relname) FROM pg_catalog.pg_class c
             WHERE c.relnamespace {EQ} pg_catalog.to_regnamespace($1)
               AND c.relkind {EQ} 'r'
               AND pg_catalog.pg_has_role(c.relowner, 'USAGE')
               AND {} {GT} greatest($2, {} OPERATOR(pg_catalog./) $3)",
            rows("dead"),
            rows("live")
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
        // Most of the time there is nothing, and to learn that writes nothing.
        let any = OLD.map(|(table, since)| {
            format!(
                "(SELECT true FROM {s}.{table} WHERE pipeline {EQ} $1 AND {since} {LT} {old}
                  ORDER BY {since} LIMIT 1) IS NOT NULL"
            )
        });
        let any = format!("SELECT {}", any.join(" OR "));
        if !self.connection.query_typed_one(&any, &params[..2]).await?.try_get::<_, bool>(0)? {
            return Ok(0);
        }
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
