//! Where requests may go: endpoints' URLs are strangers' input.
//!
//! Two checks: the URL when an attempt begins (its scheme, its host's name, and its address where the
//! host is one), and every address that the name resolves to, when a connection is made. Only the
//! second stands between a name and a private network, for a name can resolve otherwise each time.

mod host;
mod proxy;
mod proxy_health;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

pub use host::HostPattern;
pub use proxy::{
    Greeting, Proxy, ProxyError, TUNNEL_ANSWER_MAX, TunnelAnswer, greeting, tunnel_answer,
};
pub use proxy_health::{Blame, Opened, ProxyHealth, ProxyTrouble};

/// Why something must not be contacted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Neither http nor https.
    #[error("scheme {0:?} is not http or https")]
    Scheme(String),
    /// http, where only https is allowed.
    #[error("http is refused by egress.https_only")]
    NotHttps,
    /// The URL carries a user name or password.
    #[error("the URL carries credentials; use a header instead")]
    Credentials,
    /// The host is not among those allowed.
    #[error("host {0:?} is not in egress.only_hosts")]
    Host(String),
    /// The address belongs to a block that must not be contacted.
    #[error("address {address} is {block}; egress.allow can permit its block")]
    Address {
        /// The address.
        address: IpAddr,
        /// What its block is.
        block: &'static str,
    },
    /// The address belongs to a block of `egress.deny`.
    #[error("address {0} is refused by egress.deny")]
    Denied(IpAddr),
}

/// IPv4 blocks that are nobody's public server.
///
/// Source: IANA IPv4 Special-Purpose Address Registry.
const V4: [(Ipv4Addr, u8, &str); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, "this network"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "shared (carrier NAT)"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local (cloud metadata)"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "reserved for protocols"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "documentation"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "6to4 relay"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmarking"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
    (Ipv4Addr::new(168, 63, 129, 16), 32, "a cloud's metadata service"),
];

/// IPv6 blocks likewise; those that embed an IPv4 address are judged by that address too.
///
/// Source: IANA IPv6 Special-Purpose Address Registry.
const V6: [(Ipv6Addr, u8, &str); 10] = [
    (Ipv6Addr::UNSPECIFIED, 128, "unspecified"),
    (Ipv6Addr::LOCALHOST, 128, "loopback"),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, "local translation"),
    (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64, "discard-only"),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "documentation"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "documentation"),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, "private (cloud metadata)"),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "link-local"),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, "site-local"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "multicast"),
];

/// What the configuration allows.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Address blocks that may be contacted although they are private.
    pub allow: Vec<IpNet>,
    /// Address blocks that may not, although they are public. `deny` wins.
    pub deny: Vec<IpNet>,
    /// When not empty, no other host is contacted.
    pub only_hosts: Vec<HostPattern>,
    /// Refuse `http://`.
    pub https_only: bool,
}

impl Policy {
    /// Whether a request to this URL may begin.
    ///
    /// # Errors
    /// Why not.
    pub fn check_url(&self, url: &Url) -> Result<(), Refusal> {
        match url.scheme() {
            "https" => {}
            "http" if self.https_only => return Err(Refusal::NotHttps),
            "http" => {}
            other => return Err(Refusal::Scheme(other.to_owned())),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refusal::Credentials);
        }
        if !self.only_hosts.is_empty() && !self.only_hosts.iter().any(|only| only.matches(url)) {
            let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
            let host = url.host_str().unwrap_or_default();
            return Err(Refusal::Host(format!("{host}{port}")));
        }
        match url.host() {
            Some(Host::Ipv4(address)) => self.check_address(address.into()),
            Some(Host::Ipv6(address)) => self.check_address(address.into()),
            Some(Host::Domain(_)) | None => Ok(()),
        }
    }

    /// Whether this address may be connected to. `deny` wins over `allow`, and `allow` over the
    /// built-in blocks; both are looked up for an embedded IPv4 address too.
    ///
    /// # Errors
    /// Why not.
    pub fn check_address(&self, address: IpAddr) -> Result<(), Refusal> {
        let embedded = embedded_v4(address).map(IpAddr::V4);
        let forms = || std::iter::once(address).chain(embedded);
        let within =
            |blocks: &[IpNet]| forms().any(|form| blocks.iter().any(|b| b.contains(&form)));
        if within(&self.deny) {
            return Err(Refusal::Denied(address));
        }
        if within(&self.allow) {
            return Ok(());
        }
        match forms().find_map(special_block) {
            Some(block) => Err(Refusal::Address { address, block }),
            None => Ok(()),
        }
    }
}

fn special_block(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => V4.iter().find_map(|(block, bits, name)| {
            Ipv4Net::new_assert(*block, *bits).contains(&address).then_some(*name)
        }),
        IpAddr::V6(address) => V6.iter().find_map(|(block, bits, name)| {
            Ipv6Net::new_assert(*block, *bits).contains(&address).then_some(*name)
        }),
    }
}

/// The IPv4 address that an IPv6 address leads to: mapped, compatible, NAT64, 6to4 or Teredo.
fn embedded_v4(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(address) = address else { return None };
    let [a, b, c, d, e, f, g, h] = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0 | 0xffff) | (0, 0, 0, 0, 0xffff, 0) => Some(v4(g, h)),
        (0x64, 0xff9b, 0, 0, 0, 0) => Some(v4(g, h)),
        (0x2002, ..) => Some(v4(b, c)),
        // Teredo holds the client's address with all bits turned.
        (0x2001, 0, ..) => Some(v4(!g, !h)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(allow: &[&str], deny: &[&str]) -> Policy {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Policy { allow: nets(allow), deny: nets(deny), ..Policy::default() }
    }

    fn refused(policy: &Policy, address: &str) -> bool {
        policy.check_address(address.parse().unwrap()).is_err()
    }

    proptest! {
        #[test]
        fn address_of_a_special_block_is_refused_in_every_form(at in 0..V4.len(), host: u32) {
            let (block, bits, _) = V4[at];
            let mask = u32::MAX.checked_shr(u32::from(bits)).unwrap_or(0);
            let v4 = Ipv4Addr::from(u32::from(block) | (host & mask));
            let [a, b, c, d] = v4.octets();
            let [high, low] = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
            let policy = Policy::default();
            for address in [
                IpAddr::V4(v4),
                IpAddr::V6(v4.to_ipv6_mapped()),
                IpAddr::V6(v4.to_ipv6_compatible()),
                IpAddr::V6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low)),
                IpAddr::V6(Ipv6Addr::new(0x2002, high, low, 1, 2, 3, 4, 5)),
                IpAddr::V6(Ipv6Addr::new(0x2001, 0, 1, 2, 3, 4, !high, !low)),
            ] {
                prop_assert!(policy.check_address(address).is_err(), "{address}");
            }
        }

        #[test]
        fn address_of_a_special_ipv6_block_is_refused(at in 0..V6.len(), host: u128) {
            let (block, bits, _) = V6[at];
            let mask = u128::MAX.checked_shr(u32::from(bits)).unwrap_or(0);
            let address = Ipv6Addr::from(u128::from(block) | (host & mask));
            prop_assert!(Policy::default().check_address(address.into()).is_err(), "{address}");
        }
    }

    #[test]
    fn public_addresses_pass() {
        for address in ["1.1.1.1", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1111"]
        {
            assert!(!refused(&Policy::default(), address), "{address}");
        }
    }

    #[test]
    fn allow_permits_a_block_and_deny_wins() {
        let allowing = policy(&["10.1.0.0/16"], &["10.1.2.0/24"]);
        assert!(!refused(&allowing, "10.1.1.1"));
        assert!(!refused(&allowing, "::ffff:10.1.1.1"));
        assert!(refused(&allowing, "10.1.2.1"));
        assert!(refused(&allowing, "10.2.1.1"));
        assert!(refused(&policy(&[], &["1.1.1.0/24"]), "1.1.1.1"));
    }

    #[test]
    fn url_is_judged_by_scheme_credentials_host_and_address() {
        let check = |policy: &Policy, url: &str| policy.check_url(&Url::parse(url).unwrap());
        let open = Policy::default();
        assert_eq!(check(&open, "https://example.com/a"), Ok(()));
        assert!(matches!(check(&open, "ftp://example.com/"), Err(Refusal::Scheme(_))));
        assert_eq!(check(&open, "https://u:p@example.com/"), Err(Refusal::Credentials));
        // The URL parser has already made an address of every way to write one.
        for url in ["http://127.1/", "http://0x7f000001/", "http://2130706433/", "http://[::1]/"] {
            assert!(matches!(check(&open, url), Err(Refusal::Address { .. })), "{url}");
        }
        let strict =
            Policy { https_only: true, only_hosts: vec!["a.com".parse().unwrap()], ..open };
        assert_eq!(check(&strict, "http://a.com/"), Err(Refusal::NotHttps));
        assert!(matches!(check(&strict, "https://b.com/"), Err(Refusal::Host(_))));
        assert_eq!(check(&strict, "https://A.com/"), Ok(()));
    }
}
