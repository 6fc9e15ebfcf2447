//! What stands between an endpoint's socket and the HTTP library: bounds, and a plain head.
//!
//! ```text
//! socket ─► Metered ─► TLS ─► Answers ─► hyper
//!           bytes,            HTTP/1: the head, in plain form; HTTP/2: frames counted
//!           turns
//! ```
//!
//! hyper and h2 read for as long as there is something to read, hold an answer's head until its end, and
//! refuse an answer for any byte of it that is out of place. Below TLS each connection gives the thread
//! up after [`TURN`], and may send what its requests' answers need and no more. Above TLS
//! [`HeadReader`] and [`Frames`] decide.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper_rustls::MaybeHttpsStream;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use super::guarded::{Guard, Guarded};
use super::memory::Charge;
use super::users::Users;
use crate::answer_head::{HeadError, HeadReader};
use crate::frames::{FrameError, Frames};

/// What a connection reads before others have their turn: more than most answers have, and a tenth of a
/// millisecond of the smallest frames. A thousand connections may stand in line.
const TURN: usize = 4 << 10;

/// What may come before any request: a handshake with a long chain of certificates.
const BYTES_FIRST: u64 = 256 << 10;

/// For each request: the largest head, as much again of body, and what frames and encrypts them.
const BYTES_A_REQUEST: u64 = 512 << 10;

/// What may be left over from earlier requests.
const BYTES_MAX: u64 = 16 << 20;

/// Requests that share an HTTP/2 connection, where its receiver allows more: what ends it ends them all.
const STREAMS_MAX: usize = 100;

/// The head of an HTTP/1 answer is read in such pieces.
const PIECE: usize = 4 << 10;

/// Why a connection was given up, found among the causes of the client's error.
#[derive(Debug, thiserror::Error)]
pub(super) enum Excess {
    /// There is no answer in what came.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// Too many frames.
    #[error(transparent)]
    Frames(#[from] FrameError),
    /// Too many bytes.
    #[error("the receiver sends more than its answers need")]
    Bytes,
    /// Too much to be held.
    #[error("unfinished answers of this account hold more than their share of memory.limit")]
    Memory,
}

/// What is known of a connection, for whoever sends a request on it.
#[derive(Debug)]
pub(super) struct Known {
    http2: AtomicBool,
    /// Requests of which the first bytes were written.
    requests: AtomicU32,
    /// HTTP/1: what is written next begins a request.
    request_due: AtomicBool,
    /// HTTP/1: whether the last request's answer has begun.
    answered: AtomicBool,
    /// Answers that have begun; HTTP/2: informational ones too.
    answers: AtomicU64,
    /// HTTP/2: GOAWAY came.
    goes_away: AtomicBool,
    /// HTTP/2: it wants HTTP/1.1.
    wants_http1: AtomicBool,
    /// HTTP/1: more came than the answers to its requests.
    surplus: AtomicBool,
    /// It was given up for what the receiver sent.
    given_up: AtomicBool,
    /// A request on it failed in such a way that others would too.
    spoilt: AtomicBool,
    bytes_left: AtomicU64,
    users: Arc<Users>,
    /// HTTP/2: requests that share it.
    streams: AtomicUsize,
    /// And how many may.
    streams_max: AtomicUsize,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            http2: AtomicBool::default(),
            requests: AtomicU32::default(),
            request_due: AtomicBool::default(),
            answered: AtomicBool::default(),
            answers: AtomicU64::default(),
            goes_away: AtomicBool::default(),
            wants_http1: AtomicBool::default(),
            surplus: AtomicBool::default(),
            given_up: AtomicBool::default(),
            spoilt: AtomicBool::default(),
            bytes_left: AtomicU64::new(BYTES_FIRST),
            users: Arc::default(),
            streams: AtomicUsize::default(),
            streams_max: AtomicUsize::new(STREAMS_MAX),
        }
    }
}

impl Known {
    pub(super) fn is_http2(&self) -> bool {
        self.http2.load(Relaxed)
    }

    pub(super) fn wants_http1(&self) -> bool {
        self.wants_http1.load(Relaxed)
    }

    /// HTTP/1: a request is handed to the connection, on which nothing else is left to be written.
    pub(super) fn expect_request(&self) {
        self.request_due.store(true, Relaxed);
    }

    /// HTTP/1: more has come than the answers to its requests.
    pub(super) fn note_surplus(&self) {
        self.surplus.store(true, Relaxed);
    }

    pub(super) fn has_surplus(&self) -> bool {
        self.surplus.load(Relaxed)
    }

    /// Keeps further requests away.
    pub(super) fn spoil(&self) {
        self.spoilt.store(true, Relaxed);
    }

    /// Whether more requests may be sent on it.
    pub(super) fn takes_requests(&self) -> bool {
        !self.spoilt.load(Relaxed) && !self.goes_away.load(Relaxed)
    }

    /// Whether a request that was handed to the connection, but of which nothing was written, may go to
    /// another: it was in use before, or has said that it takes no more.
    pub(super) fn lost_before_sending(&self) -> bool {
        let in_use = self.requests.load(Relaxed) > 0;
        (in_use || self.goes_away.load(Relaxed)) && !self.given_up.load(Relaxed)
    }

    /// Whether a request that was written went to a connection that had been in use, and was closed
    /// before an answer to it began. `HTTP/2`: the caller knows that its stream had none.
    pub(super) fn lost_before_answer(&self) -> bool {
        let lost = if self.is_http2() {
            self.answers() > 0
        } else {
            self.requests.load(Relaxed) > 1 && !self.answered.load(Relaxed)
        };
        lost && !self.given_up.load(Relaxed)
    }

    /// Answers that have begun.
    pub(super) fn answers(&self) -> u64 {
        self.answers.load(Relaxed)
    }

    /// Whose requests are on it.
    pub(super) fn users(&self) -> &Arc<Users> {
        &self.users
    }

    /// The receiver takes so many requests at once.
    pub(super) fn set_streams_max(&self, max: usize) {
        self.streams_max.store(max.min(STREAMS_MAX), Relaxed);
    }

    /// A place among the requests that share it, unless as many do as may.
    pub(super) fn stream(self: &Arc<Self>) -> Option<StreamPlace> {
        let stream = StreamPlace(Arc::clone(self));
        let others = self.streams.fetch_add(1, Relaxed);
        (others < self.streams_max.load(Relaxed)).then_some(stream)
    }

    fn begin_requests(&self, requests: u32) {
        if requests == 0 {
            return;
        }
        self.requests.fetch_add(requests, Relaxed);
        let more = BYTES_A_REQUEST.saturating_mul(requests.into());
        let left = self.bytes_left.load(Relaxed);
        self.bytes_left.store(left.saturating_add(more).min(BYTES_MAX), Relaxed);
    }

    fn give_up(&self, excess: impl Into<Excess>) -> io::Error {
        self.given_up.store(true, Relaxed);
        self.users.end();
        io::Error::other(excess.into())
    }
}

/// A place among the requests that share a connection, until it is dropped.
#[derive(Debug)]
pub(super) struct StreamPlace(Arc<Known>);

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
    }
}

/// A socket that gives others their turn, and of which no more is read than is due.
pub(super) type Metered = Guarded<TcpStream, Meter>;

/// Counts what is read of a socket.
#[derive(Debug)]
pub(super) struct Meter {
    known: Arc<Known>,
    charge: Arc<Charge>,
    /// Bytes since the task last waited.
    in_turn: usize,
}

impl Metered {
    pub(super) fn new(stream: TcpStream, charge: Charge) -> Self {
        let guard = Meter { known: Arc::default(), charge: Arc::new(charge), in_turn: 0 };
        Self { stream, guard }
    }
}

impl Guard<TcpStream> for Meter {
    fn poll_read(
        &mut self,
        stream: Pin<&mut TcpStream>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.in_turn >= TURN {
            self.in_turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let Poll::Ready(read) = stream.poll_read(cx, buf) else {
            self.in_turn = 0;
            return Poll::Pending;
        };
        read?;
        let read = buf.filled().len() - before;
        self.in_turn += read;
        let read = u64::try_from(read).unwrap_or(u64::MAX);
        let Some(left) = self.known.bytes_left.load(Relaxed).checked_sub(read) else {
            return Poll::Ready(Err(self.known.give_up(Excess::Bytes)));
        };
        self.known.bytes_left.store(left, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl Connection for Metered {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

type Stream = MaybeHttpsStream<TokioIo<Metered>>;

/// A connection, TLS included, whose answers are bounded and plain.
pub(super) type Answers = Guarded<TokioIo<Stream>, Listener>;

/// Reads along what is said on a connection.
#[derive(Debug)]
pub(super) struct Listener {
    known: Arc<Known>,
    charge: Arc<Charge>,
    speech: Speech,
}

#[derive(Debug)]
enum Speech {
    Http1 {
        /// While an answer's head is awaited.
        head: Option<Box<HeadReader>>,
        /// What was read and hyper has not got.
        ready: Bytes,
        /// What comes after the head of an answer without a body is dropped.
        drops: bool,
    },
    Http2(Box<Frames>),
}

impl Answers {
    pub(super) fn new(stream: Stream) -> Self {
        let metered = match &stream {
            MaybeHttpsStream::Http(io) => io.inner(),
            MaybeHttpsStream::Https(io) => io.inner().get_ref().0.inner().inner(),
        };
        let Meter { known, charge, .. } = &metered.guard;
        let (known, charge) = (Arc::clone(known), Arc::clone(charge));
        let speech = if stream.connected().is_negotiated_h2() {
            known.http2.store(true, Relaxed);
            Speech::Http2(Box::default())
        } else {
            Speech::Http1 { head: None, ready: Bytes::new(), drops: false }
        };
        Self { stream: TokioIo::new(stream), guard: Listener { known, charge, speech } }
    }

    pub(super) fn known(&self) -> Arc<Known> {
        Arc::clone(&self.guard.known)
    }
}

impl Guard<TokioIo<Stream>> for Listener {
    fn poll_read(
        &mut self,
        stream: Pin<&mut TokioIo<Stream>>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { known, charge, speech } = self;
        match speech {
            Speech::Http1 { head, ready, drops } => {
                if head.is_some() {
                    ready!(poll_head(stream, cx, head, ready, drops, known))?;
                } else if ready.is_empty() {
                    if !*drops {
                        return stream.poll_read(cx, buf);
                    }
                    let mut nowhere = [MaybeUninit::uninit(); PIECE];
                    let mut dropped = ReadBuf::uninit(&mut nowhere);
                    ready!(stream.poll_read(cx, &mut dropped))?;
                    if !dropped.filled().is_empty() {
                        known.note_surplus();
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
                let n = ready.len().min(buf.remaining());
                buf.put_slice(&ready.split_to(n));
                Poll::Ready(Ok(()))
            }
            Speech::Http2(frames) => {
                let before = buf.filled().len();
                ready!(stream.poll_read(cx, buf))?;
                let read = buf.filled().get(before..).unwrap_or_default();
                frames.received(read).map_err(|error| known.give_up(error))?;
                if !charge.hold(frames.block_bytes()) {
                    return Poll::Ready(Err(known.give_up(Excess::Memory)));
                }
                known.answers.store(frames.answers(), Relaxed);
                known.goes_away.store(frames.goes_away(), Relaxed);
                known.wants_http1.store(frames.wants_http1(), Relaxed);
                Poll::Ready(Ok(()))
            }
        }
    }

    fn wrote(&mut self, bufs: &[IoSlice<'_>], mut n: usize) {
        for buf in bufs {
            let (written, _) = buf.split_at(n.min(buf.len()));
            n -= written.len();
            match &mut self.speech {
                Speech::Http1 { head, drops, .. } => {
                    if !written.is_empty() && self.known.request_due.swap(false, Relaxed) {
                        *head = Some(Box::default());
                        *drops = false;
                        self.known.answered.store(false, Relaxed);
                        self.known.begin_requests(1);
                    }
                }
                Speech::Http2(frames) => self.known.begin_requests(frames.sent(written)),
            }
        }
    }
}

/// Reads a head to its end: then `ready` holds it in plain form, with what came of the body.
fn poll_head(
    mut stream: Pin<&mut TokioIo<Stream>>,
    cx: &mut Context<'_>,
    head: &mut Option<Box<HeadReader>>,
    ready: &mut Bytes,
    drops: &mut bool,
    known: &Known,
) -> Poll<io::Result<()>> {
    let mut piece = [MaybeUninit::uninit(); PIECE];
    while let Some(reader) = head {
        let mut read = ReadBuf::uninit(&mut piece);
        ready!(stream.as_mut().poll_read(cx, &mut read))?;
        let read = read.filled();
        if read.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if !known.answered.swap(true, Relaxed) {
            known.answers.fetch_add(1, Relaxed);
        }
        let Some(done) = reader.read(read).map_err(|error| known.give_up(error))? else { continue };
        if done.surplus {
            known.note_surplus();
        }
        let mut plain = done.plain;
        if !done.bodiless {
            plain.extend_from_slice(read.get(done.used..).unwrap_or_default());
        }
        *drops = done.bodiless;
        *ready = plain.into();
        *head = None;
    }
    Poll::Ready(Ok(()))
}
