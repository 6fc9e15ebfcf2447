//! Messages → row changes and logical messages of committed transactions, each with its position.
//!
//! One [`Changes`] lives through all connections of a process. What it hands out is the same
//! however often the connection breaks: every transaction once, every change in it once, in order.
//!
//! # Why that is right
//!
//! - The server sends transactions in the order of their commit records, each whole (protocol 1),
//!   and from BEGIN again after a reconnection. So a transaction that was handed out completely is
//!   known by `commit_lsn < resume_lsn` alone.
//! - Inside a transaction, positions grow strictly. The server merges the changes of a transaction
//!   and its subtransactions by LSN, and asserts that order itself (`ReorderBufferProcessTXN`:
//!   "enforce correct ordering of changes, merged from multiple subtransactions. The changes may
//!   have the same LSN due to MULTI_INSERT xlog records"). Those that share an LSN are the rows of
//!   one multi-insert, which has one relation and is counted by n, or the tables of one TRUNCATE,
//!   which we order by OID. Hence "not after the last position handed out" says exactly "handed out
//!   already".
//! - A logical message has the LSN at which its record ends, where the next record begins. Between
//!   changes that share an LSN the server does not choose: a message comes before the row that the
//!   next record wrote, or after it where the two stand in different subtransactions (`BEGIN;
//!   INSERT; SAVEPOINT s; message; RELEASE s; INSERT` sends both rows first). It never comes between
//!   rows that share one LSN, and comes in the same place each time. One that comes late gets a
//!   position of its own behind those rows: [`WalPosition::late_message`].
//! - The order is checked, not trusted: a stream that breaks it is an error, for skipping by it
//!   would lose changes silently.

mod assemble;
mod error;
mod open;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use assemble::{Changes, Ours, Steps};
pub use error::ChangeError;

use super::pgoutput::{OldTuple, Relation, Tuple};
use walhook_core::event::Operation;
use walhook_core::lsn::Lsn;
use walhook_core::position::WalPosition;

/// The transaction that a change belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transaction {
    /// The LSN of its commit record.
    pub commit_lsn: Lsn,
    /// Microseconds since 1970-01-01 UTC.
    pub commit_time_us: i64,
    /// Its 32-bit transaction id.
    pub xid: u32,
}

/// One row's change (or one table's truncation).
#[derive(Debug, Clone, PartialEq)]
pub struct Change<'a> {
    /// The transaction around it.
    pub transaction: Transaction,
    /// Where it stands.
    pub position: WalPosition,
    /// The table, as it stood when the row was written.
    pub relation: Arc<Relation>,
    /// What happened, with the rows.
    pub rows: Rows<'a>,
}

/// What happened to a row, with what the WAL says of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Rows<'a> {
    /// INSERT or COPY.
    Insert {
        /// The new row.
        new: Tuple<'a>,
    },
    /// UPDATE.
    Update {
        /// What is known of the old row.
        old: Option<OldTuple<'a>>,
        /// The new row.
        new: Tuple<'a>,
    },
    /// DELETE.
    Delete {
        /// What is known of the old row.
        old: OldTuple<'a>,
    },
    /// TRUNCATE of this table.
    Truncate,
    /// A change that was too large to be read.
    Oversize {
        /// What happened to the row.
        operation: Operation,
        /// What it takes in the stream.
        bytes: u64,
    },
}

/// A transactional logical message: `pg_logical_emit_message(true, prefix, content)`.
#[derive(Debug, Clone, PartialEq)]
pub struct LogicalMessage<'a> {
    /// The transaction around it.
    pub transaction: Transaction,
    /// Where it stands; its relation is 0.
    pub position: WalPosition,
    /// What it is about.
    pub prefix: &'a str,
    /// What it says.
    pub content: MessageContent<'a>,
}

/// The content of a logical message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageContent<'a> {
    /// Any bytes.
    Read(&'a [u8]),
    /// A message that was too large to be read.
    TooLarge {
        /// What it takes in the stream.
        bytes: u64,
    },
}

/// What one message makes of the stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Step<'a> {
    /// A transaction begins.
    Begin(Transaction),
    /// A row changed. A TRUNCATE makes one for each table, in the order of their OIDs.
    Change(Change<'a>),
    /// A logical message was written, by a transaction that has committed.
    Message(LogicalMessage<'a>),
    /// A table was described, for the first time or anew. Stands right before the first change that
    /// has this description, so that it comes in commit order and only for changes handed out.
    Relation(Arc<Relation>),
    /// The transaction is complete.
    Commit {
        /// The end of its commit record.
        end_lsn: Lsn,
    },
}
