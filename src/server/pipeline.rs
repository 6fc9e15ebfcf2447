//! One leader's pipeline: builds the bounded channels, spawns every task, joins every task.
//!
//! ```text
//!              ┌ reader ────────────────┐           ┌ dispatcher ──────────────┐
//! PostgreSQL ─►│ wire ► decode ► rules  │─batches──►│ route ► queues ► schedule │─attempts─► a task for
//!     ▲        └─┬────────────▲───────▲─┘           │   settle ◄────────────────│◄─outcomes─ each request
//!     └─ status ─┘            │       └─flush LSN ──└───────────────────────────┘             │
//!                          evictions               asks                 hears                ▼
//!                             │          look-ups ◄─ accounts      routes ─────────►      endpoints
//!                          observer        refill ◄─ which rows    pages ──────────►
//!                                          writer ◄─ batch         what is stored ─►
//!                                                       jobs ─── retries, orders ──►
//!                                                    replays ─── past deliveries ──►
//!                                                      sizes ─── sizes of tables ──►
//! ```
//!
//! All of it goes through bounded channels. The last flush LSN, sizes and evictions are watched: of these only
//! the latest counts. Beside them, with the state or the source alone: notices, retention, vacuum, the delivery
//! log, open transactions, the replay window and its slot; with `[workers]` the bus, and the table of workers.
//! Every task tells what fails to [`super::health`], which the admin server shows in any role.

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::deliveries::DeliveryLog;
use super::jobs::{Jobs, Outlets};
use super::known::Known;
use super::leadership::{Leader, LeaderBefore, Source};
use super::lookups::LookupResponder;
use super::maintenance::{Measuring, Retention, Vacuum};
use super::notify::Notices;
use super::observe::Observer;
use super::open_transactions::OpenTransactionRows;
use super::reader::{Proof, Reader, Received, Shown, Streaming};
use super::record::{Recorded, Recording};
use super::refill::Refiller;
use super::replay::Replays;
use super::replay_window::{ReplayWindow, Touching};
use super::responder::Responder;
use super::rulebook::Rulebook;
use super::sessions::Sessions;
use super::settings::{settings, slots};
#[cfg(feature = "workers")]
use super::stop::Fatal;
use super::stop::Stop;
use super::tasks::Tasks;
#[cfg(feature = "workers")]
use super::workers;
use super::workers::lead::LeaderWorkers;
use super::{dispatch, notify, reader, responder, writer};
use crate::config::Config;
use crate::server::health::{Teller, watch_checkpoint};
use crate::server::metrics::Metrics;
use walhook_core::event::Item;
use walhook_core::id::Epoch;
use walhook_core::lsn::Lsn;
use walhook_core::room::Measured;
use walhook_dispatch::dispatcher::{Dispatcher, ReplayInput};
use walhook_http::sender::Sender;
use walhook_postgres::feedback::Feedback;
use walhook_process::clock::Clock;
use walhook_rules::turns::Turns;

/// Batches between reader and dispatcher: each at most 64 KiB and one event.
const BATCHES: usize = 8;

/// Dead letters on their way from the state database to the dispatcher.
const RETRIES: usize = 64;

/// By whom attempts are made.
pub(super) struct Ways {
    pub(super) sender: Sender,
    /// The workers' side, with `[workers]`.
    #[cfg(feature = "workers")]
    pub(super) link: Option<workers::Link>,
}

/// What every task of one leader has.
struct Leading {
    config: Config,
    sender: Sender,
    metrics: Arc<Metrics>,
    tell: Teller,
    sessions: Arc<Sessions>,
}

/// Where the tasks beside the stream bring what they find to the dispatcher, and to the reader.
struct Inlets {
    outlets: Outlets,
    replay: mpsc::Sender<ReplayInput>,
    measured: watch::Sender<Measured>,
    evict: watch::Sender<Option<u32>>,
}

/// Leads until shutdown, or until something stops it. Joins every task that it spawns.
pub(super) async fn lead(
    config: &Config,
    leader: Leader,
    ways: Ways,
    metrics: &Arc<Metrics>,
    tell: &Teller,
    shutdown: &CancellationToken,
    recording: Option<&Recording>,
) -> Result<(), Stop> {
    let Leader { epoch, clock, system_identifier, start, store, source, before, known } = leader;
    let leading = Leading {
        config: config.clone(),
        sender: ways.sender.clone(),
        metrics: Arc::clone(metrics),
        tell: tell.clone(),
        sessions: Arc::new(Sessions::new(config.clone(), epoch, known.timelines.clone())),
    };
    let (batches, input) = mpsc::channel(BATCHES);
    let (retry, retries) = mpsc::channel(RETRIES);
    let (operator, asked) = mpsc::channel(1);
    let (replay, replays) = mpsc::channel(1);
    let (look_up, usual) = mpsc::channel(1);
    let (look_up_costly, costly) = mpsc::channel(1);
    let (reply, looked_up) = mpsc::channel(2);
    // Two kinds of pages, one request of each at a time.
    let (refill, refill_requests) = mpsc::channel(2);
    let (refilled, pages) = mpsc::channel(2);
    let (persist, persist_requests) = mpsc::channel(1);
    let (stored, persisted) = mpsc::channel(1);
    let (measured, sizes) = watch::channel(Measured::default());
    let (evict, evictions) = watch::channel(None);
    let (shown, open_transactions, streamed_bytes) = Shown::new();
    let (flush, flushed) = watch::channel(start.frontier);
    let (plays, wants_plays) = watch::channel(true);
    let channels = dispatch::Channels {
        input,
        retries,
        operator: asked,
        replays,
        look_up,
        look_up_costly,
        looked_up,
        refill,
        refilled: pages,
        persist,
        persisted,
        sizes,
        streamed_bytes,
        flush,
        plays,
    };
    let (settings, seed) = (settings(config)?, rand::random());
    let recorded = recording.and_then(|to| to.tape().begin(&settings, &start, seed));
    let dispatcher = Dispatcher::new(settings, start, SmallRng::seed_from_u64(seed));
    let mut tasks = Tasks::new(tell.clone());
    let workers = leading.workers(&mut tasks, &ways, (epoch, clock), before).await?;
    let clocks = (clock, shutdown.clone());
    leading.dispatch(&mut tasks, dispatcher, channels, clocks, (recorded, workers));
    let abort = tasks.abort.clone();
    tasks.spawn("checkpoint", watch_checkpoint(tell.clone(), abort.clone()));
    tasks.spawn("writer", writer::write(store, persist_requests, stored, tell.clone(), abort));
    leading.respond(
        &mut tasks,
        Refiller::new(config.clone(), known.timelines.clone()),
        refill_requests,
        refilled,
    );
    let [of_usual, of_costly] = LookupResponder::both(config, &known.timelines, tell);
    leading.respond(&mut tasks, of_usual, usual, reply.clone());
    leading.respond(&mut tasks, of_costly, costly, reply);
    let ends = ReaderEnds { batches, flushed, wants_plays, evictions, shown, known };
    leading.read(&mut tasks, source, ends, (epoch, clock, system_identifier));
    let outlets = Outlets { retries: retry, operator };
    let inlets = Inlets { outlets, replay, measured, evict };
    let (sessions, tell) = (Arc::clone(&leading.sessions), tell.clone());
    tasks.keep(OpenTransactionRows { sessions, tell, rows: open_transactions });
    leading.attend(&mut tasks, inlets, system_identifier);
    tasks.join().await
}

/// Where the reader brings what it makes, and what tells it how far that is.
struct ReaderEnds {
    batches: mpsc::Sender<Vec<Item>>,
    flushed: watch::Receiver<Lsn>,
    wants_plays: watch::Receiver<bool>,
    evictions: watch::Receiver<Option<u32>>,
    shown: Shown,
    known: Known,
}

impl Leading {
    /// The reader.
    fn read(
        &self,
        tasks: &mut Tasks,
        source: Source,
        ends: ReaderEnds,
        (epoch, clock, system_identifier): (Epoch, Clock, u64),
    ) {
        let Source { session, streams, rules, changes, left_out } = source;
        let ReaderEnds { batches, flushed, wants_plays, evictions, shown, known } = ends;
        let (config, now) = (&self.config, clock.now());
        let flushed_at = *flushed.borrow();
        let reader = Reader {
            config: config.clone(),
            epoch,
            known,
            primary: session.primary,
            turns: Turns::new(reader::held_max_bytes(config)),
            was_live: false,
            proof: Proof::new(),
            fails: None,
            backoff: Backoff::new(),
            made: Vec::new(),
            broken: None,
            left_out,
            unreadable: None,
            received: Received::new(config, shown),
            streaming: Streaming::new(config, now),
            clock,
            metrics: Arc::clone(&self.metrics),
            tell: self.tell.clone(),
            book: Rulebook::new(config.clone(), system_identifier, rules),
            changes,
            batches,
            flushed,
            wants_plays,
            evictions,
            feedback: Feedback::new(flushed_at, flushed_at, session.sender_timeout, now),
            drain: tasks.drain.clone(),
            abort: tasks.abort.clone(),
        };
        tasks.spawn("reader", reader.read(session, streams));
    }

    /// The dispatcher. All others end with it.
    fn dispatch(
        &self,
        tasks: &mut Tasks,
        dispatcher: Dispatcher,
        channels: dispatch::Channels,
        (clock, shutdown): (Clock, CancellationToken),
        (recorded, workers): (Option<Recorded>, Option<LeaderWorkers>),
    ) {
        let (fast, slow) = slots(&self.config.scheduler);
        let tools = dispatch::Tools {
            sender: self.sender.clone(),
            metrics: Arc::clone(&self.metrics),
            clock,
            timeout: self.config.delivery.timeout,
            workers,
            slots: fast.saturating_add(slow),
            recorded,
            pipeline: self.config.source.slot.clone(),
            work: self.tell.work(),
            tell: self.tell.clone(),
        };
        let (drain, abort) = (tasks.drain.clone(), tasks.abort.clone());
        let ends = dispatch::Ends { shutdown, drain, abort: abort.clone() };
        tasks.spawn("dispatcher", async move {
            dispatch::dispatch(dispatcher, channels, tools, ends).await;
            abort.cancel();
            Ok(())
        });
    }

    /// Those who send beside the leader; nobody does, where deliveries are only logged.
    #[cfg(feature = "workers")]
    async fn workers(
        &self,
        tasks: &mut Tasks,
        ways: &Ways,
        (epoch, clock): (Epoch, Clock),
        before: LeaderBefore,
    ) -> Result<Option<LeaderWorkers>, Stop> {
        let (Some(link), Sender::Live(transport)) = (&ways.link, &ways.sender) else {
            return Ok(None);
        };
        let (mut bus, abort) = (link.bus.watch(), tasks.abort.clone());
        tasks.spawn("bus", async move {
            while let Some(Some(_)) = abort.run_until_cancelled(bus.next()).await {}
            if abort.is_cancelled() { Ok(()) } else { Err(Fatal::BusEnded.into()) }
        });
        let (to, rows) = watch::channel(None);
        let (metrics, tell) = (&self.metrics, &self.tell);
        let fleet =
            workers::lead::Leads { link, transport, metrics, tell, epoch, before, rows: to };
        let workers = LeaderWorkers::start(&self.config, fleet, clock.now()).await?;
        let (sessions, tell) = (Arc::clone(&self.sessions), self.tell.clone());
        tasks.keep(workers::rows::Rows { sessions, tell, rows });
        Ok(workers)
    }

    #[cfg(not(feature = "workers"))]
    #[expect(clippy::unused_async, reason = "as where there are some")]
    async fn workers(
        &self,
        _: &mut Tasks,
        _: &Ways,
        _: (Epoch, Clock),
        _: LeaderBefore,
    ) -> Result<Option<LeaderWorkers>, Stop> {
        Ok(None)
    }

    /// What answers one kind of the dispatcher's questions.
    fn respond<R: Responder>(
        &self,
        tasks: &mut Tasks,
        responder: R,
        questions: mpsc::Receiver<R::Question>,
        answers: mpsc::Sender<R::Answer>,
    ) {
        let (tell, abort) = (self.tell.clone(), tasks.abort.clone());
        tasks.spawn(responder.part().as_str(), async move {
            responder::serve(responder, questions, answers, tell, abort).await;
            Ok(())
        });
    }

    /// What goes on beside the stream.
    fn attend(self, tasks: &mut Tasks, inlets: Inlets, system_identifier: u64) {
        let Self { config, sender, metrics, tell, sessions } = self;
        let Inlets { outlets, replay, measured, evict } = inlets;
        let measured = Arc::new(measured);
        let again = || (Arc::clone(&sessions), tell.clone());
        let (of, to) = again();
        let asked = Arc::new(Notify::new());
        let (metrics_of, replay_of) = (Arc::clone(&metrics), Arc::clone(&asked));
        tasks.keep(Jobs::new(of, metrics_of, to, outlets, replay_of));
        let (of, to) = again();
        tasks.keep(Replays::new(of, to, replay, asked));
        if let Some(receiver) = notify::receiver(&config) {
            let (sessions, tell) = again();
            let metrics = Arc::clone(&metrics);
            tasks.keep(Notices { sessions, to: receiver, sender, metrics, tell });
        }
        let (of, to) = again();
        tasks.keep(Measuring {
            sessions: of,
            metrics: Arc::clone(&metrics),
            tell: to,
            measured: Arc::clone(&measured),
        });
        let (of, to) = again();
        tasks.keep(Retention { sessions: of, tell: to });
        let (of, to) = again();
        tasks.keep(DeliveryLog::new(of, Arc::clone(&metrics), to));
        let (of, to) = again();
        tasks.keep(Vacuum { sessions: of, tell: to, measured });
        let (of, to) = again();
        tasks.keep(ReplayWindow { sessions: of, metrics: Arc::clone(&metrics), tell: to });
        tasks.keep(Touching { sessions: Arc::clone(&sessions) });
        tasks.keep(Observer::new(sessions, metrics, tell, system_identifier, evict));
    }
}
