//! A transaction that has committed, and what is left of it to be played.

use super::super::log::{Log, Reading};
use super::super::{FileId, OpenTransaction};
use crate::change::Transaction;
use walhook_core::tick::Tick;

/// A transaction that has committed.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) transaction: Transaction,
    pub(super) since: Tick,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) file: Option<FileId>,
    pub(super) log: WaitingLog,
}

#[derive(Debug)]
pub(super) enum WaitingLog {
    Whole(Log),
    Reading(Reading),
}

impl Waiting {
    pub(super) fn shown(&self) -> OpenTransaction {
        OpenTransaction {
            xid: self.transaction.xid,
            since: self.since,
            rows: self.rows,
            bytes: self.bytes,
            spooled_bytes: match &self.log {
                WaitingLog::Whole(log) => log.stored(),
                WaitingLog::Reading(reading) => reading.stored(),
            },
            committed: true,
        }
    }
}

impl WaitingLog {
    /// Begins to read it, as soon as nothing of it is being written.
    pub(super) fn reading(&mut self) -> Option<&mut Reading> {
        if let Self::Whole(log) = self {
            if log.is_writing() {
                return None;
            }
            *self = Self::Reading(Reading::new(std::mem::take(log)));
        }
        match self {
            Self::Reading(reading) => Some(reading),
            Self::Whole(_) => None,
        }
    }

    /// The log, while nothing of it was read.
    pub(super) fn whole(&mut self) -> Option<&mut Log> {
        match self {
            Self::Whole(log) => Some(log),
            Self::Reading(_) => None,
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        match self {
            Self::Whole(log) => log.memory_bytes(),
            Self::Reading(reading) => reading.memory_bytes(),
        }
    }

    pub(super) fn writable_bytes(&self) -> usize {
        match self {
            Self::Whole(log) => log.writable_bytes(),
            Self::Reading(_) => 0,
        }
    }
}
