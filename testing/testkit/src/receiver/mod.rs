//! The receiver of the tests, the demo, the load tests and of `walhook mock-endpoint`: verifies
//! signatures, counts, and behaves as scripted.
//!
//! One server plays many endpoints: the path tells them apart, and the query string scripts each
//! ([`Behaviour::from_query`]). A test changes a path's behaviour while it runs.

mod behaviour;
mod counts;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

pub use behaviour::Behaviour;
pub use counts::{Received, Stats};

use crate::clock::unix_us;
use crate::sign::{Signed, Verifier};
use behaviour::Answer;
use counts::{Bounds, Counts};

/// Above walhook's own limit of an event, so that what it sends is never refused here.
const BODY_MAX: usize = 2 << 20;

/// What requests that are kept may take, in bytes, however few they are; and so much again what bodies
/// may that wait for their answer. Of those beyond, the body is forgotten.
const KEPT_BYTES_MAX: usize = 256 << 20;

/// Requests that wait for their answer; more are refused with 503.
const IN_FLIGHT_MAX: u64 = 10_000;

/// Bodies that are read at a time, each within [`READ_WITHIN`].
const READING_MAX: usize = 128;

/// A client that sends its body more slowly is refused.
const READ_WITHIN: Duration = Duration::from_secs(30);

/// Different deliveries that are told apart: at about 32 bytes each, 64 MiB. More are counted too, as
/// [`Stats::untold`].
const DISTINCT_MAX: usize = 2 << 20;

/// Paths that are counted apart; a stranger may ask for as many as he likes.
const PATHS_MAX: usize = 10_000;

/// Connections that wait to be accepted.
const ACCEPT_BACKLOG: u32 = 1_024;

/// Called for each request right before it is answered; an error is answered with 400.
pub type Hook = Arc<dyn Fn(&Received) -> Result<()> + Send + Sync>;

/// What a receiver does with all requests alike.
#[derive(Clone)]
pub struct Settings {
    /// What verifies signatures; without it they count as not verified.
    pub verify: Option<Verifier>,
    /// Whether requests whose signature does not fit are answered with 401, whatever the script says.
    pub strict: bool,
    /// How many requests are kept; older ones are forgotten, the counts go on.
    pub keep: usize,
    /// Is told of each request.
    pub on_request: Option<Hook>,
    /// What a path without a behaviour of its own does, whatever the query says.
    pub default: Option<Behaviour>,
    /// Whether it may [refuse](Receiver::refuse) connections; its port may then be shared.
    pub may_refuse: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            verify: None,
            strict: false,
            keep: 100_000,
            on_request: None,
            default: None,
            may_refuse: false,
        }
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { strict, keep, default, may_refuse, .. } = self;
        f.debug_struct("Settings")
            .field("strict", strict)
            .field("keep", keep)
            .field("default", default)
            .field("may_refuse", may_refuse)
            .finish_non_exhaustive()
    }
}

/// A running receiver; gone when dropped.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinSet<std::io::Result<()>>,
    /// Ends the listening, and the connections once they are idle.
    open: Option<oneshot::Sender<()>>,
    /// Never listens: keeps the port ours while nobody does.
    held: Option<TcpSocket>,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    counts: Mutex<Counts>,
    arrived: Notify,
    reading: Semaphore,
}

impl Shared {
    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a request as in flight until it is answered or its client has gone, and its body's bytes.
struct InFlight<'a>(&'a Shared, usize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut counts = self.0.counts();
        counts.in_flight -= 1;
        counts.waiting_bytes -= self.1;
        drop(counts);
        self.0.arrived.notify_waiters();
    }
}

impl Receiver {
    /// Listens on `listen`; port 0 takes a free one.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn start(listen: SocketAddr, settings: Settings) -> Result<Self> {
        let cannot = || format!("cannot listen on {listen}");
        let (held, listener) = if settings.may_refuse {
            let held = shared_socket(listen).with_context(cannot)?;
            let listener = shared_socket(held.local_addr()?)?.listen(ACCEPT_BACKLOG)?;
            (Some(held), listener)
        } else {
            (None, TcpListener::bind(listen).await.with_context(cannot)?)
        };
        let address = listener.local_addr()?;
        let bounds = Bounds {
            requests: settings.keep,
            bytes: KEPT_BYTES_MAX,
            distinct: DISTINCT_MAX,
            paths: PATHS_MAX,
        };
        let mut counts = Counts::new(bounds);
        counts.default = settings.default;
        let shared = Arc::new(Shared {
            settings,
            counts: Mutex::new(counts),
            arrived: Notify::new(),
            reading: Semaphore::new(READING_MAX),
        });
        let mut receiver = Self { address, shared, server: JoinSet::new(), open: None, held };
        receiver.serve(listener);
        Ok(receiver)
    }

    fn serve(&mut self, listener: TcpListener) {
        let router = Router::new().fallback(receive).with_state(Arc::clone(&self.shared));
        let (open, closed) = oneshot::channel::<()>();
        self.open = Some(open);
        self.server.spawn(async move {
            let ended = async {
                // Dropped, or told: both mean the end.
                let _ = closed.await;
            };
            axum::serve(listener, router).with_graceful_shutdown(ended).await
        });
    }

    /// From now on connections are refused, where the settings say that it may: nobody listens.
    pub fn refuse(&mut self) {
        if self.held.is_some() {
            self.open = None;
        }
    }

    /// Listens again after [`Receiver::refuse`].
    ///
    /// # Errors
    /// When the port cannot be had again.
    pub fn listen(&mut self) -> Result<()> {
        if self.open.is_none() {
            let listener = shared_socket(self.address)?.listen(ACCEPT_BACKLOG)?;
            self.serve(listener);
        }
        Ok(())
    }

    /// Says when it has ended, which it does only by an error. Cancel-safe.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.server.join_next().await {
            Some(Ok(Err(error))) => anyhow::Error::new(error).context("the receiver"),
            Some(Err(error)) => anyhow::Error::new(error).context("the receiver"),
            Some(Ok(Ok(()))) | None => anyhow::anyhow!("the receiver has ended"),
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path with its query, such as `/a?delay=2s`.
    #[must_use]
    pub fn url(&self, path_and_query: &str) -> String {
        format!("http://{}{path_and_query}", self.address)
    }

    /// From now on, requests to `path` are answered so, whatever their query says.
    pub fn set_behaviour(&self, path: &str, behaviour: Behaviour) {
        self.shared.counts().behaviours.insert(path.to_owned(), behaviour);
    }

    /// From now on, requests to any path without a behaviour of its own are answered so.
    pub fn set_default(&self, behaviour: Behaviour) {
        self.shared.counts().default = Some(behaviour);
    }

    /// From now on, requests to paths without a behaviour of their own are answered as their query
    /// says.
    pub fn clear_default(&self) {
        self.shared.counts().default = None;
    }

    /// What was answered, in order.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.shared.counts().received()
    }

    /// The counts so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.counts().stats()
    }

    /// Waits until the counts are as wanted.
    ///
    /// # Errors
    /// When they are not by `within`; the message names `what`, and the counts.
    pub async fn wait_until(
        &self,
        what: &str,
        within: Duration,
        mut wanted: impl FnMut(&Stats) -> bool,
    ) -> Result<()> {
        let waiting = async {
            loop {
                let arrived = self.shared.arrived.notified();
                if wanted(&self.stats()) {
                    return;
                }
                // A notification between the two cannot be missed: it counts from `notified()` on.
                arrived.await;
            }
        };
        if timeout(within, waiting).await.is_err() {
            bail!("not within {within:?}: {what}; the endpoints have {:?}", self.stats());
        }
        Ok(())
    }
}

async fn receive(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if parts.method == Method::GET && parts.uri.path() == "/stats" {
        return axum::Json(shared.counts().stats()).into_response();
    }
    let read = async {
        // The semaphore is never closed.
        let _turn = shared.reading.acquire().await;
        timeout(READ_WITHIN, to_bytes(body, BODY_MAX)).await
    };
    let body = match read.await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        Err(_) => return StatusCode::REQUEST_TIMEOUT.into_response(),
    };
    let path = parts.uri.path().to_owned();
    let verified = verify(&shared.settings, &path, &parts.headers, &body);
    let mut received = Received::new(path, &parts.headers, body, verified);
    let query = parts.uri.query().unwrap_or_default();
    let (behaviour, waiting_bytes) = {
        let mut counts = shared.counts();
        if counts.in_flight >= IN_FLIGHT_MAX {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        if counts.waiting_bytes + received.body.len() > KEPT_BYTES_MAX {
            received.body.clear();
        }
        counts.in_flight += 1;
        counts.waiting_bytes += received.body.len();
        (counts.behaviour(&received.path), received.body.len())
    };
    let _in_flight = InFlight(&shared, waiting_bytes);
    shared.arrived.notify_waiters();
    let behaviour = match behaviour.map_or_else(|| Behaviour::from_query(query), Ok) {
        Ok(behaviour) => behaviour,
        Err(problem) => return (StatusCode::BAD_REQUEST, format!("{problem:#}\n")).into_response(),
    };
    let is_refused = shared.settings.strict && !verified;
    let answer = match behaviour.answer(&received.id, received.attempt) {
        _ if is_refused => (StatusCode::UNAUTHORIZED, None),
        Answer::Never => std::future::pending().await,
        Answer::After { delay, status, retry_after } => {
            if !delay.is_zero() {
                sleep(delay).await;
            }
            (status, retry_after)
        }
    };
    let (status, retry_after) = answer;
    received.answered = status.as_u16();
    received.answered_at_unix_us = unix_us();
    let told = shared.settings.on_request.as_ref().map_or(Ok(()), |hook| hook(&received));
    if let Err(problem) = told {
        return (StatusCode::BAD_REQUEST, format!("{problem:#}\n")).into_response();
    }
    shared.counts().enter(received);
    let mut response = status.into_response();
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn verify(settings: &Settings, path: &str, headers: &HeaderMap, body: &[u8]) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let parts = (|| {
        let timestamp: i64 = text("webhook-timestamp")?.parse().ok()?;
        Some((text("webhook-id")?, timestamp, text("webhook-signature")?))
    })();
    let Some((id, timestamp, signatures)) = parts else { return false };
    // The specification asks receivers to refuse what is minutes old: it may be a replay.
    let fresh = (unix_us() / 1_000_000 - timestamp).abs() < 300;
    let signed = Signed { path, id, timestamp, signatures, body };
    fresh && settings.verify.as_ref().is_some_and(|verify| verify(&signed))
}

/// A socket that shares its port with our others, and with nobody else's.
fn shared_socket(address: SocketAddr) -> Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseport(true)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests;
