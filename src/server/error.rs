//! Why a task of the pipeline could not do its work, by what decides what follows.

use std::borrow::Cow;
use std::num::ParseIntError;
use std::time::Duration;

use super::Stop;
use super::trouble::SLOW_FIX;
use walhook_dispatch::route::ParseSnapshotError;
use walhook_postgres::error::SourceError;
use walhook_postgres::fix::{Failure, FixedBy, Line, NOT_POSTGRESQL};
use walhook_postgres::lookup::LookupError;
use walhook_postgres::sql::ConnectError;
use walhook_state::{Class, StateError};

/// Why a task could not do its work this time. [`TaskError::Stop`] ends the pipeline; all else is told, and
/// the work begun again.
#[derive(Debug, thiserror::Error)]
pub(super) enum TaskError {
    /// Going on is of no use, or harm.
    #[error(transparent)]
    Stop(Stop),
    /// The state database.
    #[error(transparent)]
    State(StateError),
    /// No session with the source.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The source refused a statement, or its session was lost.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A look-up.
    #[error(transparent)]
    LookUp(#[from] LookupError),
    /// Nobody answered in time.
    #[error("no answer within {0:?}")]
    NoAnswer(Duration),
    /// The dispatcher has ended: so does the task, in a moment.
    #[error("the dispatcher has ended")]
    DispatcherEnded,
    /// The anchor slot was not changed.
    #[error("{cannot}")]
    Anchor {
        /// What could not be done.
        cannot: String,
        /// Why.
        source: tokio_postgres::Error,
    },
    /// Another program has a slot of the anchor's name.
    #[error("the slot {name} is another program's: drop or rename it, and the window begins")]
    AnchorTaken {
        /// The name.
        name: String,
    },
    /// The server tells a snapshot that is none.
    #[error("a snapshot of the source")]
    Xmin(#[source] ParseIntError),
    /// A look-up's is none.
    #[error(transparent)]
    Snapshot(#[from] ParseSnapshotError),
}

impl From<StateError> for TaskError {
    fn from(error: StateError) -> Self {
        match error.class() {
            Class::Fenced => Self::Stop(Stop::Fenced),
            Class::WentBack => Self::Stop(Stop::WentBack),
            Class::Defect | Class::SchemaTooNew | Class::Fixable => Self::State(error),
        }
    }
}

impl From<tokio_postgres::Error> for TaskError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Source(error.into())
    }
}

impl<T> From<tokio::sync::mpsc::error::SendError<T>> for TaskError {
    fn from(_: tokio::sync::mpsc::error::SendError<T>) -> Self {
        Self::DispatcherEnded
    }
}

impl Failure for TaskError {
    fn fixed_by(&self) -> FixedBy {
        match self {
            Self::State(error) => error.fixed_by(),
            Self::Connect(error) => error.fixed_by(),
            Self::Source(error) => error.fixed_by(),
            Self::LookUp(error) => error.fixed_by(),
            Self::Anchor { source, .. } => source.fixed_by(),
            Self::NoAnswer(_) | Self::DispatcherEnded => FixedBy::Waiting,
            Self::Stop(_) | Self::AnchorTaken { .. } | Self::Xmin(_) | Self::Snapshot(_) => {
                FixedBy::Person
            }
        }
    }

    fn fix(&self) -> Cow<'static, str> {
        match self {
            Self::State(error) => error.fix(),
            Self::Connect(error) => error.fix(),
            Self::Source(error) => error.fix(),
            Self::LookUp(error) => error.fix(),
            Self::Anchor { source, .. } => source.fix(),
            Self::NoAnswer(_) => SLOW_FIX.into(),
            Self::DispatcherEnded | Self::Stop(_) => {
                "read the last lines of the log, which say why this instance ends".into()
            }
            Self::AnchorTaken { name } => {
                format!("drop or rename the slot {name}, which is another program's").into()
            }
            Self::Xmin(_) | Self::Snapshot(_) => NOT_POSTGRESQL.into(),
        }
    }

    fn say(&self, line: &mut Line) {
        match self {
            Self::State(error) => error.say(line),
            Self::Connect(error) => error.say(line),
            Self::Source(error) => error.say(line),
            Self::LookUp(error) => error.say(line),
            Self::Anchor { source, .. } => {
                line.push(&self.to_string());
                source.say(line);
            }
            Self::Stop(_)
            | Self::AnchorTaken { .. }
            | Self::Xmin(_)
            | Self::Snapshot(_)
            | Self::NoAnswer(_)
            | Self::DispatcherEnded => line.push_error(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhook_core::catalog::TableName;
    use walhook_core::lsn::Lsn;
    use walhook_postgres::pg::LinkError;
    use walhook_testkit::wording::is_imperative;

    #[test]
    fn error_of_a_lease_that_is_another_s_ends_the_pipeline() {
        let error = TaskError::from(StateError::Fenced { epoch: Some(walhook_core::id::Epoch(3)) });
        assert!(matches!(error, TaskError::Stop(Stop::Fenced)), "{error:?}");
    }

    #[test]
    fn error_says_what_its_cause_says_once_and_is_fixed_by_who_fixes_that() {
        let link = LinkError::Unreachable {
            target: "h:1".to_owned(),
            why: std::io::ErrorKind::ConnectionRefused.into(),
        };
        let text = link.to_string();
        let error = TaskError::from(StateError::Connection(link.into()));
        assert_eq!(error.fixed_by(), FixedBy::Waiting);
        assert_eq!(error.line(), format!("no connection to the state database: {text}"));
        let error = StateError::NotSetUp {
            schema: "s".to_owned(),
            pipeline: "p".to_owned(),
            others: vec![],
        };
        let (text, error) = (error.to_string(), TaskError::from(error));
        assert_eq!((error.fixed_by(), error.line()), (FixedBy::Person, text));
    }

    #[test]
    fn fix_is_something_to_do() {
        let number = || "x".parse::<u8>().unwrap_err();
        let name = || "walhook".to_owned();
        let of_state = [
            StateError::Fenced { epoch: None },
            StateError::WentBack,
            StateError::NotSetUp { schema: name(), pipeline: name(), others: vec![] },
            StateError::NotSetUp { schema: name(), pipeline: name(), others: vec![name()] },
            StateError::SchemaTooOld { schema: name(), table: "pages" },
            StateError::SchemaTooNew { found: 99 },
            StateError::FrontierDecreases { stored: Lsn(2), asked: Lsn(1) },
            StateError::CheckpointMoved { from: Lsn(1), to: Lsn(2) },
            StateError::Unreadable { what: name(), detail: name() },
        ];
        let all = of_state.into_iter().map(TaskError::State).chain([
            TaskError::Stop(Stop::Fenced),
            TaskError::NoAnswer(Duration::from_secs(1)),
            TaskError::DispatcherEnded,
            TaskError::AnchorTaken { name: name() },
            TaskError::Xmin(number()),
            TaskError::Source(SourceError::Number(number())),
            TaskError::Source(SourceError::TableName("a.b.c".parse::<TableName>().unwrap_err())),
        ]);
        for error in all {
            assert!(is_imperative(&error.fix()), "{error}: {}", error.fix());
        }
    }
}
