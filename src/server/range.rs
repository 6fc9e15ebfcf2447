//! Reads a past range of the stream, from a temporary copy of the anchor slot, beside the live stream.
//!
//! ```text
//! anchor ──copy──► temporary slot ──► wire → pgoutput → change → event ──Batch──► whoever asked
//! ```
//!
//! The copy belongs to the connection and vanishes with it, whatever becomes of this process.

mod batch;
mod error;

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

pub(crate) use self::error::RangeError;
use super::rulebook::{Rulebook, compile_rules};
use super::sessions::{REPLAY_SENTINEL, REPLAY_STREAM, open_source};
use crate::config::Config;
pub(crate) use batch::Batch;
use walhook_core::event::Item;
use walhook_core::lsn::Lsn;
use walhook_decode::change::{Changes, Step};
use walhook_decode::pgoutput::{self, DecodeError, Message};
use walhook_postgres::feedback::StatusUpdate;
use walhook_postgres::sql::Connection;
use walhook_postgres::wire::{self, Frame, Stream};
use walhook_postgres::{anchor, slot};
use walhook_rules::rule::EndpointTable;

/// How often the server is told where we are, and asked to say where it is: the end of the range may
/// lie where nothing is published.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// A range that is being read.
pub(crate) struct Range {
    stream: Stream,
    /// Ends at once when the server shuts down, also while nobody takes what we read.
    sentinel: Connection,
    changes: Changes,
    book: Rulebook,
    received: Lsn,
    to: Lsn,
    batch: Batch,
}

/// The oldest position from which a range can be read.
///
/// # Errors
/// When there is no anchor slot, or it is lost; the message says how to get one.
pub(crate) async fn oldest(config: &Config, client: &Connection) -> Result<Lsn, RangeError> {
    let slot = anchor::name(&config.source.slot);
    let Some(anchor) = anchor::read(client, &config.source.slot).await? else {
        return Err(RangeError::NoWindow { slot });
    };
    match (anchor.confirmed_flush, anchor.lost) {
        (Some(at), None) => Ok(at),
        (_, Some(why)) => Err(RangeError::WindowLost { slot, why }),
        (None, None) => Err(RangeError::WindowBegins { slot }),
    }
}

impl Range {
    /// Opens the range [`from`, `to`) of commit records. With `from_oldest` it begins where the window
    /// does, where that is later. `purpose` makes the temporary slot's name unique: digits and letters.
    ///
    /// # Errors
    /// When `from` lies before the replay window, or the source refuses.
    pub(crate) async fn open(
        config: &Config,
        from: Lsn,
        to: Lsn,
        from_oldest: bool,
        purpose: &str,
    ) -> Result<Self, RangeError> {
        let sentinel = open_source::<RangeError>(&config.source.url, REPLAY_SENTINEL).await?;
        let oldest = oldest(config, &sentinel).await?;
        // What lies before it is gone since it was asked for.
        let from = if from_oldest { from.max(oldest).min(to) } else { from };
        if from < oldest {
            return Err(RangeError::TooOld { from, oldest });
        }
        let anchor = anchor::name(&config.source.slot);
        Self::open_copy(config, sentinel, &anchor, from, to, purpose).await
    }

    /// Opens the range as a copy of this slot has it, which must reach back to `from`.
    ///
    /// # Errors
    /// When the source refuses.
    pub(crate) async fn open_copy(
        config: &Config,
        sentinel: Connection,
        of: &str,
        from: Lsn,
        to: Lsn,
        purpose: &str,
    ) -> Result<Self, RangeError> {
        let source = &config.source;
        let wal_end = slot::wal_end(&sentinel).await?;
        if to > wal_end {
            return Err(RangeError::TooNew { to, wal_end });
        }
        let url = source.replication_url.as_ref().unwrap_or(&source.url);
        let mut replication = wire::connect(url, REPLAY_STREAM.name).await?;
        let system = replication.identify_system().await?.system_identifier;
        let rules = compile_rules(config, &sentinel, system, EndpointTable::Checked).await?;
        let book = Rulebook::new(config.clone(), system, rules);
        // A slot's name has at most 63 bytes; its own are ASCII.
        let copy = format!("{:.30}_{purpose}", source.slot);
        let copied = replication.copy_slot(of, &copy).await;
        copied.map_err(|source| RangeError::NotCopied { slot: of.to_owned(), source })?;
        let replication = replication.with_messages(config.reads_messages());
        let limit = config.memory.max_change_bytes();
        let stream = replication.start(&copy, &source.publication, from, limit).await?;
        let changes = Changes::new(from);
        let batch = Batch::default();
        Ok(Self { stream, sentinel, changes, book, received: from, to, batch })
    }

    /// Sends the range's items, in stream order, until its end or until nobody takes them.
    ///
    /// # Errors
    /// When the connection breaks, or the rules do not fit what was written then.
    pub(crate) async fn read(mut self, out: mpsc::Sender<Batch>) -> Result<(), RangeError> {
        let mut status_at = Instant::now();
        let mut ended = false;
        while !(ended && self.batch.items.is_empty()) {
            let reading = !ended && !self.batch.is_full();
            tokio::select! {
                biased;
                error = self.sentinel.closed() => {
                    return Err(RangeError::Sentinel(error));
                }
                () = out.closed() => return Ok(()),
                () = sleep_until(status_at) => {
                    self.send_status(reading).await?;
                    status_at = Instant::now() + STATUS_EVERY;
                }
                room = out.reserve(), if !self.batch.items.is_empty() => match room {
                    Ok(room) => room.send(std::mem::take(&mut self.batch)),
                    Err(_) => return Ok(()),
                },
                frame = self.stream.next(), if reading => {
                    ended = self.handle(frame?).await?;
                    while !ended && !self.batch.is_full()
                        && let Some(frame) = self.stream.try_next()?
                    {
                        ended = self.handle(frame).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// What was received needs no keeping: the copy is gone with this connection anyway, and a server
    /// that shuts down waits for less.
    async fn send_status(&mut self, request_reply: bool) -> Result<(), RangeError> {
        let update = StatusUpdate { write: self.received, flush: self.received, request_reply };
        Ok(self.stream.send_status(update).await?)
    }

    /// Takes a frame; says whether the range has ended.
    async fn handle(&mut self, frame: Frame) -> Result<bool, RangeError> {
        let protocol = self.stream.protocol();
        match frame {
            Frame::Keepalive { wal_end, .. } => {
                self.received = self.received.max(wal_end);
                let ended = !self.changes.in_transaction() && wal_end >= self.to;
                if ended {
                    self.end();
                }
                Ok(ended)
            }
            Frame::XLogData { wal_start, wal_end, payload } => {
                self.received = self.received.max(wal_end);
                self.handle_message(wal_start, pgoutput::decode(protocol, &payload)).await
            }
            Frame::Oversize { wal_start, wal_end, head, bytes } => {
                self.received = self.received.max(wal_end);
                self.handle_message(wal_start, pgoutput::decode_head(protocol, &head, bytes)).await
            }
        }
    }

    async fn handle_message(
        &mut self,
        at: Lsn,
        message: Result<Message<'_>, DecodeError>,
    ) -> Result<bool, RangeError> {
        let message = message.map_err(|source| RangeError::Message { at, source })?;
        let xid = self.changes.transaction().map(|transaction| transaction.xid);
        self.book.learn(&message, xid, &self.sentinel).await?;
        let first = self.batch.items.len();
        let mut ended = false;
        for step in self.changes.handle(at, message)? {
            match step {
                Step::Begin(transaction) if transaction.commit_lsn >= self.to => {
                    ended = true;
                    break;
                }
                Step::Begin(transaction) => {
                    self.batch.items.push(Item::Begin { commit_lsn: transaction.commit_lsn });
                }
                Step::Relation(relation) => self.book.bind(&relation)?,
                Step::Change(change) => {
                    self.book.rules.handle_change(&change, &mut self.batch.items);
                }
                Step::Message(message) => {
                    self.book.rules.handle_message(&message, &mut self.batch.items);
                }
                Step::Commit { end_lsn } => {
                    self.received = self.received.max(end_lsn);
                    self.batch.items.push(Item::Commit { end_lsn });
                    ended = end_lsn >= self.to;
                }
            }
        }
        self.batch.count_from(first);
        if ended {
            self.end();
        }
        Ok(ended)
    }

    /// The last item: the whole range was read.
    fn end(&mut self) {
        self.batch.items.push(Item::Progress { wal_end: self.to });
    }
}
