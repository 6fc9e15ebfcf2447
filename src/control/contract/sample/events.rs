//! The delivery log, and what is known of one event.

use std::collections::BTreeMap;

use crate::control::events::log::{ErasedView, LineCount, LineCounts, LinePage};
use crate::control::events::{DeliveryView, EventView, LineView};

use super::{EVENT, at, text, whole_dead_letter};

fn failed_line() -> LineView {
    LineView {
        at: at(1),
        what: "failed".into(),
        reason: None,
        event_id: EVENT.into(),
        event_type: "subscriber.updated".into(),
        account_id: "42".into(),
        endpoint: text("7"),
        attempt: Some(2),
        status: Some(503),
        failure: None,
        latency_ms: Some(12.0),
        waits_ms: BTreeMap::from([("retry".into(), 900.0)]),
        excerpt: text("status 503"),
        replay_id: None,
        dead_letter: None,
        committed_at: at(0),
        commit_lsn: "0/210".into(),
    }
}

fn deferred_line() -> LineView {
    LineView {
        at: at(2),
        what: "deferred".into(),
        reason: text("failed"),
        attempt: None,
        status: None,
        latency_ms: None,
        waits_ms: BTreeMap::new(),
        excerpt: None,
        replay_id: Some(3),
        ..failed_line()
    }
}

pub(crate) fn line_page() -> LinePage {
    LinePage { lines: vec![deferred_line(), failed_line()], next_before: Some(17) }
}

pub(crate) fn line_counts() -> LineCounts {
    let failed = LineCount {
        what: "failed".into(),
        reason: None,
        status: Some(503),
        failure: None,
        lines: 3,
        first_at: at(0),
        last_at: at(2),
    };
    let deferred = LineCount {
        what: "deferred".into(),
        reason: text("failed"),
        status: None,
        failure: None,
        lines: 1,
        first_at: at(1),
        last_at: at(1),
    };
    LineCounts { lines: 4, by: vec![failed, deferred] }
}

pub(crate) fn erased() -> ErasedView {
    ErasedView {
        id: 1,
        account_id: "42".into(),
        erased_by: "support, ticket 5".into(),
        begun_at: at(0),
        finished_at: Some(at(1)),
        lines: 12,
        unreadable_pages: 0,
    }
}

pub(crate) fn event() -> EventView {
    let deferred = DeliveryView {
        endpoint: text("7"),
        replay_id: None,
        state: "deferred".into(),
        since: Some(at(2)),
        reason: text("failed"),
        detail: text("status 503"),
        cause: text("attempt"),
        attempts: 2,
        next_attempt_at: Some(at(10)),
        dead_letter: None,
        gap: None,
        lines: vec![failed_line(), deferred_line()],
    };
    let dead = DeliveryView {
        endpoint: text("8"),
        replay_id: Some(3),
        state: "dead_letter".into(),
        reason: text("exhausted"),
        cause: None,
        next_attempt_at: None,
        dead_letter: Some(1),
        gap: Some(3),
        lines: vec![],
        ..deferred.clone()
    };
    let whole = whole_dead_letter();
    EventView {
        event_id: EVENT.into(),
        event_type: text("subscriber.updated"),
        account_id: text("42"),
        committed_at: at(0),
        commit_lsn: text("0/210"),
        settled: Some(false),
        deliveries: vec![deferred, dead],
        memory_error: None,
        body: Some(whole.body),
        body_from: text("state"),
        no_body: None,
        note: None,
    }
}

pub(crate) fn unknown_event() -> EventView {
    EventView {
        event_type: None,
        account_id: None,
        commit_lsn: None,
        settled: None,
        deliveries: vec![],
        memory_error: text("no admin server answers at 127.0.0.1:9723: connection refused"),
        body: None,
        body_from: None,
        no_body: text("no row holds it; --body looks into the replay window"),
        note: text("no table has it"),
        ..event()
    }
}
