//! One open transaction: its log, and which part of it belongs to which sub-transaction.

use bytes::{BufMut, BytesMut};

use super::super::log::Log;
use super::super::{Described, FileId, StreamedError};
use super::OpenTransaction;
use crate::pgoutput::logical_head;
use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;

/// An open transaction.
#[derive(Debug)]
pub(super) struct Open {
    xid: u32,
    since: Tick,
    rows: u64,
    log: Log,
    file: Option<FileId>,
    /// Where the (sub)transactions begin that may still be rolled back without the one before. Their xids grow,
    /// as their places do.
    parts: Vec<Part>,
    /// Whether the log ends with logical messages, which may belong to a part that has not begun here.
    ends_in_messages: bool,
    /// The LSN of the last message of each sort, to find those that share one.
    last_row: Option<Lsn>,
    last_message: Option<Lsn>,
    /// Nothing is kept any more: it cannot be played.
    unclear: bool,
    described: Described,
}

/// A (sub)transaction that has written something, with all that was written behind.
#[derive(Debug, Clone, Copy)]
struct Part {
    xid: u32,
    /// Where its first message lies in the log.
    start: u64,
    /// How many rows lie before.
    rows: u64,
    /// Whether logical messages lie directly before, which may be its own.
    after_messages: bool,
}

/// A message that was kept.
#[derive(Debug)]
pub(super) struct KeptMessage<'a> {
    /// As it stands outside of blocks.
    pub(super) message: &'a [u8],
    /// What it takes.
    pub(super) bytes: u64,
    pub(super) described: &'a Described,
}

impl Open {
    pub(super) fn new(xid: u32, since: Tick) -> Self {
        Self {
            xid,
            since,
            rows: 0,
            log: Log::default(),
            file: None,
            parts: Vec::new(),
            ends_in_messages: false,
            last_row: None,
            last_message: None,
            unclear: false,
            described: Described::default(),
        }
    }

    /// Keeps a RELATION or TYPE message: of the row behind it, and so of that one's part.
    pub(super) fn describe(
        &mut self,
        wal_start: Lsn,
        tag: u8,
        body: &[u8],
        subxid: u32,
        arrival: u64,
    ) {
        let mut message = BytesMut::with_capacity(1 + body.len());
        message.put_u8(tag);
        message.put_slice(body);
        self.described.handle(message.freeze(), arrival);
        if !self.unclear {
            self.part_of(subxid);
            self.log.push(wal_start, tag, body, None);
        }
    }

    /// Keeps a row, a TRUNCATE or a logical message. `None` where nobody wants it.
    ///
    /// # Errors
    /// [`StreamedError::Decode`]
    pub(super) fn keep(
        &mut self,
        wal_start: Lsn,
        tag: u8,
        body: &[u8],
        subxid: u32,
        oversize: Option<u64>,
        wanted: &[String],
    ) -> Result<Option<KeptMessage<'_>>, StreamedError> {
        if tag == b'M' {
            // One whose prefix reaches beyond its head is no rule's.
            let Some((lsn, prefix)) = logical_head(body)? else { return Ok(None) };
            if !wanted.iter().any(|wanted| wanted == prefix) {
                return Ok(None);
            }
            self.last_message = Some(lsn);
        } else {
            self.last_row = Some(wal_start);
        }
        if self.last_message.is_some() && self.last_message == self.last_row {
            self.give_up();
        }
        if self.unclear {
            self.rows += 1;
            return Ok(None);
        }
        if tag == b'M' && subxid == self.xid {
            self.ends_in_messages = true;
        } else {
            self.part_of(subxid);
        }
        self.rows += 1;
        let start = self.log.end();
        let length = self.log.push(wal_start, tag, body, oversize);
        let bytes = self.log.end() - start;
        let message = self.log.last(length);
        Ok(Some(KeptMessage { message, bytes, described: &self.described }))
    }

    /// What comes next belongs to the part `xid`, which is active: whatever began after it has ended within it.
    fn part_of(&mut self, xid: u32) {
        let mut part = Part {
            xid,
            start: self.log.end(),
            rows: self.rows,
            after_messages: std::mem::take(&mut self.ends_in_messages),
        };
        while let Some(last) = self.parts.last() {
            if last.xid == xid {
                return;
            }
            if is_before(last.xid, xid) {
                break;
            }
            part = Part { xid, ..*last };
            self.parts.pop();
        }
        self.parts.push(part);
    }

    /// The part `xid` was rolled back: takes away its messages and all behind them, and says how many bytes.
    pub(super) fn abort(&mut self, xid: u32) -> u64 {
        // The server describes all tables anew.
        self.described.clear();
        let first = self.parts.partition_point(|part| is_before(part.xid, xid));
        let Some(part) = self.parts.get(first).copied() else {
            // It wrote nothing but, maybe, logical messages.
            if self.ends_in_messages {
                self.give_up();
            }
            return 0;
        };
        self.parts.truncate(first);
        let before = self.log.end();
        self.log.truncate(part.start);
        self.rows = part.rows;
        self.ends_in_messages = false;
        if part.after_messages {
            self.give_up();
        }
        before - part.start
    }

    /// It is not to be played: nothing is kept of it but how many rows it has.
    fn give_up(&mut self) {
        self.unclear = true;
        self.log.truncate(0);
        self.parts.clear();
        self.ends_in_messages = false;
    }

    /// What is to be played, and what it tells of tables; `None` where it is unclear.
    pub(super) fn commit(self) -> Option<(Log, Described)> {
        (!self.unclear).then_some((self.log, self.described))
    }

    pub(super) const fn since(&self) -> Tick {
        self.since
    }

    pub(super) const fn rows(&self) -> u64 {
        self.rows
    }

    pub(super) const fn file(&self) -> Option<FileId> {
        self.file
    }

    /// What is kept of it, with the headers.
    pub(super) fn bytes(&self) -> u64 {
        self.log.end()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let parts = self.parts.capacity() * size_of::<Part>();
        size_of::<Self>() + self.log.memory_bytes() + parts + self.described.memory_bytes()
    }

    /// What of it can be written.
    pub(super) fn writable_bytes(&self) -> usize {
        self.log.writable_bytes()
    }

    /// The log, and its file.
    pub(super) const fn writable(&mut self) -> (&mut Log, &mut Option<FileId>) {
        (&mut self.log, &mut self.file)
    }

    pub(super) fn shown(&self) -> OpenTransaction {
        OpenTransaction {
            xid: self.xid,
            since: self.since,
            rows: self.rows,
            bytes: self.bytes(),
            spooled_bytes: self.log.stored(),
            committed: false,
        }
    }
}

/// Whether a transaction id was given out before another: they wrap around, and those of one transaction lie
/// close together.
const fn is_before(xid: u32, other: u32) -> bool {
    let ahead = other.wrapping_sub(xid);
    ahead != 0 && ahead < 1 << 31
}
