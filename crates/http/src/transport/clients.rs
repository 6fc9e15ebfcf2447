//! The HTTP clients that requests go through, and when a request is sent again.
//!
//! A request that the receiver surely did not answer is sent again within its attempt, on another
//! connection: there it counts. What may have been answered is not, for the receiver may have it.
//!
//! ```text
//! REFUSED_STREAM, above GOAWAY's last stream ──► a new HTTP/2 connection, which others share
//! a kept connection closed before an answer  ──► HTTP/2: likewise; HTTP/1: a new one, once
//! HTTP_1_1_REQUIRED                          ──► HTTP/1.1, for this authority for a while
//! ```
//!
//! Source: RFC 9113, sections 6.8, 8.7 and 9.1; RFC 9112, section 9.3.1.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{Extensions, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use moka::sync::Cache;
use rustls::ClientConfig;

use super::connect::{Connector, TcpConnector};
use super::error::classify;
use super::guard::Known;
use crate::exchange::Failure;

/// How often a request is sent again within its attempt.
const RESENDS_MAX: u32 = 2;

/// For so long an authority that wanted HTTP/1.1 is offered nothing else.
const HTTP1_FOR: Duration = Duration::from_secs(600);

/// Authorities that are remembered for that.
const HTTP1_MAX: u64 = 10_000;

/// An idle connection is closed after this time: below the 5 s that the least patient common servers
/// keep it (Node.js, uvicorn), so that a request seldom meets a connection that the other side is just
/// closing; and so that idle sockets are at most what a few seconds' requests have opened.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// Idle connections kept for one host: as many as one endpoint has requests in flight by default.
const POOL_IDLE_PER_HOST: usize = 64;

/// What is read of an HTTP/1 body before anyone takes it. Heads are read before hyper sees them.
const HTTP1_BUFFER: usize = 16 << 10;

/// What the headers of an HTTP/2 answer may take. More is no answer.
const HTTP2_HEADERS: u32 = 64 << 10;

/// As much as is read of one answer.
const HTTP2_STREAM_WINDOW: u32 = 64 << 10;

/// Sixteen answers at once on one connection.
const HTTP2_CONNECTION_WINDOW: u32 = 1 << 20;

/// A connection with requests in flight that is silent for so long is asked whether it lives: below
/// the default timeout, so that a retry already finds a new connection.
const HTTP2_PING_AFTER: Duration = Duration::from_secs(5);

/// And this is how long it may take to say so.
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(5);

type Requests = Client<Connector, Full<Bytes>>;

/// Clients that speak the same protocols.
#[derive(Debug)]
struct Pair {
    /// Keeps connections for the requests to come.
    pooled: Requests,
    /// Opens a connection for each request.
    fresh: Requests,
}

/// All clients.
#[derive(Debug)]
pub(super) struct Clients {
    /// HTTP/2 where the server has it.
    any: Pair,
    http1: Pair,
    wants_http1: Cache<Authority, ()>,
    /// Whether any authority ever did: most receivers never do.
    any_wants_http1: AtomicBool,
}

/// How a request may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    /// The failed connection is given to nobody any more.
    Pooled,
    /// Others of the pool may be as stale as the failed one.
    Fresh,
    Http1,
}

impl Clients {
    pub(super) fn new(tcp: &TcpConnector, tls: ClientConfig) -> Self {
        let mut http1 = tls.clone();
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self {
            any: Pair::new(&Connector::new(tcp.clone(), tls)),
            http1: Pair::new(&Connector::new(tcp.clone(), http1)),
            wants_http1: Cache::builder().max_capacity(HTTP1_MAX).time_to_live(HTTP1_FOR).build(),
            any_wants_http1: AtomicBool::new(false),
        }
    }

    /// The answer to the request that `make` makes, anew for each time that it is sent. `resends` counts
    /// the times after the first.
    pub(super) async fn send(
        &self,
        make: impl Fn() -> Result<Request<Full<Bytes>>, Failure>,
        resends: &AtomicU32,
    ) -> Result<Response<Incoming>, Failure> {
        let mut fresh = false;
        loop {
            let request = make()?;
            let authority = request.uri().authority().cloned();
            let pair = self.pair(authority.as_ref());
            let client = if fresh { &pair.fresh } else { &pair.pooled };
            let error = match client.request(request).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let again = again(&error).filter(|again| !(fresh && *again == Again::Fresh));
            let Some(again) = again.filter(|_| resends.load(Relaxed) < RESENDS_MAX) else {
                return Err(classify(&error));
            };
            resends.fetch_add(1, Relaxed);
            tracing::debug!(?authority, ?again, ?error, "sending again on another connection");
            match (again, authority) {
                (Again::Http1, Some(authority)) => {
                    self.wants_http1.insert(authority, ());
                    self.any_wants_http1.store(true, Relaxed);
                }
                (Again::Fresh, _) => fresh = true,
                (Again::Pooled | Again::Http1, _) => {}
            }
        }
    }

    fn pair(&self, authority: Option<&Authority>) -> &Pair {
        let wants_http1 = self.any_wants_http1.load(Relaxed)
            && authority.is_some_and(|authority| self.wants_http1.contains_key(authority));
        if wants_http1 { &self.http1 } else { &self.any }
    }
}

impl Pair {
    fn new(connector: &Connector) -> Self {
        Self {
            pooled: client(connector.clone(), POOL_IDLE_PER_HOST),
            fresh: client(connector.clone(), 0),
        }
    }
}

/// It asks for no compressed answer and follows no redirect: it only exchanges.
fn client(connector: Connector, idle_per_host: usize) -> Requests {
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(idle_per_host)
        // It would do so without end, and without telling.
        .retry_canceled_requests(false)
        .http1_max_buf_size(HTTP1_BUFFER)
        .http2_max_header_list_size(HTTP2_HEADERS)
        // What an HTTP/2 server may send before anyone reads it: it is held in our memory.
        .http2_initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .http2_initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        // A request that times out takes an HTTP/1 connection with it, but not an HTTP/2 one.
        .http2_keep_alive_interval(HTTP2_PING_AFTER)
        .http2_keep_alive_timeout(HTTP2_PING_TIMEOUT)
        .build(connector)
}

/// Whether, and how, a request that ended so may be sent again.
fn again(error: &legacy::Error) -> Option<Again> {
    // Without it there was no connection.
    let connected = error.connect_info()?;
    let mut extras = Extensions::new();
    connected.get_extras(&mut extras);
    let known = extras.remove::<Arc<Known>>()?;
    let again =
        if known.is_http2() { again_http2(error, &known) } else { again_http1(error, &known) };
    if again.is_some() {
        connected.poison();
    }
    again
}

fn again_http2(error: &legacy::Error, known: &Known) -> Option<Again> {
    let remote = find::<h2::Error>(error).filter(|h2| h2.is_remote());
    let reason = remote.and_then(h2::Error::reason);
    if known.wants_http1() || reason == Some(h2::Reason::HTTP_1_1_REQUIRED) {
        return Some(Again::Http1);
    }
    let refused = reason == Some(h2::Reason::REFUSED_STREAM);
    // Of a GOAWAY only those streams hear that are above its last one.
    if refused || remote.is_some_and(h2::Error::is_go_away) {
        return Some(Again::Pooled);
    }
    let lost = is_unsent(error) && known.lost_before_sending()
        || find::<io::Error>(error).is_some() && known.lost_before_answer();
    lost.then_some(Again::Pooled)
}

fn again_http1(error: &legacy::Error, known: &Known) -> Option<Again> {
    let lost =
        if is_unsent(error) { known.lost_before_sending() } else { known.lost_before_answer() };
    lost.then_some(Again::Fresh)
}

/// Whether the connection had not begun to send the request.
fn is_unsent(error: &legacy::Error) -> bool {
    find::<hyper::Error>(error).is_some_and(hyper::Error::is_canceled)
}

fn find<E: Error + 'static>(error: &legacy::Error) -> Option<&E> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}
