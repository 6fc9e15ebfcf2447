//! A request that an endpoint got, as a person is shown it.

use std::fmt;

use http::HeaderMap;

use super::plan::Endpoint;

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
