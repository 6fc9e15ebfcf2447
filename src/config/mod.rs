//! The configuration: what `walhook.toml` may say, and what it means when it says nothing.
//!
//! Every key is documented in `docs/configuration.md`.

mod databases;
mod defaults;
mod delivery;
mod egress;
mod environment;
mod keys;
mod limits;
mod load;
mod near_miss;
mod operation;
mod units;
mod validate;
mod workers;

use serde::{Deserialize, Serialize};

pub use databases::{Source, State, Streaming};
pub use delivery::{Deliveries, Delivery, DeliveryMode, Ordering};
pub use egress::Egress;
pub use environment::environment;
pub use limits::{Memory, Scheduler, Wal};
pub use load::{ConfigError, Place, load, load_worker};
#[cfg(test)]
pub(crate) use load::{parse, parse_worker};
pub use near_miss::near_misses;
pub use operation::{Admin, Log, LogFormat, Notify};
pub use workers::{LocalSending, WorkerConfig, WorkerEgress, Workers};

use egress::requests;
use walhook_core::settings::{Accounts, Endpoints};
use walhook_http::transport::{Transport, TransportError};
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

    /// Whether a file holds another database URL by now than was read from it.
    #[must_use]
    pub fn has_another_url(&self) -> bool {
        let Source { url, replication_url, .. } = &self.source;
        let urls = [Some(url), replication_url.as_ref(), self.state.url.as_ref()];
        urls.into_iter().flatten().any(DatabaseUrl::has_changed)
    }

    /// Whether a rule listens to logical messages, so that the stream has to carry them.
    #[must_use]
    pub fn reads_messages(&self) -> bool {
        self.events.iter().any(|rule| rule.on.contains(&RuleOperation::Message))
    }
}

/// Where a configuration is looked for when none is named: the first that exists.
pub const DEFAULT_PATHS: [&str; 2] = ["walhook.toml", "/etc/walhook/walhook.toml"];

/// The commented example; a test holds it against the defaults.
pub const EXAMPLE: &str = include_str!("../../walhook.example.toml");
