//! What the dispatcher asks the state database to make durable, in one transaction each time.

use std::sync::Arc;

use super::delivery_log::Entry;
use super::event::{AccountId, EndpointId, Event};
use super::id::{DeadLetterId, JobId, ReplayId};
use super::lsn::Lsn;
use super::notice::Notice;
use super::position::Position;

mod gap;
mod rows;
mod start;
mod unrouted;

pub use gap::{GapChange, LETTERS_MAX, Purge, Purged};
pub use rows::{
    AttemptRecord, BacklogRow, Blocked, Defer, DeferReason, Deferred, QueueId, Refill, Refilled,
    RowId, RowKey, Tried,
};
pub use start::Start;
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
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 4] =
        [Self::Exhausted, Self::EndpointDisabled, Self::EndpointInvalid, Self::Unroutable];

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
    /// Lines of the delivery log, in the order in which they happened. They are left out rather than that one of them
    /// keeps all else from being stored.
    pub log: Vec<Entry>,
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
    /// Lines of the delivery log that were left out.
    #[cfg_attr(feature = "record", serde(default))]
    pub log_dropped: u64,
}

impl PersistBatch {
    /// What is to be carried out again of a batch that is stored, and whose answer nobody has heard: what removes
    /// rows that it does not name, since nobody knows how many that were. All else would bring back what somebody
    /// may have removed since.
    #[must_use]
    pub fn unanswered(&self) -> Self {
        Self {
            number: self.number,
            frontier: self.frontier,
            purges: self.purges.clone(),
            letter_purges: self.letter_purges.clone(),
            unrouted_purges: self.unrouted_purges.clone(),
            ..Self::default()
        }
    }
}

impl Persisted {
    /// Takes what a further part of the same batch came to.
    pub fn add(&mut self, part: Self) {
        self.purged.extend(part.purged);
        self.letters_purged.extend(part.letters_purged);
        self.unrouted_purged.extend(part.unrouted_purged);
        self.beyond.extend(part.beyond);
        self.log_dropped += part.log_dropped;
    }
}
