//! Reads the statements in the source.

use std::path::{Path, PathBuf};

/// What marks a piece of text as SQL: words that no message of ours has in capitals, or a parameter.
const SQL: [&str; 9] = [
    "SELECT ",
    "SELECT\n",
    "INSERT INTO ",
    "UPDATE {",
    "DELETE FROM ",
    "RETURNING ",
    "extract(epoch",
    " IS NULL OR ",
    "{EQ}",
];

/// Words in front of a parenthesis that are the grammar's, so that no path decides what they mean.
const GRAMMAR: [&str; 44] = [
    "coalesce",
    "greatest",
    "least",
    "extract",
    "exists",
    "array",
    "any",
    "all",
    "values",
    "in",
    "row",
    "cast",
    "as",
    "filter",
    "over",
    "on",
    "where",
    "and",
    "or",
    "not",
    "select",
    "from",
    "limit",
    "returning",
    "with",
    "then",
    "when",
    "else",
    "by",
    "bit",
    "conflict",
    "lateral",
    "key",
    "for",
    "into",
    "operator",
    "explain",
    "numeric",
    "table",
    "columns",
    "vacuum",
    "set",
    "order",
    "unnest",
];

/// Types that the grammar knows.
const TYPES: [&str; 11] = [
    "bigint",
    "integer",
    "int",
    "smallint",
    "boolean",
    "double",
    "numeric",
    "bit",
    "timestamp",
    "interval",
    "pg_catalog",
];

/// Words that look an operator up by its bare name.
const HIDING: [&str; 7] =
    [" IN (", " BETWEEN ", " LIKE ", " ILIKE ", " DISTINCT FROM ", "nullif(", " USING ("];

/// The literals of a file that are SQL, each with its line.
fn statements(code: &str) -> Vec<(usize, String)> {
    let (mut found, mut line, mut chars) = (Vec::new(), 1, code.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '\n' => line += 1,
            '/' if chars.peek() == Some(&'/') => while chars.next_if(|&c| c != '\n').is_some() {},
            // A character, not a lifetime.
            '\'' => {
                let rest: String = chars.clone().take(3).collect();
                let length = if rest.starts_with('\\') { 3 } else { 2 };
                if rest.chars().nth(length - 1) == Some('\'') {
                    chars.nth(length - 1);
                }
            }
            '"' => {
                let (begin, mut literal) = (line, String::new());
                while let Some(c) = chars.next() {
                    match c {
                        '"' => break,
                        '\\' => match chars.next() {
                            Some('\n') => {
                                line += 1;
                                while chars.next_if(|c| *c == ' ').is_some() {}
                            }
                            Some(other) => literal.push(other),
                            None => break,
                        },
                        '\n' => {
                            line += 1;
                            literal.push('\n');
                        }
                        other => literal.push(other),
                    }
                }
                if SQL.iter().any(|word| literal.contains(word)) {
                    found.push((begin, literal));
                }
            }
            _ => {}
        }
    }
    found
}

/// Without what stands in quotation marks.
fn unquoted(sql: &str) -> String {
    let parts = sql.split('\'').enumerate();
    parts.map(|(at, part)| if at % 2 == 0 { part } else { "''" }).collect()
}

/// What a statement leaves to the path; nothing, if it is safe.
fn left_to_the_path(sql: &str) -> Vec<String> {
    // A policy's condition joins nothing.
    let sql = unquoted(sql).replace("USING (true)", "");
    let mut found: Vec<String> =
        HIDING.iter().filter(|word| sql.contains(*word)).map(|word| (*word).to_owned()).collect();
    let words: Vec<&str> = tokens(&sql);
    let at = |i: usize| words.get(i).copied().unwrap_or_default();
    let mut assigns = false;
    for i in 0..words.len() {
        let (before, word, after) = (if i == 0 { "" } else { at(i - 1) }, at(i), at(i + 1));
        let is_name = word.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        match word {
            "SET" => assigns = true,
            "FROM" | "WHERE" | "RETURNING" => assigns = false,
            "CASE" if after != "WHEN" => found.push(format!("CASE {after}")),
            "COLLATE" if after != "pg_catalog" => found.push(format!("COLLATE {after}")),
            "::" if !TYPES.contains(&after) && !after.starts_with('{') => {
                found.push(format!("::{after}"));
            }
            // An assignment.
            "=" if assigns => {}
            // The sign of a number, behind an operator.
            "-" if before == ")" && i > 3 && at(i - 3) == "." && at(i - 4) == "pg_catalog" => {}
            "*" if ["(", ",", ".", "SELECT"].contains(&before) => {}
            _ if word.starts_with(|c: char| "+-*/<>=~!@#%^&|".contains(c)) => {
                let qualified = at(i.wrapping_sub(2)) == "pg_catalog" && before == ".";
                if !qualified && word != "=>" {
                    found.push(format!("{before} {word} {after}"));
                }
            }
            _ if is_name && after == "(" && before != "." => {
                let is_alias = ["AS", "INTO", "RECURSIVE", "WITH", ")"].contains(&before)
                    || at(i + 2).is_empty();
                if !is_alias
                    && !GRAMMAR.contains(&word)
                    && !is_alias_of_rows(&words, i)
                    && !is_with(&words, i)
                {
                    found.push(format!("{word}("));
                }
            }
            _ if word.starts_with("pg_")
                && word != "pg_catalog"
                && ["FROM", "JOIN", ","].contains(&before) =>
            {
                found.push(word.to_owned());
            }
            _ => {}
        }
    }
    found
}

/// `... WITH ORDINALITY x(a, b)`, `(...) x(a)`.
fn is_alias_of_rows(words: &[&str], at: usize) -> bool {
    at > 0 && ["ORDINALITY", ")"].contains(&words[at - 1])
}

/// `WITH a AS (...), b(c) AS (...)`.
fn is_with(words: &[&str], at: usize) -> bool {
    let close = words[at..].iter().position(|word| *word == ")").unwrap_or_default();
    words[at + close..].iter().skip(1).take(2).eq(&["AS", "("])
}

fn tokens(sql: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = sql.trim_start();
    while let Some(first) = rest.chars().next() {
        let of = |fits: fn(char) -> bool| rest.find(|c| !fits(c)).unwrap_or(rest.len());
        let length = match first {
            '{' => rest.find('}').map_or(rest.len(), |end| end + 1),
            '"' => rest[1..].find('"').map_or(rest.len(), |end| end + 2),
            ':' if rest.starts_with("::") => 2,
            c if c.is_alphanumeric() || c == '_' || c == '$' => {
                of(|c| c.is_alphanumeric() || c == '_' || c == '$')
            }
            c if "+-*/<>=~!@#%^&|".contains(c) => of(|c| "+-*/<>=~!@#%^&|".contains(c)),
            c => c.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        found.push(token);
        rest = after.trim_start();
    }
    found
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| {
            let name = path.to_string_lossy();
            // Its one query is for a person to run.
            let of_people = name.ends_with("postgres/src/coverage.rs");
            name.ends_with(".rs")
                && !of_people
                && !name.contains("/tests")
                && !name.contains("fixture")
        })
        .collect()
}

#[test]
fn statements_leave_no_name_to_the_path() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut count = 0;
    for part in ["crates/postgres/src", "crates/state/src", "src/cli", "src/control", "src/server"]
    {
        let dir = root.join(part);
        for path in if dir.is_dir() { sources(&dir) } else { Vec::new() } {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            for (line, sql) in statements(code) {
                count += 1;
                for name in left_to_the_path(&sql) {
                    let path = path.strip_prefix(root).unwrap().display();
                    found.push(format!("{path}:{line}: {name}"));
                }
            }
        }
    }
    let schema = std::fs::read_to_string(root.join("sql/state.sql")).unwrap();
    let code: String =
        schema.lines().map(|l| l.split("--").next().unwrap().to_owned() + "\n").collect();
    for statement in code.split(';') {
        // The options of a table are no expressions, its parenthesis calls nothing.
        if statement.contains("VIEW") {
            for name in left_to_the_path(statement) {
                found.push(format!("sql/state.sql: {name}"));
            }
        }
        for word in ["text", "pg_lsn", "jsonb", "bytea", "oid", "timestamptz", "now()", "\"C\""] {
            let bare = statement.replace(&format!("pg_catalog.{word}"), "");
            if bare
                .split(|c: char| !(c.is_alphanumeric() || "_()\"".contains(c)))
                .any(|w| w == word)
            {
                found.push(format!("sql/state.sql: {word}"));
            }
        }
    }
    assert!(count > 100, "{count} statements were found");
    assert!(
        found.is_empty(),
        "left to the search_path; see crates/postgres/src/op.rs:\n{}",
        found.join("\n")
    );
}

#[test]
fn statement_that_leaves_a_name_to_the_path_is_found() {
    for (sql, expected) in [
        ("SELECT a FROM {s}.t WHERE a = $1", "a = $1"),
        ("SELECT now()", "now("),
        ("SELECT pg_catalog.now() - $1", ") - $1"),
        ("SELECT a::text FROM {s}.t", "::text"),
        ("SELECT a FROM pg_class", "pg_class"),
        ("SELECT a FROM {s}.t JOIN {s}.u USING (a)", " USING ("),
        ("SELECT a FROM {s}.t WHERE a IN ('b')", " IN ("),
        ("SELECT CASE a WHEN 1 THEN 2 END", "CASE a"),
        ("UPDATE {s}.t SET a = 1, b = b + 1 WHERE c {EQ} 2", "b + 1"),
        ("UPDATE {s}.t SET a = 1 WHERE c = 2", "c = 2"),
        ("SELECT a FROM {s}.t ORDER BY a COLLATE \"C\"", "COLLATE \"C\""),
    ] {
        assert!(
            left_to_the_path(sql).iter().any(|f| f == expected),
            "{sql}: {:?}",
            left_to_the_path(sql)
        );
    }
    for sql in [
        "UPDATE {s}.t SET a = 1, b = b {PLUS} 1 WHERE c {EQ} ANY ($1) RETURNING pg_catalog.count(*)",
        "INSERT INTO {s}.t (a, b) SELECT $1, * FROM unnest($2, $3) AS r(a, b) ON CONFLICT (a) DO NOTHING",
        "SELECT coalesce(a, 'x = y')::pg_catalog.text FROM pg_catalog.pg_class c, {s}.t",
        "WITH a AS (SELECT 1), b(c, d) AS (SELECT 2) SELECT c FROM b",
        "SELECT a OPERATOR(pg_catalog.=) 1, b::double precision, c::bit(32)::integer",
    ] {
        assert_eq!(left_to_the_path(sql), Vec::<String>::new(), "{sql}");
    }
}
