//! What came of a run: its figures by phase, what was to be reached, and the audit.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::disturbance::Capacity;
pub use super::disturbance::Fact;
use super::explained::{Slowest, from_commit};
use super::figures::{Delivery, Felt, by_second, calm_again};
use super::scenario::{Goal, Scenario};
pub use super::watch::Sample;
use super::{Options, page};
use crate::sample::Spread;
use crate::waits::Line;

/// What a run has measured.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) deliveries: Vec<Delivery>,
    pub(super) lines: Vec<Line>,
    pub(super) phases: Vec<(&'static str, Duration)>,
    pub(super) samples: Vec<Sample>,
    pub(super) facts: Vec<Fact>,
    pub(super) capacity: Option<Capacity>,
    pub(super) load: [f64; 2],
    pub(super) audit: Audited,
}

/// One phase. CPU is in cores.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Phase {
    /// Which one.
    pub name: &'static str,
    /// Since the books were opened, in seconds.
    pub from: f64,
    /// How long it took.
    pub seconds: f64,
    /// By small accounts.
    pub felt: Felt,
    /// The same from the commit on, as the delivery log has it.
    pub from_commit_ms: Spread,
    /// Where the time of the slowest of them went.
    pub slowest: Slowest,
    /// To all endpoints, a second.
    pub deliveries: f64,
    /// Of walhook.
    pub walhook_cpu: f64,
    /// Of PostgreSQL.
    pub server_cpu: f64,
    /// Of writers, receivers and goose.
    pub own_cpu: f64,
    /// What of the machine nobody used, from 0 to 1.
    pub free: f64,
    /// The share of its rate at which the disturbance wrote.
    pub pace: f64,
    /// Of walhook, at most, in bytes.
    pub resident: u64,
    /// That the slot made the server keep, at most, in bytes.
    pub wal_bytes: u64,
}

/// All that was committed held against all that came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Audited {
    /// Deliveries that came.
    pub delivered: u64,
    /// Neither came nor stand in a table.
    pub lost: u64,
    /// Stand in a table when the run is over.
    pub in_tables: u64,
    /// Came again.
    pub duplicates: u64,
    /// Came behind a later one of their row.
    pub out_of_order: u64,
    /// Were never committed, or came with another id or body.
    pub invented: u64,
}

/// A goal, and what was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Judged {
    /// In words.
    pub goal: String,
    /// What it was.
    pub value: f64,
    /// Whether that reaches it.
    pub is_reached: bool,
}

/// See the module's documentation.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The scenario's name.
    pub scenario: &'static str,
    /// And what happens in it.
    pub about: &'static str,
    /// Of its sizes.
    pub scale: f64,
    /// Of the times of commits.
    pub seed: u64,
    /// In order.
    pub phases: Vec<Phase>,
    /// What small accounts felt in both calm phases together.
    pub calm_ms: Spread,
    /// The share of the slots that could be used while the disturbance waited, where that is known.
    pub work_conservation: Option<f64>,
    /// What else was measured.
    pub facts: Vec<Fact>,
    /// What was to be reached.
    pub goals: Vec<Judged>,
    /// The books.
    pub audit: Audited,
    /// The machine's load average, before and behind.
    pub load: [f64; 2],
    /// Latencies of small accounts by second.
    pub seconds: Vec<(f64, Spread)>,
    /// Twice a second.
    pub samples: Vec<Sample>,
}

impl Outcome {
    pub(super) fn of(scenario: &Scenario, options: &Options, measured: Measured) -> Self {
        let Measured { deliveries, lines, samples, facts, capacity, load, audit, .. } = measured;
        let ends = measured.phases.iter().skip(1).map(|(_, from)| *from);
        let bounds: Vec<_> =
            measured.phases.iter().zip(ends).map(|((name, from), to)| (*name, *from, to)).collect();
        let phases: Vec<Phase> = bounds
            .iter()
            .map(|(name, from, to)| Phase {
                from_commit_ms: from_commit(&lines, (*from, *to)),
                slowest: Slowest::of(&deliveries, &lines, (*from, *to)),
                ..phase(name, *from, *to, &deliveries, &samples)
            })
            .collect();
        let is_calm = |due: Duration| {
            bounds
                .iter()
                .any(|(name, from, to)| name.starts_with("calm") && (*from..*to).contains(&due))
        };
        let calm = deliveries.iter().filter(|d| is_calm(d.due));
        let calm = calm.filter_map(|d| Some(d.at?.saturating_sub(d.due).as_secs_f64() * 1e3));
        let calm_ms = Spread::of(calm.collect());
        let (disturbed, from, to) = bounds
            .iter()
            .zip(&phases)
            .find(|((name, ..), _)| *name == "disturbed")
            .map(|((_, from, to), phase)| (phase.clone(), *from, *to))
            .unwrap_or_default();
        let its = |s: &&Sample| (from.as_secs_f64()..to.as_secs_f64()).contains(&s.seconds);
        let its: Vec<Sample> = samples.iter().filter(its).copied().collect();
        let work_conservation = capacity.and_then(|capacity| {
            let grown = (from + capacity.after).as_secs_f64();
            let its: Vec<Sample> = its.iter().filter(|s| s.seconds >= grown).copied().collect();
            conserved(&its, capacity)
        });
        let mut outcome = Self {
            scenario: scenario.name,
            about: scenario.about,
            scale: options.scale,
            seed: options.seed,
            phases,
            calm_ms,
            work_conservation,
            facts,
            goals: Vec::new(),
            audit,
            load,
            seconds: by_second(&deliveries, Duration::ZERO),
            samples,
        };
        let again = calm_again(&deliveries, from, to, calm_ms.max.max(calm_ms.p99 + 2.0));
        outcome.goals = scenario
            .goals
            .iter()
            .filter_map(|goal| outcome.judge(*goal, &disturbed, &its, again))
            .collect();
        outcome
    }

    /// None where what it asks for was not measured.
    fn judge(
        &self,
        goal: Goal,
        disturbed: &Phase,
        its: &[Sample],
        again: Option<f64>,
    ) -> Option<Judged> {
        let felt = &disturbed.felt;
        let (goal, value, is_reached) = match goal {
            Goal::Beyond(ms) => {
                let value = felt.latency_ms.p99 - self.calm_ms.p99;
                (format!("p99 at most {ms} ms above the calm"), value, value <= ms)
            }
            Goal::P99(ms) => {
                let value = felt.latency_ms.p99;
                (format!("p99 at most {ms} ms"), value, value <= ms)
            }
            Goal::Max(ms) => {
                let value = felt.latency_ms.max;
                (format!("maximum at most {ms} ms"), value, value <= ms)
            }
            Goal::CalmWithin(seconds) => {
                let value = again.unwrap_or(f64::INFINITY);
                (format!("as the calm again within {seconds} s"), value, value <= seconds)
            }
            Goal::Standstill(seconds) => {
                let value = felt.standstill_seconds;
                (
                    format!("no account owed something gets nothing for {seconds} s"),
                    value,
                    value <= seconds,
                )
            }
            Goal::Conserves(share) => {
                let value = self.work_conservation?;
                (format!("work conservation at least {share}"), value, value >= share)
            }
            Goal::Fact(what, most) => {
                let value = self.facts.iter().find(|fact| fact.what == what)?.value;
                (format!("{what} at most {most}"), value, value <= most)
            }
            Goal::Flat(most) => {
                let value = growth(its)?;
                (
                    format!("memory of the last quarter at most {most} of the second's"),
                    value,
                    value <= most,
                )
            }
        };
        Some(Judged { goal, value, is_reached })
    }

    /// Writes `<scenario>.html` and `<scenario>.json` into a directory.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let file = |ending: &str| directory.join(format!("{}.{ending}", self.scenario));
        for (ending, text) in
            [("json", serde_json::to_string(self)? + "\n"), ("html", page::of(self)?)]
        {
            let file = file(ending);
            std::fs::write(&file, text)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    /// Fails where a delivery was lost, changed, invented or came out of order. Goals that were not reached do not
    /// count: a busy machine misses them too.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn ensure(&self) -> Result<()> {
        let Audited { lost, out_of_order, invented, .. } = self.audit;
        ensure!([lost, out_of_order, invented] == [0; 3], "the audit failed: {}", self.books());
        Ok(())
    }
}

fn phase(
    name: &'static str,
    from: Duration,
    to: Duration,
    deliveries: &[Delivery],
    samples: &[Sample],
) -> Phase {
    let its = |s: &&Sample| (from.as_secs_f64()..to.as_secs_f64()).contains(&s.seconds);
    let its: Vec<Sample> = samples.iter().filter(its).copied().collect();
    let all: Vec<&Sample> = its.iter().collect();
    #[expect(clippy::cast_precision_loss, reason = "counts of a test")]
    let rate = match (its.first(), its.last()) {
        (Some(first), Some(last)) if last.seconds > first.seconds => {
            let delivered = last.small + last.others - first.small - first.others;
            delivered as f64 / (last.seconds - first.seconds)
        }
        _ => 0.0,
    };
    Phase {
        name,
        from: from.as_secs_f64(),
        seconds: to.saturating_sub(from).as_secs_f64(),
        felt: Felt::of(deliveries, from, to),
        from_commit_ms: Spread::default(),
        slowest: Slowest::default(),
        deliveries: rate,
        walhook_cpu: mean(&all, |s| s.walhook_cpu),
        server_cpu: mean(&all, |s| s.server_cpu),
        own_cpu: mean(&all, |s| s.own_cpu),
        free: mean(&all, |s| s.free),
        pace: mean(&all, |s| s.pace),
        resident: its.iter().map(|s| s.resident).max().unwrap_or_default(),
        wal_bytes: its.iter().map(|s| s.wal_bytes).max().unwrap_or_default(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a number of samples")]
fn mean(samples: &[&Sample], value: impl Fn(&Sample) -> f64) -> f64 {
    if samples.is_empty() {
        return 0.0;
    }
    samples.iter().map(|sample| value(sample)).sum::<f64>() / samples.len() as f64
}

/// The share of the slots' time for which endpoints worked, while more than twice as much waited as there are slots: a
/// slot that is free does not count, nor one whose request is not with its endpoint yet, or its answer not with us.
#[expect(clippy::cast_precision_loss, reason = "counts of a test")]
fn conserved(samples: &[Sample], capacity: Capacity) -> Option<f64> {
    let Capacity { in_flight, delay, .. } = capacity;
    let waits = |s: &Sample| s.waiting > u64::from(in_flight) * 2;
    let (mut delivered, mut seconds) = (0, 0.0);
    for pair in samples.windows(2) {
        if let [before, after] = pair
            && waits(before)
            && waits(after)
        {
            delivered += after.others - before.others;
            seconds += after.seconds - before.seconds;
        }
    }
    let most = f64::from(in_flight) * seconds;
    (seconds > 0.0).then(|| delivered as f64 * delay.as_secs_f64() / most)
}

/// Resident memory of the last quarter of the samples, divided by that of the second.
#[expect(clippy::cast_precision_loss, reason = "bytes")]
fn growth(samples: &[Sample]) -> Option<f64> {
    let quarter = samples.len() / 4;
    let of = |n: usize| {
        let its: Vec<&Sample> = samples.iter().skip(n * quarter).take(quarter).collect();
        mean(&its, |sample| sample.resident as f64)
    };
    (quarter > 0 && of(1) > 0.0).then(|| of(3) / of(1))
}

#[cfg(test)]
mod tests;
