//! `[notify]`, `[admin]` and `[log]`: how whoever runs walhook hears of it.

use std::net::SocketAddr;

use anyhow::ensure;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::units;
use walhook_core::endpoint::Secret;

/// `[notify]`: who is told of what happens to endpoints.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Notify {
    /// Where notices go. Its path may be all that protects it, so it is never printed whole.
    #[serde(
        deserialize_with = "units::optional_secret",
        serialize_with = "units::optional_host",
        skip_serializing_if = "Option::is_none"
    )]
    pub url: Option<Secret>,
    /// What they are signed with. There is one where there is a URL.
    #[serde(
        deserialize_with = "units::optional_secret",
        serialize_with = "units::optional_stars",
        skip_serializing_if = "Option::is_none"
    )]
    pub secret: Option<Secret>,
}

/// `[admin]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Where the admin server listens.
    #[serde(deserialize_with = "units::address")]
    pub listen: SocketAddr,
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9723)) }
    }
}

/// `[log]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// A level, or a `tracing` filter such as `info,walhook_postgres=debug`.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

impl Log {
    /// The filter that `level` says.
    ///
    /// # Errors
    /// When it is neither a level nor a list of `target=level`.
    pub fn filter(&self) -> anyhow::Result<EnvFilter> {
        for part in self.level.split(',').map(str::trim) {
            // The filter would take a misspelt level for a target, and show nothing else.
            ensure!(
                part.contains(['=', '[']) || part.parse::<LevelFilter>().is_ok(),
                "{part:?} is not a level; there are off, error, warn, info, debug, trace, and target=level"
            );
        }
        Ok(EnvFilter::builder().parse(&self.level)?)
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
