//! Messages → row changes of committed transactions, each with its position.

use std::sync::Arc;

use super::lsn::Lsn;
use super::pgoutput::{OldTuple, Relation, Tuple};
use super::position::WalPosition;

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
}

/// What one message makes of the stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Step<'a> {
    /// A transaction begins.
    Begin(Transaction),
    /// A row changed. A TRUNCATE makes one for each table, in the order of their OIDs.
    Change(Change<'a>),
    /// A table was described, for the first time or anew.
    Relation(Arc<Relation>),
    /// The transaction is complete.
    Commit {
        /// The end of its commit record.
        end_lsn: Lsn,
    },
}
