//! A run as a page: its tables, and plots over its time. Nothing of it is fetched from anywhere.

use std::fmt::Write as _;

use anyhow::Result;

use super::outcome::{Outcome, Sample};
use crate::plot::{Panel, svg};
use crate::sample::Spread;

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}\
    table{border-collapse:collapse;margin:1em 0;font-size:13px}th,td{padding:.3em .7em;text-align:right;\
    border-bottom:1px solid #ddd}th:first-child,td:first-child{text-align:left}svg{max-width:100%;height:auto}\
    .no{color:#c00;font-weight:bold}";

pub(super) fn of(outcome: &Outcome) -> Result<String> {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{name}</title><style>{STYLE}</style>\n\
         <h1>{name}</h1><p>{about}. Scale {scale}, seed {seed}.</p>\n",
        name = outcome.scenario,
        about = outcome.about,
        scale = outcome.scale,
        seed = outcome.seed
    );
    for goal in &outcome.goals {
        let (class, reached) =
            if goal.is_reached { ("yes", "reached") } else { ("no", "not reached") };
        let _ = writeln!(
            out,
            "<p><span class=\"{class}\">{reached}</span>: {}; it is {:.2}</p>",
            goal.goal, goal.value
        );
    }
    for rows in [outcome.felt(), outcome.whole(), outcome.slowest()] {
        table(&mut out, &rows);
    }
    let facts: Vec<Vec<String>> = outcome
        .facts
        .iter()
        .map(|fact| vec![fact.what.to_owned(), format!("{:.2}", fact.value)])
        .collect();
    if !facts.is_empty() {
        table(&mut out, &[vec![vec!["beside".to_owned(), String::new()]], facts].concat());
    }
    let _ = writeln!(out, "<p>{}</p>", outcome.books());
    if let Some(doubt) = outcome.doubt() {
        let _ = writeln!(out, "<p class=\"no\">{doubt}</p>");
    }
    out.push_str(&plots(outcome)?);
    let _ = writeln!(
        out,
        "<p>Latency is from when a commit was due to the 2xx, by second of the first. CPU is in cores. What goose \
         says of the same run: <a href=\"{0}-goose.html\">{0}-goose.html</a>; all figures: \
         <a href=\"{0}.json\">{0}.json</a></p></html>",
        outcome.scenario
    );
    Ok(out)
}

fn table(out: &mut String, rows: &[Vec<String>]) {
    out.push_str("<table>");
    for (n, row) in rows.iter().enumerate() {
        let tag = if n == 0 { "th" } else { "td" };
        let cells: String = row.iter().map(|cell| format!("<{tag}>{cell}</{tag}>")).collect();
        let _ = write!(out, "<tr>{cells}</tr>");
    }
    out.push_str("</table>\n");
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn plots(outcome: &Outcome) -> Result<String> {
    let marks: Vec<(&str, f64)> =
        outcome.phases.iter().map(|phase| (phase.name, phase.from)).collect();
    let latency = |of: fn(&Spread) -> f64| outcome.seconds.iter().map(|(_, s)| of(s)).collect();
    let seconds: Vec<f64> = outcome.seconds.iter().map(|(second, _)| *second).collect();
    let felt = Panel {
        title: "Latency of small accounts, ms",
        lines: vec![
            ("p50", latency(|s| s.p50)),
            ("p99", latency(|s| s.p99)),
            ("max", latency(|s| s.max)),
        ],
        is_logarithmic: true,
        ..Panel::default()
    };
    let of =
        |value: &dyn Fn(&Sample) -> f64| outcome.samples.iter().map(value).collect::<Vec<f64>>();
    let rate = |count: fn(&Sample) -> u64| -> Vec<f64> {
        let pairs = outcome.samples.windows(2).map(|pair| match pair {
            [a, b] => (count(b) - count(a)) as f64 / (b.seconds - a.seconds).max(f64::EPSILON),
            _ => 0.0,
        });
        std::iter::once(0.0).chain(pairs).collect()
    };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let panel = |title, lines| Panel { title, lines, ..Panel::default() };
    let panels = [
        panel(
            "Deliveries a second",
            vec![("small accounts", rate(|s| s.small)), ("the disturbance", rate(|s| s.others))],
        ),
        panel(
            "The disturbance's deliveries that wait",
            vec![("all", of(&|s| s.waiting as f64)), ("deferred", of(&|s| s.deferred))],
        ),
        panel("Requests in flight", vec![("fast", of(&|s| s.fast)), ("slow", of(&|s| s.slow))]),
        panel(
            "CPU, cores",
            vec![
                ("walhook", of(&|s| s.walhook_cpu)),
                ("PostgreSQL", of(&|s| s.server_cpu)),
                ("load test", of(&|s| s.own_cpu)),
            ],
        ),
        panel(
            "Free CPU and the disturbance's pace, %",
            vec![("free", of(&|s| s.free * 100.0)), ("pace", of(&|s| s.pace * 100.0))],
        ),
        panel(
            "Memory of walhook and WAL that its slot keeps, MiB",
            vec![("memory", of(&|s| mib(s.resident))), ("WAL", of(&|s| mib(s.wal_bytes)))],
        ),
    ];
    let times: Vec<f64> = outcome.samples.iter().map(|sample| sample.seconds).collect();
    Ok(svg(&seconds, &marks, &[felt])? + &svg(&times, &marks, &panels)?)
}
