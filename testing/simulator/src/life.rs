//! One process: what it holds in memory, which a crash takes away.

mod read;

pub(crate) use read::read_again;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::SeedableRng;
use rand::rngs::SmallRng;

use walhook_core::attempt::{Attempt, DeliveryId, Outcome};
use walhook_core::event::EndpointId;
use walhook_core::halt::Halt;
use walhook_core::id::{Epoch, JobId};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{PersistBatch, Persisted, Refill, Refilled, UnroutedPage};
use walhook_decode::change::{Changes, Ours};
use walhook_decode::streamed::{self, OpenTransactions};
use walhook_dispatch::dispatcher::{Dispatcher, LookUp, LookUpAnswer, Retry, Settings, Start};
use walhook_dispatch::route::LookUpLine;
use walhook_rules::rule::Rules;
use walhook_rules::turns::{Foreseen, Turns};

use crate::plan::Streaming;
use crate::postgres::{Connection, Postgres};
use crate::schema;
use crate::state::Fenced;

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
pub(crate) enum LookingUp {
    Asked(LookUp),
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
    /// What is received of transactions that are open, and what they may come to.
    open: OpenTransactions,
    foreseen: BTreeMap<u32, Foreseen>,
    /// Transactions that have committed so; the first is played.
    plays: VecDeque<Ours>,
    pub(crate) turns: Turns,
    /// How much is streamed while it is open.
    streaming: Streaming,
    /// So many transactions came so since that was asked last.
    pub(crate) streamed: u64,
    rng: SmallRng,
    pub(crate) in_flight: BTreeMap<DeliveryId, InFlight>,
    pub(crate) look_ups: BTreeMap<LookUpLine, LookingUp>,
    pub(crate) deferred: Option<(Vec<Refill>, Option<Vec<Refilled>>)>,
    pub(crate) unrouted: Option<Vec<UnroutedPage>>,
    pub(crate) storing: Option<Storing>,
    /// Outcomes since the last batch was handed out.
    pub(crate) unstored: u64,
    /// Whether a reading is planned already.
    pub(crate) reads: bool,
    /// Another one has taken the lease.
    pub(crate) stale: bool,
    /// It was asked to end, and begins nothing long any more.
    pub(crate) winds_down: bool,
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
        mut streaming: Streaming,
        seed: u64,
    ) -> Self {
        let open = streamed::Settings {
            memory_bytes: usize::MAX,
            spool: false,
            prefixes: vec![schema::PREFIX.to_owned()],
        };
        let mut rng = SmallRng::seed_from_u64(seed ^ 1);
        let frontier = start.frontier;
        let paused = start.paused.iter().map(|paused| paused.endpoint.clone()).collect();
        Self {
            number,
            epoch,
            dispatcher: Dispatcher::new(settings, start, SmallRng::seed_from_u64(seed)),
            rules: schema::rules(),
            changes: Changes::new(frontier),
            connection: Some(Connection::start(postgres, frontier, streaming.draw(&mut rng))),
            open: OpenTransactions::new(open),
            foreseen: BTreeMap::new(),
            plays: VecDeque::new(),
            turns: Turns::new(streaming.held_max_bytes),
            streaming,
            streamed: 0,
            rng,
            in_flight: BTreeMap::new(),
            look_ups: BTreeMap::new(),
            deferred: None,
            unrouted: None,
            storing: None,
            unstored: 0,
            reads: false,
            stale: false,
            winds_down: false,
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

    /// What it would send twice, were it to die now.
    pub(crate) fn excused(&self) -> u64 {
        let storing = self.storing.as_ref().map_or(0, |storing| storing.outcomes);
        self.in_flight.len() as u64 + self.unstored + storing
    }
}
