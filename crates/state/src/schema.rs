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

/// What a line begins with that makes a table.
const TABLE: [&str; 2] =
    ["CREATE TABLE IF NOT EXISTS {schema}.", "CREATE UNLOGGED TABLE IF NOT EXISTS {schema}."];

/// The state tables' names.
#[must_use]
pub fn tables() -> Vec<&'static str> {
    names(&TABLE)
}

/// The views that stand on the state tables.
#[must_use]
pub fn views() -> Vec<&'static str> {
    names(&["CREATE OR REPLACE VIEW {schema}."])
}

/// The indexes that are made by their names, and those that are dropped by them.
pub(super) fn indexes() -> Vec<&'static str> {
    names(&[
        "CREATE INDEX IF NOT EXISTS ",
        "CREATE UNIQUE INDEX IF NOT EXISTS ",
        "DROP INDEX IF EXISTS {schema}.",
    ])
}

/// The columns that the table is made with, without those that are added to one that is there.
pub(super) fn columns(table: &str) -> Vec<&'static str> {
    let makes = |line: &&str| {
        let rest = TABLE.iter().find_map(|before| line.strip_prefix(before));
        rest.and_then(|rest| rest.split_whitespace().next()) == Some(table)
    };
    let body = STATE.lines().skip_while(|line| !makes(line)).skip(1);
    let body = body.take_while(|line| !line.starts_with(')'));
    let names = body.filter_map(|line| line.strip_prefix("    ")?.split_whitespace().next());
    names.filter(|name| name.starts_with(|first: char| first.is_ascii_lowercase())).collect()
}

fn names(before: &[&str]) -> Vec<&'static str> {
    let name = |line: &'static str| {
        let rest = before.iter().find_map(|before| line.strip_prefix(before))?;
        rest.split([' ', ';']).next()
    };
    STATE.lines().filter_map(name).collect()
}

/// The statements that create the state tables in `schema`; idempotent.
#[must_use]
pub fn schema_sql(schema: &str) -> String {
    let sole = Partition::SOLE.to_string();
    STATE.replace("{partition}", &sole).replace("{schema}", &quote_ident(schema))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_columns_are_those_of_the_statements() {
        assert!(tables().contains(&"workers") && views() == ["endpoints", "deliveries_pending"]);
        let indexes = indexes();
        assert!(indexes.contains(&"notices_due") && indexes.contains(&"gaps_of_unrouted"));
        assert!(indexes.contains(&"gaps_growing"), "dropped by its name: {indexes:?}");
        assert_eq!(columns("lease"), ["pipeline", "partition", "epoch", "holder", "taken_at"]);
        let settled = ["pipeline", "partition", "seq", "last_commit_lsn", "ranges"];
        assert_eq!(columns("settled"), settled);
        for table in tables() {
            let columns = columns(table);
            assert!(columns.len() >= 2 && columns.contains(&"pipeline"), "{table}: {columns:?}");
        }
    }
}
