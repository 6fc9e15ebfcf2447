//! The task that owns the dispatcher: feeds it what comes, does what it asks.

mod asked;
mod attempt;
mod fleet;
mod gauges;
mod log;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::record::Recorded;
use super::refill::{RefillReply, RefillRequest};
use super::work::{Recent, Shown};
use super::workers::lead::LeaderWorkers;
use super::writer::PersistRequest;
use crate::server::health::Teller;
use crate::server::metrics::Metrics;
use attempt::{Ended, Job, attempt};
use fleet::come;
pub(super) use fleet::{Back, Sends};
use log::ChangeLog;
use walhook_core::attempt::{Attempt, DeliveryId};
use walhook_core::event::Item;
use walhook_core::lsn::Lsn;
use walhook_core::persist::Persisted;
use walhook_core::position::EventId;
use walhook_core::room::Measured;
use walhook_core::tick::Tick;
use walhook_dispatch::dispatcher::{
    Counters, Dispatch, Dispatcher, Effect, Find, Input, LookUp, LookUpAnswer, OperatorInput,
    ReplayInput, Retry, Settled,
};
use walhook_dispatch::map::NumberMap;
use walhook_dispatch::route::LookUpLine;
use walhook_http::attempts::Attempts;
use walhook_http::sender::Sender;
use walhook_process::clock::{Clock, unix_us};
use walhook_process::failpoint::Failpoint;

/// How much longer than the longest request the end may take: what is settled is stored.
const STORE_GRACE: Duration = Duration::from_secs(5);

/// Outcomes taken at once before anything else has its turn.
const OUTCOMES_AT_ONCE: usize = 256;

/// The dispatcher's ends of the pipeline's channels. All are bounded.
pub(super) struct Channels {
    pub(super) input: mpsc::Receiver<Vec<Item>>,
    pub(super) retries: mpsc::Receiver<Retry>,
    pub(super) operator: mpsc::Receiver<OperatorInput>,
    pub(super) replays: mpsc::Receiver<ReplayInput>,
    pub(super) look_up: mpsc::Sender<LookUp>,
    pub(super) look_up_costly: mpsc::Sender<LookUp>,
    pub(super) looked_up: mpsc::Receiver<LookUpAnswer>,
    pub(super) refill: mpsc::Sender<RefillRequest>,
    pub(super) refilled: mpsc::Receiver<RefillReply>,
    pub(super) persist: mpsc::Sender<PersistRequest>,
    pub(super) persisted: mpsc::Receiver<Persisted>,
    /// What the state tables take; the last measure is enough.
    pub(super) sizes: watch::Receiver<Measured>,
    /// What the transactions take that are received while they are open.
    pub(super) streamed_bytes: watch::Receiver<usize>,
    pub(super) flush: watch::Sender<Lsn>,
    /// Whether there is room for what is played beside the stream.
    pub(super) plays: watch::Sender<bool>,
}

/// What the task works with beside the dispatcher.
pub(super) struct Tools {
    pub(super) sender: Sender,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Clock,
    /// How long one request takes at most.
    pub(super) timeout: Duration,
    /// Who sends beside the leader, with `[workers]`.
    pub(super) workers: Option<LeaderWorkers>,
    /// Requests that may be in flight at once, until the fleet says otherwise.
    pub(super) slots: u32,
    /// Writes down what comes in, where that is asked for.
    pub(super) recorded: Option<Recorded>,
    /// The slot's name.
    pub(super) pipeline: String,
    /// Where it is shown what there is to do.
    pub(super) work: Shown,
    /// Where it is said that nothing can be sent.
    pub(super) tell: Teller,
}

/// What tells the task to end.
pub(super) struct Ends {
    /// End what takes long, then what is in flight, and store what is settled.
    pub(super) shutdown: CancellationToken,
    /// Given by the task in a shutdown, once nothing new may begin.
    pub(super) drain: CancellationToken,
    /// Leave everything: another leads.
    pub(super) abort: CancellationToken,
}

/// Drives the dispatcher until it is to end.
///
/// A shutdown has two parts, since nobody is sent anything from the moment on at which nothing new may begin until the
/// next leader leads. In the first, what takes long ends, while all that is quick goes on: an account whose endpoint
/// hangs stops nobody. In the second all that is in flight ends.
///
/// Correctness does not depend on how it ends: what is not stored is sent again.
pub(super) async fn dispatch(
    dispatcher: Dispatcher,
    mut channels: Channels,
    tools: Tools,
    Ends { shutdown, drain, abort }: Ends,
) {
    let (clock, timeout) = (tools.clock, tools.timeout);
    let mut driver = Driver::new(dispatcher, tools);
    // When a shutdown stops all that is new, and when it gives up what has not ended.
    let (mut drain_at, mut give_up_at): (Option<Instant>, Option<Instant>) = (None, None);
    loop {
        let now = driver.carry_out_all(&channels);
        if drain_at.is_some_and(|at| driver.dispatcher.is_wound_down() || Instant::now() >= at) {
            drain_at = None;
            drain.cancel();
            driver.stop();
            continue;
        }
        driver.find_on();
        let dispatcher = &driver.dispatcher;
        let fleet_due = driver.tools.workers.as_ref().map(LeaderWorkers::deadline);
        if drain.is_cancelled()
            && give_up_at.is_some_and(|at| dispatcher.is_drained() || Instant::now() >= at)
        {
            driver.say_what_is_left();
            return;
        }
        let due = dispatcher.deadline().into_iter().chain(fleet_due).min();
        let due = due.map(|due| clock.instant(due.max(now)));
        let at_once = (driver.fleet_was_heard || driver.find.is_some()).then(Instant::now);
        let wakes = [Some(driver.next_gauges), due, drain_at, give_up_at, at_once];
        let wake = wakes.into_iter().flatten().min().unwrap_or_else(Instant::now);
        let (takes_items, takes_replays) = (dispatcher.wants_input(), dispatcher.wants_replay());
        let plays = dispatcher.wants_plays();
        channels.plays.send_if_modified(|told| std::mem::replace(told, plays) != plays);

        tokio::select! {
            // First what ends things, then what frees room, then what takes it.
            biased;
            () = abort.cancelled() => return,
            () = shutdown.cancelled(), if give_up_at.is_none() => {
                let at = Instant::now() + timeout;
                (drain_at, give_up_at) = (Some(at), Some(at + STORE_GRACE));
                driver.ended = Some(0);
                driver.handle(Input::WindDown);
            }
            // What follows from rows that somebody removes is heard after what they are.
            Some(persisted) = channels.persisted.recv() => {
                driver.take_commands(&mut channels.operator);
                driver.handle(Input::Stored(Box::new(persisted)));
            }
            Some(answer) = channels.looked_up.recv() => driver.handle(Input::Routes(Box::new(answer))),
            Some(reply) = channels.refilled.recv() => {
                driver.take_commands(&mut channels.operator);
                driver.handle(match reply {
                    RefillReply::Deferred(pages) => Input::DeferredPages(pages),
                    RefillReply::Unrouted(pages) => Input::UnroutedPages(pages),
                });
            }
            Some(command) = channels.operator.recv() => {
                driver.handle(Input::Command(Box::new(command)));
            }
            Ok(()) = channels.sizes.changed() => {
                let measured = channels.sizes.borrow_and_update().clone();
                driver.handle(Input::StateSize(Box::new(measured)));
            }
            () = driver.tools.work.wanted() => driver.show_work(),
            Ok(()) = driver.sought.changed() => driver.seek(),
            ended = driver.attempts.next() => {
                driver.take_outcomes(ended);
                // Under a flood of outcomes workers and the stream must still have their turns.
                driver.take_waiting_from_workers();
                if driver.dispatcher.wants_input() && let Ok(batch) = channels.input.try_recv() {
                    driver.take(batch);
                }
            }
            came = come(&mut driver.tools.workers) => driver.take_from_workers(came),
            Some(batch) = channels.input.recv(), if takes_items => driver.take(batch),
            Some(retry) = channels.retries.recv(), if takes_items => {
                driver.handle(Input::Retry(Box::new(retry)));
            }
            Some(input) = channels.replays.recv(), if takes_replays => {
                driver.handle(Input::Replay(Box::new(input)));
            }
            () = sleep_until(wake) => {}
        }
        driver.report_now_and_then();
    }
}

/// The dispatcher with all that its effects need.
struct Driver {
    dispatcher: Dispatcher,
    tools: Tools,
    attempts: Attempts<Job, Ended>,
    /// For each attempt the way to give it up.
    under_way: NumberMap<DeliveryId, oneshot::Sender<()>>,
    connection_bytes: usize,
    slots: u32,
    /// The dispatcher has not been asked since it heard something of the fleet.
    fleet_was_heard: bool,
    next_gauges: Instant,
    reported: Counters,
    log: ChangeLog,
    /// Requests that have come to an end since the shutdown began.
    ended: Option<usize>,
    /// Deliveries of the last minute.
    recent: Recent,
    /// The event that somebody wants to know of, and how far it was sought.
    sought: watch::Receiver<Option<EventId>>,
    find: Option<(EventId, Find)>,
}

impl Driver {
    fn new(dispatcher: Dispatcher, tools: Tools) -> Self {
        let sender = tools.sender.clone();
        let attempts = Attempts::new(&tools.sender, move |job| attempt(sender.clone(), job));
        Self {
            dispatcher,
            attempts,
            under_way: NumberMap::default(),
            connection_bytes: 0,
            slots: tools.slots,
            fleet_was_heard: false,
            next_gauges: Instant::now(),
            reported: Counters::default(),
            log: ChangeLog::default(),
            ended: None,
            recent: Recent::default(),
            sought: tools.work.sought(),
            find: None,
            tools,
        }
    }

    fn handle(&mut self, input: Input) {
        self.handle_at(self.tools.clock.now(), input);
    }

    fn handle_at(&mut self, now: Tick, input: Input) {
        if let (Some(ended), Input::Outcome { .. }) = (&mut self.ended, &input) {
            *ended += 1;
        }
        self.record(|recorded| recorded.input(now, &input));
        self.dispatcher.handle(now, input);
    }

    /// Where the recording has ended, that is the last of it.
    fn record(&mut self, act: impl FnOnce(&mut Recorded) -> Option<()>) {
        if let Some(recorded) = &mut self.tools.recorded
            && act(recorded).is_none()
        {
            self.tools.recorded = None;
        }
    }

    /// Does all that is to be done at this moment, and says which it was.
    fn carry_out_all(&mut self, channels: &Channels) -> Tick {
        let now = self.tools.clock.now();
        let streamed = *channels.streamed_bytes.borrow();
        let held = self.tools.sender.held_bytes().saturating_add(streamed);
        if std::mem::replace(&mut self.connection_bytes, held) != held {
            self.handle_at(now, Input::ConnectionBytes(held));
        }
        // What comes back makes room, for which the dispatcher is asked; what it sends then goes.
        self.carry_out_fleet(now);
        while let Some(effect) = self.dispatcher.poll(now) {
            self.record(|recorded| recorded.effect(&effect));
            self.carry_out(effect, channels, now);
        }
        self.fleet_was_heard = self.carry_out_fleet(now);
        self.attempts.hand_over();
        self.record(|recorded| recorded.polled(now));
        now
    }

    fn carry_out(&mut self, effect: Effect, channels: &Channels, now: Tick) {
        // One batch of each kind at a time is asked for, and the channels hold as many: none can be full.
        match effect {
            Effect::Send(Dispatch { attempt: next, waited }) => {
                self.tools.metrics.observe_queue_wait(waited);
                match &mut self.tools.workers {
                    None => self.send(next),
                    Some(workers) => match workers.place(now, &next) {
                        Sends::Leader => self.send(next),
                        Sends::Worker => {}
                        Sends::Nobody => self.refuse(now, &next),
                    },
                }
            }
            // One that has just ended does not listen any more.
            Effect::Abort(delivery) => match self.under_way.remove(&delivery) {
                Some(give_up) => _ = give_up.send(()),
                None => {
                    if let Some(workers) = &mut self.tools.workers {
                        workers.abort(now, delivery);
                    }
                }
            },
            Effect::LookUp(look_up) => {
                let line = match look_up.line {
                    LookUpLine::Usual => &channels.look_up,
                    LookUpLine::Costly => &channels.look_up_costly,
                };
                let _ = line.try_send(look_up);
            }
            Effect::ReadDeferred(pages) => {
                let _ = channels.refill.try_send(RefillRequest::Deferred(pages));
            }
            Effect::ReadUnrouted(pages) => {
                let _ = channels.refill.try_send(RefillRequest::Unrouted(pages));
            }
            Effect::Store(batch) => _ = channels.persist.try_send(PersistRequest { batch }),
            Effect::Flush(flush) => {
                channels.flush.send_if_modified(|lsn| std::mem::replace(lsn, flush) != flush);
            }
            Effect::Settled(settled) => self.count_settled(&settled, now),
            Effect::Report(changed) => {
                self.log.change(&changed, now);
                self.tools.metrics.count_endpoint_change(changed.change);
            }
            Effect::StateFull { total_bytes } => tracing::error!(
                total_bytes,
                "the state tables have reached state.max_size, and no endpoint has dead \
                 letters or deferred deliveries to give up: raise state.max_size"
            ),
        }
    }

    /// Sends one here.
    fn send(&mut self, attempt: Attempt) {
        let (give_up, given_up) = oneshot::channel();
        self.under_way.insert(attempt.first().id, give_up);
        let endpoint = Arc::clone(&attempt.endpoint);
        self.attempts.add(&endpoint.url, (attempt, given_up));
    }

    /// The end begins: what is in flight may end.
    fn stop(&mut self) {
        let now = self.tools.clock.now();
        if let Some(workers) = &mut self.tools.workers {
            workers.stop(now);
        }
        self.handle_at(now, Input::Stop);
    }

    /// Requests in flight, wherever they are.
    fn in_flight(&self) -> usize {
        let here = self.under_way.len();
        self.tools.workers.as_ref().map_or(here, |workers| workers.in_flight(here))
    }

    /// Takes what operators have asked by now.
    fn take_commands(&mut self, commands: &mut mpsc::Receiver<OperatorInput>) {
        while let Ok(command) = commands.try_recv() {
            self.handle(Input::Command(Box::new(command)));
        }
    }

    /// Takes an outcome, and those that have come meanwhile.
    fn take_outcomes(&mut self, ended: Ended) {
        let mut next = Some(ended);
        for _ in 0..=OUTCOMES_AT_ONCE {
            let Some(ended) = next else { return };
            self.settle(ended);
            next = self.attempts.try_next();
        }
        if let Some(ended) = next {
            self.settle(ended);
        }
    }

    fn settle(&mut self, (delivery, outcome): Ended) {
        let now = self.tools.clock.now();
        self.under_way.remove(&delivery);
        let outcome = match &mut self.tools.workers {
            None => outcome,
            Some(workers) => match workers.ended_here(now, delivery, outcome) {
                Some(outcome) => outcome,
                None => return,
            },
        };
        if self.tools.sender.is_live() {
            self.tools.metrics.count_attempt(&outcome);
        }
        self.handle_at(now, Input::Outcome { delivery, outcome });
    }

    fn count_settled(&mut self, Settled { event, delivered, measured }: &Settled, now: Tick) {
        let metrics = &self.tools.metrics;
        if *delivered && !self.tools.sender.is_live() {
            metrics.logged.inc();
        } else if *delivered {
            let us = u64::try_from(unix_us() - event.commit_time_us).unwrap_or(0);
            metrics.count_delivered(Duration::from_micros(us));
            self.recent.count(now, us);
            if let Some(measured) = measured {
                metrics.waits.count(measured);
            }
        }
    }

    fn take(&mut self, items: Vec<Item>) {
        Failpoint::Received.pass();
        let metrics = &self.tools.metrics;
        for item in &items {
            match item {
                Item::Event(event) => metrics.count_event(&event.event_type),
                Item::Unroutable(unroutable) => metrics.count_unroutable(unroutable.reason, 1),
                Item::Begin { .. }
                | Item::Invalidate(_)
                | Item::Commit { .. }
                | Item::Pause
                | Item::Resume { .. }
                | Item::Progress { .. } => {}
            }
        }
        self.handle(Input::Items(items));
    }
}
