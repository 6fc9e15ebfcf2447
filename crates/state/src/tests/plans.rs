//! Each statement has one plan, whatever the statistics say.
//!
//! Everything that the store does is done on tables of several sizes, with statistics that say nothing,
//! little, too much or the truth. `auto_explain` logs the plan of every statement of it as it was carried
//! out, so that none is missed: they must be the same each time, and may read no more than the step is
//! worth. A method of the store that no step calls fails the test, and so does a part of a batch.

mod exercise;
mod fill;
mod log;

use std::collections::BTreeSet;
use std::path::Path;

use self::fill::{Statistics, fill, set_statistics};
use self::log::{Log, Plan, ROLE, Shapes};
use super::super::fixture::{Fixture, SCHEMA, is_long};
use crate::{SCHEMA_VERSION, StateStore};
use walhook_core::endpoint::Secret;
use walhook_postgres::ident::quote_ident;

/// What a step may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    /// Some rows for each that it is about.
    Few,
    /// The tables that it is about, once each: a report, an operator's command, a start.
    Once,
    /// Likewise, but only some rows for each that it is about while it holds the leader off.
    OnceAhead,
}

/// A step of [`Reads::Few`] is about some dozen rows.
const FEW: f64 = 1_500.0;

#[tokio::test]
async fn statement_has_one_plan_and_reads_what_it_is_about_whatever_the_statistics_say() {
    let fixture = Fixture::start_with(&[("autovacuum", "off"), ("log_line_prefix", "%a|")]).await;
    fixture.admin.batch_execute(ROLE).await.unwrap();
    let raise =
        format!("UPDATE {}.meta SET schema_version = {SCHEMA_VERSION}", quote_ident(SCHEMA));
    fixture.admin.batch_execute(&raise).await.unwrap();
    let url = Secret::new(fixture.cluster.url("postgres").replace("postgres@", "recorded@"));
    let mut store = StateStore::open(&url, SCHEMA, "p").await.unwrap();
    let mut log = Log::new();
    let (mut shapes, mut steps, mut wrong) = (Shapes::new(), BTreeSet::new(), Vec::new());
    let mut filled = 0;
    let (none, empty) = (Statistics::None, Statistics::Rows(0));
    let many = Statistics::Rows(50_000_000);
    let mut sizes = vec![
        (1, vec![none]),
        (300, vec![none, empty, Statistics::True]),
        (10_000, vec![Statistics::Stale, empty, many, Statistics::True]),
    ];
    if is_long() {
        sizes.push((50_000, vec![Statistics::Stale, none, Statistics::Rows(1)]));
    }
    for (rows, all) in sizes {
        fill(&fixture, filled, rows).await;
        filled = rows;
        for statistics in all {
            set_statistics(&fixture, statistics).await;
            let done = exercise::run(&mut store, rows).await;
            let at = format!("{rows} rows, statistics {statistics:?}");
            let mut held = Held::default();
            for plan in log.plans(&fixture) {
                let Some(reads) = done.get(&*plan.step) else { continue };
                let is_held = held.is_in(&plan);
                let reads = match reads {
                    Reads::OnceAhead if is_held => Reads::Few,
                    Reads::OnceAhead => Reads::Once,
                    Reads::Few | Reads::Once => *reads,
                };
                let most = match reads {
                    Reads::Few => FEW,
                    #[expect(clippy::cast_precision_loss, reason = "a bound")]
                    Reads::Once | Reads::OnceAhead => FEW + 12.0 * rows as f64,
                };
                if plan.rows > most || plan.pages > most / 4.0 {
                    wrong.push(format!("{at}: {plan:#?}"));
                }
                let shape = match reads {
                    Reads::Few => plan.shape,
                    Reads::Once | Reads::OnceAhead => plan.scans(),
                };
                let seen = shapes.entry((plan.step, plan.sql)).or_default();
                seen.entry(shape).or_insert_with(|| at.clone());
            }
            steps.extend(done.into_keys());
        }
    }
    println!("{} statements of {} steps", shapes.len(), steps.len());
    assert!(wrong.is_empty(), "{} read too much\n{}", wrong.len(), wrong.join("\n"));
    let several = shapes.iter().filter(|(_, seen)| seen.len() > 1).map(|((step, sql), seen)| {
        let plans: Vec<String> = seen.iter().map(|(plan, at)| format!("{at}:\n{plan}")).collect();
        format!("{step}: {sql}\n{}", plans.join("\n"))
    });
    let several: Vec<String> = several.collect();
    assert!(several.is_empty(), "{} have several plans\n{}", several.len(), several.join("\n\n"));
    assert!(shapes.len() > 150, "only {} statements were logged", shapes.len());
    let methods = methods();
    assert!(methods.len() > 60, "{methods:?}");
    let missing: Vec<_> = methods.iter().filter(|name| !steps.contains(&***name)).collect();
    assert!(missing.is_empty(), "no step of the exercise calls {missing:?}");
}

/// Which statements of a step are sent while it holds the leader off: those from the lock on, until it asks once more
/// what it asked before it.
#[derive(Default)]
struct Held {
    step: String,
    ahead: BTreeSet<String>,
    is_held: bool,
}

impl Held {
    fn is_in(&mut self, Plan { step, sql, .. }: &Plan) -> bool {
        if self.step != *step {
            *self = Self { step: step.clone(), ..Self::default() };
        }
        self.is_held &= !self.ahead.contains(sql);
        self.is_held |= sql.contains("FOR NO KEY UPDATE");
        if !self.is_held {
            self.ahead.insert(sql.clone());
        }
        self.is_held
    }
}

/// The asynchronous methods of the store, read from the sources.
fn methods() -> BTreeSet<String> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files: Vec<_> =
        std::fs::read_dir(&sources).unwrap().map(|f| f.unwrap().path()).collect();
    files.push(sources.join("persist/mod.rs"));
    let log = std::fs::read_dir(sources.join("deliveries")).unwrap();
    files.extend(log.map(|file| file.unwrap().path()));
    let mut found = BTreeSet::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "rs")) {
        // Its functions take a session of `setup`'s.
        if file.ends_with("slots.rs") || file.ends_with("relations.rs") {
            continue;
        }
        let text = std::fs::read_to_string(file).unwrap();
        let names = text.lines().filter_map(|l| l.trim().strip_prefix("pub async fn "));
        found.extend(names.map(|name| name.split('(').next().unwrap().to_owned()));
    }
    found
}
