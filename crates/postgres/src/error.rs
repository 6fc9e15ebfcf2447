//! Why a question to the source has no answer.

use std::borrow::Cow;
use std::num::ParseIntError;

use super::fix::{Failure, FixedBy, Line, NOT_POSTGRESQL, OLD_PRIMARY, STANDBY};
use walhook_core::catalog::{TableName, TableNameError};
use walhook_core::lsn::ParseLsnError;

/// Why what was asked of the source's catalog is not known.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The server refused, or the session was lost.
    #[error(transparent)]
    Sql(#[from] tokio_postgres::Error),
    /// The same, where the error alone would not say what for.
    #[error("{failed}")]
    While {
        /// What could not be done.
        failed: &'static str,
        /// What the server or the protocol says.
        source: tokio_postgres::Error,
    },
    /// The publication did not take a table.
    #[error("cannot add {table} to the publication")]
    NotAdded {
        /// The table.
        table: TableName,
        /// What the server or the protocol says.
        source: tokio_postgres::Error,
    },
    /// The server is in recovery. What is asked of it, it has only as far as it follows, and no slot of ours is on it.
    #[error("this server is a standby; {STANDBY}")]
    Standby,
    /// The cluster was failed over, and this server does not know.
    #[error(
        "this is an old primary, on timeline {timeline}; walhook has been on timeline {newest}; {OLD_PRIMARY}"
    )]
    OldPrimary {
        /// Its timeline.
        timeline: u32,
        /// That of the new one.
        newest: u32,
    },
    /// The configuration's name of a table cannot be read.
    #[error(transparent)]
    TableName(#[from] TableNameError),
    /// The server tells a number that is none.
    #[error(transparent)]
    Number(#[from] ParseIntError),
    /// The server tells a position that is none.
    #[error(transparent)]
    Position(#[from] ParseLsnError),
}

impl SourceError {
    /// Of a statement that was to find something out.
    pub(crate) fn of(failed: &'static str) -> impl Fn(tokio_postgres::Error) -> Self {
        move |source| Self::While { failed, source }
    }
}

impl Failure for SourceError {
    fn fixed_by(&self) -> FixedBy {
        match self {
            Self::Sql(error)
            | Self::While { source: error, .. }
            | Self::NotAdded { source: error, .. } => error.fixed_by(),
            // A name is moved, a failover ends.
            Self::Standby | Self::OldPrimary { .. } => FixedBy::Waiting,
            Self::TableName(_) | Self::Number(_) | Self::Position(_) => FixedBy::Person,
        }
    }

    fn fix(&self) -> Cow<'static, str> {
        match self {
            Self::Sql(error)
            | Self::While { source: error, .. }
            | Self::NotAdded { source: error, .. } => error.fix(),
            Self::Standby => STANDBY.into(),
            Self::OldPrimary { .. } => OLD_PRIMARY.into(),
            Self::TableName(_) => {
                "correct the table's name in the configuration, such as public.webhooks".into()
            }
            Self::Number(_) | Self::Position(_) => NOT_POSTGRESQL.into(),
        }
    }

    fn say(&self, line: &mut Line) {
        match self {
            Self::Sql(error) => error.say(line),
            Self::While { source, .. } | Self::NotAdded { source, .. } => {
                line.push(&self.to_string());
                source.say(line);
            }
            // The fix stands behind the line.
            Self::Standby => line.push("this server is a standby"),
            Self::OldPrimary { timeline, newest } => line.push(&format!(
                "this is an old primary, on timeline {timeline}; walhook has been on timeline {newest}"
            )),
            Self::TableName(_) | Self::Number(_) | Self::Position(_) => line.push_error(self),
        }
    }
}
