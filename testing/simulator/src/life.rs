//! One process: what it holds in memory, which a crash takes away.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use walhook_core::attempt::{Attempt, DeliveryId, Outcome};
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::halt::Halt;
use walhook_core::id::{Epoch, JobId};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{PersistBatch, Persisted, Refill, Refilled, UnroutedPage};
use walhook_decode::change::{Changes, Step};
use walhook_decode::pgoutput::{self, Protocol};
use walhook_dispatch::dispatcher::{Dispatcher, LookUpAnswer, Retry, Settings, Start};
use walhook_rules::rule::Rules;

use crate::postgres::{Connection, Frame, Postgres};
use crate::schema;
use crate::state::Fenced;
use walhook_core::event::Item;

/// A request that is under way.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) attempt: Attempt,
    pub(crate) outcome: Outcome,
    /// Its end comes with this number; one that is given up ends by another.
    pub(crate) ends: u64,
}

/// A look-up under way.
#[derive(Debug)]
pub(crate) enum LookUp {
    Asked(Vec<AccountId>),
    Answered(Box<LookUpAnswer>),
}

/// A state transaction under way.
#[derive(Debug)]
pub(crate) struct Storing {
    pub(crate) batch: Box<PersistBatch>,
    pub(crate) result: Option<Result<Persisted, Fenced>>,
    /// Outcomes that it makes durable.
    pub(crate) outcomes: u64,
}

/// Why nothing more is read on a connection.
#[derive(Debug)]
pub(crate) enum Broken {
    /// It is to be opened again.
    Connection,
    /// The process halts, once all before is settled.
    Halt(Halt),
}

#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) number: usize,
    pub(crate) epoch: Epoch,
    pub(crate) dispatcher: Dispatcher,
    rules: Rules,
    pub(crate) changes: Changes,
    pub(crate) connection: Option<Connection>,
    /// Read, and not handed over.
    pub(crate) items: Vec<Item>,
    pub(crate) in_flight: BTreeMap<DeliveryId, InFlight>,
    pub(crate) look_up: Option<LookUp>,
    pub(crate) deferred: Option<(Vec<Refill>, Option<Vec<Refilled>>)>,
    pub(crate) unrouted: Option<Vec<UnroutedPage>>,
    pub(crate) storing: Option<Storing>,
    /// Outcomes since the last batch was handed out.
    pub(crate) unstored: u64,
    /// Whether a reading is planned already.
    pub(crate) reads: bool,
    /// Another one has taken the lease.
    pub(crate) stale: bool,
    pub(crate) stopping: bool,
    pub(crate) halting: Option<Halt>,
    /// The commit LSN of the transaction that could not be read.
    pub(crate) unreadable: Option<Lsn>,
    /// Of these transactions what cannot be read is given up.
    pub(crate) left_out: BTreeSet<Lsn>,
    /// Jobs that it was told of.
    pub(crate) told: BTreeSet<JobId>,
    pub(crate) retries: VecDeque<Retry>,
    /// Endpoints that nothing may be sent to, as it knows.
    pub(crate) paused: BTreeSet<EndpointId>,
    pub(crate) progress: Lsn,
}

impl Life {
    pub(crate) fn new(
        number: usize,
        epoch: Epoch,
        settings: Settings,
        start: Start,
        postgres: &Postgres,
        seed: u64,
    ) -> Self {
        let frontier = start.frontier;
        let paused = start.paused.iter().map(|paused| paused.endpoint.clone()).collect();
        Self {
            number,
            epoch,
            dispatcher: Dispatcher::new(settings, start, SmallRng::seed_from_u64(seed)),
            rules: schema::rules(),
            changes: Changes::new(frontier),
            connection: Some(Connection::start(postgres, frontier)),
            items: Vec::new(),
            in_flight: BTreeMap::new(),
            look_up: None,
            deferred: None,
            unrouted: None,
            storing: None,
            unstored: 0,
            reads: false,
            stale: false,
            stopping: false,
            halting: None,
            unreadable: None,
            left_out: BTreeSet::new(),
            told: BTreeSet::new(),
            retries: VecDeque::new(),
            paused,
            progress: Lsn(0),
        }
    }

    /// Opens the stream anew, where it had come to.
    pub(crate) fn reconnect(&mut self, postgres: &Postgres) {
        self.changes.handle_reconnected();
        self.connection = Some(Connection::start(postgres, self.changes.resume_lsn()));
    }

    /// Reads so many messages into `items`: bytes, messages, steps, items.
    pub(crate) fn read(&mut self, postgres: &Postgres, messages: usize) -> Result<(), Broken> {
        for _ in 0..messages {
            let Some(connection) = &mut self.connection else { return Ok(()) };
            let Some(frame) = connection.next(postgres) else {
                self.keepalive(postgres);
                return Ok(());
            };
            let (at, message) = match &frame {
                Frame::Data { wal_start, payload } => {
                    (*wal_start, pgoutput::decode(Protocol::V1, payload))
                }
                Frame::Oversize { wal_start, head, bytes } => {
                    (*wal_start, pgoutput::decode_head(Protocol::V1, head, *bytes))
                }
            };
            let message = match message {
                Ok(message) => message,
                Err(error) => return Err(self.not_understood(&error.to_string())),
            };
            let steps = match self.changes.handle(at, message) {
                Ok(steps) => steps,
                Err(error) => return Err(self.not_understood(&error.to_string())),
            };
            for step in steps {
                take(&mut self.rules, step, &mut self.items).map_err(Broken::Halt)?;
            }
        }
        Ok(())
    }

    fn keepalive(&mut self, postgres: &Postgres) {
        let wal_end = postgres.wal_end();
        if !self.changes.in_transaction() && self.progress < wal_end {
            self.progress = wal_end;
            self.items.push(Item::Progress { wal_end });
        }
    }

    /// Once may have a passing cause; twice in a row halts.
    fn not_understood(&mut self, problem: &str) -> Broken {
        let Some(transaction) = self.changes.transaction() else { return Broken::Connection };
        let commit = transaction.commit_lsn;
        if self.left_out.contains(&commit) {
            if let Some(Step::Commit { end_lsn }) = self.changes.handle_left_out() {
                self.items.push(Item::Commit { end_lsn });
            }
            return Broken::Connection;
        }
        if self.unreadable.replace(commit) == Some(commit) {
            return Broken::Halt(Halt::Unreadable { commit, problem: problem.to_owned() });
        }
        Broken::Connection
    }

    /// What it would send twice, were it to die now.
    pub(crate) fn excused(&self) -> u64 {
        let storing = self.storing.as_ref().map_or(0, |storing| storing.outcomes);
        self.in_flight.len() as u64 + self.unstored + storing
    }
}

/// Appends what a step makes.
fn take(rules: &mut Rules, step: Step<'_>, items: &mut Vec<Item>) -> Result<(), Halt> {
    match step {
        Step::Begin(transaction) => items.push(Item::Begin { commit_lsn: transaction.commit_lsn }),
        Step::Relation(relation) => {
            rules
                .handle_relation(&relation)
                .map_err(|broken| Halt::RuleBroken(broken.to_string()))?;
        }
        Step::Change(change) => rules.handle_change(&change, items),
        Step::Message(message) => rules.handle_message(&message, items),
        Step::Commit { end_lsn } => items.push(Item::Commit { end_lsn }),
    }
    Ok(())
}

/// The events of these transactions, read from the WAL once more.
pub(crate) fn read_again(
    postgres: &Postgres,
    from: Lsn,
    to: Lsn,
) -> Vec<Arc<walhook_core::event::Event>> {
    let mut rules = schema::rules();
    let mut changes = Changes::new(from);
    let mut connection = Connection::from_anchor(postgres, from);
    let mut items = Vec::new();
    while postgres.txns.get(connection.txn()).is_some_and(|txn| txn.commit_lsn < to)
        && let Some(frame) = connection.next(postgres)
    {
        let (at, message) = match &frame {
            Frame::Data { wal_start, payload } => {
                (*wal_start, pgoutput::decode(Protocol::V1, payload).ok())
            }
            Frame::Oversize { wal_start, head, bytes } => {
                (*wal_start, pgoutput::decode_head(Protocol::V1, head, *bytes).ok())
            }
        };
        let steps = message.and_then(|message| changes.handle(at, message).ok());
        let is_read = steps.is_some();
        for step in steps.into_iter().flatten() {
            // What does not fit has halted the live stream.
            let _ = take(&mut rules, step, &mut items);
        }
        if !is_read {
            // Its rest was given up.
            changes.handle_left_out();
            changes.handle_reconnected();
            connection = Connection::from_anchor(postgres, changes.resume_lsn());
        }
    }
    let event = |item| if let Item::Event(event) = item { Some(event) } else { None };
    items.into_iter().filter_map(event).collect()
}
