//! A worker's side: frames in, requests, outcomes out. What is decided is decided by `walhook_fleet`; this
//! brings it what comes, and does what it asks.
//!
//! ```text
//! P.lead, P.w.<session> ──► Serving ──Begin, GiveUp──► threads for requests
//!        P.hello, P.l.… ◄──Publish──┘ ◄──────Ended─────┘
//! ```

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::apart::{Apart, Heard, Kept};
use super::{Link, subscribe};
use crate::server::health::{self, Teller};
use crate::server::leadership::hostname;
use crate::server::metrics::Metrics;
use crate::server::pace::LinePace;
use crate::server::stop::{Fatal, Stop};
use walhook_bus::{BusEvent, NotPublished, Received, Subscription, Watch};
use walhook_core::attempt::{FailureKind, Outcome};
use walhook_core::tick::{Tick, micros};
use walhook_fleet::frame::{Digest, Frame, Header, Request, SPOKEN, SessionId};
use walhook_fleet::worker::{
    AttemptKey, ServeEffect, ServeInput, ServeSettings, ServeState, Serving, To,
};
use walhook_http::attempts::Attempts;
use walhook_http::sender::Sender;
use walhook_http::transport::{Carried, Prepared, Transport};
use walhook_process::clock::boot_us;

/// Frames and outcomes taken at once before anything else has its turn.
const AT_ONCE: usize = 256;

/// How often gauges, and what `/readyz` goes by, are brought up to date.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// For the leader to hear of the last outcomes, once all requests have ended, and for what is published to be
/// written: a leader that does not is away, and sends them again.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What a worker works with.
#[derive(Clone)]
pub(crate) struct Serves {
    pub(crate) link: Link,
    /// `workers.subject`.
    pub(crate) subject: String,
    pub(crate) transport: Arc<Transport>,
    /// Requests that it sends at once, fast and slow.
    pub(crate) slots: (u32, u32),
    /// Bytes of requests that it holds at once.
    pub(crate) byte_budget: u64,
    /// Of its `[egress]`.
    pub(crate) egress: Digest,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tell: Teller,
}

/// Serves until `drain`, and then until what was begun has ended and the leader knows of it, or cannot be told.
///
/// # Errors
/// [`Stop`] when the bus cannot be subscribed to.
pub(crate) async fn serve(serves: Serves, drain: CancellationToken) -> Result<(), Stop> {
    let mut leads = subscribe(&serves.link, &serves.link.subjects.lead()).await?;
    let mut watch = serves.link.bus.watch();
    let mut worker = Worker::new(serves);
    loop {
        worker.carry_out_all().await?;
        if worker.has_ended() {
            break;
        }
        worker.report(&watch);
        let wake = worker.wake();
        tokio::select! {
            // First what ends things, then what frees room, then what takes it.
            biased;
            () = drain.cancelled(), if !worker.draining => {
                worker.draining = true;
                worker.handle(ServeInput::Drain);
            }
            event = watch.next() => {
                worker.note_bus(event.ok_or(Fatal::BusEnded)?);
            }
            ended = worker.attempts.next() => worker.take_ended(ended),
            received = heard(&mut leads) => worker.take_frame(received),
            received = heard_any(&mut worker.own) => worker.take_own(received),
            () = sleep_until(wake) => {}
        }
    }
    let bus = &worker.serves.link.bus;
    // Where it is away nothing more is written, however long that is waited for.
    let _written = bus.state().connected && bus.flush(LAST_WORDS).await;
    worker.report_now(&watch);
    match worker.serving.untold() {
        0 if worker.serving.lead_heard(boot_us()).is_none() => {
            tracing::info!("the worker has ended: it has heard no leader, and sent nothing");
        }
        0 => tracing::info!("the worker has ended: the leader has heard of all that it sent"),
        untold => tracing::warn!(
            untold,
            "the worker has ended, and no leader has heard what came of `untold` requests: they may be sent again"
        ),
    }
    Ok(())
}

async fn heard(subscription: &mut Subscription) -> Received {
    match subscription.next().await {
        Some(received) => received,
        None => std::future::pending().await,
    }
}

/// From the sessions' subjects, that of the newest one first: the others only hear that they are over.
async fn heard_any(own: &mut [(SessionId, Subscription)]) -> Received {
    poll_fn(|cx| {
        for (_, subscription) in own.iter_mut().rev() {
            if let Poll::Ready(Some(received)) = subscription.poll_next(cx) {
                return Poll::Ready(received);
            }
        }
        Poll::Pending
    })
    .await
}

/// Until when requests of a session may begin, by the boot-time clock: read by the threads that send them,
/// right before a request's first byte. A grant moves it on, for requests too that still wait for a connection;
/// 0, once the session is over: none may.
type Gate = Arc<AtomicU64>;

/// [`Serving`] with all that its effects need.
struct Worker {
    serves: Serves,
    serving: Serving,
    attempts: Attempts<Job, Ended>,
    /// For each request the way to give it up.
    under_way: BTreeMap<AttemptKey, oneshot::Sender<()>>,
    /// What leaders order, by session; the newest last.
    own: Vec<(SessionId, Subscription)>,
    /// Of the session that serves.
    gate: Gate,
    draining: bool,
    /// When it ends although the leader has not heard of everything.
    give_up_at: Option<Instant>,
    report_at: Instant,
    apart: Apart,
    /// Of lines about frames that cannot be read, and about those that the bus does not take.
    unreadable: LinePace,
    unpublished: LinePace,
}

/// What a request begins with: its key and itself, whether it may, and the word to give it up.
struct Job {
    key: AttemptKey,
    prepared: Prepared,
    gate: Gate,
    given_up: oneshot::Receiver<()>,
}

/// What became of it.
enum Fate {
    /// It has come to an end.
    Outcome(Outcome),
    /// It was not begun.
    Unsent,
    /// It was given up: nobody asks any more.
    GivenUp,
}

type Ended = (AttemptKey, Fate);

impl Worker {
    fn new(serves: Serves) -> Self {
        let (fast_slots, slow_slots) = serves.slots;
        let settings = ServeSettings {
            versions: SPOKEN,
            fast_slots,
            slow_slots,
            byte_budget: serves.byte_budget,
            host: hostname(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            egress: serves.egress,
            seed: rand::random(),
        };
        let sender = Sender::Live(Arc::clone(&serves.transport));
        let transport = Arc::clone(&serves.transport);
        let attempts = Attempts::new(&sender, move |job| attempt(Arc::clone(&transport), job));
        Self {
            apart: Apart::new(&serves),
            serving: Serving::new(settings),
            serves,
            attempts,
            under_way: BTreeMap::new(),
            own: Vec::new(),
            gate: Gate::default(),
            draining: false,
            give_up_at: None,
            report_at: Instant::now(),
            unreadable: LinePace::default(),
            unpublished: LinePace::default(),
        }
    }

    /// Whether it was told to drain, and there is nothing left to be done, or nobody to hear of it.
    fn has_ended(&mut self) -> bool {
        if self.draining && self.serving.in_flight() == 0 {
            self.give_up_at.get_or_insert_with(|| Instant::now() + LAST_WORDS);
        }
        self.serving.is_drained() || self.give_up_at.is_some_and(|at| Instant::now() >= at)
    }

    fn handle(&mut self, input: ServeInput) {
        self.serving.handle(boot_us(), input);
    }

    /// Does all that is to be done at this moment.
    async fn carry_out_all(&mut self) -> Result<(), Stop> {
        while let Some(effect) = self.serving.poll(boot_us()) {
            self.carry_out(effect).await?;
        }
        let now_us = boot_us();
        let left = self.serving.lease_left(now_us);
        let until_us = left.map_or(0, |left| now_us.saturating_add(micros(left)));
        self.gate.store(until_us, Ordering::Release);
        self.attempts.hand_over();
        Ok(())
    }

    async fn carry_out(&mut self, effect: ServeEffect) -> Result<(), Stop> {
        match effect {
            ServeEffect::Subscribe(session) => {
                // No request of the session before may begin any more, wherever it waits.
                std::mem::take(&mut self.gate).store(0, Ordering::Release);
                let subject = self.serves.link.subjects.worker(session);
                self.own.push((session, subscribe(&self.serves.link, &subject).await?));
            }
            ServeEffect::Unsubscribe(session) => self.own.retain(|(id, _)| *id != session),
            ServeEffect::Begin { key, request, until_us } => self.begin(key, *request, until_us),
            // One that has just ended does not listen any more.
            ServeEffect::GiveUp(key) => {
                self.under_way.remove(&key).map(|give_up| give_up.send(()));
            }
            ServeEffect::Publish { to, frame } => self.publish(to, &frame),
            ServeEffect::State(state) => say(state),
        }
        Ok(())
    }

    fn note_bus(&mut self, event: BusEvent) {
        let max_payload = self.serves.link.bus.state().max_payload;
        let connected = matches!(event, BusEvent::Up { .. });
        self.handle(ServeInput::Bus { connected, max_payload });
    }

    fn publish(&mut self, to: To, frame: &Frame) {
        let Link { bus, subjects } = &self.serves.link;
        let subject = match to {
            To::Hello => subjects.hello(),
            To::Leader => subjects.leader(frame.epoch, frame.session),
        };
        match bus.publish(&subject, None, frame.encode()) {
            Ok(()) => {}
            // It is as lost as what the bus loses: it is said again, or the session ends.
            Err(why @ (NotPublished::Away | NotPublished::Full)) => {
                tracing::debug!(%why, "a frame was not published");
            }
            Err(why @ (NotPublished::TooLarge | NotPublished::Subject)) => {
                if self.unpublished.admits(Tick(boot_us())) {
                    tracing::warn!(%why, subject, "a frame was not published");
                }
            }
        }
    }

    fn begin(&mut self, key: AttemptKey, request: Request, until_us: u64) {
        // The first requests of a lease come before it is looked at again.
        self.gate.fetch_max(until_us, Ordering::AcqRel);
        let Some(prepared) = prepared(request) else {
            let detail = "a header that the leader sent cannot be written";
            let outcome = Outcome::failed(FailureKind::Invalid, detail, Duration::ZERO);
            return self.handle(ServeInput::Ended { key, outcome: Some(outcome) });
        };
        let (give_up, given_up) = oneshot::channel();
        self.under_way.insert(key, give_up);
        let url = prepared.url.clone();
        self.serves.metrics.worker_requests.inc();
        let gate = Arc::clone(&self.gate);
        self.attempts.add(&url, Job { key, prepared, gate, given_up });
    }

    /// Takes what became of a request, and those that have ended meanwhile.
    fn take_ended(&mut self, first: Ended) {
        self.note_ended(first);
        for _ in 0..AT_ONCE {
            let Some(ended) = self.attempts.try_next() else { break };
            self.note_ended(ended);
        }
        // Under a flood of them grants must still have their turn.
        self.take_waiting();
    }

    fn note_ended(&mut self, (key, fate): Ended) {
        self.under_way.remove(&key);
        match fate {
            Fate::Outcome(outcome) => {
                self.handle(ServeInput::Ended { key, outcome: Some(outcome) });
            }
            Fate::Unsent => self.handle(ServeInput::Ended { key, outcome: None }),
            Fate::GivenUp => {}
        }
    }

    /// Takes a frame of a session's subject, and those that have come meanwhile.
    fn take_own(&mut self, first: Received) {
        self.take_frame(first);
        self.take_waiting();
    }

    fn take_waiting(&mut self) {
        for _ in 0..AT_ONCE {
            let next = self.own.last_mut().and_then(|(_, subscription)| subscription.try_next());
            let Some(received) = next else { return };
            self.take_frame(received);
        }
    }

    fn take_frame(&mut self, received: Received) {
        // With what a worker publishes comes no reply subject: nobody need hear it.
        let Received::Frame { payload, .. } = received else { return };
        if payload.is_empty() {
            // `walhook check` asks so whether a leader may publish.
            return;
        }
        match Frame::decode(payload.clone(), SPOKEN) {
            Ok(frame) => self.handle(ServeInput::Frame(Box::new(frame))),
            Err(error) => {
                let session = Header::read(&payload).map(|header| header.session);
                if self.unreadable.admits(Tick(boot_us())) {
                    tracing::warn!(%error, ?session, "a frame of the leader cannot be read");
                }
                if let Some(session) = session {
                    self.handle(ServeInput::Unreadable(session));
                }
            }
        }
    }

    fn wake(&self) -> Instant {
        let now = boot_us();
        let due = self.serving.deadline().map(|at| at.saturating_sub(now));
        let due = due.map(|us| Instant::now() + Duration::from_micros(us));
        [due, self.give_up_at].into_iter().flatten().fold(self.report_at, Instant::min)
    }

    /// Tells metrics and `/readyz` how it stands, now and then.
    fn report(&mut self, watch: &Watch) {
        if Instant::now() >= self.report_at {
            self.report_now(watch);
        }
    }

    fn report_now(&mut self, watch: &Watch) {
        self.report_at = Instant::now() + REPORT_EVERY;
        let (now, now_us) = (Instant::now(), boot_us());
        let left = self.serving.lease_left(now_us);
        let metrics = &self.serves.metrics;
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        metrics.worker_in_flight.set(count(self.serving.in_flight()));
        metrics.worker_lease.set(left.unwrap_or_default().as_secs_f64());
        metrics.connection_bytes.set(count(self.serves.transport.held_bytes()));
        let trouble = self.serves.transport.proxy_trouble();
        self.serves.tell.proxy(trouble.as_ref().map(|it| (it.since, &*it.reason)));
        let names = self.serves.transport.names_trouble();
        self.serves.tell.names(names.as_ref().map(|it| (it.since, &*it.reason)));
        let state = self.serving.state();
        let bus = watch.state();
        let heard = Heard {
            leader: self.serving.lead_heard(now_us),
            another: self.serving.another_heard(now_us),
            lower: self.serving.lower_heard(now_us),
            has_lease: left.is_some(),
            untold: self.serving.untold(),
        };
        let waits = !self.draining && !matches!(state, ServeState::Refused(_));
        let Kept { no_lease, ignored } = self.apart.report(now, waits.then_some(heard), &bus);
        self.serves.tell.serves(health::Serving {
            leader_heard_at: self.serving.lead_heard(now_us).and_then(|ago| now.checked_sub(ago)),
            lease_until: left.map(|left| now + left),
            no_lease,
            ignored,
            refused: match state {
                ServeState::Refused(why) => Some(why.as_str().to_owned()),
                ServeState::Waiting
                | ServeState::Joining
                | ServeState::Serving
                | ServeState::Draining => None,
            },
            bus_away: (!bus.connected).then(|| {
                let why =
                    bus.trouble.map_or_else(|| "connecting".to_owned(), |why| why.to_string());
                (bus.since, why)
            }),
            draining: self.draining,
        });
    }
}

/// A line for each change that an operator may look for.
fn say(state: ServeState) {
    match state {
        ServeState::Waiting => tracing::info!("waiting for a leader"),
        ServeState::Joining => tracing::debug!("a leader was heard; telling it of this worker"),
        ServeState::Serving => tracing::info!("serving a leader"),
        ServeState::Refused(why) => {
            tracing::warn!(
                "the leader refuses this worker: {}; asking again in a while",
                why.as_str()
            );
        }
        ServeState::Draining => tracing::info!("draining: no new requests are taken"),
    }
}

/// A request as the transport carries it; `None` where a header of it is none.
fn prepared(request: Request) -> Option<Prepared> {
    let Request { number, timeout, account, endpoint, event, url, headers, body, .. } = request;
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let name = HeaderName::try_from(name).ok()?;
        map.append(name, HeaderValue::from_maybe_shared(value).ok()?);
    }
    Some(Prepared { account, endpoint, event, number, url, headers: map, body, timeout })
}

/// One request, which comes back even if it panics, or is given up.
async fn attempt(transport: Arc<Transport>, job: Job) -> Ended {
    let Job { key, prepared, gate, given_up } = job;
    let started = Instant::now();
    let may_begin = || boot_us() < gate.load(Ordering::Acquire);
    // Its turn may have come late: then no connection is opened for it either.
    if !may_begin() {
        return (key, Fate::Unsent);
    }
    let carried = tokio::select! {
        biased;
        Ok(()) = given_up => return (key, Fate::GivenUp),
        carried = AssertUnwindSafe(transport.carry(&prepared, may_begin)).catch_unwind() => carried,
    };
    let fate = match carried {
        Ok(Carried { exchange, begun: false }) if exchange.was_held_back() => Fate::Unsent,
        Ok(Carried { exchange, .. }) => Fate::Outcome(exchange.into()),
        Err(_) => {
            tracing::error!(event = %prepared.event, "an attempt panicked; this is a bug in walhook");
            let detail = "walhook panicked while sending it";
            Fate::Outcome(Outcome::failed(FailureKind::Protocol, detail, started.elapsed()))
        }
    };
    (key, fate)
}
