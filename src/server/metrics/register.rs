//! Making the metrics: each name with its help, once.

use std::collections::HashMap;
use std::hash::Hash;

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, Result,
};

/// What `/metrics` says of each metric.
const HELP: &[(&str, &str)] = &[
    ("walhook_adopted_total", "Attempts that were not sent, for an earlier leader's worker had."),
    ("walhook_attempt_seconds", "How long a request took."),
    ("walhook_attempts_total", "Requests that came to an end, by what came of them."),
    ("walhook_backlogs", "Endpoints with deferred deliveries."),
    ("walhook_breakers_open", "Endpoints that fail too often to be sent to."),
    ("walhook_build_info", "The program that runs, by version and kind of build; always 1."),
    ("walhook_bus_connected", "Whether the leader's connection to the bus carries."),
    ("walhook_bus_overhead_seconds", "What bus and worker took beside a request."),
    ("walhook_changes_total", "Row changes received in committed transactions."),
    (
        "walhook_checkpoint_lag_bytes",
        "WAL between the checkpoint and the end of what was received.",
    ),
    ("walhook_clock_skew_seconds", "How far the source's clock is ahead of this process's."),
    (
        "walhook_connection_bytes",
        "Memory that connections to endpoints and their unfinished answers take.",
    ),
    ("walhook_dead_letters", "Dead letters that are stored."),
    ("walhook_deferred", "Deliveries that are deferred."),
    (
        "walhook_deferred_total",
        "Deliveries that left memory for the table of deferred ones, by why.",
    ),
    ("walhook_deliveries_total", "Deliveries that came to an end or were deferred, by how."),
    ("walhook_delivery_log_bytes", "Bytes that the delivery log takes."),
    (
        "walhook_delivery_log_entries_total",
        "Lines of the delivery log that were stored, and those that were left out.",
    ),
    ("walhook_delivery_latency_seconds", "From the commit to the 2xx."),
    (
        "walhook_dwell_seconds",
        "From the commit to the 2xx, by whether the account is noisy meanwhile.",
    ),
    ("walhook_endpoint_changes_total", "Changes of endpoints' states, by what they became."),
    ("walhook_endpoints_invalid", "Endpoints whose row cannot be used, of those that are known."),
    ("walhook_endpoints_stopped", "Endpoints to which nothing is sent, by why."),
    ("walhook_events_total", "Events made, by the rule's type."),
    ("walhook_failing_seconds", "For how long a part has been failing."),
    (
        "walhook_first_try_latency_seconds",
        "From the commit to the 2xx of what was taken at the first attempt, from memory.",
    ),
    ("walhook_gaps", "Ranges of WAL that were not delivered."),
    ("walhook_in_flight", "Requests in flight, by the pool they hold."),
    ("walhook_reserved_slots", "Of these, requests on slots that are reserved for their accounts."),
    ("walhook_kept_bytes", "Memory that routes and queues take."),
    ("walhook_lanes", "Accounts with pending deliveries."),
    ("walhook_leader", "Whether this instance is the leader."),
    ("walhook_noisy_accounts", "Accounts that hold more than a tenth of what all share."),
    ("walhook_notices_total", "Requests to notify.url that came to an end, and notices given up."),
    ("walhook_notify_failing", "Whether notify.url did not take the last notice."),
    ("walhook_open_transactions", "Transactions that are received while they are open."),
    (
        "walhook_oldest_unsettled_seconds",
        "Age of the oldest transaction that holds the checkpoint back.",
    ),
    (
        "walhook_queue_wait_seconds",
        "From when a delivery could first be sent to its first request.",
    ),
    ("walhook_queued_bytes", "Memory that pending events take."),
    ("walhook_replay_window_bytes", "WAL that the anchor slot makes the server keep for replays."),
    ("walhook_resends_total", "Requests sent again on another connection within their attempt."),
    (
        "walhook_second_opinions_total",
        "Attempts that another process made again, by what came of it.",
    ),
    ("walhook_slot_retained_bytes", "WAL that the slot makes the server keep."),
    (
        "walhook_slot_safe_bytes",
        "WAL that can still be written before the slot is lost; infinite without a limit.",
    ),
    (
        "walhook_slots_in_use_ratio",
        "How many of the slots for requests are in use: of the fast or of the slow ones, where it is more.",
    ),
    ("walhook_spool_bytes", "What the spool of open transactions takes on disk."),
    ("walhook_spooled_bytes_total", "What was ever written to the spool."),
    ("walhook_state_bytes", "Bytes that the state tables take."),
    (
        "walhook_state_used_bytes",
        "Bytes of these that rows take; the others are free for new ones.",
    ),
    ("walhook_state_max_bytes", "Bytes that the state tables may take."),
    ("walhook_stream_fallbacks_total", "How often streaming was given up for a while, by why."),
    ("walhook_streamed_aborted_bytes_total", "Bytes that were streamed and then rolled back."),
    ("walhook_streamed_bytes_total", "Bytes of changes that came before their commit."),
    ("walhook_streamed_memory_bytes", "Memory that streamed transactions take."),
    ("walhook_streamed_rows_total", "Changes that came before their commit."),
    (
        "walhook_streamed_transactions_total",
        "Transactions that were received while they were open, by how they ended.",
    ),
    (
        "walhook_uncovered_tables",
        "Partitions and children of the rules' tables whose changes are missing.",
    ),
    ("walhook_unroutable_total", "Changes that could not be turned into an event, by why."),
    ("walhook_unrouted", "Events that are stored without an endpoint."),
    (
        "walhook_unrouted_total",
        "Events that were stored without an endpoint, and what became of them.",
    ),
    ("walhook_unsent_total", "Attempts that came back from workers without having been begun."),
    ("walhook_wait_seconds", "How long a cause held a delivery, of those that it held at all."),
    ("walhook_wait_seconds_total", "How long deliveries waited, by why."),
    ("walhook_worker_in_flight", "Requests that this process carries for a leader."),
    (
        "walhook_worker_lease_seconds",
        "For how long this process may still begin requests for a leader.",
    ),
    (
        "walhook_worker_slots",
        "Requests that may be in flight at once, at workers and at the leader.",
    ),
    ("walhook_workers", "Workers of this leader, by how they stand."),
    ("walhook_workers_lost_total", "Workers whose lease ran out."),
    ("walhook_worker_requests_total", "Requests that this process began for a leader."),
];

/// Where metrics are registered.
pub(super) struct Register<'a>(pub(super) &'a Registry);

impl Register<'_> {
    pub(super) fn add<C: Collector + Clone + 'static>(&self, metric: C) -> Result<C> {
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub(super) fn gauge(&self, name: &str) -> Result<IntGauge> {
        self.add(IntGauge::with_opts(opts(name)?)?)
    }

    /// A gauge of seconds, or of what may be infinite.
    pub(super) fn float(&self, name: &str) -> Result<Gauge> {
        self.add(Gauge::with_opts(opts(name)?)?)
    }

    pub(super) fn counter(&self, name: &str) -> Result<IntCounter> {
        self.add(IntCounter::with_opts(opts(name)?)?)
    }

    pub(super) fn counters(&self, name: &str, label: &str) -> Result<IntCounterVec> {
        self.add(IntCounterVec::new(opts(name)?, &[label])?)
    }

    pub(super) fn gauges(&self, name: &str, label: &str) -> Result<IntGaugeVec> {
        self.add(IntGaugeVec::new(opts(name)?, &[label])?)
    }

    pub(super) fn floats(&self, name: &str, labels: &[&str]) -> Result<GaugeVec> {
        self.add(GaugeVec::new(opts(name)?, labels)?)
    }

    /// Counters of seconds.
    pub(super) fn float_counters(&self, name: &str, labels: &[&str]) -> Result<CounterVec> {
        self.add(CounterVec::new(opts(name)?, labels)?)
    }

    pub(super) fn histograms(
        &self,
        name: &str,
        label: &str,
        buckets: &[f64],
    ) -> Result<HistogramVec> {
        let opts = HistogramOpts::from(opts(name)?).buckets(buckets.to_vec());
        self.add(HistogramVec::new(opts, &[label])?)
    }

    pub(super) fn histogram(&self, name: &str, buckets: &[f64]) -> Result<Histogram> {
        let opts = HistogramOpts::from(opts(name)?).buckets(buckets.to_vec());
        self.add(Histogram::with_opts(opts)?)
    }
}

impl Register<'_> {
    /// Counters of one name by their label `result`.
    pub(super) fn by_result<const N: usize>(
        &self,
        name: &str,
        results: [&'static str; N],
    ) -> Result<HashMap<&'static str, IntCounter>> {
        Ok(by_label(&self.counters(name, "result")?, results, |result| result))
    }
}

/// The counters of these label values, each under what it is found by.
pub(super) fn by_label<K: Eq + Hash>(
    counters: &IntCounterVec,
    labels: impl IntoIterator<Item = K>,
    value: impl Fn(&K) -> &str,
) -> HashMap<K, IntCounter> {
    let found = labels.into_iter().map(|label| {
        let counter = counters.with_label_values(&[value(&label)]);
        (label, counter)
    });
    found.collect()
}

fn opts(name: &str) -> Result<Opts> {
    let known = HELP.iter().find(|(known, _)| *known == name);
    let (_, help) = known.ok_or_else(|| prometheus::Error::Msg(format!("{name} has no help")))?;
    Ok(Opts::new(name, *help))
}
