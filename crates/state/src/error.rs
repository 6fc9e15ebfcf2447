//! What can go wrong with the state database.

use std::borrow::Cow;

use tokio_postgres::error::SqlState;

use walhook_core::id::Epoch;
use walhook_core::lsn::Lsn;
use walhook_postgres::error::SourceError;
use walhook_postgres::fix::{Failure, FixedBy, Line};
use walhook_postgres::sql::{ConnectError, error_text, is_data_error};

use super::{SCHEMA_VERSION, session};

/// Why the state database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A later leader has taken the lease, or we never did. Nothing was written, and nothing more may be
    /// sent.
    #[error("{}", fenced(*epoch))]
    Fenced {
        /// The epoch that we held; `None`: we held none, which is no right to write.
        epoch: Option<Epoch>,
    },
    /// The tables, or the pipeline's rows in them, are not there.
    #[error("the state schema \"{schema}\" holds no pipeline \"{pipeline}\"{}", not_set_up(others))]
    NotSetUp {
        /// The schema that was looked in.
        schema: String,
        /// The pipeline that was looked for.
        pipeline: String,
        /// Some of those that are in it.
        others: Vec<String>,
    },
    /// An earlier program has made the tables.
    #[error(
        "the state schema \"{schema}\" lacks the table {table}; run `walhook setup`, which adds it"
    )]
    SchemaTooOld {
        /// The schema that was looked in.
        schema: String,
        /// What is not in it.
        table: &'static str,
    },
    /// A later program has changed the tables.
    #[error(
        "the state tables have version {found}, this program knows {SCHEMA_VERSION}; run a later walhook"
    )]
    SchemaTooNew {
        /// The version that the tables have.
        found: i32,
    },
    /// The batch would move the checkpoint back. Nothing was written.
    #[error("the frontier {asked} is behind the stored checkpoint {stored}; this is a defect")]
    FrontierDecreases {
        /// The checkpoint that stands.
        stored: Lsn,
        /// The frontier that was to replace it.
        asked: Lsn,
    },
    /// The checkpoint is not where it was when we looked. Nothing was written.
    #[error(
        "the checkpoint moved from {from} to {to} meanwhile: an instance is running; stop it first"
    )]
    CheckpointMoved {
        /// Where it was.
        from: Lsn,
        /// Where it is.
        to: Lsn,
    },
    /// A stored value is none that this program writes.
    #[error("{what} in the state tables cannot be read: {detail}")]
    Unreadable {
        /// Which value.
        what: String,
        /// Why not.
        detail: String,
    },
    /// No session could be opened.
    #[error("no connection to the state database")]
    Connection(#[source] ConnectError),
    /// The tables are not as this instance has stored them last: nothing was written, and what it remembers of them is
    /// not so.
    #[error("the state tables are older than what this instance has stored in them")]
    WentBack,
    /// It is not a server to lead with.
    #[error("state database: {0}")]
    Server(#[source] SourceError),
    /// The server refused, or the session was lost.
    #[error("state database: {}{}", error_text(.0), session::advice(.0))]
    Sql(#[from] tokio_postgres::Error),
    /// The server refused a page of the delivery log, and might have taken all else.
    #[error("delivery log: {}{}", error_text(.0), session::advice(.0))]
    LogRefused(#[source] tokio_postgres::Error),
}

/// What an error means for who leads, or is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Another leads.
    Fenced,
    /// What is stored is older than it was: whoever leads begins anew from it.
    WentBack,
    /// A defect, or another program's doing: to go on would make it worse.
    Defect,
    /// A later program has raised the version: who starts is refused, who leads ends.
    SchemaTooNew,
    /// A person or time fixes it, as [`Failure::fixed_by`] says: a leader waits for either.
    Fixable,
}

impl StateError {
    /// What it means.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Fenced { .. } => Class::Fenced,
            Self::WentBack => Class::WentBack,
            Self::FrontierDecreases { .. }
            | Self::CheckpointMoved { .. }
            | Self::Unreadable { .. } => Class::Defect,
            Self::SchemaTooNew { .. } => Class::SchemaTooNew,
            Self::NotSetUp { .. }
            | Self::SchemaTooOld { .. }
            | Self::Connection(_)
            | Self::Server(_)
            | Self::LogRefused(_)
            | Self::Sql(_) => Class::Fixable,
        }
    }

    /// What the server, or the way to it, says.
    fn cause(&self) -> Option<&dyn Failure> {
        match self {
            Self::Connection(error) => Some(error),
            Self::Server(error) => Some(error),
            Self::Sql(error) | Self::LogRefused(error) => Some(error),
            Self::Fenced { .. }
            | Self::WentBack
            | Self::NotSetUp { .. }
            | Self::SchemaTooNew { .. }
            | Self::SchemaTooOld { .. }
            | Self::FrontierDecreases { .. }
            | Self::CheckpointMoved { .. }
            | Self::Unreadable { .. } => None,
        }
    }

    /// The statement's error, where the server refused one.
    #[must_use]
    pub fn refused(&self) -> Option<&tokio_postgres::Error> {
        if let Self::Sql(error) = self { Some(error) } else { None }
    }

    /// Whether the server's disk is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        let (Self::Sql(error) | Self::LogRefused(error)) = self else { return false };
        error.code() == Some(&SqlState::DISK_FULL)
    }

    /// Whether the server refused the values that it was given, whatever they are.
    #[must_use]
    pub fn is_data_error(&self) -> bool {
        self.refused().is_some_and(is_data_error)
    }
}

impl Failure for StateError {
    fn fixed_by(&self) -> FixedBy {
        self.cause().map_or(FixedBy::Person, Failure::fixed_by)
    }

    fn fix(&self) -> Cow<'static, str> {
        match self {
            Self::Connection(error) => error.fix(),
            Self::Server(error) => error.fix(),
            Self::Sql(error) | Self::LogRefused(error) => error.fix(),
            Self::NotSetUp { others, .. } if others.is_empty() => "run `walhook setup`".into(),
            Self::NotSetUp { others, .. } => set_back(others).into(),
            Self::SchemaTooOld { table, .. } => {
                format!("run `walhook setup`, which adds the table {table}").into()
            }
            Self::SchemaTooNew { found } => {
                format!("run a later walhook, which knows version {found} of the state tables").into()
            }
            Self::CheckpointMoved { .. } => "stop the instance that is running first".into(),
            Self::WentBack => {
                "find out whether a standby was promoted, or a copy put in place, that lacks what was stored last".into()
            }
            Self::Fenced { .. } => {
                "let the later leader lead; start this instance again, and it stands by".into()
            }
            Self::Unreadable { what, .. } => format!(
                "put back what somebody has changed of the state tables ({what}), or run the walhook that \
                 wrote it; if neither, report it as a defect"
            )
            .into(),
            Self::FrontierDecreases { .. } => {
                "start walhook again, and report this with its log as a defect".into()
            }
        }
    }

    fn say(&self, line: &mut Line) {
        match self {
            // What helps against it is the fix.
            Self::Server(_) | Self::Sql(_) => line.push("state database"),
            Self::LogRefused(_) => line.push("delivery log"),
            Self::Fenced { .. }
            | Self::WentBack
            | Self::NotSetUp { .. }
            | Self::SchemaTooNew { .. }
            | Self::SchemaTooOld { .. }
            | Self::FrontierDecreases { .. }
            | Self::CheckpointMoved { .. }
            | Self::Unreadable { .. }
            | Self::Connection(_) => line.push(&self.to_string()),
        }
        if let Some(cause) = self.cause() {
            cause.say(line);
        }
    }
}

/// What the schema holds instead, and the fix.
fn not_set_up(others: &[String]) -> String {
    if others.is_empty() {
        return "; run `walhook setup` first".to_owned();
    }
    format!(", but {}; {}", others.join(", "), set_back(others))
}

fn set_back(others: &[String]) -> String {
    format!(
        "set `source.slot` back to {} if it was changed or is mistyped; if this is one more pipeline, run \
         `walhook setup`",
        others.join(" or ")
    )
}

fn fenced(epoch: Option<Epoch>) -> String {
    epoch.map_or_else(
        || "this instance does not lead: it has not taken the lease".to_owned(),
        |epoch| format!("another instance has taken over: epoch {epoch} is no longer the lease's"),
    )
}

/// Wraps why a stored value cannot be read.
pub(super) fn unreadable<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> StateError {
    move |detail| StateError::Unreadable { what: what.to_owned(), detail: detail.to_string() }
}
