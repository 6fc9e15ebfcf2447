//! What the leader tells the fleet, and what the fleet wants done.

use std::time::Duration;

use super::adopt::Before;
use crate::frame::{ByeReason, Digest, Frame, PipelineId, Refusal, SessionId, Versions};
use walhook_core::attempt::{Attempt, DeliveryId, Outcome};
use walhook_core::id::Epoch;
use walhook_core::tick::Tick;

/// How a leader uses its fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetSettings {
    /// The leader's.
    pub epoch: Epoch,
    /// What it leads. Frames of another one's workers are none of its own.
    pub pipeline: PipelineId,
    /// What it speaks: [`SPOKEN`](crate::frame::SPOKEN).
    pub versions: Versions,
    /// How long a grant lasts: `workers.lease`.
    pub lease: Duration,
    /// What a request takes at most, once it has begun: `delivery.timeout`.
    pub timeout: Duration,
    /// Whether it sends too: `workers.local`.
    pub local: Local,
    /// What it sends itself at once, where it does.
    pub own: Slots,
    /// What a worker's `[egress]` must come to; `None`: `workers.egress = "own"`.
    pub egress: Option<Digest>,
    /// What leaders before it have sent.
    pub before: Before,
    /// Random. Of the order in which workers are preferred: whoever knows it could choose hosts that meet on one
    /// worker. And of the keys, so that no two leaders have one in common.
    pub seed: u64,
}

/// Whether the leader sends requests itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Local {
    /// While no worker serves, and what is too large for the bus.
    Fallback,
    /// Always, like a worker.
    Always,
    /// Never.
    Never,
}

/// Requests at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slots {
    /// To endpoints that answer within a second.
    pub fast: u32,
    /// To slower ones.
    pub slow: u32,
}

/// What [`Fleet::place`](super::Fleet::place) has decided for an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// The leader sends it itself; the fleet knows no more of it.
    Local,
    /// The fleet has it: one [`FleetEffect::Ended`] follows.
    Taken,
    /// The bus does not take so large a message, and the leader does not send (`local = "never"`): the fleet does not
    /// have it.
    TooLarge,
}

/// What comes in.
#[derive(Debug)]
pub enum FleetInput {
    /// A worker's frame. One that cannot be read is [`FleetInput::Unreadable`].
    Frame(Box<Frame>),
    /// A frame that names this session cannot be read.
    Unreadable(SessionId),
    /// This frame of a session reached nobody, for certain: the bus has said so
    /// ([`Inbox::Unheard`](crate::subjects::Inbox::Unheard)), or did not take it from the packer. Those behind it
    /// count for nothing then, whether they were published or not.
    Unheard {
        /// The session.
        session: SessionId,
        /// The frame's number.
        seq: u64,
    },
    /// The packer has handed all frames of a session up to this one to the bus. Each frame comes here, or as
    /// [`FleetInput::Unheard`].
    Published {
        /// The session.
        session: SessionId,
        /// The last one's number.
        seq: u64,
    },
    /// How the leader's connection to the bus is. Until this has come it is taken to be away. To be said at each
    /// loss, however short.
    Bus {
        /// Whether it is there.
        connected: bool,
        /// Bytes of one message that it takes.
        max_payload: usize,
    },
    /// The dispatcher gives up a request that the fleet has, or had. Of one that the leader carries for the fleet
    /// ([`FleetEffect::CarryLocally`]) nothing is done here: the leader gives it up itself, and its end is told.
    Aborted(DeliveryId),
    /// This attempt cannot be sent at all (its URL is none, or it was not signed in time), so that the packer has left it
    /// out of its frame. It may have come back meanwhile, and its delivery be under way anew.
    Refused {
        /// The session.
        session: SessionId,
        /// The attempt's ([`Packed::key`]).
        key: u64,
        /// Why.
        outcome: Outcome,
    },
    /// What came of an attempt that the leader has carried for the fleet ([`FleetEffect::CarryLocally`]).
    Ended {
        /// Which.
        delivery: DeliveryId,
        /// What came of it.
        outcome: Outcome,
    },
    /// So many requests are under way at the leader itself, second opinions among them. To be said before polling,
    /// when it has changed.
    LocalInFlight(u32),
    /// What kept the leader from hearing outcomes may be over: workers that are mute are tried now.
    MayHear,
    /// The leader stops: no worker joins any more. What is in flight ends as before.
    Stop,
}

/// What is to be done.
#[derive(Debug)]
pub enum FleetEffect {
    /// These attempts are to be signed, and published as the frame `seq` of the session, with
    /// [`Subjects::reply`](crate::subjects::Subjects::reply) as its reply subject. All frames of a session are
    /// published in the order in which they are polled. Where all attempts of it cannot be prepared it is published
    /// empty: its number is used.
    Pack {
        /// The session.
        session: SessionId,
        /// The frame's number.
        seq: u64,
        /// How it is to be written.
        version: u8,
        /// At most [`ATTEMPTS_MAX`](crate::frame::ATTEMPTS_MAX).
        attempts: Vec<Packed>,
    },
    /// A frame to be published on the session's subject, in its turn among the session's others; likewise with its
    /// reply subject. One with `seq` 0 ([`Refused`](crate::frame::Refused)) is of no order, and nothing is to be told
    /// of it.
    Publish(Box<Frame>),
    /// A frame to be published to all workers. Nothing is to be told of it.
    PublishLead(Box<Frame>),
    /// The leader is to carry this one itself, after a worker could not: answered by [`FleetInput::Ended`].
    CarryLocally(Attempt),
    /// An attempt comes back: once for each that was taken.
    Ended {
        /// Which.
        delivery: DeliveryId,
        /// How.
        ending: Ending,
        /// What bus and worker took beside the request itself, where an outcome came from a worker.
        overhead: Option<Duration>,
    },
    /// Nothing is heard of the worker that carries these, or something again.
    Doubt {
        /// What it carries.
        deliveries: Vec<DeliveryId>,
        /// Whether nothing is heard.
        doubtful: bool,
    },
    /// So many requests may be in flight from now on, wherever they are.
    Slots(Slots),
    /// The workers, for the table `workers`: all of them, after a change, once a second at most.
    Workers(Vec<WorkerSeen>),
    /// A worker has become something, for the log and metrics.
    Changed(Box<WorkerChanged>),
    /// Workers have been asked what leaders before had ordered, and nothing waits for them any more: for the log.
    /// Said once, where there is something to say.
    TookOver {
        /// Deliveries that endpoints took, which were not asked for yet.
        delivered: usize,
        /// Requests that still run, likewise.
        running: usize,
        /// Sessions whose workers did not answer.
        silent: usize,
    },
}

/// An attempt with the key under which the worker answers.
#[derive(Debug, Clone)]
pub struct Packed {
    /// [`Request::key`](crate::frame::Request::key).
    pub key: u64,
    /// The attempt.
    pub attempt: Attempt,
}

/// How an attempt comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// With its outcome.
    Outcome(Outcome),
    /// Surely not begun: it was no attempt.
    Unsent,
    /// Its worker was lost; the endpoint may have received it.
    Lost {
        /// Since it was placed.
        elapsed: Duration,
    },
}

/// How a worker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkerState {
    /// It is heard, and has not shown yet that it hears the leader: it takes nothing.
    Joining,
    /// It takes requests.
    Serving,
    /// It ends what it has, and takes no more.
    Draining,
    /// What it could not send, others could: it takes one request at a time.
    Quarantined,
    /// It is heard, and what became of its requests is not: it takes nothing for a while, then one at a time.
    Mute,
    /// Nothing has been heard of it for half a lease.
    Silent,
    /// It has left, with nothing in flight.
    Left,
    /// Its lease has run out.
    Lost,
    /// It was not taken.
    Refused,
}

impl WorkerState {
    /// The word in metrics, the table and views.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Quarantined => "quarantined",
            Self::Mute => "mute",
            Self::Silent => "silent",
            Self::Left => "left",
            Self::Lost => "lost",
            Self::Refused => "refused",
        }
    }
}

/// A worker, as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerSeen {
    /// Its session.
    pub session: SessionId,
    /// Its machine.
    pub host: String,
    /// Its build.
    pub build: String,
    /// How it stands; neither left nor lost nor refused.
    pub state: WorkerState,
    /// Requests that it takes at once.
    pub slots: Slots,
    /// Requests that it has.
    pub in_flight: u32,
    /// How many of the worker's attempts were lost so far, in earlier sessions of the same process. 0 for one of an
    /// earlier build, which does not say which worker it is.
    pub lost: u64,
    /// Since when it is in this state.
    pub since: Tick,
    /// When it was heard last.
    pub seen: Tick,
}

/// A worker has become something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerChanged {
    /// Its session.
    pub session: SessionId,
    /// Its machine.
    pub host: String,
    /// Its build.
    pub build: String,
    /// What it is now.
    pub state: WorkerState,
    /// Why, where it was not taken.
    pub refused: Option<Refusal>,
    /// Why, where it ended the session.
    pub bye: Option<ByeReason>,
    /// Attempts that were lost, or that came back unsent, with this change.
    pub lost: u32,
    /// For how long, where it is quarantined or mute.
    pub quarantine: Option<Duration>,
}

/// What has been counted since the leader began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FleetCounters {
    /// Attempts taken.
    pub taken: u64,
    /// Attempts that were not sent, for a worker knew from an earlier leader that the endpoint had taken them.
    pub adopted_delivered: u64,
    /// Attempts that were not sent, for they were under way from an earlier leader.
    pub adopted_running: u64,
    /// Attempts that came back as lost.
    pub lost: u64,
    /// Attempts that came back as unsent.
    pub unsent: u64,
    /// Outcomes of attempts that were no longer the fleet's.
    pub late: u64,
    /// Second opinions that reached the endpoint: the first worker was to blame.
    pub contradicted: u64,
    /// Second opinions that failed before a request too: the endpoint was.
    pub confirmed: u64,
    /// Second opinions that told neither.
    pub undecided: u64,
    /// Sessions that were lost.
    pub sessions_lost: u64,
    /// Sessions that were refused.
    pub sessions_refused: u64,
    /// Times that a worker was put into quarantine.
    pub quarantines: u64,
    /// Times that a session ended since an attempt of it was overdue.
    pub overdue: u64,
    /// Frames that could not be read, or were of another epoch.
    pub strange: u64,
    /// Frames of workers that serve another pipeline.
    pub foreign: u64,
    /// Hellos for a leader of this pipeline with a higher epoch: its workers take nothing of this one.
    pub ahead: u64,
}

/// How the fleet stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FleetGauges {
    /// Workers that have not shown yet that they hear the leader.
    pub joining: usize,
    /// Sessions, also such as have ended, that were granted a lease and have not shown within it that they heard so.
    pub unconfirmed: usize,
    /// Workers that serve.
    pub serving: usize,
    /// Workers that drain.
    pub draining: usize,
    /// Workers in quarantine.
    pub quarantined: usize,
    /// Workers of which it is not heard what becomes of their requests.
    pub mute: usize,
    /// Workers of which nothing is heard.
    pub silent: usize,
    /// Attempts that the fleet has.
    pub in_flight: usize,
    /// What was told last.
    pub slots: Slots,
    /// Whether the bus was lately slow for what is published to workers.
    pub slow: bool,
    /// The bytes of the largest request that the bus does not take, where one came within an hour.
    pub too_large: Option<u64>,
}
