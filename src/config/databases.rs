//! `[source]` and `[state]`: the database whose changes are sent, and where walhook keeps its own.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{defaults, units};
use walhook_core::size::ByteSize;
use walhook_postgres::pg::DatabaseUrl;

/// `[source]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// A `postgres://` URL; holds a password, so it is never printed.
    #[serde(deserialize_with = "units::database_url", serialize_with = "units::hidden_url")]
    pub url: DatabaseUrl,
    /// For the replication connection, where `url` goes through a pooler.
    #[serde(
        default,
        deserialize_with = "units::optional_database_url",
        serialize_with = "units::optional_hidden_url",
        skip_serializing_if = "Option::is_none"
    )]
    pub replication_url: Option<DatabaseUrl>,
    /// The replication slot; names the pipeline, so it is part of every state key.
    #[serde(default = "defaults::walhook")]
    pub slot: String,
    /// The publication.
    #[serde(default = "defaults::walhook")]
    pub publication: String,
    /// How long a frozen leader keeps the slot from the others.
    #[serde(
        default = "defaults::lease_timeout",
        deserialize_with = "units::wait",
        serialize_with = "units::as_duration"
    )]
    pub lease_timeout: Duration,
    /// How much WAL behind the checkpoint is kept for replays; 0 keeps none.
    #[serde(default = "defaults::replay_window")]
    pub replay_window: ByteSize,
    /// Whether a large transaction is received while it is open.
    #[serde(default)]
    pub streaming: Streaming,
    /// How large it is at least: PostgreSQL's `logical_decoding_work_mem` in our session.
    #[serde(default = "defaults::stream_above")]
    pub stream_above: ByteSize,
    /// The directory for what of open transactions does not fit into memory; none: the directory that systemd
    /// gave us, or else memory alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spool: Option<PathBuf>,
    /// What it may take.
    #[serde(default = "defaults::spool_max")]
    pub spool_max: ByteSize,
}

/// Whether a large transaction is received while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Streaming {
    /// As soon as it passes `source.stream_above`.
    #[default]
    On,
    /// When it has committed.
    Off,
}

/// `[state]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    /// Another database than the source's.
    #[serde(
        deserialize_with = "units::optional_database_url",
        serialize_with = "units::optional_hidden_url",
        skip_serializing_if = "Option::is_none"
    )]
    pub url: Option<DatabaseUrl>,
    /// The schema of the state tables.
    pub schema: String,
    /// How long dead letters, finished jobs and closed gaps are kept.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::as_duration")]
    pub retention: Duration,
    /// What the state tables may take; beyond it an endpoint is suspended.
    pub max_size: ByteSize,
}

impl Default for State {
    fn default() -> Self {
        Self {
            url: None,
            schema: defaults::walhook(),
            retention: Duration::from_secs(30 * 24 * 3600),
            max_size: ByteSize(10 << 30),
        }
    }
}
