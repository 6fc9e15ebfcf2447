//! The documents: that their links lead somewhere, and what they name of the code is there.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use super::{read, root};
use crate::support::docs;

#[test]
fn configurations_of_compose_file_and_readme_can_be_loaded() {
    let readme = read("README.md");
    let blocks: Vec<String> = readme
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .map(|block| block.lines().map(|line| format!("{}\n", line.trim_start())).collect())
        .collect();
    assert_eq!(blocks.len(), 1, "the README has one configuration");
    for toml in blocks.into_iter().chain([read("deploy/compose/walhook.toml")]) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(toml.as_bytes()).unwrap();
        let config = walhook::config::load(file.path(), []).unwrap();
        assert!(!config.events.is_empty());
    }
}

#[test]
fn documents_link_to_files_that_are_there() {
    let beside = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "examples/README.md"];
    let mut documents: Vec<PathBuf> = beside.iter().map(|name| root().join(name)).collect();
    for folder in ["docs", "docs/operations", "docs/adr"] {
        let entries = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        documents.extend(entries.filter(|path| path.extension().is_some_and(|e| e == "md")));
    }
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if target.is_empty() || target.starts_with("http") {
                continue;
            }
            let linked: PathBuf = document.parent().unwrap().join(target);
            assert!(linked.exists(), "{}: {target} is not there", document.display());
        }
    }
}

/// What proves a promise must be there: `kills::name` in `tests/kills.rs`, or below it, and
/// `crates/a/src/b.rs::name` in that file.
#[test]
fn guarantees_name_tests_that_are_there() {
    let guarantees = read("docs/guarantees.md");
    let mut named = 0;
    for name in guarantees.split('`').skip(1).step_by(2) {
        let Some((place, test)) = name.rsplit_once("::").filter(|(_, test)| *test != "…") else {
            continue;
        };
        let is_file = place.ends_with(".rs");
        let tests = || format!("tests/{}.rs", place.replace("::", "/"));
        let file = if is_file { place.to_owned() } else { tests() };
        assert!(read(&file).contains(&format!("fn {test}(")), "{file} has no test {test}");
        named += 1;
    }
    assert!(named > 20, "{named} tests are named");
}

/// A filter of nextest's that matches nothing is no error of its own.
#[test]
fn tests_that_are_left_to_make_test_long_are_there() {
    let config = read(".config/nextest.toml");
    let mut named = 0;
    for name in config.split("test(=").skip(1).filter_map(|rest| rest.split(')').next()) {
        let (module, test) = name.rsplit_once("::").unwrap();
        let file = format!("{}.rs", module.replace("::", "/"));
        let places = ["tests", "crates/dispatch/src"].map(|top| root().join(top).join(&file));
        let texts = places.iter().filter_map(|place| fs::read_to_string(place).ok());
        assert!(texts.into_iter().any(|text| text.contains(&format!("fn {test}("))), "{name}");
        named += 1;
    }
    assert!(named > 5, "{named} are named");
}

/// What ARCHITECTURE.md and CONTRIBUTING.md name in `code` and looks like a path of ours, is there.
#[test]
fn map_of_the_code_names_what_is_there() {
    let tops = ["crates/", "src/", "tests/", "testing/", "sql/", "deploy/", "docs/", "scripts/"];
    let modules: Vec<String> = ["crates/dispatch/src", "crates/dispatch/src/dispatcher"]
        .iter()
        .flat_map(|folder| fs::read_dir(root().join(folder)).unwrap())
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let mut named = 0;
    for document in ["ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = read(document);
        let code = text.split('`').skip(1).step_by(2);
        for path in code.filter(|code| tops.iter().any(|top| code.starts_with(top))) {
            assert!(root().join(path).exists(), "{document}: {path} is not there");
            named += 1;
        }
        // The components of the dispatcher, each with its modules: `| Routing (`routing`, `route`) |`.
        for line in text.lines().filter(|line| line.starts_with("| ") && line.contains(" (`")) {
            let cell = line.split(") |").next().unwrap();
            for module in cell.split('`').skip(1).step_by(2) {
                assert!(modules.contains(&module.to_owned()), "{document}: no module {module}");
                named += 1;
            }
        }
    }
    assert!(named > 40, "{named} are named");
}

/// The graph in ARCHITECTURE.md is cargo's own.
#[test]
fn graph_of_crates_is_that_of_cargo() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let args =
        "tree --workspace --depth 1 --no-dedupe --edges normal --offline --locked --color never";
    let tree = Command::new(cargo).args(args.split(' ')).current_dir(root()).output().unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let mut graph = String::new();
    for line in tree.lines() {
        let (indent, rest) =
            line.split_at(line.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(0));
        let name = rest.split(' ').next().unwrap_or_default();
        if name == "walhook" || name.starts_with("walhook-") {
            let indent = if indent.is_empty() { "    " } else { "      └ " };
            graph.push_str(&format!("{indent}{name}\n"));
        }
    }
    assert!(graph.lines().count() > 15, "{graph}");
    docs::hold("ARCHITECTURE.md", "cargo tree", &format!("\n{graph}\n")).unwrap();
}
