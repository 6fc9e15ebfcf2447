//! The task that reads the stream: bytes become items, and status updates go back on time.
//!
//! It owns the socket. While the dispatcher has no room it stops reading, but goes on sending status,
//! and watches a SQL session: a server that shuts down ends that one at once, and we close the stream,
//! for which the server would wait otherwise.

mod lost;

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

pub(super) use self::lost::Unreadable;
use self::lost::{Ended, Lost};
use super::backoff::Backoff;
use super::leadership::{self, OpenError, Session, reopen};
use super::rulebook::{Rulebook, Unlearned};
use super::stop::{Fatal, Stop};

use crate::config::Config;
use crate::server::health::Teller;
use crate::server::metrics::Metrics;
use crate::server::trouble::Part;
use walhook_core::event::{Invalidation, Item, Scope};
use walhook_core::halt::Halt;
use walhook_core::id::Epoch;
use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;
use walhook_decode::change::{Changes, Step};
use walhook_decode::pgoutput::{self, DecodeError, Message, Protocol};
use walhook_postgres::feedback::Feedback;
use walhook_postgres::fix::{Failure, line_of};
use walhook_postgres::sql::Connection;
use walhook_postgres::wire::{self, Class, Frame, WireError};
use walhook_process::clock::Clock;
use walhook_process::failpoint::Failpoint;

/// Items in a batch at most: enough to make the channel cheap.
const BATCH_ITEMS: usize = 256;

/// Event bytes in a batch, beyond which it takes no further change.
pub(super) const BATCH_BYTES: usize = 64 << 10;

/// Messages that are handled in a row at most before what they made is handed on: a rule may take
/// milliseconds for each.
const MESSAGES_IN_A_ROW: usize = 64;

/// Items in stream order.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) items: Vec<Item>,
    bytes: usize,
}

impl Batch {
    pub(super) fn is_full(&self) -> bool {
        self.items.len() >= BATCH_ITEMS || self.bytes >= BATCH_BYTES
    }

    /// Counts the bytes of the items from this one on, which are new.
    pub(super) fn count_from(&mut self, first: usize) {
        let new = self.items.get(first..).unwrap_or_default();
        self.bytes += new.iter().map(Item::size_bytes).sum::<usize>();
    }
}

/// Reads, with everything that outlives one connection.
pub(super) struct Reader {
    pub(super) config: Config,
    pub(super) epoch: Epoch,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tell: Teller,
    pub(super) book: Rulebook,
    pub(super) changes: Changes,
    pub(super) batches: mpsc::Sender<Batch>,
    pub(super) flushed: watch::Receiver<Lsn>,
    /// A transaction that cached routes must not be older than, when changes of the watched tables may
    /// never have been in the stream.
    pub(super) evictions: watch::Receiver<Option<u32>>,
    pub(super) feedback: Feedback,
    /// Not handed on yet. Outlives a connection: `changes` does not give these items again.
    pub(super) batch: Batch,
    /// Why nothing more is read: the pipeline halts as soon as all that was read is settled.
    pub(super) broken: Option<Halt>,
    /// The commit LSNs of the transactions whose unreadable rest is given up.
    pub(super) left_out: Vec<Lsn>,
    /// The commit LSN of the transaction that could not be read last time.
    pub(super) unreadable: Option<Lsn>,
    /// Stop reading.
    pub(super) drain: CancellationToken,
    /// Stop.
    pub(super) abort: CancellationToken,
}

impl Reader {
    /// Reads until `abort`, through lost connections.
    ///
    /// # Errors
    /// [`Stop`] when the stream cannot go on.
    pub(super) async fn read(mut self, mut session: Session) -> Result<(), Stop> {
        loop {
            let lost = match self.stream(session).await? {
                Ended::Stopped => return Ok(()),
                Ended::Lost(lost) => lost,
            };
            self.tell.stream_lost();
            if self.broken.is_some() {
                return self.halt().await;
            }
            if self.drain.is_cancelled() {
                return Ok(());
            }
            self.tell.fails(Part::Stream, Instant::now(), &*lost);
            session = match self.reconnect().await? {
                Some(session) => session,
                None => return Ok(()),
            };
            self.changes.handle_reconnected();
            self.tell.works(Part::Stream);
            tracing::info!(at = %self.changes.resume_lsn(), "streaming again");
        }
    }

    /// Waits, without a stream, until the halt is due.
    async fn halt(&mut self) -> Result<(), Stop> {
        loop {
            if let Some(halt) = self.due_halt() {
                return Err(Stop::Halted(halt));
            }
            tokio::select! {
                biased;
                () = self.drain.cancelled() => return Ok(()),
                () = self.abort.cancelled() => return Ok(()),
                room = self.batches.reserve(), if !self.batch.items.is_empty() => match room {
                    Ok(room) => room.send(std::mem::take(&mut self.batch)),
                    Err(_) => return Ok(()),
                },
                changed = self.flushed.changed() => if changed.is_err() {
                    return Ok(());
                },
            }
        }
    }

    /// The halt, once every complete transaction before it is settled and stored.
    ///
    /// Before, because the corrected rule may fit those no more: they were written when the table
    /// still had its old columns, and would halt the next process again, whatever its rules say.
    fn due_halt(&mut self) -> Option<Halt> {
        let settled = *self.flushed.borrow() >= self.changes.resume_lsn();
        self.broken.take_if(|_| settled && self.batch.items.is_empty())
    }

    async fn reconnect(&mut self) -> Result<Option<Session>, Stop> {
        let mut backoff = Backoff::new();
        loop {
            // What keepalives told of is acknowledged too, and may be beyond the last commit: the slot
            // must not look as if it had skipped that.
            let at = self.changes.resume_lsn().max(*self.flushed.borrow());
            tokio::select! {
                biased;
                () = self.drain.cancelled() => return Ok(None),
                () = self.abort.cancelled() => return Ok(None),
                () = backoff.wait() => {}
            }
            let opened = tokio::select! {
                biased;
                () = self.drain.cancelled() => return Ok(None),
                () = self.abort.cancelled() => return Ok(None),
                opened = reopen(&self.config, self.epoch, at) => opened,
            };
            match opened {
                Ok(session) => return Ok(Some(session)),
                Err(OpenError::Stop(Stop::Halted(halt))) => {
                    return Err(Stop::Halted(halt.since(*self.flushed.borrow())));
                }
                Err(OpenError::Stop(stop)) => return Err(stop),
                Err(OpenError::Refused { later: Some(halt), .. }) => {
                    return Err(Stop::Halted(halt.since(*self.flushed.borrow())));
                }
                Err(OpenError::SlotInUse) => {
                    let (problem, fix) = (leadership::IN_USE, leadership::IN_USE_FIX);
                    self.tell.fails_with(Part::Stream, Instant::now(), problem, fix);
                }
                Err(OpenError::Passing(problem) | OpenError::Refused { problem, .. }) => {
                    tracing::debug!(problem = %problem.line(), "cannot connect; trying again");
                    self.tell.fails(Part::Stream, Instant::now(), &*problem);
                }
            }
        }
    }

    /// Reads from one connection until it ends.
    async fn stream(&mut self, session: Session) -> Result<Ended, Stop> {
        let Session { mut stream, mut sentinel, sender_timeout, .. } = session;
        self.feedback.handle_reconnected(sender_timeout, self.clock.now());
        let mut was_reading = true;
        let mut bytes_read = 0;
        let batches = self.batches.clone();
        self.stream_moved();
        loop {
            if let Some(halt) = self.due_halt() {
                return Err(Stop::Halted(halt));
            }
            let now = self.clock.now();
            if let Some(update) = self.feedback.poll(now) {
                if let Err(error) = stream.send_status(update).await {
                    return Ok(Ended::lost(Lost::Status(error)));
                }
                Failpoint::FlushSent.pass();
            }
            // A large change may take longer to arrive than a server may be silent.
            if stream.bytes_read() > bytes_read {
                bytes_read = stream.bytes_read();
                self.feedback.handle_heard(now);
            }
            if self.feedback.silent(now) {
                return Ok(Ended::lost(Lost::Silent));
            }
            let reading = self.is_reading(&mut was_reading, now);
            let wake = self.clock.instant(self.feedback.deadline());

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
                    let invalidate = |xid| Invalidation::new(xid, Scope::All);
                    self.batch.items.extend(xid.map(invalidate).map(Item::Invalidate));
                }
                () = sleep_until(wake) => {}
                room = batches.reserve(), if !self.batch.items.is_empty() => match room {
                    Ok(room) => room.send(std::mem::take(&mut self.batch)),
                    Err(_) => return Ok(Ended::Stopped),
                },
                frame = stream.next(), if reading => {
                    self.stream_moved();
                    let mut next = frame.map(Some);
                    let mut handled = 0;
                    while let Some(frame) = match next { Ok(frame) => frame, Err(e) => return self.lost(e) } {
                        if let Some(ended) = self.handle_frame(frame, stream.protocol(), &sentinel).await? {
                            return Ok(ended);
                        }
                        handled += 1;
                        if self.batch.is_full()
                            || self.broken.is_some()
                            || handled == MESSAGES_IN_A_ROW
                        {
                            break;
                        }
                        next = stream.try_next();
                    }
                }
            }
        }
    }

    /// Whether more may be read now; the feedback is told where that changes.
    fn is_reading(&mut self, was_reading: &mut bool, now: Tick) -> bool {
        let stopped = self.drain.is_cancelled() || self.broken.is_some();
        let reading = !self.batch.is_full() && !stopped;
        match (std::mem::replace(was_reading, reading), reading) {
            (true, false) => self.feedback.handle_paused(),
            (false, true) => self.feedback.handle_resumed(now),
            (true, true) | (false, false) => {}
        }
        reading
    }

    /// Acknowledges what is stored; best effort: what is not acknowledged is only sent again.
    async fn say_goodbye(&mut self, stream: &mut wire::Stream) {
        self.feedback.handle_flushed(*self.flushed.borrow());
        if let Some(update) = self.feedback.poll(self.clock.now()) {
            let _ = stream.send_status(update).await;
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

    /// The transaction that the stream stands in cannot be read on. Once may have a passing cause; twice
    /// in a row halts, unless the operator has given its rest up.
    fn unreadable(&mut self, why: Unreadable) -> Result<Ended, Stop> {
        let Some(transaction) = self.changes.transaction() else {
            let after = self.changes.resume_lsn();
            return Err(Fatal::Unreadable { after, source: why }.into());
        };
        let commit = transaction.commit_lsn;
        if self.left_out.contains(&commit) {
            if let Some(Step::Commit { end_lsn }) = self.changes.handle_left_out() {
                self.feedback.handle_received(end_lsn, self.clock.now());
                self.batch.items.push(Item::Commit { end_lsn });
            }
            return Ok(Ended::lost(Lost::LeftOut { commit, source: why }));
        }
        if self.unreadable.replace(commit) == Some(commit) {
            self.halt_when_settled(Halt::Unreadable { commit, problem: line_of(&why) });
        }
        Ok(Ended::lost(Lost::Unreadable(why)))
    }

    /// Makes items of a frame. `Some` when the connection is of no more use.
    async fn handle_frame(
        &mut self,
        frame: Frame,
        protocol: Protocol,
        client: &Connection,
    ) -> Result<Option<Ended>, Stop> {
        match frame {
            Frame::Keepalive { wal_end, reply_requested } => {
                self.feedback.handle_keepalive(wal_end, reply_requested, self.clock.now());
                if !self.changes.in_transaction() {
                    self.batch.items.push(Item::Progress { wal_end });
                }
                Ok(None)
            }
            Frame::XLogData { wal_start, wal_end, payload } => {
                self.feedback.handle_received(wal_end, self.clock.now());
                self.handle_message(wal_start, pgoutput::decode(protocol, &payload), client).await
            }
            Frame::Oversize { wal_start, wal_end, head, bytes } => {
                tracing::debug!(at = %wal_start, bytes, "a change is too large to be read");
                self.feedback.handle_received(wal_end, self.clock.now());
                self.handle_message(
                    wal_start,
                    pgoutput::decode_head(protocol, &head, bytes),
                    client,
                )
                .await
            }
        }
    }

    /// Makes items of a message. After an error nothing may follow: the steps were given only once.
    async fn handle_message(
        &mut self,
        at: Lsn,
        message: Result<Message<'_>, DecodeError>,
        client: &Connection,
    ) -> Result<Option<Ended>, Stop> {
        let from = self.batch.items.len();
        let made = self.make_items(at, message, client).await;
        self.batch.count_from(from);
        made
    }

    async fn make_items(
        &mut self,
        at: Lsn,
        message: Result<Message<'_>, DecodeError>,
        client: &Connection,
    ) -> Result<Option<Ended>, Stop> {
        let message = match message {
            Ok(message) => message,
            Err(why) => return self.unreadable(Unreadable::Message { at, why }).map(Some),
        };
        // Before any step is given: what fails here can be tried again on the next connection.
        let xid = self.changes.transaction().map(|transaction| transaction.xid);
        match self.book.learn(&message, xid, client).await {
            Ok(()) => {}
            Err(Unlearned::Halt(halt)) => {
                self.halt_when_settled(halt);
                return Ok(None);
            }
            Err(error @ (Unlearned::Unanswered(_) | Unlearned::NoAnswer(_))) => {
                return Ok(Some(Ended::lost(Lost::Unlearned(error))));
            }
        }
        let steps = match self.changes.handle(at, message) {
            Ok(steps) => steps,
            Err(why) => return self.unreadable(Unreadable::Change { at, why }).map(Some),
        };
        for step in steps {
            match step {
                Step::Begin(transaction) => {
                    self.batch.items.push(Item::Begin { commit_lsn: transaction.commit_lsn });
                }
                Step::Relation(relation) => {
                    if let Err(broken) = self.book.bind(&relation) {
                        self.halt_when_settled(Halt::RuleBroken(broken.to_string()));
                        return Ok(None);
                    }
                }
                Step::Change(change) => {
                    self.metrics.changes.inc();
                    self.book.rules.handle_change(&change, &mut self.batch.items);
                }
                Step::Message(message) => {
                    self.book.rules.handle_message(&message, &mut self.batch.items);
                }
                Step::Commit { end_lsn } => {
                    self.feedback.handle_received(end_lsn, self.clock.now());
                    self.batch.items.push(Item::Commit { end_lsn });
                }
            }
        }
        Ok(None)
    }

    /// Reads nothing more, and halts once all that came before is settled.
    fn halt_when_settled(&mut self, halt: Halt) {
        tracing::error!(reason = %halt, "halting once all that came before is settled");
        self.broken = Some(halt);
    }
}
