//! Endpoints: their list, a probe, and one that an operator stopped.

use crate::control::endpoints::{EndpointPage, EndpointView, ProbeView, StopView};
use crate::control::jobs::JobView;

use super::{EVENT, at, job, text};

pub(crate) fn endpoint_page() -> EndpointPage {
    let failing = EndpointView {
        id: "7".into(),
        account_id: text("42"),
        host: text("hooks.example:8080"),
        enabled: Some(true),
        state: "failing".into(),
        reason: text("its last 3 requests failed"),
        since: Some(at(0)),
        deferred: 5,
        dead_letters: 1,
        last_error: text("status 503"),
        last_error_at: Some(at(1)),
        failed: 3,
    };
    let removed = EndpointView {
        id: "8".into(),
        account_id: None,
        host: None,
        enabled: None,
        state: "removed".into(),
        reason: None,
        since: None,
        deferred: 0,
        dead_letters: 2,
        last_error: None,
        last_error_at: None,
        failed: 0,
    };
    EndpointPage { endpoints: vec![failing, removed], next_after: text("8") }
}

pub(crate) fn probe() -> ProbeView {
    ProbeView {
        account_id: "42".into(),
        answer: text("thanks"),
        delivered: true,
        endpoint: "7".into(),
        error: None,
        event_id: EVENT.into(),
        host: text("hooks.example"),
        latency_ms: 12,
        status: Some(200),
    }
}

pub(crate) fn failed_probe() -> ProbeView {
    let error = text("dns: no such host");
    ProbeView { answer: None, delivered: false, error, host: None, status: None, ..probe() }
}

pub(crate) fn stopped() -> StopView {
    let work = JobView { kind: "endpoints.pause".into(), ..job() };
    StopView {
        changed: true,
        dropped: None,
        endpoint: "7".into(),
        finished: true,
        job: 4,
        is_row_off: false,
        work,
    }
}
