//! Reads a past range of the stream, from a temporary copy of the anchor slot, beside the live stream.
//!
//! ```text
//! anchor ──copy──► temporary slot ──► wire → pgoutput → change → event ──Batch──► whoever asked
//! ```
//!
//! The copy belongs to the connection and vanishes with it, whatever becomes of this process.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

pub(crate) use super::reader::Batch;
use super::rulebook::{Rulebook, compile_rules};
use super::sessions::{REPLAY_SENTINEL, REPLAY_STREAM};
use crate::config::Config;
use walhook_core::event::Item;
use walhook_core::lsn::Lsn;
use walhook_decode::change::{Changes, Step};
use walhook_decode::pgoutput::{self, DecodeError, Message};
use walhook_postgres::feedback::StatusUpdate;
use walhook_postgres::sql::{Connection, error_text};
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
pub(crate) async fn oldest(config: &Config, client: &Connection) -> anyhow::Result<Lsn> {
    let name = anchor::name(&config.source.slot);
    let Some(anchor) = anchor::read(client, &config.source.slot).await? else {
        bail!(
            "there is no replay window yet: the slot {name} is missing. A running leader makes it, with \
             source.replay_window above 0"
        );
    };
    match (anchor.confirmed_flush, anchor.lost) {
        (Some(at), None) => Ok(at),
        (_, Some(why)) => bail!(
            "the replay window is lost, with its slot {name}: {why}. A running leader begins it anew. {}",
            why.fix()
        ),
        (None, None) => bail!("the slot {name} is being created; try again"),
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
    ) -> anyhow::Result<Self> {
        let sentinel = Connection::open(&config.source.url, REPLAY_SENTINEL.name).await?;
        let oldest = oldest(config, &sentinel).await?;
        // What lies before it is gone since it was asked for.
        let from = if from_oldest { from.max(oldest).min(to) } else { from };
        if from < oldest {
            bail!("{from} lies before the replay window, which begins at {oldest}");
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
    ) -> anyhow::Result<Self> {
        let source = &config.source;
        let wal_end = slot::wal_end(&sentinel).await?;
        if to > wal_end {
            bail!("{to} lies beyond the end of the WAL, {wal_end}");
        }
        let url = source.replication_url.as_ref().unwrap_or(&source.url);
        let mut replication = wire::connect(url, REPLAY_STREAM.name).await?;
        let system = replication.identify_system().await?.system_identifier;
        let rules = compile_rules(config, &sentinel, system, EndpointTable::Checked)
            .await
            .map_err(|e| anyhow!("{e}"))?;
        let book = Rulebook::new(config.clone(), system, rules);
        // A slot's name has at most 63 bytes; its own are ASCII.
        let copy = format!("{:.30}_{purpose}", source.slot);
        replication.copy_slot(of, &copy).await.with_context(|| {
            format!("cannot copy the slot {of}; are all of max_replication_slots in use?")
        })?;
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
    pub(crate) async fn read(mut self, out: mpsc::Sender<Batch>) -> anyhow::Result<()> {
        let mut status_at = Instant::now();
        let mut ended = false;
        while !(ended && self.batch.items.is_empty()) {
            let reading = !ended && !self.batch.is_full();
            tokio::select! {
                biased;
                error = self.sentinel.closed() => {
                    let why = error.map_or_else(|| "closed".to_owned(), |e| error_text(&e));
                    bail!("the SQL session beside the stream ended: {why}");
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
    async fn send_status(&mut self, request_reply: bool) -> anyhow::Result<()> {
        let update = StatusUpdate { write: self.received, flush: self.received, request_reply };
        Ok(self.stream.send_status(update).await?)
    }

    /// Takes a frame; says whether the range has ended.
    async fn handle(&mut self, frame: Frame) -> anyhow::Result<bool> {
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
    ) -> anyhow::Result<bool> {
        let message = message.with_context(|| format!("cannot understand the stream at {at}"))?;
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
