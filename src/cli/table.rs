//! Rows for a terminal.

use crate::control::dead_letters::AttemptView;
use walhook_core::escape;

/// A value from outside: it neither ends the line nor moves the cursor of whoever reads it.
pub(super) fn one_line(text: &str) -> String {
    escape::one_line(text).into_owned()
}

/// Columns as wide as their widest cell; the last one ends where it ends. Each cell is on one line.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> =
        rows.iter().map(|row| row.each_ref().map(|c| one_line(c))).collect();
    let mut widths = [0; N];
    for row in &rows {
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

/// The attempts of a delivery, a line each; `none` when nothing is known of any.
pub(super) fn attempts(history: &[AttemptView], indent: &str) -> String {
    let line = |attempt: &AttemptView| {
        let status = attempt.status.map_or_else(|| "-".to_owned(), |status| status.to_string());
        let AttemptView { at, latency_ms, error, .. } = attempt;
        format!("{at}  {status:<3}  {latency_ms:>6} ms  {}", one_line(error))
    };
    let lines: Vec<String> = history.iter().map(line).collect();
    if lines.is_empty() { "none".to_owned() } else { lines.join(&format!("\n{indent}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_text_from_outside_has_a_line_a_row() {
        let hostile = "a\u{1b}[2J\nb\r\u{9b}\u{202e}\t".to_owned();
        let row = [hostile.clone(), "x".to_owned(), hostile];
        let text = table(&[row.clone(), row]);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(!text.contains(|c| escape::is_unfit(c) && c != '\n'), "{text:?}");
        assert!(text.starts_with("a\\u001b[2J\\nb\\r\\u009b\\u202e\\t  x  "), "{text}");
    }
}
