//! Messages → pgoutput bytes, protocol version 1, and the blocks of version 2: what a server sends.
//!
//! Source: PostgreSQL manual, "Logical Replication Message Formats".

use walhook_core::catalog::{ReplicaIdentity, Table};
use walhook_core::lsn::Lsn;
use walhook_decode::pgoutput::PG_EPOCH_US;

/// A column's value in a tuple.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Null,
    /// A TOASTed value that the change left alone.
    Unchanged,
    Text(String),
}

impl Value {
    pub(crate) fn text(text: impl ToString) -> Self {
        Self::Text(text.to_string())
    }
}

/// A row: a value for each column.
pub(crate) type Row = Vec<Value>;

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend(text.as_bytes());
    out.push(0);
}

fn put_row(out: &mut Vec<u8>, row: &Row) {
    out.extend(u16::try_from(row.len()).unwrap_or(u16::MAX).to_be_bytes());
    for value in row {
        match value {
            Value::Null => out.push(b'n'),
            Value::Unchanged => out.push(b'u'),
            Value::Text(text) => {
                out.push(b't');
                out.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
                out.extend(text.as_bytes());
            }
        }
    }
}

pub(crate) fn begin(commit: Lsn, time_us: i64, xid: u32) -> Vec<u8> {
    let mut out = vec![b'B'];
    out.extend(commit.0.to_be_bytes());
    out.extend((time_us - PG_EPOCH_US).to_be_bytes());
    out.extend(xid.to_be_bytes());
    out
}

pub(crate) fn commit(commit: Lsn, end: Lsn, time_us: i64) -> Vec<u8> {
    let mut out = vec![b'C', 0];
    out.extend(commit.0.to_be_bytes());
    out.extend(end.0.to_be_bytes());
    out.extend((time_us - PG_EPOCH_US).to_be_bytes());
    out
}

pub(crate) fn relation(table: &Table) -> Vec<u8> {
    let mut out = vec![b'R'];
    out.extend(table.oid.to_be_bytes());
    put_text(&mut out, &table.schema);
    put_text(&mut out, &table.name);
    out.push(match table.identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Nothing => b'n',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
    });
    out.extend(u16::try_from(table.columns.len()).unwrap_or(u16::MAX).to_be_bytes());
    for column in &table.columns {
        out.push(u8::from(table.logs_old(&column.name)));
        put_text(&mut out, &column.name);
        out.extend(column.type_oid.to_be_bytes());
        out.extend((-1i32).to_be_bytes());
    }
    out
}

pub(crate) fn insert(relation: u32, new: &Row) -> Vec<u8> {
    let mut out = vec![b'I'];
    out.extend(relation.to_be_bytes());
    out.push(b'N');
    put_row(&mut out, new);
    out
}

/// With the whole old row, as REPLICA IDENTITY FULL logs it.
pub(crate) fn update(relation: u32, old: &Row, new: &Row) -> Vec<u8> {
    let mut out = vec![b'U'];
    out.extend(relation.to_be_bytes());
    out.push(b'O');
    put_row(&mut out, old);
    out.push(b'N');
    put_row(&mut out, new);
    out
}

/// Without an old row, as a table's own replica identity has it while the key stays.
pub(crate) fn update_in_place(relation: u32, new: &Row) -> Vec<u8> {
    let mut out = vec![b'U'];
    out.extend(relation.to_be_bytes());
    out.push(b'N');
    put_row(&mut out, new);
    out
}

/// With the whole old row, as REPLICA IDENTITY FULL logs it.
pub(crate) fn delete(relation: u32, old: &Row) -> Vec<u8> {
    let mut out = vec![b'D'];
    out.extend(relation.to_be_bytes());
    out.push(b'O');
    put_row(&mut out, old);
    out
}

pub(crate) fn truncate(relation: u32) -> Vec<u8> {
    let mut out = vec![b'T'];
    out.extend(1u32.to_be_bytes());
    out.push(0);
    out.extend(relation.to_be_bytes());
    out
}

pub(crate) fn message(transactional: bool, lsn: Lsn, prefix: &str, content: &[u8]) -> Vec<u8> {
    let mut out = vec![b'M', u8::from(transactional)];
    out.extend(lsn.0.to_be_bytes());
    put_text(&mut out, prefix);
    out.extend(u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(content);
    out
}

/// A block of an open transaction begins.
pub(crate) fn stream_start(xid: u32, is_first: bool) -> Vec<u8> {
    let mut out = vec![b'S'];
    out.extend(xid.to_be_bytes());
    out.push(u8::from(is_first));
    out
}

pub(crate) fn stream_stop() -> Vec<u8> {
    vec![b'E']
}

/// An open transaction commits.
pub(crate) fn stream_commit(xid: u32, commit: Lsn, end: Lsn, time_us: i64) -> Vec<u8> {
    let mut out = vec![b'c'];
    out.extend(xid.to_be_bytes());
    out.push(0);
    out.extend(commit.0.to_be_bytes());
    out.extend(end.0.to_be_bytes());
    out.extend((time_us - PG_EPOCH_US).to_be_bytes());
    out
}

/// The message as it stands inside a block: with the xid behind its tag.
pub(crate) fn in_block(message: &[u8], xid: u32) -> Vec<u8> {
    let (tag, body) = message.split_at(message.len().min(1));
    [tag, &xid.to_be_bytes(), body].concat()
}
