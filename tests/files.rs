//! The files around the code: that they parse, and speak of what the code has.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io::Write};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Words that begin with `walhook_`, without what a histogram's series add.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !word(c))
        .filter(|name| name.starts_with("walhook_"))
        .map(|name| name.strip_suffix("_bucket").unwrap_or(name).to_owned())
        .collect()
}

#[test]
fn dashboard_and_alerts_name_only_metrics_that_are_documented() {
    let documented = metrics_in(&read("docs/operations.md"));
    for path in ["deploy/grafana/dashboards/walhook.json", "deploy/alerts.yml"] {
        let used = metrics_in(&read(path));
        let unknown: Vec<_> = used.difference(&documented).collect();
        assert!(!used.is_empty() && unknown.is_empty(), "{path}: {unknown:?}");
    }
}

#[test]
fn dashboard_is_json_whose_panels_ask_something() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("deploy/grafana/dashboards/walhook.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    for panel in panels {
        assert!(panel["targets"][0]["expr"].is_string(), "{}", panel["title"]);
    }
}

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
fn scripts_parse() {
    for (shell, path) in [
        ("sh", "scripts/postgres-versions"),
        ("sh", "scripts/prerequisites"),
        ("sh", "scripts/test-matrix"),
        ("bash", ".ci/run"),
    ] {
        let checked = Command::new(shell).arg("-n").arg(root().join(path)).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
}

#[test]
fn systemd_unit_has_sections_of_settings() {
    let unit = read("deploy/walhook.service");
    let lines = unit.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (sections, settings): (Vec<_>, Vec<_>) = lines.partition(|line| line.starts_with('['));
    assert_eq!(sections, ["[Unit]", "[Service]", "[Install]"]);
    assert!(settings.iter().all(|line| line.split_once('=').is_some_and(|(key, _)| {
        !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric())
    })));
}

#[test]
fn documents_link_to_files_that_are_there() {
    let mut documents = vec![root().join("README.md")];
    for folder in ["docs", "docs/adr"] {
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
