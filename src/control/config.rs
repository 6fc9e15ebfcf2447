//! Whether the configuration can be used.

use serde::Serialize;

use crate::config::Config;

/// That the configuration can be used.
#[derive(Debug, Serialize)]
pub(crate) struct ValidView {
    /// How many event rules it has.
    pub(crate) rules: usize,
    /// True: a configuration that cannot be used is an error.
    pub(crate) valid: bool,
}

/// Says that a configuration, which was loaded, can be used.
pub(crate) fn validate(config: &Config) -> ValidView {
    ValidView { rules: config.events.len(), valid: true }
}
