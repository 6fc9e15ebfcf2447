//! Rows named by a whole key: one way to find them, whatever the planner thinks of the table.
//!
//! These tables go from nothing to millions of rows and back within minutes, and the planner's statistics
//! are of another hour. By those of an empty table every index that has one of a statement's columns
//! anywhere costs the same, and a tie is decided by chance: with some 10,000 rows the prefix of the wrong
//! one was read for each of 3,712 rows, and everything stood still for 15 s. So a statement must leave the
//! planner one plan that is possible:
//!
//! - a row is found by a scalar subquery, which nothing can turn into a join;
//! - its key is given as a range of rows, [`range`], and asked for in the key's order. No other index has
//!   that order, and sessions sort nothing that need not be ([`PLANS`](super::store::PLANS)). With `=`
//!   the order would follow from the condition, and any index would do;
//! - where a table has one index and all of its key is given, `=` is as good;
//! - never `column = ANY (array)` behind another column of an index: the planner may leave it to a filter;
//! - a row is changed or removed by its `ctid` alone. That is safe because nobody else updates these rows.
//!
//! `tests/plans.rs` holds each statement to it.

use walhook_postgres::op::{EQ, GE, LE};

/// [`row`] of `deferred` or `dead_letters`, for the delivery that `r` names by `event`, `endpoint` and
/// `replay`.
pub(super) fn delivery(s: &str, table: &str, what: &str) -> String {
    row(s, table, what, "event_id, endpoint, replay_id", "r.event, r.endpoint, r.replay")
}

/// The condition that `columns` have `values`: one of each, or as many with commas between.
pub(super) fn range(columns: &str, values: &str) -> String {
    format!("({columns}) {GE} ({values}) AND ({columns}) {LE} ({values})")
}

/// What a subquery selects that asks for `what` of the row of `table` in which `columns` have `values`;
/// null where there is none. `$1` is the pipeline, and the columns are those of a unique key behind it, or
/// of one without it, in their order. Values name columns of another table by its alias.
pub(super) fn row(s: &str, table: &str, what: &str, columns: &str, values: &str) -> String {
    format!(
        "(SELECT {what} FROM {s}.{table} WHERE pipeline {EQ} $1 AND {} ORDER BY {columns} LIMIT 1)",
        range(columns, values)
    )
}
