//! The JSON of each view is contract: what `--json` prints stands in `contract/`, with everything and with as
//! little as there may be. `WALHOOK_UPDATE_DOCS=1` writes it anew; a field may be added, none renamed or
//! removed.

pub(crate) mod sample;

use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

/// What a command prints in one case.
fn case(name: &'static str, view: &impl Serialize) -> (&'static str, Value) {
    (name, serde_json::to_value(view).unwrap())
}

/// The file of a command, and its cases.
type Contract = (&'static str, Vec<(&'static str, Value)>);

fn contracts() -> Vec<Contract> {
    let mut all = queries();
    all.extend(commands());
    all
}

fn queries() -> Vec<Contract> {
    vec![
        ("check", vec![case("whole", &sample::check())]),
        (
            "checkpoint_show",
            vec![
                case("whole", &sample::positions()),
                case("of a lost slot", &sample::positions_of_a_lost_slot()),
            ],
        ),
        ("config_validate", vec![case("whole", &sample::valid())]),
        (
            "dead_letters_list",
            vec![
                case("whole", &sample::dead_letter_page()),
                case("empty", &sample::empty_dead_letter_page()),
            ],
        ),
        ("dead_letters_show", vec![case("whole", &sample::whole_dead_letter())]),
        (
            "deferred_list",
            vec![
                case("whole", &sample::deferred_page()),
                case("empty", &sample::empty_deferred_page()),
            ],
        ),
        ("endpoints_list", vec![case("whole", &sample::endpoint_page())]),
        ("events_count", vec![case("whole", &sample::line_counts())]),
        ("events_list", vec![case("whole", &sample::line_page())]),
        (
            "events_show",
            vec![case("whole", &sample::event()), case("unknown", &sample::unknown_event())],
        ),
        ("gaps_list", vec![case("whole", &sample::gap_list())]),
        ("health", vec![case("whole", &sample::health())]),
        ("replay_list", vec![case("whole", &sample::replay_list())]),
        ("replay_start_dry_run", vec![case("whole", &sample::counts())]),
        (
            "status",
            vec![
                case("whole", &sample::status()),
                case("of little", &sample::status_of_little()),
                case("unanswered", &sample::unanswered()),
            ],
        ),
        (
            "workers_list",
            vec![
                case("whole", &sample::workers()),
                case("of a standby", &sample::unknown_workers()),
            ],
        ),
    ]
}

fn commands() -> Vec<Contract> {
    let job = vec![case("whole", &sample::job()), case("ended early", &sample::job_with_error())];
    vec![
        ("checkpoint_reset_skip", vec![case("whole", &sample::skipped())]),
        ("dead_letters_discard", vec![case("whole", &sample::discarded())]),
        ("dead_letters_retry", vec![case("whole", &sample::retried())]),
        ("deferred_discard", {
            let mut cases = job.clone();
            cases.push(case("nothing", &sample::discarded()));
            cases
        }),
        ("deferred_retry", job),
        ("endpoints_pause", vec![case("whole", &sample::stopped())]),
        (
            "endpoints_test",
            vec![case("taken", &sample::probe()), case("failed", &sample::failed_probe())],
        ),
        ("events_erase", vec![case("whole", &sample::erased())]),
        ("gaps_close", vec![case("whole", &sample::closed_gap())]),
        (
            "recover",
            vec![
                case("whole", &sample::recovered()),
                case("nothing", &sample::nothing_to_recover()),
                case("of one transaction", &sample::skipped_change()),
            ],
        ),
        ("replay_cancel", vec![case("whole", &sample::cancelled())]),
        (
            "replay_start",
            vec![case("whole", &sample::replay()), case("of everything", &sample::plain_replay())],
        ),
        ("setup", vec![case("whole", &sample::setup()), case("--print-sql", &sample::script())]),
        ("teardown", vec![case("whole", &sample::torn_down())]),
        ("upgrade_finish", vec![case("whole", &sample::finished())]),
        ("upgrade_prepare", vec![case("whole", &sample::prepared())]),
    ]
}

#[test]
fn json_of_each_view_is_as_its_contract_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/control/contract");
    let update = std::env::var_os("WALHOOK_UPDATE_DOCS").is_some();
    let mut wrong = Vec::new();
    for (name, cases) in contracts() {
        let cases: serde_json::Map<String, Value> =
            cases.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let now = format!("{}\n", serde_json::to_string_pretty(&cases).unwrap());
        let path = folder.join(format!("{name}.json"));
        if update {
            std::fs::write(&path, now).unwrap();
        } else if std::fs::read_to_string(&path).unwrap_or_default() != now {
            wrong.push(format!("{name}.json says otherwise; now it is\n{now}"));
        }
    }
    assert!(wrong.is_empty(), "WALHOOK_UPDATE_DOCS=1 writes them anew:\n{}", wrong.join("\n"));
}

/// A view that no sample makes would be free to change.
#[test]
fn each_view_has_a_sample() {
    fn views(folder: &Path, found: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                views(&path, found);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let mut lines = text.lines();
            while let Some(line) = lines.next() {
                if !line.starts_with("#[derive(") || !line.contains("Serialize") {
                    continue;
                }
                let item = lines.find(|line| line.contains("struct ") || line.contains("enum "));
                let words = item.unwrap().split([' ', '<', '{']);
                let name = words.skip_while(|word| *word != "struct" && *word != "enum").nth(1);
                found.push((name.unwrap().to_owned(), path.display().to_string()));
            }
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/control");
    let mut found = Vec::new();
    views(&folder, &mut found);
    assert!(found.len() > 40, "{found:?}");
    let samples = std::fs::read_dir(folder.join("contract/sample")).unwrap();
    let mut samples: Vec<_> = samples.map(|entry| entry.unwrap().path()).collect();
    samples.push(folder.join("contract/sample.rs"));
    let samples: String =
        samples.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    for (name, path) in found {
        let is_made =
            samples.contains(&format!("{name} {{")) || samples.contains(&format!("{name}::"));
        assert!(is_made, "{path}: {name} has no sample in contract/sample");
    }
}

/// Names, not numbers: of a JSON `null` a reader knows what is missing.
#[test]
fn json_of_each_view_is_one_object() {
    for (name, cases) in contracts() {
        for (case, value) in cases {
            assert!(value.is_object() && value != json!({}), "{name}, {case}: {value}");
        }
    }
}
