//! Names in SQL text: the one place that quotes them.

use std::fmt;
use std::str::FromStr;

/// Quotes an identifier: always, so that its letter case and reserved words do not matter.
#[must_use]
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a string constant, whatever `standard_conforming_strings` says.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// Quotes a table's name as the configuration has it: `schema.name`.
///
/// The configuration was checked when it was loaded; what is no `schema.name` is quoted as one name,
/// so that the server refuses it by that name.
#[must_use]
pub fn quote_table(text: &str) -> String {
    text.parse::<TableName>().map_or_else(|_| quote_ident(text), |table| table.quoted())
}

/// A table or view: its schema and its name, as the catalog has them.
///
/// Shape: `schema.name` as SQL reads it: folded to lower case unless in double quotes
/// (`public."Odd.name"`). Unlike in SQL, a name without a schema is in `public`, whatever the
/// session's `search_path`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table or view.
    pub name: String,
}

impl TableName {
    /// The name as SQL wants it.
    #[must_use]
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_ident(&self.schema), quote_ident(&self.name))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |part: &str| match bare(part) {
            Some((folded, "")) if folded == part => folded,
            Some(_) | None => quote_ident(part),
        };
        write!(f, "{}.{}", part(&self.schema), part(&self.name))
    }
}

/// The text is not the name of a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the name of a table; write schema.name, with double quotes around a part that \
     holds capitals or other characters"
)]
pub struct ParseTableNameError(String);

impl FromStr for TableName {
    type Err = ParseTableNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = || {
            let (first, rest) = part(text)?;
            if rest.is_empty() {
                return Some(Self { schema: "public".to_owned(), name: first });
            }
            let (name, rest) = part(rest.strip_prefix('.')?)?;
            rest.is_empty().then_some(Self { schema: first, name })
        };
        parts().ok_or_else(|| ParseTableNameError(text.to_owned()))
    }
}

/// Reads one part of a name, and returns what follows it.
fn part(text: &str) -> Option<(String, &str)> {
    let Some(mut rest) = text.strip_prefix('"') else { return bare(text) };
    let mut part = String::new();
    loop {
        let (before, after) = rest.split_once('"')?;
        part.push_str(before);
        let Some(doubled) = after.strip_prefix('"') else {
            return (!part.is_empty()).then_some((part, after));
        };
        part.push('"');
        rest = doubled;
    }
}

/// Reads one part without quotes.
fn bare(text: &str) -> Option<(String, &str)> {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_' || !c.is_ascii();
    let end = text.find(|c: char| !(letter(c) || c.is_ascii_digit() || c == '$'));
    let (part, rest) = text.split_at(end.unwrap_or(text.len()));
    part.starts_with(letter).then(|| (part.to_ascii_lowercase(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn table_name_round_trips_through_its_text(schema in "[a-zA-Z0-9.\"]{1,5}", name in "[^\0]{1,5}") {
            let table = TableName { schema, name };
            prop_assert_eq!(table.to_string().parse(), Ok(table.clone()));
            prop_assert_eq!(table.quoted().parse(), Ok(table));
        }
    }

    #[test]
    fn table_name_is_read_as_sql_reads_it_but_for_the_search_path() {
        let name = |schema: &str, name: &str| {
            Ok(TableName { schema: schema.to_owned(), name: name.to_owned() })
        };
        assert_eq!("webhooks".parse(), name("public", "webhooks"));
        assert_eq!("App.Webhooks".parse(), name("app", "webhooks"));
        assert_eq!("app.\"Web.hooks\"".parse(), name("app", "Web.hooks"));
        for text in ["", ".", "a.", ".b", "a.b.c", "a b", "\"a", "\"\"", "1a", "a\"b\"", "a;b"] {
            assert!(text.parse::<TableName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn literal_is_quoted_with_quotes_and_backslashes() {
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\b'"), "E'a\\\\b'''");
    }
}
