//! The transactions that are open, and those that have committed and are not played yet.

mod one;

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;

use self::one::Open;
use super::log::{Log, Next, Reading};
use super::{
    Committed, Counts, Done, FileId, Kept, Order, Payload, Play, Room, StreamedError, Taken,
};
use crate::change::Transaction;
use crate::pgoutput::{Block, TAG_ORIGIN, TAG_RELATION, TAG_TYPE, decode_block, split_in_block};
use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;

/// What [`OpenTransactions`] are to keep, and where.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What they may take in memory, all together, those that are played included.
    pub memory_bytes: usize,
    /// Whether there is a spool: more than half of the memory is written to it.
    pub spool: bool,
    /// The prefixes of the logical messages that rules want; all others are not kept.
    pub prefixes: Vec<String>,
}

/// A transaction that is open, as an operator may see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenTransaction {
    /// Its 32-bit transaction id.
    pub xid: u32,
    /// When its first block came.
    pub since: Tick,
    /// Messages that are kept.
    pub rows: u64,
    /// What they take.
    pub bytes: u64,
    /// What of it lies in the spool.
    pub spooled_bytes: u64,
    /// Whether it has committed and waits to be played, or is.
    pub committed: bool,
}

/// Keeps what is sent of open transactions, and gives it back when they have committed: in commit order, one
/// after the other. See [the module](super).
///
/// Who owns it asks [`OpenTransactions::room`] before it reads on, carries out the orders that
/// [`OpenTransactions::poll_order`] gives, and plays with [`OpenTransactions::play`].
///
/// Memory: `memory_bytes` of [`Settings`] while [`OpenTransactions::room`] is heeded, plus a message and a
/// write of a mebibyte.
#[derive(Debug)]
pub struct OpenTransactions {
    settings: Settings,
    open: BTreeMap<u32, Open>,
    /// Those that have committed, in commit order; the first is played.
    committed: VecDeque<Waiting>,
    /// The transaction whose block the stream stands in.
    block: Option<u32>,
    /// How many descriptions came so far.
    arrivals: u64,
    /// Which of them is a table's latest outside of open transactions.
    live: HashMap<u32, u64>,
    files: u64,
    /// Files that are of no more use.
    useless: VecDeque<FileId>,
    /// A write that is under way: to which file, and what it takes.
    writing: Option<(FileId, usize)>,
    counts: Counts,
}

/// A transaction that has committed.
#[derive(Debug)]
struct Waiting {
    transaction: Transaction,
    since: Tick,
    rows: u64,
    bytes: u64,
    file: Option<FileId>,
    log: WaitingLog,
}

#[derive(Debug)]
enum WaitingLog {
    Whole(Log),
    Reading(Reading),
}

impl OpenTransactions {
    /// None yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            open: BTreeMap::new(),
            committed: VecDeque::new(),
            block: None,
            arrivals: 0,
            live: HashMap::new(),
            files: 0,
            useless: VecDeque::new(),
            writing: None,
            counts: Counts::default(),
        }
    }

    /// Takes the next message of the stream, with the start position in its XLogData header.
    ///
    /// # Errors
    /// [`StreamedError`]: the stream cannot be understood. Reconnect, with
    /// [`OpenTransactions::handle_reconnected`].
    pub fn handle(
        &mut self,
        now: Tick,
        wal_start: Lsn,
        payload: Payload<'_>,
    ) -> Result<Taken<'_>, StreamedError> {
        let Some(xid) = self.block else { return self.handle_outside(now, payload) };
        let (Payload::Whole(bytes) | Payload::Oversize { head: bytes, .. }) = payload;
        match bytes.first() {
            // The server sends it without an xid, and it is of no use to us.
            Some(&TAG_ORIGIN) => return Ok(Taken::Passed),
            Some(&tag @ (b'S' | b'E' | b'c' | b'A')) => {
                return match decode_block(bytes)? {
                    Some(Block::Stop) => {
                        self.block = None;
                        Ok(Taken::Passed)
                    }
                    _ => Err(StreamedError::Misplaced { tag, inside: true }),
                };
            }
            _ => {}
        }
        let (tag, subxid, body) = split_in_block(bytes)?;
        let open = self.open.get_mut(&xid).ok_or(StreamedError::NotBegun { xid })?;
        let oversize = match payload {
            Payload::Whole(_) => None,
            // Without the xid, as all that is kept.
            Payload::Oversize { bytes, .. } => Some(bytes.saturating_sub(4)),
        };
        match tag {
            TAG_RELATION | TAG_TYPE => {
                self.arrivals += 1;
                open.describe(wal_start, tag, body, subxid, self.arrivals);
                Ok(Taken::Passed)
            }
            b'I' | b'U' | b'D' | b'T' | b'M' => {
                let wanted = &self.settings.prefixes;
                let Some(kept) = open.keep(wal_start, tag, body, subxid, oversize, wanted)? else {
                    return Ok(Taken::Passed);
                };
                self.counts.rows += 1;
                self.counts.bytes += kept.bytes;
                let payload = match oversize {
                    None => Payload::Whole(kept.message),
                    Some(bytes) => Payload::Oversize { head: kept.message, bytes },
                };
                Ok(Taken::Kept(Kept { xid, payload, described: kept.described }))
            }
            tag => Err(StreamedError::Misplaced { tag, inside: true }),
        }
    }

    fn handle_outside(
        &mut self,
        now: Tick,
        payload: Payload<'_>,
    ) -> Result<Taken<'_>, StreamedError> {
        let Payload::Whole(bytes) = payload else { return Ok(Taken::Live) };
        match bytes.first() {
            Some(&(b'S' | b'E' | b'c' | b'A')) => {}
            Some(&TAG_RELATION) => {
                if let Some(oid) = bytes.get(1..).and_then(<[u8]>::first_chunk) {
                    self.arrivals += 1;
                    self.live.insert(u32::from_be_bytes(*oid), self.arrivals);
                }
                return Ok(Taken::Live);
            }
            _ => return Ok(Taken::Live),
        }
        match decode_block(bytes)? {
            None => Ok(Taken::Live),
            Some(Block::Stop) => Err(StreamedError::Misplaced { tag: b'E', inside: false }),
            Some(Block::Start { xid, first }) => {
                match (first, self.open.contains_key(&xid)) {
                    (true, true) => return Err(StreamedError::BegunTwice { xid }),
                    (false, false) => return Err(StreamedError::NotBegun { xid }),
                    (true, false) => {
                        self.open.insert(xid, Open::new(xid, now));
                    }
                    (false, true) => {}
                }
                self.block = Some(xid);
                Ok(Taken::Passed)
            }
            Some(Block::Abort { xid, subxid }) => {
                self.abort(xid, subxid);
                Ok(Taken::Passed)
            }
            Some(Block::Commit { xid, commit_lsn, end_lsn, commit_time_us }) => {
                self.commit(Transaction { commit_lsn, commit_time_us, xid }, end_lsn)
            }
        }
    }

    /// A transaction that is not known, or a part that sent nothing, is no error: there is nothing to take
    /// away.
    fn abort(&mut self, xid: u32, subxid: u32) {
        if xid == subxid {
            if let Some(open) = self.open.remove(&xid) {
                self.counts.aborted_bytes += open.bytes();
                self.useless.extend(open.file());
            }
        } else if let Some(open) = self.open.get_mut(&xid) {
            self.counts.aborted_bytes += open.abort(subxid);
        }
    }

    fn commit(
        &mut self,
        transaction: Transaction,
        end_lsn: Lsn,
    ) -> Result<Taken<'_>, StreamedError> {
        let xid = transaction.xid;
        let open = self.open.remove(&xid).ok_or(StreamedError::NotBegun { xid })?;
        let file = open.file();
        let (since, rows, bytes) = (open.since(), open.rows(), open.bytes());
        let Some((log, described)) = open.commit() else {
            self.useless.extend(file);
            return Ok(Taken::Unclear { transaction, end_lsn });
        };
        let log = WaitingLog::Whole(log);
        self.committed.push_back(Waiting { transaction, since, rows, bytes, file, log });
        let described = described.latest(&mut self.live);
        Ok(Taken::Committed(Committed { transaction, end_lsn, described, rows, bytes }))
    }

    /// A new connection: what is open is sent again from its beginning. What has committed stays.
    pub fn handle_reconnected(&mut self) {
        for open in std::mem::take(&mut self.open).into_values() {
            self.useless.extend(open.file());
        }
        self.block = None;
        self.live.clear();
    }

    /// Whether the stream stands inside a block: the server's position says nothing then of what has committed.
    #[must_use]
    pub const fn in_block(&self) -> bool {
        self.block.is_some()
    }

    /// Those that are open, by xid, and those that wait to be played, by their commits.
    pub fn open(&self) -> impl Iterator<Item = OpenTransaction> {
        let open = self.open.values().map(Open::shown);
        open.chain(self.committed.iter().map(Waiting::shown))
    }

    /// The transaction that is played, or is to be played next.
    #[must_use]
    pub fn playing(&self) -> Option<Transaction> {
        self.committed.front().map(|waiting| waiting.transaction)
    }

    /// What is next of the transaction that [`OpenTransactions::playing`] names; [`Play::End`] where there is
    /// none.
    ///
    /// # Errors
    /// [`StreamedError::Damaged`]: it cannot be read back, and is lost to this process. The checkpoint has not
    /// passed it.
    pub fn play(&mut self) -> Result<Play, StreamedError> {
        let Some(front) = self.committed.front_mut() else { return Ok(Play::End) };
        let Some(reading) = front.log.reading() else { return Ok(Play::Wait) };
        match reading.next()? {
            Next::Record(record) => Ok(Play::Record(record)),
            Next::Fetch => Ok(Play::Wait),
            Next::End => {
                self.forget_playing();
                Ok(Play::End)
            }
        }
    }

    /// Nothing (more) of the transaction that [`OpenTransactions::playing`] names is wanted.
    pub fn forget_playing(&mut self) {
        let front = self.committed.pop_front();
        self.useless.extend(front.and_then(|front| front.file));
    }

    /// Nothing of a transaction that has just committed is wanted: it was settled before.
    pub fn forget_committed(&mut self) {
        let last = self.committed.pop_back();
        self.useless.extend(last.and_then(|last| last.file));
    }

    /// Whether more may be read from the stream.
    #[must_use]
    pub fn room(&self) -> Room {
        if self.memory_bytes() < self.settings.memory_bytes {
            Room::Free
        } else if !self.committed.is_empty() || self.writing.is_some() || self.largest().is_some() {
            Room::Wait
        } else {
            Room::None
        }
    }

    /// What they take in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let open: usize = self.open.values().map(Open::memory_bytes).sum();
        let committed: usize =
            self.committed.iter().map(|waiting| waiting.log.memory_bytes()).sum();
        open + committed
    }

    /// What they take in the spool.
    #[must_use]
    pub fn spooled_bytes(&self) -> u64 {
        self.open().map(|open| open.spooled_bytes).sum()
    }

    /// What came of all so far.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether there is a spool from now on. A write that is under way and will not be answered is taken back:
    /// what was to be written is still in memory.
    pub fn set_spool(&mut self, spool: bool) {
        self.settings.spool = spool;
        if let Some((file, _)) = self.writing.take().filter(|_| !spool) {
            self.writer_of(file, Log::handle_not_written);
        }
    }

    /// What the spool is to do next. Give it each order, in this order.
    pub fn poll_order(&mut self) -> Option<Order> {
        if let Some(file) = self.useless.pop_front() {
            return Some(Order::Remove { file });
        }
        self.next_read().or_else(|| self.next_write())
    }

    fn next_read(&mut self) -> Option<Order> {
        let front = self.committed.front_mut()?;
        let (offset, bytes) = front.log.reading()?.next_fetch()?;
        Some(Order::Read { file: front.file?, offset, bytes })
    }

    fn next_write(&mut self) -> Option<Order> {
        let is_needed = self.memory_bytes() >= self.settings.memory_bytes / 2;
        if self.writing.is_some() || !is_needed {
            return None;
        }
        let largest = self.largest()?;
        let files = &mut self.files;
        let mut new_file = || {
            *files += 1;
            FileId(*files)
        };
        let (log, file) = match largest {
            Largest::Open(xid) => self.open.get_mut(&xid)?.writable(),
            Largest::Committed(at) => {
                let waiting = self.committed.get_mut(at)?;
                (waiting.log.whole()?, &mut waiting.file)
            }
        };
        let (offset, chunks) = log.next_write()?;
        let file = *file.get_or_insert_with(&mut new_file);
        self.writing = Some((file, chunks.iter().map(Bytes::len).sum()));
        Some(Order::Write { file, offset, chunks })
    }

    /// The transaction of which most can be written.
    fn largest(&self) -> Option<Largest> {
        if !self.settings.spool {
            return None;
        }
        let open = self.open.iter().map(|(xid, open)| (open.writable_bytes(), Largest::Open(*xid)));
        let committed = self.committed.iter().enumerate();
        let committed =
            committed.map(|(at, waiting)| (waiting.log.writable_bytes(), Largest::Committed(at)));
        let largest = open.chain(committed).max_by_key(|(bytes, _)| *bytes)?;
        (largest.0 > 0).then_some(largest.1)
    }

    /// The spool has carried out an order.
    ///
    /// # Errors
    /// [`StreamedError::Damaged`]: what it read is not what was asked for.
    pub fn handle_done(&mut self, done: Done) -> Result<(), StreamedError> {
        match done {
            Done::Written { file } => {
                if self.writing.take_if(|(writing, _)| *writing == file).is_some() {
                    self.writer_of(file, Log::handle_written);
                }
                Ok(())
            }
            Done::Read { file, offset, bytes } => {
                let front = self.committed.front_mut().filter(|front| front.file == Some(file));
                // Of one that was forgotten meanwhile.
                let Some(front) = front else { return Ok(()) };
                let reading = front.log.reading().ok_or(StreamedError::Damaged)?;
                reading.handle_fetched(offset, bytes)
            }
        }
    }

    /// Does this to the log that is being written to `file`, if its transaction is still there.
    fn writer_of(&mut self, file: FileId, handle: fn(&mut Log)) {
        let open = self.open.values_mut().find(|open| open.file() == Some(file));
        let log = open.map(|open| open.writable().0).or_else(|| {
            let mut committed = self.committed.iter_mut();
            committed.find(|waiting| waiting.file == Some(file))?.log.whole()
        });
        if let Some(log) = log {
            handle(log);
        }
    }
}

enum Largest {
    Open(u32),
    Committed(usize),
}

impl Waiting {
    fn shown(&self) -> OpenTransaction {
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
    fn reading(&mut self) -> Option<&mut Reading> {
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
    fn whole(&mut self) -> Option<&mut Log> {
        match self {
            Self::Whole(log) => Some(log),
            Self::Reading(_) => None,
        }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::Whole(log) => log.memory_bytes(),
            Self::Reading(reading) => reading.memory_bytes(),
        }
    }

    fn writable_bytes(&self) -> usize {
        match self {
            Self::Whole(log) => log.memory_bytes(),
            Self::Reading(_) => 0,
        }
    }
}
