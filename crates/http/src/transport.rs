//! One attempt over HTTP: a signed request goes out, an [`Exchange`] comes back, and nothing else.

mod clients;
mod connect;
mod error;
mod guard;
mod memory;
mod workers;

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls_platform_verifier::Verifier;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::resolve::{Lookup, Resolver, system_lookup};
use crate::egress::{Policy, Proxy, ProxyError};
use crate::exchange::{Answer, Exchange, Failure};
use crate::retry_after::parse_retry_after;
use clients::Clients;
use connect::{ACCOUNT, TcpConnector};
use error::{failure, printable};
use memory::AnswerMemory;
use walhook_core::attempt::{Attempt, Delivery, FailureKind};
use walhook_core::endpoint::{Endpoint, Secret, parse_header, read_url};
use walhook_core::position::EventId;
use walhook_process::clock::unix_us;
use walhook_sign::{self as sign, SignError};
use workers::Workers;

/// Of an answer's body, what is read so that the connection can be used again. A longer answer costs
/// the endpoint its connection, not us our memory.
const BODY_MAX: usize = 64 << 10;

/// Of an answer's body, what is kept for the operator.
const EXCERPT_MAX: usize = 1 << 10;

/// Large bodies that are signed at a time.
const SIGNING: usize = 2;

/// How requests are made.
#[derive(Debug, Clone)]
pub struct Requests {
    /// The prefix of the headers that are ours.
    pub header_prefix: String,
    /// The `user-agent` header.
    pub user_agent: String,
    /// For one whole request.
    pub timeout: Duration,
    /// For connecting, within `timeout`.
    pub connect_timeout: Duration,
}

/// Where requests may go, and by which way.
#[derive(Debug, Clone, Default)]
pub struct Egress {
    /// Which URLs and addresses.
    pub policy: Policy,
    /// An `http://` URL: all requests go through tunnels of this proxy.
    pub proxy: Option<Secret>,
}

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
    /// The operating system starts no threads.
    #[error("cannot start the threads that send requests")]
    Threads(#[source] std::io::Error),
    /// The proxy cannot be used.
    #[error("egress.proxy {0}")]
    Proxy(#[from] ProxyError),
}

/// Sends attempts. Cheap to clone; all clones share one pool of connections.
#[derive(Debug, Clone)]
pub struct Transport {
    clients: Arc<Clients>,
    memory: Arc<AnswerMemory>,
    workers: Arc<Workers>,
    policy: Arc<Policy>,
    timeout: Duration,
    user_agent: HeaderValue,
    attempt_header: HeaderName,
    replay_header: HeaderName,
    header_prefix: String,
    /// Turns at signing what takes long.
    signing: Arc<Semaphore>,
}

/// What is posted where.
struct Post<'a> {
    endpoint: &'a Endpoint,
    id: EventId,
    body: Bytes,
    number: u32,
    replay: bool,
}

/// What is signed once an attempt, however often it is sent.
struct Signed {
    id: String,
    /// Seconds since 1970.
    timestamp: i64,
    signature: String,
}

impl<'a> Post<'a> {
    fn of(attempt: &'a Attempt) -> Self {
        let Attempt { endpoint, deliveries } = attempt;
        assert!(deliveries.as_slice().len() == 1, "a request has one event");
        let Delivery { event, number, replay, .. } = deliveries.first();
        Self { endpoint, id: event.id, body: event.body(), number: *number, replay: *replay }
    }
}

impl Transport {
    /// A transport that makes such requests, where `egress` allows it. Units: `memory_limit` is `memory.limit`
    /// in bytes, of which answers may take a part.
    ///
    /// # Errors
    /// [`TransportError`]
    pub fn new(
        requests: &Requests,
        egress: &Egress,
        memory_limit: usize,
    ) -> Result<Self, TransportError> {
        let tls = tls_config([]).map_err(TransportError::Tls)?;
        Self::with(requests, egress, memory_limit, tls, system_lookup())
    }

    /// With this judge of certificates, and names resolved so.
    fn with(
        requests: &Requests,
        egress: &Egress,
        memory_limit: usize,
        tls: ClientConfig,
        lookup: Arc<Lookup>,
    ) -> Result<Self, TransportError> {
        let header = |suffix: &str| {
            let prefix = requests.header_prefix.to_ascii_lowercase();
            HeaderName::try_from(format!("{prefix}-{suffix}")).map_err(|_| TransportError::Header {
                key: "delivery.header_prefix",
                value: requests.header_prefix.clone(),
            })
        };
        let user_agent =
            HeaderValue::try_from(&requests.user_agent).map_err(|_| TransportError::Header {
                key: "delivery.user_agent",
                value: requests.user_agent.clone(),
            })?;
        let policy = Arc::new(egress.policy.clone());
        // Half of the time for connecting, so that the other half is left for what was known before.
        let resolver = Resolver::new(Arc::clone(&policy), lookup, requests.connect_timeout / 2);
        let proxy = egress.proxy.as_ref().map(Proxy::parse).transpose()?;
        let memory = Arc::new(AnswerMemory::new(memory_limit));
        let tcp = TcpConnector::new(resolver, proxy, requests.connect_timeout, Arc::clone(&memory));
        Ok(Self {
            clients: Arc::new(Clients::new(&tcp, tls)),
            memory,
            workers: Arc::new(Workers::start().map_err(TransportError::Threads)?),
            policy,
            timeout: requests.timeout,
            user_agent,
            attempt_header: header("attempt")?,
            replay_header: header("replay")?,
            header_prefix: requests.header_prefix.clone(),
            signing: Arc::new(Semaphore::new(SIGNING)),
        })
    }

    /// Makes one attempt. What goes wrong is in the outcome.
    ///
    /// Takes `delivery.timeout` at most, the answer's body included. Dropping it abandons the request.
    pub async fn send(&self, attempt: &Attempt) -> Exchange {
        self.attempt(attempt, false).await
    }

    /// As [`Transport::send`], but keeps the beginning of a 2xx's body too: for a person who asks.
    pub async fn probe(&self, attempt: &Attempt) -> Exchange {
        self.attempt(attempt, true).await
    }

    /// The threads that requests are made on, and nothing else.
    #[must_use]
    pub fn threads(&self) -> &Handle {
        self.workers.handle()
    }

    /// Bytes that connections and unfinished answers hold.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.memory.bytes()
    }

    async fn attempt(&self, attempt: &Attempt, keep: bool) -> Exchange {
        self.post(&Post::of(attempt), keep).await
    }

    /// Posts what no change made, as [`Transport::send`] posts an event: signed, and under the same
    /// rules. `number` counts the attempts from 1.
    pub async fn post_notice(
        &self,
        endpoint: &Endpoint,
        id: EventId,
        body: Bytes,
        number: u32,
    ) -> Exchange {
        self.post(&Post { endpoint, id, body, number, replay: false }, false).await
    }

    async fn post(&self, post: &Post<'_>, keep: bool) -> Exchange {
        let started = Instant::now();
        let resends = AtomicU32::new(0);
        let exchange =
            ACCOUNT.scope(post.endpoint.account.clone(), self.exchange(post, keep, &resends));
        let ended = timeout_at(started + self.timeout, exchange).await;
        let result = ended.unwrap_or_else(|_| Err(self.timed_out()));
        Exchange { result, elapsed: started.elapsed(), resends: resends.into_inner() }
    }

    async fn exchange(
        &self,
        post: &Post<'_>,
        keep: bool,
        resends: &AtomicU32,
    ) -> Result<Answer, Failure> {
        let uri = self.target(post)?;
        let signed = self.sign(post).await?;
        let response = self.clients.send(|| self.request(post, &uri, &signed), resends).await?;
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| parse_retry_after(value, unix_us() / 1_000_000));
        let keep = keep || !status.is_success();
        let excerpt = read_body(response, keep).await;
        Ok(Answer { status: status.as_u16(), retry_after, excerpt })
    }

    /// Where the request goes, if it may.
    fn target(&self, post: &Post<'_>) -> Result<Uri, Failure> {
        let invalid = |detail: String| failure(FailureKind::Invalid, &detail);
        let (url, uri) = read_url(&post.endpoint.url)
            .map_err(|complaint| invalid(format!("the url {complaint}")))?;
        let url = Url::parse(url).map_err(|_| invalid("the url cannot be read".to_owned()))?;
        self.policy
            .check_url(&url)
            .map_err(|refusal| failure(FailureKind::Forbidden, &refusal.to_string()))?;
        Ok(uri)
    }

    fn request(
        &self,
        post: &Post<'_>,
        uri: &Uri,
        signed: &Signed,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let invalid = |detail: String| failure(FailureKind::Invalid, &detail);
        let Signed { id, timestamp, signature } = signed;
        let body = post.body.clone();
        let ours = |text: &str| {
            HeaderValue::from_str(text)
                .map_err(|_| invalid("a header cannot be written".to_owned()))
        };
        let mut headers = HeaderMap::with_capacity(8 + post.endpoint.headers.len());
        for (name, value) in &post.endpoint.headers {
            let (name, value) = parse_header(name, value, &self.header_prefix)
                .map_err(|complaint| invalid(format!("the headers {complaint}")))?;
            headers.append(name, value);
        }
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.entry(USER_AGENT).or_insert_with(|| self.user_agent.clone());
        headers.insert("webhook-id", ours(id)?);
        headers.insert("webhook-timestamp", ours(&timestamp.to_string())?);
        headers.insert("webhook-signature", ours(signature)?);
        headers.insert(&self.attempt_header, post.number.into());
        if post.replay {
            headers.insert(&self.replay_header, HeaderValue::from_static("true"));
        }
        tracing::trace!(%id, body = %String::from_utf8_lossy(&body), "sending");
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = headers;
        Ok(request)
    }

    /// Signs, where that takes long beside the requests of others, and not on too many cores.
    async fn sign(&self, post: &Post<'_>) -> Result<Signed, Failure> {
        let Post { endpoint, body, .. } = post;
        let (id, timestamp) = (post.id.to_string(), unix_us() / 1_000_000);
        let signature = if sign::takes_long(body.len(), endpoint.secrets.len()) {
            // The semaphore is never closed.
            let _turn = self.signing.acquire().await;
            let (id, body, secrets) = (id.clone(), body.clone(), endpoint.secrets.clone());
            let signed = spawn_blocking(move || sign::sign(&id, timestamp, &body, &secrets)).await;
            // It does not panic; and only a runtime that ends gives it up.
            signed.unwrap_or(Err(SignError::NoSecret))
        } else {
            sign::sign(&id, timestamp, body, &endpoint.secrets)
        };
        let signature =
            signature.map_err(|error| failure(FailureKind::Invalid, &error.to_string()))?;
        Ok(Signed { id, timestamp, signature })
    }

    fn timed_out(&self) -> Failure {
        failure(FailureKind::Timeout, &format!("no whole answer within {:?}", self.timeout))
    }
}

/// Reads the answer to its end or to the bound, and keeps its beginning where asked to.
///
/// The status has been said; that the connection breaks in mid-sentence does not unsay it.
async fn read_body(response: Response<Incoming>, keep: bool) -> String {
    let mut body = response.into_body();
    let mut kept = Vec::new();
    let mut read = 0;
    while read <= BODY_MAX {
        let Some(Ok(frame)) = body.frame().await else { break };
        let Ok(data) = frame.into_data() else { continue };
        read += data.len();
        if keep {
            let room = EXCERPT_MAX.saturating_sub(kept.len());
            kept.extend(data.iter().take(room));
        }
    }
    printable(&String::from_utf8_lossy(&kept), EXCERPT_MAX)
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

#[cfg(test)]
mod tests;
