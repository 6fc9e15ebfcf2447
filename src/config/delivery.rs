//! `[delivery]` and `[deliveries]`: how requests are sent and tried again, and what is kept of each.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{defaults, units};
use walhook_core::delivery_log::Keep;
use walhook_core::settings::HEADER_PREFIX;
use walhook_core::size::ByteSize;

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
    #[serde(deserialize_with = "units::wait", serialize_with = "units::as_duration")]
    pub timeout: Duration,
    /// For connecting, within `timeout`.
    #[serde(deserialize_with = "units::wait", serialize_with = "units::as_duration")]
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
