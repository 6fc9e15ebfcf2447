//! Names in SQL text: the one place that quotes them.

use std::fmt;
use std::str::FromStr;

/// Quotes an identifier: always, so that its letter case and reserved words do not matter.
#[must_use]
pub fn quote_identifier(name: &str) -> String {
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
    text.parse::<TableName>().map_or_else(|_| quote_identifier(text), |table| table.quoted())
}

/// A table or view: its schema and its name.
///
/// Shape: `schema.name`, letter case as in the catalog; a part that holds a dot or a quote itself
/// stands in double quotes, as in SQL (`public."odd.name"`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// The schema, as the catalog has it.
    pub schema: String,
    /// The table or view, as the catalog has it.
    pub name: String,
}

impl TableName {
    /// The name as SQL wants it.
    #[must_use]
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.name))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |part: &str| {
            if part.contains(['.', '"']) { quote_identifier(part) } else { part.to_owned() }
        };
        write!(f, "{}.{}", part(&self.schema), part(&self.name))
    }
}

/// The text is not `schema.name`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a table's name; write it with its schema, such as public.webhooks")]
pub struct ParseTableNameError(String);

impl FromStr for TableName {
    type Err = ParseTableNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = || {
            let (schema, rest) = part(text)?;
            let (name, rest) = part(rest.strip_prefix('.')?)?;
            rest.is_empty().then_some(Self { schema, name })
        };
        parts().ok_or_else(|| ParseTableNameError(text.to_owned()))
    }
}

/// Reads one part of a name, and returns what follows it.
fn part(text: &str) -> Option<(String, &str)> {
    let Some(mut rest) = text.strip_prefix('"') else {
        let (part, rest) = text.split_at(text.find(['.', '"']).unwrap_or(text.len()));
        return (!part.is_empty()).then(|| (part.to_owned(), rest));
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn table_name_round_trips_through_its_text(schema in "[a-z.\"]{1,5}", name in "[a-zA-Z.\" ]{1,5}") {
            let table = TableName { schema, name };
            prop_assert_eq!(table.to_string().parse(), Ok(table.clone()));
            prop_assert_eq!(table.quoted().parse(), Ok(table));
        }
    }

    #[test]
    fn table_name_needs_schema_and_name() {
        for text in ["", "webhooks", ".webhooks", "public.", "a.b.c", "\"a.b", "\"\".b", "a\"b.c"] {
            assert!(text.parse::<TableName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn literal_is_quoted_with_quotes_and_backslashes() {
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\b'"), "E'a\\\\b'''");
    }
}
