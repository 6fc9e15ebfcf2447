//! How often each kind of thing has happened: a run that never does something proves nothing of it.

use std::collections::BTreeMap;
use std::fmt;

use walhook_core::attempt::Outcome;
use walhook_core::event::{Item, UnroutableReason};
use walhook_core::halt::Halt;
use walhook_core::persist::{DeadReason, DeferReason, PersistBatch};
use walhook_dispatch::dispatcher::{Effect, EndpointChange, Input, OperatorInput, ReplayInput};

use crate::faults::Fault;

/// Counts by group and kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<(&'static str, &'static str), u64>);

/// Halts that the engine itself finds.
const HALTS: [&str; 9] = [
    "slot-missing",
    "slot-lost",
    "slot-foreign",
    "gap",
    "other-source",
    "diverged",
    "older-copy",
    "unreadable",
    "rule-broken",
];

const INPUTS: [&str; 15] = [
    "items",
    "outcome",
    "routes",
    "deferred-pages",
    "unrouted-pages",
    "stored",
    "state-size",
    "connection-bytes",
    "pause",
    "resume",
    "rows-changed",
    "retry",
    "replay-start",
    "replay-deliver",
    "replay-end",
];

const EFFECTS: [&str; 10] = [
    "send",
    "abort",
    "look-up",
    "read-deferred",
    "read-unrouted",
    "store",
    "flush",
    "settled",
    "report",
    "state-full",
];

impl Counts {
    /// Every kind that a long run has to show, with a count of 0.
    #[must_use]
    pub fn required() -> Self {
        let mut counts = Self::default();
        let mut of = |group, names: &[&'static str]| {
            for name in names {
                counts.0.insert((group, name), 0);
            }
        };
        of("input", &INPUTS);
        of("input", &["stop"]);
        of("effect", &EFFECTS);
        of("halt", &HALTS);
        of("deferred", &DeferReason::ALL.map(DeferReason::as_str));
        let dead = [
            DeadReason::Exhausted,
            DeadReason::EndpointDisabled,
            DeadReason::EndpointInvalid,
            DeadReason::Unroutable,
        ];
        of("dead", &dead.map(DeadReason::as_str));
        of("endpoint", &EndpointChange::ALL.map(EndpointChange::as_str));
        for fault in Fault::ALL {
            of("fault", &[fault.as_str()]);
        }
        let unroutable =
            [UnroutableReason::Account, UnroutableReason::Condition, UnroutableReason::TooLarge];
        of("unroutable", &unroutable.map(UnroutableReason::as_str));
        of("gap", &["suspended", "letters", "unrouted", "stream"]);
        counts
    }

    pub(crate) fn add(&mut self, group: &'static str, name: &'static str) {
        *self.0.entry((group, name)).or_default() += 1;
    }

    pub(crate) fn fault(&mut self, fault: Fault) {
        self.add("fault", fault.as_str());
    }

    /// Adds another run's.
    pub fn merge(&mut self, other: &Self) {
        for (kind, count) in &other.0 {
            *self.0.entry(*kind).or_default() += count;
        }
    }

    /// What has never happened, as `group/name`.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let none = self.0.iter().filter(|(_, count)| **count == 0);
        none.map(|((group, name), _)| format!("{group}/{name}")).collect()
    }

    /// How often one kind has happened.
    #[must_use]
    pub fn of(&self, group: &'static str, name: &'static str) -> u64 {
        self.0.get(&(group, name)).copied().unwrap_or_default()
    }

    pub(crate) fn input(&mut self, input: &Input) {
        let name = match input {
            Input::Items(items) => {
                for item in items {
                    self.item(item);
                }
                "items"
            }
            Input::Outcome { outcome, .. } => {
                self.outcome(outcome);
                "outcome"
            }
            Input::Routes(_) => "routes",
            Input::DeferredPages(_) => "deferred-pages",
            Input::UnroutedPages(_) => "unrouted-pages",
            Input::Stored(_) => "stored",
            Input::StateSize(_) => "state-size",
            Input::ConnectionBytes(_) => "connection-bytes",
            Input::Command(command) => match &**command {
                OperatorInput::Pause { .. } => "pause",
                OperatorInput::Resume { .. } => "resume",
                OperatorInput::RowsChanged(_) => "rows-changed",
            },
            Input::Retry(_) => "retry",
            Input::Replay(replay) => match &**replay {
                ReplayInput::Start(..) => "replay-start",
                ReplayInput::Deliver(_) => "replay-deliver",
                ReplayInput::End(_) => "replay-end",
            },
            Input::Stop => "stop",
        };
        self.add("input", name);
    }

    fn item(&mut self, item: &Item) {
        let name = match item {
            Item::Begin { .. } => "begin",
            Item::Event(_) => "event",
            Item::Unroutable(unroutable) => {
                self.add("unroutable", unroutable.reason.as_str());
                "unroutable"
            }
            Item::Invalidate(_) => "invalidate",
            Item::Commit { .. } => "commit",
            Item::Progress { .. } => "progress",
        };
        self.add("item", name);
    }

    fn outcome(&mut self, outcome: &Outcome) {
        let name = match (outcome.record.failure, outcome.record.status) {
            (Some(failure), _) => failure.as_str(),
            (None, Some(200..300)) => "2xx",
            (None, Some(410)) => "410",
            (None, Some(429)) => "429",
            (None, Some(400..500)) => "4xx",
            (None, _) => "5xx",
        };
        self.add("outcome", name);
    }

    pub(crate) fn effect(&mut self, effect: &Effect) {
        let name = match effect {
            Effect::Send(_) => "send",
            Effect::Abort(_) => "abort",
            Effect::LookUp(_) => "look-up",
            Effect::ReadDeferred(_) => "read-deferred",
            Effect::ReadUnrouted(_) => "read-unrouted",
            Effect::Store(batch) => {
                self.batch(batch);
                "store"
            }
            Effect::Flush(_) => "flush",
            Effect::Settled(_) => "settled",
            Effect::Report(report) => {
                self.add("endpoint", report.change.as_str());
                "report"
            }
            Effect::StateFull { .. } => "state-full",
        };
        self.add("effect", name);
    }

    fn batch(&mut self, batch: &PersistBatch) {
        for row in &batch.deferred {
            self.add("deferred", row.reason.as_str());
        }
        // An event without an endpoint is one whose endpoints could not be looked up.
        let letters = batch.dead_letters.iter().chain(batch.died.iter().map(|(_, letter)| letter));
        for letter in letters {
            self.add("dead", letter.reason.as_str());
        }
        for _ in &batch.retried {
            self.add("job", "retried");
        }
    }

    pub(crate) fn halt(&mut self, halt: &Halt) {
        let name = match halt {
            Halt::SlotMissing { .. } => "slot-missing",
            Halt::SlotLost { .. } => "slot-lost",
            Halt::SlotForeign { .. } => "slot-foreign",
            Halt::Gap { .. } => "gap",
            Halt::OtherSource { .. } => "other-source",
            Halt::Diverged { .. } => "diverged",
            Halt::OlderCopy { .. } => "older-copy",
            Halt::PublicationMissing { .. } => "publication-missing",
            Halt::Unpublished { .. } => "unpublished",
            Halt::RowsHidden { .. } => "rows-hidden",
            Halt::Unreadable { .. } => "unreadable",
            Halt::RuleBroken(_) => "rule-broken",
        };
        self.add("halt", name);
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = "";
        for ((group, name), count) in &self.0 {
            if *group != last {
                let end = if last.is_empty() { "" } else { "\n" };
                write!(f, "{end}{group:>10} ")?;
                last = group;
            }
            write!(f, " {name} {count}")?;
        }
        Ok(())
    }
}
