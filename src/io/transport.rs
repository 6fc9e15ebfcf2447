//! One attempt over HTTP: a signed request goes out, an [`Outcome`] comes back, and nothing else.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Method};
use reqwest::{Client, Request, Response, redirect, retry};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls_platform_verifier::Verifier;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::clock::unix_us;
use super::guard::{GuardedResolver, ResolveError};
use crate::config;
use crate::engine::attempt::{Answer, Attempt, Failure, FailureKind, Outcome};
use crate::engine::egress::Policy;
use crate::engine::retry::parse_retry_after;
use crate::engine::sign;

/// Of an answer's body, what is read so that the connection can be used again. A longer answer costs
/// the endpoint its connection, not us our memory.
const BODY_MAX: usize = 64 << 10;

/// Of an answer's body, what is kept for the operator.
const EXCERPT_MAX: usize = 1 << 10;

/// Of an error's text likewise.
const DETAIL_MAX: usize = 1 << 10;

/// An idle connection is closed after this time: below the 5 s that the least patient common servers
/// keep it (Node.js, uvicorn), so that a request seldom meets a connection that the other side is just
/// closing; and so that idle sockets are at most what a few seconds' requests have opened.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// Idle connections kept for one host: as many as one endpoint has requests in flight by default.
const POOL_IDLE_PER_HOST: usize = 64;

/// As much as is read of one answer.
const HTTP2_STREAM_WINDOW: u32 = 64 << 10;

/// Sixteen answers at once on one connection.
const HTTP2_CONNECTION_WINDOW: u32 = 1 << 20;

/// A connection with requests in flight that is silent for so long is asked whether it lives: below
/// the default timeout, so that a retry already finds a new connection.
const HTTP2_PING_AFTER: Duration = Duration::from_secs(5);

/// And this is how long it may take to say so.
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Headers that an endpoint's row may not set: ours, and those that belong to the connection.
const RESERVED: [&str; 12] = [
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "upgrade",
    "te",
    "trailer",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
];

/// The settings do not make a client.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The prefix or the user agent cannot stand in a header.
    #[error("{key} {value:?} cannot stand in a header")]
    Header {
        /// The configuration's key.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// There is nothing to judge certificates by.
    #[error("cannot set up TLS; install the system's CA certificates")]
    Tls(#[source] rustls::Error),
    /// The HTTP client refused.
    #[error("cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
}

/// Sends attempts. Cheap to clone; all clones share one pool of connections.
#[derive(Debug, Clone)]
pub struct Transport {
    client: Client,
    policy: Arc<Policy>,
    timeout: Duration,
    user_agent: HeaderValue,
    attempt_header: HeaderName,
    replay_header: HeaderName,
}

impl Transport {
    /// A transport for `[delivery]` and `[egress]`.
    ///
    /// # Errors
    /// [`TransportError`]
    pub fn new(
        delivery: &config::Delivery,
        egress: &config::Egress,
    ) -> Result<Self, TransportError> {
        let tls = tls_config([]).map_err(TransportError::Tls)?;
        Self::with_tls(delivery, egress, tls)
    }

    fn with_tls(
        delivery: &config::Delivery,
        egress: &config::Egress,
        tls: ClientConfig,
    ) -> Result<Self, TransportError> {
        let header = |suffix: &str| {
            let prefix = delivery.header_prefix.to_ascii_lowercase();
            HeaderName::try_from(format!("{prefix}-{suffix}")).map_err(|_| TransportError::Header {
                key: "delivery.header_prefix",
                value: delivery.header_prefix.clone(),
            })
        };
        let user_agent =
            HeaderValue::try_from(&delivery.user_agent).map_err(|_| TransportError::Header {
                key: "delivery.user_agent",
                value: delivery.user_agent.clone(),
            })?;
        let policy = Arc::new(Policy::new(egress));
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            // Whatever else is built into reqwest: an answer is to be as large as it says.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            // The address that a redirect names was not the customer's choice, and not checked.
            .redirect(redirect::Policy::none())
            // Trying again is the dispatcher's decision.
            .retry(retry::never())
            .connect_timeout(delivery.connect_timeout)
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_IDLE_PER_HOST)
            .tcp_nodelay(true)
            // What an HTTP/2 server may send before anyone reads it: it is held in our memory.
            .http2_initial_stream_window_size(HTTP2_STREAM_WINDOW)
            .http2_initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
            // A request that times out takes an HTTP/1 connection with it, but not an HTTP/2 one.
            .http2_keep_alive_interval(HTTP2_PING_AFTER)
            .http2_keep_alive_timeout(HTTP2_PING_TIMEOUT)
            .dns_resolver(Arc::new(GuardedResolver::new(Arc::clone(&policy))))
            .build()
            .map_err(TransportError::Client)?;
        Ok(Self {
            client,
            policy,
            timeout: delivery.timeout,
            user_agent,
            attempt_header: header("attempt")?,
            replay_header: header("replay")?,
        })
    }

    /// The HTTP client itself, for a comparison with bare requests.
    #[must_use]
    pub fn http_client(&self) -> &Client {
        &self.client
    }

    /// Makes one attempt. What goes wrong is in the outcome.
    ///
    /// Takes `delivery.timeout` at most, the answer's body included. Dropping it abandons the request.
    pub async fn send(&self, attempt: &Attempt) -> Outcome {
        let started = Instant::now();
        let result = match self.request(attempt) {
            Ok(request) => timeout_at(started + self.timeout, self.exchange(request))
                .await
                .unwrap_or_else(|_| Err(self.timed_out())),
            Err(failure) => Err(failure),
        };
        Outcome { result, elapsed: started.elapsed() }
    }

    async fn exchange(&self, request: Request) -> Result<Answer, Failure> {
        let response = self.client.execute(request).await.map_err(|error| self.classify(error))?;
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| parse_retry_after(value, unix_us() / 1_000_000));
        let excerpt = self.read_body(response).await;
        Ok(Answer { status: status.as_u16(), retry_after, excerpt })
    }

    /// Reads the answer to its end or to the bound, and keeps the beginning of a refusal.
    ///
    /// The status has been said; that the connection breaks in mid-sentence does not unsay it.
    async fn read_body(&self, mut response: Response) -> String {
        let refused = !response.status().is_success();
        let mut kept = Vec::new();
        let mut read = 0;
        while read <= BODY_MAX {
            let Ok(Some(chunk)) = response.chunk().await else { break };
            read += chunk.len();
            if refused {
                let room = EXCERPT_MAX.saturating_sub(kept.len());
                kept.extend(chunk.iter().take(room));
            }
        }
        printable(&String::from_utf8_lossy(&kept), EXCERPT_MAX)
    }

    fn request(&self, attempt: &Attempt) -> Result<Request, Failure> {
        let invalid = |detail: String| failure(FailureKind::Invalid, &detail);
        let url = Url::parse(&attempt.endpoint.url)
            .map_err(|error| invalid(format!("the URL cannot be read: {error}")))?;
        if !url.has_host() {
            return Err(invalid("the URL names no host".to_owned()));
        }
        self.policy
            .check_url(&url)
            .map_err(|refusal| failure(FailureKind::Forbidden, &refusal.to_string()))?;

        let body = attempt.event.body();
        let id = attempt.event.id.to_string();
        let timestamp = unix_us() / 1_000_000;
        let signature = sign::sign(&id, timestamp, &body, &attempt.endpoint.secrets)
            .map_err(|error| invalid(error.to_string()))?;
        let ours = |text: &str| {
            HeaderValue::from_str(text)
                .map_err(|_| invalid("a header cannot be written".to_owned()))
        };
        let mut headers = HeaderMap::with_capacity(8 + attempt.endpoint.headers.len());
        for (name, value) in &attempt.endpoint.headers {
            let (name, value) = self.own_header(name, value).map_err(invalid)?;
            headers.append(name, value);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.entry(USER_AGENT).or_insert_with(|| self.user_agent.clone());
        headers.insert("webhook-id", ours(&id)?);
        headers.insert("webhook-timestamp", ours(&timestamp.to_string())?);
        headers.insert("webhook-signature", ours(&signature)?);
        headers.insert(&self.attempt_header, attempt.number.into());
        if attempt.replay {
            headers.insert(&self.replay_header, HeaderValue::from_static("true"));
        }
        tracing::trace!(%id, body = %String::from_utf8_lossy(&body), "sending");
        let mut request = Request::new(Method::POST, url);
        *request.headers_mut() = headers;
        *request.body_mut() = Some(body.into());
        Ok(request)
    }

    /// A header of the endpoint's row, or what is wrong with it; never its value, which may be secret.
    fn own_header(&self, name: &str, value: &str) -> Result<(HeaderName, HeaderValue), String> {
        let parsed =
            HeaderName::try_from(name).map_err(|_| format!("{name:?} is not a header's name"))?;
        let ours = [&self.attempt_header, &self.replay_header].contains(&&parsed);
        if ours || RESERVED.contains(&parsed.as_str()) {
            return Err(format!("the row may not set the header {parsed}"));
        }
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| format!("the value of header {parsed} cannot stand in a header"))?;
        value.set_sensitive(true);
        Ok((parsed, value))
    }

    fn timed_out(&self) -> Failure {
        failure(FailureKind::Timeout, &format!("no whole answer within {:?}", self.timeout))
    }

    /// The one place that decides what an error of the HTTP client means.
    fn classify(&self, error: reqwest::Error) -> Failure {
        let error = error.without_url(); // a query may hold a token
        let mut kind = if error.is_builder() {
            FailureKind::Invalid
        } else if error.is_connect() {
            FailureKind::Connect
        } else {
            FailureKind::Protocol
        };
        let mut detail = Vec::new();
        let mut cause = error.source();
        while let Some(error) = cause {
            if let Some(resolve) = error.downcast_ref::<ResolveError>() {
                kind = match resolve {
                    ResolveError::Forbidden(_) => FailureKind::Forbidden,
                    ResolveError::Dns(_) | ResolveError::Nothing => FailureKind::Dns,
                };
            } else if is_tls(error) {
                kind = FailureKind::Tls;
            }
            detail.push(error.to_string());
            cause = error.source();
        }
        detail.dedup();
        if detail.is_empty() {
            detail.push(error.to_string());
        }
        if error.is_timeout() && kind == FailureKind::Connect {
            detail = vec!["no connection within delivery.connect_timeout".to_owned()];
        }
        failure(kind, &detail.join(": "))
    }
}

/// Judges certificates as the operating system does, and by the given roots too.
///
/// Names its provider, so that no process-wide default has to be installed before.
fn tls_config(
    roots: impl IntoIterator<Item = CertificateDer<'static>>,
) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier::new_with_extra_roots(roots, Arc::clone(&provider))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous() // only to the builder: the verifier is the platform's
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// rustls' errors come wrapped in I/O errors, one or more of them, whose sources they are not.
fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>() || wrapped.is_some_and(|inner| is_tls(inner))
}

fn failure(kind: FailureKind, detail: &str) -> Failure {
    Failure { kind, detail: printable(detail, DETAIL_MAX) }
}

/// Text that a terminal and a log take as it is: the first `max` bytes, without control characters
/// and those that turn the direction of writing.
fn printable(text: &str, max: usize) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let shown = match c {
            '\n' => c,
            '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => char::REPLACEMENT_CHARACTER,
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        };
        if out.len() + shown.len_utf8() > max {
            break;
        }
        out.push(shown);
    }
    out
}

#[cfg(test)]
mod tests;
