//! The patterns of `egress.only_hosts`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// Which hosts, and on which port, may be contacted.
///
/// Written as `hooks.example.com` (that name), `*.example.com` (every name below it, not itself) or
/// an address (`192.0.2.7`, `2001:db8::7`, `[2001:db8::7]`), and `:port` behind any of them. Without
/// a port it is every port. Names are compared as URLs have them: in lower case and in punycode.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPattern {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    One(Host),
    /// Holds `.example.com`.
    Below(String),
}

/// The text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a host; write hooks.example.com, *.example.com or an address, and :port to name a port"
)]
pub struct HostPatternError(String);

impl HostPattern {
    /// Whether the URL leads to such a host.
    #[must_use]
    pub fn matches(&self, url: &Url) -> bool {
        let host = url.host().is_some_and(|host| match (&self.hosts, host) {
            (Hosts::One(one), host) => *one == host.to_owned(),
            (Hosts::Below(suffix), Host::Domain(name)) => {
                name.len() > suffix.len() && name.ends_with(suffix.as_str())
            }
            (Hosts::Below(_), Host::Ipv4(_) | Host::Ipv6(_)) => false,
        });
        host && self.port.is_none_or(|port| url.port_or_known_default() == Some(port))
    }
}

impl FromStr for HostPattern {
    type Err = HostPatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || HostPatternError(text.to_owned());
        if let Ok(address) = text.parse() {
            return Ok(Self { hosts: Hosts::One(Host::Ipv6(address)), port: None });
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => {
                (name, Some(port.parse().ok().filter(|port| *port != 0).ok_or_else(error)?))
            }
            Some(_) | None => (text, None),
        };
        // The parser itself takes a star, and an escaped character for the character.
        let host = |name: &str| match Host::parse(name) {
            Ok(host) if !name.contains(['*', '%']) => Ok(host),
            Ok(_) | Err(_) => Err(error()),
        };
        let hosts = match name.strip_prefix("*.") {
            None => Hosts::One(host(name)?),
            Some(parent) => match host(parent)? {
                Host::Domain(parent) => Hosts::Below(format!(".{parent}")),
                Host::Ipv4(_) | Host::Ipv6(_) => return Err(error()),
            },
        };
        Ok(Self { hosts, port })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hosts {
            Hosts::One(host) => write!(f, "{host}")?,
            Hosts::Below(suffix) => write!(f, "*{suffix}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl TryFrom<String> for HostPattern {
    type Error = HostPatternError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> Self {
        pattern.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, url: &str) -> bool {
        pattern.parse::<HostPattern>().unwrap().matches(&Url::parse(url).unwrap())
    }

    #[test]
    fn pattern_matches_the_hosts_that_it_names_and_no_others() {
        for (pattern, yes, no) in [
            ("a.com", "https://A.com/x", "https://b.a.com/"),
            ("A.com", "https://a.com:8443/", "https://a.com.evil.net/"),
            ("a.com:443", "https://a.com/", "http://a.com/"),
            ("*.a.com", "https://x.y.a.com/", "https://a.com/"),
            ("*.a.com", "https://b.a.com/", "https://evila.com/"),
            ("*.a.com:8443", "https://b.a.com:8443/", "https://b.a.com/"),
            ("bücher.example", "https://xn--bcher-kva.example/", "https://bucher.example/"),
            ("192.0.2.7", "http://192.0.2.7/", "http://192.0.2.8/"),
            ("192.0.2.7:80", "http://0xc0000207/", "https://192.0.2.7/"),
            ("2001:db8::7", "http://[2001:db8:0::7]/", "http://[2001:db8::8]/"),
            ("[2001:db8::7]", "https://[2001:db8::7]:9/", "http://192.0.2.7/"),
            ("[2001:db8::7]:80", "http://[2001:db8::7]/", "https://[2001:db8::7]/"),
        ] {
            assert!(matches(pattern, yes), "{pattern} {yes}");
            assert!(!matches(pattern, no), "{pattern} {no}");
        }
    }

    #[test]
    fn pattern_that_is_none_is_refused_by_name() {
        for text in [
            "",
            ":80",
            "a.com:",
            "a.com:0",
            "a.com:x",
            "a.com:99999",
            "a.com/x",
            "http://a.com",
            "*",
            "*.",
            "*a.com",
            "a.*.com",
            "*.192.0.2.7",
            "[::1",
            "u@a.com",
            "a b.com",
            "a%2ecom",
        ] {
            let error = text.parse::<HostPattern>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn pattern_is_printed_as_it_is_written() {
        for text in ["a.com", "*.a.com:8443", "192.0.2.7:80", "[2001:db8::7]:80"] {
            assert_eq!(text.parse::<HostPattern>().unwrap().to_string(), text);
        }
    }
}
