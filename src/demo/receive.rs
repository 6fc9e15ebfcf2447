//! From a request that a mock endpoint got to the demo's books.

use std::fmt;

use anyhow::{Context, Result};
use http::HeaderMap;
use serde::Deserialize;

use super::ledger::Change;
use super::plan::{Endpoint, Kind};

/// What of an event's body identifies the change.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(rename = "type", borrow)]
    event_type: std::borrow::Cow<'a, str>,
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    id: i64,
    version: i64,
}

/// Reads the change that a request's body tells of.
///
/// # Errors
/// When the body is not one of the demo's events.
pub fn change_in(body: &[u8]) -> Result<Change> {
    let Body { event_type, data } = serde_json::from_slice(body).context("a request's body")?;
    let kind = Kind::from_event_type(&event_type)
        .with_context(|| format!("{event_type} is no type of the demo's"))?;
    Ok(Change { kind, id: data.id, version: data.version })
}

/// Reads the change that a dead letter's stored row tells of: the body without its envelope.
///
/// # Errors
/// When the row is not one of the demo's.
pub fn change_in_row(event_type: &str, row: &[u8]) -> Result<Change> {
    let row = String::from_utf8_lossy(row);
    let body = format!("{{\"type\":{},{row}}}", serde_json::Value::from(event_type));
    change_in(body.as_bytes())
}

/// One request as it came in, to show.
#[derive(Debug, Clone)]
pub struct Example {
    path: String,
    headers: Vec<(String, String)>,
    body: String,
    secret: String,
}

impl Example {
    /// Takes a request down.
    #[must_use]
    pub fn new(endpoint: &Endpoint, path: &str, headers: &HeaderMap, body: &[u8]) -> Self {
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Self {
            path: path.to_owned(),
            headers: headers.iter().map(header).collect(),
            body: String::from_utf8_lossy(body).into_owned(),
            secret: endpoint.secret(),
        }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    /// Three lines of shell that print the signature, to be compared with the header.
    #[must_use]
    pub fn verification(&self) -> String {
        format!(
            "key=$(echo {} | openssl base64 -d | od -An -v -tx1 | tr -d ' \\n') id={} timestamp={}\nbody={}\n\
             printf '%s.%s.%s' \"$id\" \"$timestamp\" \"$body\" \
             | openssl dgst -sha256 -mac HMAC -macopt \"hexkey:$key\" -binary | openssl base64",
            quoted(self.secret.trim_start_matches("whsec_")),
            quoted(self.header("webhook-id")),
            quoted(self.header("webhook-timestamp")),
            quoted(&self.body)
        )
    }
}

impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "a request, as the endpoint got it:\n\nPOST {} HTTP/1.1", self.path)?;
        for (name, value) in &self.headers {
            writeln!(f, "{name}: {value}")?;
        }
        writeln!(f, "\n{}\n", self.body)?;
        let signature = self.header("webhook-signature");
        let signature = signature.strip_prefix("v1,").unwrap_or(signature);
        writeln!(f, "three lines that verify its signature; they print {signature}\n")?;
        writeln!(f, "{}", self.verification())
    }
}

/// Quotes text for a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::plan;

    #[test]
    fn change_is_read_from_a_body_and_from_a_stored_row() {
        let row = r#""data":{"id":7,"email":"a@b","version":12},"previous":{"version":3}"#;
        let body = format!(r#"{{"id":"evt_1","type":"subscriber.updated",{row}}}"#);
        let expected = Change { kind: Kind::Updated, id: 7, version: 12 };
        assert_eq!(change_in(body.as_bytes()).unwrap(), expected);
        assert_eq!(change_in_row("subscriber.updated", row.as_bytes()).unwrap(), expected);
        assert!(change_in_row("invoice.paid", row.as_bytes()).is_err());
    }

    #[test]
    fn verification_lines_print_the_signature() {
        use base64::Engine;
        use hmac::{Hmac, KeyInit, Mac};
        let [.., endpoint] = plan::endpoints(&plan::accounts())[..] else { panic!("no endpoint") };
        let body = r#"{"id":"evt_1","data":{"email":"o'neill@example.com","note":"50 % \\n"}}"#;
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(endpoint.key().as_bytes()).unwrap();
        mac.update(format!("evt_1.1700000000.{body}").as_bytes());
        let signature =
            base64::engine::general_purpose::STANDARD.encode(mac.finalize().into_bytes());
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", "evt_1".parse().unwrap());
        headers.insert("webhook-timestamp", "1700000000".parse().unwrap());
        headers.insert("webhook-signature", format!("v1,{signature}").parse().unwrap());
        let example = Example::new(&endpoint, "/", &headers, body.as_bytes());

        let lines = example.verification();
        assert_eq!(lines.lines().count(), 3);
        let shell = std::process::Command::new("sh").args(["-c", &lines]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&shell.stdout).trim(), signature);
        assert!(example.to_string().contains(&format!("they print {signature}")));
    }
}
