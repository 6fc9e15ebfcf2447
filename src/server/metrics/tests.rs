//! What `/metrics` shows, and that it is documented.

use std::time::Duration;

use super::families::*;
use super::*;
use walhook_core::attempt::{FailureKind, Outcome};
use walhook_core::event::UnroutableReason;
use walhook_core::persist::DeferReason;
use walhook_dispatch::dispatcher::EndpointChange;
use walhook_http::exchange::{Answer, Exchange, Failure};
use walhook_testkit::admin::without_pipeline;

fn outcome(result: Result<u16, FailureKind>) -> Outcome {
    let result = result
        .map(|status| Answer { status, retry_after: None, excerpt: String::new() })
        .map_err(|kind| Failure { kind, detail: String::new() });
    Exchange::new(result, Duration::from_millis(30)).into()
}

#[test]
fn metrics_show_what_was_counted_under_the_contracts_names() {
    let metrics = Metrics::new("main", ["a.b", "a.c", "order.*"]).unwrap();
    metrics.changes.inc_by(3);
    metrics.count_event("a.b");
    metrics.count_event("unknown");
    metrics.count_event("order.paid");
    metrics.count_delivered(Duration::from_millis(7));
    for status in [204, 301, 410, 500, 99] {
        metrics.count_attempt(&Outcome { resends: 2, ..outcome(Ok(status)) });
    }
    for kind in FailureKind::ALL {
        metrics.count_attempt(&outcome(Err(kind)));
    }
    metrics.count_unroutable(UnroutableReason::Value, 1);
    metrics.count_deferred(DeferReason::Held, 2);
    metrics.count_endpoint_change(EndpointChange::Disabled);
    metrics.count_notice(NoticeResult::Failed);
    metrics.set_slot(5, None);
    metrics.set_leader(true);
    let text = metrics.render().unwrap();
    let mut lines = vec![
        "walhook_changes_total 3".to_owned(),
        "walhook_events_total{type=\"a.b\"} 1".into(),
        "walhook_events_total{type=\"a.c\"} 0".into(),
        "walhook_events_total{type=\"order.*\"} 1".into(),
        "walhook_deliveries_total{result=\"delivered\"} 1".into(),
        "walhook_deliveries_total{result=\"dead\"} 0".into(),
        "walhook_delivery_latency_seconds_bucket{le=\"0.005\"} 0".into(),
        "walhook_delivery_latency_seconds_bucket{le=\"0.01\"} 1".into(),
        "walhook_attempt_seconds_count 17".into(),
        "walhook_resends_total 10".into(),
        "walhook_deliveries_total{result=\"deferred\"} 2".into(),
        "walhook_deferred_total{reason=\"held\"} 2".into(),
        "walhook_deferred_total{reason=\"failed\"} 0".into(),
        "walhook_unroutable_total{reason=\"value\"} 1".into(),
        "walhook_in_flight{pool=\"slow\"} 0".into(),
        "walhook_lanes{state=\"ready\"} 0".into(),
        "walhook_slot_retained_bytes 5".into(),
        "walhook_slot_safe_bytes inf".into(),
        "walhook_endpoint_changes_total{change=\"disabled\"} 1".into(),
        "walhook_notices_total{result=\"failed\"} 1".into(),
        "walhook_leader 1".into(),
    ];
    let outcomes = STATUS_CLASSES.into_iter().chain(FailureKind::ALL.map(FailureKind::as_str));
    lines.extend(outcomes.map(|o| format!("walhook_attempts_total{{outcome=\"{o}\"}} 1")));
    let of_pipeline = without_pipeline(&text);
    for line in lines {
        assert!(of_pipeline.lines().any(|l| l == line), "{line} is not in:\n{text}");
    }
    assert!(!text.contains("unknown"), "label values are those of the configuration");
}

#[test]
fn every_metric_and_label_value_is_documented() {
    let text = Metrics::new("main", ["a.b"]).unwrap().render().unwrap();
    let series = text.lines().filter(|line| !line.starts_with('#'));
    for line in series {
        assert!(line.contains("pipeline=\"main\""), "{line} does not name the pipeline");
    }
    let text = without_pipeline(&text);
    let docs = include_str!("../../../docs/operations/health-and-metrics.md");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let name = rest.split(' ').next().unwrap();
            assert!(docs.contains(&format!("`{name}")), "{name} is not in health-and-metrics.md");
        }
        let value = line.split_once("=\"").and_then(|(_, rest)| rest.split_once('"'));
        // The version is another in each release.
        let names = |line: &str| !line.contains("le=") && !line.starts_with("walhook_build_info{");
        if let Some((value, _)) = value.filter(|(v, _)| *v != "a.b" && names(line)) {
            assert!(
                docs.contains(&format!("`{value}`")),
                "{value} is not in health-and-metrics.md"
            );
        }
    }
}

#[test]
fn metrics_tell_which_program_runs_and_what_its_process_takes() {
    let text = Metrics::new("main", []).unwrap().render().unwrap();
    let info = text.lines().find(|line| line.starts_with("walhook_build_info{")).unwrap();
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(info.contains(&version) && info.ends_with("} 1"), "{info}");
    for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"] {
        let series = format!("{name}{{pipeline=\"main\"}} ");
        assert!(text.contains(&series), "{series} is not in:\n{text}");
    }
}

#[test]
fn slots_in_use_are_those_of_the_fuller_pool() {
    let metrics = Metrics::new("main", []).unwrap();
    for (pools, ratio) in [
        ([(0, 0), (0, 0)], 0.0),
        ([(15, 15), (0, 63)], 1.0),
        ([(0, 15), (63, 63)], 1.0),
        ([(3, 15), (7, 70)], 0.2),
        // An idle account has the slot that is kept; or there are fewer slots now than requests.
        ([(16, 15), (0, 63)], 1.0),
    ] {
        metrics.set_slots(80, pools);
        assert!((metrics.slots_in_use.get() - ratio).abs() < 1e-9, "{pools:?}");
    }
}
