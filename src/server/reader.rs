//! The task that reads the stream: bytes become items, and status updates go back on time.
//!
//! It owns the socket. While the dispatcher has no room it stops reading, but goes on sending status,
//! and watches a SQL session: a server that shuts down ends that one at once, and we close the stream,
//! for which the server would wait otherwise.

mod fallback;
mod items;
mod lost;
mod play;
mod proof;
mod received;
mod reconnect;

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

pub(super) use self::fallback::{Fallback, Streaming};
use self::items::Broken;
pub(super) use self::lost::Unreadable;
use self::lost::{Ended, Lost};
pub(super) use self::proof::Proof;
pub(super) use self::received::{Received, Shown};
use super::known::Known;
use super::leadership::{OpenError, Session};
use super::rulebook::Rulebook;
use super::stop::Stop;

use crate::config::Config;
use crate::server::backoff::Backoff;
use crate::server::health::Teller;
use crate::server::metrics::Metrics;
use crate::server::trouble::Part;
use walhook_core::event::{Invalidation, Item, Scope};
use walhook_core::id::Epoch;
use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;
use walhook_decode::change::Changes;
use walhook_decode::streamed::Room;
use walhook_postgres::feedback::Feedback;
use walhook_postgres::fix::Failure;
use walhook_postgres::sql::Connection;
use walhook_postgres::timelines::Primary;
use walhook_postgres::wire::{self, Class, Frame, WireError};
use walhook_process::clock::Clock;
use walhook_process::failpoint::Failpoint;
use walhook_rules::turns::Turns;

/// Messages that are handled in a row at most before what they made is handed on: a rule may take
/// milliseconds for each.
const MESSAGES_IN_A_ROW: usize = 64;

/// The part of `memory.limit` that may be held of the stream while something is played.
const HELD_SHARE: u64 = 16;

/// What may be held of the stream while something is played.
pub(super) fn held_max_bytes(config: &Config) -> usize {
    usize::try_from(config.memory.limit.0 / HELD_SHARE).unwrap_or(usize::MAX)
}

/// Reads, with everything that outlives one connection.
pub(super) struct Reader {
    pub(super) config: Config,
    pub(super) epoch: Epoch,
    pub(super) known: Known,
    /// The server that was read last.
    pub(super) primary: Primary,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tell: Teller,
    pub(super) book: Rulebook,
    pub(super) changes: Changes,
    pub(super) batches: mpsc::Sender<Vec<Item>>,
    pub(super) flushed: watch::Receiver<Lsn>,
    /// Whether the dispatcher has room for what is played.
    pub(super) wants_plays: watch::Receiver<bool>,
    /// A transaction that cached routes must not be older than, when changes of the watched tables may
    /// never have been in the stream.
    pub(super) evictions: watch::Receiver<Option<u32>>,
    pub(super) feedback: Feedback,
    /// What is not handed on yet, and what is held of the stream while something is played. Outlives a connection:
    /// `changes` does not give these items again.
    pub(super) turns: Turns,
    /// Whether the last turn was the stream's.
    pub(super) was_live: bool,
    pub(super) proof: Proof,
    /// Why the stream fails, as it was told. What others tell of it, they take back.
    pub(super) fails: Option<String>,
    /// Before the next stream is opened.
    pub(super) backoff: Backoff,
    /// What one message makes.
    pub(super) made: Vec<Item>,
    /// Why nothing more is read: the pipeline halts as soon as all that was read is settled.
    pub(super) broken: Option<Broken>,
    /// The commit LSNs of the transactions whose unreadable rest is given up.
    pub(super) left_out: Vec<Lsn>,
    /// The commit LSN of the transaction that could not be read last time.
    pub(super) unreadable: Option<Lsn>,
    /// The transactions that come while they are open.
    pub(super) received: Received,
    /// Whether they do.
    pub(super) streaming: Streaming,
    /// Stop reading.
    pub(super) drain: CancellationToken,
    /// Stop.
    pub(super) abort: CancellationToken,
}

impl Reader {
    /// Reads until `abort`, through lost connections. The first session `streams`, unless that is not wanted, or what
    /// was kept of an open transaction could not be read back.
    ///
    /// # Errors
    /// [`Stop`] when the stream cannot go on.
    pub(super) async fn read(mut self, session: Session, streams: bool) -> Result<(), Stop> {
        let ended = self.read_on(session, streams).await;
        self.known.received(self.primary, self.resume_lsn());
        ended
    }

    /// Up to where everything was received. What keepalives told of is acknowledged too, and may be beyond the last
    /// commit: the slot must not look as if it had skipped that.
    fn resume_lsn(&self) -> Lsn {
        self.changes.resume_lsn().max(*self.flushed.borrow())
    }

    async fn read_on(&mut self, mut session: Session, streams: bool) -> Result<(), Stop> {
        if self.streaming.is_on() && !streams {
            let problem = "what was kept of an open transaction could not be read back";
            self.give_up_streaming(Fallback::Disk, problem);
        }
        loop {
            if self.streaming.is_on() {
                self.received.open_spool(&self.config).await;
            }
            match self.stream(session).await? {
                Ended::Stopped => return Ok(()),
                Ended::Reopen => {}
                Ended::Lost(lost) => {
                    self.tell.stream_lost();
                    self.stream_fails(&lost.line(), &lost.fix());
                }
            }
            // What is to be played needs a session.
            if self.broken.is_some() && !self.received.has_committed() {
                return self.halt().await;
            }
            if self.drain.is_cancelled() {
                return Ok(());
            }
            session = match self.reconnect().await? {
                Some(session) => session,
                None => return Ok(()),
            };
            self.primary = session.primary;
            self.changes.handle_reconnected();
            self.received.handle_reconnected();
            if self.proof.is_given() {
                self.stream_works();
            }
            tracing::info!(at = %self.changes.resume_lsn(), "streaming again");
        }
    }

    /// Reads from one connection until it ends.
    async fn stream(&mut self, session: Session) -> Result<Ended, Stop> {
        let Session { mut stream, mut sentinel, sender_timeout, .. } = session;
        self.feedback.handle_reconnected(sender_timeout, self.clock.now());
        self.proof.begin(self.changes.resume_lsn(), self.clock.now());
        let mut was_reading = true;
        let mut bytes_read = 0;
        let batches = self.batches.clone();
        self.stream_moved();
        loop {
            if let Some(halt) = self.due_halt() {
                return Err(Stop::Halted(halt));
            }
            let now = self.clock.now();
            if self.proof.look(self.changes.resume_lsn(), now) {
                self.backoff = Backoff::new();
                self.stream_works();
            }
            if let Some(lost) = self.tell_server(&mut stream, &mut bytes_read).await {
                return Ok(Ended::lost(lost));
            }
            if let Some(ended) = self.reopens() {
                return Ok(ended);
            }
            self.received.show(now, &self.turns, &self.metrics.streamed);
            let reading = self.is_reading(&mut was_reading, now);
            let plays = self.plays();
            let shown = self.received.show_at();
            let wake =
                self.clock.instant(shown.into_iter().fold(self.feedback.deadline(), Tick::min));

            tokio::select! {
                // What ends the stream, what frees WAL, what frees memory, then what takes it.
                biased;
                () = self.abort.cancelled() => {
                    self.say_goodbye(&mut stream).await;
                    return Ok(Ended::Stopped);
                }
                error = sentinel.closed() => return Ok(Ended::lost(Lost::Sentinel(error))),
                changed = self.flushed.changed() => {
                    if changed.is_err() {
                        return Ok(Ended::Stopped);
                    }
                    self.feedback.handle_flushed(*self.flushed.borrow_and_update());
                }
                Ok(()) = self.evictions.changed() => {
                    let xid = *self.evictions.borrow_and_update();
                    if let Some(xid) = xid {
                        self.turns.evict(Invalidation::new(xid, Scope::All));
                    }
                }
                Ok(()) = self.wants_plays.changed(), if self.received.can_play() => {}
                () = sleep_until(wake) => {}
                room = batches.reserve(), if !self.turns.is_empty() => match room {
                    Ok(room) => room.send(self.turns.take()),
                    Err(_) => return Ok(Ended::Stopped),
                },
                done = self.received.spool_done() => {
                    if let Some(ended) = self.handle_spooled(done)? {
                        return Ok(ended);
                    }
                }
                // The stream first, but not twice in a row while something is to be played.
                frame = stream.next(), if reading && !(plays && self.was_live) => {
                    self.was_live = true;
                    if let Some(ended) = self.take_frames(frame, &mut stream, &sentinel).await? {
                        return Ok(ended);
                    }
                }
                // What comes live never stands behind more than one batch of what is played.
                room = batches.reserve_many(batches.max_capacity() - 1), if plays => {
                    if room.is_err() {
                        return Ok(Ended::Stopped);
                    }
                    self.was_live = false;
                    self.stream_moved();
                    if let Some(ended) = self.play(&sentinel).await? {
                        return Ok(ended);
                    }
                }
            }
        }
    }

    /// Sends the status that is due. `Some` where the server does not take it, or is silent.
    async fn tell_server(
        &mut self,
        stream: &mut wire::Stream,
        bytes_read: &mut u64,
    ) -> Option<Lost> {
        let now = self.clock.now();
        if let Some(update) = self.feedback.poll(now) {
            if let Err(error) = stream.send_status(update).await {
                return Some(Lost::Status(error));
            }
            Failpoint::FlushSent.pass();
        }
        // A large change may take longer to arrive than a server may be silent.
        if stream.bytes_read() > *bytes_read {
            *bytes_read = stream.bytes_read();
            self.feedback.handle_heard(now);
        }
        self.feedback.silent(now).then_some(Lost::Silent)
    }

    /// Takes a frame, and what has come with it, for a batch at most. `Some` when the connection is of no more
    /// use.
    async fn take_frames(
        &mut self,
        frame: Result<Frame, WireError>,
        stream: &mut wire::Stream,
        client: &Connection,
    ) -> Result<Option<Ended>, Stop> {
        self.stream_moved();
        let mut next = frame.map(Some);
        let mut handled = 0;
        loop {
            let frame = match next {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(None),
                Err(error) => return self.lost(error).map(Some),
            };
            if let Some(ended) = self.handle_frame(frame, stream.protocol(), client).await? {
                return Ok(Some(ended));
            }
            handled += 1;
            if handled == MESSAGES_IN_A_ROW || self.broken.is_some() || !self.has_room() {
                return Ok(None);
            }
            next = stream.try_next();
        }
    }

    /// Why the connection is to be opened again otherwise, where it is.
    fn reopens(&mut self) -> Option<Ended> {
        if self.tries_streaming() {
            return Some(Ended::Reopen);
        }
        if self.received.room() != Room::None {
            return None;
        }
        let (reason, problem) = self.received.no_room();
        Some(self.fall_back(reason, &problem))
    }

    /// Whether more may be read now; the feedback is told where that changes.
    fn is_reading(&mut self, was_reading: &mut bool, now: Tick) -> bool {
        let stopped = self.drain.is_cancelled() || self.broken.is_some();
        let reading = self.has_room() && !stopped;
        match (std::mem::replace(was_reading, reading), reading) {
            (true, false) => self.feedback.handle_paused(),
            (false, true) => self.feedback.handle_resumed(now),
            (true, true) | (false, false) => {}
        }
        reading
    }

    /// Whether there is room for more of the stream.
    fn has_room(&self) -> bool {
        self.turns.wants_live() && !self.turns.is_full() && self.received.room() == Room::Free
    }

    /// Whether there is something to play, and room for what it makes.
    fn plays(&mut self) -> bool {
        let has_room = self.turns.is_empty() && *self.wants_plays.borrow_and_update();
        self.received.can_play() && has_room && !self.drain.is_cancelled()
    }

    /// Acknowledges what is stored; best effort: what is not acknowledged is only sent again.
    async fn say_goodbye(&mut self, stream: &mut wire::Stream) {
        self.feedback.handle_flushed(*self.flushed.borrow());
        if let Some(update) = self.feedback.poll(self.clock.now()) {
            let _ = stream.send_status(update).await;
        }
    }

    fn stream_fails(&mut self, problem: &str, fix: &str) {
        self.tell.fails_with(Part::Stream, Instant::now(), problem, fix);
        self.fails = Some(problem.to_owned());
    }

    fn stream_works(&mut self) {
        if let Some(problem) = self.fails.take() {
            self.tell.ended(Part::Stream, &problem);
        }
    }

    fn stream_moved(&self) {
        self.tell.stream_moved();
    }

    /// What it means that the stream ended so.
    fn lost(&mut self, error: WireError) -> Result<Ended, Stop> {
        if wire::classify(&error) == Class::Unsendable {
            return self.unreadable(Unreadable::Unsendable(error));
        }
        match OpenError::from(error) {
            OpenError::Stop(stop) => Err(stop),
            OpenError::SlotInUse => Ok(Ended::lost(Lost::SlotInUse)),
            OpenError::Passing(problem) | OpenError::Refused { problem, .. } => {
                Ok(Ended::lost(Lost::Refused(problem)))
            }
        }
    }
}
