//! Events whose account's endpoints are not known: rows without an endpoint.

use std::sync::Arc;

use super::{EventKey, SettledRange};
use crate::event::{AccountId, EndpointId, Event};
use crate::lsn::Lsn;

/// What stands for "no endpoint" in settled ranges. No id of an endpoint is this text: PostgreSQL's text
/// holds no NUL.
pub const NO_ENDPOINT: &str = "\0";

/// Names a row of the table `unrouted`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct UnroutedKey {
    /// The account.
    pub account: AccountId,
    /// The event's place in the stream, and so among the account's rows.
    pub event: EventKey,
}

/// How far the event of a row has been routed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct Routed {
    /// The row.
    pub row: UnroutedKey,
    /// Endpoints up to this one, in the order of their ids, have theirs; `None`: all have, and the row
    /// goes.
    pub to: Option<EndpointId>,
}

/// An account that has rows of the table `unrouted`, as the next leader must know it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct UnroutedAccount {
    /// The account.
    pub account: AccountId,
    /// How many rows it has, this batch included; with 0 it is forgotten.
    pub rows: u64,
    /// Deliveries of these events that an earlier leader had settled before they became rows.
    pub settled: Vec<SettledRange>,
}

/// Asks for rows of one account.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct UnroutedRefill {
    /// Which.
    pub account: AccountId,
    /// Rows behind this one, in their order; `None`: from the first.
    pub after: Option<EventKey>,
    /// At most so many; above 0.
    pub rows: u32,
    /// Bodies of at most so many bytes together, but one row at least.
    pub bytes: u64,
}

/// A row of the table `unrouted`, read back.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Unrouted {
    /// The event.
    pub event: Arc<Event>,
    /// Endpoints up to this one have theirs.
    pub routed_to: Option<EndpointId>,
}

/// The answer to an [`UnroutedRefill`].
#[derive(Debug, Clone)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct UnroutedPage {
    /// The account asked for.
    pub account: AccountId,
    /// Its rows, in their order.
    pub rows: Vec<Unrouted>,
    /// Whether no row stands behind these.
    pub end: bool,
}

/// An endpoint that came to be, or came to an account, while events of somebody could not be routed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Joined {
    /// Which.
    pub endpoint: EndpointId,
    /// Where the transaction commits that made it so: events that commit before are not for it.
    pub at: Lsn,
}

/// Removes the oldest rows of an account, and counts them in its gap.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct UnroutedPurge {
    /// Which.
    pub account: AccountId,
    /// At most so many rows.
    pub rows: u32,
}

/// What an [`UnroutedPurge`] came to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct UnroutedPurged {
    /// The account.
    pub account: AccountId,
    /// How many rows were removed.
    pub rows: u64,
    /// Whether none is left.
    pub all: bool,
}
