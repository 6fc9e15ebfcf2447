//! From `walhook.toml` to a [`Config`](super::Config).

use std::path::{Path, PathBuf};

use super::Config;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}", path = .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file says what it must not.
    #[error("{path}: {source}", path = .path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What.
        source: toml::de::Error,
    },
}

/// Reads the file at `path`.
///
/// # Errors
/// [`ConfigError`].
pub fn load(
    path: &Path,
    _env: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|source| ConfigError::Invalid { path: path.to_owned(), source })
}
