//! What came below a watched table, or left it, together with its rows: no change in the stream tells of those.

use std::collections::BTreeSet;

use super::{Coverage, Covered, Kind, Loss, Moment};

/// So many tables are named.
const NAMED_AT_MOST: usize = 8;

/// The `watched` tables, as SQL writes them, that partitions or children have joined with their rows, or left, between
/// the look `then`, which was at `from` or later, and `now`, which was before `to`.
#[must_use]
pub fn moved(
    then: &Coverage,
    now: &Coverage,
    watched: &BTreeSet<String>,
    from: Moment,
    to: Moment,
) -> Vec<Loss> {
    // In another cluster no id means the same.
    if then.cluster != now.cluster || to.lsn < from.lsn {
        return Vec::new();
    }
    let is_watched = |table: &Covered| table.kind == Kind::Named && watched.contains(&table.name);
    let stayed = now
        .tables
        .iter()
        .filter(|(oid, table)| is_watched(table) && then.tables.get(oid).is_some_and(&is_watched));
    let losses = stayed.filter_map(|(_, table)| {
        let name = &table.name;
        let came = not_in(now, then, name).filter(|table| !table.below_since_birth);
        let came = came.map(|table| format!("{} was attached", table.name));
        let left = not_in(then, now, name);
        let left = left.map(|table| format!("{} was detached or dropped", table.name));
        let mut moved: Vec<String> = came.chain(left).collect();
        if moved.is_empty() {
            return None;
        }
        if moved.len() > NAMED_AT_MOST {
            let more = moved.len() - NAMED_AT_MOST;
            moved.truncate(NAMED_AT_MOST);
            moved.push(format!("and so were {more} more"));
        }
        let reason = format!("of {name}, {}, with its rows", moved.join(", "));
        Some(Loss { find: None, ..Loss::new(table, from, to, reason) })
    });
    losses.collect()
}

/// The tables below the one of this `name` that the other look has not there.
fn not_in<'a>(
    look: &'a Coverage,
    other: &'a Coverage,
    name: &'a str,
) -> impl Iterator<Item = &'a Covered> {
    let is_below = move |table: &Covered| table.name != name && table.under.contains(name);
    let tables = look.tables.iter().filter(move |(oid, table)| {
        is_below(table) && !other.tables.get(oid).is_some_and(is_below)
    });
    tables.map(|(_, table)| table)
}
