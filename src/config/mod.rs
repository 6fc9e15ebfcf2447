//! The configuration: what `walhook.toml` may say, and what it means when it says nothing.
//!
//! Every key is documented in `docs/configuration.md`.

mod keys;
mod load;
mod near_miss;
mod units;
mod validate;
mod workers;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use load::{ConfigError, Place, load, load_worker};
#[cfg(test)]
pub(crate) use load::{parse, parse_worker};
pub use near_miss::near_misses;
pub use workers::{LocalSending, WorkerConfig, WorkerEgress, Workers};

use walhook_core::delivery_log::Keep;
use walhook_core::endpoint::Secret;
use walhook_core::settings::{Accounts, Endpoints, HEADER_PREFIX};
use walhook_core::size::ByteSize;
use walhook_http::egress::{HostPattern, Policy};
use walhook_http::transport::{self, Transport, TransportError};
use walhook_postgres::lookup::LookupSettings;
use walhook_postgres::pg::DatabaseUrl;
use walhook_rules::rule::RuleSettings;
use walhook_rules::settings::{EventRule, Payload, RuleOperation};

/// The whole configuration.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The database whose changes are sent.
    pub source: Source,
    /// Where walhook keeps its state.
    #[serde(default)]
    pub state: State,
    /// The customer's endpoint table.
    pub endpoints: Endpoints,
    /// The customer's account table, where there are weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accounts: Option<Accounts>,
    /// The event rules, in order.
    #[serde(default)]
    pub events: Vec<EventRule>,
    /// How values are written.
    #[serde(default)]
    pub payload: Payload,
    /// How requests are sent and tried again.
    #[serde(default)]
    pub delivery: Delivery,
    /// What is kept of each delivery's story.
    #[serde(default)]
    pub deliveries: Deliveries,
    /// How many requests are in flight.
    #[serde(default)]
    pub scheduler: Scheduler,
    /// How much memory pending events may take.
    #[serde(default)]
    pub memory: Memory,
    /// How much WAL undelivered events may hold back.
    #[serde(default)]
    pub wal: Wal,
    /// Where requests may go.
    #[serde(default)]
    pub egress: Egress,
    /// Processes that send for the leader, where there are some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<Workers>,
    /// Who is told of what happens to endpoints.
    #[serde(default)]
    pub notify: Notify,
    /// The admin server.
    #[serde(default)]
    pub admin: Admin,
    /// The log.
    #[serde(default)]
    pub log: Log,
}

impl Config {
    /// The tables that the rules name, as they name them.
    pub fn rule_tables(&self) -> impl Iterator<Item = &str> {
        self.events.iter().filter_map(|rule| rule.table.as_deref())
    }

    /// The part that is about making events.
    #[must_use]
    pub fn rules(&self) -> RuleSettings<'_> {
        RuleSettings { events: &self.events, endpoints: &self.endpoints, payload: &self.payload }
    }

    /// The part that is about looking endpoints up.
    #[must_use]
    pub fn lookups(&self) -> LookupSettings<'_> {
        LookupSettings {
            url: &self.source.url,
            endpoints: &self.endpoints,
            accounts: self.accounts.as_ref(),
            header_prefix: &self.delivery.header_prefix,
            max_account_bytes: self.memory.max_account_bytes(),
        }
    }

    /// What sends requests as `[delivery]`, `[egress]` and `[memory]` say.
    ///
    /// # Errors
    /// [`TransportError`]
    pub fn transport(&self) -> Result<Transport, TransportError> {
        let Delivery { header_prefix, user_agent, timeout, connect_timeout, .. } = &self.delivery;
        let requests = requests(header_prefix, user_agent, *timeout, *connect_timeout);
        Transport::new(&requests, &self.egress.of_transport(), self.memory.limit_bytes())
    }

    /// Whether a rule listens to logical messages, so that the stream has to carry them.
    #[must_use]
    pub fn reads_messages(&self) -> bool {
        self.events.iter().any(|rule| rule.on.contains(&RuleOperation::Message))
    }
}

/// How requests are made.
fn requests(
    header_prefix: &str,
    user_agent: &str,
    timeout: Duration,
    connect_timeout: Duration,
) -> transport::Requests {
    let (header_prefix, user_agent) = (header_prefix.to_owned(), user_agent.to_owned());
    transport::Requests { header_prefix, user_agent, timeout, connect_timeout }
}

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
        deserialize_with = "units::duration",
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

/// `[delivery]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Delivery {
    /// Whether anything is sent.
    pub mode: DeliveryMode,
    /// The prefix of the headers that are ours.
    pub header_prefix: String,
    /// The `user-agent` header.
    pub user_agent: String,
    /// For one whole request.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::as_duration")]
    pub timeout: Duration,
    /// For connecting, within `timeout`.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::as_duration")]
    pub connect_timeout: Duration,
    /// What is delivered in order.
    pub ordering: Ordering,
    /// Attempts made from memory.
    pub quick_attempts: u32,
    /// The first backoff's upper bound.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::as_duration")]
    pub retry_base: Duration,
    /// Every backoff's upper bound.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::as_duration")]
    pub retry_cap: Duration,
    /// A failure so long after a delivery's first one makes it a dead letter.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::as_duration")]
    pub retry_for: Duration,
    /// An endpoint is switched off after so long with nothing but failures.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::as_duration")]
    pub disable_after: Duration,
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            mode: DeliveryMode::Live,
            header_prefix: HEADER_PREFIX.to_owned(),
            user_agent: concat!("walhook/", env!("CARGO_PKG_VERSION")).to_owned(),
            timeout: Duration::from_secs(15),
            connect_timeout: defaults::connect_timeout(),
            ordering: Ordering::Row,
            quick_attempts: 2,
            retry_base: Duration::from_secs(10),
            retry_cap: Duration::from_secs(8 * 3600),
            retry_for: Duration::from_secs(72 * 3600),
            disable_after: Duration::from_secs(5 * 24 * 3600),
        }
    }
}

/// Whether anything is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryMode {
    /// Every delivery is a request to its endpoint.
    Live,
    /// No request is made: each delivery is logged, and is settled so. For copies of production.
    Log,
}

/// What is delivered in order to one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ordering {
    /// The events of one row.
    Row,
    /// All events of the account.
    Account,
    /// Nothing.
    None,
}

/// `[deliveries]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deliveries {
    /// Which lines the delivery log keeps.
    pub keep: Keep,
    /// How long.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::as_duration")]
    pub retention: Duration,
    /// What they may take; beyond it the oldest go.
    pub max_size: ByteSize,
    /// Whether they repeat what an endpoint answered where it did not take an event.
    pub excerpts: bool,
}

impl Default for Deliveries {
    fn default() -> Self {
        Self {
            keep: Keep::All,
            retention: Duration::from_secs(7 * 24 * 3600),
            max_size: ByteSize(1 << 30),
            excerpts: true,
        }
    }
}

/// `[scheduler]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scheduler {
    /// Requests in flight to endpoints that answer within a second.
    pub fast_slots: u32,
    /// Requests in flight beside those, to slower endpoints.
    pub slow_slots: u32,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self { fast_slots: 256, slow_slots: 1024 }
    }
}

/// `[memory]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// For pending events and cached routes together.
    pub limit: ByteSize,
}

impl Memory {
    /// All of it.
    #[must_use]
    pub fn limit_bytes(&self) -> usize {
        usize::try_from(self.limit.0).unwrap_or(usize::MAX)
    }

    /// The largest change that is read: a quarter of the limit, and at least 1 MiB. What is larger
    /// passes by without being held.
    #[must_use]
    pub fn max_change_bytes(&self) -> usize {
        const LEAST: u64 = 1 << 20;
        usize::try_from((self.limit.0 / 4).max(LEAST)).unwrap_or(usize::MAX)
    }

    /// What the endpoints of one account may take: half of the limit. Events of an account that has more
    /// are dead letters.
    #[must_use]
    pub fn max_account_bytes(&self) -> usize {
        usize::try_from(self.limit.0 / 2).unwrap_or(usize::MAX)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self { limit: ByteSize(256 << 20) }
    }
}

/// `[wal]`: how much WAL undelivered events may hold back. What would hold more is deferred.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wal {
    /// For how long a delivery may hold the checkpoint back.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::as_duration")]
    pub max_hold: Duration,
    /// By how much the checkpoint may lag behind what was read.
    pub max_retained: ByteSize,
}

impl Default for Wal {
    fn default() -> Self {
        Self { max_hold: Duration::from_secs(30), max_retained: ByteSize(256 << 20) }
    }
}

/// `[egress]`: where requests may go.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Egress {
    /// Address blocks that may be contacted although they are private.
    pub allow: Vec<ipnet::IpNet>,
    /// Address blocks that may not, although they are public. `deny` wins.
    pub deny: Vec<ipnet::IpNet>,
    /// When not empty, no other host is contacted.
    pub only_hosts: Vec<HostPattern>,
    /// Refuse `http://`.
    pub https_only: bool,
    /// An `http://` URL: all requests go through tunnels of this proxy. May hold a password, so it is
    /// never printed whole.
    #[serde(
        deserialize_with = "units::optional_secret",
        serialize_with = "units::optional_hidden",
        skip_serializing_if = "Option::is_none"
    )]
    pub proxy: Option<Secret>,
}

impl Egress {
    /// Which URLs and addresses may be contacted.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let Self { allow, deny, only_hosts, https_only, proxy: _ } = self.clone();
        Policy { allow, deny, only_hosts, https_only }
    }

    /// The same with the way there.
    fn of_transport(&self) -> transport::Egress {
        transport::Egress { policy: self.policy(), proxy: self.proxy.clone() }
    }
}

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

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

mod defaults {
    use std::time::Duration;

    use walhook_core::size::ByteSize;

    pub(super) fn connect_timeout() -> Duration {
        Duration::from_secs(5)
    }
    pub(super) fn lease_timeout() -> Duration {
        Duration::from_secs(10)
    }
    pub(super) fn replay_window() -> ByteSize {
        ByteSize(1 << 30)
    }
    pub(super) fn spool_max() -> ByteSize {
        ByteSize(8 << 30)
    }
    pub(super) fn stream_above() -> ByteSize {
        ByteSize(1 << 20)
    }
    pub(super) fn walhook() -> String {
        "walhook".to_owned()
    }
    pub(super) fn worker_lease() -> Duration {
        Duration::from_secs(2)
    }
}

/// Where a configuration is looked for when none is named: the first that exists.
pub const DEFAULT_PATHS: [&str; 2] = ["walhook.toml", "/etc/walhook/walhook.toml"];

/// The commented example; a test holds it against the defaults.
pub const EXAMPLE: &str = include_str!("../../walhook.example.toml");
