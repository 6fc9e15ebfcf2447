//! Durations, addresses and secrets as the configuration writes them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serializer};

use walhook_core::endpoint::Secret;
use walhook_core::redact::redact;
use walhook_postgres::pg::DatabaseUrl;

/// An address and a port.
pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        let problem = "is no address with a port; write it as 127.0.0.1:9723 or [::]:9723";
        de::Error::custom(format!("{text:?} {problem}"))
    })
}

/// The longest duration: later times could not be written in RFC 3339 at some point.
const LONGEST: &str = "3650d";

/// The longest time that something is waited for. PostgreSQL takes 24 days at most.
const LONGEST_WAIT: &str = "1h";

/// A duration, up to 3650d.
pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    deserializer.deserialize_str(DurationUpTo(LONGEST))
}

/// For how long something is waited for, up to 1h.
pub(super) fn wait<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    deserializer.deserialize_str(DurationUpTo(LONGEST_WAIT))
}

/// Reads a duration that is no longer than this one.
struct DurationUpTo(&'static str);

impl Visitor<'_> for DurationUpTo {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration such as \"30s\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
        let problem = |e| {
            E::custom(format!("{text:?} is not a duration ({e}); write it as \"30s\" or \"5m\""))
        };
        let read = humantime::parse_duration(text).map_err(problem)?;
        let longest = humantime::parse_duration(self.0).map_err(problem)?;
        if read > longest {
            return Err(E::custom(format!("{text:?} is too long; it may be {} at most", self.0)));
        }
        Ok(read)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Duration, E> {
        Err(E::custom(format!("{number} has no unit; write \"{number}s\" for seconds")))
    }
}

/// Address blocks, or single addresses.
pub(super) fn blocks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let blocks = Vec::<Block>::deserialize(deserializer)?;
    Ok(blocks.into_iter().map(|Block(block)| block).collect())
}

struct Block(IpNet);

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(BlockText)
    }
}

struct BlockText;

impl Visitor<'_> for BlockText {
    type Value = Block;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address block such as \"10.0.0.0/8\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Block, E> {
        let address = || text.parse::<IpAddr>().map(IpNet::from);
        text.parse().or_else(|_| address()).map(Block).map_err(|_| {
            let problem = "is no address and no block; write it as 10.0.0.1 or 10.0.0.0/8";
            E::custom(format!("{text:?} {problem}"))
        })
    }
}

/// A text, or a list of texts.
pub(super) fn one_or_more<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a text or a list of texts")]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }
    OneOrMore::deserialize(deserializer).map(|texts| match texts {
        OneOrMore::One(text) => vec![text],
        OneOrMore::More(texts) => texts,
    })
}

pub(super) fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    String::deserialize(deserializer).map(Secret::new)
}

pub(super) fn optional_secret<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Secret>, D::Error> {
    secret(deserializer).map(Some)
}

pub(super) fn database_url<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<DatabaseUrl, D::Error> {
    secret(deserializer).map(DatabaseUrl::from)
}

pub(super) fn optional_database_url<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<DatabaseUrl>, D::Error> {
    database_url(deserializer).map(Some)
}

pub(super) fn as_duration<S: Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

/// Writes a database URL without what is secret in it.
pub(super) fn hidden_url<S: Serializer>(
    url: &DatabaseUrl,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&redact(url.expose()))
}

pub(super) fn optional_hidden_url<S: Serializer>(
    url: &Option<DatabaseUrl>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match url {
        Some(url) => hidden_url(url, serializer),
        None => serializer.serialize_none(),
    }
}

pub(super) fn optional_hidden<S: Serializer>(
    secret: &Option<Secret>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => serializer.serialize_str(&redact(secret.expose())),
        None => serializer.serialize_none(),
    }
}

/// Writes the scheme and the host of a URL, and nothing of its path.
pub(super) fn optional_host<S: Serializer>(
    secret: &Option<Secret>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let url = secret.as_ref().and_then(|secret| url::Url::parse(secret.expose()).ok());
    match url.as_ref().map(|url| (url.scheme(), url.host_str())) {
        Some((scheme, Some(host))) => {
            serializer.collect_str(&format_args!("{scheme}://{host}/***"))
        }
        _ => optional_stars(secret, serializer),
    }
}

/// Writes that there is one.
pub(super) fn optional_stars<S: Serializer>(
    secret: &Option<Secret>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match secret {
        Some(_) => serializer.serialize_str("***"),
        None => serializer.serialize_none(),
    }
}
