//! What `/metrics` shows. `docs/operations/health-and-metrics.md` lists every name, label and label value.
//!
//! Every series has the label `pipeline`, the name of the slot, so that one Prometheus tells several
//! pipelines apart, whatever its scrape configuration calls the targets. No label names an account or
//! an endpoint: their number has no bound, and a metric costs memory for each. Label values are resolved
//! once, when the registry is made.

mod about;
mod delivery_log;
mod families;
mod register;
mod streamed;
mod update;
mod waits;

use std::collections::HashMap;

use prometheus::{Gauge, Histogram, IntCounter, IntGauge, Registry, TextEncoder};

use walhook_process::faults;

use super::log;
use super::trouble::Part;
pub use about::AboutMetrics;
pub use delivery_log::LogMetrics;
pub use families::NoticeResult;
use families::{ADOPTED, SECOND_OPINIONS};
use register::Register;
pub use streamed::StreamedMetrics;
pub use waits::WaitMetrics;

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
    /// `walhook_slots_in_use_ratio`: how much is in use of the pool of slots of which more is.
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
        r.add(log::dropped())?;
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

#[cfg(test)]
mod tests;
