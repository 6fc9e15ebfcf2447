//! A transaction that was received while it was open, played beside the stream.

use super::*;

fn transaction(commit_lsn: u64) -> Transaction {
    Transaction { commit_lsn: Lsn(commit_lsn), commit_time_us: 5, xid: 1 }
}

/// What the steps are, in a word each; of a change its position's LSN and the number of its columns.
fn words(steps: impl IntoIterator<Item = Step<'static>>) -> Vec<String> {
    let word = |step| match step {
        Step::Begin(transaction) => format!("begin {}", transaction.commit_lsn.0),
        Step::Relation(relation) => format!("relation with {}", relation.columns.len()),
        Step::Change(change) => {
            let columns = change.relation.columns.len();
            format!("change at {} with {columns}", change.position.change_lsn.0)
        }
        Step::Message(message) => format!("message at {}", message.position.change_lsn.0),
        Step::Commit { end_lsn } => format!("commit to {}", end_lsn.0),
    };
    steps.into_iter().map(word).collect()
}

fn relation(columns: usize) -> Message<'static> {
    Message::Relation(described(0, columns))
}

#[test]
fn changes_play_a_transaction_beside_the_stream_with_its_own_descriptions() {
    let mut changes = Changes::new(Lsn::ZERO);
    changes.handle(Lsn::ZERO, relation(1)).unwrap();
    let ours = changes.handle_streamed(transaction(50), Lsn(60)).unwrap().unwrap();
    assert_eq!(changes.resume_lsn(), Lsn(60), "it is not sent again");
    assert_eq!(changes.played(), None);
    assert_eq!(words(changes.begin_play(ours)), ["begin 50"]);
    assert_eq!(changes.played(), Some(transaction(50)));
    let error = changes.play(Lsn(10), insert(1)).unwrap_err();
    assert_eq!(error, ChangeError::UnknownRelation { relation: oid(0) });
    changes.play(Lsn::ZERO, relation(2)).unwrap();
    assert!(!changes.in_transaction(), "the stream stands between two");
    assert_eq!(words(changes.handle(Lsn(70), begin(70)).unwrap()), ["begin 70"]);
    // Each time a row has another description than the one before.
    let mut steps = words(changes.play(Lsn(10), insert(2)).unwrap());
    steps.extend(words(changes.handle(Lsn(11), insert(1)).unwrap()));
    steps.extend(words(changes.handle(Lsn(12), insert(1)).unwrap()));
    steps.extend(words(changes.play(Lsn(20), insert(2)).unwrap()));
    let expected = [
        "relation with 2",
        "change at 10 with 2",
        "relation with 1",
        "change at 11 with 1",
        "change at 12 with 1",
        "relation with 2",
        "change at 20 with 2",
    ];
    assert_eq!(steps, expected);
    // The same description in both is one.
    changes.handle(Lsn::ZERO, relation(2)).unwrap();
    assert_eq!(words(changes.handle(Lsn(13), insert(2)).unwrap()), ["change at 13 with 2"]);
    let error = changes.play(Lsn(15), insert(2)).unwrap_err();
    assert_eq!(error, ChangeError::OutOfOrder { wal_start: Lsn(15), previous: Lsn(20) });
    assert_eq!(words(changes.handle(Lsn(78), commit(70, 78)).unwrap()), ["commit to 78"]);
    assert_eq!(words(changes.end_play()), ["commit to 60"]);
    assert_eq!(changes.end_play(), None);
    assert_eq!(changes.resume_lsn(), Lsn(78));
}

#[test]
fn changes_go_on_playing_when_the_connection_breaks() {
    let mut changes = Changes::new(Lsn::ZERO);
    let ours = changes.handle_streamed(transaction(50), Lsn(60)).unwrap().unwrap();
    changes.begin_play(ours);
    changes.play(Lsn::ZERO, relation(2)).unwrap();
    assert_eq!(words(changes.play(Lsn(10), insert(2)).unwrap()).len(), 2);
    changes.handle_reconnected();
    assert_eq!(words(changes.play(Lsn(20), insert(2)).unwrap()), ["change at 20 with 2"]);
    // Sent again all the same, whole or not: it is ours.
    assert_eq!(changes.handle_streamed(transaction(50), Lsn(60)), Ok(None));
    assert_eq!(words(changes.end_play()), ["commit to 60"]);
    assert_eq!(words(changes.handle(Lsn(70), begin(70)).unwrap()), ["begin 70"]);
}

#[test]
fn changes_play_the_rest_of_a_transaction_that_came_whole_when_the_connection_broke() {
    let mut changes = Changes::new(Lsn::ZERO);
    changes.handle(Lsn::ZERO, relation(2)).unwrap();
    changes.handle(Lsn(9), begin(50)).unwrap();
    changes.handle(Lsn(10), insert(2)).unwrap();
    changes.handle(Lsn(10), insert(2)).unwrap();
    changes.handle_reconnected();
    assert!(changes.in_transaction());
    let missing = changes.handle_streamed(transaction(55), Lsn(60)).unwrap_err();
    assert_eq!(missing, ChangeError::CutTransactionMissing { cut: Lsn(50), found: Lsn(55) });
    let ours = changes.handle_streamed(transaction(50), Lsn(60)).unwrap().unwrap();
    assert!(!changes.in_transaction());
    assert_eq!(changes.begin_play(ours), None, "it has begun");
    changes.play(Lsn::ZERO, relation(2)).unwrap();
    let mut steps = Vec::new();
    for at in [10, 10, 10, 20] {
        steps.extend(words(changes.play(Lsn(at), insert(2)).unwrap()));
    }
    assert_eq!(steps, ["change at 10 with 2", "change at 20 with 2"]);
    assert_eq!(words(changes.end_play()), ["commit to 60"]);
}

#[test]
fn changes_refuse_a_streamed_commit_in_the_wrong_place() {
    let mut changes = Changes::new(Lsn(45));
    assert_eq!(changes.handle_streamed(transaction(40), Lsn(44)), Ok(None), "settled before");
    let error = changes.handle_streamed(transaction(40), Lsn(44)).unwrap_err();
    assert_eq!(error, ChangeError::OutOfOrder { wal_start: Lsn(40), previous: Lsn(40) });
    let error = changes.handle_streamed(transaction(50), Lsn(50)).unwrap_err();
    assert!(matches!(error, ChangeError::CommitMismatch { .. }));
    changes.handle(Lsn(50), begin(50)).unwrap();
    let error = changes.handle_streamed(transaction(60), Lsn(68)).unwrap_err();
    assert_eq!(error, ChangeError::Nested { outer: Lsn(50), inner: Lsn(60) });
    let error = changes.play(Lsn(10), insert(2)).unwrap_err();
    assert_eq!(error, ChangeError::UnknownRelation { relation: oid(0) });
}
