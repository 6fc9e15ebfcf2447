//! Transactions that are received while they are open, kept, and played at their commits.
//!
//! ```text
//! frames ─► OpenTransactions ─┬─ Live: decoded as it comes ───────────────────────────────► Changes
//!                             └─ kept, in memory and in a file ─ Committed ─► play, later ─► Changes
//! ```
//!
//! The bytes of such a transaction are kept as they came, less the xid in each message; what is kept is
//! decoded at its commit, by the same decoder and assembler as a transaction that comes whole. So the events,
//! their ids and their order are the same, and nothing is looked up, bound or halted on before the commit.
//!
//! # Why that is right
//!
//! - The server sends a transaction's changes in the order of their LSNs, over all its blocks (a block holds
//!   what was decoded since the one before), and commits in the order of commit records.
//! - When a sub-transaction is rolled back, the server says so (`A`) before it sends anything that was written
//!   later: the record of the abort lies before it in the WAL. While a sub-transaction is active all that its
//!   transaction writes is its own or of one that it contains. So what is rolled back is exactly what was kept
//!   from its first message on: a log is cut back, and holds nothing that is not to be sent. Those that it
//!   contains, and that had ended, have messages of their own, in any order: what began later, and so has a
//!   later xid, is rolled back with it.
//! - Whether a logical message belongs to a sub-transaction that is rolled back cannot always be told: it comes
//!   with the xid of the whole. It can where something before and behind it shows; where not, the transaction
//!   is [`Taken::Unclear`], and has to be read as a whole. So it is where a message and a row stand at one
//!   LSN: which of them comes first, and so the message's position, depends on where a block ends.
//! - Descriptions of tables are sent anew for each transaction, and again after any abort of a part of it. At
//!   its commit the server takes those that it sent since then as known (`cleanup_rel_sync_cache`), unless
//!   they were outdated meanwhile; then it sends them again before the next row. So the latest description of
//!   a table that arrived counts, in whichever transaction it came: [`Committed::described`].

mod described;
mod log;
mod open;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;

pub use described::Described;
pub use open::{OpenTransaction, OpenTransactions, Settings};

use crate::change::Transaction;
use crate::pgoutput::{DecodeError, Relation};
use walhook_core::lsn::Lsn;

/// What a frame of the stream holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload<'a> {
    /// A message.
    Whole(&'a [u8]),
    /// A message that was too long to be read.
    Oversize {
        /// Its beginning.
        head: &'a [u8],
        /// Its length.
        bytes: u64,
    },
}

/// What became of a message.
#[derive(Debug)]
pub enum Taken<'a> {
    /// It stands outside of blocks: decode it, and go on with it.
    Live,
    /// Nothing is left to be done with it.
    Passed,
    /// It was kept: a row, a TRUNCATE or a logical message.
    Kept(Kept<'a>),
    /// A transaction has committed, and waits to be played behind those that committed before.
    Committed(Committed),
    /// A transaction has committed whose messages cannot be told from rolled-back ones, or have no certain
    /// place. Nothing of it is kept: open the stream again, without streaming, until it is read.
    Unclear {
        /// Which.
        transaction: Transaction,
        /// The end of its commit record.
        end_lsn: Lsn,
    },
}

/// A message of an open transaction.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a> {
    /// The transaction that it belongs to, whole.
    pub xid: u32,
    /// The message as it stands outside of blocks.
    pub payload: Payload<'a>,
    /// The tables as they are described in this transaction now.
    pub described: &'a Described,
}

/// A transaction that was received while it was open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Which.
    pub transaction: Transaction,
    /// The end of its commit record.
    pub end_lsn: Lsn,
    /// What the server takes as known from now on, outside of blocks too: TYPE and RELATION messages. Handle
    /// each as if it came now, before the next frame.
    pub described: Vec<Bytes>,
    /// How many messages are to be played, descriptions aside.
    pub rows: u64,
    /// What they take, with their headers.
    pub bytes: u64,
}

/// A message that is played.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// As in the header of its XLogData.
    pub wal_start: Lsn,
    /// The message, as it stands outside of blocks, or its beginning.
    pub payload: Bytes,
    /// Its length, where it was too long to be read.
    pub oversize: Option<u64>,
}

/// What is played next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Play {
    /// A message.
    Record(Record),
    /// Nothing before the spool has answered: [`OpenTransactions::poll_order`],
    /// [`OpenTransactions::handle_done`].
    Wait,
    /// The transaction is complete, and forgotten.
    End,
}

/// Whether more may be read from the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// There is room.
    Free,
    /// There will be, as soon as the spool has written, or what has committed is played.
    Wait,
    /// There is none, and will be none: the stream must do without streaming.
    None,
}

/// Names a file of the spool; is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u64);

/// What the spool is to do. In this order; [`Done`] answers `Write` and `Read`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Write behind each other, from `offset` on. What the file has beyond it is of no more use.
    Write {
        /// Where to; made by its first write.
        file: FileId,
        /// From where on.
        offset: u64,
        /// What.
        chunks: Vec<Bytes>,
    },
    /// Read.
    Read {
        /// Where from.
        file: FileId,
        /// From where on.
        offset: u64,
        /// So many bytes.
        bytes: usize,
    },
    /// The file is of no more use.
    Remove {
        /// Which.
        file: FileId,
    },
}

/// What the spool has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// All of an [`Order::Write`].
    Written {
        /// Where to.
        file: FileId,
    },
    /// An [`Order::Read`].
    Read {
        /// Where from.
        file: FileId,
        /// From where on.
        offset: u64,
        /// All that was asked for.
        bytes: Bytes,
    },
}

/// What open transactions came to, since the process began.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Messages that were kept.
    pub rows: u64,
    /// What they took.
    pub bytes: u64,
    /// What of it was rolled back.
    pub aborted_bytes: u64,
}

/// The stream does not follow the protocol, or the spool does not give back what it was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamedError {
    /// Bytes that are no message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A message inside a block where it cannot stand, or outside of one.
    #[error("pgoutput message {:?} stands {} of a streamed transaction", char::from(*.tag), if *.inside { "inside a block" } else { "outside of the blocks" })]
    Misplaced {
        /// Its tag.
        tag: u8,
        /// Where it stands.
        inside: bool,
    },
    /// A transaction that has not begun on this connection goes on or commits.
    #[error("the streamed transaction {xid} goes on, and has not begun")]
    NotBegun {
        /// Which.
        xid: u32,
    },
    /// A transaction begins again.
    #[error("the streamed transaction {xid} begins twice")]
    BegunTwice {
        /// Which.
        xid: u32,
    },
    /// A file of the spool does not hold what was written.
    #[error("the spool's file does not hold what was written to it")]
    Damaged,
}

/// A table's description, with the message that it came in.
#[derive(Debug, Clone)]
struct Description {
    /// Grows with each description that arrives, in whichever transaction.
    arrival: u64,
    relation: Arc<Relation>,
    message: Bytes,
}
