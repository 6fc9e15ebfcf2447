//! How often each kind of thing has happened: a run that never does something proves nothing of it.
//!
//! Each list is made of the `match` that counts, so that a kind that is new does not compile until it is here.
//! What cannot happen in the simulated world says why, and is a mistake where it happens all the same.

use std::collections::BTreeMap;
use std::fmt;

use walhook_core::attempt::{FailureKind, Meaning};
use walhook_core::event::{Item, UnroutableReason};
use walhook_core::halt::Halt;
use walhook_core::persist::{DeadReason, DeferReason, PersistBatch};
use walhook_dispatch::dispatcher::{
    Effect, EndpointChange, Input, LookUp, OperatorInput, ReplayInput,
};
use walhook_dispatch::route::LookUpLine;

use crate::faults::Fault;
use crate::outages::REFUSED;
use crate::run::Resolved;
use crate::state::GapKind;

/// Counts by group and kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<(&'static str, &'static str), u64>);

/// A kind, and why it cannot happen here, where it cannot.
#[derive(Debug, Clone, Copy)]
struct Kind {
    word: &'static str,
    never: Option<&'static str>,
}

macro_rules! kinds_of {
    (@) => { None };
    (@ $why:literal) => { Some($why) };
    ($all:ident, fn $word_of:ident($type:ty) { $($pattern:pat => $word:literal $(never $why:literal)?,)* }) => {
        const $all: &[Kind] = &[$(Kind { word: $word, never: kinds_of!(@ $($why)?) },)*];

        fn $word_of(value: $type) -> &'static str {
            match value { $($pattern => $word,)* }
        }
    };
}

kinds_of!(INPUTS, fn input(&Input) {
    Input::Items(_) => "items",
    Input::Outcome { .. } => "outcome",
    Input::Unsent(_) => "unsent",
    Input::Doubt { .. } => "doubt",
    Input::Slots { .. } => "slots",
    Input::Routes(_) => "routes",
    Input::DeferredPages(_) => "deferred-pages",
    Input::UnroutedPages(_) => "unrouted-pages",
    Input::Stored(_) => "stored",
    Input::StateSize(_) => "state-size",
    Input::ConnectionBytes(_) => "connection-bytes",
    Input::Command(_) => "command",
    Input::Retry(_) => "retry",
    Input::Replay(_) => "replay",
    Input::WindDown => "wind-down",
    Input::Stop => "stop",
});

kinds_of!(COMMANDS, fn command(&OperatorInput) {
    OperatorInput::Pause { .. } => "pause",
    OperatorInput::Resume { .. } => "resume",
    OperatorInput::RowsChanged(_) => "rows-changed",
    OperatorInput::RowsBeingRemoved(_) => "rows-being-removed",
    OperatorInput::RowsRemoved(_) => "rows-removed",
    OperatorInput::Hurry(_) => "hurry",
});

kinds_of!(REPLAYS, fn replay(&ReplayInput) {
    ReplayInput::Start(..) => "start",
    ReplayInput::Deliver(_) => "deliver",
    ReplayInput::End(_) => "end",
});

kinds_of!(ITEMS, fn item(&Item) {
    Item::Begin { .. } => "begin",
    Item::Event(_) => "event",
    Item::Unroutable(_) => "unroutable",
    Item::Invalidate(_) => "invalidate",
    Item::Commit { .. } => "commit",
    Item::Pause => "pause",
    Item::Resume { .. } => "resume",
    Item::Progress { .. } => "progress",
});

kinds_of!(UNROUTABLE, fn unroutable(UnroutableReason) {
    UnroutableReason::Account => "account",
    UnroutableReason::Condition => "condition",
    UnroutableReason::Value => "value",
    UnroutableReason::Type => "type",
    UnroutableReason::TooLarge => "too-large",
    UnroutableReason::Table => "table" never "the catalog has all tables of the simulated database from the start, and none is a partition",
    UnroutableReason::Endpoints => "endpoints",
});

kinds_of!(EFFECTS, fn effect(&Effect) {
    Effect::Send(_) => "send",
    Effect::Abort(_) => "abort",
    Effect::LookUp(LookUp { line: LookUpLine::Usual, .. }) => "look-up",
    Effect::LookUp(LookUp { line: LookUpLine::Costly, .. }) => "costly-look-up",
    Effect::ReadDeferred(_) => "read-deferred",
    Effect::ReadUnrouted(_) => "read-unrouted",
    Effect::Store(_) => "store",
    Effect::Flush(_) => "flush",
    Effect::Settled(_) => "settled",
    Effect::Report(_) => "report",
    Effect::StateFull { .. } => "state-full",
});

kinds_of!(MEANINGS, fn meaning(Meaning) {
    Meaning::Delivered => "delivered",
    Meaning::Gone => "gone",
    Meaning::Refused { .. } => "refused",
    Meaning::TimedOut => "timed-out",
    Meaning::Failed => "failed",
    Meaning::Invalid => "invalid",
    Meaning::Aborted => "aborted",
    Meaning::Lost => "lost",
    Meaning::Oversize => "oversize" never "all simulated requests fit what may carry them",
    Meaning::Local => "local",
});

kinds_of!(FAILURES, fn failure(FailureKind) {
    FailureKind::Invalid => "invalid",
    FailureKind::Forbidden => "forbidden",
    FailureKind::Dns => "dns",
    FailureKind::Connect => "connect",
    FailureKind::Proxy => "proxy",
    FailureKind::Tls => "tls",
    FailureKind::Timeout => "timeout",
    FailureKind::Protocol => "protocol",
    FailureKind::Aborted => "aborted",
    FailureKind::Lost => "lost",
    FailureKind::Oversize => "oversize" never "all simulated requests fit what may carry them",
    FailureKind::Local => "local",
});

kinds_of!(DEAD, fn dead(DeadReason) {
    DeadReason::Exhausted => "exhausted",
    DeadReason::EndpointDisabled => "endpoint-disabled",
    DeadReason::EndpointInvalid => "endpoint-invalid",
    DeadReason::Unroutable => "unroutable",
});

kinds_of!(GAPS, fn gap(GapKind) {
    GapKind::Suspended => "suspended",
    GapKind::Letters => "letters",
    GapKind::Unrouted => "unrouted",
    GapKind::Stream => "stream",
});

kinds_of!(HALTS, fn halt(&Halt) {
    Halt::SlotMissing { .. } => "slot-missing",
    Halt::SlotLost { .. } => "slot-lost",
    Halt::SlotTwoPhase { .. } => "slot-two-phase",
    Halt::SlotForeign { .. } => "slot-foreign",
    Halt::Gap { .. } => "gap",
    Halt::OtherSource { .. } => "other-source",
    Halt::Diverged { .. } => "diverged",
    Halt::OlderCopy { .. } => "older-copy",
    Halt::PublicationMissing { .. } => "publication-missing",
    Halt::OtherPublication { .. } => "other-publication",
    Halt::Unpublished { .. } => "unpublished",
    Halt::RowsHidden { .. } => "rows-hidden",
    Halt::Unreadable { .. } => "unreadable",
    Halt::RuleBroken(_) => "rule-broken",
});

kinds_of!(RESOLVED, fn resolved(Resolved) {
    Resolved::PutRight => "put-right",
    Resolved::GapAccepted => "accept-gap",
    Resolved::ClusterAdopted => "adopt-cluster",
    Resolved::ChangeSkipped => "skip-change",
});

/// The lists by their groups.
const GROUPS: [(&str, &[Kind]); 13] = [
    ("input", INPUTS),
    ("command", COMMANDS),
    ("replay", REPLAYS),
    ("item", ITEMS),
    ("unroutable", UNROUTABLE),
    ("effect", EFFECTS),
    ("outcome", MEANINGS),
    ("failure", FAILURES),
    ("dead", DEAD),
    ("gap", GAPS),
    ("halt", HALTS),
    ("resolved", RESOLVED),
    ("job", &[Kind { word: "retried", never: None }]),
];

impl Counts {
    /// Every kind that a long run has to show, with a count of 0.
    #[must_use]
    pub fn required() -> Self {
        let mut counts = Self::default();
        let mut of = |group, word| _ = counts.0.insert((group, word), 0);
        for (group, kinds) in GROUPS {
            let here = kinds.iter().filter(|kind| kind.never.is_none());
            here.for_each(|kind| of(group, kind.word));
        }
        DeferReason::ALL.iter().for_each(|reason| of("deferred", reason.as_str()));
        EndpointChange::ALL.iter().for_each(|change| of("endpoint", change.as_str()));
        Fault::ALL.iter().for_each(|fault| of("fault", fault.as_str()));
        counts
    }

    /// What cannot happen in the simulated world, as `group/name`, and why.
    #[must_use]
    pub fn impossible() -> Vec<(String, &'static str)> {
        let of_group = |(group, kinds): (&'static str, &'static [Kind])| {
            let never = move |kind: &Kind| Some((format!("{group}/{}", kind.word), kind.never?));
            kinds.iter().filter_map(never)
        };
        GROUPS.into_iter().flat_map(of_group).collect()
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

    /// What is wrong with a long run: what has never happened, and what has although it is said never to.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let none = self.0.iter().filter(|(_, count)| **count == 0);
        let never = none.map(|((group, name), _)| format!("{group}/{name} never happened"));
        let all: Vec<String> =
            self.0.keys().map(|(group, name)| format!("{group}/{name}")).collect();
        let impossible = Self::impossible().into_iter().filter(|(kind, _)| all.contains(kind));
        let wrong = impossible.map(|(kind, why)| format!("{kind} happened, although {why}"));
        never.chain(wrong).collect()
    }

    /// How often one kind has happened.
    #[must_use]
    pub fn of(&self, group: &'static str, name: &'static str) -> u64 {
        self.0.get(&(group, name)).copied().unwrap_or_default()
    }

    pub(crate) fn input(&mut self, it: &Input) {
        self.add("input", input(it));
        match it {
            Input::Items(items) => items.iter().for_each(|item| self.item(item)),
            Input::Outcome { outcome, .. } => {
                self.add("outcome", meaning(outcome.meaning));
                if let Some(kind) = outcome.record.failure {
                    self.add("failure", failure(kind));
                }
            }
            Input::Command(it) => self.add("command", command(it)),
            Input::Replay(it) => self.add("replay", replay(it)),
            Input::Unsent(_)
            | Input::Doubt { .. }
            | Input::Slots { .. }
            | Input::Routes(_)
            | Input::DeferredPages(_)
            | Input::UnroutedPages(_)
            | Input::Stored(_)
            | Input::StateSize(_)
            | Input::ConnectionBytes(_)
            | Input::Retry(_)
            | Input::WindDown
            | Input::Stop => {}
        }
    }

    fn item(&mut self, it: &Item) {
        self.add("item", item(it));
        if let Item::Unroutable(it) = it {
            self.add("unroutable", unroutable(it.reason));
        }
    }

    pub(crate) fn effect(&mut self, it: &Effect) {
        self.add("effect", effect(it));
        if let Effect::Store(batch) = it {
            self.batch(batch);
        }
        if let Effect::Report(report) = it {
            self.add("endpoint", report.change.as_str());
        }
    }

    fn batch(&mut self, batch: &PersistBatch) {
        for row in &batch.deferred {
            self.add("deferred", row.reason.as_str());
        }
        // An event without an endpoint is one whose endpoints could not be looked up.
        for _ in &batch.unrouted {
            self.add("deferred", DeferReason::Unrouted.as_str());
        }
        let letters = batch.dead_letters.iter().chain(batch.died.iter().map(|(_, letter)| letter));
        for letter in letters {
            self.add("dead", dead(letter.reason));
            if letter.endpoint.is_none() && letter.detail == REFUSED {
                self.add("unroutable", unroutable(UnroutableReason::Endpoints));
            }
        }
        for _ in &batch.retried {
            self.add("job", "retried");
        }
    }

    pub(crate) fn halt(&mut self, it: &Halt) {
        self.add("halt", halt(it));
    }

    pub(crate) fn resolved(&mut self, it: Resolved) {
        self.add("resolved", resolved(it));
    }

    pub(crate) fn gap(&mut self, it: GapKind) {
        self.add("gap", gap(it));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_that_never_happens_or_does_although_it_cannot_is_a_problem() {
        let mut counts = Counts::required();
        assert!(counts.problems().contains(&"effect/state-full never happened".to_owned()));
        let all: Vec<_> = counts.0.keys().copied().collect();
        all.into_iter().for_each(|(group, name)| counts.add(group, name));
        assert_eq!(counts.problems(), Vec::<String>::new());
        counts.add("unroutable", unroutable(UnroutableReason::Table));
        let problems = counts.problems();
        assert!(problems[0].starts_with("unroutable/table happened, although "), "{problems:?}");
    }

    #[test]
    fn kind_that_cannot_happen_says_why() {
        let impossible = Counts::impossible();
        assert!(!impossible.is_empty());
        assert!(impossible.iter().all(|(_, why)| why.len() > 30), "{impossible:?}");
    }
}
