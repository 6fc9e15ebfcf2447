//! The commands: one file each, each with its `Args` and its `run`.

use std::path::PathBuf;

/// What every command takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// The configuration file
    #[arg(long, global = true, value_name = "FILE", default_value = crate::config::DEFAULT_PATH, env = "WALHOOK_CONFIG")]
    pub config: PathBuf,
    /// Print the result as one JSON object
    #[arg(long, global = true)]
    pub json: bool,
}

/// How a command ends other than well: decides the exit code.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Exit code 1.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
    /// Exit code 2: wrong usage or configuration.
    #[error("{0:#}")]
    Usage(anyhow::Error),
    /// Exit code 3: halted to protect data.
    #[error("{0}")]
    Halted(String),
}

/// What a command's `run` returns.
pub type CommandResult = Result<(), Failure>;
