//! How a connection of the stream ends, and what of the stream cannot be read.

use std::borrow::Cow;

use crate::server::leadership::StartError;
use crate::server::rulebook::Unlearned;
use walhook_core::lsn::Lsn;
use walhook_decode::change::ChangeError;
use walhook_decode::pgoutput::DecodeError;
use walhook_postgres::fix::{Failure, FixedBy, Line};
use walhook_postgres::sql::error_text;
use walhook_postgres::wire::WireError;

const WAIT: &str =
    "wait a minute, and look into the server's log where it does not come back by itself";

/// How a connection ended.
pub(super) enum Ended {
    /// We are to stop.
    Stopped,
    /// It is to be opened again, otherwise than it was.
    Reopen,
    /// It broke, the server closed it, or it is of no more use.
    Lost(Box<Lost>),
}

impl Ended {
    pub(super) fn lost(why: Lost) -> Self {
        Self::Lost(Box::new(why))
    }
}

/// Why a connection is of no more use. The next one may be.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    /// Our own word did not reach the server.
    #[error(transparent)]
    Status(WireError),
    /// The server said nothing, though it was asked.
    #[error("the server has been silent for too long")]
    Silent,
    /// A server that shuts down ends this session first.
    #[error("the SQL session beside the stream ended: {}", .0.as_ref().map_or_else(|| "closed".to_owned(), error_text))]
    Sentinel(Option<tokio_postgres::Error>),
    /// Another process streams from it.
    #[error("the slot is in use")]
    SlotInUse,
    /// What the server says.
    #[error(transparent)]
    Refused(Box<StartError>),
    /// What a table is could not be learned.
    #[error(transparent)]
    Unlearned(Unlearned),
    /// A transaction cannot be read to its end.
    #[error(transparent)]
    Unreadable(Unreadable),
    /// The same, and the operator has given its rest up.
    #[error("the rest of the transaction {commit} is left out")]
    LeftOut {
        /// Its commit LSN.
        commit: Lsn,
        /// Why it cannot be read.
        source: Unreadable,
    },
}

impl Failure for Lost {
    /// All of it: what a person must fix is found when the stream is opened again.
    fn fixed_by(&self) -> FixedBy {
        FixedBy::Waiting
    }

    fn fix(&self) -> Cow<'static, str> {
        // A full disk, for one, is not emptied by waiting, nor does WAL come back.
        if let Self::Refused(error) = self
            && let StartError::Wire(wire) = &**error
            && (wire.is_of_resources() || wire.is_of_unreadable_wal())
        {
            return wire.fix();
        }
        WAIT.into()
    }

    fn say(&self, line: &mut Line) {
        line.push_error(self);
    }
}

/// Why the stream cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The server cannot send it.
    #[error(transparent)]
    Unsendable(WireError),
    /// No message that is known.
    #[error("cannot understand the stream at {at}: {why}")]
    Message {
        /// Where.
        at: Lsn,
        /// Why not.
        why: DecodeError,
    },
    /// A message where none of its kind can stand.
    #[error("cannot understand the stream at {at}: {why}")]
    Change {
        /// Where.
        at: Lsn,
        /// Why not.
        why: ChangeError,
    },
}
