//! What is wrong with a stream that cannot be understood.

use walhook_core::lsn::Lsn;

/// The stream does not follow the protocol, or not the order that this module relies on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// A row, or the end of a transaction, while none is open.
    #[error("{what} at {wal_start} stands outside of a transaction")]
    OutsideTransaction {
        /// What came.
        what: &'static str,
        /// Where, from the XLogData header.
        wal_start: Lsn,
    },
    /// A transaction begins inside another.
    #[error("the transaction with commit LSN {inner} begins inside the one with {outer}")]
    Nested {
        /// The open one's commit LSN.
        outer: Lsn,
        /// The new one's.
        inner: Lsn,
    },
    /// BEGIN and COMMIT disagree, or a transaction ends before its own commit record.
    #[error("the transaction with commit LSN {begun} ends with commit LSN {committed}, end {end}")]
    CommitMismatch {
        /// What BEGIN said.
        begun: Lsn,
        /// What COMMIT said.
        committed: Lsn,
        /// The end of the commit record, as COMMIT said.
        end: Lsn,
    },
    /// Transactions, or changes in one, do not come in the order of their LSNs.
    #[error("{wal_start} comes after {previous}: the stream is not in order")]
    OutOfOrder {
        /// What came: the commit LSN of a transaction, or the LSN of a change.
        wal_start: Lsn,
        /// What came before it.
        previous: Lsn,
    },
    /// After a reconnection, the transaction that had been read half did not come again.
    #[error(
        "the transaction with commit LSN {cut}, read half before the connection broke, did not come \
         again; the next is {found}"
    )]
    CutTransactionMissing {
        /// The commit LSN of the transaction that was read half.
        cut: Lsn,
        /// The commit LSN of the one that came instead.
        found: Lsn,
    },
    /// A row whose header says no position.
    #[error("a change of relation {relation} came without its LSN")]
    NoPosition {
        /// The relation's OID.
        relation: u32,
    },
    /// A row of a table that was not described on this connection.
    #[error("a change of relation {relation} came before its description")]
    UnknownRelation {
        /// The relation's OID.
        relation: u32,
    },
    /// A row with more or fewer values than its table has columns.
    #[error("a row of {schema}.{table} has {values} values for {columns} columns")]
    ColumnCount {
        /// The table's schema.
        schema: String,
        /// The table's name.
        table: String,
        /// How many values came.
        values: usize,
        /// How many columns were described.
        columns: usize,
    },
    /// More than 2^32 changes of one relation share an LSN.
    #[error("more changes of relation {relation} share the LSN {change_lsn} than can be counted")]
    TooMany {
        /// The relation's OID.
        relation: u32,
        /// The LSN that they share.
        change_lsn: Lsn,
    },
}
