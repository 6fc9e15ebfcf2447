//! What somebody is led to at night is there: each alert's runbook, each link within the documents down to its heading,
//! and the dashboard's panels.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The anchors of a page's headings, as they are made of their text.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let headings = page.lines().filter(|line| {
        fenced ^= line.starts_with("```");
        !fenced && line.starts_with('#')
    });
    headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
    heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let alerts: serde_yaml_ng::Value = serde_yaml_ng::from_str(&read("deploy/alerts.yml")).unwrap();
    let mut alerted = BTreeSet::new();
    for rule in alerts["groups"][0]["rules"].as_sequence().unwrap() {
        let name = rule["alert"].as_str().unwrap();
        let runbook = rule["annotations"]["runbook"].as_str().unwrap();
        let (page, section) = runbook.split_once('#').unwrap();
        assert_eq!(section, anchor(name), "{name}");
        assert!(anchors(&read(page)).contains(section), "{name}: {runbook} is not there");
        alerted.insert(name.to_owned());
    }
    let page = read("docs/operations/health-and-metrics.md");
    let sections = page.lines().filter_map(|line| line.strip_prefix("### Walhook"));
    let sections: BTreeSet<String> = sections.map(|name| format!("Walhook{name}")).collect();
    assert_eq!(sections, alerted);
}

#[test]
fn documents_link_to_headings_that_are_there() {
    let mut pages: Vec<PathBuf> = vec!["README.md".into(), "ARCHITECTURE.md".into()];
    for folder in ["docs", "docs/operations", "docs/adr"] {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        let names = entries.map(|entry| Path::new(folder).join(entry.unwrap().file_name()));
        pages.extend(names.filter(|path| path.extension().is_some_and(|end| end == "md")));
    }
    let mut linked = 0;
    for path in pages {
        let page = read(&path);
        for target in page.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let Some((file, section)) = target.split_once('#') else { continue };
            if file.starts_with("http") || !(file.is_empty() || file.ends_with(".md")) {
                continue;
            }
            let there = match file {
                "" => anchors(&page),
                file => anchors(&read(path.parent().unwrap().join(file))),
            };
            assert!(there.contains(section), "{}: {target} is not there", path.display());
            linked += 1;
        }
    }
    assert!(linked > 40, "{linked} links");
}

#[test]
fn dashboard_shows_what_is_asked_for_at_night_from_a_data_source_of_ones_choice() {
    let dashboard: Value =
        serde_json::from_str(&read("deploy/grafana/dashboards/walhook.json")).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let sources: Vec<_> = variables.iter().filter(|one| one["type"] == "datasource").collect();
    assert!(sources.len() == 1 && sources[0]["name"] == "datasource", "{sources:?}");
    let panels = dashboard["panels"].as_array().unwrap();
    let queried = variables.iter().filter(|one| one["type"] == "query");
    for of in queried.chain(panels) {
        assert_eq!(of["datasource"]["uid"], "${datasource}", "{of}");
    }
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "ids are their own");
    let asked: String = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
        .fold(String::new(), |asked, target| asked + target["expr"].as_str().unwrap() + "\n");
    for series in [
        "walhook_deferred{",
        "walhook_deferred_total{",
        "walhook_breakers_open{",
        "walhook_endpoints_stopped{",
        "walhook_gaps{",
        "walhook_state_bytes{",
        "walhook_state_max_bytes{",
        "walhook_workers{",
        "walhook_delivery_log_bytes{",
        "process_cpu_seconds_total{",
        "process_resident_memory_bytes{",
    ] {
        assert!(asked.contains(series), "no panel shows {series}");
    }
}
