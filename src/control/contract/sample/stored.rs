//! Deliveries that are stored: dead letters and deferred ones, and what of them was asked.

use serde_json::value::RawValue;

use crate::control::dead_letters::{
    AttemptView, DeadLetterPage, DeadLetterView, RetryView, WholeDeadLetter,
};
use crate::control::deferred::{
    DeferredPage, DeferredView, Discarded, OfAccountView, WithoutEndpointView,
};
use crate::control::gaps::GapView;
use crate::control::jobs::JobView;

use super::{EVENT, at, gap, job, text};

fn dead_letter(id: i64) -> DeadLetterView {
    DeadLetterView {
        account_id: "42".into(),
        attempts: 12,
        detail: "status 500".into(),
        died_at: at(0),
        endpoint: text("7"),
        event_id: EVENT.into(),
        id,
        last_status: Some(500),
        reason: "exhausted".into(),
        tried_at: at(1),
        event_type: "subscriber.updated".into(),
    }
}

fn unroutable() -> DeadLetterView {
    DeadLetterView {
        account_id: String::new(),
        attempts: 0,
        endpoint: None,
        last_status: None,
        reason: "unroutable".into(),
        ..dead_letter(2)
    }
}

pub(crate) fn dead_letter_page() -> DeadLetterPage {
    DeadLetterPage {
        beyond: vec![GapView { dead_letters: true, last_at: Some(at(9)), ..gap() }],
        dead_letters: vec![dead_letter(1), unroutable()],
        next_after: Some(2),
    }
}

pub(crate) fn empty_dead_letter_page() -> DeadLetterPage {
    DeadLetterPage { beyond: vec![], dead_letters: vec![], next_after: None }
}

fn attempts() -> Vec<AttemptView> {
    vec![
        AttemptView { at: at(0), status: Some(503), latency_ms: 12, error: "status 503".into() },
        AttemptView { at: at(1), status: None, latency_ms: 15_000, error: "timeout".into() },
    ]
}

pub(crate) fn whole_dead_letter() -> WholeDeadLetter {
    let body = r#"{"id":"evt_1","data":{"id":1},"score":1.50}"#;
    WholeDeadLetter {
        letter: dead_letter(1),
        history: attempts(),
        commit_lsn: "0/210".into(),
        change_lsn: "0/20F".into(),
        body: RawValue::from_string(body.into()).unwrap(),
        committed_at: at(0),
    }
}

pub(crate) fn retried() -> RetryView {
    let job = JobView { kind: "dead_letters.retry".into(), ..job() };
    RetryView { job, errors: vec![dead_letter(1)] }
}

pub(crate) fn discarded() -> Discarded {
    Discarded { discarded: 0 }
}

fn deferred() -> DeferredView {
    DeferredView {
        event_id: EVENT.into(),
        event_type: "subscriber.updated".into(),
        account_id: "42".into(),
        endpoint: "7".into(),
        replay_id: None,
        reason: "failed".into(),
        attempts: 2,
        next_attempt_at: Some(at(10)),
        last_status: Some(503),
        detail: "status 503".into(),
        deferred_at: at(2),
        history: attempts(),
    }
}

pub(crate) fn deferred_page() -> DeferredPage {
    let untried = DeferredView {
        replay_id: Some(3),
        reason: "overflow".into(),
        attempts: 0,
        next_attempt_at: None,
        last_status: None,
        detail: String::new(),
        history: vec![],
        ..deferred()
    };
    let of = |account: &str, events| OfAccountView { account_id: account.into(), events };
    let without_endpoint = WithoutEndpointView {
        events: 14,
        accounts: 13,
        since: at(0),
        most: vec![of("40", 2), of("50", 1)],
        fix: "`walhook check` says why",
    };
    DeferredPage {
        deferred: vec![deferred(), untried],
        next_after: Some(format!("{EVENT}/3/7")),
        without_endpoint: Some(without_endpoint),
    }
}

pub(crate) fn empty_deferred_page() -> DeferredPage {
    DeferredPage { deferred: vec![], next_after: None, without_endpoint: None }
}
