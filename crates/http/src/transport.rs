//! One attempt over HTTP: a signed request goes out, an [`Exchange`] comes back, and nothing else.

mod apart;
mod carry;
mod certificate;
mod clients;
mod connect;
mod connection;
mod content;
mod course;
mod doubt;
mod error;
mod guard;
mod guarded;
mod memory;
mod pool;
mod spread;
mod target;
mod tunnels;
mod turns;
mod users;
mod workers;

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{DATE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Method, Request};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls_platform_verifier::Verifier;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use super::resolve::{Lookup, NamesTrouble, Resolver, system_lookup};
use crate::egress::{Policy, Proxy, ProxyError, ProxyTrouble};
use crate::exchange::{Answer, Exchange, Failure};
use crate::retry_after::parse_retry_after;
pub use carry::{Carried, Prepared};
use clients::{Answered, Clients};
use connect::TcpConnector;
use content::Content;
use course::Course;
use error::{failure, printable};
use memory::AnswerMemory;
use pool::Bounds;
use target::{Address, Target, Targets};
use tunnels::Tunnels;
use turns::Turns;
use walhook_core::attempt::{Attempt, Delivery, FailureKind};
use walhook_core::endpoint::{Endpoint, Secret};
use walhook_core::event::AccountId;
use walhook_core::position::EventId;
use walhook_process::clock::unix_us;
use walhook_process::descriptors;
use walhook_sign as sign;
use workers::Workers;

/// Of an answer's body, what is read so that the connection can be used again. A longer answer costs
/// the endpoint its connection, not us our memory.
const BODY_MAX: usize = 64 << 10;

/// Of an answer's body, what is kept for the operator.
const EXCERPT_MAX: usize = 1 << 10;

/// To have something large signed may take so long, which no endpoint is to blame for. Longer is a want of our own.
const SIGNING: Duration = Duration::from_secs(1);

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

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
    #[error(
        "cannot set up TLS; install the system's CA certificates, or where no file can be opened raise LimitNOFILE (ulimit -n)"
    )]
    Tls(#[source] rustls::Error),
    /// The operating system starts no threads.
    #[error(
        "cannot start the threads that send requests; raise what is used up: TasksMax or ulimit -u, or for open files LimitNOFILE or ulimit -n"
    )]
    Threads(#[source] std::io::Error),
    /// The proxy cannot be used.
    #[error("egress.proxy {0}")]
    Proxy(#[from] ProxyError),
}

/// Sends attempts. Cheap to clone; all clones share one pool of connections.
#[derive(Debug, Clone)]
pub struct Transport {
    clients: Arc<Clients>,
    names: Resolver,
    tunnels: Option<Arc<Tunnels>>,
    memory: Arc<AnswerMemory>,
    workers: Arc<Workers>,
    policy: Arc<Policy>,
    targets: Arc<Targets>,
    timeout: Duration,
    user_agent: HeaderValue,
    attempt_header: HeaderName,
    replay_header: HeaderName,
    header_prefix: String,
    /// Turns at signing what takes long.
    signing: Arc<Turns>,
}

/// What is posted where.
struct Post<'a> {
    target: Arc<Target>,
    account: &'a AccountId,
    id: EventId,
    body: Content,
    number: u32,
    replay: bool,
}

/// What is signed once an attempt, however often it is sent.
struct Signed {
    id: HeaderValue,
    /// Seconds since 1970.
    timestamp: i64,
    signature: HeaderValue,
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
        Self::with(requests, egress, memory_limit, bounds(memory_limit), tls, system_lookup())
    }

    /// With so many connections, this judge of certificates, and names resolved so.
    fn with(
        requests: &Requests,
        egress: &Egress,
        memory_limit: usize,
        bounds: Bounds,
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
        let patience = requests.connect_timeout;
        let tunnels = proxy.map(|it| Arc::new(Tunnels::new(it, resolver.clone(), patience)));
        let names = resolver.clone();
        let tcp = TcpConnector::new(resolver, tunnels.clone(), patience, Arc::clone(&memory));
        let clients = Clients::new(&tcp, tls, bounds);
        let workers = Workers::start(clients.keeper()).map_err(TransportError::Threads)?;
        Ok(Self {
            clients: Arc::new(clients),
            names,
            tunnels,
            memory,
            workers: Arc::new(workers),
            policy,
            targets: Arc::new(Targets::new()),
            timeout: requests.timeout,
            user_agent,
            attempt_header: header("attempt")?,
            replay_header: header("replay")?,
            header_prefix: requests.header_prefix.clone(),
            signing: Arc::new(Turns::new()),
        })
    }

    /// Makes one attempt. What goes wrong is in the outcome.
    ///
    /// Takes `delivery.timeout` at most, the answer's body included; and up to a second before, where there is much
    /// to be signed. Dropping it abandons the request.
    pub async fn send(&self, attempt: &Attempt) -> Exchange {
        self.attempt(attempt, false).await
    }

    /// As [`Transport::send`], but keeps the beginning of a 2xx's body too: for a person who asks.
    pub async fn probe(&self, attempt: &Attempt) -> Exchange {
        self.attempt(attempt, true).await
    }

    /// The threads that requests are made on, and nothing else: one or more, each with its own connections.
    #[must_use]
    pub fn threads(&self) -> &[Handle] {
        self.workers.threads()
    }

    /// Bytes that connections and unfinished answers hold.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// What is wrong with this machine's name servers now: they answer for no name.
    #[must_use]
    pub fn names_trouble(&self) -> Option<NamesTrouble> {
        self.names.trouble()
    }

    /// What is wrong with `egress.proxy` now, where all that is sent goes through it.
    #[must_use]
    pub fn proxy_trouble(&self) -> Option<ProxyTrouble> {
        self.tunnels.as_ref()?.trouble()
    }

    /// Whether `egress.proxy` answers, and takes its user and password; `None` where there is none.
    ///
    /// # Errors
    /// Why not, without the password.
    pub async fn look_at_proxy(&self) -> Option<Result<(), String>> {
        Some(self.tunnels.as_ref()?.look().await)
    }

    /// Whether `egress.proxy` opens a tunnel to where this URL leads; `None` where there is no proxy, or the URL does
    /// not lead anywhere.
    ///
    /// # Errors
    /// Why not, without the password.
    pub async fn look_for_tunnel(&self, url: &str) -> Option<Result<(), String>> {
        self.tunnels.as_ref()?.look_for(&Url::parse(url).ok()?).await
    }

    async fn attempt(&self, attempt: &Attempt, keep: bool) -> Exchange {
        match self.post_of(attempt) {
            Ok(post) => self.post(&post, keep).await,
            Err(failure) => Exchange::new(Err(failure), Duration::ZERO),
        }
    }

    /// What an attempt posts, if requests may go there.
    fn post_of<'a>(&self, attempt: &'a Attempt) -> Result<Post<'a>, Failure> {
        let Attempt { endpoint, deliveries } = attempt;
        assert!(deliveries.as_slice().len() == 1, "a request has one event");
        let Delivery { event, number, asked, .. } = deliveries.first();
        let target = self.targets.of(endpoint, || self.target(endpoint))?;
        let (account, body) = (&endpoint.account, Content::of(event));
        let replay = asked.is_some();
        Ok(Post { target, account, id: event.id, body, number: *number, replay })
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
        let target = match self.target(endpoint) {
            Ok(target) => Arc::new(target),
            Err(failure) => return Exchange::new(Err(failure), Duration::ZERO),
        };
        let (account, body) = (&endpoint.account, Content::whole(body));
        self.post(&Post { target, account, id, body, number, replay: false }, false).await
    }

    async fn post(&self, post: &Post<'_>, keep: bool) -> Exchange {
        let course = Course::default();
        let began = Instant::now();
        let signed = match self.sign(post).await {
            Ok(signed) => signed,
            Err(failure) => return Exchange::new(Err(failure), began.elapsed()),
        };
        // In place: to move it would cost more than a header.
        let sending = pin!(async {
            let make = |http2| Some(self.request(post, &signed, http2));
            self.exchange(&post.target.address, post.account, make, keep, &course).await
        });
        within(self.timeout, sending, &course).await
    }

    /// The answer to the request that `make` makes; see [`Clients::send`].
    async fn exchange(
        &self,
        address: &Address,
        account: &AccountId,
        make: impl Fn(bool) -> Option<Request<Content>>,
        keep: bool,
        course: &Course,
    ) -> Result<Answer, Failure> {
        let mut answered = self.clients.send(address, account, make, course).await?;
        if let Some(tunnels) = &self.tunnels {
            tunnels.answered();
        }
        let status = answered.status;
        let header = |name| answered.headers.get(name).and_then(|value| value.to_str().ok());
        let retry_after = header(RETRY_AFTER)
            .and_then(|value| parse_retry_after(value, header(DATE), unix_us() / 1_000_000));
        let keep = keep || !status.is_success();
        let excerpt = read_body(&mut answered, keep).await;
        answered.end(Answer { status: status.as_u16(), retry_after, excerpt }).await
    }

    /// Where the endpoint's requests go, if they may.
    fn target(&self, endpoint: &Endpoint) -> Result<Target, Failure> {
        Target::new(endpoint, &self.policy, &self.header_prefix, &self.user_agent)
    }

    fn request(&self, post: &Post<'_>, signed: &Signed, http2: bool) -> Request<Content> {
        let headers = self.headers(post, signed);
        request(&post.target.address, headers, post.body.clone(), http2)
    }

    /// All headers but those that depend on the connection.
    fn headers(&self, post: &Post<'_>, signed: &Signed) -> HeaderMap {
        let mut headers = post.target.headers();
        headers.insert(WEBHOOK_ID, signed.id.clone());
        headers.insert(WEBHOOK_TIMESTAMP, signed.timestamp.into());
        headers.insert(WEBHOOK_SIGNATURE, signed.signature.clone());
        headers.insert(&self.attempt_header, post.number.into());
        if post.replay {
            headers.insert(&self.replay_header, HeaderValue::from_static("true"));
        }
        headers
    }

    /// Signs, where that takes long beside the requests of others, and not on too many cores.
    async fn sign(&self, post: &Post<'_>) -> Result<Signed, Failure> {
        let Post { target, body, .. } = post;
        let (id, timestamp) = (post.id.to_string(), unix_us() / 1_000_000);
        let signature = if sign::takes_long(body.len(), target.keys.len()) {
            let bytes = body.len().saturating_mul(target.keys.len());
            let turn = timeout(SIGNING, self.signing.take(post.account, bytes)).await;
            let _turn =
                turn.map_err(|_| failure(FailureKind::Local, "too much is to be signed"))?;
            let (id, body, target) = (id.clone(), body.clone(), Arc::clone(target));
            let sign = move || target.keys.sign(&id, timestamp, &body.to_bytes());
            // It does not panic; and only a runtime that ends gives it up.
            let signed = spawn_blocking(sign).await;
            signed.map_err(|_| failure(FailureKind::Invalid, "it was not signed"))?
        } else {
            target.keys.sign(&id, timestamp, &body.to_bytes())
        };
        let written = |text: String| {
            HeaderValue::try_from(text)
                .map_err(|_| failure(FailureKind::Invalid, "a header cannot be written"))
        };
        Ok(Signed { id: written(id)?, timestamp, signature: written(signature)? })
    }
}

/// What comes of sending, with a failure where that takes longer.
async fn within(
    timeout: Duration,
    sending: Pin<&mut impl Future<Output = Result<Answer, Failure>>>,
    course: &Course,
) -> Exchange {
    let started = Instant::now();
    let ended = timeout_at(started + timeout, sending).await;
    let result = ended.unwrap_or_else(|_| Err(course.time_is_over(timeout)));
    let (resends, own_resends) = (course.resends(), course.own_resends());
    Exchange { result, elapsed: started.elapsed(), resends, own_resends }
}

fn request(address: &Address, headers: HeaderMap, body: Content, http2: bool) -> Request<Content> {
    let (uri, headers) = address.request(http2, headers);
    tracing::trace!(
        id = ?headers.get(WEBHOOK_ID),
        body = %String::from_utf8_lossy(&body.to_bytes()),
        "sending"
    );
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    request
}

/// How many connections fit what the process has.
fn bounds(memory_limit: usize) -> Bounds {
    Bounds { open: descriptors::for_requests(), idle: memory::idle_connections(memory_limit) }
}

/// Reads the answer to its end or to the bound, and keeps its beginning where asked to.
///
/// The status has been said; that the connection breaks in mid-sentence does not unsay it.
async fn read_body(answered: &mut Answered<'_>, keep: bool) -> String {
    let mut kept = Vec::new();
    let mut read = 0;
    while let Some(data) = answered.data().await {
        read += data.len();
        if keep {
            let room = EXCERPT_MAX.saturating_sub(kept.len());
            kept.extend(data.iter().take(room));
        }
        if read > BODY_MAX {
            break;
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
