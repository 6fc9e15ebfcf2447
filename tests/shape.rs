//! Guards the shape of the code itself: which crate may know which.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a crate depends on, without what its tests do: our own crates, and those of others.
fn dependencies(of: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let manifest = std::fs::read_to_string(root().join(of).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let names = manifest["dependencies"].as_table().unwrap().keys().cloned();
    names.partition(|name| name.starts_with("walhook-"))
}

fn words(text: &str) -> BTreeSet<String> {
    text.split_whitespace().map(ToOwned::to_owned).collect()
}

/// Each crate, and all of ours that it may know. What is not here does not compile.
const WALLS: [(&str, &str); 11] = [
    ("bus", "walhook-core"),
    ("core", ""),
    ("sign", "walhook-core"),
    ("process", "walhook-core"),
    ("decode", "walhook-core"),
    ("rules", "walhook-core walhook-decode"),
    ("dispatch", "walhook-core"),
    ("fleet", "walhook-core"),
    ("postgres", "walhook-core walhook-decode walhook-process walhook-sign"),
    ("state", "walhook-core walhook-postgres"),
    ("http", "walhook-core walhook-process walhook-sign"),
];

#[test]
fn crates_know_no_others_than_the_walls_allow() {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        found.insert(entry.unwrap().file_name().into_string().unwrap());
    }
    let expected: BTreeSet<String> = WALLS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(found, expected, "a crate without a wall");
    for (name, allowed) in WALLS {
        let (own, _) = dependencies(&format!("crates/{name}"));
        assert_eq!(own, words(allowed), "crates/{name}");
    }
}

/// What decides, and what all speak, can neither wait nor open anything nor read a clock.
#[test]
fn crates_that_decide_depend_on_nothing_that_waits() {
    let waits = words(
        "tokio tokio-postgres tokio-util tokio-rustls futures-util hyper hyper-util h2 socket2 axum \
         moka prometheus tracing hickory-resolver rustix",
    );
    for name in ["core", "decode", "rules", "dispatch", "fleet", "sign"] {
        let (_, others) = dependencies(&format!("crates/{name}"));
        let found: Vec<_> = others.intersection(&waits).collect();
        assert!(found.is_empty(), "crates/{name}: {found:?}");
    }
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// What the standard library offers in spite of that.
#[test]
fn crates_that_decide_do_no_io_and_read_no_clock() {
    let forbidden = [
        "async fn",
        "std::net",
        "std::fs",
        "Instant::now",
        "SystemTime::now",
        "rand::rng(",
        "rand::random",
    ];
    let mut files = 0;
    for name in ["core", "decode", "rules", "dispatch", "fleet", "sign"] {
        for path in sources(&root().join("crates").join(name).join("src")) {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            for (number, line) in code.lines().enumerate() {
                let plain = line.split("//").next().unwrap_or_default();
                for word in forbidden {
                    assert!(!plain.contains(word), "{}:{}: {word}", path.display(), number + 1);
                }
            }
            files += 1;
        }
    }
    assert!(files > 50, "{files} files were read");
}

/// The command line parses, asks `control`, and prints: what is asked of a database stands in one place.
#[test]
fn cli_names_no_database_and_no_sql() {
    let forbidden = ["tokio_postgres", "walhook_postgres", "walhook_state", "crate::server::state"];
    let statements = ["SELECT ", "INSERT INTO ", "UPDATE ", "DELETE FROM ", "ALTER ", "DROP "];
    let mut files = 0;
    for path in sources(&root().join("src/cli")) {
        for (number, line) in std::fs::read_to_string(&path).unwrap().lines().enumerate() {
            let plain = line.split("//").next().unwrap_or_default();
            for word in forbidden.iter().chain(&statements) {
                assert!(!plain.contains(word), "{}:{}: {word}", path.display(), number + 1);
            }
        }
        files += 1;
    }
    assert!(files > 15, "{files} files were read");
}

/// What is asked and ordered does not know who asks: no command line, and nothing is printed.
#[test]
fn control_knows_no_command_line_and_prints_nothing() {
    let forbidden = ["crate::cli", "clap::", "print_line", "println!", "eprintln!", "stdout()"];
    for path in sources(&root().join("src/control")) {
        for (number, line) in std::fs::read_to_string(&path).unwrap().lines().enumerate() {
            let plain = line.split("//").next().unwrap_or_default();
            for word in forbidden {
                assert!(!plain.contains(word), "{}:{}: {word}", path.display(), number + 1);
            }
        }
    }
}

/// What the configuration says is known to whoever reads it; what reads it is not known to the configuration.
#[test]
fn config_knows_nothing_that_runs() {
    let forbidden = ["crate::server", "crate::control", "crate::cli", "crate::demo"];
    let mut files = 0;
    for path in sources(&root().join("src/config")) {
        for (number, line) in std::fs::read_to_string(&path).unwrap().lines().enumerate() {
            let plain = line.split("//").next().unwrap_or_default();
            for word in forbidden {
                assert!(!plain.contains(word), "{}:{}: {word}", path.display(), number + 1);
            }
        }
        files += 1;
    }
    assert!(files > 10, "{files} files were read");
}

/// The code of the product that speaks SQL, without its tests: of each file the path, and the text.
fn speaks_sql() -> Vec<(String, String)> {
    let all =
        ["crates/state/src", "crates/postgres/src", "src"].map(|dir| sources(&root().join(dir)));
    let code = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
        (path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned(), code)
    };
    let is_test = |path: &str| path.contains("/tests") || path.ends_with("fixture.rs");
    all.iter().flatten().map(code).filter(|(path, _)| !is_test(path)).collect()
}

/// The tables of which each partition has rows of its own.
fn led(schema: &str) -> Vec<&str> {
    let tables = schema.split("TABLE IF NOT EXISTS {schema}.").skip(1);
    let led = tables.filter_map(|table| {
        let (name, rest) = table.split_once(" (\n")?;
        let (columns, _) = rest.split_once("\n)")?;
        columns.contains("    partition ").then_some(name)
    });
    led.collect()
}

#[test]
fn partition_is_a_parameter_of_every_statement() {
    let mut statements = 0;
    let mut files = speaks_sql();
    assert!(files.len() > 100, "{} files were read", files.len());
    let schema = std::fs::read_to_string(root().join("sql/state.sql")).unwrap();
    let led = led(&schema);
    assert!(led.len() >= 8, "{led:?}");
    for (path, code) in &files {
        for table in &led {
            for (at, found) in code.match_indices(&format!("}}.{table}")) {
                let rest = &code[at + found.len()..];
                if rest.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
                    continue;
                }
                // A name alone, as of a table that is vacuumed, asks for no rows.
                let before = code[..at].rsplit('"').next().unwrap_or_default();
                if rest.starts_with('"')
                    && !["FROM", "INTO", "UPDATE", "JOIN"].iter().any(|word| before.contains(word))
                {
                    continue;
                }
                statements += 1;
                let statement: String = rest.chars().take(400).collect();
                assert!(
                    statement.contains("partition"),
                    "{path}: of {table} no partition is named"
                );
            }
        }
    }
    assert!(statements > 20, "{statements} statements were found");
    files.push(("sql/state.sql".to_owned(), schema.clone()));
    for (path, code) in &files {
        assert!(!code.contains("VALUES ($1, 0"), "{path}");
        for (at, word) in code.match_indices("partition") {
            let mut rest = code[at + word.len()..].trim_start();
            for between in ["integer", "NOT NULL", "DEFAULT", "{EQ}", "OPERATOR(pg_catalog.=)", "="]
            {
                rest = rest.strip_prefix(between).unwrap_or(rest).trim_start();
            }
            let digit = rest.starts_with(|c: char| c.is_ascii_digit());
            assert!(!digit, "{path}: a partition is a literal: partition {rest:.20}");
        }
    }
}

/// Another kind of position is an edit of one file.
#[test]
fn columns_of_a_position_are_named_in_one_place() {
    let mut named = Vec::new();
    for (path, code) in speaks_sql() {
        // Of the two, the latter holds no SQL: a line of the delivery log has its own columns.
        if !path.starts_with("crates/state/src") || path.ends_with("deliveries/columns.rs") {
            continue;
        }
        // A column of `settled`, a function, and a method are no columns of a position.
        let plain = code.replace("last_commit_lsn", "").replace("commit_lsn()", "");
        if ["change_lsn", "commit_lsn"].iter().any(|column| plain.contains(column)) {
            named.push(path);
        }
    }
    assert_eq!(named, ["crates/state/src/place.rs"]);
}

#[test]
fn protocol_version_is_written_by_its_type_alone() {
    for (path, code) in speaks_sql() {
        for (at, option) in code.match_indices("proto_version") {
            let value = code[at + option.len()..].trim_start_matches(['\'', ',', ' ']);
            let digit = value.starts_with(|c: char| c.is_ascii_digit());
            assert!(!digit, "{path}: proto_version is a literal: {value:.20}");
        }
    }
}

/// The dispatcher only decides whose turn it is: what is known belongs to a component.
#[test]
fn dispatcher_has_a_dozen_fields_at_most() {
    let path = root().join("crates/dispatch/src/dispatcher/mod.rs");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, rest) = text.split_once("pub struct Dispatcher {\n").unwrap();
    let (fields, _) = rest.split_once("\n}\n").unwrap();
    let is_field = |line: &&str| !line.trim_start().starts_with("//") && line.ends_with(',');
    let fields: Vec<&str> = fields.lines().filter(is_field).collect();
    assert!((8..=12).contains(&fields.len()), "{fields:#?}");
}

/// What decides goes by what an outcome means: how a request is carried is known where it is sent.
#[test]
fn dispatch_knows_no_http() {
    let forbidden = ["FailureKind", "record.failure", "410", "429", "503", "200..", "Retry-After"];
    let tests_only =
        ["fixture.rs", "dispatcher/rig.rs", "dispatcher/tables.rs", "dispatcher/limited.rs"];
    for path in sources(&root().join("crates/dispatch/src")) {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
        if name.contains("/tests")
            || name.contains("/simulation")
            || tests_only.iter().any(|f| name.ends_with(f))
        {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let plain = line.split("//").next().unwrap_or_default();
            for word in forbidden {
                assert!(!plain.contains(word), "{name}:{}: {word}", number + 1);
            }
        }
    }
}
