//! Where each delivery of an event stands now, from the rows that it has and from the leader's memory.
//!
//! A row wins: what is deferred may be in memory too, on its way.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::server::work::PendingWork;
use walhook_core::event::rfc3339;
use walhook_state::{StoredDeadLetter, StoredDeferred, replay_column};

/// One delivery of the event: to an endpoint, from the stream or by a replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct DeliveryView {
    /// The endpoint; null where there is none: the event could not be routed, or has not been yet.
    pub(crate) endpoint: Option<String>,
    /// The replay that sends it again; null: the stream, or an operator's retry.
    pub(crate) replay_id: Option<i64>,
    /// `pending` (in the leader's memory), `deferred`, `unrouted`, `dead_letter` or `unroutable`.
    pub(crate) state: String,
    /// Since when; null where nothing says that.
    pub(crate) since: Option<String>,
    /// Why, of what has a reason.
    pub(crate) reason: Option<String>,
    /// The last error, or what is to be known beside; null: nothing.
    pub(crate) detail: Option<String>,
    /// What it waits for now, such as `breaker`, where it is in the leader's memory; null: it is not, or nobody says.
    pub(crate) cause: Option<String>,
    /// How many attempts are known.
    pub(crate) attempts: u32,
    /// Of a deferred one: no attempt before then.
    pub(crate) next_attempt_at: Option<String>,
    /// The id of its dead letter, where it is one.
    pub(crate) dead_letter: Option<i64>,
}

/// What is known of an event's deliveries.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Those in the leader's memory.
    pub(super) pending: Vec<PendingWork>,
    /// Deferred rows.
    pub(super) deferred: Vec<StoredDeferred>,
    /// Dead letters.
    pub(super) letters: Vec<StoredDeadLetter>,
    /// Since when it waits without an endpoint, where it does.
    pub(super) unrouted_since_us: Option<i64>,
}

/// What tells one delivery of an event from the others: the endpoint and the replay.
type Key = (Option<String>, Option<i64>);

impl Known {
    /// The deliveries, by endpoint and replay.
    pub(super) fn deliveries(&self) -> Vec<DeliveryView> {
        let mut all: BTreeMap<Key, DeliveryView> = BTreeMap::new();
        for pending in &self.pending {
            let key = (pending.endpoint.clone(), pending.replay_id);
            let view = all.entry(key.clone()).or_insert_with(|| blank(&key, "pending"));
            view.cause = Some(pending.cause.clone());
            view.attempts = pending.attempts;
        }
        if let Some(since_us) = self.unrouted_since_us {
            let key = (None, None);
            let view = all.entry(key.clone()).or_insert_with(|| blank(&key, ""));
            "unrouted".clone_into(&mut view.state);
            view.since = Some(rfc3339(since_us));
            let says = "the account's endpoints could not be looked up; it is routed when they can";
            view.detail = Some(says.to_owned());
        }
        for row in &self.deferred {
            let replay = replay_column::read(row.replay_id).map(|replay| replay.0);
            let key = (Some(row.endpoint.clone()), replay);
            let view = all.entry(key.clone()).or_insert_with(|| blank(&key, ""));
            "deferred".clone_into(&mut view.state);
            view.since = Some(rfc3339(row.deferred_at_us));
            view.reason = Some(row.reason.clone());
            view.detail = some(&row.detail);
            view.attempts = view.attempts.max(u32::try_from(row.attempts).unwrap_or(0));
            view.next_attempt_at = row.next_attempt_at_us.map(rfc3339);
        }
        for letter in &self.letters {
            let endpoint = letter.endpoint.as_deref().map(str::to_owned);
            let state = if endpoint.is_some() { "dead_letter" } else { "unroutable" };
            let key = (endpoint, letter.replay.map(|replay| replay.0));
            let view = all.entry(key.clone()).or_insert_with(|| blank(&key, ""));
            state.clone_into(&mut view.state);
            view.since = Some(rfc3339(letter.died_at_us));
            view.reason = Some(letter.reason.clone());
            view.detail = some(&letter.detail);
            view.attempts = view.attempts.max(letter.attempts);
            view.dead_letter = Some(letter.id);
        }
        all.into_values().collect()
    }
}

fn blank((endpoint, replay_id): &Key, state: &str) -> DeliveryView {
    DeliveryView {
        endpoint: endpoint.clone(),
        replay_id: *replay_id,
        state: state.to_owned(),
        since: None,
        reason: None,
        detail: None,
        cause: None,
        attempts: 0,
        next_attempt_at: None,
        dead_letter: None,
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deferred(endpoint: &str, replay_id: i64) -> StoredDeferred {
        StoredDeferred {
            event_id: String::new(),
            event_type: "t".into(),
            account: "42".into(),
            endpoint: endpoint.into(),
            replay_id,
            reason: "failed".into(),
            attempts: 2,
            next_attempt_at_us: Some(0),
            last_status: Some(500),
            detail: "status 500".into(),
            deferred_at_us: 0,
            history: vec![],
        }
    }

    fn pending(endpoint: Option<&str>, replay_id: Option<i64>) -> PendingWork {
        PendingWork {
            account_id: "42".into(),
            endpoint: endpoint.map(str::to_owned),
            replay_id,
            attempts: 3,
            cause: "attempt".into(),
        }
    }

    #[test]
    fn delivery_stands_where_its_row_says_and_else_in_memory() {
        let known = Known {
            pending: vec![
                pending(Some("7"), None),
                pending(Some("8"), None),
                pending(Some("7"), Some(4)),
            ],
            deferred: vec![deferred("7", 0), deferred("9", 4)],
            ..Known::default()
        };
        let all = known.deliveries();
        let told: Vec<_> = all
            .iter()
            .map(|it| (it.endpoint.as_deref(), it.replay_id, &*it.state, it.attempts))
            .collect();
        let of = |endpoint: &'static str| Some(endpoint);
        assert_eq!(
            told,
            [
                (of("7"), None, "deferred", 3),
                (of("7"), Some(4), "pending", 3),
                (of("8"), None, "pending", 3),
                (of("9"), Some(4), "deferred", 2),
            ]
        );
        assert_eq!(all[0].cause.as_deref(), Some("attempt"), "its row was read back");
        assert_eq!((all[3].cause.as_deref(), all[3].reason.as_deref()), (None, Some("failed")));
    }

    #[test]
    fn event_that_waits_for_its_endpoints_is_unrouted_also_while_it_is_looked_up() {
        let known = Known {
            pending: vec![pending(None, None)],
            unrouted_since_us: Some(0),
            ..Known::default()
        };
        let all = known.deliveries();
        assert_eq!((all.len(), &*all[0].state), (1, "unrouted"));
    }
}
