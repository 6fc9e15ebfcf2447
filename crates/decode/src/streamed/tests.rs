//! What is kept of open transactions, against what a server that sends them knows.

mod model;

use super::*;
use crate::pgoutput::{Message, Protocol, decode};
use walhook_core::tick::Tick;

/// A message, and the position in its header.
type Sent = (u64, Vec<u8>);

fn put(tag: u8, xid: u32, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &xid.to_be_bytes(), body].concat()
}

fn start(xid: u32, first: bool) -> Vec<u8> {
    put(b'S', xid, &[u8::from(first)])
}

fn abort(xid: u32, subxid: u32) -> Vec<u8> {
    put(b'A', xid, &subxid.to_be_bytes())
}

fn commit(xid: u32, commit_lsn: u64) -> Vec<u8> {
    let lsns = [commit_lsn.to_be_bytes(), (commit_lsn + 8).to_be_bytes(), 0u64.to_be_bytes()];
    put(b'c', xid, &[&[0][..], &lsns.concat()].concat())
}

/// A row of a table with one column, without its tag.
fn row(value: &str) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap().to_be_bytes();
    [&b"\0\0\0\x64N\0\x01t"[..], &length, value.as_bytes()].concat()
}

fn insert(xid: u32, value: &str) -> Vec<u8> {
    put(b'I', xid, &row(value))
}

/// The body of a logical message with this prefix, which ends at `lsn`.
fn logical(lsn: u64, prefix: &str) -> Vec<u8> {
    [&[1][..], &lsn.to_be_bytes(), prefix.as_bytes(), b"\0\0\0\0\x01c"].concat()
}

fn settings() -> Settings {
    Settings { memory_bytes: 1 << 20, spool: false, prefixes: vec!["p".to_owned()] }
}

/// All that is played of the next transaction: position and message.
fn played(open: &mut OpenTransactions) -> Vec<(u64, Bytes)> {
    let mut all = Vec::new();
    loop {
        match open.play().unwrap() {
            Play::Record(record) => all.push((record.wal_start.0, record.payload)),
            Play::Wait => panic!("nothing is in a spool"),
            Play::End => return all,
        }
    }
}

/// Takes these, each at its position, and gives the last answer.
fn take(open: &mut OpenTransactions, messages: &[Sent]) -> String {
    let mut last = String::new();
    for (at, message) in messages {
        let taken = open.handle(Tick(0), Lsn(*at), Payload::Whole(message)).unwrap();
        last = format!("{taken:?}");
    }
    last
}

fn values(played: &[(u64, Bytes)]) -> Vec<String> {
    let value = |(_, payload): &(u64, Bytes)| {
        let Ok(Message::Insert { new, .. }) = decode(Protocol::V1, payload) else {
            panic!("{payload:?}")
        };
        format!("{:?}", new.0[0])
    };
    played.iter().map(value).collect()
}

#[test]
fn open_transactions_give_back_what_was_not_rolled_back() {
    let mut open = OpenTransactions::new(settings());
    let last = take(
        &mut open,
        &[
            (0, start(7, true)),
            (10, insert(7, "a")),
            (20, insert(8, "b")),
            (30, insert(9, "c")),
            (0, b"E".to_vec()),
            (0, start(20, true)),
            (35, insert(20, "of another")),
            (0, b"E".to_vec()),
            (0, abort(7, 9)),
            (0, start(7, false)),
            (40, insert(8, "d")),
            (50, insert(10, "e")),
            (0, b"E".to_vec()),
            (0, abort(7, 10)),
            (0, abort(7, 8)),
            (0, start(7, false)),
            (60, insert(7, "f")),
            (70, insert(11, "g")),
            (0, b"E".to_vec()),
            (80, commit(7, 80)),
        ],
    );
    assert!(last.starts_with("Committed"), "{last}");
    assert_eq!(open.playing().map(|t| t.commit_lsn), Some(Lsn(80)));
    let played = played(&mut open);
    assert_eq!(played.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [10, 60, 70]);
    assert_eq!(values(&played), ["Text(\"a\")", "Text(\"f\")", "Text(\"g\")"]);
    assert_eq!(open.playing(), None);
    assert_eq!(open.open().map(|open| (open.xid, open.rows)).collect::<Vec<_>>(), [(20, 1)]);
    take(&mut open, &[(0, abort(20, 20))]);
    assert_eq!(open.memory_bytes(), 0);
}

#[test]
fn open_transactions_pass_on_what_stands_outside_of_blocks() {
    let mut open = OpenTransactions::new(settings());
    let live = [&b"I"[..], &row("a")].concat();
    assert_eq!(take(&mut open, &[(10, live)]), "Live");
    let misplaced = open.handle(Tick(0), Lsn(0), Payload::Whole(b"E")).unwrap_err();
    assert_eq!(misplaced, StreamedError::Misplaced { tag: b'E', inside: false });
    let unknown = open.handle(Tick(0), Lsn(0), Payload::Whole(&start(7, false))).unwrap_err();
    assert_eq!(unknown, StreamedError::NotBegun { xid: 7 });
}

#[test]
fn open_transactions_call_it_unclear_whose_message_may_have_been_rolled_back() {
    let message = |lsn| (lsn, put(b'M', 7, &logical(lsn, "p")));
    let other = |lsn| (lsn, put(b'M', 7, &logical(lsn, "of no rule")));
    let end = || [(0, b"E".to_vec()), (0, abort(7, 8)), (80, commit(7, 80))];
    let begin = || vec![(0, start(7, true)), (10, insert(7, "a"))];
    let cases: [(&[Sent], &str); 6] = [
        // It may be the sub-transaction's first deed, or its only one.
        (&[message(20), (30, insert(8, "b"))], "Unclear"),
        (&[message(20)], "Unclear"),
        // It came before the sub-transaction did, or in it.
        (&[message(20), (30, insert(7, "b")), (40, insert(8, "c"))], "Committed"),
        (&[(20, insert(8, "b")), message(30)], "Committed"),
        (&[other(20), (30, insert(8, "b"))], "Committed"),
        // A message and a row that share a position have no certain order.
        (&[message(20), (20, insert(7, "b"))], "Unclear"),
    ];
    for (deeds, expected) in cases {
        let mut open = OpenTransactions::new(settings());
        let all: Vec<_> = begin().into_iter().chain(deeds.to_vec()).chain(end()).collect();
        let taken = take(&mut open, &all);
        assert!(taken.starts_with(expected), "{deeds:?}: {taken}");
    }
}
