//! `[workers]`, and what of the configuration a worker reads.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Admin, Egress, Log, Memory, Scheduler, defaults, requests, units};
use walhook_core::endpoint::Secret;
use walhook_core::settings::HEADER_PREFIX;
use walhook_http::transport::{Transport, TransportError};

/// `[workers]`: processes that send for the leader, over NATS.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Workers {
    /// The servers of the bus: `tls://host:port`, or `nats://host:port`.
    #[serde(deserialize_with = "units::one_or_more")]
    pub url: Vec<String>,
    /// What the names of its subjects begin with; the pipeline's follows.
    #[serde(default = "defaults::walhook")]
    pub subject: String,
    /// Whether the leader sends too.
    #[serde(default)]
    pub local: LocalSending,
    /// For how long a worker may begin requests after it was last heard.
    #[serde(
        default = "defaults::worker_lease",
        deserialize_with = "units::duration",
        serialize_with = "units::as_duration"
    )]
    pub lease: Duration,
    /// Whether a worker's `[egress]` must be the leader's.
    #[serde(default)]
    pub egress: WorkerEgress,
    /// Whether what is sent may travel in the clear beyond this machine.
    #[serde(default)]
    pub insecure: bool,
    /// As whom, by a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The user's password.
    #[serde(
        default,
        deserialize_with = "units::optional_secret",
        serialize_with = "units::optional_stars",
        skip_serializing_if = "Option::is_none"
    )]
    pub password: Option<Secret>,
    /// As whom, by the seed of an nkey.
    #[serde(
        default,
        deserialize_with = "units::optional_secret",
        serialize_with = "units::optional_stars",
        skip_serializing_if = "Option::is_none"
    )]
    pub nkey: Option<Secret>,
    /// As whom, by the text of a credentials file.
    #[serde(
        default,
        deserialize_with = "units::optional_secret",
        serialize_with = "units::optional_stars",
        skip_serializing_if = "Option::is_none"
    )]
    pub creds: Option<Secret>,
    /// PEM file of the authorities that sign the servers' certificates; without it the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
}

#[cfg(feature = "workers")]
impl Workers {
    /// How the bus is reached, by a process that its operator sees under this name.
    ///
    /// # Errors
    /// [`walhook_bus::UrlError`], which [`load`](super::load) has told already.
    pub fn bus(&self, name: &str) -> Result<walhook_bus::Options, walhook_bus::UrlError> {
        Ok(walhook_bus::Options {
            servers: walhook_bus::Servers::parse(self.url.iter().map(String::as_str))?,
            credentials: self.credentials(),
            tls_ca: self.tls_ca.clone(),
            name: name.to_owned(),
        })
    }

    /// As whom the bus is used.
    pub(super) fn credentials(&self) -> walhook_bus::Credentials {
        match (&self.user, &self.password, &self.nkey, &self.creds) {
            (_, _, _, Some(creds)) => walhook_bus::Credentials::Creds(creds.clone()),
            (_, _, Some(nkey), None) => walhook_bus::Credentials::Nkey(nkey.clone()),
            (Some(user), Some(password), None, None) => walhook_bus::Credentials::Password {
                user: user.clone(),
                password: password.clone(),
            },
            (_, _, None, None) => walhook_bus::Credentials::None,
        }
    }
}

/// Whether the leader sends too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LocalSending {
    /// While no worker serves, and what is too large for the bus.
    #[default]
    Fallback,
    /// As one of the workers.
    Always,
    /// Nothing.
    Never,
}

/// Whether a worker's `[egress]` must be the leader's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerEgress {
    /// A worker with another is refused.
    #[default]
    Same,
    /// Each worker goes by its own.
    Own,
}

/// What a worker reads of the configuration: it knows no database and no secret of an endpoint, so it can
/// be given the leader's file, or one with `[workers]` alone.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct WorkerConfig {
    #[serde(default)]
    source: WorkerSource,
    #[serde(default)]
    delivery: WorkerDelivery,
    /// The bus.
    pub workers: Workers,
    /// How many requests are in flight.
    #[serde(default)]
    pub scheduler: Scheduler,
    /// How much memory answers may take.
    #[serde(default)]
    pub memory: Memory,
    /// Where requests may go.
    #[serde(default)]
    pub egress: Egress,
    /// The admin server.
    #[serde(default)]
    pub admin: Admin,
    /// The log.
    #[serde(default)]
    pub log: Log,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
struct WorkerSource {
    #[serde(default = "defaults::walhook")]
    slot: String,
}

impl Default for WorkerSource {
    fn default() -> Self {
        Self { slot: defaults::walhook() }
    }
}

#[derive(Debug, Clone, Deserialize, Serialize)]
struct WorkerDelivery {
    #[serde(
        default = "defaults::connect_timeout",
        deserialize_with = "units::wait",
        serialize_with = "units::as_duration"
    )]
    connect_timeout: Duration,
}

impl Default for WorkerDelivery {
    fn default() -> Self {
        Self { connect_timeout: defaults::connect_timeout() }
    }
}

impl WorkerConfig {
    /// The pipeline that it serves: the leader's slot.
    #[must_use]
    pub fn pipeline(&self) -> &str {
        &self.source.slot
    }

    /// For connecting to an endpoint.
    #[must_use]
    pub fn connect_timeout(&self) -> Duration {
        self.delivery.connect_timeout
    }

    /// What carries requests, as `[egress]` and `[memory]` say. Their headers and their timeout are the
    /// leader's.
    ///
    /// # Errors
    /// [`TransportError`]
    pub fn transport(&self) -> Result<Transport, TransportError> {
        let connect_timeout = self.connect_timeout();
        let requests = requests(HEADER_PREFIX, "walhook", connect_timeout, connect_timeout);
        Transport::new(&requests, &self.egress.of_transport(), self.memory.limit_bytes())
    }
}
