//! From frames to items.

use super::Reader;
use super::fallback::Fallback;
use super::lost::{Ended, Lost, Unreadable};
use crate::server::rulebook::Unlearned;
use crate::server::stop::{Fatal, Stop};
use walhook_core::event::Item;
use walhook_core::halt::Halt;
use walhook_core::lsn::Lsn;
use walhook_decode::change::{Step, Steps};
use walhook_decode::pgoutput::{self, DecodeError, Message, Protocol};
use walhook_decode::streamed::Payload;
use walhook_postgres::fix::line_of;
use walhook_postgres::sql::Connection;
use walhook_postgres::wire::Frame;

/// Which transaction a message belongs to: one that comes as a whole, or one that is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Live,
    Played,
}

/// Why nothing more is read.
#[derive(Debug)]
pub(in crate::server) struct Broken {
    halt: Halt,
    /// Up to where all is handed out: it halts as soon as that is settled.
    after: Lsn,
}

/// Decodes a message as it stands outside of blocks, where all versions have the same.
pub(super) fn decode(payload: Payload<'_>) -> Result<Message<'_>, DecodeError> {
    match payload {
        Payload::Whole(bytes) => pgoutput::decode(Protocol::V1, bytes),
        Payload::Oversize { head, bytes } => pgoutput::decode_head(Protocol::V1, head, bytes),
    }
}

impl Reader {
    /// The transaction that the stream stands in cannot be read on. Once may have a passing cause; twice
    /// in a row halts, unless the operator has given its rest up.
    pub(super) fn unreadable(&mut self, why: Unreadable) -> Result<Ended, Stop> {
        let Some(transaction) = self.changes.transaction() else {
            if self.streaming.is_on() {
                // Of which transaction it is shows when it has committed.
                return Ok(self.fall_back(Fallback::Unreadable, &line_of(&why)));
            }
            let after = self.changes.resume_lsn();
            return Err(Fatal::Unreadable { after, source: why }.into());
        };
        let commit = transaction.commit_lsn;
        if self.left_out.contains(&commit) {
            if let Some(Step::Commit { end_lsn }) = self.changes.handle_left_out() {
                self.feedback.handle_received(end_lsn, self.clock.now());
                self.turns.live(Item::Commit { end_lsn });
            }
            return Ok(Ended::lost(Lost::LeftOut { commit, source: why }));
        }
        if self.unreadable.replace(commit) == Some(commit) {
            self.halt_when_settled(Of::Live, Halt::Unreadable { commit, problem: line_of(&why) });
        }
        Ok(Ended::lost(Lost::Unreadable(why)))
    }

    /// Makes items of a frame. `Some` when the connection is of no more use.
    pub(super) async fn handle_frame(
        &mut self,
        frame: Frame,
        protocol: Protocol,
        client: &Connection,
    ) -> Result<Option<Ended>, Stop> {
        let now = self.clock.now();
        let (at, wal_end, bytes, oversize) = match frame {
            Frame::Keepalive { wal_end, reply_requested } => {
                self.feedback.handle_keepalive(wal_end, reply_requested, now);
                if !self.is_inside() {
                    self.turns.live(Item::Progress { wal_end });
                }
                return Ok(None);
            }
            Frame::XLogData { wal_start, wal_end, payload } => (wal_start, wal_end, payload, None),
            Frame::Oversize { wal_start, wal_end, head, bytes } => {
                tracing::debug!(at = %wal_start, bytes, "a change is too large to be read");
                (wal_start, wal_end, head, Some(bytes))
            }
        };
        self.feedback.handle_received(wal_end, now);
        let payload = match oversize {
            None => Payload::Whole(&bytes),
            Some(length) => Payload::Oversize { head: &bytes, bytes: length },
        };
        if protocol.streams() {
            self.handle_streamed(at, payload, client).await
        } else {
            self.handle_live(at, payload, client).await
        }
    }

    /// Whether the stream stands where a position of the server's says nothing of what is settled.
    fn is_inside(&self) -> bool {
        self.changes.in_transaction() || self.received.in_block()
    }

    /// Takes a message of what has committed.
    pub(super) async fn handle_live(
        &mut self,
        at: Lsn,
        payload: Payload<'_>,
        client: &Connection,
    ) -> Result<Option<Ended>, Stop> {
        let xid = self.changes.transaction().map(|transaction| transaction.xid);
        self.handle_message(at, decode(payload), xid, client).await
    }

    /// Makes items of a message of what has committed, around which is the transaction `xid`. After an error
    /// nothing may follow: the steps were given only once.
    pub(super) async fn handle_message(
        &mut self,
        at: Lsn,
        message: Result<Message<'_>, DecodeError>,
        xid: Option<u32>,
        client: &Connection,
    ) -> Result<Option<Ended>, Stop> {
        let message = match message {
            Ok(message) => message,
            Err(why) => return self.unreadable(Unreadable::Message { at, why }).map(Some),
        };
        match self.learn(Of::Live, &message, xid, client).await {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(ended) => return Ok(Some(ended)),
        }
        match self.changes.handle(at, message) {
            Ok(steps) => {
                self.take_steps(Of::Live, steps);
                Ok(None)
            }
            Err(why) => self.unreadable(Unreadable::Change { at, why }).map(Some),
        }
    }

    /// Learns what a message says of types and tables, before any step is given: what fails here can be tried
    /// again on the next connection. `false`: it halts.
    pub(super) async fn learn(
        &mut self,
        of: Of,
        message: &Message<'_>,
        xid: Option<u32>,
        client: &Connection,
    ) -> Result<bool, Ended> {
        match self.book.learn(message, xid, client).await {
            Ok(()) => Ok(true),
            Err(Unlearned::Halt(halt)) => {
                self.halt_when_settled(of, halt);
                Ok(false)
            }
            Err(error @ (Unlearned::Unanswered(_) | Unlearned::NoAnswer(_))) => {
                Err(Ended::lost(Lost::Unlearned(error)))
            }
        }
    }

    /// Makes items of the steps.
    pub(super) fn take_steps(&mut self, of: Of, steps: Steps<'_>) {
        let mut made = std::mem::take(&mut self.made);
        for step in steps {
            match step {
                Step::Begin(transaction) => {
                    made.push(Item::Begin { commit_lsn: transaction.commit_lsn });
                }
                Step::Relation(relation) => {
                    if let Err(broken) = self.book.bind(&relation) {
                        self.halt_when_settled(of, Halt::RuleBroken(broken.to_string()));
                        break;
                    }
                }
                Step::Change(change) => {
                    self.metrics.changes.inc();
                    self.book.rules.handle_change(&change, &mut made);
                }
                Step::Message(message) => {
                    self.book.rules.handle_message(&message, &mut made);
                }
                Step::Commit { end_lsn } => {
                    self.feedback.handle_received(end_lsn, self.clock.now());
                    made.push(Item::Commit { end_lsn });
                }
            }
        }
        for item in made.drain(..) {
            match of {
                Of::Live => self.turns.live(item),
                Of::Played => self.turns.play(item),
            }
        }
        self.made = made;
    }

    /// Reads nothing more, and halts once all that came before is settled: what is to be played is not, where
    /// it halts in there.
    pub(super) fn halt_when_settled(&mut self, of: Of, halt: Halt) {
        tracing::error!(reason = %halt, "halting once all that came before is settled");
        let after = match of {
            Of::Live => self.changes.resume_lsn(),
            Of::Played => self.received.forget_committed(),
        };
        self.broken = Some(Broken { halt, after });
    }

    /// The halt, once every complete transaction before it is settled and stored.
    ///
    /// Before, because the corrected rule may fit those no more: they were written when the table
    /// still had its old columns, and would halt the next process again, whatever its rules say.
    pub(super) fn due_halt(&mut self) -> Option<Halt> {
        let flushed = *self.flushed.borrow();
        let is_handed_on = self.turns.is_empty();
        let due = self.broken.take_if(|broken| flushed >= broken.after && is_handed_on);
        due.map(|broken| broken.halt)
    }
}
