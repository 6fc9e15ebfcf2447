//! One seed from beginning to end: the world, the processes that live in it, and what happens when.

mod effects;
mod halts;
mod happens;
mod lives;
mod recorded;

pub(crate) use halts::Resolved;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use walhook_core::attempt::DeliveryId;
use walhook_core::id::Epoch;
use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;
use walhook_dispatch::dispatcher::Input;
use walhook_dispatch::route::LookUpLine;

use crate::checkers::{self, Checker, Scene, Seen};
use crate::counts::Counts;
use crate::facts::Facts;
use crate::faults::Fault;
use crate::life::Life;
use crate::operators::Operators;
use crate::outages::Outages;
use crate::panics;
use crate::plan::{Options, Plan};
use crate::plants::{Plant, Planted};
use crate::postgres::{self, Postgres};
use crate::receivers::Receivers;
use crate::state::State;
use crate::trace::Trace;
use crate::workers::Workers;
use recorded::Recorded;

/// All must have ended so long after the last commit.
const PATIENCE: Duration = Duration::from_secs(24 * 3_600);

/// Dead letters of a queue that are rows, where the tables have a bound.
const FEW_LETTERS: u32 = 8;

/// Something that happens at a moment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Happens {
    /// The next transaction commits.
    Commits,
    /// A process reads its stream.
    Reads(usize),
    /// A request ends.
    Ends(usize, DeliveryId, u64),
    LookedUp(usize, LookUpLine),
    Refilled(usize),
    Routable(usize),
    /// A state transaction commits.
    Committed(usize),
    /// And its process is told.
    Stored(usize),
    /// The tables are measured.
    Measured(usize),
    /// A process's own time has come.
    Wakes(usize),
    Crashes,
    TakesOver,
    ShutsDown,
    /// An instance that lost the lease is ended, whatever it did not notice.
    Expires(usize),
    StreamBreaks,
    /// What was looked up is to be forgotten.
    Evicts,
    /// An operator looks what there is to do.
    Operates,
    /// It is told that rows are gone.
    TellsRemoved,
    /// A replay goes on.
    Feeds,
}

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    /// How often each kind of thing happened.
    pub counts: Counts,
    /// All that was asked for and told, as a digest.
    pub digest: u64,
    /// How many lines that were.
    pub lines: u64,
    /// The digest of each of them, where that was wished.
    pub trace: Vec<u64>,
    /// The line that was wished.
    pub line: Option<String>,
    /// Virtual time.
    pub took: Duration,
    /// The batches that were stored, with their epochs, where that was wished.
    pub batches: Vec<(Epoch, walhook_core::persist::PersistBatch)>,
    /// A recording of the first process, as `walhook run --record` writes it, where that was wished.
    pub recording: Vec<u8>,
}

/// What a run found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The checker, or `panic`.
    pub checker: String,
    /// What it says.
    pub problem: String,
    /// When: virtual time.
    pub at: Duration,
}

pub(crate) struct Run {
    pub(crate) plan: Plan,
    pub(crate) now: Tick,
    pub(crate) postgres: Postgres,
    pub(crate) state: State,
    pub(crate) receivers: Receivers,
    /// The leader, and those before it that do not know that they lead no more.
    pub(crate) lives: Vec<Life>,
    next_life: usize,
    checkers: Vec<Box<dyn Checker>>,
    pub(crate) facts: Facts,
    pub(crate) counts: Counts,
    pub(crate) trace: Trace,
    pub(crate) outages: Outages,
    pub(crate) operators: Operators,
    pub(crate) planted: Planted,
    pub(crate) workers: Workers,
    agenda: BinaryHeap<Reverse<(Tick, u64, Happens)>>,
    next_event: u64,
    /// How long things take.
    pub(crate) rng: SmallRng,
    /// What may go wrong.
    pub(crate) chance: SmallRng,
    failure: Option<Failure>,
    next_request: u64,
    keeps_batches: bool,
    batches: Vec<(Epoch, walhook_core::persist::PersistBatch)>,
    recorded: Recorded,
}

/// What is wished of a run beside its result.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Keep the digest of each line of the trace.
    pub trace: bool,
    /// Keep this line.
    pub line: Option<usize>,
    /// Keep the batches that were stored.
    pub batches: bool,
    /// Print the trace.
    pub print: bool,
    /// Record the first process.
    pub record: bool,
}

/// Runs a seed to its end.
///
/// # Errors
/// What a checker found first, or what walhook panicked with.
pub fn run(seed: u64, options: &Options, wishes: &Wishes) -> Result<Report, Failure> {
    let told = std::panic::catch_unwind(|| Run::new(seed, options, wishes).run());
    told.unwrap_or_else(|panic| {
        let problem = panics::text(&*panic).to_owned();
        Err(Failure { checker: "panic".to_owned(), problem, at: Duration::ZERO })
    })
}

impl Run {
    fn new(seed: u64, options: &Options, wishes: &Wishes) -> Self {
        let plan = Plan::new(seed, options);
        let postgres = postgres::make(&plan);
        let receivers = Receivers::new(&plan, &postgres);
        let letters = if plan.bound.is_some() { FEW_LETTERS } else { 1_000 };
        let span = postgres.txns.last().map_or(Tick(0), |txn| txn.at);
        let mut run = Self {
            now: Tick(0),
            state: State::new(postgres.slot.confirmed, letters),
            receivers,
            lives: Vec::new(),
            next_life: 0,
            checkers: checkers::all(),
            facts: Facts::default(),
            counts: Counts::default(),
            trace: Trace::new(wishes),
            outages: Outages::new(&plan, span),
            operators: Operators::new(&plan, span),
            planted: Planted::new(plan.options.plant, plan.rng("plant")),
            workers: Workers::new(&plan),
            agenda: BinaryHeap::new(),
            next_event: 0,
            rng: plan.rng("times"),
            chance: plan.rng("chance"),
            failure: None,
            next_request: 0,
            keeps_batches: wishes.batches,
            batches: Vec::new(),
            recorded: Recorded::new(wishes.record),
            postgres,
            plan,
        };
        run.plan_all(span);
        run
    }

    fn plan_all(&mut self, span: Tick) {
        if let Some(first) = self.postgres.txns.first().map(|txn| txn.at) {
            self.at(first, Happens::Commits);
        }
        let mut rng = self.plan.rng("blows");
        let mut blow = |fault, happens: &Happens, times: u32, run: &mut Self| {
            for _ in 0..times {
                let at = Tick(rng.random_range(0..=span.0 * 5 / 4));
                if run.plan.has(fault) {
                    run.at(at, happens.clone());
                }
            }
        };
        blow(Fault::Crash, &Happens::Crashes, self.plan.crashes, self);
        blow(Fault::Takeover, &Happens::TakesOver, self.plan.takeovers, self);
        blow(Fault::Shutdown, &Happens::ShutsDown, 1, self);
        blow(Fault::StreamLost, &Happens::StreamBreaks, 3, self);
        blow(Fault::Evicted, &Happens::Evicts, 2, self);
        self.at(Tick(500_000), Happens::Operates);
        self.begin_life();
    }

    pub(crate) fn at(&mut self, at: Tick, happens: Happens) {
        self.next_event += 1;
        self.agenda.push(Reverse((at.max(self.now), self.next_event, happens)));
    }

    pub(crate) fn after(&mut self, wait: Duration, happens: Happens) {
        self.at(self.now + wait, happens);
    }

    pub(crate) fn request_number(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request
    }

    pub(crate) fn keep(&mut self, epoch: Epoch, batch: &walhook_core::persist::PersistBatch) {
        if self.keeps_batches {
            self.batches.push((epoch, batch.clone()));
        }
    }

    /// Tells all checkers.
    pub(crate) fn see(&mut self, seen: &Seen<'_>) {
        let scene = Scene {
            plan: &self.plan,
            postgres: &self.postgres,
            state: &self.state,
            receivers: &self.receivers,
            facts: &self.facts,
            now: self.now,
        };
        for checker in &mut self.checkers {
            if let Err(problem) = checker.see(&scene, seen) {
                let at = self.now.since(Tick(0));
                let checker = checker.name().to_owned();
                self.failure.get_or_insert(Failure { checker, problem, at });
            }
        }
    }

    pub(crate) fn fail(&mut self, checker: &str, problem: String) {
        let (checker, at) = (checker.to_owned(), self.now.since(Tick(0)));
        self.failure.get_or_insert(Failure { checker, problem, at });
    }

    fn end(&mut self) {
        let scene = Scene {
            plan: &self.plan,
            postgres: &self.postgres,
            state: &self.state,
            receivers: &self.receivers,
            facts: &self.facts,
            now: self.now,
        };
        for checker in &mut self.checkers {
            if let Err(problem) = checker.end(&scene) {
                let at = self.now.since(Tick(0));
                let checker = checker.name().to_owned();
                self.failure.get_or_insert(Failure { checker, problem, at });
            }
        }
    }

    fn run(mut self) -> Result<Report, Failure> {
        let last = self.postgres.txns.last().map_or(Tick(0), |txn| txn.at);
        loop {
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            if self.is_done() {
                break;
            }
            if self.now > last + PATIENCE {
                let problem = self.what_is_left();
                self.fail("deferred_return", problem);
                continue;
            }
            let Some((at, happens)) = self.next() else {
                let problem = format!("nothing is left to happen: {}", self.what_is_left());
                self.fail("deferred_return", problem);
                continue;
            };
            self.now = at;
            self.happen(happens);
        }
        self.end();
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => {
                self.count_gaps();
                Ok(Report {
                    digest: self.trace.digest(),
                    lines: self.trace.lines(),
                    trace: self.trace.take(),
                    line: self.trace.line(),
                    took: self.now.since(Tick(0)),
                    batches: self.batches,
                    recording: self.recorded.take(),
                    counts: self.counts,
                })
            }
        }
    }

    /// What happens next: of the agenda, or that a process's own time has come.
    fn next(&mut self) -> Option<(Tick, Happens)> {
        let due = |life: &Life| Some((life.dispatcher.deadline()?, life.number));
        let wake = self.lives.iter().filter_map(due).min();
        let soonest = self.now + Duration::from_micros(1);
        let wake = wake.map(|(due, life)| (due.max(soonest), life));
        let first = self.agenda.peek().map(|Reverse((at, ..))| *at);
        if let Some((at, life)) = wake.filter(|(at, _)| first.is_none_or(|first| *at < first)) {
            return Some((at, Happens::Wakes(life)));
        }
        self.agenda.pop().map(|Reverse((at, _, happens))| (at, happens))
    }

    pub(crate) fn life(&mut self, number: usize) -> Option<&mut Life> {
        self.lives.iter_mut().find(|life| life.number == number)
    }

    pub(crate) fn leader(&mut self) -> Option<&mut Life> {
        self.lives.iter_mut().rev().find(|life| !life.stale)
    }

    fn is_done(&self) -> bool {
        let all = self.postgres.txns.len();
        let end = self.postgres.txns.last().map_or(Lsn(0), |txn| txn.end_lsn);
        let [life] = &self.lives[..] else { return false };
        self.postgres.committed == all
            && self.operators.is_idle()
            && self.state.frontier > end
            && self.state.frontier == life.dispatcher.frontier()
            && self.state.deferred.is_empty()
            && self.state.backlog.is_empty()
            && self.state.unrouted.is_empty()
            && self.state.unrouted_accounts.is_empty()
            && life.in_flight.is_empty()
            && life.unrouted.is_none()
            && life.storing.is_none()
            && life.deferred.is_none()
            && !self.state.gaps.iter().any(|gap| gap.growing)
            && life.dispatcher.gauges().queued_bytes == 0
    }

    fn what_is_left(&self) -> String {
        let rows: usize = self.state.deferred.values().map(std::collections::BTreeMap::len).sum();
        let lives: Vec<String> = self
            .lives
            .iter()
            .map(|life| {
                let (frontier, flight) = (life.dispatcher.frontier(), life.in_flight.len());
                format!("life {} at {frontier} with {flight} in flight", life.number)
            })
            .collect();
        format!(
            "{} of {} transactions committed, checkpoint {}, {rows} rows deferred, {} backlogs, {} \
             accounts without routes, {:?} of operators; {}; first row {:?}",
            self.postgres.committed,
            self.postgres.txns.len(),
            self.state.frontier,
            self.state.backlog.len(),
            self.state.unrouted_accounts.len(),
            self.operators,
            lives.join(", "),
            self.state.deferred.iter().next()
        )
    }

    fn count_gaps(&mut self) {
        for gap in &self.state.gaps {
            self.counts.gap(gap.kind);
        }
    }

    /// Hands an input over, unless something planted keeps it back.
    pub(crate) fn hand(&mut self, number: usize, input: Input) {
        let now = self.now;
        self.counts.input(&input);
        self.trace.input(now, number, &input);
        self.recorded.input(number, now, &input);
        if let Some(life) = self.life(number) {
            life.dispatcher.handle(now, input);
        }
    }

    pub(crate) fn has_plant(&self, plant: Plant) -> bool {
        self.plan.options.plant == Some(plant)
    }
}
