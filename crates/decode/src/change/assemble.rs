//! The assembler of steps: relation cache, positions, and what to skip after a reconnection.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::{Change, LogicalMessage, MessageContent, Rows, Step, Transaction};
use crate::pgoutput::{Message, OldTuple, Relation, Tuple};
use walhook_core::lsn::Lsn;
use walhook_core::position::{MESSAGE, WalPosition};

/// What one message makes: nothing, a step, or two (a table's new description and its change); more
/// for a TRUNCATE of several tables only.
pub type Steps<'a> = SmallVec<[Step<'a>; 2]>;

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

/// Makes steps of messages, over all connections of a process.
///
/// Invariant: the sequence of steps does not depend on where connections broke. Memory: the
/// descriptions of the tables, and a constant.
#[derive(Debug)]
pub struct Changes {
    tables: HashMap<u32, Table>,
    /// Transactions with a commit LSN below this are done.
    resume: Lsn,
    /// The commit LSN of the last transaction on this connection, skipped or not.
    previous_commit: Option<Lsn>,
    open: Option<Open>,
    /// The transaction that was read half when the connection broke.
    cut: Option<Cut>,
}

/// A table's descriptions.
#[derive(Debug, Default)]
struct Table {
    /// The latest on this connection.
    current: Option<Arc<Relation>>,
    /// The latest that was handed out, on any connection.
    announced: Option<Arc<Relation>>,
}

/// The transaction between BEGIN and COMMIT on this connection.
#[derive(Debug)]
struct Open {
    transaction: Transaction,
    /// Whether all of it is settled, so that nothing of it is handed out.
    settled: bool,
    /// The position of its last change on this connection, handed out or not.
    last: Option<WalPosition>,
    /// The last position of it that was handed out, on any connection.
    handed_out: Option<WalPosition>,
}

#[derive(Debug, Clone, Copy)]
struct Cut {
    commit_lsn: Lsn,
    handed_out: Option<WalPosition>,
}

impl Changes {
    /// An assembler for a stream in which every transaction with a commit LSN below `settled` (the
    /// frontier: the end LSN of a transaction, or a keepalive's position) is done already.
    #[must_use]
    pub fn new(settled: Lsn) -> Self {
        Self {
            tables: HashMap::new(),
            resume: settled,
            previous_commit: None,
            open: None,
            cut: None,
        }
    }

    /// Where to start the next connection: the end LSN of the last transaction that was handed out
    /// completely, or what [`Changes::new`] was told while there is none.
    ///
    /// Never one more: a commit record can begin exactly at the end of the one before.
    #[must_use]
    pub const fn resume_lsn(&self) -> Lsn {
        self.resume
    }

    /// Whether the stream stands inside a transaction that was handed out in part. A keepalive's
    /// position may move the frontier only while it does not.
    #[must_use]
    pub const fn in_transaction(&self) -> bool {
        self.open.is_some() || self.cut.is_some()
    }

    /// A new connection was started at [`Changes::resume_lsn`] or before it: what comes next is
    /// BEGIN.
    ///
    /// The descriptions of tables count for one connection: the server sends them anew.
    pub fn handle_reconnected(&mut self) {
        if let Some(open) = self.open.take().filter(|open| !open.settled) {
            let commit_lsn = open.transaction.commit_lsn;
            self.cut = Some(Cut { commit_lsn, handed_out: open.handed_out });
        }
        self.previous_commit = None;
        for table in self.tables.values_mut() {
            table.current = None;
        }
    }

    /// The transaction that the stream stands in on this connection.
    #[must_use]
    pub fn transaction(&self) -> Option<Transaction> {
        self.open.as_ref().map(|open| open.transaction)
    }

    /// Nothing more can be read of the transaction that the stream stands in: it ends with what was
    /// handed out of it. What comes next is a new connection. `None` where it stands in none.
    pub fn handle_left_out(&mut self) -> Option<Step<'static>> {
        let open = self.open.take()?;
        // Its end is not known. One past the beginning of its commit record leaves it behind, and no
        // other: the next record begins where this one ends.
        let end_lsn = Lsn(open.transaction.commit_lsn.0 + 1);
        self.resume = self.resume.max(end_lsn);
        (!open.settled).then_some(Step::Commit { end_lsn })
    }

    /// Takes the next message. `wal_start` is the start position in its XLogData header.
    ///
    /// # Errors
    /// [`ChangeError`]: the stream cannot be understood, and nothing was handed out of this
    /// message. Reconnect (with [`Changes::handle_reconnected`]) or stop; never go on with the next
    /// message.
    pub fn handle<'a>(
        &mut self,
        wal_start: Lsn,
        message: Message<'a>,
    ) -> Result<Steps<'a>, ChangeError> {
        match message {
            Message::Begin { commit_lsn, commit_time_us, xid } => {
                self.begin(Transaction { commit_lsn, commit_time_us, xid })
            }
            Message::Commit { commit_lsn, end_lsn } => self.commit(wal_start, commit_lsn, end_lsn),
            Message::Relation(relation) => {
                self.describe(relation);
                Ok(Steps::new())
            }
            Message::Insert { relation, new } => {
                self.row(wal_start, relation, Rows::Insert { new })
            }
            Message::Update { relation, old, new } => {
                self.row(wal_start, relation, Rows::Update { old, new })
            }
            Message::Delete { relation, old } => {
                self.row(wal_start, relation, Rows::Delete { old })
            }
            Message::Oversize { relation, operation, bytes } => {
                self.row(wal_start, relation, Rows::Oversize { operation, bytes })
            }
            Message::Truncate { relations } => self.truncate(wal_start, relations),
            Message::Logical { transactional: true, lsn, prefix, content } => {
                self.logical(lsn, prefix, MessageContent::Read(content))
            }
            Message::OversizeLogical { lsn, prefix, bytes } => {
                self.logical(lsn, prefix, MessageContent::TooLarge { bytes })
            }
            // Those outside of transactions arrive from rollbacks too.
            Message::Logical { transactional: false, .. }
            | Message::Type { .. }
            | Message::Ignored => Ok(Steps::new()),
        }
    }

    fn begin<'a>(&mut self, transaction: Transaction) -> Result<Steps<'a>, ChangeError> {
        let commit_lsn = transaction.commit_lsn;
        if let Some(open) = &self.open {
            let outer = open.transaction.commit_lsn;
            return Err(ChangeError::Nested { outer, inner: commit_lsn });
        }
        if let Some(previous) = self.previous_commit.filter(|previous| commit_lsn <= *previous) {
            return Err(ChangeError::OutOfOrder { wal_start: commit_lsn, previous });
        }
        let settled = commit_lsn < self.resume;
        let mut steps = Steps::new();
        let mut handed_out = None;
        match self.cut {
            _ if settled => {}
            Some(cut) if cut.commit_lsn == commit_lsn => {
                handed_out = cut.handed_out;
                self.cut = None;
            }
            Some(Cut { commit_lsn: cut, .. }) => {
                return Err(ChangeError::CutTransactionMissing { cut, found: commit_lsn });
            }
            None => steps.push(Step::Begin(transaction)),
        }
        self.previous_commit = Some(commit_lsn);
        self.open = Some(Open { transaction, settled, last: None, handed_out });
        Ok(steps)
    }

    fn commit<'a>(
        &mut self,
        wal_start: Lsn,
        committed: Lsn,
        end: Lsn,
    ) -> Result<Steps<'a>, ChangeError> {
        let Some(open) = &self.open else {
            return Err(ChangeError::OutsideTransaction { what: "a COMMIT", wal_start });
        };
        let begun = open.transaction.commit_lsn;
        if begun != committed || end <= committed {
            return Err(ChangeError::CommitMismatch { begun, committed, end });
        }
        let settled = open.settled;
        self.open = None;
        if settled {
            return Ok(Steps::new());
        }
        self.resume = end;
        Ok(smallvec![Step::Commit { end_lsn: end }])
    }

    fn describe(&mut self, relation: Relation) {
        let table = self.tables.entry(relation.oid).or_default();
        let same = [&table.announced, &table.current]
            .into_iter()
            .flatten()
            .find(|known| ***known == relation)
            .map(Arc::clone);
        table.current = Some(same.unwrap_or_else(|| Arc::new(relation)));
    }

    fn row<'a>(
        &mut self,
        wal_start: Lsn,
        relation: u32,
        rows: Rows<'a>,
    ) -> Result<Steps<'a>, ChangeError> {
        let table = current(&self.tables, relation)?;
        for tuple in tuples(&rows).into_iter().flatten() {
            if tuple.0.len() != table.columns.len() {
                return Err(ChangeError::ColumnCount {
                    schema: table.schema.clone(),
                    table: table.name.clone(),
                    values: tuple.0.len(),
                    columns: table.columns.len(),
                });
            }
        }
        let mut steps = Steps::new();
        self.change(wal_start, relation, rows, &mut steps)?;
        Ok(steps)
    }

    fn truncate<'a>(
        &mut self,
        wal_start: Lsn,
        mut relations: Vec<u32>,
    ) -> Result<Steps<'a>, ChangeError> {
        // The order of positions at one LSN is by OID.
        relations.sort_unstable();
        for relation in &relations {
            current(&self.tables, *relation)?;
        }
        let mut steps = Steps::new();
        for relation in relations {
            // Only the first can fail: the others share its LSN and follow it in the order.
            self.change(wal_start, relation, Rows::Truncate, &mut steps)?;
        }
        Ok(steps)
    }

    fn logical<'a>(
        &mut self,
        lsn: Lsn,
        prefix: &'a str,
        content: MessageContent<'a>,
    ) -> Result<Steps<'a>, ChangeError> {
        let Some(open) = &mut self.open else {
            return Err(ChangeError::OutsideTransaction { what: "a message", wal_start: lsn });
        };
        let position = next_message_position(open, lsn)?;
        let transaction = open.transaction;
        Ok(match hand_out(open, position) {
            false => Steps::new(),
            true => {
                smallvec![Step::Message(LogicalMessage { transaction, position, prefix, content })]
            }
        })
    }

    /// Gives the change its position, and hands it out unless it was before.
    fn change<'a>(
        &mut self,
        wal_start: Lsn,
        relation: u32,
        rows: Rows<'a>,
        steps: &mut Steps<'a>,
    ) -> Result<(), ChangeError> {
        let Some(open) = &mut self.open else {
            return Err(ChangeError::OutsideTransaction { what: "a row", wal_start });
        };
        let position = next_position(open, wal_start, relation)?;
        let transaction = open.transaction;
        if !hand_out(open, position) {
            return Ok(());
        }
        let table = self.tables.entry(relation).or_default();
        let current = table.current.clone().ok_or(ChangeError::UnknownRelation { relation })?;
        if table.announced.as_ref().is_none_or(|announced| !Arc::ptr_eq(announced, &current)) {
            table.announced = Some(Arc::clone(&current));
            steps.push(Step::Relation(Arc::clone(&current)));
        }
        steps.push(Step::Change(Change { transaction, position, relation: current, rows }));
        Ok(())
    }
}

/// Whether what stands at `position`, which comes next, is to be handed out.
fn hand_out(open: &mut Open, position: WalPosition) -> bool {
    open.last = Some(position);
    if open.settled || open.handed_out.is_some_and(|last| position <= last) {
        return false;
    }
    open.handed_out = Some(position);
    true
}

/// The position of a message after the last one of the open transaction.
fn next_message_position(open: &Open, lsn: Lsn) -> Result<WalPosition, ChangeError> {
    let is_late = open.last.is_some_and(|last| last.change_lsn == lsn && !last.is_message());
    if !is_late {
        return next_position(open, lsn, MESSAGE);
    }
    Ok(WalPosition::late_message(open.transaction.commit_lsn, lsn))
}

/// The position after the last one of the open transaction.
fn next_position(open: &Open, change_lsn: Lsn, relation: u32) -> Result<WalPosition, ChangeError> {
    if change_lsn == Lsn::ZERO {
        return Err(ChangeError::NoPosition { relation });
    }
    let commit_lsn = open.transaction.commit_lsn;
    let at = |n| WalPosition { commit_lsn, change_lsn, relation, n };
    let Some(last) = open.last else { return Ok(at(0)) };
    if last.change_lsn == change_lsn && last.relation == relation {
        let n = last.n.checked_add(1).ok_or(ChangeError::TooMany { relation, change_lsn })?;
        return Ok(at(n));
    }
    if at(0) < last {
        return Err(ChangeError::OutOfOrder { wal_start: change_lsn, previous: last.change_lsn });
    }
    Ok(at(0))
}

fn current(tables: &HashMap<u32, Table>, relation: u32) -> Result<&Arc<Relation>, ChangeError> {
    tables
        .get(&relation)
        .and_then(|table| table.current.as_ref())
        .ok_or(ChangeError::UnknownRelation { relation })
}

/// The tuples of a change, old and new.
fn tuples<'r, 'a>(rows: &'r Rows<'a>) -> [Option<&'r Tuple<'a>>; 2] {
    let old_tuple = |old: &'r OldTuple<'a>| match old {
        OldTuple::Key(tuple) | OldTuple::Full(tuple) => tuple,
    };
    match rows {
        Rows::Insert { new } => [None, Some(new)],
        Rows::Update { old, new } => [old.as_ref().map(old_tuple), Some(new)],
        Rows::Delete { old } => [Some(old_tuple(old)), None],
        Rows::Truncate | Rows::Oversize { .. } => [None, None],
    }
}
