//! What the customer's endpoint table says about one endpoint.

mod header;
mod url;

use std::fmt;
use std::sync::Arc;

use super::event::{AccountId, EndpointId};
use super::heap::{block, shared_text};
pub use header::{HEADERS_BYTES_MAX, HEADERS_MAX, parse_header, read_headers};
pub use url::{URL_BYTES_MAX, read_url};

/// Secrets that sign one request, at most.
pub const SECRETS_MAX: usize = 10;

/// Event types and patterns that one endpoint may ask for.
pub const EVENT_TYPES_MAX: usize = 1_000;

/// One endpoint, as its row stood when it was looked up.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Endpoint {
    /// The row's id.
    pub id: EndpointId,
    /// The account that owns it.
    pub account: AccountId,
    /// Where requests go, as the row says. Whether that is allowed is checked at the attempt.
    #[cfg_attr(feature = "record", serde(with = "crate::record::url"))]
    pub url: String,
    /// Which event types it wants: exact names, `*`, or a prefix such as `subscriber.*`.
    pub event_types: Vec<String>,
    /// The signing secrets; all of them sign. Empty makes the endpoint unusable.
    #[cfg_attr(feature = "record", serde(with = "crate::record::secrets"))]
    pub secrets: Vec<Secret>,
    /// Whether the customer has it switched on.
    pub enabled: bool,
    /// Extra request headers, in the row's order.
    #[cfg_attr(feature = "record", serde(with = "crate::record::headers"))]
    pub headers: Vec<(String, String)>,
    /// The row's upper bound on requests in flight, where it sets one.
    pub max_in_flight: Option<u32>,
    /// The row's upper bound on requests a second, where it sets one.
    #[cfg_attr(feature = "record", serde(with = "crate::record::float_option"))]
    pub rate_per_second: Option<f64>,
    /// Why the row cannot be used (a null secret, say), where it cannot; then what it asks for becomes
    /// dead letters. Names no value of the row, which may be secret.
    #[cfg_attr(feature = "record", serde(with = "crate::record::text_option"))]
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

    /// What the endpoint holds in memory, with its place among its account's, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let texts = |texts: &[String]| texts.iter().map(|text| block(text.len())).sum::<usize>();
        let header = |(name, value): &(String, String)| block(name.len()) + block(value.len());
        block(2 * size_of::<usize>() + size_of::<Self>())
            + size_of::<Arc<Self>>()
            + shared_text(self.id.len())
            + block(self.url.len())
            + block(self.event_types.len() * size_of::<String>())
            + texts(&self.event_types)
            + block(self.secrets.len() * size_of::<Secret>())
            + self.secrets.iter().map(|secret| shared_text(secret.0.len())).sum::<usize>()
            + block(self.headers.len() * size_of::<(String, String)>())
            + self.headers.iter().map(header).sum::<usize>()
            + self.invalid.as_ref().map_or(0, |why| block(why.len()))
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

/// Whether the text stands for all types, or for all with a beginning, and not for one alone.
#[must_use]
pub fn is_pattern(text: &str) -> bool {
    text == "*" || text.ends_with(".*")
}

/// A signing secret, as its row holds it. Never printed, and never written: it cannot be serialised.
///
/// ```compile_fail,E0277
/// fn write(value: &impl serde::Serialize) {}
/// write(&walhook_core::endpoint::Secret::new("whsec_…"));
/// ```
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

/// What an account gets of the slots for requests.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Share {
    /// Its part against others; above 0.
    #[cfg_attr(feature = "record", serde(with = "crate::record::float"))]
    pub weight: f64,
    /// Slots that are its own while it has something to send, of each pool.
    pub reserved: u32,
}

impl Default for Share {
    /// That of every account of which nothing else is said: weight 1, nothing reserved.
    fn default() -> Self {
        Self { weight: 1.0, reserved: 0 }
    }
}

impl From<f64> for Share {
    /// With nothing reserved.
    fn from(weight: f64) -> Self {
        Self { weight, reserved: 0 }
    }
}

/// An account whose endpoints take so many bytes, in memory or as they are read, is [`Routes::is_costly`]: some hundreds
/// of them, which a look-up reads in a few milliseconds.
pub const COSTLY_BYTES: usize = 128 << 10;

/// All that routing knows about one account: its endpoints and its share.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Routes {
    /// The account's endpoints, enabled or not, ordered by the bytes of their ids; often none.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// The account's share; the default unless the accounts table says otherwise.
    pub share: Share,
    /// Why the account's endpoints are not known, where they take more memory than there is, or the
    /// database refuses to read their rows: then none of them is in `endpoints`, and the account's events
    /// cannot be routed.
    #[cfg_attr(feature = "record", serde(with = "crate::record::text_option"))]
    pub refused: Option<String>,
    /// Whether to read them takes so long that other accounts must not wait for it: they are many, their rows are long,
    /// or the database refuses some.
    pub is_costly: bool,
    bytes: usize,
}

impl Routes {
    /// An account's endpoints, in any order, and its share.
    #[must_use]
    pub fn new(mut endpoints: Vec<Arc<Endpoint>>, share: impl Into<Share>) -> Self {
        endpoints.sort_by(|a, b| a.id.cmp(&b.id));
        endpoints.shrink_to_fit();
        let bytes = endpoints.iter().map(|endpoint| endpoint.size_bytes()).sum();
        let is_costly = bytes >= COSTLY_BYTES;
        Self { endpoints, share: share.into(), refused: None, is_costly, bytes }
    }

    /// What is known of an account that has too many endpoints.
    #[must_use]
    pub fn too_large(share: impl Into<Share>) -> Self {
        let why = "the endpoints of its account take more memory than one account is given: raise memory.limit";
        Self::refused(why.to_owned(), share)
    }

    /// What is known of an account whose endpoints cannot be read.
    #[must_use]
    pub fn refused(why: String, share: impl Into<Share>) -> Self {
        let bytes = block(why.len());
        let (endpoints, refused) = (Vec::new(), Some(why));
        Self { endpoints, share: share.into(), refused, is_costly: true, bytes }
    }

    /// The same, of an account that [takes long to read](Routes::is_costly).
    #[must_use]
    pub fn costly(self) -> Self {
        Self { is_costly: true, ..self }
    }

    /// What the routes hold in memory, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        block(2 * size_of::<usize>() + size_of::<Self>()) + self.bytes
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
