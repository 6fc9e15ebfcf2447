//! Why a past range cannot be read.

use std::borrow::Cow;

use crate::server::rulebook::{RulesError, Unlearned};
use walhook_core::halt::Lost;
use walhook_core::lsn::Lsn;
use walhook_decode::change::ChangeError;
use walhook_decode::pgoutput::DecodeError;
use walhook_postgres::error::SourceError;
use walhook_postgres::fix::Failure;
use walhook_postgres::sql::{ConnectError, error_text};
use walhook_postgres::wire::{self, Class, WireError};
use walhook_rules::rule::RuleBroken;

/// Why a past range cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RangeError {
    /// No anchor slot.
    #[error(
        "there is no replay window yet: the slot {slot} is missing. A running leader makes it, with \
         source.replay_window above 0"
    )]
    NoWindow {
        /// The anchor's name.
        slot: String,
    },
    /// The anchor slot is of no more use.
    #[error(
        "the replay window is lost, with its slot {slot}: {why}. A running leader begins it anew. {}",
        why.fix()
    )]
    WindowLost {
        /// The anchor's name.
        slot: String,
        /// Why.
        why: Lost,
    },
    /// The anchor slot is not ready.
    #[error("the slot {slot} is being created; try again")]
    WindowBegins {
        /// The anchor's name.
        slot: String,
    },
    /// The range begins too early.
    #[error("{from} lies before the replay window, which begins at {oldest}")]
    TooOld {
        /// Where the range begins.
        from: Lsn,
        /// Where the window does.
        oldest: Lsn,
    },
    /// The range ends too late.
    #[error("{to} lies beyond the end of the WAL, {wal_end}")]
    TooNew {
        /// Where the range ends.
        to: Lsn,
        /// Where the WAL does.
        wal_end: Lsn,
    },
    /// No session with the source.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The source refused a statement, or its session was lost.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// No copy of the slot.
    #[error("cannot copy the slot {slot}; are all of max_replication_slots in use?")]
    NotCopied {
        /// Which slot.
        slot: String,
        /// What the server says.
        source: WireError,
    },
    /// No stream, or it was lost.
    #[error("{}; {}", .0.line(), fix_of(.0))]
    Wire(WireError),
    /// A server that shuts down ends this session first.
    #[error("the SQL session beside the stream ended: {}", .0.as_ref().map_or_else(|| "closed".to_owned(), error_text))]
    Sentinel(Option<tokio_postgres::Error>),
    /// The rules do not fit the tables.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// What a table is could not be learned.
    #[error(transparent)]
    Unlearned(#[from] Unlearned),
    /// The rules do not fit what was written then.
    #[error(transparent)]
    Broken(#[from] RuleBroken),
    /// No message that is known.
    #[error("cannot understand the stream at {at}")]
    Message {
        /// Where.
        at: Lsn,
        /// Why not.
        source: DecodeError,
    },
    /// A message where none of its kind can stand.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

/// Nothing that is put back now was there then.
const WITHOUT_PUBLICATION: &str = "what was committed while there was no such publication, and what follows it in this \
    range, cannot be sent again: send it by hand, or ask for a range that begins after the publication was made";

fn fix_of(error: &WireError) -> Cow<'static, str> {
    if wire::classify(error) == Class::PublicationMissing {
        return WITHOUT_PUBLICATION.into();
    }
    error.fix()
}

impl From<tokio_postgres::Error> for RangeError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Source(error.into())
    }
}

// Its text holds the causes, before the fix: it is no source of its own.
impl From<WireError> for RangeError {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

impl RangeError {
    /// What the server says, where WAL of the range is missing or damaged.
    pub(crate) fn unreadable_wal(&self) -> Option<&WireError> {
        self.refused().filter(|error| error.is_of_unreadable_wal())
    }

    /// What the server says, where the publication is missing, or was when something in the range was written.
    pub(crate) fn without_publication(&self) -> Option<&WireError> {
        self.refused().filter(|error| wire::classify(error) == Class::PublicationMissing)
    }

    /// What the server, or the way to it, says of the copy or the stream.
    fn refused(&self) -> Option<&WireError> {
        match self {
            Self::Wire(error) | Self::NotCopied { source: error, .. } => Some(error),
            Self::NoWindow { .. }
            | Self::WindowLost { .. }
            | Self::WindowBegins { .. }
            | Self::TooOld { .. }
            | Self::TooNew { .. }
            | Self::Connect(_)
            | Self::Source(_)
            | Self::Sentinel(_)
            | Self::Rules(_)
            | Self::Unlearned(_)
            | Self::Broken(_)
            | Self::Message { .. }
            | Self::Change(_) => None,
        }
    }
}
