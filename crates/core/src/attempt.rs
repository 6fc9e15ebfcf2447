//! One attempt: what the transport is asked to do, and what came of it.

use std::sync::Arc;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::event::Event;

/// A delivery's handle while it is in memory: unique within one process.
///
/// Invariant: along one endpoint, ids grow in stream order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(pub u64);

/// A request to send.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Which delivery this is an attempt of; the outcome names it again.
    pub delivery: DeliveryId,
    /// Where to, as it stood at this moment.
    pub endpoint: Arc<Endpoint>,
    /// What.
    pub event: Arc<Event>,
    /// Counts from 1.
    pub number: u32,
    /// Whether this is sent again on an operator's wish (the header `<prefix>-replay`).
    pub replay: bool,
}

/// What came of one attempt. Nothing else follows from it here: settling decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The answer, or why there was none.
    pub result: Result<Answer, Failure>,
    /// From the call to the end of the answer.
    pub elapsed: Duration,
    /// How often the request was sent again on another connection within the attempt, because the
    /// one before it surely did not answer it.
    pub resends: u32,
}

/// The endpoint answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The wait that `Retry-After` asked for, from now, where it did so legibly.
    pub retry_after: Option<Duration>,
    /// The first bytes of the body, at most 1 KiB, made printable; empty for a 2xx.
    pub excerpt: String,
}

/// There was no (whole) answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What failed.
    pub kind: FailureKind,
    /// For a person: lowercase, without secrets, at most 1 KiB.
    pub detail: String,
}

/// What failed, as far as the policy or the operator cares: the label of
/// `walhook_attempts_total{outcome}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    /// The URL cannot be used, or a header of the endpoint's row is not a header.
    Invalid,
    /// The address is one that must not be contacted.
    Forbidden,
    /// The name did not resolve.
    Dns,
    /// No connection: refused, unreachable, or not within the time for connecting.
    Connect,
    /// The proxy could not be reached, or opened no tunnel.
    Proxy,
    /// The TLS handshake or the certificate failed.
    Tls,
    /// No whole answer within the time for the request.
    Timeout,
    /// The connection broke, or what came was no HTTP.
    Protocol,
    /// walhook gave it up early, since too many endpoints hung at once: it says nothing of this one, which
    /// may have received it.
    Aborted,
    /// The process had no file, port or memory left for it: it was not sent, and is no attempt.
    Local,
}

impl FailureKind {
    /// The word in metrics and in the state tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Forbidden => "forbidden",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Proxy => "proxy",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::Aborted => "aborted",
            Self::Local => "local",
        }
    }
}

impl Outcome {
    /// What came of a request that was sent once.
    #[must_use]
    pub fn new(result: Result<Answer, Failure>, elapsed: Duration) -> Self {
        Self { result, elapsed, resends: 0 }
    }

    /// Whether the endpoint took the event: a 2xx.
    #[must_use]
    pub fn delivered(&self) -> bool {
        matches!(&self.result, Ok(answer) if (200..300).contains(&answer.status))
    }

    /// Whether walhook gave the request up, so that the endpoint is not to blame.
    #[must_use]
    pub fn aborted(&self) -> bool {
        matches!(&self.result, Err(failure) if failure.kind == FailureKind::Aborted)
    }

    /// Whether it was not sent for want of something of our own: it says nothing of the endpoint.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(&self.result, Err(failure) if failure.kind == FailureKind::Local)
    }
}
