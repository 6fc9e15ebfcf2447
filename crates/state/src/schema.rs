//! The state tables themselves: their names, their version, and what makes them.

use walhook_core::partition::Partition;
use walhook_postgres::ident::quote_ident;

/// The version of the state tables that this program reads and writes.
pub const SCHEMA_VERSION: i32 = 2;

/// From this version on a leader may write pages; of an earlier one that knows nothing of them.
pub(super) const WITH_PAGES: i32 = 2;

/// The table that was added last: where it is missing, an earlier version's `setup` made the schema.
pub(super) const NEWEST_TABLE: &str = "replay_discards";

/// The state tables, of a `{schema}` and with the `{partition}` of a pipeline that is not divided.
const STATE: &str = include_str!("../../../sql/state.sql");

/// The state tables' names.
#[must_use]
pub fn tables() -> Vec<&'static str> {
    names(&[
        "CREATE TABLE IF NOT EXISTS {schema}.",
        "CREATE UNLOGGED TABLE IF NOT EXISTS {schema}.",
    ])
}

/// The views that stand on the state tables.
#[must_use]
pub fn views() -> Vec<&'static str> {
    names(&["CREATE OR REPLACE VIEW {schema}."])
}

fn names(before: &[&str]) -> Vec<&'static str> {
    let name = |line: &'static str| {
        let rest = before.iter().find_map(|before| line.strip_prefix(before))?;
        rest.split_whitespace().next()
    };
    STATE.lines().filter_map(name).collect()
}

/// The statements that create the state tables in `schema`; idempotent.
#[must_use]
pub fn schema_sql(schema: &str) -> String {
    let sole = Partition::SOLE.to_string();
    STATE.replace("{partition}", &sole).replace("{schema}", &quote_ident(schema))
}
