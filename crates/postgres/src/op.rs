//! Operators of `pg_catalog` for our statements, and times in between.
//!
//! A name without a schema means what the session's `search_path` finds first, and for an operator, a
//! function, a type or a collation that may be somebody else's: any role that may CREATE in a schema
//! of the path could have its own code run as ours. Each session pins its path, and beside that each
//! statement names the schema of everything that it uses, so that it is safe under any path
//! (`tests/search_path.rs` runs each of them under a hostile one):
//!
//! - `a {EQ} b` in a formatted statement, `a OPERATOR(pg_catalog.=) b` in one that is not;
//! - `pg_catalog.now()`, `::pg_catalog.text`, `COLLATE pg_catalog."C"`, `pg_catalog.pg_class`. Types that
//!   the grammar knows need no schema (`bigint`, `integer`, `boolean`, `interval`, ...), nor does
//!   `coalesce`, `greatest`, `extract` or an `unnest` of several arrays, which are the grammar's too;
//! - nothing that hides an operator: `IN (...)`, `BETWEEN`, `LIKE`, `IS DISTINCT FROM`, `nullif`,
//!   `CASE x WHEN`, `USING (...)`. `IS NULL`, `GROUP BY` and `ORDER BY` hide none.
//!
//! All of them bind equally, from left to right, and stronger than `AND`, `OR`, `NOT` and `IS`: where two
//! stand side by side, parentheses say which goes first.

/// `=`
pub const EQ: &str = "OPERATOR(pg_catalog.=)";
/// `<>`
pub const NE: &str = "OPERATOR(pg_catalog.<>)";
/// `<`
pub const LT: &str = "OPERATOR(pg_catalog.<)";
/// `<=`
pub const LE: &str = "OPERATOR(pg_catalog.<=)";
/// `>`
pub const GT: &str = "OPERATOR(pg_catalog.>)";
/// `>=`
pub const GE: &str = "OPERATOR(pg_catalog.>=)";
/// `+`
pub const PLUS: &str = "OPERATOR(pg_catalog.+)";
/// `-`
pub const MINUS: &str = "OPERATOR(pg_catalog.-)";
/// `*`
pub const TIMES: &str = "OPERATOR(pg_catalog.*)";
/// `||`
pub const CAT: &str = "OPERATOR(pg_catalog.||)";

/// SQL for a timestamp as microseconds since 1970.
#[must_use]
pub fn to_us(timestamp: &str) -> String {
    format!("(extract(epoch FROM {timestamp}) {TIMES} 1000000)::bigint")
}

/// SQL for the timestamp that so many microseconds since 1970 are.
#[must_use]
pub fn from_us(us: &str) -> String {
    let since = interval(us);
    format!("('epoch'::pg_catalog.timestamptz {PLUS} {since})")
}

/// SQL for the interval that so many microseconds are.
#[must_use]
pub fn interval(us: &str) -> String {
    format!("({us} {TIMES} interval '1 microsecond')")
}
