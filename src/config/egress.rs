//! `[egress]`: where requests may go, and how they are made.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units;
use walhook_core::endpoint::Secret;
use walhook_http::egress::{HostPattern, Policy};
use walhook_http::transport;

/// How requests are made.
pub(super) fn requests(
    header_prefix: &str,
    user_agent: &str,
    timeout: Duration,
    connect_timeout: Duration,
) -> transport::Requests {
    let (header_prefix, user_agent) = (header_prefix.to_owned(), user_agent.to_owned());
    transport::Requests { header_prefix, user_agent, timeout, connect_timeout }
}

/// `[egress]`: where requests may go.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Egress {
    /// Address blocks that may be contacted although they are private.
    #[serde(deserialize_with = "units::blocks")]
    pub allow: Vec<ipnet::IpNet>,
    /// Address blocks that may not, although they are public. `deny` wins.
    #[serde(deserialize_with = "units::blocks")]
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
    pub(super) fn of_transport(&self) -> transport::Egress {
        transport::Egress { policy: self.policy(), proxy: self.proxy.clone() }
    }
}
