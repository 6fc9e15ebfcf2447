//! What the WAL says about the values of a change's row, before and after.
//!
//! A column that the WAL does not carry is [`Cell::Unknown`], never null: whoever reads it has to
//! say that it could not tell.

use std::fmt;

use walhook_core::catalog::ReplicaIdentity;
use walhook_core::event::Operation;
use walhook_decode::change::Rows;
use walhook_decode::pgoutput::{Datum, OldTuple, Relation, Tuple};

/// A column's value before or after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    /// NULL.
    Null,
    /// The type's text output.
    Text(&'a str),
    /// The WAL does not carry it, or it was not read.
    Unknown(Missing),
}

/// Why a value is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// A TOASTed value that the change left alone.
    UnchangedToast,
    /// The replica identity does not log the column, or the row does not exist on that side.
    NotLogged,
    /// The table had no such column.
    NoColumn,
    /// The column was of a type that the rule, as it is now, cannot judge.
    OtherType,
    /// The WAL does, but the change was too large to be read.
    TooLarge,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnchangedToast => "its TOASTed value did not change and is not in the WAL",
            Self::TooLarge => "the change is too large to be read",
            Self::NoColumn => "the table had no such column when the row was written",
            Self::OtherType => {
                "the column was of another type when the row was written, which this rule does not fit"
            }
            Self::NotLogged => "the table's replica identity does not log its old value",
        })
    }
}

impl<'a> Cell<'a> {
    /// The text, where the value is known and not null.
    #[must_use]
    pub fn text(self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Null | Self::Unknown(_) => None,
        }
    }

    /// Whether the WAL carries the value.
    #[must_use]
    pub fn is_known(self) -> bool {
        !matches!(self, Self::Unknown(_))
    }

    fn or_else(self, other: impl FnOnce() -> Self) -> Self {
        if self.is_known() { self } else { other() }
    }
}

/// A change's row before and after. Columns are given by their index in the relation.
#[derive(Debug, Clone, Copy)]
pub struct RowView<'a> {
    relation: &'a Relation,
    rows: &'a Rows<'a>,
}

impl<'a> RowView<'a> {
    /// Looks at `rows`, which were written with the columns of `relation`.
    #[must_use]
    pub fn new(relation: &'a Relation, rows: &'a Rows<'a>) -> Self {
        Self { relation, rows }
    }

    /// What happened.
    #[must_use]
    pub fn operation(&self) -> Operation {
        match self.rows {
            Rows::Insert { .. } => Operation::Insert,
            Rows::Update { .. } => Operation::Update,
            Rows::Delete { .. } => Operation::Delete,
            Rows::Truncate => Operation::Truncate,
            Rows::Oversize { operation, .. } => *operation,
        }
    }

    /// The row that the event shows: the new one, of a delete the old one.
    #[must_use]
    pub fn current(&self, column: usize) -> Cell<'a> {
        if matches!(self.rows, Rows::Delete { .. }) {
            self.before(column)
        } else {
            self.after(column)
        }
    }

    /// The value after the change. An unchanged TOASTed value is taken from the old row where the
    /// replica identity logs it.
    #[must_use]
    pub fn after(&self, column: usize) -> Cell<'a> {
        match self.rows {
            Rows::Insert { new } => cell(new, column),
            Rows::Update { new, old } => cell(new, column)
                .or_else(|| old.as_ref().map_or(UNCHANGED, |old| Self::logged(old, column)))
                .or_else(|| UNCHANGED),
            Rows::Delete { .. } | Rows::Truncate => NOT_LOGGED,
            Rows::Oversize { .. } => TOO_LARGE,
        }
    }

    /// The value before the change. An update without an old tuple left the replica identity's
    /// columns alone, so that they are as in the new row.
    #[must_use]
    pub fn before(&self, column: usize) -> Cell<'a> {
        match self.rows {
            Rows::Update { old: Some(old), .. } | Rows::Delete { old } => Self::logged(old, column),
            Rows::Update { old: None, new } if self.is_index_identity(column) => cell(new, column),
            Rows::Update { old: None, .. } | Rows::Insert { .. } | Rows::Truncate => NOT_LOGGED,
            Rows::Oversize { .. } => TOO_LARGE,
        }
    }

    fn logged(old: &'a OldTuple<'a>, column: usize) -> Cell<'a> {
        match old {
            OldTuple::Full(tuple) => cell(tuple, column),
            OldTuple::Key(tuple) => match cell(tuple, column) {
                // A column of a key is never null: null says that the column is not in the key.
                // The relation's own marks do not tell, where it is a partition root: rows are
                // logged by the identity of their partition.
                Cell::Null => NOT_LOGGED,
                value @ (Cell::Text(_) | Cell::Unknown(_)) => value,
            },
        }
    }

    /// FULL marks every column as key and logs every old row, so that its absence says nothing.
    fn is_index_identity(&self, column: usize) -> bool {
        self.relation.identity != ReplicaIdentity::Full
            && self.relation.columns.get(column).is_some_and(|column| column.key)
    }
}

const UNCHANGED: Cell<'static> = Cell::Unknown(Missing::UnchangedToast);
const TOO_LARGE: Cell<'static> = Cell::Unknown(Missing::TooLarge);
const NOT_LOGGED: Cell<'static> = Cell::Unknown(Missing::NotLogged);

fn cell<'a>(tuple: &Tuple<'a>, column: usize) -> Cell<'a> {
    match tuple.0.get(column) {
        Some(Datum::Null) => Cell::Null,
        Some(Datum::Text(text)) => Cell::Text(text),
        Some(Datum::Unchanged) => UNCHANGED,
        None => Cell::Unknown(Missing::NoColumn),
    }
}
