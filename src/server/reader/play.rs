//! From the messages of transactions that are received while they are open to items, at their commits.

use tokio::time::Instant;

use super::Reader;
use super::fallback::Fallback;
use super::items::{Of, decode};
use super::lost::{Ended, Unreadable};
use crate::server::spool::SpoolFailed;
use crate::server::stop::Stop;
use crate::server::trouble::Part;
use walhook_core::event::Item;
use walhook_core::lsn::Lsn;
use walhook_decode::change::{Step, Transaction};
use walhook_decode::streamed::{Committed, Done, Kept, Payload, Play, Record, Taken};
use walhook_postgres::sql::Connection;
use walhook_rules::turns::Foreseen;

/// Messages that are played in a row at most before what they made is handed on.
const PLAYED_IN_A_ROW: usize = 64;

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
                self.received.foreseen.remove(&transaction.xid);
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
        self.streaming.off_behind(end_lsn, self.clock.now());
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
                Ok(Play::Wait) => {
                    self.received.waits = true;
                    return Ok(None);
                }
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

    /// The spool has done something, or could not. `Some` when the stream is to be opened again.
    pub(super) fn handle_spooled(
        &mut self,
        done: Result<Option<Done>, SpoolFailed>,
    ) -> Result<Option<Ended>, Stop> {
        self.received.waits = false;
        let (reason, failed) = match done {
            Ok(None) => return Ok(None),
            Ok(Some(done)) => {
                let handled = self.received.transactions.handle_done(done);
                return match handled {
                    Ok(()) => Ok(None),
                    Err(error) => Err(Stop::NotReadBack(error.to_string())),
                };
            }
            Err(failed @ SpoolFailed::Full { .. }) => (Fallback::SpoolFull, failed),
            Err(failed @ SpoolFailed::Write { .. }) => (Fallback::Disk, failed),
            Err(failed @ (SpoolFailed::Read { .. } | SpoolFailed::Silent { .. })) => {
                return Err(Stop::NotReadBack(failed.to_string()));
            }
        };
        // What has been written can still be read, and what was to be is in memory.
        self.received.transactions.set_spool(false);
        Ok(Some(self.fall_back(reason, &failed.to_string())))
    }

    /// Opens the stream again without streaming, for a while.
    pub(super) fn fall_back(&mut self, reason: Fallback, problem: &str) -> Ended {
        self.give_up_streaming(reason, problem);
        Ended::Reopen
    }

    /// The next connections do not stream, for a while.
    pub(super) fn give_up_streaming(&mut self, reason: Fallback, problem: &str) {
        let pause = self.streaming.fall_back(self.clock.now());
        let fix = reason.fix();
        tracing::warn!(
            reason = reason.as_str(), problem, fix, again_in = ?pause,
            "large transactions are received when they have committed, and delay others then"
        );
        self.metrics.streamed.count_fallback(reason);
        self.tell.fails_with(Part::Streaming, Instant::now(), problem, fix);
    }

    /// Whether the stream is to be opened again because streaming may be tried again.
    pub(super) fn tries_streaming(&mut self) -> bool {
        let now = self.clock.now();
        if self.changes.in_transaction() || !self.streaming.is_due(now, self.changes.resume_lsn()) {
            return false;
        }
        self.streaming.resume(now);
        self.tell.works(Part::Streaming);
        tracing::info!("large transactions are received while they are open again");
        true
    }
}
