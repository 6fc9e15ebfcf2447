//! Against a naive model: a list of rows, each with what became of it.

use proptest::prelude::*;

use super::*;
use crate::fixture;
use crate::lane::SharedEvent;
use walhook_core::event::AccountId;
use walhook_core::persist::{AttemptRecord, Defer, DeferReason, EventKey, QueueId, Tried};

/// A row that had to be inserted.
#[derive(Debug, Default)]
struct Row {
    handed_out: bool,
    stored: bool,
    /// What is to become of it, and was not handed out: attempts to be told, or its removal.
    change: Option<Change>,
}

#[derive(Debug, Clone, PartialEq)]
enum Change {
    Retime(Vec<i64>),
    Remove,
}

#[derive(Debug, Clone)]
enum Action {
    Leave,
    Retime(usize),
    Remove(usize),
    /// A batch begins, with room for so many rows.
    Begin(usize),
    Stored,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => Just(Action::Leave),
        3 => any::<usize>().prop_map(Action::Retime),
        1 => any::<usize>().prop_map(Action::Remove),
        2 => (0usize..4).prop_map(Action::Begin),
        2 => Just(Action::Stored),
    ]
}

fn row_id(number: usize) -> RowId {
    let commit = 1_000 + number as u64;
    let event = fixture::event("a", fixture::position(commit, commit), &[]);
    let queue = QueueId { account: AccountId::new("a"), endpoint: EndpointId::new("e") };
    let key = RowKey { event: EventKey::of(&event), replay: None };
    RowId { queue, key, event: event.id }
}

fn leaving(number: usize) -> Leaving {
    let commit = 1_000 + number as u64;
    let event = Arc::new(fixture::event("a", fixture::position(commit, commit), &[]));
    let bytes = LEAVING_BYTES + event.size_bytes();
    let row = Defer {
        id: row_id(number),
        event: Arc::clone(&event),
        reason: DeferReason::Failed,
        tried: Tried::default(),
    };
    let held = Arc::new(SharedEvent::new(event));
    let (txn, kind, routed) = (None, Leaves::Unrouted, None);
    Leaving { row, held, txn, ordinal: 0, kind, routed, counted: LEAVING_BYTES, bytes }
}

fn tried(at_us: i64) -> Tried {
    let attempt =
        AttemptRecord { at_us, status: None, latency: Duration::ZERO, error: String::new() };
    Tried { history: vec![attempt], ..Tried::default() }
}

fn told(change: RowChange) -> Change {
    match change {
        RowChange::Retime(tried) => {
            Change::Retime(tried.history.into_iter().map(|attempt| attempt.at_us).collect())
        }
        RowChange::Remove | RowChange::Drop => Change::Remove,
    }
}

fn parts(stored: LeavingRows) -> Parts {
    Parts { dying: vec![], stored, removed: vec![], routed: vec![], over: vec![] }
}

proptest! {
    #[test]
    fn rows_are_inserted_in_order_and_changed_no_sooner(
        actions in prop::collection::vec(action(), 0..120),
    ) {
        let mut outbox = Outbox::new(Lsn(0), Duration::ZERO, false);
        let (mut rows, mut under_way) = (Vec::<Row>::new(), false);
        let pick = |rows: &[Row], n: usize| {
            // One that is removed is not changed any more.
            let there = |row: &Row| row.change != Some(Change::Remove);
            let all: Vec<usize> = (0..rows.len()).filter(|at| there(&rows[*at])).collect();
            (!all.is_empty()).then(|| all[n % all.len()])
        };
        for (at_us, action) in (1..).zip(actions) {
            match action {
                Action::Leave => {
                    prop_assert_eq!(outbox.next_insertion(), Insertion(rows.len() as u64 + 1));
                    outbox.leave(leaving(rows.len()));
                    rows.push(Row::default());
                }
                Action::Retime(n) => {
                    let Some(at) = pick(&rows, n) else { continue };
                    let insertion = (!rows[at].stored).then_some(Insertion(at as u64 + 1));
                    outbox.change(row_id(at), insertion, RowChange::Retime(tried(at_us)));
                    match &mut rows[at].change {
                        Some(Change::Retime(attempts)) => attempts.push(at_us),
                        change => *change = Some(Change::Retime(vec![at_us])),
                    }
                }
                Action::Remove(n) => {
                    let Some(at) = pick(&rows, n) else { continue };
                    let insertion = (!rows[at].stored).then_some(Insertion(at as u64 + 1));
                    outbox.change(row_id(at), insertion, RowChange::Remove);
                    rows[at].change = Some(Change::Remove);
                }
                Action::Begin(room) => {
                    prop_assert_eq!(outbox.deadline(Lsn(0), || true, false).is_none(), under_way);
                    if under_way {
                        continue;
                    }
                    let mut stored = Vec::new();
                    while stored.len() < room && let Some(next) = outbox.next_leaving() {
                        let first = rows.iter().position(|row| !row.handed_out).unwrap();
                        prop_assert_eq!(&next.row.id, &row_id(first));
                        rows[first].handed_out = true;
                        stored.push(next);
                    }
                    let changes: Vec<(RowId, Change)> =
                        outbox.take_changes().into_iter().map(|(row, change)| (row, told(change))).collect();
                    let mut expected = Vec::new();
                    for (at, row) in rows.iter_mut().enumerate().filter(|(_, row)| row.handed_out) {
                        // What was removed stays so: it is known no longer.
                        if let Some(change) = row.change.take() {
                            expected.push((row_id(at), change));
                        }
                    }
                    prop_assert_eq!(changes, expected);
                    outbox.hand_over(&mut PersistBatch::default(), parts(stored.into()), Tick(0));
                    under_way = true;
                }
                Action::Stored => {
                    if !std::mem::take(&mut under_way) {
                        continue;
                    }
                    let (.., parts) = outbox.handle_stored(0, Tick(0));
                    for leaving in parts.stored {
                        outbox.stored_row(leaving.bytes);
                        let first = rows.iter().position(|row| !row.stored).unwrap();
                        prop_assert_eq!(&leaving.row.id, &row_id(first));
                        rows[first].stored = true;
                    }
                }
            }
            let one = leaving(0).bytes;
            let not_stored = rows.iter().filter(|row| !row.stored).count();
            prop_assert_eq!(outbox.leaving_bytes(), not_stored * one);
            let handed_out = rows.iter().filter(|row| row.handed_out).count();
            prop_assert_eq!(outbox.handed_out(), Insertion(handed_out as u64));
            prop_assert_eq!(outbox.insertions(), Insertion(rows.len() as u64));
            let waits = under_way || not_stored > 0 || rows.iter().any(|row| row.change.is_some());
            prop_assert!(!waits || !outbox.is_clean(Lsn(0)));
        }
    }
}
