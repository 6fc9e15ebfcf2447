//! Rows for a terminal.

use super::terminal;
use crate::control::dead_letters::AttemptView;
use walhook_core::escape;

/// A value from outside: it neither ends the line nor moves the cursor of whoever reads it.
pub(super) fn one_line(text: &str) -> String {
    escape::one_line(text).into_owned()
}

/// Columns as wide as their widest cell; the last one ends where it ends, or where the terminal does. Each cell is
/// on one line.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    table_within(rows, terminal::width())
}

/// The same; of lines that are wider the end is left out, and said to be.
fn table_within<const N: usize>(rows: &[[String; N]], most: Option<usize>) -> String {
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
        cut(cells.join("  ").trim_end(), most)
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn cut(line: &str, most: Option<usize>) -> String {
    match most {
        Some(most) if line.chars().count() > most => {
            line.chars().take(most.saturating_sub(1)).chain(['…']).collect()
        }
        _ => line.to_owned(),
    }
}

/// A name and what it has, which goes on below itself where the terminal ends.
pub(super) fn named(name: &str, value: &str, indent: usize) -> String {
    named_within(name, value, indent, terminal::width())
}

fn named_within(name: &str, value: &str, indent: usize, most: Option<usize>) -> String {
    let value = one_line(value);
    // What is narrower still is no terminal for people.
    let room = most.map_or(usize::MAX, |most| most.saturating_sub(indent + 1).max(20));
    let mut lines: Vec<String> = vec![String::new()];
    for word in value.split(' ') {
        let Some(line) = lines.last_mut() else { break };
        let length = line.chars().count();
        if length > 0 && length + 1 + word.chars().count() > room {
            lines.push(word.to_owned());
        } else {
            let apart = if length > 0 { " " } else { "" };
            line.push_str(&format!("{apart}{word}"));
        }
    }
    format!("{name:<indent$} {}", lines.join(&format!("\n{:<indent$} ", "")))
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
    fn table_fits_the_terminal_and_shows_where_it_was_cut() {
        let rows = [["id", "why"], ["1", "because of this"]].map(|row| row.map(str::to_owned));
        assert_eq!(table_within(&rows, None), "id  why\n1   because of this");
        assert_eq!(table_within(&rows, Some(11)), "id  why\n1   becaus…");
    }

    #[test]
    fn named_value_goes_on_below_itself_where_the_terminal_ends() {
        let value = "one two three four five six seven";
        assert_eq!(named_within("name", value, 6, None), format!("name   {value}"));
        let wrapped = named_within("name", value, 6, Some(27));
        assert_eq!(wrapped, "name   one two three four\n       five six seven");
        let word = "x".repeat(50);
        assert_eq!(named_within("n", &word, 3, Some(10)), format!("n   {word}"));
    }

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
