//! The transactions that are open, and those that have committed and are not played yet.

mod one;
mod spooling;
mod waiting;

use std::collections::{BTreeMap, HashMap, VecDeque};

use self::one::Open;
use self::waiting::{Waiting, WaitingLog};
use super::log::Next;
use super::{Committed, Counts, FileId, Kept, Payload, Play, StreamedError, Taken};
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
    /// What those that are open take in memory, but for the one whose block the stream stands in.
    open_bytes: usize,
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
    /// The file to which a write is under way.
    writing: Option<FileId>,
    counts: Counts,
}

impl OpenTransactions {
    /// None yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            open: BTreeMap::new(),
            open_bytes: 0,
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
                        self.open_bytes += self.open.get(&xid).map_or(0, Open::memory_bytes);
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
                match (first, self.open.get(&xid)) {
                    (true, Some(_)) => return Err(StreamedError::BegunTwice { xid }),
                    (false, None) => return Err(StreamedError::NotBegun { xid }),
                    (true, None) => {
                        self.open.insert(xid, Open::new(xid, now));
                    }
                    (false, Some(open)) => self.open_bytes -= open.memory_bytes(),
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
                self.open_bytes -= open.memory_bytes();
                self.counts.aborted_bytes += open.bytes();
                self.useless.extend(open.file());
            }
        } else if let Some(open) = self.open.get_mut(&xid) {
            self.open_bytes -= open.memory_bytes();
            self.counts.aborted_bytes += open.abort(subxid);
            self.open_bytes += open.memory_bytes();
        }
    }

    fn commit(
        &mut self,
        transaction: Transaction,
        end_lsn: Lsn,
    ) -> Result<Taken<'_>, StreamedError> {
        let xid = transaction.xid;
        let open = self.open.remove(&xid).ok_or(StreamedError::NotBegun { xid })?;
        self.open_bytes -= open.memory_bytes();
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
        self.open_bytes = 0;
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

    /// What they take in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let open: usize = self.open.values().map(Open::memory_bytes).sum();
        let committed: usize =
            self.committed.iter().map(|waiting| waiting.log.memory_bytes()).sum();
        open + committed
    }

    /// What came of all so far.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }
}
