//! Transactions that are received while they are open, and played at their commits: see
//! [`walhook_decode::streamed`].
//!
//! A transaction that has committed is ours: a connection that is opened later does not send it again. It is
//! played in bounded batches, which take turns with what comes live: see [`walhook_rules::turns`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::pending;
use std::time::Duration;

use tokio::sync::watch;

use super::fallback::Fallback;
use crate::config::{Config, Streaming};
use crate::server::metrics::StreamedMetrics;
use crate::server::spool::{Spool, SpoolFailed};
use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;
use walhook_decode::change::Ours;
use walhook_decode::streamed::{
    self, Counts, Done, OpenTransactions, Play, Record, Room, Settings, StreamedError,
};
use walhook_process::clock::unix_us;
use walhook_rules::turns::{Foreseen, Turns};
use walhook_state::OpenTransaction;

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
    pub(super) transactions: OpenTransactions,
    /// What those may come to that are open.
    pub(super) foreseen: HashMap<u32, Foreseen>,
    /// Those that have committed and have not begun to be played, in commit order; with the end of what committed
    /// before each.
    pub(super) ours: VecDeque<(Ours, Lsn)>,
    /// The end of what committed before the one that is played.
    pub(super) before: Lsn,
    /// A message that is to be played again, for what it needs could not be learned.
    pub(super) again: Option<Record>,
    spool: Option<Spool>,
    /// Why there is none, although one was asked for.
    no_spool: Option<String>,
    /// Whether what is played has to be read from it first.
    pub(super) waits: bool,
    shown: Shown,
    show_at: Tick,
    counted: Counts,
    spooled_bytes: u64,
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
            spool: None,
            no_spool: None,
            waits: false,
            shown,
            show_at: Tick::default(),
            counted: Counts::default(),
            spooled_bytes: 0,
        }
    }

    /// Opens the spool, where there is a directory for it and it is not open; or uses it again. Without one there
    /// is memory alone.
    pub(super) async fn open_spool(&mut self, config: &Config) {
        let source = &config.source;
        let Some(directory) = source.spool.as_ref().filter(|_| source.streaming == Streaming::On)
        else {
            return;
        };
        if self.spool.is_none() {
            match Spool::open(directory, source.spool_max.0).await {
                Ok(spool) => self.spool = Some(spool),
                Err(error) => {
                    let fix = Fallback::Disk.fix();
                    tracing::warn!(%error, fix, "open transactions are kept in memory alone");
                    self.no_spool = Some(error.to_string());
                }
            }
        }
        self.transactions.set_spool(self.spool.is_some());
    }

    /// Has the spool do what is next, and waits until it has: for ever, where there is nothing. Cancel-safe.
    pub(super) async fn spool_done(&mut self) -> Result<Option<Done>, SpoolFailed> {
        match &mut self.spool {
            Some(spool) => {
                spool.take_order(&mut self.transactions);
                spool.done().await
            }
            None => pending().await,
        }
    }

    /// Why there is no room, where there is none and will be none.
    pub(super) fn no_room(&self) -> (Fallback, String) {
        match &self.no_spool {
            Some(problem) => (Fallback::Disk, problem.clone()),
            None => {
                let problem = "an eighth of memory.limit is full, and there is no spool";
                (Fallback::Memory, problem.to_owned())
            }
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
        self.has_committed() && !self.waits
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
    pub(super) fn next(&mut self) -> Result<Play, StreamedError> {
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
        let before = self.foreseen.len();
        self.foreseen.retain(|xid, _| open.contains(xid));
        metrics.aborted.inc_by(count(before - self.foreseen.len()));
        let unix_us = unix_us();
        let kept = self.transactions.open().filter(|one| one.rows > 0);
        let mut rows: Vec<OpenTransaction> = kept.map(|one| row(&one, now, unix_us)).collect();
        let is_open = |row: &&OpenTransaction| row.state == OPEN;
        metrics.open.set(saturate(rows.iter().filter(is_open).count()));
        metrics.memory_bytes.set(saturate(bytes));
        metrics.spool_bytes.set(saturate(self.transactions.spooled_bytes()));
        let counts = self.transactions.counts();
        let then = std::mem::replace(&mut self.counted, counts);
        metrics.rows.inc_by(counts.rows - then.rows);
        metrics.bytes.inc_by(counts.bytes - then.bytes);
        metrics.aborted_bytes.inc_by(counts.aborted_bytes - then.aborted_bytes);
        let spooled = self.spool.as_ref().map_or(0, Spool::written_bytes);
        metrics.spooled_bytes.inc_by(spooled - std::mem::replace(&mut self.spooled_bytes, spooled));
        self.shown.rows.send_if_modified(|told| {
            // Two clocks may tell a moment that is long ago a little differently each time.
            for row in &mut rows {
                let same = told.iter().find(|told| told.xid == row.xid);
                row.since_us = same.map_or(row.since_us, |told| told.since_us);
            }
            let is_new = *told != rows;
            *told = std::mem::take(&mut rows);
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

fn row(one: &streamed::OpenTransaction, now: Tick, unix_us: i64) -> OpenTransaction {
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

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
