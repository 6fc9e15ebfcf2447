//! The demo's end: every delivery accounted for.

use std::fmt;

use serde::Serialize;

use walhook_testkit::oracle::{Oracle, Tally};

use super::plan::Class;
use super::view::{bytes, grouped, millis};
use super::waits::WaitSummary;
use super::workers::WorkerSummary;

/// What became of everything that was committed. Counts are deliveries unless they say otherwise.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Events, from the writers' acknowledged commits.
    pub committed: u64,
    /// What must come of them.
    pub expected: u64,
    /// Distinct, from the receivers' verified requests.
    pub delivered: u64,
    /// Waiting in the table `deferred`.
    pub deferred: u64,
    /// In `dead_letters`, and never received.
    pub dead_letters: u64,
    /// Of endpoints that were removed; the demo removes none.
    pub dropped: u64,
    /// Expected less the four above: must be 0.
    pub lost: u64,
    /// Requests that repeated a delivery.
    pub duplicates: u64,
    /// Requests with a good signature that were answered 2xx, repeats included.
    pub signatures_verified: u64,
    /// Requests with a bad signature: must be 0.
    pub signatures_refused: u64,
    /// Deliveries of what was never committed: must be 0.
    pub invented: u64,
    /// Deliveries whose event id or body changed: must be 0.
    pub changed_ids: u64,
    /// First deliveries out of their row's order: must be 0.
    pub out_of_order: u64,
    /// How often the pipeline was killed.
    pub kills: u32,
    /// How long the traffic ran.
    pub seconds: f64,
    /// WAL that the slot retained at the end.
    pub retained_wal_bytes: Option<u64>,
    /// Small accounts whose endpoints work.
    pub small: ClassSummary,
    /// The one with an endpoint that takes two seconds.
    pub slow: ClassSummary,
    /// The one with an endpoint that answers 503 now and then.
    pub flaky: ClassSummary,
    /// The one with an endpoint that refuses to connect.
    pub dead: ClassSummary,
    /// The whale.
    pub whale: ClassSummary,
    /// What each worker did, where there were some.
    pub workers: Vec<WorkerSummary>,
    /// Where the time went, as the pipeline counts it.
    pub waits: WaitSummary,
}

/// The same of one class of account.
#[derive(Debug, Clone, Serialize)]
pub struct ClassSummary {
    /// Events.
    pub committed: u64,
    /// What must come of them.
    pub expected: u64,
    /// Distinct.
    pub delivered: u64,
    /// Waiting in the table, and never received.
    pub deferred: u64,
    /// Never received.
    pub dead_letters: u64,
    /// Must be 0.
    pub lost: u64,
    /// From before the COMMIT to the 2xx; null without a delivery.
    pub p50_ms: Option<f64>,
    /// Likewise.
    pub p99_ms: Option<f64>,
    /// The same without what was waiting while the pipeline was down.
    pub p99_undisturbed_ms: Option<f64>,
}

impl ClassSummary {
    fn new(tally: &Tally) -> Self {
        let ms = |time: Option<std::time::Duration>| {
            time.map(|time| (time.as_secs_f64() * 10_000.0).round() / 10.0)
        };
        Self {
            committed: tally.committed,
            expected: tally.expected,
            delivered: tally.delivered,
            deferred: tally.deferred,
            dead_letters: tally.dead,
            lost: tally.waiting(),
            p50_ms: ms(tally.latency(50)),
            p99_ms: ms(tally.latency(99)),
            p99_undisturbed_ms: ms(tally.calm_latency(99)),
        }
    }
}

impl Summary {
    /// Closes the books.
    #[must_use]
    pub fn new(oracle: &Oracle, kills: u32, seconds: f64, retained: Option<u64>) -> Self {
        let class = |class: Class| ClassSummary::new(&oracle.tally(class.group()));
        let [small, slow, flaky, dead, whale] = Class::ALL.map(class);
        let sum = |field: fn(&ClassSummary) -> u64| -> u64 {
            [&small, &slow, &flaky, &dead, &whale].into_iter().map(field).sum()
        };
        let faults = oracle.faults();
        Self {
            committed: sum(|c| c.committed),
            expected: sum(|c| c.expected),
            delivered: sum(|c| c.delivered),
            deferred: sum(|c| c.deferred),
            dead_letters: sum(|c| c.dead_letters),
            dropped: 0,
            lost: sum(|c| c.lost),
            duplicates: oracle.duplicates(),
            signatures_verified: oracle.taken(),
            signatures_refused: faults.unverified,
            invented: faults.invented,
            changed_ids: faults.changed_ids + faults.changed_bodies,
            out_of_order: faults.out_of_order,
            kills,
            seconds: (seconds * 10.0).round() / 10.0,
            retained_wal_bytes: retained,
            small,
            slow,
            flaky,
            dead,
            whale,
            workers: Vec::new(),
            waits: WaitSummary::default(),
        }
    }

    /// What must be 0 and is not, in words; `None` when all is well.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let faults: Vec<String> = [
            (self.lost, "lost"),
            (self.invented, "never committed"),
            (self.signatures_refused, "with a bad signature"),
            (self.changed_ids, "with a changed id"),
            (self.out_of_order, "out of order"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{} {what}", grouped(count)))
        .collect();
        (!faults.is_empty()).then(|| format!("deliveries: {}", faults.join(", ")))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<7}{:>10}{:>9}{:>10}{:>9}{:>6}{:>6}{:>10}{:>10}{:>10}",
            "account",
            "committed",
            "expected",
            "delivered",
            "deferred",
            "dead",
            "lost",
            "p50",
            "p99",
            "p99 calm"
        )?;
        let classes = [&self.small, &self.slow, &self.flaky, &self.dead, &self.whale];
        for (class, counts) in Class::ALL.into_iter().zip(classes) {
            writeln!(
                f,
                "{:<7}{:>10}{:>9}{:>10}{:>9}{:>6}{:>6}{:>10}{:>10}{:>10}",
                class.as_str(),
                grouped(counts.committed),
                grouped(counts.expected),
                grouped(counts.delivered),
                grouped(counts.deferred),
                grouped(counts.dead_letters),
                grouped(counts.lost),
                millis(counts.p50_ms),
                millis(counts.p99_ms),
                millis(counts.p99_undisturbed_ms)
            )?;
        }
        writeln!(
            f,
            "\nfrom before the COMMIT to the endpoint's 2xx; calm: without what was waiting \
             while the\npipeline was down"
        )?;
        let kills = if self.kills == 0 { "no SIGKILL" } else { "a SIGKILL in the middle" };
        write!(
            f,
            "\n{} deliveries were due for {} committed events, with {kills}: {} delivered, {} \
             deferred, {} dead letters, {} lost; {} sent twice, {} signatures verified",
            grouped(self.expected),
            grouped(self.committed),
            grouped(self.delivered),
            grouped(self.deferred),
            grouped(self.dead_letters),
            grouped(self.lost),
            grouped(self.duplicates),
            grouped(self.signatures_verified),
        )?;
        match self.retained_wal_bytes {
            Some(retained) => writeln!(f, "; the slot retains {} of WAL now.", bytes(retained))?,
            None => writeln!(f, ".")?,
        }
        if self.waits.quiet.delivered + self.waits.noisy.delivered > 0 {
            write!(f, "\n{}", self.waits)?;
        }
        for (n, worker) in self.workers.iter().enumerate() {
            write!(f, "\nworker {} began {} requests", n + 1, grouped(worker.carried))?;
            if let Some(seconds) = worker.killed_after_seconds {
                write!(f, ", until it was killed after {seconds} s")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::plan;
    use std::time::Duration;
    use walhook_testkit::change::{Change, Kind};
    use walhook_testkit::oracle::Receipt;

    fn summary_of(received: usize) -> Summary {
        let mut oracle = Oracle::new(&plan::owed(&plan::endpoints(&plan::accounts())));
        let changes: Vec<_> =
            (1..=3).map(|n| Change { kind: Kind::Created, id: n, version: n }).collect();
        oracle.committed(11, &changes, Duration::ZERO);
        for &change in &changes[..received] {
            let event_id = &change.id.to_string();
            let receipt =
                Receipt { endpoint: 11, event_id, change, body: b"", taken: true, replay: false };
            oracle.received(receipt, Duration::from_millis(5));
        }
        Summary::new(&oracle, 1, 60.0, Some(1 << 20))
    }

    #[test]
    fn summary_accounts_for_every_delivery() {
        let summary = summary_of(3);
        assert_eq!((summary.expected, summary.delivered, summary.lost), (3, 3, 0));
        assert_eq!(summary.fault(), None);
        assert_eq!(summary.small.p99_ms, Some(5.0));
        assert!(summary.to_string().contains("3 delivered, 0 deferred, 0 dead letters, 0 lost"));
    }

    #[test]
    fn summary_is_a_fault_when_a_delivery_is_lost() {
        assert_eq!(summary_of(2).fault().as_deref(), Some("deliveries: 1 lost"));
    }

    #[test]
    fn summary_has_the_keys_that_scripts_read() {
        let json = serde_json::to_value(summary_of(3)).unwrap();
        for key in [
            "committed",
            "expected",
            "delivered",
            "deferred",
            "dead_letters",
            "dropped",
            "lost",
            "duplicates",
            "signatures_verified",
        ] {
            assert!(json[key].is_u64(), "{key}");
        }
        for key in ["p50_ms", "p99_ms"] {
            assert!(json["small"][key].is_f64() && json["whale"].get(key).is_some(), "{key}");
        }
    }
    #[test]
    fn summary_says_what_each_worker_did_and_which_was_killed() {
        let killed = WorkerSummary { carried: 2_954, killed_after_seconds: Some(5.1) };
        let other = WorkerSummary { carried: 10_672, killed_after_seconds: None };
        let summary = Summary { workers: vec![killed, other], ..summary_of(3) };
        let end = "\nworker 1 began 2,954 requests, until it was killed after 5.1 s\n\
                   worker 2 began 10,672 requests";
        assert!(summary.to_string().ends_with(end), "{summary}");
    }
}
