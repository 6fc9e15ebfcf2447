//! Names in SQL text: the one place that quotes them.

use walhook_core::catalog::TableName;

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
    text.parse::<TableName>().map_or_else(|_| quote_ident(text), |table| quote_name(&table))
}

/// The name as SQL wants it.
#[must_use]
pub fn quote_name(name: &TableName) -> String {
    format!("{}.{}", quote_ident(&name.schema), quote_ident(&name.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn quoted_name_reads_back_as_the_table(schema in "[a-zA-Z0-9.\"]{1,5}", name in "[^\0]{1,5}") {
            let table = TableName { schema, name };
            prop_assert_eq!(quote_name(&table).parse(), Ok(table));
        }
    }

    #[test]
    fn literal_is_quoted_with_quotes_and_backslashes() {
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\b'"), "E'a\\\\b'''");
    }
}
