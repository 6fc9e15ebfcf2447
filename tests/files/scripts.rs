//! Scripts and SQL: that they parse, and do what they are for.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::{read, root};

#[test]
fn scripts_parse() {
    for (shell, path) in [
        ("sh", "scripts/postgres-versions"),
        ("sh", "scripts/prerequisites"),
        ("sh", "scripts/split-debug"),
        ("sh", "scripts/test-matrix"),
        ("bash", ".ci/run"),
    ] {
        let checked = Command::new(shell).arg("-n").arg(root().join(path)).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
}

#[test]
fn program_whose_debug_information_was_moved_runs_and_says_where_that_is() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("walhook");
    let source = dir.path().join("main.rs");
    fs::write(&source, "fn main() {}").unwrap();
    let compile =
        |rustc: &mut Command| rustc.arg("-g").arg(&source).arg("-o").arg(&program).status();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    assert!(compile(&mut Command::new(rustc)).unwrap().success());
    fs::remove_file(&source).unwrap();
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    let whole = size(&program);
    // The second time there is nothing to move.
    for _ in 0..2 {
        let script = root().join("scripts/split-debug");
        let moved = Command::new("sh").arg(script).arg(&program).output().unwrap();
        assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
        let debug = program.with_extension("debug");
        assert!(size(&program) < whole && size(&debug) > 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
    let (bytes, name) = (fs::read(&program).unwrap(), b"walhook.debug\0");
    assert!(bytes.windows(name.len()).any(|found| found == name));
    assert!(Command::new(&program).status().unwrap().success());
}

/// A server whose encoding is not UTF8 reads our SQL in its own.
#[test]
fn sql_files_are_ascii() {
    let mut files = 0;
    for entry in fs::read_dir(root().join("sql")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        for (line, text) in text.lines().enumerate() {
            assert!(text.is_ascii(), "{}:{}: {text}", path.display(), line + 1);
        }
        files += 1;
    }
    assert!(files > 0);
}

/// `make test` runs on its second PostgreSQL what the version can change; a new file has to say.
#[test]
fn every_file_of_tests_says_whether_the_servers_version_matters() {
    let script = read("scripts/test-matrix");
    let listed = |name: &str| -> BTreeSet<String> {
        let list = script.split(&format!("\n{name}=\"")).nth(1).unwrap();
        list.split('"').next().unwrap().split_whitespace().map(str::to_owned).collect()
    };
    let (by_version, same) = (listed("by_version"), listed("same_on_all"));
    assert!(by_version.is_disjoint(&same));
    let main = read("tests/main.rs");
    let modules = main.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
    let modules: BTreeSet<String> =
        modules.filter(|name| *name != "support").map(str::to_owned).collect();
    assert_eq!(&by_version | &same, modules);
    for command in listed("commands_by_version") {
        let found = ["", "/mod"]
            .iter()
            .any(|end| root().join(format!("src/cli/{command}{end}.rs")).is_file());
        assert!(found, "there is no command {command}");
    }
}

/// An old Rust is named as such, before anything is built or installed.
#[test]
fn prerequisites_refuse_a_rust_that_is_too_old_and_say_so() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let needed = manifest["workspace"]["package"]["rust-version"].as_str().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let fake = dir.path().join("cargo");
    fs::write(&fake, "#!/bin/sh\necho 'cargo 1.75.0 (1d8b05cdd 2023-11-20)'\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&fake, executable).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let script = root().join("scripts/prerequisites");
    let ended = Command::new("sh").arg(script).env("PATH", path).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    for part in ["Rust 1.75.0", "too old", &format!("needs {needed} or later"), "rustup"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}
