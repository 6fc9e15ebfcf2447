//! A line of the delivery log, as an operator sees it.

use std::collections::BTreeMap;

use serde::Serialize;

use walhook_core::attempt::Asked;
use walhook_core::delivery_log::Entry;
use walhook_core::event::rfc3339;
use walhook_core::waits::Waits;

/// An attempt, or what became of a delivery without one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct LineView {
    /// When it happened; of an attempt: when it ended.
    pub(crate) at: String,
    /// What happened: `delivered`, `logged` (not sent, as `delivery.mode = "log"` says), `failed`, `deferred`, `dead`,
    /// `unroutable`, `gap` or `dropped`.
    pub(crate) what: String,
    /// Why, of what has a reason; `probe` of an attempt that failed: it only tried an endpoint whose breaker is open, and
    /// does not count.
    pub(crate) reason: Option<String>,
    /// The event's id.
    pub(crate) event_id: String,
    /// The event's type.
    #[serde(rename = "type")]
    pub(crate) event_type: String,
    /// The account.
    pub(crate) account_id: String,
    /// The endpoint; null for a change or an event without one.
    pub(crate) endpoint: Option<String>,
    /// Which attempt, from 1 on; null: it is none.
    pub(crate) attempt: Option<u32>,
    /// The status of the answer; null where there was none.
    pub(crate) status: Option<u16>,
    /// What failed, where there was no answer.
    pub(crate) failure: Option<String>,
    /// From the call to the end of the answer; null: it is no attempt.
    pub(crate) latency_ms: Option<f64>,
    /// How long each cause held from the commit on, where it held.
    pub(crate) waits_ms: BTreeMap<String, f64>,
    /// What failed, with the answer's first bytes; null where nothing did.
    pub(crate) excerpt: Option<String>,
    /// The replay that sent it again; null: none.
    pub(crate) replay_id: Option<i64>,
    /// The dead letter that was retried; null: none.
    pub(crate) dead_letter: Option<i64>,
    /// When the transaction committed.
    pub(crate) committed_at: String,
    /// Where.
    pub(crate) commit_lsn: String,
}

impl From<&Entry> for LineView {
    fn from(entry: &Entry) -> Self {
        let (replay_id, dead_letter) = match &entry.asked {
            Some(Asked::Replay(replay)) => (Some(replay.0), None),
            Some(Asked::Retry { dead_letter, .. }) => (None, Some(dead_letter.0)),
            None => (None, None),
        };
        Self {
            at: rfc3339(entry.at_us),
            what: entry.word().to_owned(),
            reason: entry.what.reason().map(str::to_owned),
            event_id: entry.event.to_string(),
            event_type: entry.event_type.to_string(),
            account_id: entry.account.to_string(),
            endpoint: entry.endpoint().map(ToString::to_string),
            attempt: entry.is_attempt().then_some(entry.attempt),
            status: entry.status,
            failure: entry.failure.map(|failure| failure.as_str().to_owned()),
            latency_ms: entry.is_attempt().then_some(ms(entry.elapsed_us)),
            waits_ms: waits(&entry.waits),
            excerpt: (!entry.excerpt.is_empty()).then(|| entry.excerpt.clone()),
            replay_id,
            dead_letter,
            committed_at: rfc3339(entry.committed_us),
            commit_lsn: entry.commit_lsn.to_string(),
        }
    }
}

fn waits(waits: &Waits) -> BTreeMap<String, f64> {
    waits.iter().map(|(cause, us)| (cause.as_str().to_owned(), ms(us))).collect()
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn ms(us: u64) -> f64 {
    us as f64 / 1_000.0
}
