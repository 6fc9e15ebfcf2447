//! pgoutput: bytes → messages, by the [`Protocol`] of their stream.
//!
//! Source: PostgreSQL manual, "Logical Replication Message Formats".

mod block;
mod decode;
mod head;
mod protocol;
#[cfg(test)]
mod tests;

pub use block::{Block, decode_block, split_in_block};
pub use decode::{DecodeError, decode};
pub(crate) use decode::{
    ORIGIN as TAG_ORIGIN, RELATION as TAG_RELATION, TYPE as TAG_TYPE, logical_head,
};
pub use head::decode_head;
pub use protocol::Protocol;

use std::ops::RangeInclusive;

use walhook_core::catalog::ReplicaIdentity;
use walhook_core::event::Operation;
use walhook_core::lsn::Lsn;

/// PostgreSQL's time origin, 2000-01-01 UTC, in microseconds since 1970-01-01 UTC.
pub const PG_EPOCH_US: i64 = 946_684_800_000_000;

/// The commit times that there are, in µs since 1970: those that RFC 3339 can say in any zone, 0001-01-01 to
/// 9999-12-30T22:00Z.
pub const TIMES_US: RangeInclusive<i64> = -62_135_596_800_000_000..=253_402_207_200_000_000;

/// One pgoutput message, borrowing from the bytes that it was decoded from.
#[derive(Debug, Clone, PartialEq)]
pub enum Message<'a> {
    /// `B`: a committed transaction begins.
    Begin {
        /// The LSN of its commit record.
        commit_lsn: Lsn,
        /// Microseconds since 1970-01-01 UTC.
        commit_time_us: i64,
        /// Its 32-bit transaction id.
        xid: u32,
    },
    /// `C`: the transaction is complete.
    Commit {
        /// The LSN of its commit record, as in `Begin`.
        commit_lsn: Lsn,
        /// The end of that record.
        end_lsn: Lsn,
    },
    /// `R`: what a table looks like, before its first change and after each alteration.
    Relation(Relation),
    /// `I`
    Insert {
        /// The table's OID.
        relation: u32,
        /// The new row.
        new: Tuple<'a>,
    },
    /// `U`
    Update {
        /// The table's OID.
        relation: u32,
        /// What the replica identity logs of the old row, where it logs anything.
        old: Option<OldTuple<'a>>,
        /// The new row.
        new: Tuple<'a>,
    },
    /// `D`
    Delete {
        /// The table's OID.
        relation: u32,
        /// What the replica identity logs of the old row.
        old: OldTuple<'a>,
    },
    /// `I`, `U` or `D` of which only the head was read: see [`decode_head`].
    Oversize {
        /// The table's OID.
        relation: u32,
        /// What happened to the row.
        operation: Operation,
        /// The message's length.
        bytes: u64,
    },
    /// `T`
    Truncate {
        /// The tables' OIDs.
        relations: Vec<u32>,
    },
    /// `M`: `pg_logical_emit_message`.
    Logical {
        /// Whether it belongs to the transaction around it. The others arrive even from rollbacks.
        transactional: bool,
        /// Its LSN.
        lsn: Lsn,
        /// What it is about.
        prefix: &'a str,
        /// What it says.
        content: &'a [u8],
    },
    /// `M` of a transaction, of which only the head was read: see [`decode_head`].
    OversizeLogical {
        /// Its LSN.
        lsn: Lsn,
        /// What it is about.
        prefix: &'a str,
        /// The message's length.
        bytes: u64,
    },
    /// `Y`: what a type that is not built in is called, before each RELATION with such a column.
    Type {
        /// The type's OID.
        oid: u32,
        /// The schema of what it stands on.
        schema: &'a str,
        /// Of a domain, the name of what it stands on in the end; else the type's own.
        name: &'a str,
    },
    /// `O` (an origin): of no use to us.
    Ignored,
}

/// What the replica identity logs of an old row.
#[derive(Debug, Clone, PartialEq)]
pub enum OldTuple<'a> {
    /// `K`: the columns of the replica identity; all others read as null and are not known.
    Key(Tuple<'a>),
    /// `O`: the whole row (REPLICA IDENTITY FULL).
    Full(Tuple<'a>),
}

/// A row: a value for each of its relation's columns, in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuple<'a>(pub Vec<Datum<'a>>);

/// A column's value in a tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datum<'a> {
    /// `n`
    Null,
    /// `u`: a TOASTed value that the change left alone, and that the WAL does not carry.
    Unchanged,
    /// `t`: the type's text output. UTF-8, since the session asks for that encoding.
    Text(&'a str),
}

/// What a RELATION message says about a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// The table's OID; of a partition root where the publication says so.
    pub oid: u32,
    /// The schema's name.
    pub schema: String,
    /// The table's name.
    pub name: String,
    /// Which columns of an old row are logged.
    pub identity: ReplicaIdentity,
    /// The published columns, in the order of the tuples.
    pub columns: Vec<Column>,
}

/// A column in a RELATION message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Whether it is part of the replica identity.
    pub key: bool,
    /// Its name.
    pub name: String,
    /// Its type's OID.
    pub type_oid: u32,
    /// Its type's modifier, -1 for none.
    pub type_modifier: i32,
}
