//! Transactions that are received while they are open, and played at their commits: see
//! [`walhook_decode::streamed`].
//!
//! A transaction that has committed is ours: a connection that is opened later does not send it again. It is
//! played in bounded batches, which take turns with what comes live: see [`walhook_rules::turns`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Reader;
use super::fallback::Fallback;
use super::items::{Of, decode};
use super::lost::{Ended, Unreadable};
use crate::config::Config;
use crate::server::metrics::StreamedMetrics;
use crate::server::stop::Stop;
use crate::server::trouble::Part;
use walhook_core::event::Item;
use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;
use walhook_decode::change::{Ours, Step, Transaction};
use walhook_decode::streamed::{
    Committed, Counts, Kept, OpenTransactions, Payload, Play, Record, Room, Settings, Taken,
};
use walhook_postgres::sql::Connection;
use walhook_process::clock::unix_us;
use walhook_rules::turns::{Foreseen, Turns};
use walhook_state::OpenTransaction;

/// Messages that are played in a row at most before what they made is handed on.
const PLAYED_IN_A_ROW: usize = 64;

/// From one look at the open transactions, for people, to the next.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// The part of `memory.limit` that they may take.
const MEMORY_SHARE: u64 = 8;

/// What they take in memory is told in steps of so many bytes.
const BYTES_STEP: usize = 64 << 10;

/// Where it is told how open transactions stand.
pub(in crate::server) struct Shown {
    /// For `status`.
    pub(in crate::server) rows: watch::Sender<Vec<OpenTransaction>>,
    /// What they take in memory, which the dispatcher counts as its own.
    pub(in crate::server) memory_bytes: watch::Sender<usize>,
}

impl Shown {
    /// With its other ends.
    pub(in crate::server) fn new()
    -> (Self, watch::Receiver<Vec<OpenTransaction>>, watch::Receiver<usize>) {
        let ((rows, listed), (memory_bytes, taken)) =
            (watch::channel(Vec::new()), watch::channel(0));
        (Self { rows, memory_bytes }, listed, taken)
    }
}

/// The transactions that are received while they are open, and those that have committed and wait to be played.
pub(in crate::server) struct Received {
    transactions: OpenTransactions,
    /// What those may come to that are open.
    foreseen: HashMap<u32, Foreseen>,
    /// Those that have committed and have not begun to be played, in commit order; with the end of what committed
    /// before each.
    ours: VecDeque<(Ours, Lsn)>,
    /// The end of what committed before the one that is played.
    before: Lsn,
    /// A message that is to be played again, for what it needs could not be learned.
    again: Option<Record>,
    shown: Shown,
    show_at: Tick,
    counted: Counts,
}

impl Received {
    pub(in crate::server) fn new(config: &Config, shown: Shown) -> Self {
        let memory = config.memory.limit.0 / MEMORY_SHARE;
        let settings = Settings {
            memory_bytes: usize::try_from(memory).unwrap_or(usize::MAX),
            spool: false,
            prefixes: config.events.iter().filter_map(|rule| rule.prefix.clone()).collect(),
        };
        Self {
            transactions: OpenTransactions::new(settings),
            foreseen: HashMap::new(),
            ours: VecDeque::new(),
            before: Lsn::ZERO,
            again: None,
            shown,
            show_at: Tick::default(),
            counted: Counts::default(),
        }
    }

    /// A new connection: what is open is sent again, what has committed is not.
    pub(super) fn handle_reconnected(&mut self) {
        self.foreseen.clear();
        self.transactions.handle_reconnected();
    }

    /// Whether the stream stands in a block of an open transaction.
    pub(super) const fn in_block(&self) -> bool {
        self.transactions.in_block()
    }

    /// Whether something has committed that is not handed out.
    pub(super) fn has_committed(&self) -> bool {
        self.transactions.playing().is_some()
    }

    /// Whether what has committed can be played on.
    pub(super) fn can_play(&self) -> bool {
        self.has_committed()
    }

    /// Whether there is room for more of the stream, or will be.
    pub(super) fn room(&self) -> Room {
        self.transactions.room()
    }

    /// Nothing more is played. Returns the end of what committed before what is.
    pub(super) fn forget_committed(&mut self) -> Lsn {
        while self.transactions.playing().is_some() {
            self.transactions.forget_playing();
        }
        self.ours.clear();
        self.again = None;
        self.before
    }

    /// What is next of the transaction that is played.
    fn next(&mut self) -> Result<Play, walhook_decode::streamed::StreamedError> {
        match self.again.take() {
            Some(record) => Ok(Play::Record(record)),
            None => self.transactions.play(),
        }
    }

    /// Tells people, now and then, which are open; and whoever counts, what they take: with what takes turns with
    /// them.
    pub(super) fn show(&mut self, now: Tick, turns: &Turns, metrics: &StreamedMetrics) {
        let foreseen: usize = self.foreseen.values().map(Foreseen::memory_bytes).sum();
        let bytes = self.transactions.memory_bytes() + foreseen + turns.memory_bytes();
        let steps = bytes.div_ceil(BYTES_STEP) * BYTES_STEP;
        self.shown.memory_bytes.send_if_modified(|told| std::mem::replace(told, steps) != steps);
        if now < self.show_at {
            return;
        }
        self.show_at = now + TELL_EVERY;
        // Of those that were rolled back.
        let open: HashSet<u32> = self.transactions.open().map(|one| one.xid).collect();
        self.foreseen.retain(|xid, _| open.contains(xid));
        let unix_us = unix_us();
        let kept = self.transactions.open().filter(|one| one.rows > 0);
        let rows: Vec<OpenTransaction> = kept.map(|one| row(&one, now, unix_us)).collect();
        let is_open = |row: &&OpenTransaction| row.state == OPEN;
        metrics.open.set(saturate(rows.iter().filter(is_open).count()));
        metrics.memory_bytes.set(saturate(bytes));
        metrics.spool_bytes.set(saturate(self.transactions.spooled_bytes()));
        let counts = self.transactions.counts();
        let then = std::mem::replace(&mut self.counted, counts);
        metrics.rows.inc_by(counts.rows - then.rows);
        metrics.bytes.inc_by(counts.bytes - then.bytes);
        metrics.aborted_bytes.inc_by(counts.aborted_bytes - then.aborted_bytes);
        self.shown.rows.send_if_modified(|told| {
            let is_new = *told != rows;
            *told = rows;
            is_new
        });
    }

    /// When it is to be shown again, while there is something that changes.
    pub(super) fn show_at(&self) -> Option<Tick> {
        (!self.shown.rows.borrow().is_empty()).then_some(self.show_at)
    }
}

/// Received, and not committed.
const OPEN: &str = "open";

fn row(
    one: &walhook_decode::streamed::OpenTransaction,
    now: Tick,
    unix_us: i64,
) -> OpenTransaction {
    let age = i64::try_from(now.since(one.since).as_micros()).unwrap_or(i64::MAX);
    OpenTransaction {
        xid: one.xid,
        state: if one.committed { "committed" } else { OPEN }.to_owned(),
        since_us: unix_us.saturating_sub(age),
        rows: one.rows,
        bytes: one.bytes,
        kept_in: if one.spooled_bytes > 0 { "spool" } else { "memory" }.to_owned(),
    }
}

fn saturate(n: impl TryInto<i64>) -> i64 {
    n.try_into().unwrap_or(i64::MAX)
}

impl Reader {
    /// Takes a message of a stream in which transactions come while they are open. `Some` when the connection is
    /// of no more use.
    pub(super) async fn handle_streamed(
        &mut self,
        at: Lsn,
        payload: Payload<'_>,
        client: &Connection,
    ) -> Result<Option<Ended>, Stop> {
        match self.received.transactions.handle(self.clock.now(), at, payload) {
            Ok(Taken::Live) => self.handle_live(at, payload, client).await,
            Ok(Taken::Passed) => Ok(None),
            Ok(Taken::Kept(Kept { xid, payload, described })) => {
                let foreseen = self.received.foreseen.entry(xid).or_default();
                match decode(payload) {
                    Ok(message) => {
                        let table = |oid| described.table(oid);
                        self.book.rules.foresee(xid, message, table, foreseen);
                    }
                    // It shows when it is played.
                    Err(_) => *foreseen = Foreseen::anything(),
                }
                Ok(None)
            }
            Ok(Taken::Committed(committed)) => self.handle_committed(committed, client).await,
            Ok(Taken::Unclear { transaction, end_lsn }) => {
                Ok(self.handle_unclear(transaction, end_lsn))
            }
            Err(error) => Ok(Some(self.fall_back(Fallback::Unreadable, &error.to_string()))),
        }
    }

    /// A transaction has committed: it is ours from now on.
    async fn handle_committed(
        &mut self,
        committed: Committed,
        client: &Connection,
    ) -> Result<Option<Ended>, Stop> {
        let Committed { transaction, end_lsn, described, .. } = committed;
        let before = self.changes.resume_lsn();
        let foreseen = self.received.foreseen.remove(&transaction.xid).unwrap_or_default();
        let ours = match self.changes.handle_streamed(transaction, end_lsn) {
            Ok(ours) => ours,
            Err(why) => {
                self.received.transactions.forget_committed();
                let at = transaction.commit_lsn;
                return self.unreadable(Unreadable::Change { at, why }).map(Some);
            }
        };
        self.feedback.handle_received(end_lsn, self.clock.now());
        match ours {
            // Settled before: it came again.
            None => self.received.transactions.forget_committed(),
            Some(ours) => {
                self.turns.begin_play(transaction.commit_lsn, foreseen);
                self.received.ours.push_back((ours, before));
                self.metrics.streamed.committed.inc();
            }
        }
        for message in described {
            let message = decode(Payload::Whole(&message));
            let xid = Some(transaction.xid);
            let ended = self.handle_message(Lsn::ZERO, message, xid, client).await?;
            if ended.is_some() || self.broken.is_some() {
                return Ok(ended);
            }
        }
        Ok(None)
    }

    /// A transaction has committed that can only be read as a whole: it will be, where it is not done.
    fn handle_unclear(&mut self, transaction: Transaction, end_lsn: Lsn) -> Option<Ended> {
        if transaction.commit_lsn < self.changes.resume_lsn() {
            return None;
        }
        let problem = format!(
            "the transaction {} has logical messages whose place in it is not clear",
            transaction.commit_lsn
        );
        let ended = self.fall_back(Fallback::Unclear, &problem);
        self.streaming.off_behind(end_lsn);
        Some(ended)
    }

    /// Plays on, for a batch at most. `Some` when the connection is of no more use.
    pub(super) async fn play(&mut self, client: &Connection) -> Result<Option<Ended>, Stop> {
        for _ in 0..PLAYED_IN_A_ROW {
            let transaction = match self.changes.played() {
                Some(transaction) => transaction,
                None => match self.begin_play() {
                    Some(transaction) => transaction,
                    None => return Ok(None),
                },
            };
            match self.received.next() {
                Ok(Play::Record(record)) => {
                    if let Some(ended) = self.play_record(transaction, record, client).await? {
                        return Ok(Some(ended));
                    }
                }
                Ok(Play::Wait) => return Ok(None),
                Ok(Play::End) => self.end_play(),
                Err(error) => return Err(Stop::NotReadBack(error.to_string())),
            }
            if self.turns.is_full() || !self.received.can_play() {
                break;
            }
        }
        Ok(None)
    }

    fn begin_play(&mut self) -> Option<Transaction> {
        let (ours, before) = self.received.ours.pop_front()?;
        self.received.before = before;
        // It has begun with its commit.
        self.changes.begin_play(ours);
        self.changes.played()
    }

    fn end_play(&mut self) {
        if let Some(Step::Commit { end_lsn }) = self.changes.end_play() {
            self.turns.play(Item::Commit { end_lsn });
        }
    }

    async fn play_record(
        &mut self,
        transaction: Transaction,
        record: Record,
        client: &Connection,
    ) -> Result<Option<Ended>, Stop> {
        let payload = match record.oversize {
            None => Payload::Whole(&record.payload),
            Some(bytes) => Payload::Oversize { head: &record.payload, bytes },
        };
        let at = record.wal_start;
        let why = match decode(payload) {
            Ok(message) => {
                match self.learn(Of::Played, &message, Some(transaction.xid), client).await {
                    Ok(true) => {}
                    Ok(false) => return Ok(None),
                    Err(lost) => {
                        self.received.again = Some(record);
                        return Ok(Some(lost));
                    }
                }
                match self.changes.play(at, message) {
                    Ok(steps) => {
                        self.take_steps(Of::Played, steps);
                        return Ok(None);
                    }
                    Err(why) => Unreadable::Change { at, why },
                }
            }
            Err(why) => Unreadable::Message { at, why },
        };
        if self.left_out.contains(&transaction.commit_lsn) {
            tracing::warn!(commit = %transaction.commit_lsn, problem = %why, "the rest is left out");
            self.received.transactions.forget_playing();
            self.end_play();
            return Ok(None);
        }
        Err(Stop::NotReadBack(why.to_string()))
    }

    /// Opens the stream again without streaming, for a while.
    pub(super) fn fall_back(&mut self, reason: Fallback, problem: &str) -> Ended {
        let pause = self.streaming.fall_back(self.clock.now());
        let fix = reason.fix();
        tracing::warn!(
            reason = reason.as_str(), problem, fix, again_in = ?pause,
            "large transactions are received when they have committed, and delay others then"
        );
        self.metrics.streamed.count_fallback(reason);
        self.tell.fails_with(Part::Streaming, Instant::now(), problem, fix);
        Ended::Reopen
    }

    /// Whether the stream is to be opened again because streaming may be tried again.
    pub(super) fn tries_streaming(&mut self) -> bool {
        let now = self.clock.now();
        let quiet = !self.changes.in_transaction() && !self.received.has_committed();
        if !quiet || !self.streaming.is_due(now, self.changes.resume_lsn()) {
            return false;
        }
        self.streaming.resume(now);
        self.tell.works(Part::Streaming);
        tracing::info!("large transactions are received while they are open again");
        true
    }
}
