//! What the dispatcher asks the state database to make durable, in one transaction each time.

use std::sync::Arc;

use super::event::{AccountId, EndpointId, Event};
use super::lsn::Lsn;
use super::position::Position;

/// Orders the events of a stream: by position, and by type among those of one change.
///
/// The type is part of the key, not the rule's place in the configuration, so that the order
/// survives a change of configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
}

/// Deliveries to one endpoint that are settled although the frontier has not passed them.
///
/// Shape: both ends inclusive. It covers every event that was routed to `endpoint` for `account`
/// between them.
#[derive(Debug, Clone, PartialEq, Eq)]
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
pub struct DeadLetter {
    /// The event.
    pub event: Arc<Event>,
    /// The endpoint; none for an unroutable change.
    pub endpoint: Option<EndpointId>,
    /// Why.
    pub reason: DeadReason,
    /// The last error for a person: lowercase, no secrets.
    pub detail: String,
    /// How many attempts were made.
    pub attempts: u32,
    /// The status of the last answer, where there was one.
    pub last_status: Option<u16>,
}

/// How an operator's retry of a dead letter ended.
#[derive(Debug, Clone)]
pub struct Retried {
    /// The dead letter's id in its table.
    pub dead_letter: i64,
    /// The job that asked for it.
    pub job: i64,
    /// `None`: delivered, the dead letter goes; else it stays, with this error.
    pub error: Option<DeadLetter>,
}

/// walhook switches an endpoint off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DisableEndpoint {
    /// Which.
    pub endpoint: EndpointId,
    /// Why, for a person.
    pub reason: String,
}

/// All that one state transaction makes durable together.
///
/// Invariant: `frontier` never decreases from one batch to the next, and passes no delivery whose
/// dead letter is only in this batch.
#[derive(Debug, Clone, Default)]
pub struct PersistBatch {
    /// Everything before this is settled.
    pub frontier: Lsn,
    /// Settled ahead of the frontier; appended, never rewritten.
    pub settled: Vec<SettledRange>,
    /// To be inserted; one that is there already (event id, endpoint) is left as it is.
    pub dead_letters: Vec<DeadLetter>,
    /// Results of operators' retries.
    pub retried: Vec<Retried>,
    /// Endpoints to switch off.
    pub disabled: Vec<DisableEndpoint>,
    /// Endpoints to switch on again: their row was changed.
    pub enabled: Vec<EndpointId>,
}
