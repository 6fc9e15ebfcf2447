//! The metrics that have a series for each value of a label, and which values those are.

use std::collections::HashMap;

use prometheus::{Gauge, IntCounter, IntGauge};

use super::Metrics;
use super::register::{Register, by_label};
use crate::server::trouble::Part;
use walhook_core::attempt::FailureKind;
use walhook_core::event::UnroutableReason;
use walhook_core::persist::DeferReason;
use walhook_dispatch::dispatcher::EndpointChange;

/// Counters by the value of their one label.
type Labelled = prometheus::Result<HashMap<&'static str, IntCounter>>;

pub(super) const WORKER_STATES: [&str; 6] =
    ["joining", "serving", "draining", "quarantined", "mute", "silent"];

/// What a second opinion came to: the endpoint was reached, failed likewise, or neither can be told.
pub(super) const SECOND_OPINIONS: [&str; 3] = ["reached", "failed", "undecided"];
pub(super) const ADOPTED: [&str; 2] = ["delivered", "running"];

pub(super) const STATUS_CLASSES: [&str; 5] = ["2xx", "3xx", "4xx", "5xx", "other"];

pub(super) const UNROUTABLE: [UnroutableReason; 7] = [
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

impl Metrics {
    pub(super) fn events<'a>(
        r: &Register<'_>,
        types: impl IntoIterator<Item = &'a str>,
    ) -> prometheus::Result<HashMap<String, IntCounter>> {
        let counters = r.counters("walhook_events_total", "type")?;
        Ok(by_label(&counters, types.into_iter().map(str::to_owned), String::as_str))
    }

    pub(super) fn deferred_by_reason(r: &Register<'_>) -> Labelled {
        let counters = r.counters("walhook_deferred_total", "reason")?;
        Ok(by_label(&counters, DeferReason::ALL.map(DeferReason::as_str), |name| name))
    }

    pub(super) fn reserved(r: &Register<'_>) -> prometheus::Result<[IntGauge; 2]> {
        let reserved = r.gauges("walhook_reserved_slots", "pool")?;
        Ok(["fast", "slow"].map(|pool| reserved.with_label_values(&[pool])))
    }

    pub(super) fn attempts(r: &Register<'_>) -> Labelled {
        let counters = r.counters("walhook_attempts_total", "outcome")?;
        let outcomes = STATUS_CLASSES.into_iter().chain(FailureKind::ALL.map(FailureKind::as_str));
        Ok(by_label(&counters, outcomes, |name| name))
    }

    pub(super) fn endpoint_changes(r: &Register<'_>) -> Labelled {
        let counters = r.counters("walhook_endpoint_changes_total", "change")?;
        Ok(by_label(&counters, EndpointChange::ALL.map(EndpointChange::as_str), |name| name))
    }

    pub(super) fn notices(r: &Register<'_>) -> Labelled {
        let counters = r.counters("walhook_notices_total", "result")?;
        Ok(by_label(&counters, NoticeResult::ALL.map(NoticeResult::as_str), |name| name))
    }

    pub(super) fn unroutable(r: &Register<'_>) -> Labelled {
        let counters = r.counters("walhook_unroutable_total", "reason")?;
        Ok(by_label(&counters, UNROUTABLE.map(UnroutableReason::as_str), |name| name))
    }

    pub(super) fn workers(r: &Register<'_>) -> prometheus::Result<HashMap<&'static str, IntGauge>> {
        let gauges = r.gauges("walhook_workers", "state")?;
        Ok(WORKER_STATES.map(|state| (state, gauges.with_label_values(&[state]))).into())
    }

    pub(super) fn failing(r: &Register<'_>) -> prometheus::Result<HashMap<Part, Gauge>> {
        let gauges = r.floats("walhook_failing_seconds", &["part", "delivery"])?;
        let of = |part: Part| {
            let delivery = if part.stops_delivery() { "stops" } else { "goes_on" };
            (part, gauges.with_label_values(&[part.as_str(), delivery]))
        };
        Ok(Part::ALL.map(of).into())
    }
}
