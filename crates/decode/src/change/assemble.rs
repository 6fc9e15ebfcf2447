//! The assembler of steps: relation cache, positions, and what to skip after a reconnection.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::open::{Cut, Open};
use super::{Change, ChangeError, LogicalMessage, MessageContent, Rows, Step, Transaction};
use crate::pgoutput::{Message, OldTuple, Relation, Tuple};
use walhook_core::lsn::Lsn;

/// What one message makes: nothing, a step, or two (a table's new description and its change); more
/// for a TRUNCATE of several tables only.
pub type Steps<'a> = SmallVec<[Step<'a>; 2]>;

/// Makes steps of messages, over all connections of a process.
///
/// Invariant: the sequence of steps does not depend on where connections broke. Memory: the
/// descriptions of the tables, and a constant.
#[derive(Debug)]
pub struct Changes {
    tables: HashMap<u32, Table>,
    /// Transactions with a commit LSN below this are done, or ours to play.
    resume: Lsn,
    /// The commit LSN of the last transaction on this connection, skipped or not.
    previous_commit: Option<Lsn>,
    open: Option<Open>,
    /// The transaction that was read half when the connection broke.
    cut: Option<Cut>,
    /// The transaction that is played beside the stream.
    played: Option<Played>,
}

/// A transaction that was received while it was open, and is ours since its commit was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ours {
    transaction: Transaction,
    end_lsn: Lsn,
    /// Whether it had begun on an earlier connection, and what was handed out of it then.
    cut: Option<Cut>,
}

/// The transaction that is played.
#[derive(Debug)]
struct Played {
    open: Open,
    end_lsn: Lsn,
    /// The tables as they were described in it.
    tables: HashMap<u32, Arc<Relation>>,
}

/// Which of two transactions a message belongs to: the one of the stream, or the one that is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Live,
    Played,
}

/// A table's descriptions.
#[derive(Debug, Default)]
struct Table {
    /// The latest on this connection.
    current: Option<Arc<Relation>>,
    /// The latest that was handed out, on any connection.
    announced: Option<Arc<Relation>>,
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
            played: None,
        }
    }

    /// Where to start the next connection: the end LSN of the last transaction that was handed out
    /// completely or is [`Ours`] to play, or what [`Changes::new`] was told while there is none.
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

    /// Takes the next message of the stream, outside of blocks. `wal_start` is the start position in
    /// its XLogData header.
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
            message @ (Message::Relation(_)
            | Message::Insert { .. }
            | Message::Update { .. }
            | Message::Delete { .. }
            | Message::Oversize { .. }
            | Message::Truncate { .. }
            | Message::Logical { .. }
            | Message::OversizeLogical { .. }
            | Message::Type { .. }
            | Message::Ignored) => self.inner(Scope::Live, wal_start, message),
        }
    }

    /// A transaction that was received while it was open has committed, between two others: it is ours
    /// from now on, and is not sent again. `None` where it is done already.
    ///
    /// # Errors
    /// [`ChangeError`], as of [`Changes::handle`].
    pub fn handle_streamed(
        &mut self,
        transaction: Transaction,
        end_lsn: Lsn,
    ) -> Result<Option<Ours>, ChangeError> {
        let commit_lsn = transaction.commit_lsn;
        if end_lsn <= commit_lsn {
            return Err(ChangeError::CommitMismatch {
                begun: commit_lsn,
                committed: commit_lsn,
                end: end_lsn,
            });
        }
        let (settled, cut) = self.next_transaction(commit_lsn)?;
        if settled {
            return Ok(None);
        }
        self.resume = end_lsn;
        Ok(Some(Ours { transaction, end_lsn, cut }))
    }

    /// Begins to play a transaction. The stream may go on beside it; its tables are described anew.
    ///
    /// # Panics
    /// Where another is being played.
    pub fn begin_play(&mut self, ours: Ours) -> Option<Step<'static>> {
        assert!(self.played.is_none(), "one transaction is played at a time");
        let Ours { transaction, end_lsn, cut } = ours;
        let handed_out = cut.and_then(|cut| cut.handed_out);
        let open = Open { transaction, settled: false, last: None, handed_out };
        self.played = Some(Played { open, end_lsn, tables: HashMap::new() });
        cut.is_none().then_some(Step::Begin(transaction))
    }

    /// The transaction that is played.
    #[must_use]
    pub fn played(&self) -> Option<Transaction> {
        self.played.as_ref().map(|played| played.open.transaction)
    }

    /// Takes the next message of the transaction that is played, with the start position that its
    /// XLogData header had.
    ///
    /// # Errors
    /// [`ChangeError`]: the transaction cannot be understood, and nothing was handed out of this
    /// message. It can only be left out, with [`Changes::end_play`].
    pub fn play<'a>(
        &mut self,
        wal_start: Lsn,
        message: Message<'a>,
    ) -> Result<Steps<'a>, ChangeError> {
        self.inner(Scope::Played, wal_start, message)
    }

    /// The transaction that is played is complete, or its rest is left out. `None` where none is played.
    pub fn end_play(&mut self) -> Option<Step<'static>> {
        self.played.take().map(|played| Step::Commit { end_lsn: played.end_lsn })
    }

    /// Takes what stands inside a transaction.
    fn inner<'a>(
        &mut self,
        scope: Scope,
        wal_start: Lsn,
        message: Message<'a>,
    ) -> Result<Steps<'a>, ChangeError> {
        match message {
            Message::Begin { .. } => {
                Err(ChangeError::OutsideTransaction { what: "a BEGIN", wal_start })
            }
            Message::Commit { .. } => {
                Err(ChangeError::OutsideTransaction { what: "a COMMIT", wal_start })
            }
            Message::Relation(relation) => {
                self.describe(scope, relation);
                Ok(Steps::new())
            }
            Message::Insert { relation, new } => {
                self.row(scope, wal_start, relation, Rows::Insert { new })
            }
            Message::Update { relation, old, new } => {
                self.row(scope, wal_start, relation, Rows::Update { old, new })
            }
            Message::Delete { relation, old } => {
                self.row(scope, wal_start, relation, Rows::Delete { old })
            }
            Message::Oversize { relation, operation, bytes } => {
                self.row(scope, wal_start, relation, Rows::Oversize { operation, bytes })
            }
            Message::Truncate { relations } => self.truncate(scope, wal_start, relations),
            Message::Logical { transactional: true, lsn, prefix, content } => {
                self.logical(scope, lsn, prefix, MessageContent::Read(content))
            }
            Message::OversizeLogical { lsn, prefix, bytes } => {
                self.logical(scope, lsn, prefix, MessageContent::TooLarge { bytes })
            }
            // Those outside of transactions arrive from rollbacks too.
            Message::Logical { transactional: false, .. }
            | Message::Type { .. }
            | Message::Ignored => Ok(Steps::new()),
        }
    }

    fn begin<'a>(&mut self, transaction: Transaction) -> Result<Steps<'a>, ChangeError> {
        let (settled, cut) = self.next_transaction(transaction.commit_lsn)?;
        let mut steps = Steps::new();
        if !settled && cut.is_none() {
            steps.push(Step::Begin(transaction));
        }
        let handed_out = cut.and_then(|cut| cut.handed_out);
        self.open = Some(Open { transaction, settled, last: None, handed_out });
        Ok(steps)
    }

    /// The next transaction of the stream: whether it is done already, and what was read of it on an
    /// earlier connection.
    fn next_transaction(&mut self, commit_lsn: Lsn) -> Result<(bool, Option<Cut>), ChangeError> {
        if let Some(open) = &self.open {
            let outer = open.transaction.commit_lsn;
            return Err(ChangeError::Nested { outer, inner: commit_lsn });
        }
        if let Some(previous) = self.previous_commit.filter(|previous| commit_lsn <= *previous) {
            return Err(ChangeError::OutOfOrder { wal_start: commit_lsn, previous });
        }
        let settled = commit_lsn < self.resume;
        let mut begun = None;
        if !settled {
            if let Some(Cut { commit_lsn: cut, .. }) =
                self.cut.filter(|cut| cut.commit_lsn != commit_lsn)
            {
                return Err(ChangeError::CutTransactionMissing { cut, found: commit_lsn });
            }
            begun = self.cut.take();
        }
        self.previous_commit = Some(commit_lsn);
        Ok((settled, begun))
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

    fn describe(&mut self, scope: Scope, relation: Relation) {
        let oid = relation.oid;
        let played = self.played.as_mut().map(|played| &mut played.tables);
        let table = self.tables.entry(oid).or_default();
        let in_played = played.as_ref().and_then(|tables| tables.get(&oid));
        let same = [table.announced.as_ref(), table.current.as_ref(), in_played]
            .into_iter()
            .flatten()
            .find(|known| ***known == relation)
            .map(Arc::clone);
        let current = same.unwrap_or_else(|| Arc::new(relation));
        match (scope, played) {
            (Scope::Live, _) => table.current = Some(current),
            (Scope::Played, Some(tables)) => {
                tables.insert(oid, current);
            }
            (Scope::Played, None) => {}
        }
    }

    fn row<'a>(
        &mut self,
        scope: Scope,
        wal_start: Lsn,
        relation: u32,
        rows: Rows<'a>,
    ) -> Result<Steps<'a>, ChangeError> {
        let mut steps = Steps::new();
        self.change(scope, wal_start, relation, rows, &mut steps)?;
        Ok(steps)
    }

    fn truncate<'a>(
        &mut self,
        scope: Scope,
        wal_start: Lsn,
        mut relations: Vec<u32>,
    ) -> Result<Steps<'a>, ChangeError> {
        // The order of positions at one LSN is by OID.
        relations.sort_unstable();
        for relation in &relations {
            self.current(scope, *relation)?;
        }
        let mut steps = Steps::new();
        for relation in relations {
            // Only the first can fail: the others share its LSN and follow it in the order.
            self.change(scope, wal_start, relation, Rows::Truncate, &mut steps)?;
        }
        Ok(steps)
    }

    fn logical<'a>(
        &mut self,
        scope: Scope,
        lsn: Lsn,
        prefix: &'a str,
        content: MessageContent<'a>,
    ) -> Result<Steps<'a>, ChangeError> {
        let Some(open) = self.open_in(scope) else {
            return Err(ChangeError::OutsideTransaction { what: "a message", wal_start: lsn });
        };
        let position = open.next_message_position(lsn)?;
        let transaction = open.transaction;
        Ok(match open.hand_out(position) {
            false => Steps::new(),
            true => {
                smallvec![Step::Message(LogicalMessage { transaction, position, prefix, content })]
            }
        })
    }

    /// Gives the change its position, and hands it out unless it was before.
    fn change<'a>(
        &mut self,
        scope: Scope,
        wal_start: Lsn,
        relation: u32,
        rows: Rows<'a>,
        steps: &mut Steps<'a>,
    ) -> Result<(), ChangeError> {
        let unknown = || ChangeError::UnknownRelation { relation };
        let Table { current, announced } = self.tables.get_mut(&relation).ok_or_else(unknown)?;
        let (open, current) = match (scope, &mut self.played) {
            (Scope::Live, _) => (self.open.as_mut(), current.as_ref()),
            (Scope::Played, Some(played)) => (Some(&mut played.open), played.tables.get(&relation)),
            (Scope::Played, None) => (None, None),
        };
        let current = current.ok_or_else(unknown)?;
        check_columns(current, &rows)?;
        let Some(open) = open else {
            return Err(ChangeError::OutsideTransaction { what: "a row", wal_start });
        };
        let position = open.next_position(wal_start, relation)?;
        let transaction = open.transaction;
        if !open.hand_out(position) {
            return Ok(());
        }
        let current = Arc::clone(current);
        if announced.as_ref().is_none_or(|announced| !Arc::ptr_eq(announced, &current)) {
            *announced = Some(Arc::clone(&current));
            steps.push(Step::Relation(Arc::clone(&current)));
        }
        steps.push(Step::Change(Change { transaction, position, relation: current, rows }));
        Ok(())
    }

    /// The transaction that stands open there.
    fn open_in(&mut self, scope: Scope) -> Option<&mut Open> {
        match scope {
            Scope::Live => self.open.as_mut(),
            Scope::Played => self.played.as_mut().map(|played| &mut played.open),
        }
    }

    /// The table's description that counts there.
    fn current(&self, scope: Scope, relation: u32) -> Result<&Arc<Relation>, ChangeError> {
        let current = match scope {
            Scope::Live => self.tables.get(&relation).and_then(|table| table.current.as_ref()),
            Scope::Played => self.played.as_ref().and_then(|played| played.tables.get(&relation)),
        };
        current.ok_or(ChangeError::UnknownRelation { relation })
    }
}

/// A row has a value for each column.
fn check_columns(table: &Relation, rows: &Rows<'_>) -> Result<(), ChangeError> {
    for tuple in tuples(rows).into_iter().flatten() {
        if tuple.0.len() != table.columns.len() {
            return Err(ChangeError::ColumnCount {
                schema: table.schema.clone(),
                table: table.name.clone(),
                values: tuple.0.len(),
                columns: table.columns.len(),
            });
        }
    }
    Ok(())
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
