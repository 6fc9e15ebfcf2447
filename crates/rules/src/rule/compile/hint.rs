//! Columns in messages: what there is, and what may have been meant.

use std::fmt;

use walhook_core::catalog::Table;

/// So many columns at most are listed in a message.
const MAX_LISTED: usize = 20;

/// The first of them, with commas.
pub(in crate::rule) fn list(names: &[impl fmt::Display]) -> String {
    let shown: Vec<_> = names.iter().take(MAX_LISTED).map(ToString::to_string).collect();
    let more = if names.len() > MAX_LISTED { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// That the table has no such column, and which is most like it.
pub(super) fn unknown_column(column: &str, table: &Table) -> String {
    let names: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
    let nearest = names
        .iter()
        .map(|name| (distance(column, name), *name))
        .min()
        .filter(|(distance, name)| *distance <= name.len().min(column.len()) / 3 + 1);
    let hint = nearest.map_or_else(String::new, |(_, name)| format!(" (did you mean {name}?)"));
    format!("{table} has no column {column}{hint}; it has {}", list(&names))
}

/// Levenshtein's distance, in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut next = Vec::with_capacity(row.len());
        next.push(i + 1);
        for ((substituted, deleted), right) in row.iter().zip(row.iter().skip(1)).zip(&b) {
            let inserted = next.last().copied().unwrap_or(i) + 1;
            let changed = usize::from(left != *right);
            next.push((substituted + changed).min(deleted + 1).min(inserted));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
