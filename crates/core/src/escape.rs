//! Text from outside, made fit for a terminal and a log: rows, answers, names and errors may hold
//! characters that end a line, move a cursor or turn the direction of writing.
//!
//! What is unfit is written as JSON writes it, `\u001b`, so that the same form is right in a line of the
//! log, in a table, in JSON and in TOML, and reads back as what it was where it stands in a string.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a character does something other than to be seen: controls (C0, DEL and C1, which hold the
/// terminal's commands), ends of lines, marks and isolates of direction, and what nobody sees.
#[must_use]
pub fn is_unfit(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{206F}'
            | '\u{2028}' | '\u{2029}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}'
            | '\u{E0000}'..='\u{E007F}')
}

/// The text on one line: a cell of a table, a line of the log.
#[must_use]
pub fn one_line(text: &str) -> Cow<'_, str> {
    escape(text, is_unfit)
}

/// The text with its lines and tabs as they are: the output of a command, in which each value that
/// comes from outside is on one line already.
#[must_use]
pub fn lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_unfit(c) && c != '\n' && c != '\t')
}

fn escape(text: &str, is_unfit: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_unfit) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !is_unfit(c) => out.push(c),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a string does not fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every character of the classes, by their names in Unicode, not by our list.
    fn is_forbidden(c: char) -> bool {
        let direction = "\u{61C}\u{200E}\u{200F}\u{202A}\u{202B}\u{202C}\u{202D}\u{202E}\u{2066}\u{2067}\u{2068}\u{2069}";
        u32::from(c) < 0x20
            || (0x7F..0xA0).contains(&u32::from(c))
            || direction.contains(c)
            || "\u{2028}\u{2029}\u{FEFF}".contains(c)
    }

    fn hostile() -> impl Strategy<Value = String> {
        let unfit = proptest::char::ranges(
            vec!['\0'..='\u{1F}', '\u{7F}'..='\u{9F}', '\u{2000}'..='\u{206F}'].into(),
        );
        let any = prop_oneof![unfit, any::<char>(), Just('\u{1b}'), Just('\n')];
        proptest::collection::vec(any, 0..40).prop_map(|chars| chars.into_iter().collect())
    }

    proptest! {
        #[test]
        fn escaped_text_has_no_character_that_acts_on_a_terminal(text in hostile()) {
            prop_assert!(!one_line(&text).contains(is_forbidden), "{text:?}");
            let lines = lines(&text);
            prop_assert!(!lines.contains(|c| is_forbidden(c) && c != '\n' && c != '\t'));
            prop_assert_eq!(lines.matches('\n').count(), text.matches('\n').count());
        }

        #[test]
        fn escaped_json_is_the_same_json(text in hostile()) {
            let json = serde_json::to_string_pretty(&serde_json::json!({ &text: [&text] })).unwrap();
            let escaped = lines(&json);
            prop_assert!(!escaped.contains(|c| is_forbidden(c) && c != '\n'));
            let read: serde_json::Value = serde_json::from_str(&escaped).unwrap();
            prop_assert_eq!(read, serde_json::json!({ &text: [&text] }));
        }
    }

    #[test]
    fn escape_leaves_ordinary_text_of_every_script_alone() {
        for text in ["", "plain", "grün, 日本語, עברית, 👩‍👧", "C:\\n is a path"] {
            assert!(matches!(one_line(text), Cow::Borrowed(same) if same == text));
        }
        assert_eq!(one_line("a\nb\u{1b}[2J\u{9b}\u{202e}"), "a\\nb\\u001b[2J\\u009b\\u202e");
        assert_eq!(lines("a\nb\r"), "a\nb\\r");
    }
}
