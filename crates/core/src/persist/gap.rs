//! A suspended queue: what would be its deferred rows is one record of a gap.

use super::QueueId;
use crate::lsn::Lsn;

/// What the growing gap of a suspended queue is to say. It is closed to growth with the suspension.
///
/// Counts are whole, so that a change that is stored twice counts once.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct GapChange {
    /// The queue.
    pub queue: QueueId,
    /// The gap begins with this batch, for this reason; a growing one stays as it is.
    #[cfg_attr(feature = "record", serde(with = "crate::record::text_option"))]
    pub opens: Option<String>,
    /// Deliveries that were counted in it since it began, instead of being deferred.
    pub skipped: u64,
    /// The first and the last commit LSN among those that this leader counted.
    pub span: Option<(Lsn, Lsn)>,
    /// Whether the queue stays suspended.
    pub growing: bool,
}

/// Dead letters of a queue that are rows. Those after are counted in one record of the table `gaps`: the
/// range of their commits, how many, and why the last one died.
pub const LETTERS_MAX: u32 = 1_000;

/// Removes the oldest rows of a suspended queue, and counts them in its growing gap. Without such a gap
/// it removes nothing. Of dead letters: any of the queue's, counted in its record of those.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct Purge {
    /// Which.
    pub queue: QueueId,
    /// At most so many rows; pages are removed whole, and so of the last one what it holds beyond.
    pub rows: u32,
}

/// What a [`Purge`] came to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Purged {
    /// The queue.
    pub queue: QueueId,
    /// How many rows were removed.
    pub rows: u64,
    /// Whether none is left.
    pub all: bool,
}
