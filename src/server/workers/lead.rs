//! The leader's side: what the dispatcher sends goes to workers, and comes back. What is decided is decided by
//! `walhook_fleet`; this brings it what comes, and does what it asks.
//!
//! ```text
//! driver ──place──► Fleet ──Pack, Publish──► packers ──► bus
//!   ▲  └─poll──────► │ ▲
//!   └──── Back ◄─────┘ └── take ◄── bus: P.hello, P.l.<epoch>.>; packers' reports
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::arrivals::Arrivals;
pub(in crate::server) use super::arrivals::Came;
use super::looks::Looks;
use super::pack::{Order, Packers, Report};
use super::troubles::Troubles;
use super::{Link, egress_digest, largest_event, pipeline_id, subscribe};
use crate::config::{Config, LocalSending, WorkerEgress};
use crate::server::dispatch::{Back, Sends};
use crate::server::health::Teller;
use crate::server::leadership::LeaderBefore;
use crate::server::metrics::Metrics;
use crate::server::pace::LinePace;
use crate::server::stop::Stop;
use walhook_bus::{BusEvent, Received};
use walhook_core::attempt::{Attempt, DeliveryId, FailureKind, Outcome};
use walhook_core::id::Epoch;
use walhook_core::tick::Tick;
use walhook_fleet::frame::{Frame, FrameError, Header, SPOKEN, SessionId};
use walhook_fleet::leader::{
    Before, Ending, Fleet, FleetCounters, FleetEffect, FleetInput, FleetSettings, Local, Placement,
    Slots, WorkerChanged, WorkerSeen, WorkerState,
};
use walhook_fleet::subjects::Inbox;
use walhook_http::transport::Transport;
use walhook_process::clock::unix_us;
use walhook_process::failpoint::Failpoint;
use walhook_state::WorkerRow;

/// Frames and reports taken at once before anything else has its turn.
const AT_ONCE: usize = 256;

/// What a leader leads its workers with.
pub(in crate::server) struct Leads<'a> {
    pub(in crate::server) link: &'a Link,
    /// Signs.
    pub(in crate::server) transport: &'a Arc<Transport>,
    pub(in crate::server) metrics: &'a Arc<Metrics>,
    pub(in crate::server) tell: &'a Teller,
    pub(in crate::server) epoch: Epoch,
    pub(in crate::server) before: LeaderBefore,
    /// Where it is said which workers there are.
    pub(in crate::server) rows: watch::Sender<Option<Vec<WorkerRow>>>,
}

/// The fleet of one leader, with all that its effects need.
pub(in crate::server) struct LeaderWorkers {
    fleet: Fleet,
    epoch: Epoch,
    link: Link,
    arrivals: Arrivals,
    packers: Packers,
    /// What the leader carries after a worker could not.
    second: BTreeSet<DeliveryId>,
    /// Requests under way at the leader, as the fleet knows.
    local: u32,
    rows: watch::Sender<Option<Vec<WorkerRow>>>,
    metrics: Arc<Metrics>,
    troubles: Troubles,
    looks: Looks,
    /// Whether the bus refuses us something.
    refused: bool,
    counted: FleetCounters,
    /// Of lines about frames that cannot be read: a stranger may send as many as it likes, and none of them is to
    /// keep a line about a worker from the log.
    unreadable: LinePace,
    /// Of lines about what workers have become.
    changes: LinePace,
}

impl LeaderWorkers {
    /// Of a leader that has just taken its lease.
    ///
    /// # Errors
    /// [`Stop`] where the bus cannot be subscribed to.
    pub(in crate::server) async fn start(
        config: &Config,
        leads: Leads<'_>,
        now: Tick,
    ) -> Result<Option<Self>, Stop> {
        let Leads { link, transport, metrics, tell, epoch, before, rows } = leads;
        let Some(workers) = &config.workers else { return Ok(None) };
        let (fast, slow) = crate::server::settings::slots(&config.scheduler);
        let pipeline = pipeline_id(config, &before.database);
        let settings = FleetSettings {
            epoch,
            pipeline,
            versions: SPOKEN,
            lease: workers.lease,
            timeout: config.delivery.timeout,
            local: match workers.local {
                LocalSending::Fallback => Local::Fallback,
                LocalSending::Always => Local::Always,
                LocalSending::Never => Local::Never,
            },
            own: Slots { fast, slow },
            egress: match workers.egress {
                WorkerEgress::Same => Some(egress_digest(&config.egress)),
                WorkerEgress::Own => None,
            },
            before: Before {
                until: before.until,
                sessions: before.sessions.iter().filter_map(|id| SessionId::parse(id)).collect(),
            },
            seed: rand::random(),
        };
        let watch = link.bus.watch();
        let hellos = subscribe(link, &link.subjects.hello()).await?;
        let inbox = subscribe(link, &link.subjects.inbox(epoch)).await?;
        let (packers, reports) = Packers::start(transport, link, (epoch, pipeline));
        Ok(Some(Self {
            fleet: Fleet::new(settings, now),
            epoch,
            link: link.clone(),
            arrivals: Arrivals { watch, reports, hellos, inbox },
            packers,
            second: BTreeSet::new(),
            local: 0,
            rows,
            metrics: Arc::clone(metrics),
            troubles: Troubles::new(tell, workers, largest_event(config), &link.subjects),
            looks: Looks::new(),
            refused: false,
            counted: FleetCounters::default(),
            unreadable: LinePace::default(),
            changes: LinePace::default(),
        }))
    }

    /// Decides who sends an attempt.
    pub(in crate::server) fn place(&mut self, now: Tick, attempt: &Attempt) -> Sends {
        match self.fleet.place(now, attempt) {
            Placement::Local => Sends::Leader,
            Placement::Taken => Sends::Worker,
            Placement::TooLarge => Sends::Nobody,
        }
    }

    /// Gives up an attempt that the leader does not carry.
    pub(in crate::server) fn abort(&mut self, now: Tick, delivery: DeliveryId) {
        self.fleet.handle(now, FleetInput::Aborted(delivery));
    }

    /// Takes what came of an attempt that the leader carried, where it did so for the fleet; else gives it back.
    pub(in crate::server) fn ended_here(
        &mut self,
        now: Tick,
        delivery: DeliveryId,
        outcome: Outcome,
    ) -> Option<Outcome> {
        if !self.second.remove(&delivery) {
            return Some(outcome);
        }
        self.fleet.handle(now, FleetInput::Ended { delivery, outcome });
        None
    }

    /// No worker joins any more.
    pub(in crate::server) fn stop(&mut self, now: Tick) {
        self.fleet.handle(now, FleetInput::Stop);
    }

    /// Attempts of the dispatcher's that have not come back, of which the leader carries `here`.
    pub(in crate::server) fn in_flight(&self, here: usize) -> usize {
        (here + self.fleet.in_flight()).saturating_sub(self.second.len())
    }

    /// When to poll although nothing comes in.
    pub(in crate::server) fn deadline(&self) -> Tick {
        self.fleet.deadline()
    }

    /// Waits until something comes. Loses none when it is dropped.
    pub(in crate::server) async fn next(&mut self) -> Came {
        self.arrivals.next().await
    }

    /// Takes what came, and what has come meanwhile.
    pub(in crate::server) fn take(&mut self, now: Tick, first: Came) {
        self.take_one(now, first);
        for _ in 0..AT_ONCE {
            let Some(came) = self.arrivals.try_next() else { return };
            self.take_one(now, came);
        }
    }

    fn take_one(&mut self, now: Tick, came: Came) {
        let input = match came {
            Came::Bus(BusEvent::Up { max_payload }) => {
                FleetInput::Bus { connected: true, max_payload }
            }
            Came::Bus(BusEvent::Down) => {
                let max_payload = self.link.bus.state().max_payload;
                FleetInput::Bus { connected: false, max_payload }
            }
            Came::Report(Report::Published(session, seq)) => FleetInput::Published { session, seq },
            Came::Report(Report::Unheard(session, seq)) => FleetInput::Unheard { session, seq },
            Came::Report(Report::Refused(session, key, outcome)) => {
                FleetInput::Refused { session, key, outcome: *outcome }
            }
            Came::Heard(Received::NoResponders { reply }) => {
                match self.link.subjects.read_inbox(&reply) {
                    Some(Inbox::Unheard { epoch, session, seq }) if epoch == self.epoch => {
                        FleetInput::Unheard { session, seq }
                    }
                    Some(Inbox::Unheard { .. } | Inbox::Frame { .. }) | None => return,
                }
            }
            // `walhook check` asks so whether a worker may publish.
            Came::Heard(Received::Frame { payload, .. }) if payload.is_empty() => return,
            Came::Heard(Received::Frame { payload, .. }) => {
                match Frame::decode(payload.clone(), SPOKEN) {
                    Ok(frame) => FleetInput::Frame(Box::new(frame)),
                    Err(error) => return self.unreadable(now, &error, Header::read(&payload)),
                }
            }
        };
        self.fleet.handle(now, input);
    }

    fn unreadable(&mut self, now: Tick, error: &FrameError, header: Option<Header>) {
        let session = header.map(|header| header.session);
        if self.unreadable.admits(now) {
            tracing::warn!(%error, ?session, "a frame of a worker cannot be read");
        }
        // One of another version, or of another leader's, is no word of this session.
        if let Some(header) = header.filter(|header| header.epoch == self.epoch) {
            self.fleet.handle(now, FleetInput::Unreadable(header.session));
        }
    }

    /// Does what is to be done at this moment, until there is something for the driver. `here`: requests under way
    /// at the leader.
    pub(in crate::server) fn poll(&mut self, now: Tick, here: usize) -> Option<Back> {
        let here = u32::try_from(here).unwrap_or(u32::MAX);
        if std::mem::replace(&mut self.local, here) != here {
            self.fleet.handle(now, FleetInput::LocalInFlight(here));
        }
        while let Some(effect) = self.fleet.poll(now) {
            if let Some(back) = self.carry_out(now, effect) {
                return Some(back);
            }
        }
        None
    }

    fn carry_out(&mut self, now: Tick, effect: FleetEffect) -> Option<Back> {
        match effect {
            FleetEffect::Pack { session, seq, version, attempts } => {
                self.order(now, session, seq, Order::Pack { session, seq, version, attempts });
            }
            // Nobody counts it, and nothing waits for it.
            FleetEffect::Publish(frame) if frame.seq == 0 => {
                self.publish(&self.link.subjects.worker(frame.session), &frame);
            }
            FleetEffect::Publish(frame) => {
                let (session, seq) = (frame.session, frame.seq);
                self.order(now, session, seq, Order::Publish(frame));
            }
            FleetEffect::PublishLead(frame) => self.publish(&self.link.subjects.lead(), &frame),
            FleetEffect::CarryLocally(attempt) => {
                self.second.insert(attempt.first().id);
                return Some(Back::Carry(attempt));
            }
            FleetEffect::Ended { delivery, ending, overhead } => {
                return Some(self.back(now, delivery, ending, overhead));
            }
            FleetEffect::Doubt { deliveries, doubtful } => {
                return Some(Back::Doubt(deliveries, doubtful));
            }
            FleetEffect::Slots(Slots { fast, slow }) => return Some(Back::Slots { fast, slow }),
            FleetEffect::Workers(workers) => {
                let unix_us = unix_us();
                let rows = workers.iter().map(|worker| row(worker, now, unix_us)).collect();
                self.rows.send_replace(Some(rows));
            }
            FleetEffect::TookOver { delivered, running, silent } => tracing::info!(
                delivered,
                running,
                silent,
                "asked the workers of the leader before what they know: what endpoints took is not sent again, and \
                 what runs is waited for; `silent` of them did not answer"
            ),
            FleetEffect::Changed(changed) => {
                self.troubles.note(now, &changed);
                if self.changes.admits(now) {
                    say(&changed);
                }
            }
        }
        None
    }

    fn order(&mut self, now: Tick, session: SessionId, seq: u64, order: Order) {
        if !self.packers.order(session, order) {
            self.fleet.handle(now, FleetInput::Unheard { session, seq });
        }
    }

    /// What the bus does not take is said again in a while.
    fn publish(&self, subject: &str, frame: &Frame) {
        if let Err(why) = self.link.bus.publish(subject, None, frame.encode()) {
            tracing::debug!(%why, subject, "a frame was not published");
        }
    }

    fn back(
        &mut self,
        now: Tick,
        delivery: DeliveryId,
        ending: Ending,
        overhead: Option<Duration>,
    ) -> Back {
        if let Some(overhead) = overhead {
            self.metrics.bus_overhead.observe(overhead.as_secs_f64());
        }
        let outcome = match ending {
            Ending::Unsent => return Back::Unsent(delivery),
            Ending::Outcome(outcome) => outcome,
            Ending::Lost { elapsed } => {
                let detail = "its worker was lost; the endpoint may have received it";
                Outcome::failed(FailureKind::Lost, detail, elapsed)
            }
        };
        self.troubles.note_outcome(now, &outcome);
        if outcome.record.failure.is_none() {
            Failpoint::Answered.pass();
        }
        Back::Outcome(delivery, outcome)
    }

    /// That workers send nothing, for their `egress.proxy` fails: since when and why.
    pub(in crate::server) fn proxy_trouble(&self, now: Tick) -> Option<(Instant, String)> {
        self.troubles.proxy(now)
    }

    /// Brings the metrics up to date.
    pub(in crate::server) fn report(&mut self, now: Tick) {
        let (gauges, counters) = (self.fleet.gauges(), self.fleet.counters());
        let then = std::mem::replace(&mut self.counted, counters);
        let metrics = &self.metrics;
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        for (state, workers) in [
            (WorkerState::Joining, gauges.joining),
            (WorkerState::Serving, gauges.serving),
            (WorkerState::Draining, gauges.draining),
            (WorkerState::Quarantined, gauges.quarantined),
            (WorkerState::Mute, gauges.mute),
            (WorkerState::Silent, gauges.silent),
        ] {
            metrics.set_workers(state.as_str(), count(workers));
        }
        metrics.bus_connected.set(f64::from(u8::from(self.link.bus.state().connected)));
        metrics.unsent.inc_by(counters.unsent - then.unsent);
        metrics.workers_lost.inc_by(counters.sessions_lost - then.sessions_lost);
        for (result, now, then) in [
            ("reached", counters.contradicted, then.contradicted),
            ("failed", counters.confirmed, then.confirmed),
            ("undecided", counters.undecided, then.undecided),
        ] {
            metrics.count_second_opinions(result, now - then);
        }
        for (result, now, then) in [
            ("delivered", counters.adopted_delivered, then.adopted_delivered),
            ("running", counters.adopted_running, then.adopted_running),
        ] {
            metrics.count_adopted(result, now - then);
        }
        self.looks.look(now, gauges.too_large.is_some(), &self.link.bus);
        let bus = self.link.bus.state();
        self.troubles.report(now, &gauges, &counters, &bus);
        if std::mem::replace(&mut self.refused, bus.refused.is_some()) && bus.refused.is_none() {
            self.fleet.handle(now, FleetInput::MayHear);
        }
        if let Some(more) = self.unreadable.take_withheld(now) {
            tracing::warn!(more, "and so many more frames of workers that cannot be read");
        }
        if let Some(more) = self.changes.take_withheld(now) {
            tracing::warn!(
                more,
                "and so many more changes of workers; `walhook workers list` shows how they stand"
            );
        }
    }
}

fn row(worker: &WorkerSeen, now: Tick, unix_us: i64) -> WorkerRow {
    let at = |tick: Tick| {
        let ago = i64::try_from(now.since(tick).as_micros()).unwrap_or(i64::MAX);
        unix_us.saturating_sub(ago)
    };
    WorkerRow {
        session: worker.session.to_string(),
        host: worker.host.clone(),
        build: worker.build.clone(),
        state: worker.state.as_str().to_owned(),
        slots: u64::from(worker.slots.fast) + u64::from(worker.slots.slow),
        in_flight: worker.in_flight.into(),
        lost: worker.lost,
        since_us: at(worker.since),
        seen_us: at(worker.seen),
    }
}

/// A line for each change that an operator may look for.
fn say(changed: &WorkerChanged) {
    let WorkerChanged { session, host, build, state, refused, bye, lost, quarantine } = changed;
    match state {
        WorkerState::Joining => tracing::debug!(%session, host, build, "a worker joins"),
        WorkerState::Serving => tracing::info!(%session, host, build, "a worker serves"),
        WorkerState::Draining => tracing::info!(
            %session, host, why = bye.map_or("a frame did not reach it", |why| why.as_str()),
            "a worker takes no more"
        ),
        WorkerState::Left => tracing::info!(%session, host, "a worker has left"),
        WorkerState::Silent => tracing::warn!(%session, host, "nothing is heard of a worker"),
        WorkerState::Lost => tracing::warn!(
            %session, host, attempts = lost,
            "a worker is lost: its lease has run out; what it carried is sent again"
        ),
        WorkerState::Quarantined => tracing::warn!(
            %session, host, seconds = quarantine.unwrap_or_default().as_secs(),
            "a worker could not reach endpoints that others reach, or reached none and no other could be asked: it gets \
             one request at a time while others serve; look at its network, its resolver and its [egress]"
        ),
        WorkerState::Mute => tracing::warn!(
            %session, host, seconds = quarantine.unwrap_or_default().as_secs(),
            "a worker is heard, and what becomes of its requests is not: what it has counts as lost, and it gets no \
             more for a while, then one request at a time; look at what its user may publish to the bus, and ours \
             hear: `walhook check --role worker`, and `walhook check`"
        ),
        WorkerState::Refused => tracing::warn!(
            %session, host, build, why = refused.map_or("unknown", |why| why.as_str()),
            "a worker is refused"
        ),
    }
}
