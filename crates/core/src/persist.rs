//! What the dispatcher asks the state database to make durable, in one transaction each time.

use std::sync::Arc;
use std::time::Duration;

use super::event::{AccountId, EndpointId, Event};
use super::heap::block;
use super::id::{DeadLetterId, JobId, ReplayId};
use super::lsn::Lsn;
use super::notice::Notice;
use super::position::{EventId, Position};

mod gap;
mod unrouted;

pub use gap::{GapChange, LETTERS_MAX, Purge, Purged};
pub use unrouted::{
    Joined, NO_ENDPOINT, Routed, Unrouted, UnroutedAccount, UnroutedKey, UnroutedPage,
    UnroutedPurge, UnroutedPurged, UnroutedRefill,
};

/// Orders the events of a stream: by position, and by type among those of one change.
///
/// The type is part of the key, not the rule's place in the configuration, so that the order
/// survives a change of configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct EventKey {
    /// Where the change stands.
    pub position: Position,
    /// The event's type.
    pub event_type: Arc<str>,
}

impl EventKey {
    /// The key of `event`.
    #[must_use]
    pub fn of(event: &Event) -> Self {
        Self { position: event.position, event_type: Arc::clone(&event.event_type) }
    }

    /// Before every event of the change at `position`, and after those of all earlier changes.
    #[must_use]
    pub fn before_all_at(position: Position) -> Self {
        Self { position, event_type: "".into() }
    }
}

/// Deliveries to one endpoint that are settled although the frontier has not passed them.
///
/// Shape: both ends inclusive. It covers every event that was routed to `endpoint` for `account`
/// between them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct SettledRange {
    /// The account whose events these are.
    pub account: AccountId,
    /// The endpoint they were routed to.
    pub endpoint: EndpointId,
    /// The first.
    pub from: EventKey,
    /// The last; not before `from`.
    pub to: EventKey,
}

/// Why a delivery ended as a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub enum DeadReason {
    /// The last attempt failed.
    Exhausted,
    /// The endpoint answered 410, or was found disabled (by walhook or by its row).
    EndpointDisabled,
    /// The endpoint's row cannot be used.
    EndpointInvalid,
    /// The change could not be turned into an event; there is no endpoint.
    Unroutable,
}

impl DeadReason {
    /// The word in the state tables and the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::EndpointDisabled => "endpoint_disabled",
            Self::EndpointInvalid => "endpoint_invalid",
            Self::Unroutable => "unroutable",
        }
    }
}

/// A delivery (or an unroutable change) that leaves memory for the table of dead letters.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct DeadLetter {
    /// The event.
    pub event: Arc<Event>,
    /// The endpoint; none for an unroutable change.
    pub endpoint: Option<EndpointId>,
    /// Why.
    pub reason: DeadReason,
    /// The last error for a person: lowercase, no secrets.
    #[cfg_attr(feature = "record", serde(with = "crate::record::text"))]
    pub detail: String,
    /// How many attempts were made.
    pub attempts: u32,
    /// The status of the last answer, where there was one.
    pub last_status: Option<u16>,
    /// The attempts that no stored row tells of yet, oldest first.
    pub history: Vec<AttemptRecord>,
    /// The replay that the delivery belongs to; none: it is the stream's.
    pub replay: Option<ReplayId>,
}

/// How far a replay is, from its beginning on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct ReplayCounts {
    /// Deliveries that an endpoint took at once.
    pub done: i64,
    /// Deliveries that ended as dead letters without having been deferred.
    pub failed: i64,
    /// Deliveries that were deferred, whatever became of them since: as many rows were inserted.
    pub deferred: i64,
    /// Deliveries whose endpoint was removed before they were sent or deferred.
    pub dropped: i64,
    /// Deliveries that were counted in the gaps of suspended queues instead of being deferred.
    pub in_gaps: i64,
}

impl ReplayCounts {
    /// Deliveries that need not be in memory any more.
    #[must_use]
    pub fn total(&self) -> i64 {
        self.done + self.failed + self.deferred + self.dropped + self.in_gaps
    }
}

/// How an operator's retry of a dead letter ended.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct Retried {
    /// The dead letter's id in its table.
    pub dead_letter: DeadLetterId,
    /// The job that asked for it.
    pub job: JobId,
    /// `None`: delivered, the dead letter goes; else it stays, with this error.
    pub error: Option<DeadLetter>,
}

/// walhook switches an endpoint off.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct DisableEndpoint {
    /// Which.
    pub endpoint: EndpointId,
    /// Why, for a person.
    #[cfg_attr(feature = "record", serde(with = "crate::record::text"))]
    pub reason: String,
}

/// An operator stops the sending to an endpoint for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct PauseEndpoint {
    /// Which.
    pub endpoint: EndpointId,
    /// Why, for a person.
    #[cfg_attr(feature = "record", serde(with = "crate::record::text"))]
    pub reason: String,
    /// Since when: microseconds since 1970-01-01 UTC.
    pub since_us: i64,
}

/// A job that is finished with the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct JobDone {
    /// The job.
    pub job: JobId,
    /// How many of what it asked for was not so before.
    pub done: i64,
}

/// That an endpoint fails.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct EndpointError {
    /// The endpoint, and whose.
    pub queue: QueueId,
    /// Since when: microseconds since 1970-01-01 UTC.
    pub since_us: i64,
    /// Requests that have failed since.
    pub failed: u64,
    /// When the last one did: microseconds since 1970-01-01 UTC.
    pub last_us: i64,
    /// What it failed by, for a person: no secrets, a few hundred bytes.
    #[cfg_attr(feature = "record", serde(with = "crate::record::text"))]
    pub error: String,
}

/// All that one state transaction makes durable together.
///
/// Invariants: `frontier` never decreases from one batch to the next, and passes no delivery whose
/// dead letter or deferred row is only in this batch. A row stands at most once among `resolved`,
/// `dropped`, `retimed` and `died`.
///
/// The parts that concern deferred rows take effect in the order of these fields: a row may be in
/// `deferred` and in `resolved` both.
#[derive(Debug, Clone, Default)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct PersistBatch {
    /// Tells it from the leader's others: they are numbered from 1 on. Stored again, it has the same.
    pub number: u64,
    /// Everything before this is settled.
    pub frontier: Lsn,
    /// Settled ahead of the frontier; appended, never rewritten.
    pub settled: Vec<SettledRange>,
    /// To be inserted; one that is there already (event id, endpoint) is left as it is. Beyond the first
    /// [`LETTERS_MAX`] of a queue they are counted in one record.
    pub dead_letters: Vec<DeadLetter>,
    /// Results of operators' retries.
    pub retried: Vec<Retried>,
    /// How far replays are that went on since the last batch.
    pub replayed: Vec<(ReplayId, ReplayCounts)>,
    /// Endpoints to switch off.
    pub disabled: Vec<DisableEndpoint>,
    /// Endpoints that are stopped no more: their row was changed, or an operator says so.
    pub enabled: Vec<EndpointId>,
    /// Endpoints that an operator stops.
    pub paused: Vec<PauseEndpoint>,
    /// Jobs that are finished with this batch.
    pub jobs_done: Vec<JobDone>,
    /// Events without an endpoint to be inserted as rows; one that is there already is left as it is.
    pub unrouted: Vec<Arc<Event>>,
    /// Such rows that were routed: what became of each endpoint's delivery is in the same batch, or in an
    /// earlier one. A row may be in `unrouted` and here both.
    pub routed: Vec<Routed>,
    /// The accounts that have such rows, as far as they changed.
    pub unrouted_accounts: Vec<UnroutedAccount>,
    /// Such rows to be removed, and counted in their accounts' gaps; answered by
    /// [`Persisted::unrouted_purged`].
    pub unrouted_purges: Vec<UnroutedPurge>,
    /// Transactions whose changes of watched tables look-ups may not show yet, to be remembered.
    pub unseen: Vec<u32>,
    /// Of those that are remembered, the ones that a look-up has seen.
    pub seen: Vec<u32>,
    /// Endpoints that joined meanwhile, to be remembered.
    pub joined: Vec<Joined>,
    /// No such row is left: what joined before need not be remembered.
    pub joined_passed: bool,
    /// Rows to be inserted; one that is there already is left as it is.
    pub deferred: Vec<Defer>,
    /// Rows to be removed: delivered.
    pub resolved: Vec<RowId>,
    /// Rows to be removed: nobody wants them any more.
    pub dropped: Vec<RowId>,
    /// Rows whose next attempt is later.
    pub retimed: Vec<(RowId, Tried)>,
    /// Rows that become dead letters.
    pub died: Vec<(RowId, DeadLetter)>,
    /// Rows of the table `backlog` to be inserted or replaced.
    pub backlog: Vec<BacklogRow>,
    /// Rows of the table `backlog` to be removed: none of their deferred rows is left.
    pub backlog_gone: Vec<QueueId>,
    /// Endpoints that fail, and what is known of it.
    pub errors: Vec<EndpointError>,
    /// Endpoints that fail no more.
    pub errors_gone: Vec<QueueId>,
    /// What someone is to be notified of.
    pub notices: Vec<Notice>,
    /// What the gaps of suspended queues are to say.
    pub gaps: Vec<GapChange>,
    /// Rows of suspended queues to be removed, and counted in their gaps; answered by
    /// [`Persisted::purged`].
    pub purges: Vec<Purge>,
    /// Dead letters to be removed, and counted in their queues' records; answered by
    /// [`Persisted::letters_purged`].
    pub letter_purges: Vec<Purge>,
}

/// What a batch came to, once it is durable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Persisted {
    /// What became of the batch's purges, in their order.
    pub purged: Vec<Purged>,
    /// What became of its purges of dead letters, in their order.
    pub letters_purged: Vec<Purged>,
    /// What became of its purges of rows without an endpoint, in their order.
    pub unrouted_purged: Vec<UnroutedPurged>,
    /// Queues whose dead letters are counted in a record from this batch on, as they have
    /// [`LETTERS_MAX`] rows.
    pub beyond: Vec<QueueId>,
}

impl Persisted {
    /// Takes what a further part of the same batch came to.
    pub fn add(&mut self, part: Self) {
        self.purged.extend(part.purged);
        self.letters_purged.extend(part.letters_purged);
        self.unrouted_purged.extend(part.unrouted_purged);
        self.beyond.extend(part.beyond);
    }
}

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
    /// It held the frontier back for too long.
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
