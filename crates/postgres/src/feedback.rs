//! What to tell the server of our progress, and when to give it up for dead.
//!
//! A status update serves four ends that pull in different directions:
//!
//! - It keeps the connection: without one for `wal_sender_timeout` the server cuts it, even while
//!   it is being read. So one is due on a timer, whatever the stages behind the reader do.
//! - Its flush position lets the server discard WAL. So a changed one is sent at once.
//! - A walsender that shuts down waits until the client has confirmed everything, asking again and
//!   again. We hold the flush position back for as long as deliveries are pending, and would hold
//!   `pg_ctl stop -m fast` for as long. An answer with flush = 0 ("not told") makes the server
//!   judge by our write position instead (`WalSndDone`), and leaves the slot where it is. The
//!   server asks for a reply at once only in a shutdown or when the timer is late; since the timer
//!   is kept, a request means a shutdown.
//! - A request for a reply is the only thing that makes a server with nothing to send say
//!   something. So we ask when it is silent, and conclude from further silence that it (or the
//!   network) is gone.
//!
//! Source: PostgreSQL `src/backend/replication/walsender.c` (`WalSndDone`,
//! `ProcessStandbyReplyMessage`, `WalSndCheckTimeOut`); manual, "Streaming Replication Protocol".

use std::time::Duration;

use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;

/// The longest time between two status updates: PostgreSQL's own `wal_receiver_status_interval`.
const MAX_INTERVAL: Duration = Duration::from_secs(10);

/// The shortest, so that a tiny `wal_sender_timeout` cannot make a hot loop.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// Status updates within one `wal_sender_timeout`: one may be late and one lost.
const UPDATES_PER_TIMEOUT: u32 = 3;

/// The longest silence: PostgreSQL's own default of `wal_receiver_timeout`.
const MAX_SILENCE: Duration = Duration::from_secs(60);

/// The time between two answers to requests. The server asks anew as soon as it has an answer that
/// does not content it: 47,531 times in 25 s, were each answered at once.
const ANSWER_GAP: Duration = Duration::from_millis(50);

/// A standby status update.
///
/// Source: PostgreSQL manual, "Streaming Replication Protocol", `r`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusUpdate {
    /// Up to where the stream was received.
    pub write: Lsn,
    /// Up to where everything is settled and stored; [`Lsn::ZERO`] tells the server nothing. The
    /// apply position is the same.
    pub flush: Lsn,
    /// Whether the server shall say something at once.
    pub request_reply: bool,
}

/// Decides when to send which status update. Like [`Changes`](walhook_decode::change::Changes), one lives
/// through all connections of a process: a position that was received on an earlier connection may
/// be settled during a later one.
///
/// Invariants: `flush` is never above `write` and, but for [`Lsn::ZERO`], never decreases.
#[derive(Debug)]
pub struct Feedback {
    interval: Duration,
    silence: Duration,
    received: Lsn,
    flushed: Lsn,
    /// The last flush position that the server was told.
    told: Lsn,
    last_sent: Tick,
    last_heard: Tick,
    last_answer: Option<Tick>,
    answer_due: Option<Tick>,
    paused: bool,
}

impl Feedback {
    /// For a first connection, started at `start` with everything before `flushed` settled and
    /// stored, and the session's `wal_sender_timeout` (zero: the server never times out).
    #[must_use]
    pub fn new(start: Lsn, flushed: Lsn, wal_sender_timeout: Duration, now: Tick) -> Self {
        let mut feedback = Self {
            interval: MAX_INTERVAL,
            silence: MAX_SILENCE,
            received: start.max(flushed),
            flushed,
            told: Lsn::ZERO,
            last_sent: now,
            last_heard: now,
            last_answer: None,
            answer_due: None,
            paused: false,
        };
        feedback.handle_reconnected(wal_sender_timeout, now);
        feedback
    }

    /// A new connection was started. What was received and flushed still counts; what the server was
    /// told does not, and the caller reads again.
    pub fn handle_reconnected(&mut self, wal_sender_timeout: Duration, now: Tick) {
        (self.interval, self.silence) = timing(wal_sender_timeout);
        self.told = Lsn::ZERO;
        self.last_sent = now;
        self.last_heard = now;
        self.last_answer = None;
        self.answer_due = None;
        self.paused = false;
    }

    /// An XLogData message came; `wal_end` is from its header (0/0 says nothing).
    pub fn handle_received(&mut self, wal_end: Lsn, now: Tick) {
        self.received = self.received.max(wal_end);
        self.last_heard = now;
    }

    /// Part of a message came: the server is not silent.
    pub fn handle_heard(&mut self, now: Tick) {
        self.last_heard = now;
    }

    /// A keepalive came.
    pub fn handle_keepalive(&mut self, wal_end: Lsn, reply_requested: bool, now: Tick) {
        self.handle_received(wal_end, now);
        let timer_kept = now < self.last_sent + self.interval;
        // With the timer late, the ordinary update that is due anyway is the answer; a server that
        // shuts down will ask again.
        if reply_requested && timer_kept && self.answer_due.is_none() {
            self.answer_due = Some(self.last_answer.map_or(now, |last| now.max(last + ANSWER_GAP)));
        }
    }

    /// Everything before `lsn` is settled and stored.
    ///
    /// # Panics
    /// When `lsn` was not received, or is before the last: telling the server so would lose
    /// changes.
    pub fn handle_flushed(&mut self, lsn: Lsn) {
        assert!(lsn <= self.received, "flush {lsn} is beyond what was received, {}", self.received);
        assert!(lsn >= self.flushed, "flush {lsn} is before the last, {}", self.flushed);
        self.flushed = lsn;
    }

    /// The caller stops reading, for what it reads has nowhere to go. Updates go on.
    pub fn handle_paused(&mut self) {
        self.paused = true;
    }

    /// The caller reads again. What it did not read was not silence.
    pub fn handle_resumed(&mut self, now: Tick) {
        self.paused = false;
        self.last_heard = now;
    }

    /// The status update to send now, if one is due. Call until there is none.
    pub fn poll(&mut self, now: Tick) -> Option<StatusUpdate> {
        if self.flushed > self.told || now >= self.last_sent + self.interval {
            self.last_sent = now;
            self.told = self.flushed;
            let quiet = now >= self.last_heard + self.interval;
            return Some(StatusUpdate {
                write: self.received,
                flush: self.flushed,
                // While paused we would not see the reply.
                request_reply: quiet && !self.paused,
            });
        }
        self.answer_due.take_if(|due| now >= *due)?;
        self.last_answer = Some(now);
        self.last_sent = now;
        // With nothing pending, the true position both contents the server and moves the slot.
        let flush = if self.flushed == self.received { self.flushed } else { Lsn::ZERO };
        Some(StatusUpdate { write: self.received, flush, request_reply: false })
    }

    /// When to call [`Feedback::poll`] and [`Feedback::silent`] next, if nothing happens before.
    #[must_use]
    pub fn deadline(&self) -> Tick {
        if self.flushed > self.told {
            return Tick::default();
        }
        let timer = self.last_sent + self.interval;
        let silence = (!self.paused).then(|| self.last_heard + self.silence);
        [self.answer_due, silence].into_iter().flatten().fold(timer, Tick::min)
    }

    /// Whether the server has been silent for so long that the connection must be given up.
    #[must_use]
    pub fn silent(&self, now: Tick) -> bool {
        !self.paused && now >= self.last_heard + self.silence
    }
}

/// The time between updates, and the silence that ends a connection.
fn timing(wal_sender_timeout: Duration) -> (Duration, Duration) {
    if wal_sender_timeout.is_zero() {
        return (MAX_INTERVAL, MAX_INTERVAL * UPDATES_PER_TIMEOUT);
    }
    let interval = (wal_sender_timeout / UPDATES_PER_TIMEOUT).clamp(MIN_INTERVAL, MAX_INTERVAL);
    // As patient as the server is with us: while it works through one large transaction of which
    // nothing is published, it may answer late.
    (interval, wal_sender_timeout.clamp(interval * UPDATES_PER_TIMEOUT, MAX_SILENCE))
}

#[cfg(test)]
mod tests;
