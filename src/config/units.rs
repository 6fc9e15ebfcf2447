//! Durations, sizes and secrets as the configuration writes them.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::engine::endpoint::Secret;
use crate::io::log::redact;
use crate::io::pg::DatabaseUrl;

/// An address and a port.
pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        let problem = "is no address with a port; write it as 127.0.0.1:9723 or [::]:9723";
        de::Error::custom(format!("{text:?} {problem}"))
    })
}

/// A size in bytes, written as `256MiB`, `10GiB`, `64KiB` or a plain number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 7] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

impl std::str::FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (digits, unit) = UNITS
            .iter()
            .find_map(|(name, factor)| Some((text.strip_suffix(name)?, *factor)))
            .unwrap_or((text, 1));
        let digits: Option<u64> = digits.trim_end().parse().ok();
        digits
            .and_then(|n| n.checked_mul(unit))
            .map(Self)
            .ok_or_else(|| format!("{text:?} is not a size; write it as 256MiB or 10GiB"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit =
            UNITS.iter().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        let (name, factor) = unit.copied().unwrap_or(("B", 1));
        write!(f, "{}{name}", self.0 / factor)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a size such as 256MiB")]
        enum Raw {
            Bytes(u64),
            Text(String),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Bytes(bytes) => Ok(Self(bytes)),
            Raw::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|e| {
        de::Error::custom(format!("{text:?} is not a duration ({e}); write it as 30s or 5m"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_read_with_and_without_unit_and_printed_back() {
        for (text, bytes) in [("256MiB", 256 << 20), ("10 GiB", 10 << 30), ("7", 7), ("3kB", 3_000)]
        {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)));
        }
        assert_eq!(ByteSize(256 << 20).to_string(), "256MiB");
        assert!("12 parsecs".parse::<ByteSize>().is_err());
        assert!("99999999999TiB".parse::<ByteSize>().is_err(), "overflow is an error");
    }
}
