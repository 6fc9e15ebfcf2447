//! What the customer's endpoint table says about one endpoint.

use std::fmt;
use std::sync::Arc;

use super::event::{AccountId, EndpointId};

/// One endpoint, as its row stood when it was looked up.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// The row's id.
    pub id: EndpointId,
    /// The account that owns it.
    pub account: AccountId,
    /// Where requests go, as the row says; checked at the attempt.
    pub url: String,
    /// Which event types it wants: exact names, `*`, or a prefix such as `subscriber.*`.
    pub event_types: Vec<String>,
    /// The signing secrets; all of them sign. Empty makes the endpoint unusable.
    pub secrets: Vec<Secret>,
    /// Whether the customer has it switched on.
    pub enabled: bool,
    /// Extra request headers, in the row's order.
    pub headers: Vec<(String, String)>,
    /// The row's upper bound on requests in flight, where it sets one.
    pub max_in_flight: Option<u32>,
    /// The row's upper bound on requests a second, where it sets one.
    pub rate_per_second: Option<f64>,
    /// Why the row cannot be used (a null secret, say), where it cannot.
    pub invalid: Option<String>,
}

impl Endpoint {
    /// Whether the endpoint asked for events of this type.
    #[must_use]
    pub fn wants(&self, event_type: &str) -> bool {
        wants(&self.event_types, event_type)
    }

    /// Whether every event that `other` takes was one for this endpoint too.
    ///
    /// May say no where it is so: a pattern is not taken for the exact types that it stands for.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let takes_all = self.event_types.iter().any(|pattern| pattern == "*");
        let takes = |pattern| takes_all || self.event_types.contains(pattern);
        self.enabled && other.event_types.iter().all(takes)
    }

    /// An estimate of the memory that the endpoint holds, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let text = |s: &str| s.len() + 24;
        256 + text(&self.id)
            + text(&self.url)
            + self.event_types.iter().map(|t| text(t)).sum::<usize>()
            + self.headers.iter().map(|(k, v)| text(k) + text(v)).sum::<usize>()
            + self.secrets.len() * 64
    }
}

/// Whether any of `patterns` (exact types, `*`, or a prefix such as `subscriber.*`) fits the type.
#[must_use]
pub fn wants(patterns: &[String], event_type: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        None => pattern == event_type,
        Some("") => true,
        Some(prefix) => prefix.ends_with('.') && event_type.starts_with(prefix),
    })
}

/// A signing secret, as its row holds it. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps the row's text.
    #[must_use]
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The secret's text, to sign with and for nothing else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// All that routing knows about one account: its endpoints and its weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Routes {
    /// The account's endpoints, enabled or not, ordered by the bytes of their ids; often none.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// The account's share against others; 1 unless the accounts table says otherwise. Above 0.
    pub weight: f64,
}

impl Routes {
    /// An account's endpoints, in any order, and its weight.
    #[must_use]
    pub fn new(mut endpoints: Vec<Arc<Endpoint>>, weight: f64) -> Self {
        endpoints.sort_by(|a, b| a.id.cmp(&b.id));
        Self { endpoints, weight }
    }

    /// The endpoint with this id, where the account has it.
    #[must_use]
    pub fn endpoint(&self, id: &EndpointId) -> Option<&Arc<Endpoint>> {
        let at = self.endpoints.binary_search_by(|endpoint| endpoint.id.cmp(id)).ok()?;
        self.endpoints.get(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(types: &[&str]) -> Endpoint {
        Endpoint {
            id: EndpointId::new("1"),
            account: AccountId::new("1"),
            url: "http://localhost/".into(),
            event_types: types.iter().map(|t| (*t).to_owned()).collect(),
            secrets: vec![Secret::new("hush")],
            enabled: true,
            headers: vec![],
            max_in_flight: None,
            rate_per_second: None,
            invalid: None,
        }
    }

    #[test]
    fn endpoint_wants_exact_types_prefixes_and_everything() {
        assert!(endpoint(&["a.b"]).wants("a.b"));
        assert!(!endpoint(&["a.b"]).wants("a.bc"));
        assert!(endpoint(&["a.*"]).wants("a.b"));
        assert!(!endpoint(&["a.*"]).wants("ab.c"));
        assert!(!endpoint(&["a*"]).wants("ab"), "only whole words may be left open");
        assert!(endpoint(&["*"]).wants("anything"));
        assert!(!endpoint(&[]).wants("a.b"));
    }

    #[test]
    fn secret_is_never_printed() {
        assert!(!format!("{:?}", endpoint(&[])).contains("hush"));
    }
}
