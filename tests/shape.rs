//! Guards the shape of the code itself.

use std::path::{Path, PathBuf};

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

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The engine decides: no I/O, no clock, no ambient randomness. Its tests may use real servers.
#[test]
fn engine_does_no_io_and_reads_no_clock() {
    let forbidden = [
        "tokio::",
        "async fn",
        "std::net",
        "Instant::now",
        "SystemTime::now",
        "rand::rng(",
        "rand::random",
        "std::fs",
        "crate::io",
        "crate::pipeline",
        "crate::cli",
    ];
    let engine = source().join("engine");
    for path in sources(&engine) {
        if path
            .components()
            .any(|part| part.as_os_str() == "tests.rs" || part.as_os_str() == "tests")
        {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let plain = line.split("//").next().unwrap_or_default();
            for word in forbidden {
                assert!(!plain.contains(word), "{}:{}: {word}", path.display(), number + 1);
            }
        }
    }
}

/// The stages before the boundary between event and route know nothing of those behind it.
#[test]
fn stages_before_the_boundary_do_not_know_those_behind_it() {
    let before =
        ["pgoutput", "change", "value", "condition", "row", "catalog", "rule", "event", "position"];
    let behind =
        ["route", "lane", "schedule", "dispatcher", "settle", "settled", "tracker", "persist"];
    for stage in before {
        let mut files = vec![source().join(format!("engine/{stage}.rs"))];
        let dir = source().join(format!("engine/{stage}"));
        if dir.is_dir() {
            files.extend(sources(&dir));
        }
        for path in files {
            let text = std::fs::read_to_string(&path).unwrap();
            for later in behind {
                for form in [format!("super::{later}::"), format!("engine::{later}::")] {
                    assert!(!text.contains(&form), "{} uses {later}", path.display());
                }
            }
        }
    }
}
