//! The decoder against an encoder of its own, and against bytes that nobody encoded.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A message that owns its texts, so that a strategy can make it.
#[derive(Debug, Clone)]
enum Made {
    Begin(u64, i64, u32),
    Commit(u64, u64),
    Relation(Relation),
    Insert(u32, Vec<Cell>),
    Update(u32, Option<(bool, Vec<Cell>)>, Vec<Cell>),
    Delete(u32, (bool, Vec<Cell>)),
    Truncate(Vec<u32>),
    Logical(bool, u64, String, Vec<u8>),
    Origin(u64, String),
    Type(u32, String, String),
}

#[derive(Debug, Clone)]
enum Cell {
    Null,
    Unchanged,
    Text(String),
}

fn tuple(cells: &[Cell]) -> Tuple<'_> {
    let datum = |cell| match cell {
        &Cell::Null => Datum::Null,
        &Cell::Unchanged => Datum::Unchanged,
        Cell::Text(text) => Datum::Text(text),
    };
    Tuple(cells.iter().map(datum).collect())
}

fn old((full, cells): &(bool, Vec<Cell>)) -> OldTuple<'_> {
    if *full { OldTuple::Full(tuple(cells)) } else { OldTuple::Key(tuple(cells)) }
}

fn expected(made: &Made) -> Message<'_> {
    match made {
        Made::Begin(lsn, time, xid) => {
            Message::Begin { commit_lsn: Lsn(*lsn), commit_time_us: time + PG_EPOCH_US, xid: *xid }
        }
        Made::Commit(commit, end) => {
            Message::Commit { commit_lsn: Lsn(*commit), end_lsn: Lsn(*end) }
        }
        Made::Relation(relation) => Message::Relation(relation.clone()),
        Made::Insert(oid, new) => Message::Insert { relation: *oid, new: tuple(new) },
        Made::Update(oid, before, new) => {
            Message::Update { relation: *oid, old: before.as_ref().map(old), new: tuple(new) }
        }
        Made::Delete(oid, before) => Message::Delete { relation: *oid, old: old(before) },
        Made::Truncate(oids) => Message::Truncate { relations: oids.clone() },
        Made::Logical(transactional, lsn, prefix, content) => {
            Message::Logical { transactional: *transactional, lsn: Lsn(*lsn), prefix, content }
        }
        Made::Type(oid, schema, name) => Message::Type { oid: *oid, schema, name },
        Made::Origin(..) => Message::Ignored,
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend(text.as_bytes());
    out.push(0);
}

fn put_counted(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
    out.extend(bytes);
}

fn put_tuple(out: &mut Vec<u8>, kind: u8, cells: &[Cell]) {
    out.push(kind);
    out.extend(u16::try_from(cells.len()).unwrap().to_be_bytes());
    for cell in cells {
        match cell {
            Cell::Null => out.push(b'n'),
            Cell::Unchanged => out.push(b'u'),
            Cell::Text(text) => {
                out.push(b't');
                put_counted(out, text.as_bytes());
            }
        }
    }
}

fn put_old(out: &mut Vec<u8>, (full, cells): &(bool, Vec<Cell>)) {
    put_tuple(out, if *full { b'O' } else { b'K' }, cells);
}

fn encode(made: &Made) -> Vec<u8> {
    let mut out = Vec::new();
    match made {
        Made::Begin(lsn, time, xid) => {
            out.push(b'B');
            out.extend(lsn.to_be_bytes());
            out.extend(time.to_be_bytes());
            out.extend(xid.to_be_bytes());
        }
        Made::Commit(commit, end) => {
            out.extend([b'C', 0]);
            out.extend(commit.to_be_bytes());
            out.extend(end.to_be_bytes());
            out.extend(0i64.to_be_bytes());
        }
        Made::Relation(relation) => put_relation(&mut out, relation),
        Made::Insert(oid, new) => {
            out.push(b'I');
            out.extend(oid.to_be_bytes());
            put_tuple(&mut out, b'N', new);
        }
        Made::Update(oid, before, new) => {
            out.push(b'U');
            out.extend(oid.to_be_bytes());
            if let Some(before) = before {
                put_old(&mut out, before);
            }
            put_tuple(&mut out, b'N', new);
        }
        Made::Delete(oid, before) => {
            out.push(b'D');
            out.extend(oid.to_be_bytes());
            put_old(&mut out, before);
        }
        Made::Truncate(oids) => {
            out.push(b'T');
            out.extend(u32::try_from(oids.len()).unwrap().to_be_bytes());
            out.push(3);
            oids.iter().for_each(|oid| out.extend(oid.to_be_bytes()));
        }
        Made::Logical(transactional, lsn, prefix, content) => {
            out.extend([b'M', u8::from(*transactional)]);
            out.extend(lsn.to_be_bytes());
            put_text(&mut out, prefix);
            put_counted(&mut out, content);
        }
        Made::Origin(lsn, name) => {
            out.push(b'O');
            out.extend(lsn.to_be_bytes());
            put_text(&mut out, name);
        }
        Made::Type(oid, schema, name) => {
            out.push(b'Y');
            out.extend(oid.to_be_bytes());
            put_text(&mut out, schema);
            put_text(&mut out, name);
        }
    }
    out
}

fn put_relation(out: &mut Vec<u8>, relation: &Relation) {
    out.push(b'R');
    out.extend(relation.oid.to_be_bytes());
    put_text(out, &relation.schema);
    put_text(out, &relation.name);
    out.push(match relation.identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Nothing => b'n',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
    });
    out.extend(u16::try_from(relation.columns.len()).unwrap().to_be_bytes());
    for column in &relation.columns {
        out.push(u8::from(column.key));
        put_text(out, &column.name);
        out.extend(column.type_oid.to_be_bytes());
        out.extend(column.type_modifier.to_be_bytes());
    }
}

fn name() -> impl Strategy<Value = String> {
    "[a-zé\" ]{1,8}"
}

fn cells() -> impl Strategy<Value = Vec<Cell>> {
    let text = "\\PC{0,12}".prop_map(Cell::Text);
    vec(prop_oneof![Just(Cell::Null), Just(Cell::Unchanged), text], 0..6)
}

fn relation() -> impl Strategy<Value = Relation> {
    let column = (any::<bool>(), name(), any::<u32>(), any::<i32>()).prop_map(
        |(key, name, type_oid, type_modifier)| Column { key, name, type_oid, type_modifier },
    );
    let identity = prop_oneof![
        Just(ReplicaIdentity::Default),
        Just(ReplicaIdentity::Nothing),
        Just(ReplicaIdentity::Full),
        Just(ReplicaIdentity::Index),
    ];
    (any::<u32>(), name(), name(), identity, vec(column, 0..5)).prop_map(
        |(oid, schema, name, identity, columns)| Relation { oid, schema, name, identity, columns },
    )
}

fn made() -> impl Strategy<Value = Made> {
    let time = -PG_EPOCH_US..PG_EPOCH_US * 10;
    let row = || (any::<bool>(), cells());
    prop_oneof![
        (any::<u64>(), time, any::<u32>()).prop_map(|(l, t, x)| Made::Begin(l, t, x)),
        any::<(u64, u64)>().prop_map(|(c, e)| Made::Commit(c, e)),
        relation().prop_map(Made::Relation),
        (any::<u32>(), cells()).prop_map(|(oid, new)| Made::Insert(oid, new)),
        (any::<u32>(), proptest::option::of(row()), cells())
            .prop_map(|(oid, before, new)| Made::Update(oid, before, new)),
        (any::<u32>(), row()).prop_map(|(oid, before)| Made::Delete(oid, before)),
        vec(any::<u32>(), 0..5).prop_map(Made::Truncate),
        (any::<bool>(), any::<u64>(), name(), vec(any::<u8>(), 0..20))
            .prop_map(|(t, lsn, prefix, content)| Made::Logical(t, lsn, prefix, content)),
        (any::<u64>(), name()).prop_map(|(lsn, name)| Made::Origin(lsn, name)),
        (any::<u32>(), name(), name()).prop_map(|(oid, s, n)| Made::Type(oid, s, n)),
    ]
}

proptest! {
    #[test]
    fn decode_gives_back_what_was_encoded(made in made()) {
        let bytes = encode(&made);
        prop_assert_eq!(decode(Protocol::V1, &bytes), Ok(expected(&made)));
    }

    #[test]
    fn decode_refuses_every_strict_prefix(made in made()) {
        let bytes = encode(&made);
        for end in 0..bytes.len() {
            let error = decode(Protocol::V1, &bytes[..end]).expect_err("a part of a message decoded");
            prop_assert!(matches!(error, DecodeError::Truncated { .. }), "{end}: {error:?}");
        }
    }

    #[test]
    fn decode_refuses_a_byte_too_many(made in made(), extra: u8) {
        let mut bytes = encode(&made);
        bytes.push(extra);
        prop_assert_eq!(decode(Protocol::V1, &bytes), Err(DecodeError::Leftover { bytes: 1 }));
    }

    #[test]
    fn decode_never_panics_on_arbitrary_bytes(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode(Protocol::V1, &bytes);
    }

    #[test]
    fn decode_never_panics_on_a_damaged_message(made in made(), at: prop::sample::Index, byte: u8) {
        let mut bytes = encode(&made);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = decode(Protocol::V1, &bytes);
    }
}

#[test]
fn decode_refuses_lengths_beyond_the_message_without_allocating_for_them() {
    let relations = [&b"T"[..], &u32::MAX.to_be_bytes(), &[0]].concat();
    assert_eq!(
        decode(Protocol::V1, &relations),
        Err(DecodeError::Truncated { field: "relation OID" })
    );
    let value = [&b"I\0\0\0\x01N\0\x01t"[..], &u32::MAX.to_be_bytes()].concat();
    assert_eq!(decode(Protocol::V1, &value), Err(DecodeError::Truncated { field: "column value" }));
}

#[test]
fn decode_names_what_it_does_not_know() {
    assert_eq!(decode(Protocol::V1, b"S"), Err(DecodeError::UnknownTag(b'S')));
    let binary = decode(Protocol::V1, b"I\0\0\0\x01N\0\x01b\0\0\0\0");
    assert_eq!(binary, Err(DecodeError::UnknownByte { field: "column kind", byte: b'b' }));
    let latin1 = decode(Protocol::V1, b"I\0\0\0\x01N\0\x01t\0\0\0\x01\xE9");
    assert!(matches!(latin1, Err(DecodeError::Utf8 { field: "column value", .. })));
}

#[test]
fn decode_spells_out_the_schema_that_the_protocol_leaves_empty() {
    let bytes = b"R\0\0\0\x01\0t\0d\0\0";
    let Ok(Message::Relation(relation)) = decode(Protocol::V1, bytes) else {
        panic!("not a relation")
    };
    assert_eq!(relation.schema, "pg_catalog");
    let bytes = b"Y\0\0\x40\x01\0int4\0";
    let expected = Message::Type { oid: 16_385, schema: "pg_catalog", name: "int4" };
    assert_eq!(decode(Protocol::V1, bytes), Ok(expected));
}

/// Infinity is the first and the last of PostgreSQL's times.
#[test]
fn commit_times_are_such_as_can_be_said() {
    for (since_2000, said) in [
        (i64::MIN, "0001-01-01T00:00:00.000000Z"),
        (i64::MIN + 1, "0001-01-01T00:00:00.000000Z"),
        (0, "2000-01-01T00:00:00.000000Z"),
        (i64::MAX, "9999-12-30T22:00:00.000000Z"),
    ] {
        let mut bytes = vec![b'B'];
        bytes.extend(7u64.to_be_bytes());
        bytes.extend(since_2000.to_be_bytes());
        bytes.extend(1u32.to_be_bytes());
        let Ok(Message::Begin { commit_time_us, .. }) = decode(Protocol::V1, &bytes) else {
            panic!("{since_2000}")
        };
        assert_eq!(walhook_core::event::rfc3339(commit_time_us), said);
    }
}
