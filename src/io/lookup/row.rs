//! One row of the customer's endpoint table → an [`Endpoint`].
//!
//! The row comes as a JSON object, so that a column of another type than expected, or a value that
//! makes no sense, spoils its own endpoint and no other: such an endpoint says why it is `invalid`.

use serde::Deserialize;
use serde_json::Value;

use crate::engine::endpoint::{Endpoint, Secret};
use crate::engine::event::{AccountId, EndpointId};

use super::{LookupError, shape};

#[derive(Deserialize)]
struct Document {
    id: Option<String>,
    url: Value,
    event_types: Value,
    secret: Value,
    enabled: Option<bool>,
    headers: Value,
    max_in_flight: Value,
    rate_per_second: Value,
}

/// Reads one row.
///
/// A null in `enabled` counts as switched off, a null in `event_types` as wanting nothing.
pub(super) fn read(document: &str, account: &AccountId) -> Result<Endpoint, LookupError> {
    // The error's text could hold a piece of a secret.
    let document: Document = serde_json::from_str(document)
        .map_err(|_| shape("its id is null or no text, or its switch is no boolean"))?;
    let id = document.id.ok_or_else(|| shape("its id is null"))?;
    let mut wrong = Vec::new();
    let mut take = |column: &str, complaint: &str| wrong.push(format!("{column} {complaint}"));

    let url = match document.url {
        Value::String(url) => url,
        Value::Null => {
            take("the url", "is null");
            String::new()
        }
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            take("the url", "is no text");
            String::new()
        }
    };
    let event_types = texts(&document.event_types)
        .ok_or_else(|| shape("the event types are no array of text"))?
        .into_iter()
        .flatten()
        .collect();
    let secrets = secrets(&document.secret).unwrap_or_else(|complaint| {
        take("the secret", complaint);
        Vec::new()
    });
    let headers = headers(document.headers).unwrap_or_else(|| {
        take("the headers", "are no object of strings");
        Vec::new()
    });
    let max_in_flight = max_in_flight(&document.max_in_flight).unwrap_or_else(|()| {
        take("the limit of requests in flight", "is no whole number above 0");
        None
    });
    let rate_per_second = rate(&document.rate_per_second).unwrap_or_else(|()| {
        take("the limit of requests a second", "is no number above 0");
        None
    });
    Ok(Endpoint {
        id: EndpointId::new(id),
        account: account.clone(),
        url,
        event_types,
        secrets,
        enabled: document.enabled.unwrap_or(false),
        headers,
        max_in_flight,
        rate_per_second,
        invalid: (!wrong.is_empty()).then(|| wrong.join("; ")),
    })
}

/// A text, an array of texts (whose elements may be null), or null.
fn texts(value: &Value) -> Option<Vec<Option<String>>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::String(text) => Some(vec![Some(text.clone())]),
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::Null => Some(None),
                Value::String(text) => Some(Some(text.clone())),
                Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
            })
            .collect(),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

fn secrets(value: &Value) -> Result<Vec<Secret>, &'static str> {
    let texts = texts(value).ok_or("is neither text nor an array of text")?;
    if texts.is_empty() {
        return Err(if value.is_null() { "is null" } else { "is an empty array" });
    }
    texts
        .into_iter()
        .map(|text| match text {
            None => Err("holds a null"),
            Some(text) if text.is_empty() => Err("is empty"),
            Some(text) => Ok(Secret::new(text)),
        })
        .collect()
}

fn headers(value: Value) -> Option<Vec<(String, String)>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::Object(map) => {
            map.into_iter().map(|(name, value)| Some((name, value.as_str()?.to_owned()))).collect()
        }
        // A column of type text may hold the object as text.
        Value::String(text) => match serde_json::from_str(&text).ok()? {
            object @ Value::Object(_) => headers(object),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_) => None,
        },
        Value::Bool(_) | Value::Number(_) | Value::Array(_) => None,
    }
}

/// A limit above what 32 bits hold is none.
fn max_in_flight(value: &Value) -> Result<Option<u32>, ()> {
    if value.is_null() {
        return Ok(None);
    }
    let limit = value.as_u64().filter(|limit| *limit > 0).ok_or(())?;
    Ok(u32::try_from(limit).ok())
}

fn rate(value: &Value) -> Result<Option<f64>, ()> {
    if value.is_null() {
        return Ok(None);
    }
    value.as_f64().filter(|rate| rate.is_finite() && *rate > 0.0).map(Some).ok_or(())
}
