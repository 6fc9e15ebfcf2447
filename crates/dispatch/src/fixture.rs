//! What the tests of this crate speak of, where nothing matters but what a test names itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::dispatcher::{Dispatcher, Ordering, Settings, Start};
use crate::retry::RetryPolicy;
use crate::route::Snapshot;
use crate::settle::SettlePolicy;
use walhook_core::attempt::{Meaning, Outcome, Record};
use walhook_core::delivery_log::Keep;
use walhook_core::endpoint::{Endpoint, Routes, Secret};
use walhook_core::event::{AccountId, EndpointId, Event, Item, Operation, RowKeys};
use walhook_core::lsn::Lsn;
use walhook_core::position::{EventId, Position, WalPosition};

/// Room for much, few slots, and retries that are over soon.
pub(crate) fn settings() -> Settings {
    Settings {
        memory_limit: 64 << 20,
        slice: 256,
        lane_max: 2_048,
        fast_slots: 16,
        slow_slots: 16,
        ordering: Ordering::Row,
        settle: SettlePolicy {
            quick_attempts: 2,
            retry: RetryPolicy::new(Duration::from_secs(1), Duration::from_secs(60)).unwrap(),
            retry_for: Duration::from_secs(600),
        },
        disable_after: Duration::from_secs(3_600),
        max_hold: Duration::from_secs(30),
        max_retained: 1 << 30,
        notifies: false,
        state_max: u64::MAX,
        log: Keep::All,
        log_excerpts: true,
    }
}

/// A dispatcher that begins at 0/3E8 (1,000), with nothing behind it.
pub(crate) fn dispatcher(settings: Settings) -> Dispatcher {
    let start = Start { frontier: Lsn(1_000), ..Start::default() };
    Dispatcher::new(settings, start, SmallRng::seed_from_u64(1))
}

/// A change of relation 1.
pub(crate) fn position(commit: u64, change: u64) -> Position {
    let (commit_lsn, change_lsn) = (Lsn(commit), Lsn(change));
    Position::Wal(WalPosition { commit_lsn, change_lsn, relation: 1, n: 0 })
}

/// An event of type `t`, of the rows with these keys.
pub(crate) fn event(account: &str, position: Position, keys: &[u64]) -> Event {
    Event {
        id: EventId::derive(1, &position, "t", 0),
        position,
        event_type: "t".into(),
        account: AccountId::new(account),
        operation: Operation::Insert,
        commit_time_us: 0,
        keys: RowKeys::from_slice(keys),
        row: Bytes::from_static(b"\"data\":{}"),
    }
}

/// The stream's items of the transaction that commits there.
pub(crate) fn transaction(commit: u64, events: impl IntoIterator<Item = Arc<Event>>) -> Vec<Item> {
    let mut items = vec![Item::Begin { commit_lsn: Lsn(commit) }];
    items.extend(events.into_iter().map(Item::Event));
    items.push(Item::Commit { end_lsn: Lsn(commit + 10) });
    items
}

/// An endpoint that takes everything.
pub(crate) fn endpoint(id: &str, account: &str) -> Endpoint {
    Endpoint {
        id: EndpointId::new(id),
        account: AccountId::new(account),
        url: String::new(),
        event_types: vec!["*".into()],
        secrets: vec![Secret::new("s")],
        enabled: true,
        headers: vec![],
        max_in_flight: None,
        rate_per_second: None,
        invalid: None,
    }
}

/// Such endpoints, of one account.
pub(crate) fn routes<'a>(account: &str, ids: impl IntoIterator<Item = &'a str>) -> Routes {
    Routes::new(ids.into_iter().map(|id| Arc::new(endpoint(id, account))).collect(), 1.0)
}

/// One that sees all transactions of tests.
pub(crate) fn snapshot() -> Snapshot {
    "1000:1000:".parse().unwrap()
}

/// An answer with this status, after a millisecond.
pub(crate) fn answered(status: u16) -> Outcome {
    answer(status, None, "")
}

/// As an answer over HTTP counts.
pub(crate) fn answer(status: u16, retry_after: Option<Duration>, excerpt: &str) -> Outcome {
    let meaning = match status {
        200..300 => Meaning::Delivered,
        410 => Meaning::Gone,
        _ => Meaning::Refused { retry_after, overloaded: matches!(status, 429 | 503) },
    };
    let text = match excerpt {
        _ if meaning == Meaning::Delivered => String::new(),
        "" => format!("status {status}"),
        excerpt => format!("status {status}: {excerpt}"),
    };
    let record = Record { status: Some(status), failure: None, text };
    Outcome { record, ..Outcome::new(meaning, Duration::from_millis(1)) }
}
