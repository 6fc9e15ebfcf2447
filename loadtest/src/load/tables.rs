//! The tables of a run, for people.

use super::outcome::{Audited, Fact, Judged, Outcome, Phase};
use crate::report::{mib, table};
use crate::sample::Spread;

impl Outcome {
    /// Prints the tables.
    pub fn print(&self) {
        println!("\n{}: {}\n", self.scenario, self.about);
        table(&self.felt());
        println!();
        table(&self.whole());
        println!();
        table(&self.slowest());
        println!();
        for Fact { what, value } in &self.facts {
            println!("{value:.2} {what}");
        }
        for Judged { goal, value, is_reached } in &self.goals {
            let reached = if *is_reached { "reached" } else { "NOT reached" };
            println!("{reached}: {goal}; it is {value:.2}");
        }
        println!("{}", self.books());
        if let Some(doubt) = self.doubt() {
            println!("{doubt}");
        }
    }

    /// Why its times say little, where they do.
    pub(super) fn doubt(&self) -> Option<&'static str> {
        let is_short = |phase: &Phase| phase.name.starts_with("calm") && phase.free < FREE_LEAST;
        self.phases.iter().any(is_short).then_some(
            "the machine had no CPU left even in the calm: times tell of its scheduler, and no goal can be judged",
        )
    }

    pub(super) fn books(&self) -> String {
        let Audited { delivered, lost, in_tables, duplicates, out_of_order, invented } = self.audit;
        let [before, after] = self.load;
        format!(
            "delivered {delivered}, lost {lost}, in the tables {in_tables}, duplicates {duplicates}, out of \
             order {out_of_order}, invented {invented}; load average {before:.1} before, {after:.1} behind"
        )
    }

    /// What small accounts felt, by phase.
    pub(super) fn felt(&self) -> Vec<Vec<String>> {
        let head = [
            "small accounts",
            "s",
            "events",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "max ms",
            "p99 from the commit",
            "longest without, s",
            "Jain, median",
            "least",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for Phase { name, seconds, felt, from_commit_ms, .. } in &self.phases {
            let Spread { n, p50, p99, p999, max, .. } = felt.latency_ms;
            rows.push(vec![
                (*name).to_owned(),
                format!("{seconds:.1}"),
                n.to_string(),
                format!("{p50:.2}"),
                format!("{p99:.2}"),
                format!("{p999:.2}"),
                format!("{max:.1}"),
                format!("{:.2}", from_commit_ms.p99),
                format!("{:.3}", felt.standstill_seconds),
                format!("{:.3}", felt.jain),
                format!("{:.3}", felt.jain_least),
            ]);
        }
        rows
    }

    /// Where the time of the slowest went, by phase.
    pub(super) fn slowest(&self) -> Vec<Vec<String>> {
        let head = ["the slowest hundredth", "events", "ms", "to the commit", "from it to the 2xx"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for Phase { name, slowest, .. } in &self.phases {
            rows.push(vec![
                (*name).to_owned(),
                slowest.deliveries.to_string(),
                format!("{:.2}", slowest.took_ms),
                format!("{:.2}", slowest.commit_ms),
                slowest.causes_ms.to_string(),
            ]);
        }
        rows
    }

    /// What the whole did, by phase.
    pub(super) fn whole(&self) -> Vec<Vec<String>> {
        let head = [
            "the whole",
            "deliveries/s",
            "work conservation",
            "CPU free",
            "walhook",
            "PostgreSQL",
            "load test",
            "pace",
            "memory",
            "WAL kept",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for phase in &self.phases {
            let conserved = self.work_conservation.filter(|_| phase.name == "disturbed");
            rows.push(vec![
                phase.name.to_owned(),
                if phase.deliveries > 0.0 {
                    format!("{:.0}", phase.deliveries)
                } else {
                    NONE.to_owned()
                },
                conserved
                    .map_or_else(|| NONE.to_owned(), |share| format!("{:.1} %", share * 100.0)),
                format!("{:.0} %", phase.free * 100.0),
                format!("{:.2}", phase.walhook_cpu),
                format!("{:.2}", phase.server_cpu),
                format!("{:.2}", phase.own_cpu),
                format!("{:.0} %", phase.pace * 100.0),
                mib(phase.resident),
                mib(phase.wal_bytes),
            ]);
        }
        rows
    }
}

/// With less of the machine free while nothing disturbs, others use it.
const FREE_LEAST: f64 = 0.1;

/// Stands where nothing was measured.
const NONE: &str = "–";
