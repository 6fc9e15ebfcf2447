//! The assembler against a naive model of a server, over connections cut at random points.

mod played;

use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::pgoutput::{Column, Datum, Message};
use walhook_core::catalog::ReplicaIdentity;
use walhook_core::position::MESSAGE;

/// Tables are numbered; their OIDs go the other way, to tell one order from the other.
const TABLES: u32 = 4;
const VALUES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn oid(table: u32) -> u32 {
    100 - table % TABLES
}

/// What one transaction does, in order.
#[derive(Debug, Clone)]
enum Deed {
    /// Writes this many rows at one LSN, as COPY does.
    Rows {
        table: u32,
        kind: u8,
        count: u32,
    },
    Truncate {
        tables: Vec<u32>,
    },
    /// Adds a column; no message comes of it before the table's next change.
    Alter {
        table: u32,
    },
    /// Writes a logical message, which has the next deed's LSN; where it `lags`, the server sends it
    /// after that.
    Logical {
        lags: bool,
    },
    /// What the assembler must not mind.
    Noise,
}

#[derive(Debug, Clone)]
struct Written {
    commit_lsn: u64,
    end_lsn: u64,
    /// The LSN of the first deed; transactions run side by side, so these are in no order.
    first_lsn: u64,
    deeds: Vec<Deed>,
}

impl Written {
    fn transaction(&self) -> Transaction {
        let xid = u32::try_from(self.commit_lsn).unwrap();
        Transaction { commit_lsn: Lsn(self.commit_lsn), commit_time_us: 5, xid }
    }

    /// The deeds as they are sent, each with its LSN and whether it comes late.
    fn sent(&self) -> Vec<(Lsn, &Deed, bool)> {
        let mut sent = Vec::new();
        let mut late = Vec::new();
        for (deed, place) in self.deeds.iter().zip(self.first_lsn..) {
            let lsn = |place: u64| Lsn(8 * place);
            if let Deed::Logical { lags } = deed {
                sent.append(&mut late);
                match lags {
                    true => late.push((lsn(place + 1), deed, true)),
                    false => sent.push((lsn(place + 1), deed, false)),
                }
            } else {
                sent.push((lsn(place), deed, false));
                sent.append(&mut late);
            }
        }
        sent.append(&mut late);
        sent
    }
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => (0..TABLES, 0u8..5, 1u32..4)
            .prop_map(|(table, kind, count)| Deed::Rows { table, kind, count }),
        1 => prop::sample::subsequence((0..TABLES).collect::<Vec<_>>(), 1..4)
            .prop_map(|tables| Deed::Truncate { tables }),
        1 => (0..TABLES).prop_map(|table| Deed::Alter { table }),
        2 => any::<bool>().prop_map(|lags| Deed::Logical { lags }),
        1 => Just(Deed::Noise),
    ]
}

/// Transactions in commit order. A commit record may begin where the one before ends.
fn wal() -> impl Strategy<Value = Vec<Written>> {
    vec((0u64..3, 1u64..4, 1u64..500, vec(deed(), 0..6)), 1..7).prop_map(|transactions| {
        let mut at = 1_000;
        let mut wal = Vec::new();
        for (gap, length, first_lsn, deeds) in transactions {
            let commit_lsn = at + gap;
            at = commit_lsn + length;
            wal.push(Written { commit_lsn, end_lsn: at, first_lsn, deeds });
        }
        wal
    })
}

fn described(table: u32, columns: usize) -> Relation {
    let column = |i| Column { key: i == 0, name: format!("c{i}"), type_oid: 25, type_modifier: -1 };
    Relation {
        oid: oid(table),
        schema: "public".to_owned(),
        name: format!("t{table}"),
        identity: ReplicaIdentity::Default,
        columns: (0..columns).map(column).collect(),
    }
}

fn rows(kind: u8, columns: usize, value: u32) -> Rows<'static> {
    let text = VALUES[usize::try_from(value).unwrap() % VALUES.len()];
    let tuple = || Tuple(vec![Datum::Text(text); columns]);
    match kind {
        0 => Rows::Insert { new: tuple() },
        1 => Rows::Update { old: None, new: tuple() },
        2 => Rows::Oversize { operation: Operation::Update, bytes: 1 << 30 },
        3 => Rows::Update { old: Some(OldTuple::Key(tuple())), new: tuple() },
        _ => Rows::Delete { old: OldTuple::Full(tuple()) },
    }
}

fn message(table: u32, rows: Rows<'static>) -> Message<'static> {
    let relation = oid(table);
    match rows {
        Rows::Insert { new } => Message::Insert { relation, new },
        Rows::Update { old, new } => Message::Update { relation, old, new },
        Rows::Delete { old } => Message::Delete { relation, old },
        Rows::Truncate => Message::Truncate { relations: vec![relation] },
        Rows::Oversize { operation, bytes } => Message::Oversize { relation, operation, bytes },
    }
}

/// The columns that tables have gained so far.
#[derive(Default)]
struct Catalog(HashMap<u32, usize>);

impl Catalog {
    fn columns(&self, table: u32) -> usize {
        1 + self.0.get(&table).copied().unwrap_or(0)
    }

    fn alter(&mut self, table: u32) {
        *self.0.entry(table).or_default() += 1;
    }
}

/// All that a connection started at `start` sends.
fn serve(wal: &[Written], start: Lsn) -> Vec<(Lsn, Message<'static>)> {
    let mut out = Vec::new();
    let mut catalog = Catalog::default();
    let mut sent: HashMap<u32, usize> = HashMap::new();
    for written in wal {
        let transaction = written.transaction();
        let decoded = transaction.commit_lsn >= start;
        let from = out.len();
        out.push((
            Lsn(written.first_lsn),
            Message::Begin {
                commit_lsn: transaction.commit_lsn,
                commit_time_us: transaction.commit_time_us,
                xid: transaction.xid,
            },
        ));
        for (lsn, deed, _) in written.sent() {
            let mut describe = |table: u32, catalog: &Catalog, out: &mut Vec<_>| {
                let columns = catalog.columns(table);
                if decoded && sent.insert(table, columns) != Some(columns) {
                    out.push((Lsn::ZERO, Message::Relation(described(table, columns))));
                }
            };
            match deed {
                Deed::Rows { table, kind, count } => {
                    describe(*table, &catalog, &mut out);
                    for i in 0..*count {
                        let rows = rows(*kind, catalog.columns(*table), i);
                        out.push((lsn, message(*table, rows)));
                    }
                }
                Deed::Truncate { tables } => {
                    tables.iter().for_each(|table| describe(*table, &catalog, &mut out));
                    let relations = tables.iter().copied().map(oid).collect();
                    out.push((lsn, Message::Truncate { relations }));
                }
                Deed::Alter { table } => catalog.alter(*table),
                Deed::Logical { .. } => {
                    out.push((lsn, logical(lsn, true)));
                    out.push((lsn, logical(lsn, false)));
                }
                Deed::Noise => out.push((Lsn::ZERO, Message::Ignored)),
            }
        }
        let (commit_lsn, end_lsn) = (transaction.commit_lsn, Lsn(written.end_lsn));
        out.push((end_lsn, Message::Commit { commit_lsn, end_lsn }));
        if !decoded {
            out.truncate(from);
        }
    }
    out
}

/// The steps that must come, made from what was written rather than from messages.
fn expected(wal: &[Written], settled: Lsn) -> Vec<Step<'static>> {
    let mut steps = Vec::new();
    let mut catalog = Catalog::default();
    let mut announced: HashMap<u32, usize> = HashMap::new();
    for written in wal {
        let transaction = written.transaction();
        let wanted = transaction.commit_lsn >= settled;
        if wanted {
            steps.push(Step::Begin(transaction));
        }
        let mut previous = None;
        for (lsn, deed, is_late) in written.sent() {
            let changes: Vec<(u32, Rows<'static>, u32)> = match deed {
                Deed::Rows { table, kind, count } => (0..*count)
                    .map(|i| (*table, rows(*kind, catalog.columns(*table), i), i))
                    .collect(),
                Deed::Truncate { tables } => {
                    let mut tables = tables.clone();
                    tables.sort_by_key(|table| oid(*table));
                    tables.into_iter().map(|table| (table, Rows::Truncate, 0)).collect()
                }
                Deed::Alter { table } => {
                    catalog.alter(*table);
                    Vec::new()
                }
                Deed::Noise => Vec::new(),
                Deed::Logical { .. } => {
                    let commit_lsn = transaction.commit_lsn;
                    // Late behind a deed that sends nothing is not late.
                    let position = if is_late && previous == Some(lsn) {
                        WalPosition::late_message(commit_lsn, lsn)
                    } else {
                        WalPosition { commit_lsn, change_lsn: lsn, relation: MESSAGE, n: 0 }
                    };
                    let content = MessageContent::Read(b"c");
                    let message = LogicalMessage { transaction, position, prefix: "p", content };
                    steps.extend(wanted.then_some(Step::Message(message)));
                    Vec::new()
                }
            };
            previous = (!changes.is_empty()).then_some(lsn);
            for (table, rows, n) in changes.into_iter().filter(|_| wanted) {
                let columns = catalog.columns(table);
                let relation = Arc::new(described(table, columns));
                if announced.insert(table, columns) != Some(columns) {
                    steps.push(Step::Relation(Arc::clone(&relation)));
                }
                let position = WalPosition {
                    commit_lsn: transaction.commit_lsn,
                    change_lsn: lsn,
                    relation: oid(table),
                    n,
                };
                steps.push(Step::Change(Change { transaction, position, relation, rows }));
            }
        }
        if wanted {
            steps.push(Step::Commit { end_lsn: Lsn(written.end_lsn) });
        }
    }
    steps
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn changes_give_the_same_steps_wherever_connections_are_cut(
        wal in wal(),
        settled in 0usize..3,
        cuts in vec((0usize..30, any::<bool>()), 0..8),
    ) {
        let settled = match settled {
            0 => Lsn::ZERO,
            nth => Lsn(wal.get(nth - 1).map_or(0, |written| written.end_lsn)),
        };
        let mut changes = Changes::new(settled);
        let mut steps = Vec::new();
        let last = (usize::MAX, false);
        for (length, from_the_beginning) in cuts.into_iter().chain([last]) {
            changes.handle_reconnected();
            // A slot that lags behind our position makes the server send settled ones again.
            let start = if from_the_beginning { Lsn::ZERO } else { changes.resume_lsn() };
            for (wal_start, message) in serve(&wal, start).into_iter().take(length) {
                steps.extend(changes.handle(wal_start, message).unwrap());
            }
        }
        let expected = expected(&wal, settled);
        prop_assert_eq!(&steps, &expected);
        let positions = steps.iter().filter_map(|step| match step {
            Step::Change(change) => Some(change.position),
            Step::Message(message) => Some(message.position),
            Step::Begin(_) | Step::Relation(_) | Step::Commit { .. } => None,
        });
        prop_assert!(positions.is_sorted_by(|a, b| a < b));
        let end = wal.last().map_or(settled, |written| settled.max(Lsn(written.end_lsn)));
        prop_assert_eq!(changes.resume_lsn(), end);
        prop_assert!(!changes.in_transaction());
    }

    #[test]
    fn changes_never_panic_and_never_go_back_when_messages_are_lost_or_doubled(
        wal in wal(),
        picks in vec((any::<prop::sample::Index>(), any::<bool>()), 0..60),
    ) {
        let all = serve(&wal, Lsn::ZERO);
        let mut changes = Changes::new(Lsn::ZERO);
        let mut last = None;
        for (pick, reconnect) in picks {
            if reconnect {
                changes.handle_reconnected();
            }
            let (wal_start, message) = pick.get(&all).clone();
            for step in changes.handle(wal_start, message).unwrap_or_default() {
                if let Step::Change(change) = step {
                    prop_assert!(last < Some(change.position));
                    last = Some(change.position);
                }
            }
        }
    }
}

fn logical(lsn: Lsn, transactional: bool) -> Message<'static> {
    Message::Logical { transactional, lsn, prefix: "p", content: b"c" }
}

fn begin(commit_lsn: u64) -> Message<'static> {
    Message::Begin { commit_lsn: Lsn(commit_lsn), commit_time_us: 0, xid: 1 }
}

fn commit(commit_lsn: u64, end_lsn: u64) -> Message<'static> {
    Message::Commit { commit_lsn: Lsn(commit_lsn), end_lsn: Lsn(end_lsn) }
}

fn insert(columns: usize) -> Message<'static> {
    message(0, rows(0, columns, 0))
}

/// The error of the last of these messages; those before it are in order.
fn error_of(messages: Vec<(u64, Message<'static>)>) -> ChangeError {
    let mut changes = Changes::new(Lsn::ZERO);
    let mut results = Vec::new();
    for (wal_start, message) in messages {
        results.push(changes.handle(Lsn(wal_start), message).map(|_| ()));
    }
    let last = results.pop().unwrap();
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    last.unwrap_err()
}

#[test]
fn changes_refuse_what_the_protocol_does_not_allow() {
    let table = || Message::Relation(described(0, 2));
    let (outer, inner) = (Lsn(50), Lsn(60));
    let relation = oid(0);
    let cases = [
        (
            vec![(0, table()), (9, insert(2))],
            ChangeError::OutsideTransaction { what: "a row", wal_start: Lsn(9) },
        ),
        (
            vec![(9, logical(Lsn(9), true))],
            ChangeError::OutsideTransaction { what: "a message", wal_start: Lsn(9) },
        ),
        (
            vec![(9, commit(8, 9))],
            ChangeError::OutsideTransaction { what: "a COMMIT", wal_start: Lsn(9) },
        ),
        (vec![(9, begin(50)), (9, begin(60))], ChangeError::Nested { outer, inner }),
        (
            vec![(9, begin(50)), (9, commit(60, 61))],
            ChangeError::CommitMismatch { begun: outer, committed: inner, end: Lsn(61) },
        ),
        (
            vec![(9, begin(50)), (9, commit(50, 50))],
            ChangeError::CommitMismatch { begun: outer, committed: outer, end: outer },
        ),
        (
            vec![(9, begin(60)), (9, commit(60, 61)), (9, begin(50))],
            ChangeError::OutOfOrder { wal_start: outer, previous: inner },
        ),
        (vec![(9, begin(50)), (9, insert(2))], ChangeError::UnknownRelation { relation }),
        (vec![(0, table()), (9, begin(50)), (0, insert(2))], ChangeError::NoPosition { relation }),
        (
            vec![(0, table()), (9, begin(50)), (9, insert(2)), (8, insert(2))],
            ChangeError::OutOfOrder { wal_start: Lsn(8), previous: Lsn(9) },
        ),
        (
            vec![(0, table()), (9, begin(50)), (9, insert(3))],
            ChangeError::ColumnCount {
                schema: "public".to_owned(),
                table: "t0".to_owned(),
                values: 3,
                columns: 2,
            },
        ),
    ];
    for (messages, expected) in cases {
        assert_eq!(error_of(messages), expected);
    }
}

#[test]
fn changes_leave_out_the_rest_of_a_transaction_and_nothing_of_the_next() {
    let mut changes = Changes::new(Lsn::ZERO);
    assert_eq!(changes.handle_left_out(), None);
    for (at, message) in [(9, begin(50)), (0, Message::Relation(described(0, 2))), (10, insert(2))]
    {
        changes.handle(Lsn(at), message).unwrap();
    }
    assert_eq!(changes.transaction().map(|t| t.commit_lsn), Some(Lsn(50)));
    assert_eq!(changes.handle_left_out(), Some(Step::Commit { end_lsn: Lsn(51) }));
    assert_eq!(changes.resume_lsn(), Lsn(51));
    changes.handle_reconnected();
    // Sent again all the same, nothing of it is handed out; the next begins at its end.
    assert!(changes.handle(Lsn(9), begin(50)).unwrap().is_empty());
    assert_eq!(changes.handle_left_out(), None);
    changes.handle_reconnected();
    assert_eq!(changes.handle(Lsn(80), begin(80)).unwrap().len(), 1);
}

#[test]
fn changes_refuse_to_go_on_when_the_cut_transaction_does_not_come_again() {
    let mut changes = Changes::new(Lsn::ZERO);
    changes.handle(Lsn(9), begin(50)).unwrap();
    changes.handle_reconnected();
    let error = changes.handle(Lsn(9), begin(60)).unwrap_err();
    assert_eq!(error, ChangeError::CutTransactionMissing { cut: Lsn(50), found: Lsn(60) });
}

#[test]
fn changes_forget_descriptions_when_the_connection_breaks() {
    let mut changes = Changes::new(Lsn::ZERO);
    changes.handle(Lsn::ZERO, Message::Relation(described(0, 2))).unwrap();
    changes.handle_reconnected();
    changes.handle(Lsn(9), begin(50)).unwrap();
    let error = changes.handle(Lsn(9), insert(2)).unwrap_err();
    assert_eq!(error, ChangeError::UnknownRelation { relation: oid(0) });
}
