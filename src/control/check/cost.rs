//! What the rules cost: all changes pass them one after the other, whose account they may be.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::Report;
use walhook_core::catalog::Catalog;
use walhook_rules::rule::{Probe, RuleSettings, subject};
use walhook_rules::settings::EventRule;

/// A row with ordinary texts should cost no more: ten thousand such rows a second fill one core.
const COSTLY: Duration = Duration::from_micros(100);

/// Nor one with large texts.
const COSTLY_WHEN_LARGE: Duration = Duration::from_millis(2);

/// Nor all rules of one table together.
const COSTLY_TOGETHER: Duration = Duration::from_micros(500);

/// An ordinary text: an e-mail address, a name.
const TEXT_BYTES: usize = 20;

/// A large one.
const LARGE_TEXT_BYTES: usize = 16 << 10;

/// The quickest of so many is taken: the others were disturbed.
const ROUNDS: usize = 10;

/// Rows of a round.
const ROWS: u32 = 10;

/// Measures the rules of tables.
pub(super) struct Costs<'a> {
    settings: RuleSettings<'a>,
    catalog: &'a Catalog,
    /// By table: how many rules, and what a row costs them together.
    tables: BTreeMap<&'a str, (usize, Duration)>,
}

impl<'a> Costs<'a> {
    pub(super) fn new(settings: RuleSettings<'a>, catalog: &'a Catalog) -> Self {
        Self { settings, catalog, tables: BTreeMap::new() }
    }

    /// What a row costs the rule, for its line; `None` where it has no rows. Warns where that is much.
    pub(super) fn measure(
        &mut self,
        index: usize,
        rule: &'a EventRule,
        report: &mut Report,
    ) -> Option<String> {
        let row = self.row(index, TEXT_BYTES)?;
        let large = self.row(index, LARGE_TEXT_BYTES)?;
        let of_table = self.tables.entry(rule.table.as_deref()?).or_default();
        *of_table = (of_table.0 + 1, of_table.1 + row);
        let cost = format!(
            "{} a row, {} where texts and json have {} KiB",
            shown(row),
            shown(large),
            LARGE_TEXT_BYTES >> 10
        );
        if row > COSTLY || large > COSTLY_WHEN_LARGE {
            let fix = "write simpler expressions and patterns, and the cheapest comparison first: all \
                        accounts wait for each row";
            report.warn(&subject(index, rule), format!("costs {cost}"), fix);
        }
        Some(cost)
    }

    /// Warns of tables whose rules cost much together.
    pub(super) fn finish(self, report: &mut Report) {
        for (table, (rules, row)) in self.tables {
            if rules > 1 && row > COSTLY_TOGETHER {
                let finding = format!("the {rules} rules of {table} cost {} a row", shown(row));
                report.warn("rules", finding, "write fewer rules, or simpler ones");
            }
        }
    }

    /// What the rule costs a row with texts of so many bytes, whether its condition holds for it or not.
    fn row(&self, index: usize, text_bytes: usize) -> Option<Duration> {
        let mut probe = Probe::new(self.settings, index, self.catalog, text_bytes)?;
        let costs = time(&mut probe);
        if probe.run() {
            return Some(costs);
        }
        // The condition spared the rest of the work.
        let mut unconditional: Vec<EventRule> = self.settings.events.to_vec();
        unconditional.get_mut(index)?.when = None;
        let settings = RuleSettings { events: &unconditional, ..self.settings };
        let mut probe = Probe::new(settings, index, self.catalog, text_bytes)?;
        Some(costs + time(&mut probe))
    }
}

fn time(probe: &mut Probe) -> Duration {
    let round = |probe: &mut Probe| {
        let start = cpu_time();
        for _ in 0..ROWS {
            black_box(probe.run());
        }
        cpu_time().saturating_sub(start) / ROWS
    };
    (0..ROUNDS).map(|_| round(probe)).min().unwrap_or_default()
}

/// The processor time that this thread has had: what others take of a busy machine is no cost of a rule.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

fn shown(cost: Duration) -> String {
    match cost.as_micros() {
        0 => "under 1 µs".to_owned(),
        micros @ 1..10_000 => format!("{micros} µs"),
        micros => format!("{} ms", micros / 1000),
    }
}
