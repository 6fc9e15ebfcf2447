//! Alerts, the dashboard, and what Prometheus and Grafana are told: that they parse, and ask for what `/metrics` shows.

use std::collections::{BTreeMap, BTreeSet};

use promql_parser::parser::{Expr, LabelModifier, MatrixSelector};
use promql_parser::util::{ExprVisitor, walk_expr};

use super::{read, root, yaml};

/// The series that `/metrics` shows: name → the values of each of its labels. A label whose values are
/// the configuration's has none here.
fn series() -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let metrics =
        walhook::server::metrics::Metrics::new("any", ["any.type"]).unwrap().render().unwrap();
    let mut series: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let (series_of, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series_of.split_once('{').unwrap_or((series_of, ""));
        let of_name = series.entry(name.to_owned()).or_default();
        for label in labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()) {
            let (label, value) = label.split_once('=').unwrap();
            let values = of_name.entry(label.to_owned()).or_default();
            values.insert(value.trim_matches('"').to_owned());
        }
    }
    assert!(series.len() > 15, "{series:?}");
    series
}

/// Finds what an expression asks for that nobody says.
struct Unknown {
    series: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
    found: Vec<String>,
    /// The labels that aggregations keep, and those of the series that were asked for.
    by: BTreeSet<String>,
    of_series: BTreeSet<String>,
}

impl ExprVisitor for Unknown {
    type Error = std::convert::Infallible;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, Self::Error> {
        if let Expr::Aggregate(aggregate) = expr
            && let Some(LabelModifier::Include(by)) = &aggregate.modifier
        {
            self.by.extend(by.labels.iter().cloned());
        }
        let (Expr::VectorSelector(selector)
        | Expr::MatrixSelector(MatrixSelector { vs: selector, .. })) = expr
        else {
            return Ok(true);
        };
        let name = selector.name.clone().unwrap_or_default();
        let Some(labels) = self.series.get(&name) else {
            self.found.push(name);
            return Ok(true);
        };
        self.of_series.extend(labels.keys().cloned());
        for matcher in &selector.matchers.matchers {
            let known = labels.get(&matcher.name);
            if known.is_some() && matcher.name == "pipeline" && matcher.value == "$pipeline" {
                // The dashboard's variable.
                continue;
            }
            if !known.is_some_and(|values| values.contains(&matcher.value)) {
                self.found.push(format!("{name} with {}", matcher.name));
            }
        }
        Ok(true)
    }
}

/// Parses what a panel or an alert asks, and holds it against what the program says; returns the labels
/// by which it is told apart.
fn check_promql(place: &str, promql: &str) -> BTreeSet<String> {
    // The dashboard's own variable is a time.
    let promql = promql.replace("$__rate_interval", "5m");
    let parsed = promql_parser::parser::parse(&promql)
        .unwrap_or_else(|error| panic!("{place}: {promql}: {error}"));
    let mut unknown = Unknown {
        series: series(),
        found: vec![],
        by: BTreeSet::new(),
        of_series: BTreeSet::new(),
    };
    walk_expr(&mut unknown, &parsed).unwrap();
    assert!(unknown.found.is_empty(), "{place}: {promql}: there is no {:?}", unknown.found);
    let strange: Vec<_> = unknown.by.difference(&unknown.of_series).collect();
    // A histogram's buckets have one label more.
    let strange: Vec<_> = strange.into_iter().filter(|label| *label != "le").collect();
    assert!(strange.is_empty(), "{place}: {promql}: no series has {strange:?}");
    unknown.by
}

/// The labels that a template asks for, each behind `before`, such as `{{ $labels.reason }}`.
fn asked_for<'a>(template: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
    let end = |rest: &'a str| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next();
    template.split(before).skip(1).filter_map(end).filter(|label| !label.is_empty())
}

#[test]
fn alerts_parse_and_ask_for_what_metrics_show() {
    let alerts = yaml("deploy/alerts.yml");
    yaml("deploy/alerts.test.yml");
    let tests = read("deploy/alerts.test.yml");
    let rules = alerts["groups"][0]["rules"].as_sequence().unwrap();
    assert!(rules.len() >= 5);
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        let labels = check_promql(name, rule["expr"].as_str().unwrap());
        assert!(labels.contains("pipeline"), "{name} adds up different pipelines");
        for annotation in rule["annotations"].as_mapping().unwrap().values() {
            for label in asked_for(annotation.as_str().unwrap(), "$labels.") {
                assert!(labels.contains(label), "{name}: it has no label {label}");
            }
        }
        assert!(
            tests.contains(&format!("alertname: {name}\n")),
            "{name} has no test that it fires"
        );
        assert!(rule["labels"]["severity"].is_string(), "{name}");
        assert!(rule["annotations"]["summary"].is_string(), "{name}");
    }
    let unknown = std::panic::catch_unwind(|| check_promql("x", "rate(walhook_nothing[5m])"));
    assert!(unknown.is_err(), "the check finds what is wrong");
}

#[test]
fn dashboard_is_json_whose_panels_ask_for_what_metrics_show() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("deploy/grafana/dashboards/walhook.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            let promql = target["expr"].as_str().unwrap();
            let labels = check_promql(title, promql);
            let selectors = promql.matches("walhook_").count() + promql.matches("process_").count();
            let of_pipeline = promql.matches("pipeline=~\"$pipeline\"").count();
            assert_eq!(selectors, of_pipeline, "{title}: {promql} adds up different pipelines");
            for label in asked_for(target["legendFormat"].as_str().unwrap(), "{{") {
                assert!(labels.contains(label), "{title}: it has no label {label}");
            }
        }
    }
}

#[test]
fn prometheus_and_grafana_are_told_of_services_and_files_that_are_there() {
    let services = yaml("docker-compose.yml");
    let services = services["services"].as_mapping().unwrap();
    let prometheus = yaml("deploy/prometheus.yml");
    for file in prometheus["rule_files"].as_sequence().unwrap() {
        assert!(root().join("deploy").join(file.as_str().unwrap()).exists());
    }
    let target = prometheus["scrape_configs"][0]["static_configs"][0]["targets"][0].as_str();
    let (service, port) = target.unwrap().split_once(':').unwrap();
    assert!(services.contains_key(service) && port == "9723", "{target:?}");
    let source = yaml("deploy/grafana/provisioning/datasources/prometheus.yml");
    let url = source["datasources"][0]["url"].as_str().unwrap();
    let host = url.strip_prefix("http://").and_then(|rest| rest.split(':').next()).unwrap();
    assert!(services.contains_key(host), "{url}");
    let provider = yaml("deploy/grafana/provisioning/dashboards/walhook.yml");
    let path = provider["providers"][0]["options"]["path"].as_str().unwrap();
    assert!(read("docker-compose.yml").contains(&format!(":{path}:ro")), "{path}");
}
