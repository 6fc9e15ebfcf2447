//! Where each delivery of an event stands now, from the delivery log, the rows that it has and the leader's memory.
//!
//! These are read in the order in which a delivery goes: memory, rows, the log. So what left one of them meanwhile is
//! in the next. What was taken once was taken; else a row says what is, then memory, then the log's last line. Where
//! none of them says it, the checkpoint tells what is still to come from what came to an end without a line.

use std::collections::BTreeMap;

use serde::Serialize;

use super::LineView;
use crate::server::work::PendingWork;
use walhook_core::attempt::Asked;
use walhook_core::delivery_log::{Entry, What};
use walhook_core::event::rfc3339;
use walhook_core::lsn::Lsn;
use walhook_state::{Gap, StoredDeadLetter, StoredDeferred, replay_column};

/// One delivery of the event: to an endpoint, from the stream or by a replay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct DeliveryView {
    /// The endpoint; null where there is none: the event could not be routed, or has not been yet.
    pub(crate) endpoint: Option<String>,
    /// The replay that sends it again; null: the stream, or an operator's retry.
    pub(crate) replay_id: Option<i64>,
    /// `delivered`, `logged` (not sent, as `delivery.mode = "log"` says), `pending` (in the leader's memory), `deferred`, `unrouted`, `dead_letter`, `unroutable`, `gap`,
    /// `dropped` (the account has its endpoint no more, or an operator discarded it), or `ended` where nothing says how.
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
    /// The id of the gap that counts it, where one is known.
    pub(crate) gap: Option<i64>,
    /// What the log has of it, the oldest line first.
    pub(crate) lines: Vec<LineView>,
}

/// What is known of an event's deliveries.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The log's lines, the oldest first.
    pub(super) story: Vec<Entry>,
    /// Those in the leader's memory.
    pub(super) pending: Vec<PendingWork>,
    /// Deferred rows.
    pub(super) deferred: Vec<StoredDeferred>,
    /// Dead letters.
    pub(super) letters: Vec<StoredDeadLetter>,
    /// Since when it waits without an endpoint, where it does.
    pub(super) unrouted_since_us: Option<i64>,
    /// All gaps.
    pub(super) gaps: Vec<Gap>,
    /// The checkpoint, as it was before anything else was read: all before it is settled.
    pub(super) frontier: Lsn,
}

/// Why it was dropped: no row of the endpoint table has both.
const NOT_OF_THE_ACCOUNT: &str = "its endpoint was removed, or moved to another account";

/// What tells one delivery of an event from the others: the endpoint and the replay.
type Key = (Option<String>, Option<i64>);

impl Known {
    /// The deliveries, by endpoint and replay.
    pub(super) fn deliveries(&self) -> Vec<DeliveryView> {
        let mut all: BTreeMap<Key, Vec<&Entry>> = BTreeMap::new();
        for entry in &self.story {
            all.entry(key_of_line(entry)).or_default().push(entry);
        }
        let rows = self.deferred.iter().map(key_of_row);
        let letters = self.letters.iter().map(key_of_letter);
        let pending = self.pending.iter().map(|it| (it.endpoint.clone(), it.replay_id));
        let unrouted = self.unrouted_since_us.map(|_| (None, None));
        for key in rows.chain(letters).chain(pending).chain(unrouted) {
            all.entry(key).or_default();
        }
        all.into_iter().map(|(key, lines)| self.delivery(&key, &lines)).collect()
    }

    /// Whether something of it is still being delivered for the first time.
    pub(super) fn is_under_way(&self) -> bool {
        let waits = |it: &DeliveryView| matches!(&*it.state, "pending" | "unrouted");
        self.deliveries().iter().any(|it| it.replay_id.is_none() && waits(it))
    }

    fn delivery(&self, key: &Key, lines: &[&Entry]) -> DeliveryView {
        let pending = self.pending.iter().find(|it| it.endpoint == key.0 && it.replay_id == key.1);
        let attempts = lines.iter().map(|entry| entry.attempt).max().unwrap_or(0);
        let blank = DeliveryView {
            endpoint: key.0.clone(),
            replay_id: key.1,
            state: "ended".to_owned(),
            since: None,
            reason: None,
            detail: None,
            cause: pending.map(|pending| pending.cause.clone()),
            attempts: pending.map_or(0, |pending| pending.attempts).max(attempts),
            next_attempt_at: None,
            dead_letter: None,
            gap: None,
            lines: lines.iter().map(|entry| LineView::from(*entry)).collect(),
        };
        if let Some(taken) = lines.iter().find(|entry| entry.what == What::Delivered) {
            let (state, since) = (taken.word().to_owned(), Some(rfc3339(taken.at_us)));
            return DeliveryView { state, since, cause: None, ..blank };
        }
        self.of_rows(key, &blank).unwrap_or_else(|| self.of_log(blank, lines.last().copied()))
    }

    /// As its row says, where it has one.
    fn of_rows(&self, key: &Key, blank: &DeliveryView) -> Option<DeliveryView> {
        if let Some(row) = self.deferred.iter().find(|row| key_of_row(row) == *key) {
            return Some(DeliveryView {
                state: "deferred".to_owned(),
                since: Some(rfc3339(row.deferred_at_us)),
                reason: Some(row.reason.clone()),
                detail: some(&row.detail),
                attempts: blank.attempts.max(u32::try_from(row.attempts).unwrap_or(0)),
                next_attempt_at: row.next_attempt_at_us.map(rfc3339),
                ..blank.clone()
            });
        }
        if let Some(letter) = self.letters.iter().find(|letter| key_of_letter(letter) == *key) {
            let state = if letter.endpoint.is_some() { "dead_letter" } else { "unroutable" };
            return Some(DeliveryView {
                state: state.to_owned(),
                since: Some(rfc3339(letter.died_at_us)),
                reason: Some(letter.reason.clone()),
                detail: some(&letter.detail),
                attempts: blank.attempts.max(letter.attempts),
                dead_letter: Some(letter.id),
                ..blank.clone()
            });
        }
        let since = self.unrouted_since_us.filter(|_| *key == (None, None))?;
        let says = "the account's endpoints could not be looked up; it is routed when they can";
        Some(DeliveryView {
            state: "unrouted".to_owned(),
            since: Some(rfc3339(since)),
            detail: Some(says.to_owned()),
            ..blank.clone()
        })
    }

    /// As memory says, and else the log's last line.
    fn of_log(&self, blank: DeliveryView, last: Option<&Entry>) -> DeliveryView {
        let said = last.and_then(|last| some(&last.excerpt));
        if blank.cause.is_some() {
            return DeliveryView { state: "pending".to_owned(), detail: said, ..blank };
        }
        let Some(last) = last else { return blank };
        let is_open = blank.replay_id.is_none() && last.commit_lsn >= self.frontier;
        let (state, detail, gap) = match last.what {
            What::Delivered => (last.word(), said, None),
            What::Gap => ("gap", said, self.gap_of(last)),
            What::Dropped => ("dropped", Some(NOT_OF_THE_ACCOUNT.to_owned()), None),
            What::Discarded => ("dropped", Some("an operator discarded it".to_owned()), None),
            What::Dead(_) if last.endpoint().is_none() => ("unroutable", gone(said), None),
            What::Dead(_) => ("dead_letter", gone(said), self.gap_of(last)),
            What::Failed | What::Probed if is_open => ("pending", said, None),
            What::Failed | What::Probed | What::Deferred(_) => {
                let says = "it came to an end, and the log does not say how";
                ("ended", Some(says.to_owned()), None)
            }
        };
        let reason = last.what.reason().map(str::to_owned);
        let (state, since) = (state.to_owned(), Some(rfc3339(last.at_us)));
        DeliveryView { state, since, reason, detail, gap, ..blank }
    }

    /// The gap of its queue that its commit lies in.
    fn gap_of(&self, entry: &Entry) -> Option<i64> {
        let is_it = |gap: &&Gap| {
            let (from, to) = (gap.from_lsn.parse::<Lsn>().ok(), gap.to_lsn.parse::<Lsn>().ok());
            gap.endpoint.as_deref() == Some(&*entry.endpoint)
                && gap.account.as_deref() == Some(&*entry.account)
                && from.is_some_and(|from| from <= entry.commit_lsn)
                && to.is_some_and(|to| entry.commit_lsn <= to)
        };
        self.gaps.iter().find(is_it).map(|gap| gap.id)
    }
}

fn key_of_line(entry: &Entry) -> Key {
    let replay = match entry.asked {
        Some(Asked::Replay(replay)) => Some(replay.0),
        Some(Asked::Retry { .. }) | None => None,
    };
    (entry.endpoint().map(ToString::to_string), replay)
}

fn key_of_row(row: &StoredDeferred) -> Key {
    let replay = replay_column::read(row.replay_id).map(|replay| replay.0);
    (Some(row.endpoint.clone()), replay)
}

fn key_of_letter(letter: &StoredDeadLetter) -> Key {
    let endpoint = letter.endpoint.as_deref().map(str::to_owned);
    (endpoint, letter.replay.map(|replay| replay.0))
}

/// Of a dead letter that has no row.
fn gone(detail: Option<String>) -> Option<String> {
    let gone = "no row has it: discarded, older than state.retention, or counted in a gap";
    Some(detail.map_or_else(|| gone.to_owned(), |detail| format!("{detail} ({gone})")))
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use walhook_core::event::{AccountId, EndpointId};
    use walhook_core::persist::{DeadReason, DeferReason};
    use walhook_core::waits::Waits;

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

    fn line(what: What, attempt: u32) -> Entry {
        Entry {
            event: "evt_01KB4ZD2G0ABCDEFGHJKMNPQRS".parse().unwrap(),
            event_type: "t".into(),
            account: AccountId::new("42"),
            endpoint: EndpointId::new("7"),
            commit_lsn: Lsn(100),
            committed_us: 0,
            at_us: 0,
            attempt,
            what,
            status: (what == What::Delivered).then_some(200),
            failure: None,
            elapsed_us: 0,
            waits: Waits::default(),
            excerpt: String::new(),
            asked: None,
        }
    }

    #[test]
    fn delivery_without_row_stands_where_the_last_line_of_the_log_says() {
        let dead = What::Dead(DeadReason::Exhausted);
        for (lines, frontier, state) in [
            (vec![line(What::Failed, 1), line(What::Delivered, 2)], 200, "delivered"),
            // What was taken was taken, whatever a retry came to.
            (vec![line(What::Delivered, 1), line(What::Failed, 2)], 200, "delivered"),
            (vec![line(What::Failed, 1)], 100, "pending"),
            (vec![line(What::Failed, 1)], 101, "ended"),
            (vec![line(What::Failed, 1), line(dead, 0)], 200, "dead_letter"),
            (vec![line(What::Gap, 0)], 200, "gap"),
            (vec![line(What::Dropped, 0)], 200, "dropped"),
            (vec![line(What::Failed, 1), line(What::Discarded, 0)], 200, "dropped"),
            (vec![line(What::Probed, 1)], 100, "pending"),
            (vec![line(What::Deferred(DeferReason::Failed), 0)], 200, "ended"),
        ] {
            let attempts = lines.iter().map(|entry| entry.attempt).max().unwrap();
            let known = Known { story: lines, frontier: Lsn(frontier), ..Known::default() };
            let all = known.deliveries();
            let told = (all.len(), &*all[0].state, all[0].attempts, all[0].lines.len());
            assert_eq!(told, (1, state, attempts, known.story.len()));
        }
        let logged = Entry { status: None, ..line(What::Delivered, 1) };
        let known = Known { story: vec![logged], ..Known::default() };
        assert_eq!(known.deliveries()[0].state, "logged", "nobody has answered");
    }

    #[test]
    fn delivery_in_a_row_or_in_memory_stands_there_unless_it_was_taken() {
        let of = |what, deferred, pending| {
            let known = Known { story: vec![line(what, 1)], deferred, pending, ..Known::default() };
            let [only] = &known.deliveries()[..] else { panic!() };
            (only.state.clone(), only.cause.clone())
        };
        let (row, memory) = (|| vec![deferred("7", 0)], || vec![pending(Some("7"), None)]);
        let attempt = Some("attempt".to_owned());
        assert_eq!(of(What::Failed, row(), vec![]), ("deferred".to_owned(), None));
        assert_eq!(of(What::Failed, row(), memory()), ("deferred".to_owned(), attempt.clone()));
        assert_eq!(of(What::Failed, vec![], memory()), ("pending".to_owned(), attempt));
        assert_eq!(of(What::Delivered, row(), memory()), ("delivered".to_owned(), None));
    }
}
