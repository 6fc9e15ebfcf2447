//! A connection to an endpoint's host, and a request on it.
//!
//! Over HTTP/1 whoever sends the request also drives the connection, in the same task: no other task has to
//! be woken for what is written or for what comes. Over HTTP/2, where requests share it, a task of its own
//! drives it.

use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::Instant;
use walhook_core::event::AccountId;

use super::content::Content;
use super::guard::{Answers, Known, StreamPlace};
use super::pool::{Kept, Open};

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

/// A connection that requests can be sent on.
#[derive(Debug)]
pub(super) enum Connection {
    /// One request at a time.
    Http1(Box<Http1>),
    /// A handle among several.
    Http2(Http2),
}

#[derive(Debug)]
pub(super) struct Http1 {
    sender: http1::SendRequest<Content>,
    /// Until it has ended.
    driver: Option<http1::Connection<TokioIo<Answers>, Content>>,
    known: Arc<Known>,
    open: Open,
}

#[derive(Debug)]
pub(super) struct Http2 {
    sender: http2::SendRequest<Content>,
    known: Arc<Known>,
    /// When it takes its last request.
    until: Instant,
    /// A request's place among those that share it; the pool's handle has none.
    _stream: Option<StreamPlace>,
}

impl Connection {
    /// Begins to speak HTTP on what was opened, in the version that was agreed upon there.
    pub(super) async fn begin(stream: Answers, open: Open) -> Result<Self, hyper::Error> {
        let known = stream.known();
        let io = TokioIo::new(stream);
        if !known.is_http2() {
            let (sender, driver) =
                http1::Builder::new().max_buf_size(HTTP1_BUFFER).handshake(io).await?;
            let driver = Some(driver);
            return Ok(Self::Http1(Box::new(Http1 { sender, driver, known, open })));
        }
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(HTTP2_HEADERS)
            // What an HTTP/2 server may send before anyone reads it: it is held in our memory.
            .initial_stream_window_size(HTTP2_STREAM_WINDOW)
            .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
            // A request that times out takes an HTTP/1 connection with it, but not an HTTP/2 one.
            .keep_alive_interval(HTTP2_PING_AFTER)
            .keep_alive_timeout(HTTP2_PING_TIMEOUT)
            .handshake(io)
            .await?;
        // It ends by itself: when the connection does, and when nobody holds a handle any more.
        let (limits, until) = (Arc::clone(&known), open.until());
        TokioExecutor::new().execute(async move {
            let mut driver = pin!(driver);
            let ended = poll_fn(|cx| {
                let ended = driver.as_mut().poll(cx);
                limits.set_streams_max(driver.current_max_send_streams());
                ended
            })
            .await;
            tracing::trace!(?ended, "an HTTP/2 connection ended");
            drop(open);
        });
        Ok(Self::Http2(Http2 { sender, known, until, _stream: None }))
    }

    pub(super) fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    /// What is known of it, also when a request on it has failed.
    pub(super) fn known(&self) -> &Arc<Known> {
        match self {
            Self::Http1(http1) => &http1.known,
            Self::Http2(http2) => &http2.known,
        }
    }

    /// Sends the request, and waits for the head of its answer.
    pub(super) async fn send(
        &mut self,
        request: Request<Content>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        let answer = match self {
            Self::Http1(http1) => {
                http1.known.expect_request();
                let mut answer = pin!(http1.sender.try_send_request(request));
                poll_fn(|cx| {
                    http1.drive(cx);
                    answer.as_mut().poll(cx)
                })
                .await
            }
            Self::Http2(http2) => http2.sender.try_send_request(request).await,
        };
        answer.map_err(hyper::client::conn::TrySendError::into_error)
    }

    /// The next piece of the answer's body, which came on this connection.
    pub(super) async fn frame(
        &mut self,
        body: &mut Incoming,
    ) -> Option<Result<Frame<Bytes>, hyper::Error>> {
        poll_fn(|cx| {
            let frame = Pin::new(&mut *body).poll_frame(cx);
            if frame.is_ready() {
                return frame;
            }
            let Self::Http1(http1) = &mut *self else { return frame };
            http1.drive(cx);
            Pin::new(&mut *body).poll_frame(cx)
        })
        .await
    }

    /// Whether it waits for nothing but the next request. Of one that was idle: still.
    pub(super) async fn is_idle(&mut self) -> bool {
        match self {
            Self::Http1(http1) => poll_fn(|cx| Poll::Ready(http1.is_idle(cx))).await,
            Self::Http2(http2) => http2.is_open(),
        }
    }
}

impl Kept for Connection {
    fn is_shared(&self) -> bool {
        self.is_http2()
    }

    fn share(&self, account: Option<&AccountId>, now: Instant) -> Option<Self> {
        let Self::Http2(Http2 { sender, known, until, .. }) = self else { return None };
        if known.users().is_silent_for(account, now) {
            return None;
        }
        let (sender, _stream) = (sender.clone(), Some(known.stream()?));
        Some(Self::Http2(Http2 { sender, known: Arc::clone(known), until: *until, _stream }))
    }

    fn last(&self) -> Option<(AccountId, Duration)> {
        let users = self.known().users();
        users.last().map(|last| (last, users.rest()))
    }

    fn is_open(&self, now: Instant) -> bool {
        match self {
            Self::Http1(http1) => http1.driver.is_some() && now < http1.open.until(),
            Self::Http2(http2) => http2.is_open() && now < http2.until,
        }
    }
}

impl Http1 {
    /// Writes what is to be written, and reads what has come.
    fn drive(&mut self, cx: &mut Context<'_>) {
        let Some(driver) = &mut self.driver else { return };
        if let Poll::Ready(ended) = Pin::new(driver).poll(cx) {
            if ended.is_err_and(|error| is_surplus(&error)) {
                self.known.note_surplus();
            }
            // Dropped, it tells the request that it has not answered.
            self.driver = None;
        }
    }

    fn is_idle(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        self.driver.is_some() && self.sender.is_ready() && !self.known.has_surplus()
    }
}

impl Http2 {
    fn is_open(&self) -> bool {
        self.known.takes_requests() && !self.sender.is_closed()
    }
}

/// Whether a connection ended so for bytes that came while no answer was due: the one error of an idle connection that
/// has no cause, and is no early end.
fn is_surplus(error: &hyper::Error) -> bool {
    error.source().is_none() && !error.is_incomplete_message()
}
