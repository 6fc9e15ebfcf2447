//! What a person probably meant who wrote an expression that cannot be used: SQL, mostly.

use super::{SIDES, Side};

/// Characters that are shown on either side of a place.
const AROUND: usize = 24;

/// What others write, and what is written here.
const WORDS: [(&str, &str); 17] = [
    ("and", "&&"),
    ("or", "||"),
    ("not", "!"),
    ("is", "== null, or != null"),
    ("isnull", "== null"),
    ("notnull", "!= null"),
    ("like", "contains, startsWith, endsWith or matches: new.email.endsWith('@example.com')"),
    ("ilike", "matches: new.email.matches('(?i)@example[.]com$')"),
    ("similar", "matches: new.email.matches('@example[.]com$')"),
    ("between", ">= and <= with && between them"),
    ("xor", "!="),
    ("eq", "=="),
    ("ne", "!="),
    ("then", "a ? b : c"),
    ("if", "a ? b : c"),
    ("case", "a ? b : c"),
    ("distinct", "!="),
];

/// Functions by other names.
const FUNCTIONS: [(&str, &str); 12] = [
    ("length", "size"),
    ("len", "size"),
    ("char_length", "size"),
    ("starts_with", "startsWith"),
    ("startswith", "startsWith"),
    ("ends_with", "endsWith"),
    ("endswith", "endsWith"),
    ("includes", "contains"),
    ("strpos", "contains"),
    ("regexp_match", "matches"),
    ("match", "matches"),
    ("lower", "matches, with (?i) in its pattern"),
];

/// A guess, and where it looks, in characters from 0.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Guess {
    pub(super) at: usize,
    pub(super) meant: String,
}

/// What the text of an expression that is not CEL was probably meant to say.
pub(super) fn of_text(text: &str) -> Option<Guess> {
    let chars: Vec<char> = text.chars().collect();
    let char_at = |at: usize| chars.get(at).copied();
    let guess = |at, meant: &str| Some(Guess { at, meant: meant.to_owned() });
    let mut at = 0;
    while let Some(c) = char_at(at) {
        let next = char_at(at + 1);
        match c {
            '\'' | '"' => {
                at = end_of_string(&chars, at);
                continue;
            }
            '\u{2018}' | '\u{2019}' | '\u{201c}' | '\u{201d}' | '`' => {
                return guess(at, "plain quotes around a text: 'active'");
            }
            '<' if next == Some('>') => return guess(at, "!= for <>"),
            '=' if next == Some('=') && char_at(at + 2) == Some('=') => {
                return guess(at, "== for ===");
            }
            '!' if next == Some('=') && char_at(at + 2) == Some('=') => {
                return guess(at, "!= for !==");
            }
            '=' if next == Some('=') => at += 1,
            '!' | '<' | '>' if next == Some('=') => at += 1,
            '=' => return guess(at, "== for ="),
            '&' if next == Some('&') => at += 1,
            '|' if next == Some('|') => at += 1,
            '&' => return guess(at, "&& for &"),
            '|' => return guess(at, "|| for |"),
            c if c.is_alphabetic() || c == '_' => {
                let end = word_end(&chars, at);
                let word: String = chars.get(at..end).unwrap_or_default().iter().collect();
                let follows_dot = at.checked_sub(1).and_then(char_at) == Some('.');
                if let Some(meant) = of_word(&word).filter(|_| !follows_dot) {
                    return Some(Guess { at, meant: format!("{meant} for {word}") });
                }
                let list = chars.get(end..).unwrap_or_default().iter().find(|c| **c != ' ');
                if word.eq_ignore_ascii_case("in") && list == Some(&'(') {
                    return guess(at, "in with a list in brackets: in ['active', 'new']");
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// The place in the text as a person finds it: its number, and what stands around it with a caret before it.
pub(super) fn place(text: &str, at: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = at.min(chars.len());
    let from = at.saturating_sub(AROUND);
    let to = (at + AROUND).min(chars.len());
    let part = |from: usize, to: usize| -> String {
        let part = chars.get(from..to).unwrap_or_default().iter();
        part.map(|c| if c.is_control() { ' ' } else { *c }).collect()
    };
    let (before, after) = (part(from, at), part(at, to));
    let start = if from > 0 { "..." } else { "" };
    let end = if to < chars.len() { "..." } else { "" };
    format!("at character {}, where the ^ stands in: {start}{before}^{after}{end}", at + 1)
}

/// The place of a line and a column, both from 1, in characters from 0.
pub(super) fn offset(text: &str, line: usize, column: usize) -> usize {
    let before = text.split_inclusive('\n').take(line.saturating_sub(1));
    before.map(|line| line.chars().count()).sum::<usize>() + column.saturating_sub(1)
}

/// What a name was meant to be that stands for itself, and is neither a row nor `operation`.
pub(super) fn of_name(name: &str) -> String {
    let meant = match &*name.to_ascii_lowercase() {
        "null" | "none" | "nil" => "null".to_owned(),
        "true" => "true".to_owned(),
        "false" => "false".to_owned(),
        "tg_op" | "op" => "operation".to_owned(),
        row @ ("old" | "new") => row.to_owned(),
        _ => {
            let [old, new] = SIDES.map(Side::as_str);
            return format!(
                "for a column write {new}.{name} or {old}.{name}, for a text '{name}' in quotes"
            );
        }
    };
    format!("did you mean {meant}?")
}

/// What a function is called here.
pub(super) fn of_function(name: &str, known: &[&str]) -> Option<String> {
    let plain = |name: &str| name.replace('_', "").to_ascii_lowercase();
    let same = known.iter().find(|other| plain(other) == plain(name)).copied();
    let named = || FUNCTIONS.iter().find(|(other, _)| plain(other) == plain(name));
    let meant = same.or_else(|| named().map(|(_, meant)| *meant))?;
    Some(format!("did you mean {meant}?"))
}

fn of_word(word: &str) -> Option<&'static str> {
    WORDS.iter().find(|(other, _)| other.eq_ignore_ascii_case(word)).map(|(_, meant)| *meant)
}

fn word_end(chars: &[char], from: usize) -> usize {
    let rest = chars.get(from..).unwrap_or_default().iter();
    from + rest.take_while(|c| c.is_alphanumeric() || **c == '_').count()
}

/// Behind the closing quote, or the end where there is none.
fn end_of_string(chars: &[char], from: usize) -> usize {
    let quote = chars.get(from).copied();
    let mut at = from + 1;
    while let Some(c) = chars.get(at).copied() {
        match c {
            '\\' => at += 1,
            c if Some(c) == quote => return at + 1,
            _ => {}
        }
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guess_is_what_sql_and_other_languages_would_have_written() {
        for (text, at, meant) in [
            ("new.status = 'a'", 11, "== for ="),
            ("new.a == '=' && new.b = 1", 22, "== for ="),
            ("new.a <> 1", 6, "!= for <>"),
            ("new.a === 1", 6, "== for ==="),
            ("new.a !== 1", 6, "!= for !=="),
            ("new.a == 1 and new.b == 2", 11, "&& for and"),
            ("new.a == 1 OR new.b == 2", 11, "|| for OR"),
            ("new.a == 1 & new.b == 2", 11, "&& for &"),
            ("new.a is null", 6, "== null, or != null for is"),
            ("not new.a", 0, "! for not"),
            ("new.a in ('x', 'y')", 6, "in with a list in brackets: in ['active', 'new']"),
            ("new.a == \u{2018}x\u{2019}", 9, "plain quotes around a text: 'active'"),
        ] {
            let expected = Guess { at, meant: meant.to_owned() };
            assert_eq!(of_text(text), Some(expected), "{text}");
        }
        for text in ["new.a <= 1 && new.b >= 2 || new.c != 'and = or'", "new.and == 1", "size("] {
            assert_eq!(of_text(text), None, "{text}");
        }
    }

    #[test]
    fn place_shows_what_stands_around_it() {
        let text = "new.status = 'a'";
        assert_eq!(place(text, 11), "at character 12, where the ^ stands in: new.status ^= 'a'");
        let long = format!("{}= 1", "x".repeat(40));
        assert!(place(&long, 40).ends_with(&format!("in: ...{}^= 1", "x".repeat(24))));
        assert_eq!(offset("a\nbc", 2, 2), 3);
    }
}
