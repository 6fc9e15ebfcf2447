//! Durations and secrets as the configuration writes them.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de};

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

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|e| {
        de::Error::custom(format!("{text:?} is not a duration ({e}); write it as 30s or 5m"))
    })
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
