//! A worker's one way in and one way out.

use crate::frame::{Digest, Frame, Refusal, Request, SessionId, Versions};
use walhook_core::attempt::Outcome;

/// How a worker serves.
#[derive(Debug, Clone)]
pub struct ServeSettings {
    /// What it speaks: [`SPOKEN`](crate::frame::SPOKEN).
    pub versions: Versions,
    /// Requests at once to endpoints that answer within a second.
    pub fast_slots: u32,
    /// Requests at once to slower ones.
    pub slow_slots: u32,
    /// Bytes of requests at once: [`BYTE_BUDGET`](crate::BYTE_BUDGET).
    pub byte_budget: u64,
    /// The machine, for people.
    pub host: String,
    /// The build, for people.
    pub build: String,
    /// Of its `[egress]`.
    pub egress: Digest,
    /// Random: sessions are named by it.
    pub seed: [u8; 32],
}

/// An attempt at this worker: keys are a leader's, so the session stands beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptKey {
    /// Whose.
    pub session: SessionId,
    /// The leader's key.
    pub key: u64,
}

/// What comes in.
#[derive(Debug)]
pub enum ServeInput {
    /// A frame of a leader's.
    Frame(Box<Frame>),
    /// A frame that names this session cannot be read.
    Unreadable(SessionId),
    /// How the connection to the bus is. Until this has come it is taken to be away. To be said at each loss, however
    /// short, and of frames that were dropped on the way in.
    Bus {
        /// Whether it is there.
        connected: bool,
        /// The largest message that it takes, in bytes.
        max_payload: usize,
    },
    /// What came of a request: answers [`ServeEffect::Begin`], once, unless it was given up. `None`: it was not begun,
    /// for instance since its time had come when its turn had.
    Ended {
        /// Which.
        key: AttemptKey,
        /// What came of it.
        outcome: Option<Outcome>,
    },
    /// No work is taken any more. What runs ends, and is heard.
    Drain,
}

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// [`Subjects::hello`](crate::subjects::Subjects::hello).
    Hello,
    /// [`Subjects::leader`](crate::subjects::Subjects::leader), by the frame's epoch and session.
    Leader,
}

/// What is to be done, in this order.
#[derive(Debug)]
pub enum ServeEffect {
    /// [`Subjects::worker`](crate::subjects::Subjects::worker) of this session is to be heard, before the next frame is
    /// published.
    Subscribe(SessionId),
    /// It is no longer to be heard.
    Unsubscribe(SessionId),
    /// The request is to be sent, if it begins while the boot-time clock shows less than `until_us`: whoever begins
    /// it looks at the clock again.
    Begin {
        /// Which.
        key: AttemptKey,
        /// The request.
        request: Box<Request>,
        /// The end of the lease: microseconds.
        until_us: u64,
    },
    /// A request is to be dropped. Nothing is to be told of it any more.
    GiveUp(AttemptKey),
    /// A frame is to be published.
    Publish {
        /// Where.
        to: To,
        /// What.
        frame: Box<Frame>,
    },
    /// How the worker stands has changed.
    State(ServeState),
}

/// How a worker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServeState {
    /// It has not heard of a leader, or not any more.
    Waiting,
    /// It has told a leader of itself.
    Joining,
    /// It may begin requests.
    Serving,
    /// The leader does not take it.
    Refused(Refusal),
    /// It takes no more.
    Draining,
}
