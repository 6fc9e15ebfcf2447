//! Wires the pipeline: builds the bounded channels, spawns every task, joins every task.
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
//! the latest counts. Beside them, with the state or the source alone: notices, retention, vacuum, the replay
//! window and its slot. Every task tells what fails to [`health`], which the admin server shows in any role.
//!
//! One process leads at a time: the one that holds the slot. The others stand by here until the slot
//! is free. A leader goes on through a lost connection; when another has led meanwhile (the epoch has
//! changed) it forgets all it has in memory and stands by again.

pub mod admin;
mod backoff;
mod coverage;
mod dispatch;
mod error;
pub mod health;
mod jobs;
mod leadership;
pub mod log;
mod lookups;
mod maintenance;
pub mod metrics;
mod notify;
mod observe;
mod open_transactions;
mod pace;
pub(crate) mod prepared;
mod published;
pub(crate) mod range;
mod reader;
pub mod record;
mod refill;
mod replay;
mod replay_window;
mod responder;
mod rulebook;
pub(crate) mod sessions;
pub mod spool;
mod stop;
mod tasks;
pub mod trouble;
#[cfg(feature = "workers")]
pub(crate) mod workers;
#[cfg(not(feature = "workers"))]
#[path = "server/without_workers.rs"]
mod workers;
mod writer;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config, DeliveryMode};
use crate::server::health::{Role, Teller};
use crate::server::metrics::Metrics;
use jobs::{Jobs, Outlets};
use leadership::{Attempt, Leader, LeaderBefore, Source, become_leader};
use lookups::LookupResponder;
use maintenance::{Measuring, Retention, Vacuum};
use notify::Notices;
use observe::Observer;
use open_transactions::OpenTransactionRows;
use reader::{Reader, Received, Shown, Streaming};
use record::{Recorded, Recording};
use refill::Refiller;
use replay::Replays;
use replay_window::{ReplayWindow, Touching};
use responder::Responder;
use rulebook::Rulebook;
use sessions::{LEASE, Sessions, open_state};
pub use stop::{Fatal, Stop, Unfit};
use tasks::Tasks;
use walhook_core::event::Item;
use walhook_core::id::Epoch;
use walhook_core::lsn::Lsn;
use walhook_core::room::Measured;
use walhook_dispatch::dispatcher::{Dispatcher, Ordering, ReplayInput, Settings};
use walhook_dispatch::retry::RetryPolicy;
use walhook_dispatch::settle::SettlePolicy;
use walhook_http::sender::Sender;
use walhook_postgres::feedback::Feedback;
use walhook_postgres::pg::Conninfo;
use walhook_process::clock::Clock;
use walhook_process::descriptors;
use walhook_rules::turns::Turns;
use workers::lead::LeaderWorkers;
#[cfg(feature = "workers")]
pub use workers::run_worker;

/// Batches between reader and dispatcher: each at most 64 KiB and one event.
const BATCHES: usize = 8;

/// Endpoints that an event is routed to at once: a fraction of a millisecond.
const SLICE: usize = 256;

/// An account's lane with so many deliveries has enough to send: more than there are slots by default.
const LANE_MAX: usize = 2_048;

/// Dead letters on their way from the state database to the dispatcher.
const RETRIES: usize = 64;

/// Event types that the first line names.
const TYPES_SAID: usize = 20;

/// Beyond the longest request: for storing the last outcomes.
const STORE_GRACE: Duration = Duration::from_secs(5);

/// Runs until `shutdown`: stands by while another instance leads, leads when the slot is free.
///
/// `shutdown` drains: no new request is sent, those in flight may end, their outcomes are stored.
/// `serves`: whether it sends for the leader while it stands by. `recording`: where what comes in is written.
///
/// # Errors
/// [`Stop`], except [`Stop::Fenced`], which leads back to standing by.
pub async fn run(
    config: Config,
    serves: bool,
    shutdown: CancellationToken,
    recording: Option<&Recording>,
) -> Result<(), Stop> {
    let types = config.events.iter().map(|rule| rule.event_type.as_str());
    let metrics = Arc::new(Metrics::new(&config.source.slot, types).map_err(Fatal::from)?);
    let (tell, watched) = Teller::new(&config.source.slot);
    let mut server = JoinSet::new();
    let listener = admin::bind(config.admin.listen).await?;
    say_who_starts(&config, listener.local_addr().ok());
    let closed = CancellationToken::new();
    server.spawn(admin::serve(listener, Arc::clone(&metrics), watched, closed.clone()));
    let result = stand_by_and_lead(&config, serves, &metrics, &tell, &shutdown, recording).await;
    if let Err(Stop::Halted(halt)) = &result {
        tell.set_role(Role::Halted(halt.to_string()));
        store_halt(&config, &halt.to_string()).await;
    }
    closed.cancel();
    while server.join_next().await.is_some() {}
    result
}

/// The first line: what runs here, and on what.
fn say_who_starts(config: &Config, admin: Option<SocketAddr>) {
    let mut types: Vec<&str> = config.events.iter().map(|rule| rule.event_type.as_str()).collect();
    types.sort_unstable();
    types.dedup();
    let more = types.len().saturating_sub(TYPES_SAID);
    types.truncate(TYPES_SAID);
    let mut types = types.join(", ");
    if more > 0 {
        types.push_str(&format!(" and {more} more"));
    }
    let source = Conninfo::parse(&config.source.url).ok();
    let source = source.as_ref();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        admin = %admin.unwrap_or(config.admin.listen),
        rules = config.events.len(),
        types,
        role = source.map_or("unknown", Conninfo::user),
        database = source.map_or("unknown", Conninfo::database),
        slot = %config.source.slot,
        "walhook starts"
    );
}

async fn stand_by_and_lead(
    config: &Config,
    serves: bool,
    metrics: &Arc<Metrics>,
    tell: &Teller,
    shutdown: &CancellationToken,
    recording: Option<&Recording>,
) -> Result<(), Stop> {
    let sender = match config.delivery.mode {
        DeliveryMode::Live => Sender::Live(Arc::new(config.transport().map_err(Unfit::Transport)?)),
        DeliveryMode::Log => Sender::Log,
    };
    if !sender.is_live() {
        tracing::warn!(
            "delivery.mode is \"log\": NOTHING IS SENT; each delivery is logged instead, and the checkpoint \
             passes it as if it had been delivered"
        );
    }
    #[cfg(feature = "workers")]
    let link = workers::link(config, shutdown).await?;
    #[cfg(feature = "workers")]
    let mut standby = link
        .as_ref()
        .filter(|_| serves)
        .and_then(|link| workers::Standby::new(config, link, &sender, metrics, tell, shutdown));
    #[cfg(not(feature = "workers"))]
    let _nothing_is_served = serves;
    let mut attempt = Attempt::first(config);
    let ended = loop {
        let stands_by = || {
            #[cfg(feature = "workers")]
            if let Some(standby) = &mut standby {
                standby.serve();
            }
        };
        let leader = become_leader(config, tell, shutdown, &mut attempt, stands_by).await;
        #[cfg(feature = "workers")]
        if let Some(standby) = &mut standby {
            standby.stop();
        }
        let leader = match leader {
            Ok(Some(leader)) => leader,
            Ok(None) => break Ok(()),
            Err(stop) => break Err(stop),
        };
        tracing::info!(
            epoch = leader.epoch.0, frontier = %leader.start.frontier, slot = %config.source.slot,
            "leading: streaming from the slot"
        );
        tell.set_role(Role::Leader);
        metrics.set_leader(true);
        let ways = Ways {
            sender: sender.clone(),
            #[cfg(feature = "workers")]
            link: link.clone(),
        };
        let ended = lead(config, leader, ways, metrics, tell, shutdown, recording).await;
        metrics.set_leader(false);
        match ended {
            Err(Stop::Fenced) => tracing::warn!("another instance has taken over; standing by"),
            Err(stop @ Stop::NotReadBack(_)) => {
                tracing::error!(problem = %stop, "leading anew, from the checkpoint and without streaming");
                attempt.streams = false;
            }
            ended => break ended,
        }
        tell.set_role(Role::Standby);
    };
    #[cfg(feature = "workers")]
    if let Some(standby) = standby {
        standby.ended().await;
    }
    ended
}

/// By whom attempts are made.
struct Ways {
    sender: Sender,
    /// The workers' side, with `[workers]`.
    #[cfg(feature = "workers")]
    link: Option<workers::Link>,
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
async fn lead(
    config: &Config,
    leader: Leader,
    ways: Ways,
    metrics: &Arc<Metrics>,
    tell: &Teller,
    shutdown: &CancellationToken,
    recording: Option<&Recording>,
) -> Result<(), Stop> {
    let Leader { epoch, clock, system_identifier, start, store, source, before } = leader;
    let leading = Leading {
        config: config.clone(),
        sender: ways.sender.clone(),
        metrics: Arc::clone(metrics),
        tell: tell.clone(),
        sessions: Arc::new(Sessions::new(config.clone(), epoch)),
    };
    let (batches, input) = mpsc::channel(BATCHES);
    let (retry, retries) = mpsc::channel(RETRIES);
    let (operator, asked) = mpsc::channel(1);
    let (replay, replays) = mpsc::channel(1);
    let (lookup, lookup_requests) = mpsc::channel(1);
    let (reply, looked_up) = mpsc::channel(1);
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
        lookup,
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
    let mut tasks = Tasks::new(shutdown, tell.clone());
    let workers = leading.workers(&mut tasks, &ways, (epoch, clock), before).await?;
    leading.dispatch(&mut tasks, dispatcher, channels, clock, (recorded, workers));
    let abort = tasks.abort.clone();
    tasks.spawn("writer", writer::write(store, persist_requests, stored, tell.clone(), abort));
    leading.respond(&mut tasks, Refiller::new(config.clone()), refill_requests, refilled);
    let lookups = LookupResponder::new(config.clone(), tell.clone());
    leading.respond(&mut tasks, lookups, lookup_requests, reply);
    let ends = ReaderEnds { batches, flushed, wants_plays, evictions, shown };
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
        let ReaderEnds { batches, flushed, wants_plays, evictions, shown } = ends;
        let (config, now) = (&self.config, clock.now());
        let flushed_at = *flushed.borrow();
        let reader = Reader {
            config: config.clone(),
            epoch,
            turns: Turns::new(reader::held_max_bytes(config)),
            was_live: false,
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
        clock: Clock,
        (recorded, workers): (Option<Recorded>, Option<LeaderWorkers>),
    ) {
        let (fast, slow) = slots(&self.config.scheduler);
        let tools = dispatch::Tools {
            sender: self.sender.clone(),
            metrics: Arc::clone(&self.metrics),
            clock,
            grace: self.config.delivery.timeout + STORE_GRACE,
            workers,
            slots: fast.saturating_add(slow),
            recorded,
        };
        let (drain, abort) = (tasks.drain.clone(), tasks.abort.clone());
        tasks.spawn("dispatcher", async move {
            dispatch::dispatch(dispatcher, channels, tools, drain, abort.clone()).await;
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
        let (to, rows) = watch::channel(None);
        let metrics = &self.metrics;
        let fleet = workers::lead::Leads { link, transport, metrics, epoch, before, rows: to };
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
        tasks.spawn(R::PART.as_str(), async move {
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
        tasks.keep(Jobs { sessions: of, tell: to, outlets, replay: Arc::clone(&asked) });
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
        tasks.keep(Vacuum { sessions: of, tell: to, measured });
        let (of, to) = again();
        tasks.keep(ReplayWindow { sessions: of, metrics: Arc::clone(&metrics), tell: to });
        tasks.keep(Touching { sessions: Arc::clone(&sessions) });
        tasks.keep(Observer::new(sessions, metrics, tell, system_identifier, evict));
    }
}

fn settings(config: &Config) -> Result<Settings, Unfit> {
    let delivery = &config.delivery;
    let retry = RetryPolicy::new(delivery.retry_base, delivery.retry_cap).map_err(Unfit::Retry)?;
    let (fast_slots, slow_slots) = slots(&config.scheduler);
    Ok(Settings {
        memory_limit: usize::try_from(config.memory.limit.0).unwrap_or(usize::MAX),
        slice: SLICE,
        lane_max: LANE_MAX,
        fast_slots,
        slow_slots,
        ordering: match delivery.ordering {
            config::Ordering::Row => Ordering::Row,
            config::Ordering::Account => Ordering::Account,
            config::Ordering::None => Ordering::None,
        },
        settle: SettlePolicy {
            quick_attempts: delivery.quick_attempts,
            retry,
            retry_for: delivery.retry_for,
        },
        disable_after: delivery.disable_after,
        max_hold: config.wal.max_hold,
        max_retained: config.wal.max_retained.0,
        notifies: config.notify.url.is_some(),
        state_max: config.state.max_size.0,
    })
}

/// The slots of the configuration, or fewer where the process may not have so many sockets: requests that
/// found none would be tried over and over, and sessions of ours might find none.
fn slots(scheduler: &config::Scheduler) -> (u32, u32) {
    descriptors::fitting_slots(descriptors::limit(), (scheduler.fast_slots, scheduler.slow_slots))
}

/// Stores why we halt, where `walhook status` shows it. The log has it in any case.
async fn store_halt(config: &Config, reason: &str) {
    let stored = async {
        let mut store = open_state(config, LEASE).await?;
        store.store_halt(reason).await
    };
    if let Err(error) = stored.await {
        tracing::warn!(%error, "cannot store the reason of the halt");
    }
}
