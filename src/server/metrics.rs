//! What `/metrics` shows. `docs/operations/health-and-metrics.md` lists every name, label and label value.
//!
//! Every series has the label `pipeline`, the name of the slot, so that one Prometheus tells several
//! pipelines apart, whatever its scrape configuration calls the targets. No label names an account or
//! an endpoint: their number has no bound, and a metric costs memory for each. Label values are resolved
//! once, when the registry is made.

mod about;
mod delivery_log;
mod register;
mod streamed;
mod waits;

use std::collections::HashMap;
use std::time::Duration;

use prometheus::{Gauge, Histogram, IntCounter, IntGauge, Registry, TextEncoder};

use walhook_core::attempt::{FailureKind, Outcome, Record};
use walhook_core::event::UnroutableReason;
use walhook_core::persist::DeferReason;
use walhook_dispatch::dispatcher::EndpointChange;
use walhook_process::faults;
use walhook_rules::rule::pattern_covers;

use super::trouble::Part;
pub use about::AboutMetrics;
pub use delivery_log::LogMetrics;
use register::{Register, by_label};
pub use streamed::StreamedMetrics;
pub use waits::WaitMetrics;

/// Counters by the value of their one label.
type Labelled = prometheus::Result<HashMap<&'static str, IntCounter>>;

/// From a loopback receiver to one that answers after hours of retries.
const LATENCY_BUCKETS: [f64; 17] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    1_800.0, 7_200.0,
];

/// Up to the longest that a request may take.
const ATTEMPT_BUCKETS: [f64; 13] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// From a bus on the same machine to a worker that is behind.
const OVERHEAD_BUCKETS: [f64; 12] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0];

const WORKER_STATES: [&str; 4] = ["serving", "draining", "quarantined", "silent"];

/// What a second opinion came to: the endpoint was reached, failed likewise, or neither can be told.
const SECOND_OPINIONS: [&str; 3] = ["reached", "failed", "undecided"];
const ADOPTED: [&str; 2] = ["delivered", "running"];

const STATUS_CLASSES: [&str; 5] = ["2xx", "3xx", "4xx", "5xx", "other"];

const UNROUTABLE: [UnroutableReason; 7] = [
    UnroutableReason::Account,
    UnroutableReason::Condition,
    UnroutableReason::Value,
    UnroutableReason::Type,
    UnroutableReason::TooLarge,
    UnroutableReason::Table,
    UnroutableReason::Endpoints,
];

/// What came of a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoticeResult {
    /// `notify.url` took it.
    Sent,
    /// It did not, and is asked again.
    Failed,
    /// It did not for too long: the notice is given up.
    Lapsed,
}

impl NoticeResult {
    const ALL: [Self; 3] = [Self::Sent, Self::Failed, Self::Lapsed];

    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Lapsed => "lapsed",
        }
    }
}

/// The program's metrics. Cheap to update from any task.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// `walhook_changes_total`: row changes received in committed transactions.
    pub changes: IntCounter,
    events: HashMap<String, IntCounter>,
    /// `walhook_deliveries_total{result="delivered"}`: ended with a 2xx.
    pub delivered: IntCounter,
    /// `walhook_deliveries_total{result="logged"}`: not sent but logged, as `delivery.mode` says.
    pub logged: IntCounter,
    /// `walhook_deliveries_total{result="dead"}`: ended as a dead letter.
    pub dead: IntCounter,
    /// `walhook_deliveries_total{result="dropped"}`: the customer removed the endpoint meanwhile.
    pub dropped: IntCounter,
    /// `walhook_deliveries_total{result="gap"}`: a gap counts it, for its endpoint was suspended.
    pub in_gaps: IntCounter,
    /// `walhook_deliveries_total{result="deferred"}`: left memory for the table `deferred`.
    deferred_in_all: IntCounter,
    /// The same by why: `walhook_deferred_total{reason}`.
    deferred_by_reason: HashMap<&'static str, IntCounter>,
    /// `walhook_unrouted_total{result}`: events that became rows without an endpoint; of these, those that
    /// were routed; and of these, those that no endpoint wanted.
    pub unrouted_stored: IntCounter,
    /// See above.
    pub unrouted_routed: IntCounter,
    /// See above.
    pub unrouted_unwanted: IntCounter,
    /// `walhook_unrouted`: events that have such a row, or are on the way there.
    pub unrouted: IntGauge,
    attempts: HashMap<&'static str, IntCounter>,
    endpoint_changes: HashMap<&'static str, IntCounter>,
    notices: HashMap<&'static str, IntCounter>,
    /// `walhook_notify_failing`: whether `notify.url` did not take the last notice.
    pub notify_failing: IntGauge,
    resends: IntCounter,
    delivery_latency: Histogram,
    queue_wait: Histogram,
    attempt_duration: Histogram,
    /// `walhook_in_flight{pool="fast"}`: requests that hold a slot of the fast pool.
    pub in_flight_fast: IntGauge,
    /// `walhook_in_flight{pool="slow"}`: requests that hold a slot of the slow pool.
    pub in_flight_slow: IntGauge,
    /// `walhook_reserved_slots`: of the fast and of the slow requests, those on slots reserved for their accounts.
    pub reserved: [IntGauge; 2],
    /// `walhook_in_flight{pool="probe"}`: requests that try a dead endpoint.
    pub in_flight_probe: IntGauge,
    /// `walhook_lanes{state="ready"}`: lanes with a delivery that waits for nothing but a slot.
    pub lanes_ready: IntGauge,
    /// `walhook_lanes{state="waiting"}`: lanes whose pending deliveries all wait for something else:
    /// an answer, a limit, or the time of a retry.
    pub lanes_waiting: IntGauge,
    /// `walhook_queued_bytes`: memory that pending events take.
    pub queued_bytes: IntGauge,
    /// `walhook_kept_bytes`: memory that routes, queues, and what is known of deferred deliveries take.
    pub kept_bytes: IntGauge,
    /// `walhook_connection_bytes`: memory that connections to endpoints take.
    pub connection_bytes: IntGauge,
    /// `walhook_worker_in_flight`: requests that this process carries for a leader.
    pub worker_in_flight: IntGauge,
    /// `walhook_worker_requests_total`: requests that this process began for a leader.
    pub worker_requests: IntCounter,
    /// `walhook_worker_lease_seconds`: for how long it may still begin requests for one.
    pub worker_lease: Gauge,
    workers: HashMap<&'static str, IntGauge>,
    /// `walhook_worker_slots`: requests that may be in flight at once, wherever they are.
    pub worker_slots: IntGauge,
    /// `walhook_slots_in_use_ratio`: how much of that is in use.
    pub slots_in_use: Gauge,
    /// `walhook_bus_connected`: whether the leader's connection to the bus carries; no number where none is to.
    pub bus_connected: Gauge,
    /// `walhook_unsent_total`: attempts that came back from the fleet without having been begun.
    pub unsent: IntCounter,
    /// `walhook_workers_lost_total`: workers whose lease ran out.
    pub workers_lost: IntCounter,
    second_opinions: HashMap<&'static str, IntCounter>,
    adopted: HashMap<&'static str, IntCounter>,
    /// `walhook_bus_overhead_seconds`: what bus and worker took beside a request.
    pub bus_overhead: Histogram,
    /// `walhook_deferred`: deliveries in the tables `deferred` and `pages`, or on their way there.
    pub deferred: IntGauge,
    /// `walhook_backlogs`: endpoints that have some.
    pub backlogs: IntGauge,
    /// `walhook_breakers_open`: of these, those whose breaker is not closed.
    pub breakers_open: IntGauge,
    /// `walhook_endpoints_stopped{state="disabled"}`: endpoints that walhook has switched off.
    pub endpoints_disabled: IntGauge,
    /// `walhook_endpoints_stopped{state="paused"}`: endpoints that an operator has paused.
    pub endpoints_paused: IntGauge,
    /// `walhook_endpoints_stopped{state="suspended"}`: those whose deliveries are counted in gaps.
    pub endpoints_suspended: IntGauge,
    /// `walhook_endpoints_invalid`: endpoints whose row cannot be used, of those that are known.
    pub endpoints_invalid: IntGauge,
    /// `walhook_dead_letters`: rows in the table of dead letters.
    pub dead_letters: IntGauge,
    /// `walhook_gaps`: ranges of WAL that were not delivered and that nothing has closed.
    pub gaps: IntGauge,
    /// `walhook_uncovered_tables`: tables below those that rules name whose changes are missing.
    pub uncovered: IntGauge,
    /// What runs, and its bounds.
    pub about: AboutMetrics,
    /// `walhook_state_bytes`: what the state tables take on disk.
    pub state_bytes: IntGauge,
    /// Of the delivery log.
    pub delivery_log: LogMetrics,
    /// `walhook_replay_window_bytes`: WAL that the anchor slot makes the server keep for replays.
    pub replay_window: IntGauge,
    /// Of transactions that are received while they are open.
    pub streamed: StreamedMetrics,
    /// Why deliveries wait.
    pub waits: WaitMetrics,
    oldest_unsettled: Gauge,
    slot_retained: IntGauge,
    slot_safe: Gauge,
    checkpoint_lag: IntGauge,
    leader: IntGauge,
    failing: HashMap<Part, Gauge>,
    unroutable: HashMap<&'static str, IntCounter>,
}

impl Metrics {
    /// A registry of its own, for the pipeline of this slot, with a counter for each of the event types
    /// that the rules name.
    ///
    /// # Errors
    /// Never for names as they stand here.
    pub fn new<'a>(
        pipeline: &str,
        event_types: impl IntoIterator<Item = &'a str>,
    ) -> prometheus::Result<Self> {
        let registry = of_pipeline(pipeline)?;
        let r = Register(&registry);
        r.add(faults::counters())?;
        let deliveries = r.counters("walhook_deliveries_total", "result")?;
        let unrouted = r.counters("walhook_unrouted_total", "result")?;
        let in_flight = r.gauges("walhook_in_flight", "pool")?;
        let lanes = r.gauges("walhook_lanes", "state")?;
        let stopped = r.gauges("walhook_endpoints_stopped", "state")?;
        // Until the leader has asked, they are not known.
        let unknown = [r.float("walhook_slot_safe_bytes")?, r.float("walhook_bus_connected")?];
        unknown.iter().for_each(|gauge| gauge.set(f64::NAN));
        let [slot_safe, bus_connected] = unknown;
        Ok(Self {
            changes: r.counter("walhook_changes_total")?,
            events: Self::events(&r, event_types)?,
            delivered: deliveries.with_label_values(&["delivered"]),
            logged: deliveries.with_label_values(&["logged"]),
            dead: deliveries.with_label_values(&["dead"]),
            dropped: deliveries.with_label_values(&["dropped"]),
            in_gaps: deliveries.with_label_values(&["gap"]),
            unrouted_stored: unrouted.with_label_values(&["stored"]),
            unrouted_routed: unrouted.with_label_values(&["routed"]),
            unrouted_unwanted: unrouted.with_label_values(&["unwanted"]),
            unrouted: r.gauge("walhook_unrouted")?,
            deferred_in_all: deliveries.with_label_values(&["deferred"]),
            deferred_by_reason: Self::deferred_by_reason(&r)?,
            attempts: Self::attempts(&r)?,
            endpoint_changes: Self::endpoint_changes(&r)?,
            notices: Self::notices(&r)?,
            notify_failing: r.gauge("walhook_notify_failing")?,
            resends: r.counter("walhook_resends_total")?,
            delivery_latency: r.histogram("walhook_delivery_latency_seconds", &LATENCY_BUCKETS)?,
            queue_wait: r.histogram("walhook_queue_wait_seconds", &LATENCY_BUCKETS)?,
            attempt_duration: r.histogram("walhook_attempt_seconds", &ATTEMPT_BUCKETS)?,
            in_flight_fast: in_flight.with_label_values(&["fast"]),
            in_flight_slow: in_flight.with_label_values(&["slow"]),
            reserved: Self::reserved(&r)?,
            in_flight_probe: in_flight.with_label_values(&["probe"]),
            lanes_ready: lanes.with_label_values(&["ready"]),
            lanes_waiting: lanes.with_label_values(&["waiting"]),
            queued_bytes: r.gauge("walhook_queued_bytes")?,
            kept_bytes: r.gauge("walhook_kept_bytes")?,
            connection_bytes: r.gauge("walhook_connection_bytes")?,
            worker_in_flight: r.gauge("walhook_worker_in_flight")?,
            worker_requests: r.counter("walhook_worker_requests_total")?,
            worker_lease: r.float("walhook_worker_lease_seconds")?,
            workers: Self::workers(&r)?,
            worker_slots: r.gauge("walhook_worker_slots")?,
            slots_in_use: r.float("walhook_slots_in_use_ratio")?,
            bus_connected,
            unsent: r.counter("walhook_unsent_total")?,
            workers_lost: r.counter("walhook_workers_lost_total")?,
            second_opinions: r.by_result("walhook_second_opinions_total", SECOND_OPINIONS)?,
            adopted: r.by_result("walhook_adopted_total", ADOPTED)?,
            bus_overhead: r.histogram("walhook_bus_overhead_seconds", &OVERHEAD_BUCKETS)?,
            deferred: r.gauge("walhook_deferred")?,
            backlogs: r.gauge("walhook_backlogs")?,
            breakers_open: r.gauge("walhook_breakers_open")?,
            endpoints_disabled: stopped.with_label_values(&["disabled"]),
            endpoints_paused: stopped.with_label_values(&["paused"]),
            endpoints_suspended: stopped.with_label_values(&["suspended"]),
            endpoints_invalid: r.gauge("walhook_endpoints_invalid")?,
            dead_letters: r.gauge("walhook_dead_letters")?,
            gaps: r.gauge("walhook_gaps")?,
            uncovered: r.gauge("walhook_uncovered_tables")?,
            about: AboutMetrics::new(&r)?,
            state_bytes: r.gauge("walhook_state_bytes")?,
            delivery_log: LogMetrics::new(&r)?,
            oldest_unsettled: r.float("walhook_oldest_unsettled_seconds")?,
            slot_retained: r.gauge("walhook_slot_retained_bytes")?,
            slot_safe,
            checkpoint_lag: r.gauge("walhook_checkpoint_lag_bytes")?,
            replay_window: r.gauge("walhook_replay_window_bytes")?,
            streamed: StreamedMetrics::new(&r)?,
            waits: WaitMetrics::new(&r)?,
            leader: r.gauge("walhook_leader")?,
            failing: Self::failing(&r)?,
            unroutable: Self::unroutable(&r)?,
            registry,
        })
    }

    fn events<'a>(
        r: &Register<'_>,
        types: impl IntoIterator<Item = &'a str>,
    ) -> prometheus::Result<HashMap<String, IntCounter>> {
        let counters = r.counters("walhook_events_total", "type")?;
        Ok(by_label(&counters, types.into_iter().map(str::to_owned), String::as_str))
    }

    fn deferred_by_reason(r: &Register<'_>) -> Labelled {
        let counters = r.counters("walhook_deferred_total", "reason")?;
        Ok(by_label(&counters, DeferReason::ALL.map(DeferReason::as_str), |name| name))
    }

    fn reserved(r: &Register<'_>) -> prometheus::Result<[IntGauge; 2]> {
        let reserved = r.gauges("walhook_reserved_slots", "pool")?;
        Ok(["fast", "slow"].map(|pool| reserved.with_label_values(&[pool])))
    }

    fn attempts(r: &Register<'_>) -> Labelled {
        let counters = r.counters("walhook_attempts_total", "outcome")?;
        let outcomes = STATUS_CLASSES.into_iter().chain(FailureKind::ALL.map(FailureKind::as_str));
        Ok(by_label(&counters, outcomes, |name| name))
    }

    fn endpoint_changes(r: &Register<'_>) -> Labelled {
        let counters = r.counters("walhook_endpoint_changes_total", "change")?;
        Ok(by_label(&counters, EndpointChange::ALL.map(EndpointChange::as_str), |name| name))
    }

    fn notices(r: &Register<'_>) -> Labelled {
        let counters = r.counters("walhook_notices_total", "result")?;
        Ok(by_label(&counters, NoticeResult::ALL.map(NoticeResult::as_str), |name| name))
    }

    fn unroutable(r: &Register<'_>) -> Labelled {
        let counters = r.counters("walhook_unroutable_total", "reason")?;
        Ok(by_label(&counters, UNROUTABLE.map(UnroutableReason::as_str), |name| name))
    }

    fn workers(r: &Register<'_>) -> prometheus::Result<HashMap<&'static str, IntGauge>> {
        let gauges = r.gauges("walhook_workers", "state")?;
        Ok(WORKER_STATES.map(|state| (state, gauges.with_label_values(&[state]))).into())
    }

    fn failing(r: &Register<'_>) -> prometheus::Result<HashMap<Part, Gauge>> {
        let gauges = r.floats("walhook_failing_seconds", &["part", "delivery"])?;
        let of = |part: Part| {
            let delivery = if part.stops_delivery() { "stops" } else { "goes_on" };
            (part, gauges.with_label_values(&[part.as_str(), delivery]))
        };
        Ok(Part::ALL.map(of).into())
    }

    /// Counts an event by its type, or else by the longest pattern of a rule that covers it: types that
    /// rows bring along are without number. What no rule covers is not counted.
    pub fn count_event(&self, event_type: &str) {
        let by_pattern = || {
            let covers = |name: &str| pattern_covers(name, event_type);
            let named = self.events.iter().filter(|(name, _)| covers(name));
            named.max_by_key(|(name, _)| name.len()).map(|(_, counter)| counter)
        };
        if let Some(counter) = self.events.get(event_type).or_else(by_pattern) {
            counter.inc();
        }
    }

    /// Counts deliveries that were deferred for this reason.
    pub fn count_deferred(&self, reason: DeferReason, deliveries: u64) {
        self.deferred_in_all.inc_by(deliveries);
        if let Some(counter) = self.deferred_by_reason.get(reason.as_str()) {
            counter.inc_by(deliveries);
        }
    }

    /// Counts changes that could not be turned into events, or events whose endpoints cannot be told.
    pub fn count_unroutable(&self, reason: UnroutableReason, changes: u64) {
        if let Some(counter) = self.unroutable.get(reason.as_str()) {
            counter.inc_by(changes);
        }
    }

    /// Counts a request that came to an end, with the time it took.
    pub fn count_attempt(&self, outcome: &Outcome) {
        let Record { status, failure, .. } = &outcome.record;
        let label = match (failure, status) {
            (Some(failure), _) => failure.as_str(),
            (None, Some(200..300)) => "2xx",
            (None, Some(300..400)) => "3xx",
            (None, Some(400..500)) => "4xx",
            (None, Some(500..600)) => "5xx",
            (None, _) => "other",
        };
        if let Some(counter) = self.attempts.get(label) {
            counter.inc();
        }
        self.resends.inc_by(outcome.resends.into());
        self.attempt_duration.observe(outcome.elapsed.as_secs_f64());
    }

    /// Sets how many workers are in this state, which is one of `WORKER_STATES`.
    pub fn set_workers(&self, state: &str, workers: i64) {
        if let Some(gauge) = self.workers.get(state) {
            gauge.set(workers);
        }
    }

    /// Counts second opinions with this result, which is one of `SECOND_OPINIONS`.
    pub fn count_second_opinions(&self, result: &str, opinions: u64) {
        if let Some(counter) = self.second_opinions.get(result) {
            counter.inc_by(opinions);
        }
    }

    /// Counts attempts that an earlier leader's workers had made, by what was known of them: one of `ADOPTED`.
    pub fn count_adopted(&self, result: &str, attempts: u64) {
        if let Some(counter) = self.adopted.get(result) {
            counter.inc_by(attempts);
        }
    }

    /// Sets how many requests may be in flight, and how many are.
    pub fn set_slots(&self, slots: u32, in_flight: u32) {
        self.worker_slots.set(slots.into());
        // None in flight, where there may be none: nothing is wanting then.
        self.slots_in_use.set(f64::from(in_flight) / f64::from(slots.max(1)));
    }

    /// Counts a change of an endpoint's state.
    pub fn count_endpoint_change(&self, change: EndpointChange) {
        if let Some(counter) = self.endpoint_changes.get(change.as_str()) {
            counter.inc();
        }
    }

    /// Counts what came of a notice.
    pub fn count_notice(&self, result: NoticeResult) {
        self.notify_failing.set(i64::from(result != NoticeResult::Sent));
        if let Some(counter) = self.notices.get(result.as_str()) {
            counter.inc();
        }
    }

    /// Counts a delivery that ended with a 2xx, `since_commit` after its transaction's commit.
    pub fn count_delivered(&self, since_commit: Duration) {
        self.delivered.inc();
        self.delivery_latency.observe(since_commit.as_secs_f64());
    }

    /// Records how long a delivery waited until its first request.
    pub fn observe_queue_wait(&self, wait: Duration) {
        self.queue_wait.observe(wait.as_secs_f64());
    }

    /// Sets the age of the oldest transaction that holds the checkpoint back; zero for none.
    pub fn set_oldest_unsettled(&self, age: Duration) {
        self.oldest_unsettled.set(age.as_secs_f64());
    }

    /// Sets what the server says of the slot. `safe_bytes` is `None` where nothing limits it.
    pub fn set_slot(&self, retained_bytes: u64, safe_bytes: Option<u64>) {
        self.slot_retained.set(saturate(retained_bytes));
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        self.slot_safe.set(safe_bytes.map_or(f64::INFINITY, |bytes| bytes as f64));
    }

    /// Sets the distance from the checkpoint to the end of what was received.
    pub fn set_checkpoint_lag(&self, bytes: u64) {
        self.checkpoint_lag.set(saturate(bytes));
    }

    /// Sets for how long a part has been failing; zero: it works.
    pub fn set_failing(&self, part: Part, age: Duration) {
        if let Some(gauge) = self.failing.get(&part) {
            gauge.set(age.as_secs_f64());
        }
    }

    /// Says whether this instance is the leader. What only a leader knows is forgotten when it no longer
    /// is, or it would stand there beside what the next one says.
    pub fn set_leader(&self, leader: bool) {
        self.leader.set(i64::from(leader));
        if leader {
            return;
        }
        for gauge in [
            &self.notify_failing,
            &self.in_flight_fast,
            &self.in_flight_slow,
            &self.in_flight_probe,
            &self.lanes_ready,
            &self.lanes_waiting,
            &self.queued_bytes,
            &self.kept_bytes,
            &self.connection_bytes,
            &self.worker_slots,
            &self.deferred,
            &self.backlogs,
            &self.breakers_open,
            &self.endpoints_disabled,
            &self.endpoints_paused,
            &self.endpoints_suspended,
            &self.endpoints_invalid,
            &self.dead_letters,
            &self.gaps,
            &self.uncovered,
            &self.state_bytes,
            &self.about.state_max_bytes,
            &self.delivery_log.bytes,
            &self.replay_window,
            &self.slot_retained,
            &self.checkpoint_lag,
        ] {
            gauge.set(0);
        }
        for gauge in self.workers.values().chain(&self.reserved) {
            gauge.set(0);
        }
        self.streamed.clear();
        self.waits.clear();
        self.slots_in_use.set(0.0);
        self.oldest_unsettled.set(0.0);
        self.slot_safe.set(f64::NAN);
        self.bus_connected.set(f64::NAN);
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Errors
    /// When the encoder refuses, which it does for no metric that is registered here.
    pub fn render(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// A registry whose series all have the label.
fn of_pipeline(pipeline: &str) -> prometheus::Result<Registry> {
    let common = HashMap::from([("pipeline".to_owned(), pipeline.to_owned())]);
    Registry::new_custom(None, Some(common))
}

fn saturate(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
