//! The messages of one transaction, as bytes: appended while it is open, cut back where a part of it is rolled
//! back, and read once, in order, when it has committed. The older part may lie in a file.
//!
//! ```text
//! 0 ········ stored ──────── chunks ──────── tail ── end        in bytes of the log
//!   file              memory                memory
//!                     └ writing ┘                              on their way to the file
//! ```
//!
//! Invariant: a chunk, and what is stored, end where a record ends.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::{Record, StreamedError};
use walhook_core::lsn::Lsn;

/// A chunk takes no further record beyond this.
const CHUNK_BYTES: usize = 64 << 10;

/// Written at once, at most, where no single chunk is larger.
const WRITE_BYTES: usize = 1 << 20;

/// Read back at once, where no single record is longer.
const READ_BYTES: usize = 512 << 10;

/// A record's position and length.
const HEADER_BYTES: usize = 12;

/// The bit of a record's length that says that only a message's head was kept, behind its real length.
const OVERSIZE: u32 = 1 << 31;

/// The log of one transaction.
#[derive(Debug, Default)]
pub(super) struct Log {
    stored: u64,
    chunks: VecDeque<Bytes>,
    chunks_bytes: usize,
    /// How many of the first chunks are being written.
    writing: usize,
    tail: BytesMut,
}

impl Log {
    /// Where the next record begins.
    pub(super) fn end(&self) -> u64 {
        self.stored + bytes_of(self.chunks_bytes + self.tail.len())
    }

    /// How much of it lies in the file.
    pub(super) const fn stored(&self) -> u64 {
        self.stored
    }

    /// What it takes in memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.chunks_bytes + self.tail.capacity()
    }

    /// What of it can be written.
    pub(super) fn writable_bytes(&self) -> usize {
        if self.is_writing() { 0 } else { self.chunks_bytes + self.tail.len() }
    }

    /// Whether a part of it is being written.
    pub(super) const fn is_writing(&self) -> bool {
        self.writing > 0
    }

    /// Appends a message: its tag and its body; `oversize` is its length where this is only its head.
    /// Says how long they are together.
    pub(super) fn push(
        &mut self,
        wal_start: Lsn,
        tag: u8,
        body: &[u8],
        oversize: Option<u64>,
    ) -> usize {
        let length = body.len() + 1;
        let whole = HEADER_BYTES + oversize.map_or(0, |_| size_of::<u64>()) + length;
        if self.tail.len() + whole > CHUNK_BYTES {
            self.seal();
        }
        self.tail.reserve(whole);
        let flag = oversize.map_or(0, |_| OVERSIZE);
        // What a message takes is below 1 GiB, as all that PostgreSQL sends.
        let coded = u32::try_from(length).unwrap_or(!OVERSIZE) | flag;
        self.tail.extend_from_slice(&wal_start.0.to_be_bytes());
        self.tail.extend_from_slice(&coded.to_be_bytes());
        if let Some(bytes) = oversize {
            self.tail.extend_from_slice(&bytes.to_be_bytes());
        }
        self.tail.extend_from_slice(&[tag]);
        self.tail.extend_from_slice(body);
        length
    }

    /// Its last bytes: of the message that was just appended, where it is so long.
    pub(super) fn last(&self, length: usize) -> &[u8] {
        self.tail.get(self.tail.len().saturating_sub(length)..).unwrap_or_default()
    }

    /// Takes away all from `to` on, which is where a record begins.
    pub(super) fn truncate(&mut self, to: u64) {
        debug_assert!(to <= self.end(), "{to} is not in the log");
        let mut over = usize::try_from(self.end().saturating_sub(to)).unwrap_or(usize::MAX);
        let of_tail = over.min(self.tail.len());
        self.tail.truncate(self.tail.len() - of_tail);
        if self.tail.is_empty() {
            self.tail = BytesMut::new();
        }
        over -= of_tail;
        while over > 0
            && let Some(chunk) = self.chunks.back_mut()
        {
            let of_chunk = over.min(chunk.len());
            chunk.truncate(chunk.len() - of_chunk);
            over -= of_chunk;
            self.chunks_bytes -= of_chunk;
            if chunk.is_empty() {
                self.chunks.pop_back();
            }
        }
        self.writing = self.writing.min(self.chunks.len());
        self.stored = self.stored.min(to);
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            let chunk = std::mem::take(&mut self.tail).freeze();
            self.chunks_bytes += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// What is to be written next, and where; `None` while something is being written, or nothing is there.
    pub(super) fn next_write(&mut self) -> Option<(u64, Vec<Bytes>)> {
        if self.writing > 0 {
            return None;
        }
        if self.chunks.is_empty() {
            self.seal();
        }
        let mut bytes = 0;
        let fits = |chunk: &&Bytes| {
            let first = bytes == 0;
            bytes += chunk.len();
            first || bytes <= WRITE_BYTES
        };
        let chunks: Vec<Bytes> = self.chunks.iter().take_while(fits).cloned().collect();
        self.writing = chunks.len();
        (!chunks.is_empty()).then_some((self.stored, chunks))
    }

    /// What was to be written is; what of it was cut away meanwhile does not count.
    pub(super) fn handle_written(&mut self) {
        for _ in 0..std::mem::take(&mut self.writing) {
            if let Some(chunk) = self.chunks.pop_front() {
                self.chunks_bytes -= chunk.len();
                self.stored += bytes_of(chunk.len());
            }
        }
    }

    /// What was to be written could not be: it stays in memory.
    pub(super) fn handle_not_written(&mut self) {
        self.writing = 0;
    }
}

/// A log that is being read from its beginning, for the first and only time.
///
/// Invariant: nothing of it is being written.
#[derive(Debug)]
pub(super) struct Reading {
    log: Log,
    /// Up to where the file was read.
    fetched: u64,
    /// What was fetched and not handed out.
    buffer: Bytes,
    /// A part of the file that was asked for.
    asked: bool,
}

/// What a log that is read has next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    Record(Record),
    /// It has to be fetched from the file first.
    Fetch,
    End,
}

impl Reading {
    pub(super) fn new(mut log: Log) -> Self {
        debug_assert!(!log.is_writing(), "what is read is not being written");
        log.seal();
        Self { log, fetched: 0, buffer: Bytes::new(), asked: false }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.log.memory_bytes() + self.buffer.len()
    }

    pub(super) const fn stored(&self) -> u64 {
        self.log.stored
    }

    /// The next record.
    ///
    /// # Errors
    /// [`StreamedError::Damaged`]: the file does not hold what was written.
    pub(super) fn next(&mut self) -> Result<Next, StreamedError> {
        loop {
            let missing = match parse(&mut self.buffer) {
                Parsed::Record(record) => return Ok(Next::Record(record)),
                Parsed::Missing(missing) => missing,
            };
            if self.fetched < self.log.stored {
                return Ok(Next::Fetch);
            }
            // What lies in memory is whole.
            if missing > 0 && !self.buffer.is_empty() {
                return Err(StreamedError::Damaged);
            }
            match self.log.chunks.pop_front() {
                Some(chunk) => {
                    self.log.chunks_bytes -= chunk.len();
                    self.buffer = chunk;
                }
                None => return Ok(Next::End),
            }
        }
    }

    /// Where to read on in the file, and how much, ahead of need.
    pub(super) fn next_fetch(&mut self) -> Option<(u64, usize)> {
        let left = usize::try_from(self.log.stored - self.fetched).unwrap_or(usize::MAX);
        let wanted = wanted(&self.buffer);
        if self.asked || left == 0 || self.buffer.len() >= wanted.max(READ_BYTES / 2) {
            return None;
        }
        self.asked = true;
        let bytes = READ_BYTES.max(wanted.saturating_sub(self.buffer.len()));
        Some((self.fetched, bytes.min(left)))
    }

    /// A part of the file was read.
    ///
    /// # Errors
    /// [`StreamedError::Damaged`]: it is not what was asked for.
    pub(super) fn handle_fetched(
        &mut self,
        offset: u64,
        bytes: Bytes,
    ) -> Result<(), StreamedError> {
        let end = offset + bytes_of(bytes.len());
        let is_next = std::mem::take(&mut self.asked) && offset == self.fetched;
        if !is_next || bytes.is_empty() || end > self.log.stored {
            return Err(StreamedError::Damaged);
        }
        self.fetched = end;
        self.buffer = match self.buffer.is_empty() {
            true => bytes,
            false => [&self.buffer[..], &bytes[..]].concat().into(),
        };
        Ok(())
    }
}

/// What the beginning of a buffer is.
enum Parsed {
    Record(Record),
    /// No whole record; so many bytes are missing at least.
    Missing(usize),
}

fn parse(buffer: &mut Bytes) -> Parsed {
    let whole = wanted(buffer);
    if buffer.len() < whole {
        return Parsed::Missing(whole - buffer.len());
    }
    let wal_start = Lsn(buffer.get_u64());
    let coded = buffer.get_u32();
    let oversize = (coded & OVERSIZE != 0).then(|| buffer.get_u64());
    let payload = buffer.split_to(usize::try_from(coded & !OVERSIZE).unwrap_or(usize::MAX));
    Parsed::Record(Record { wal_start, payload, oversize })
}

/// The length of the record that begins the buffer, as far as it can be told; never less than its header's.
fn wanted(buffer: &[u8]) -> usize {
    let Some(coded) = buffer.get(size_of::<u64>()..).and_then(<[u8]>::first_chunk) else {
        return HEADER_BYTES;
    };
    let coded = u32::from_be_bytes(*coded);
    let length = usize::try_from(coded & !OVERSIZE).unwrap_or(usize::MAX);
    let real = if coded & OVERSIZE == 0 { 0 } else { size_of::<u64>() };
    HEADER_BYTES + real + length
}

fn bytes_of(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
