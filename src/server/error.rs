//! Why a task of the pipeline could not do its work, by what decides what follows.

use std::error::Error;
use std::time::Duration;

use super::Stop;
use walhook_postgres::lookup::LookupError;
use walhook_postgres::sql::ConnectError;
use walhook_state::StateError;

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
    Source(#[from] tokio_postgres::Error),
    /// A look-up.
    #[error(transparent)]
    LookUp(#[from] LookupError),
    /// Nobody answered in time.
    #[error("no answer within {0:?}")]
    NoAnswer(Duration),
    /// The dispatcher has ended: so does the task, in a moment.
    #[error("the dispatcher has ended")]
    DispatcherEnded,
    /// All else, in words.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl From<StateError> for TaskError {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Fenced { .. } => Self::Stop(Stop::Fenced),
            error @ (StateError::NotSetUp { .. }
            | StateError::SchemaTooOld { .. }
            | StateError::SchemaTooNew { .. }
            | StateError::FrontierDecreases { .. }
            | StateError::CheckpointMoved { .. }
            | StateError::Unreadable { .. }
            | StateError::Connection(_)
            | StateError::Sql(_)) => Self::State(error),
        }
    }
}

impl<T> From<tokio::sync::mpsc::error::SendError<T>> for TaskError {
    fn from(_: tokio::sync::mpsc::error::SendError<T>) -> Self {
        Self::DispatcherEnded
    }
}

impl TaskError {
    /// What failed, for who says what it was and how to fix it.
    pub(super) fn cause(&self) -> &(dyn Error + 'static) {
        match self {
            Self::Stop(stop) => stop,
            Self::State(error) => error,
            Self::Connect(error) => error,
            Self::Source(error) => error,
            Self::LookUp(error) => error,
            Self::NoAnswer(_) | Self::DispatcherEnded => self,
            Self::Other(error) => error.as_ref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_of_a_lease_that_is_another_s_ends_the_pipeline() {
        let error = TaskError::from(StateError::Fenced { epoch: Some(3) });
        assert!(matches!(error, TaskError::Stop(Stop::Fenced)), "{error:?}");
    }

    #[test]
    fn cause_is_the_error_itself_and_not_what_lies_behind_it() {
        let error = StateError::NotSetUp { schema: "s".to_owned(), pipeline: "p".to_owned() };
        let (text, error) = (error.to_string(), TaskError::from(error));
        assert!(error.cause().is::<StateError>());
        assert_eq!(error.to_string(), text);
    }
}
