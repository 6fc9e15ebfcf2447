//! Whether the configuration can be used.

use serde::Serialize;

use crate::config::{Config, WorkerConfig};

/// That the configuration can be used.
#[derive(Debug, Serialize)]
pub(crate) struct ValidView {
    /// How many event rules it has; left out for a worker, which needs none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rules: Option<usize>,
    /// True: a configuration that cannot be used is an error.
    pub(crate) valid: bool,
}

/// Says that a configuration, which was loaded, can be used.
pub(crate) fn validate(config: &Config) -> ValidView {
    ValidView { rules: Some(config.events.len()), valid: true }
}

/// The same, of what a worker reads.
pub(crate) fn validate_worker(_: &WorkerConfig) -> ValidView {
    ValidView { rules: None, valid: true }
}
