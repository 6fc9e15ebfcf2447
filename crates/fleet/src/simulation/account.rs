//! The naive fleet: what has happened to every attempt, written down as it happens.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::leader::{Ending, FleetCounters};
use walhook_core::attempt::{DeliveryId, FailureKind};
use walhook_core::id::Epoch;

/// One request of an attempt, at a worker or at the leader.
#[derive(Debug)]
struct Run {
    of: Name,
    /// Which delivery's.
    number: u64,
    /// The worker's, by its life; `None`: the leader's own.
    by: Option<u32>,
    ended: bool,
    /// It failed before its request was sent.
    harmless: bool,
}

#[derive(Debug, Default)]
struct Entry {
    of: usize,
    number: u64,
    runs: Vec<u32>,
    back: Option<(u64, Back)>,
    doubtful: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Back {
    Outcome,
    Aborted,
    Unsent,
    Lost,
}

type Name = (Epoch, DeliveryId);

/// What one seed has come to.
#[derive(Debug, Default)]
pub(super) struct Account {
    attempts: BTreeMap<Name, Entry>,
    keys: BTreeMap<(Epoch, u64), DeliveryId>,
    begun_keys: BTreeMap<(Epoch, u64), u64>,
    runs: Vec<Run>,
    pub(super) outcomes: u64,
    pub(super) aborted: u64,
    pub(super) unsent: u64,
    pub(super) lost: u64,
    pub(super) twice: u64,
    pub(super) doubted: u64,
    pub(super) drains: u64,
    /// Requests that timed out at workers.
    pub(super) timed_out: u64,
    /// Outcomes of requests that earlier leaders had ordered.
    pub(super) adopted: u64,
    /// Deliveries that were sent more than once.
    pub(super) repeated: u64,
    /// Some worker was mute for a while.
    pub(super) mute: bool,
    /// Of each pipeline's last leader.
    pub(super) counters: Vec<FleetCounters>,
}

impl Account {
    /// A leader of this pipeline has an attempt of the delivery with this number placed.
    pub(super) fn placed(&mut self, of: usize, name: Name, number: u64) {
        let entry = Entry { of, number, ..Entry::default() };
        assert!(self.attempts.insert(name, entry).is_none(), "{name:?} is placed twice");
    }

    pub(super) fn packed(&mut self, epoch: Epoch, key: u64, delivery: DeliveryId) {
        let before = self.keys.insert((epoch, key), delivery);
        assert!(before.is_none(), "key {key} of epoch {epoch} is used twice");
    }

    /// A worker begins what this key stands for.
    pub(super) fn begin_key(&mut self, epoch: Epoch, key: u64, by: u32, at: u64) -> u32 {
        let delivery = self.keys[&(epoch, key)];
        let before = self.begun_keys.insert((epoch, key), at);
        assert!(before.is_none(), "key {key} of epoch {epoch} is begun at {before:?} and at {at}");
        self.begin((epoch, delivery), Some(by), at)
    }

    /// A request begins; its number.
    pub(super) fn begin(&mut self, name: Name, by: Option<u32>, at: u64) -> u32 {
        let run = u32::try_from(self.runs.len()).unwrap() + 1;
        let entry = self.attempts.get_mut(&name).unwrap();
        let number = entry.number;
        self.runs.push(Run { of: name, number, by, ended: false, harmless: false });
        if let Some((back_at, back)) = entry.back {
            // A request may be under way to its worker when it is given up; the word follows it.
            assert!(
                back == Back::Aborted,
                "{name:?} begins at {at}, and came back {back:?} at {back_at}"
            );
        }
        entry.runs.push(run);
        run
    }

    /// Nothing is heard of who has it, or something again.
    pub(super) fn doubt(&mut self, name: Name, doubtful: bool) {
        let entry = self.attempts.get_mut(&name).unwrap_or_else(|| panic!("{name:?} is nowhere"));
        assert!(entry.back.is_none(), "{name:?} is in doubt, or not, after it came back");
        assert!(doubtful || entry.doubtful, "{name:?} was not in doubt");
        self.doubted += u64::from(doubtful && !entry.doubtful);
        entry.doubtful = doubtful;
    }

    pub(super) fn ended(&mut self, run: u32, harmless: bool) {
        let run = &mut self.runs[run as usize - 1];
        run.ended = true;
        run.harmless = harmless;
    }

    /// The number of the delivery that a request is of.
    pub(super) fn number_of(&self, run: u32) -> u64 {
        self.runs[run as usize - 1].number
    }

    /// The deliveries that a worker had requests of in this life.
    pub(super) fn numbers_by(&self, life: u32) -> impl Iterator<Item = u64> + '_ {
        self.runs.iter().filter(move |run| run.by == Some(life)).map(|run| run.number)
    }

    pub(super) fn back(&mut self, name: Name, ending: &Ending, at: u64) {
        let Self { attempts, runs, .. } = self;
        let entry = attempts.get_mut(&name).unwrap_or_else(|| panic!("{name:?} was not placed"));
        assert!(
            entry.back.is_none(),
            "{name:?} comes back at {at} as {ending:?}, and did: {:?}",
            entry.back
        );
        let back = match ending {
            Ending::Outcome(outcome) if outcome.record.failure == Some(FailureKind::Aborted) => {
                self.aborted += 1;
                Back::Aborted
            }
            Ending::Outcome(outcome) => {
                let run = &runs[outcome.resends as usize - 1];
                assert!(run.ended && run.number == entry.number, "{name:?}: {run:?}");
                if !entry.runs.contains(&outcome.resends) {
                    assert!(run.of.0 < name.0, "{name:?} has an outcome of another's request");
                    self.adopted += 1;
                }
                self.outcomes += 1;
                Back::Outcome
            }
            Ending::Unsent => {
                for run in &entry.runs {
                    let run = &runs[*run as usize - 1];
                    assert!(
                        run.ended && run.harmless,
                        "{name:?} comes back unsent at {at}, and was begun"
                    );
                }
                self.unsent += 1;
                Back::Unsent
            }
            Ending::Lost { elapsed } => {
                assert!(*elapsed > Duration::ZERO);
                self.lost += 1;
                Back::Lost
            }
        };
        entry.back = Some((at, back));
        let requests = entry.runs.iter().filter(|run| !runs[**run as usize - 1].harmless).count();
        self.twice += u64::from(requests > 1);
    }

    /// Whether everything that this leader has placed has come back.
    pub(super) fn check_all_back(&self, of: usize, epoch: Epoch, until: u64) {
        for ((led, delivery), entry) in &self.attempts {
            assert!(
                *led != epoch || entry.of != of || entry.back.is_some(),
                "{delivery:?} has not come back by {until}: {entry:?}"
            );
        }
    }

    pub(super) fn count(&self) -> u64 {
        u64::try_from(self.attempts.len()).unwrap()
    }
}

/// What all seeds together have come to: a simulation in which nothing happens proves nothing.
#[derive(Debug, Default)]
pub(super) struct Sum {
    seeds: u64,
    attempts: u64,
    outcomes: u64,
    aborted: u64,
    unsent: u64,
    lost: u64,
    drains: u64,
    timed_out: u64,
    adopted: u64,
    adopted_running: u64,
    repeated: u64,
    late: u64,
    contradicted: u64,
    confirmed: u64,
    quarantines: u64,
    overdue: u64,
    sessions_lost: u64,
    foreign: u64,
}

impl Sum {
    pub(super) fn add(&mut self, account: &Account) {
        self.seeds += 1;
        self.attempts += account.count();
        self.outcomes += account.outcomes;
        self.aborted += account.aborted;
        self.unsent += account.unsent;
        self.lost += account.lost;
        self.drains += account.drains;
        self.timed_out += account.timed_out;
        self.adopted += account.adopted;
        self.repeated += account.repeated;
        for counters in &account.counters {
            self.adopted_running += counters.adopted_running;
            self.late += counters.late;
            self.contradicted += counters.contradicted;
            self.confirmed += counters.confirmed;
            self.quarantines += counters.quarantines;
            self.overdue += counters.overdue;
            self.sessions_lost += counters.sessions_lost;
            self.foreign += counters.foreign;
        }
    }

    pub(super) fn check(&self) {
        if self.seeds < 50 {
            return;
        }
        let seen = [
            self.outcomes,
            self.aborted,
            self.unsent,
            self.lost,
            self.drains,
            self.timed_out,
            self.adopted,
            self.adopted_running,
            self.late,
            self.contradicted,
            self.confirmed,
            self.quarantines,
            self.overdue,
            self.sessions_lost,
            self.foreign,
        ];
        assert!(seen.iter().all(|count| *count > 0), "something never happened: {self:?}");
    }
}
