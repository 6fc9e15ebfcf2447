//! How a query or command ends other than well.

use crate::config::ConfigError;
use crate::server::prepared::PreparedError;
use crate::server::range::RangeError;
use walhook_core::halt::Halt;
use walhook_postgres::error::SourceError;
use walhook_postgres::fix::Failure as _;
use walhook_state::StateError;

/// How a query or command ends other than well.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It was tried and did not succeed: exit code 1.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
    /// What was asked, or the configuration, is wrong: exit code 2.
    #[error("{0:#}")]
    Usage(anyhow::Error),
    /// Going on would lose data: exit code 3.
    #[error("{0}")]
    Halted(String),
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl From<PreparedError> for Failure {
    fn from(error: PreparedError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<RangeError> for Failure {
    fn from(error: RangeError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Halt> for Failure {
    fn from(halt: Halt) -> Self {
        Self::Halted(halt.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.into())
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        let fix = error.refused().is_some().then(|| error.fix());
        let error = anyhow::Error::from(error);
        Self::Failed(match fix {
            Some(fix) => anyhow::anyhow!("{error:#}; {fix}"),
            None => error,
        })
    }
}
