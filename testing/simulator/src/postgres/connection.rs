//! A connection that streams: transactions in the order of their commits, and some of them, as far as it likes, in
//! blocks before that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use walhook_core::lsn::Lsn;

use super::{Postgres, Sent, Txn};
use crate::encode;
use crate::schema;

/// A transaction with so many messages is streamed while it is open, where anything is.
const LARGE: usize = 60;

/// Transactions whose blocks may come before the one that commits next.
const OPEN_AHEAD: usize = 24;

/// What comes of a connection.
#[derive(Debug, Clone)]
pub(crate) enum Frame {
    /// A message, whole.
    Data { wal_start: Lsn, payload: Bytes },
    /// The head of one that is too large.
    Oversize { wal_start: Lsn, head: Bytes, bytes: u64 },
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The transaction, and the message in it, that comes next.
    txn: usize,
    message: usize,
    described: BTreeSet<u32>,
    /// Frames that come before anything else: the rest of a block.
    block: VecDeque<Frame>,
    /// Transactions of which blocks were sent.
    open: BTreeMap<usize, Open>,
    /// Which transactions are streamed, and when; none: none is.
    streams: Option<SmallRng>,
    streamed: BTreeMap<usize, bool>,
    /// The wish of a test: what the description of this table lacks.
    pub(crate) lacks_column: bool,
    /// The message, by transaction and place in it, that is no pgoutput.
    pub(crate) garbled: Option<(usize, usize)>,
}

/// What was sent of an open transaction.
#[derive(Debug, Default)]
struct Open {
    /// Its message that comes next; 0 is BEGIN, which is not sent in blocks.
    message: usize,
    described: BTreeSet<u32>,
}

impl Connection {
    /// START_REPLICATION; `streaming`: the seed of what is streamed, where anything is.
    pub(crate) fn start(postgres: &Postgres, from: Lsn, streaming: Option<u64>) -> Self {
        let streams = streaming.map(SmallRng::seed_from_u64);
        Self::open(postgres, from.max(postgres.slot.confirmed), streams)
    }

    /// As [`Connection::start`], from a slot that is kept for replays.
    pub(crate) fn from_anchor(postgres: &Postgres, from: Lsn) -> Self {
        Self::open(postgres, from, None)
    }

    fn open(postgres: &Postgres, from: Lsn, streams: Option<SmallRng>) -> Self {
        Self {
            txn: postgres.txns.partition_point(|txn| txn.commit_lsn < from),
            message: 0,
            described: BTreeSet::new(),
            block: VecDeque::new(),
            open: BTreeMap::new(),
            streams,
            streamed: BTreeMap::new(),
            lacks_column: false,
            garbled: None,
        }
    }

    pub(crate) fn has_more(&self, postgres: &Postgres) -> bool {
        self.txn < postgres.committed || !self.block.is_empty()
    }

    /// The next table that is described lacks a column.
    pub(crate) fn lose_column(&mut self) {
        self.lacks_column = true;
        self.described.clear();
    }

    /// The transaction that is read cannot be understood from somewhere on. What changes the endpoints is, and what
    /// is streamed.
    pub(crate) fn garble(&mut self, postgres: &Postgres, rng: &mut SmallRng) {
        let Some(txn) = postgres.txns.get(self.txn) else { return };
        if self.message == 0 && self.is_streamed(postgres, self.txn) {
            return;
        }
        let last = txn.messages.len().saturating_sub(1);
        let plain = txn.endpoints.is_empty() && !txn.changes_weights();
        let first = if plain { self.message.max(1).min(last) } else { last };
        self.garbled = Some((self.txn, rng.random_range(first..=last)));
    }

    /// The transaction that is being read.
    pub(crate) fn txn(&self) -> usize {
        self.txn
    }

    pub(crate) fn next(&mut self, postgres: &Postgres) -> Option<Frame> {
        if !self.has_more(postgres) {
            return None;
        }
        if let Some(frame) = self.block.pop_front() {
            return Some(frame);
        }
        if self.message == 0 {
            self.send_blocks(postgres);
            if let Some(frame) = self.block.pop_front() {
                return Some(frame);
            }
        }
        let txn = postgres.txns.get(self.txn)?;
        let sent = txn.messages.get(self.message)?;
        if let Some(relation) = sent.relation.filter(|oid| !self.described.contains(oid)) {
            self.described.insert(relation);
            return Some(description(relation, None, self.lacks_column));
        }
        let place = (self.txn, self.message);
        let is_garbled = self.garbled == Some(place) || postgres.unreadable.contains(&place);
        self.message += 1;
        if self.message == txn.messages.len() {
            (self.txn, self.message) = (self.txn + 1, 0);
        }
        if is_garbled {
            let payload = Bytes::from_static(b"?");
            return Some(Frame::Data { wal_start: sent.wal_start, payload });
        }
        Some(frame(sent, sent.bytes.clone()))
    }

    /// Between two transactions: all that is left of the next one where it is streamed, with its commit; else, at
    /// times, a block of one that commits later.
    fn send_blocks(&mut self, postgres: &Postgres) {
        if self.is_streamed(postgres, self.txn) {
            let Some(txn) = postgres.txns.get(self.txn) else { return };
            self.send_block(txn, self.txn, usize::MAX);
            let bytes = encode::stream_commit(txn.xid, txn.commit_lsn, txn.end_lsn, txn.time_us);
            self.block.push_back(data(txn.commit_lsn, bytes));
            if let Some(open) = self.open.remove(&self.txn) {
                // What was described in it is known from now on.
                self.described.extend(open.described);
            }
            self.txn += 1;
            return;
        }
        let Some(streams) = &mut self.streams else { return };
        let (sends, ahead, messages) = (
            streams.random_bool(0.2),
            streams.random_range(1..OPEN_AHEAD),
            streams.random_range(1..40),
        );
        let later = self.txn + ahead;
        if let Some(txn) = postgres.txns.get(later)
            && sends
            && self.is_streamed(postgres, later)
        {
            self.send_block(txn, later, messages);
        }
    }

    /// A block of at most so many messages of the transaction, less its BEGIN and COMMIT.
    fn send_block(&mut self, txn: &Txn, number: usize, messages: usize) {
        let is_first = !self.open.contains_key(&number);
        let open = self.open.entry(number).or_insert(Open { message: 1, ..Open::default() });
        let last = txn.messages.len().saturating_sub(1);
        let to = open.message.saturating_add(messages).min(last);
        self.block.push_back(data(Lsn(0), encode::stream_start(txn.xid, is_first)));
        // What does not belong to the transaction is not sent in its blocks.
        let is_its_own = |sent: &&Sent| !sent.bytes.starts_with(&[b'M', 0]);
        let messages = txn.messages.get(open.message..to).unwrap_or_default();
        for sent in messages.iter().filter(is_its_own) {
            if let Some(relation) = sent.relation.filter(|oid| open.described.insert(*oid)) {
                self.block.push_back(description(relation, Some(txn.xid), false));
            }
            let mut frame = frame(sent, encode::in_block(&sent.bytes, txn.xid));
            if let Frame::Oversize { bytes, .. } = &mut frame {
                *bytes += 4;
            }
            self.block.push_back(frame);
        }
        open.message = to;
        self.block.push_back(data(Lsn(0), encode::stream_stop()));
    }

    /// Whether the transaction is streamed, which one that cannot be read is not.
    fn is_streamed(&mut self, postgres: &Postgres, number: usize) -> bool {
        let Some(streams) = &mut self.streams else { return false };
        let Some(txn) = postgres.txns.get(number) else { return false };
        let is_readable = !postgres.unreadable.iter().any(|(txn, _)| *txn == number);
        let mut draw = || txn.messages.len() >= LARGE || streams.random_bool(0.1);
        is_readable && *self.streamed.entry(number).or_insert_with(&mut draw)
    }
}

fn data(wal_start: Lsn, bytes: Vec<u8>) -> Frame {
    Frame::Data { wal_start, payload: Bytes::from(bytes) }
}

fn frame(sent: &Sent, message: Vec<u8>) -> Frame {
    match sent.oversize {
        Some(bytes) => {
            Frame::Oversize { wal_start: sent.wal_start, head: Bytes::from(message), bytes }
        }
        None => data(sent.wal_start, message),
    }
}

/// The message that describes a table, inside a block of the transaction where one is given.
fn description(relation: u32, xid: Option<u32>, lacks_column: bool) -> Frame {
    let mut table = schema::table(relation);
    if let Some(last) = table.as_mut().and_then(|t| t.columns.last_mut()).filter(|_| lacks_column) {
        last.name = "renamed".to_owned();
    }
    let bytes = table.map(|table| encode::relation(&table)).unwrap_or_default();
    data(Lsn(0), xid.map_or_else(|| bytes.clone(), |xid| encode::in_block(&bytes, xid)))
}
