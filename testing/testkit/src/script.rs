//! A script for psql, where there is no psql.

/// The statements of a script, as psql parts them: a block between `$walhook$` is one.
#[must_use]
pub fn statements(script: &str) -> Vec<String> {
    let mut statements: Vec<String> = Vec::new();
    for part in script.split_inclusive(";\n") {
        match statements.last_mut() {
            Some(open) if open.matches("$walhook$").count() % 2 == 1 => open.push_str(part),
            Some(_) | None => statements.push(part.to_owned()),
        }
    }
    statements
}
