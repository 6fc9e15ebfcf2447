//! What all requests to an endpoint have in common, made once for many.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::uri::{Parts, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Uri};
use walhook_core::attempt::FailureKind;
use walhook_core::endpoint::{Endpoint, parse_header, read_url};
use walhook_sign::Keys;

use super::error::failure;
use super::pool::Host;
use crate::egress::Policy;
use crate::exchange::Failure;

/// Endpoints whose targets are kept: those that are busy. A power of two.
const KEPT: usize = 1 << 10;

/// The longest URL and headers of a target that is kept, in bytes, so that all of them are small beside
/// `memory.limit`.
const KEPT_BYTES: usize = 2 << 10;

/// Where requests go.
pub(super) struct Address {
    /// The whole URL, for HTTP/2.
    pub(super) url: Uri,
    /// Path and query, for HTTP/1.
    path: Uri,
    /// The connections that requests may use, and those of HTTP/1.1 alone.
    pub(super) hosts: [Arc<Host>; 2],
    /// The value of `host`, for HTTP/1.
    host: HeaderValue,
}

/// Where an endpoint's requests go, and what each of them says.
pub(super) struct Target {
    pub(super) address: Address,
    headers: HeaderMap,
    pub(super) keys: Keys,
}

/// Path and query may hold what is the customer's alone.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").field("host", &self.host).finish_non_exhaustive()
    }
}

/// So may the headers.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Address {
    /// Of the URL, if requests may go there.
    pub(super) fn new(url: &str, policy: &Policy) -> Result<Self, Failure> {
        let (parsed, url) = read_url(url).map_err(|why| invalid(format!("the url {why}")))?;
        let unreadable = || invalid("the url cannot be read".to_owned());
        policy
            .check_url(&parsed)
            .map_err(|refusal| failure(FailureKind::Forbidden, &refusal.to_string()))?;
        let authority = url.authority().ok_or_else(unreadable)?.as_str().to_ascii_lowercase();
        let https = url.scheme() == Some(&Scheme::HTTPS);
        let host = host(&url, https).ok_or_else(unreadable)?;
        let hosts = [false, true].map(|http1| {
            let authority = authority.clone();
            Arc::new(Host { https, http1, authority, account: None })
        });
        let path = path(&url).ok_or_else(unreadable)?;
        Ok(Self { url, path, hosts, host })
    }

    /// Completes the head of a request there.
    pub(super) fn request(&self, http2: bool, mut headers: HeaderMap) -> (Uri, HeaderMap) {
        if http2 {
            return (self.url.clone(), headers);
        }
        headers.insert(HOST, self.host.clone());
        (self.path.clone(), headers)
    }
}

fn invalid(detail: String) -> Failure {
    failure(FailureKind::Invalid, &detail)
}

impl Target {
    /// Of the endpoint, if requests may go there.
    pub(super) fn new(
        endpoint: &Endpoint,
        policy: &Policy,
        header_prefix: &str,
        user_agent: &HeaderValue,
    ) -> Result<Self, Failure> {
        let address = Address::new(&endpoint.url, policy)?;
        let keys = Keys::parse(&endpoint.secrets).map_err(|error| invalid(error.to_string()))?;

        let mut headers = HeaderMap::with_capacity(10 + endpoint.headers.len());
        for (name, value) in &endpoint.headers {
            let (name, value) = parse_header(name, value, header_prefix)
                .map_err(|complaint| invalid(format!("the headers {complaint}")))?;
            headers.append(name, value);
        }
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.entry(USER_AGENT).or_insert_with(|| user_agent.clone());
        Ok(Self { address, headers, keys })
    }

    /// The headers that all its requests have.
    pub(super) fn headers(&self) -> HeaderMap {
        self.headers.clone()
    }
}

/// The value of `host`: without the port that is the scheme's own.
fn host(url: &Uri, https: bool) -> Option<HeaderValue> {
    let own = if https { 443 } else { 80 };
    let name = url.host()?;
    let value = match url.port_u16().filter(|port| *port != own) {
        Some(port) => HeaderValue::try_from(format!("{name}:{port}")),
        None => HeaderValue::from_str(name),
    };
    value.ok()
}

fn path(url: &Uri) -> Option<Uri> {
    let mut parts = Parts::default();
    let root = || PathAndQuery::from_static("/");
    parts.path_and_query = Some(url.path_and_query().cloned().unwrap_or_else(root));
    Uri::from_parts(parts).ok()
}

/// A target with the endpoint that it is of.
type Slot = Mutex<Option<(Weak<Endpoint>, Arc<Target>)>>;

/// The targets of busy endpoints.
#[derive(Debug)]
pub(super) struct Targets(Box<[Slot]>);

impl Targets {
    pub(super) fn new() -> Self {
        Self((0..KEPT).map(|_| Slot::default()).collect())
    }

    /// The target of this very endpoint: one that was looked up again is another, whatever it says. `make`
    /// makes it, where it is not there.
    pub(super) fn of(
        &self,
        endpoint: &Arc<Endpoint>,
        make: impl FnOnce() -> Result<Target, Failure>,
    ) -> Result<Arc<Target>, Failure> {
        // Blocks of memory lie at multiples of some power of two.
        let address = Arc::as_ptr(endpoint).addr();
        let slot = self.0.get(((address >> 4) ^ (address >> 14)) & (KEPT - 1));
        let kept = slot.and_then(|slot| lock(slot).clone());
        // Its place in memory is nobody else's for as long as there is a reference, be it a weak one.
        if let Some((of, target)) = kept
            && std::ptr::eq(of.as_ptr(), Arc::as_ptr(endpoint))
        {
            return Ok(target);
        }
        let target = Arc::new(make()?);
        if let Some(slot) = slot
            && is_small(endpoint)
        {
            *lock(slot) = Some((Arc::downgrade(endpoint), Arc::clone(&target)));
        }
        Ok(target)
    }
}

/// A panic elsewhere leaves a whole entry.
fn lock(slot: &Slot) -> MutexGuard<'_, Option<(Weak<Endpoint>, Arc<Target>)>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_small(endpoint: &Endpoint) -> bool {
    let headers = endpoint.headers.iter().map(|(name, value)| name.len() + value.len());
    endpoint.url.len() + headers.sum::<usize>() <= KEPT_BYTES
}
