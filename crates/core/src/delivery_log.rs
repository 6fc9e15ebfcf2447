//! The delivery log: what happened to each event, line by line.
//!
//! An attempt is one line. What became of a delivery beyond its attempts (deferred, dead, counted in a gap, ...) is
//! one of its own, with the attempt 0. So a delivery that failed and was then deferred has two.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::attempt::{Asked, FailureKind, Outcome};
use super::event::{AccountId, EndpointId};
use super::heap::block;
use super::lsn::Lsn;
use super::persist::{DeadReason, DeferReason, QueueId, RowKey};
use super::position::EventId;
use super::tick::micros;
use super::waits::Waits;

/// Which lines are kept: `deliveries.keep`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// All.
    #[default]
    All,
    /// All but of deliveries that their first attempt brought through.
    Failures,
    /// None.
    None,
}

/// Bytes of an answer that a line repeats, at most.
pub const EXCERPT_BYTES: usize = 1_024;

/// One line of a delivery's story: an attempt, or what became of it without one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(Serialize))]
pub struct Entry {
    /// The event.
    pub event: EventId,
    /// The event's type.
    pub event_type: Arc<str>,
    /// The account that it belongs to.
    pub account: AccountId,
    /// The endpoint; [`NO_ENDPOINT`] where there is none: see [`Entry::endpoint`].
    ///
    /// [`NO_ENDPOINT`]: super::persist::NO_ENDPOINT
    pub endpoint: EndpointId,
    /// The transaction that made the event.
    pub commit_lsn: Lsn,
    /// When that committed: microseconds since 1970-01-01 UTC.
    pub committed_us: i64,
    /// When it happened, of an attempt: when it ended; microseconds since 1970-01-01 UTC.
    pub at_us: i64,
    /// Which attempt, counted from 1; 0: it is none.
    pub attempt: u32,
    /// What happened.
    pub what: What,
    /// The status of the answer, where there was one.
    pub status: Option<u16>,
    /// What failed, where there was no answer.
    pub failure: Option<FailureKind>,
    /// Of an attempt: from the call to the end of the answer, in microseconds.
    pub elapsed_us: u64,
    /// What the delivery has waited for so far, by cause.
    pub waits: Waits,
    /// For a person: what failed, with the answer's first bytes; no secrets, at most [`EXCERPT_BYTES`]. Empty where
    /// nothing failed.
    #[cfg_attr(feature = "record", serde(with = "crate::record::text"))]
    pub excerpt: String,
    /// The operator's wish on which it was sent again; none: it is the stream's.
    pub asked: Option<Asked>,
}

impl Entry {
    /// That an operator discarded a deferred delivery, whose event was committed at the first of these times, at the
    /// second: both in microseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn discarded(
        event: EventId,
        queue: QueueId,
        key: RowKey,
        (committed_us, at_us): (i64, i64),
    ) -> Self {
        Self {
            event,
            event_type: key.event.event_type,
            account: queue.account,
            endpoint: queue.endpoint,
            commit_lsn: key.event.position.commit_lsn(),
            committed_us,
            at_us,
            attempt: 0,
            what: What::Discarded,
            status: None,
            failure: None,
            elapsed_us: 0,
            waits: Waits::default(),
            excerpt: String::new(),
            asked: key.replay.map(Asked::Replay),
        }
    }

    /// The endpoint, where there is one.
    #[must_use]
    pub fn endpoint(&self) -> Option<&EndpointId> {
        (self.endpoint.as_str() != super::persist::NO_ENDPOINT).then_some(&self.endpoint)
    }

    /// The word for what happened, in what is printed and of the filter.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        self.what.word(self.status)
    }

    /// Whether it tells of an attempt.
    #[must_use]
    pub const fn is_attempt(&self) -> bool {
        self.attempt > 0
    }

    /// The same line of an attempt, the `attempt`th, that came to `outcome`. Where `excerpts` is false it has nothing
    /// of an answer but its status.
    #[must_use]
    pub fn of_attempt(self, attempt: u32, outcome: &Outcome, excerpts: bool) -> Self {
        let record = &outcome.record;
        let is_told = !outcome.delivered() && (excerpts || record.failure.is_some());
        Self {
            attempt,
            status: record.status,
            failure: record.failure,
            elapsed_us: micros(outcome.elapsed),
            excerpt: if is_told { excerpt(&record.text) } else { String::new() },
            ..self
        }
    }

    /// What it holds in memory, in bytes; texts that others share are not its own.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        size_of::<Self>() + block(self.excerpt.capacity())
    }
}

/// What of a text a line repeats.
#[must_use]
pub fn excerpt(text: &str) -> String {
    let mut end = text.len().min(EXCERPT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "record", derive(Serialize))]
pub enum What {
    /// An attempt: the endpoint took the event.
    Delivered,
    /// An attempt: the endpoint did not take it, or nobody knows. Where no further line says what became of it, it is
    /// tried again. With the number 0 it was none: it was not sent, for want of something of walhook's own.
    Failed,
    /// Likewise, of a request that only tried whether an endpoint whose breaker is open is well again: it is no attempt
    /// of the delivery, whose next one has the same number.
    Probed,
    /// It left memory, and is tried later.
    Deferred(DeferReason),
    /// It ended as a dead letter.
    Dead(DeadReason),
    /// It is not sent: a gap counts it.
    Gap,
    /// It is not sent: its endpoint was removed.
    Dropped,
    /// It is not sent: it was deferred, and an operator discarded it, or cancelled the replay that it was of.
    Discarded,
}

impl What {
    /// The word in what is printed, and of the filter. What ended well although nobody answered was not sent, as
    /// `delivery.mode = "log"` says.
    #[must_use]
    pub const fn word(self, status: Option<u16>) -> &'static str {
        match self {
            Self::Delivered if status.is_none() => "logged",
            Self::Delivered => "delivered",
            Self::Failed | Self::Probed => "failed",
            Self::Deferred(_) => "deferred",
            Self::Dead(DeadReason::Unroutable) => "unroutable",
            Self::Dead(_) => "dead",
            Self::Gap => "gap",
            Self::Dropped | Self::Discarded => "dropped",
        }
    }

    /// All words of [`What::word`].
    pub const WORDS: [&str; 8] =
        ["delivered", "logged", "failed", "deferred", "dead", "unroutable", "gap", "dropped"];

    /// Why, of what has a reason: where the state tables have one, their word.
    #[must_use]
    pub const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Deferred(reason) => Some(reason.as_str()),
            Self::Dead(reason) => Some(reason.as_str()),
            Self::Probed => Some("probe"),
            Self::Discarded => Some("discarded"),
            Self::Delivered | Self::Failed | Self::Gap | Self::Dropped => None,
        }
    }

    /// All that can happen, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        let plain = [
            Self::Delivered,
            Self::Failed,
            Self::Gap,
            Self::Dropped,
            Self::Discarded,
            Self::Probed,
        ];
        let deferred = DeferReason::ALL.into_iter().map(Self::Deferred);
        plain.into_iter().chain(DeadReason::ALL.into_iter().map(Self::Dead)).chain(deferred)
    }
}

#[cfg(test)]
mod tests;
