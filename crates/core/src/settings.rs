//! The settings that more than one part reads: which tables of the customer's are looked up.

use serde::{Deserialize, Serialize};

/// `delivery.header_prefix`, when the configuration says nothing.
pub const HEADER_PREFIX: &str = "walhook";

/// What every session of ours searches for a name without a schema: nothing that a role may write to.
///
/// `pg_temp` stands last, for it would be searched first if it were left out.
pub const SEARCH_PATH: &str = "pg_catalog, pg_temp";

/// `[endpoints]`: the customer's own table or view, and which column is what.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoints {
    /// `schema.name` of the table or view.
    pub table: String,
    /// The id column.
    #[serde(default = "defaults::id")]
    pub id: String,
    /// The account column.
    #[serde(default = "defaults::account_id")]
    pub account: String,
    /// The URL column.
    #[serde(default = "defaults::url")]
    pub url: String,
    /// The event types column, `text[]`.
    #[serde(default = "defaults::event_types")]
    pub event_types: String,
    /// The secrets column, `text` or `text[]`.
    #[serde(default = "defaults::secret")]
    pub secret: String,
    /// The switch, a `boolean` column.
    #[serde(default = "defaults::enabled")]
    pub enabled: String,
    /// The extra headers column, `jsonb`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<String>,
    /// The column that bounds requests in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<String>,
    /// The column that bounds requests a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_per_second: Option<String>,
    /// Published tables whose changes invalidate cached routes; `[table]` when left out.
    #[serde(default)]
    pub watch: Vec<String>,
    /// The schemas that are searched while the table or view is read: for functions of yours that rely
    /// on a path.
    #[serde(default = "defaults::search_path")]
    pub search_path: String,
}

impl Endpoints {
    /// The published tables whose changes invalidate cached routes: `watch`, or else `[table]`.
    #[must_use]
    pub fn watched(&self) -> &[String] {
        if self.watch.is_empty() { std::slice::from_ref(&self.table) } else { &self.watch }
    }
}

/// `[accounts]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Accounts {
    /// `schema.name` of the table or view.
    pub table: String,
    /// The id column.
    #[serde(default = "defaults::id")]
    pub id: String,
    /// The weight column, a number above 0.
    #[serde(default = "defaults::weight")]
    pub weight: String,
    /// The column of reserved slots, a whole number from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved: Option<String>,
}

mod defaults {
    pub(super) fn id() -> String {
        "id".to_owned()
    }
    pub(super) fn account_id() -> String {
        "account_id".to_owned()
    }
    pub(super) fn url() -> String {
        "url".to_owned()
    }
    pub(super) fn event_types() -> String {
        "event_types".to_owned()
    }
    pub(super) fn secret() -> String {
        "secret".to_owned()
    }
    pub(super) fn enabled() -> String {
        "enabled".to_owned()
    }
    pub(super) fn search_path() -> String {
        super::SEARCH_PATH.to_owned()
    }
    pub(super) fn weight() -> String {
        "weight".to_owned()
    }
}
