//! The rows of the table `deferred`, and what is known of a queue's: their names, what they say, how they are read
//! back.

use std::sync::Arc;
use std::time::Duration;

use super::EventKey;
use crate::event::{AccountId, EndpointId, Event};
use crate::heap::block;
use crate::id::ReplayId;
use crate::position::EventId;

/// The deliveries of one account to one endpoint: a queue in memory, a backlog in the table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct QueueId {
    /// The account.
    pub account: AccountId,
    /// The endpoint. One that moves to another account has a queue there too, for a while.
    pub endpoint: EndpointId,
}

/// Orders the rows of one queue: as the stream had them. Text compares by its bytes (`COLLATE "C"`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct RowKey {
    /// The event's place in the stream.
    pub event: EventKey,
    /// The replay that the delivery belongs to; none: it is the stream's.
    pub replay: Option<ReplayId>,
}

impl RowKey {
    /// The least key above this one.
    #[must_use]
    pub fn successor(&self) -> Self {
        let replay = Some(self.replay.map_or(ReplayId::FIRST, ReplayId::successor));
        Self { event: self.event.clone(), replay }
    }
}

/// Names a row of the table `deferred`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct RowId {
    /// The queue that it belongs to.
    pub queue: QueueId,
    /// Its place in the queue.
    pub key: RowKey,
    /// The event's id: with the endpoint and the replay it names the row too.
    pub event: EventId,
}

/// Why a delivery left memory for the table `deferred`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub enum DeferReason {
    /// Its quick attempts failed.
    Failed,
    /// Its queue, or memory as a whole, had no room for it.
    Overflow,
    /// The endpoint's breaker is open.
    Breaker,
    /// An operator has paused the endpoint.
    Paused,
    /// It held the frontier back for too long; or, of a replay, its endpoint is slow, and the replay went on without it.
    Held,
    /// An earlier delivery with one of its keys is deferred.
    Behind,
    /// Its account's endpoints could not be looked up when it came.
    Unrouted,
}

impl DeferReason {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 7] = [
        Self::Failed,
        Self::Overflow,
        Self::Breaker,
        Self::Paused,
        Self::Held,
        Self::Behind,
        Self::Unrouted,
    ];

    /// Its place in [`DeferReason::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The word in the state tables, the command line and the metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Overflow => "overflow",
            Self::Breaker => "breaker",
            Self::Paused => "paused",
            Self::Held => "held",
            Self::Behind => "behind",
            Self::Unrouted => "unrouted",
        }
    }
}

/// One attempt, as the history of a deferred row or a dead letter shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct AttemptRecord {
    /// When it ended: microseconds since 1970-01-01 UTC.
    pub at_us: i64,
    /// The status of the answer, where there was one.
    pub status: Option<u16>,
    /// From the call to the end of the answer.
    pub latency: Duration,
    /// For a person: what failed, with the answer's first KiB; no secrets.
    #[cfg_attr(feature = "record", serde(with = "crate::record::text"))]
    pub error: String,
}

/// What a deferred row says about the attempts so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct Tried {
    /// How many were made.
    pub attempts: u32,
    /// When the first one was made, on the queue's own clock: microseconds since 1970-01-01 UTC less
    /// the time for which the queue was stopped ([`BacklogRow::stopped_us`]).
    pub first_attempt_us: Option<i64>,
    /// No attempt before then, in microseconds since 1970-01-01 UTC. `None`: when its turn comes.
    pub due_us: Option<i64>,
    /// The status of the last answer, where there was one.
    pub last_status: Option<u16>,
    /// The last error, for a person; empty when nothing failed.
    #[cfg_attr(feature = "record", serde(with = "crate::record::text"))]
    pub detail: String,
    /// The attempts that the row does not tell of yet, oldest first.
    pub history: Vec<AttemptRecord>,
}

impl Tried {
    /// What it holds in memory, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let errors = self.history.iter().map(|attempt| block(attempt.error.len())).sum::<usize>();
        block(size_of::<Self>())
            + block(self.detail.len())
            + block(self.history.capacity() * size_of::<AttemptRecord>())
            + errors
    }
}

/// A delivery that leaves memory for the table `deferred`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct Defer {
    /// The row's name.
    pub id: RowId,
    /// The event.
    pub event: Arc<Event>,
    /// Why.
    pub reason: DeferReason,
    /// What was tried.
    pub tried: Tried,
}

/// A row of the table `deferred`, read back.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Deferred {
    /// Its place in its queue.
    pub key: RowKey,
    /// The event.
    pub event: Arc<Event>,
    /// How many attempts were made.
    pub attempts: u32,
    /// See [`Tried::first_attempt_us`].
    pub first_attempt_us: Option<i64>,
    /// See [`Tried::due_us`].
    pub due_us: Option<i64>,
}

/// Asks for rows of one queue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct Refill {
    /// Which.
    pub queue: QueueId,
    /// Rows from this one on, in their order; `None`: from the first.
    pub from: Option<RowKey>,
    /// At most so many; above 0.
    pub rows: u32,
    /// Bodies of at most so many bytes together, but one row at least.
    pub bytes: u64,
}

/// The answer to a [`Refill`].
#[derive(Debug, Clone)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Refilled {
    /// The queue asked for.
    pub queue: QueueId,
    /// Its rows, in their order.
    pub rows: Vec<Deferred>,
    /// Whether no row stands behind these.
    pub end: bool,
}

/// Which deliveries are to be appended to the table, instead of being sent at once.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub enum Blocked {
    /// Those that hold one of these keys. Few.
    Keys(Vec<u64>),
    /// All.
    All,
}

/// A queue that has deferred rows, as the table `backlog` keeps it for the next leader.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct BacklogRow {
    /// The queue.
    pub queue: QueueId,
    /// Which deliveries join it.
    pub blocked: Blocked,
    /// How many rows it has, this batch included.
    pub rows: u64,
    /// Since when nothing but failures came from the endpoint: microseconds since 1970-01-01 UTC.
    pub failing_since_us: Option<i64>,
    /// For how long it was stopped so far: paused, or its breaker open. Without a pause that lasts, which
    /// says itself since when.
    pub stopped_us: i64,
    /// Until its breaker is closed: when it is tried next, in microseconds since 1970-01-01 UTC. For
    /// people, and so that the next leader can tell that the endpoint has recovered.
    pub open_until_us: Option<i64>,
}
