//! A receiver for tests, the load tests and `walhook mock-endpoint`: verifies signatures, counts, and
//! behaves as scripted.
//!
//! One server plays many endpoints: the path tells them apart, and the query string scripts each
//! ([`Behaviour::from_query`]). A test changes a path's behaviour while it runs.

mod behaviour;
mod ledger;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

pub use behaviour::Behaviour;
pub use ledger::{Received, Stats};

use crate::engine::endpoint::Secret;
use crate::engine::sign;
use crate::io::clock::unix_us;
use behaviour::Answer;
use ledger::{Bounds, Ledger};

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

/// What a receiver does with all requests alike.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What signatures are verified with: one of them has to fit; without any they count as not verified.
    pub secrets: Vec<Secret>,
    /// Whether requests whose signature does not fit are answered with 401, whatever the script says.
    pub strict: bool,
    /// How many requests are kept; older ones are forgotten, the counts go on.
    pub keep: usize,
    /// Called for each request right before it is answered.
    pub on_request: Option<fn(&Received)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { secrets: Vec::new(), strict: false, keep: 100_000, on_request: None }
    }
}

/// A running receiver; gone when dropped.
#[derive(Debug)]
pub struct Mock {
    address: SocketAddr,
    shared: Arc<Shared>,
    _server: JoinSet<std::io::Result<()>>,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    ledger: Mutex<Ledger>,
    arrived: Notify,
    reading: Semaphore,
}

impl Shared {
    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a request as in flight until it is answered or its client has gone, and its body's bytes.
struct InFlight<'a>(&'a Shared, usize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut ledger = self.0.ledger();
        ledger.in_flight -= 1;
        ledger.waiting_bytes -= self.1;
        drop(ledger);
        self.0.arrived.notify_waiters();
    }
}

impl Mock {
    /// Listens on `listen`; port 0 takes a free one.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn start(listen: SocketAddr, settings: Settings) -> Result<Self> {
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}"))?;
        let address = listener.local_addr()?;
        let ledger = Mutex::new(Ledger::new(Bounds {
            requests: settings.keep,
            bytes: KEPT_BYTES_MAX,
            distinct: DISTINCT_MAX,
            paths: PATHS_MAX,
        }));
        let shared = Arc::new(Shared {
            settings,
            ledger,
            arrived: Notify::new(),
            reading: Semaphore::new(READING_MAX),
        });
        let router = Router::new().fallback(receive).with_state(Arc::clone(&shared));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, shared, _server: server })
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
        self.shared.ledger().behaviours.insert(path.to_owned(), behaviour);
    }

    /// From now on, requests to any path without a behaviour of its own are answered so.
    pub fn set_default(&self, behaviour: Behaviour) {
        self.shared.ledger().default = Some(behaviour);
    }

    /// From now on, requests to paths without a behaviour of their own are answered as their query
    /// says.
    pub fn clear_default(&self) {
        self.shared.ledger().default = None;
    }

    /// What was answered, in order.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.shared.ledger().received()
    }

    /// The counts so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.ledger().stats()
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
        return axum::Json(shared.ledger().stats()).into_response();
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
    let verified = verify(&shared.settings, &parts.headers, &body);
    let mut received = Received::new(path, &parts.headers, body, verified);
    let query = parts.uri.query().unwrap_or_default();
    let (behaviour, waiting_bytes) = {
        let mut ledger = shared.ledger();
        if ledger.in_flight >= IN_FLIGHT_MAX {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        if ledger.waiting_bytes + received.body.len() > KEPT_BYTES_MAX {
            received.body.clear();
        }
        ledger.in_flight += 1;
        ledger.waiting_bytes += received.body.len();
        (ledger.behaviour(&received.path), received.body.len())
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
    if let Some(hook) = shared.settings.on_request {
        hook(&received);
    }
    shared.ledger().enter(received);
    let mut response = status.into_response();
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn verify(settings: &Settings, headers: &HeaderMap, body: &[u8]) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let parts = (|| {
        let timestamp: i64 = text("webhook-timestamp")?.parse().ok()?;
        Some((text("webhook-id")?, timestamp, text("webhook-signature")?))
    })();
    let Some((id, timestamp, signature)) = parts else { return false };
    // The specification asks receivers to refuse what is minutes old: it may be a replay.
    let fresh = (unix_us() / 1_000_000 - timestamp).abs() < 300;
    let fits = |secret| sign::verify(id, timestamp, body, signature, secret);
    fresh && settings.secrets.iter().any(fits)
}

#[cfg(test)]
mod tests;
