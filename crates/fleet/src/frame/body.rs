//! What each kind of frame says.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::{SessionId, Versions, WorkerId};
use walhook_core::attempt::Outcome;
use walhook_core::delivery_key::DeliveryKey;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::position::EventId;

/// What a frame says.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Somebody leads.
    Lead(Lead),
    /// A worker is there.
    Hello(Hello),
    /// Requests that the worker is to send.
    Attempts(Attempts),
    /// The worker may begin requests for another lease, and outcomes have come.
    Grant(Grant),
    /// Requests that the worker is to give up.
    Abort(Abort),
    /// The leader has no use for the session.
    Refused(Refused),
    /// What came of requests.
    Outcomes(Outcomes),
    /// The worker takes nothing more of this session.
    Bye(Bye),
}

/// Said to all, twice a second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lead {
    /// What the leader speaks.
    pub versions: Versions,
    /// How long a grant lasts.
    pub lease: Duration,
    /// What a worker's `[egress]` must come to; `None`: it may have its own.
    pub egress: Option<Digest>,
    /// Workers are to tell what they carried for leaders before this one; one of an earlier build does not ask.
    pub asks: bool,
}

/// Said by a worker four times a lease, and when something changes. The frame's `seq` counts a session's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// What the worker speaks.
    pub versions: Versions,
    /// Requests that it sends at once to endpoints that answer within a second.
    pub fast_slots: u32,
    /// Requests that it sends at once to slower ones.
    pub slow_slots: u32,
    /// Bytes of requests that it holds at once.
    pub byte_budget: u64,
    /// What its boot-time clock showed: microseconds. A grant names it again.
    pub stamp_us: u64,
    /// It has taken the frames of the session up to this one.
    pub received_upto: u64,
    /// Whether it takes more.
    pub state: HelloState,
    /// The name of its machine, for people.
    pub host: String,
    /// Its build, for people.
    pub build: String,
    /// Of its `[egress]`.
    pub egress: Digest,
    /// The session's first outcomes, so many, are of leaders before this one: see [`Earlier`].
    pub kept: u64,
    /// Until it has been granted once: the last sessions that its worker had under leaders before this one, at most
    /// [`FORMER_MAX`](super::FORMER_MAX).
    pub former: Vec<SessionId>,
    /// Which worker it is; one of an earlier build does not say.
    pub worker: Option<WorkerId>,
}

/// Whether a session takes more requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HelloState {
    /// It does.
    Serving,
    /// It has ended: what comes after `received_upto` is not begun.
    Closing(ByeReason),
}

/// Requests for one worker, in the order in which they were decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempts {
    /// At most [`ATTEMPTS_MAX`](super::ATTEMPTS_MAX).
    pub requests: Vec<Request>,
}

/// One request, whole: a worker adds nothing to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// The fleet's key of the attempt: its outcome names it again. No other attempt of the epoch has it.
    pub key: u64,
    /// Which attempt of its delivery, from 1.
    pub number: u32,
    /// For the whole request. In whole milliseconds.
    pub timeout: Duration,
    /// Whose it is: names are looked up for so many at once of one account.
    pub account: AccountId,
    /// The endpoint's id.
    pub endpoint: EndpointId,
    /// The event's id.
    pub event: EventId,
    /// What the worker tells a later leader of it by; a leader of an earlier build does not say.
    pub delivery: Option<DeliveryKey>,
    /// Where to.
    pub url: String,
    /// All headers, with the signature.
    pub headers: Vec<(String, Bytes)>,
    /// What is posted.
    pub body: Bytes,
}

impl fmt::Debug for Request {
    /// Without URL, headers and body, which may hold what is secret or the customer's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("key", &self.key)
            .field("number", &self.number)
            .field("endpoint", &self.endpoint)
            .field("event", &self.event)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Answers a [`Hello`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The stamp of that `Hello`. Requests may begin until a lease after it.
    pub stamp_us: u64,
    /// How long.
    pub lease: Duration,
    /// Outcomes of the session with lower numbers have come.
    pub outcomes_upto: u64,
    /// The leader knows that the session takes nothing more.
    pub closed: bool,
}

/// Gives requests up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abort {
    /// Their keys, at most [`ABORTS_MAX`](super::ABORTS_MAX).
    pub keys: Vec<u64>,
}

/// The session is over for the leader: nothing that it ordered is wanted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub why: Refusal,
}

/// Why a session is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// Leader and worker speak no version in common.
    Version,
    /// The worker's `[egress]` is not the leader's.
    Egress,
    /// There are as many workers as a leader takes.
    Full,
    /// The leader counts it among the lost: the worker joins again with another.
    Lost,
}

impl Refusal {
    /// For a person.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Version => {
                "it speaks no version of the leader's frames: bring both to neighbouring releases"
            }
            Self::Egress => {
                "its [egress] differs from the leader's: make them alike, or set workers.egress = \"own\" at the \
                 leader"
            }
            Self::Full => "there are as many workers as a leader takes: run fewer, larger ones",
            Self::Lost => "its lease had run out",
        }
    }
}

/// What came of requests, in the order in which they ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcomes {
    /// The first one's number: a session's are counted from 0.
    pub first: u64,
    /// At most [`OUTCOMES_MAX`](super::OUTCOMES_MAX).
    pub outcomes: Vec<WireOutcome>,
}

/// What came of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireOutcome {
    /// The attempt's key.
    pub key: u64,
    /// `None`: it was surely not begun. Its times are in whole microseconds, a wait that the endpoint asked for in
    /// whole milliseconds.
    pub outcome: Option<Outcome>,
    /// Set where it is no answer to this leader, but what the worker knows of an earlier one's request.
    pub earlier: Option<Earlier>,
}

/// What a worker tells of a request that a leader before this one ordered. The key beside it is the worker's own, from
/// [`EARLIER_KEYS`](super::EARLIER_KEYS) on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earlier {
    /// It runs: its outcome follows, by the same key.
    Runs(DeliveryKey),
    /// The endpoint took the event: with the outcome beside this.
    Delivered(DeliveryKey),
}

/// A session's last word but its outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bye {
    /// It has taken the frames up to this one, and begins nothing of a later one.
    pub received_upto: u64,
    /// Why.
    pub why: ByeReason,
}

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ByeReason {
    /// A frame did not come.
    Gap,
    /// The worker's connection to the bus was lost.
    Disconnected,
    /// Its lease ran out.
    Lease,
    /// The worker stops, or leads.
    Leaving,
    /// A frame of the session could not be read.
    Unreadable,
}

impl ByeReason {
    /// The word in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gap => "a frame did not come",
            Self::Disconnected => "its connection to the bus was lost",
            Self::Lease => "its lease ran out",
            Self::Leaving => "it is leaving",
            Self::Unreadable => "a frame could not be read",
        }
    }
}

/// What stands for an `[egress]`: SHA-256 of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    /// The first 16 hexadecimal digits: enough for a person to compare.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
