//! Rows for a terminal.

use crate::engine::event::rfc3339;
use crate::io::state::StoredAttempt;

/// What an endpoint answered must not move the cursor of whoever reads the list.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Columns as wide as their widest cell; the last one ends where it ends.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A time, or `-`.
pub(super) fn time(unix_us: Option<i64>) -> String {
    unix_us.map_or_else(|| "-".to_owned(), rfc3339)
}

/// The attempts of a delivery, a line each; `none` when nothing is known of any.
pub(super) fn attempts(history: &[StoredAttempt], indent: &str) -> String {
    let line = |attempt: &StoredAttempt| {
        let status = attempt.status.map_or_else(|| "-".to_owned(), |status| status.to_string());
        let StoredAttempt { at, latency_ms, error, .. } = attempt;
        format!("{at}  {status:<3}  {latency_ms:>6} ms  {}", one_line(error))
    };
    let lines: Vec<String> = history.iter().map(line).collect();
    if lines.is_empty() { "none".to_owned() } else { lines.join(&format!("\n{indent}")) }
}
