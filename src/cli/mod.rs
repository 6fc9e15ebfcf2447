//! The commands: one file each, each with its `Args` and its `run`.

pub mod checkpoint;
pub mod dead_letters;
pub mod status;

use std::path::PathBuf;

use serde::Serialize;

use crate::config::{Config, ConfigError};

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

impl Common {
    /// Loads the configuration that the command line names, with this process's environment.
    ///
    /// # Errors
    /// [`Failure::Usage`], with what is wrong and where.
    pub fn load(&self) -> Result<Config, Failure> {
        // A variable that is not UTF-8 can only be somebody else's.
        let env = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Ok(crate::config::load(&self.config, env)?)
    }
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

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.into())
    }
}

/// What a command's `run` returns.
pub type CommandResult = Result<(), Failure>;

/// Writes a result to standard output as one JSON object.
///
/// # Errors
/// When standard output is closed, or the value is not representable.
pub fn print_json(value: &impl Serialize) -> CommandResult {
    let text = serde_json::to_string_pretty(value).map_err(anyhow::Error::from)?;
    print_line(&text)
}

/// Writes a line to standard output; a reader that has closed its end is a failure, not a panic.
///
/// # Errors
/// When standard output is closed.
pub fn print_line(line: &str) -> CommandResult {
    use std::io::Write;
    writeln!(std::io::stdout(), "{line}").map_err(|error| Failure::Failed(error.into()))
}
