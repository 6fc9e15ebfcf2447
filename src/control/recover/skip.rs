//! `walhook recover --skip-change`: past a transaction that cannot be read to its end.
//!
//! The stream is read from the checkpoint as `walhook run` would, to see for itself that the transaction
//! is there and cannot be read; and once more with values in binary form, in which the server can often
//! send what it cannot send as text, to count what is given up.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::{Found, Recovered, Sessions};
use crate::config::Config;
use crate::control::Failure;
use walhook_core::event::rfc3339;
use walhook_core::halt;
use walhook_core::lsn::Lsn;
use walhook_decode::change::{Changes, Rows, Step};
use walhook_decode::pgoutput::{Message, decode, decode_head};
use walhook_postgres::feedback::StatusUpdate;
use walhook_postgres::slot::{self, Slot};
use walhook_postgres::wire::{self, Class, Frame, Stream};

/// Well within any `wal_sender_timeout`.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// What of a transaction's changes: how many of each operation on each table.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Count(BTreeMap<(String, &'static str), u64>);

impl Count {
    fn add(&mut self, table: String, operation: &'static str) {
        *self.0.entry((table, operation)).or_default() += 1;
    }

    fn add_message(&mut self, prefix: &str) {
        self.add(format!("with the prefix {prefix}"), "message");
    }

    /// What is in here and not in `other`.
    fn without(&self, other: &Self) -> Self {
        let left = |(key, n): (&(String, &'static str), &u64)| {
            let n = n.saturating_sub(other.0.get(key).copied().unwrap_or_default());
            (n > 0).then(|| (key.clone(), n))
        };
        Self(self.0.iter().filter_map(left).collect())
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each =
            |((table, operation), n): (&(String, &str), &u64)| format!("{n} {operation} {table}");
        let each: Vec<String> = self.0.iter().map(each).collect();
        f.write_str(if each.is_empty() { "nothing" } else { "" })?;
        f.write_str(&each.join(", "))
    }
}

/// What reading the transaction came to.
struct Read {
    commit_time_us: i64,
    count: Count,
    /// Why it could not be read on; `None`: it was read to its end.
    problem: Option<String>,
}

/// A transaction that cannot be read to its end, and is to be skipped.
#[derive(Debug)]
pub(crate) struct SkipPlan {
    sessions: Sessions,
    from: Lsn,
    commit: Lsn,
    reason: String,
    /// What it is about to give up, for whoever is to confirm it.
    pub(crate) text: String,
}

/// What was skipped.
#[derive(Debug, Serialize)]
pub(crate) struct SkippedChange {
    /// Null: of one transaction.
    pub(crate) bytes: Option<u64>,
    /// The lease's epoch now.
    pub(crate) epoch: i64,
    /// The transaction's commit LSN.
    pub(crate) from: String,
    /// Why it cannot be read, and what is given up.
    pub(crate) reason: String,
    /// Behind it.
    pub(crate) to: String,
}

/// Finds out whether the transaction with this commit LSN cannot be read to its end, for at most `wait`, and
/// what of it would be given up. Changes nothing.
///
/// # Errors
/// [`Failure::Halted`] when the halt is of another kind; else when there is no such transaction, the slot is
/// in use, or a database does not answer.
pub(crate) async fn plan(
    config: &Config,
    commit: Lsn,
    wait: Duration,
) -> Result<Found<SkipPlan>, Failure> {
    let sessions = Sessions::open(config).await?;
    halt::check_source(&sessions.found, &sessions.stored)?;
    let name = &config.source.slot;
    let slot = slot::read(&sessions.source, name).await.map_err(anyhow::Error::from)?;
    let from = sessions.state.frontier().await?;
    halt::check_slot(name, slot.as_ref().map(Slot::state).as_ref(), from)?;
    if sessions.state.left_out(from).await?.contains(&commit) {
        return Ok(Found::nothing(format!("the transaction {commit} is skipped already")));
    }
    if commit < from {
        return Err(absent(commit, from, "it lies before that").into());
    }
    let deadline = Instant::now() + wait;
    let read = read_text(config, from, commit, deadline).await?;
    let Some(problem) = read.problem else {
        let why = format!("the transaction {commit} can be read: {}", read.count);
        return Ok(Found::nothing(why));
    };
    let given_up = match count_binary(config, from, commit, deadline).await {
        Ok(whole) => whole.without(&read.count).to_string(),
        Err(error) => format!("what follows, which cannot be counted ({error:#})"),
    };
    let reason = format!(
        "the transaction with commit LSN {commit} cannot be read to its end: {problem}; read: {}; given \
         up: {given_up}",
        read.count
    );
    let text = format!(
        "The transaction with commit LSN {commit}, committed at {}, cannot be read to its end:\n  \
         {problem}\nIt is sent up to there: {}\nThis gives up the rest of it: {given_up}\nAll other \
         transactions are sent. The gap is recorded; dead letters stay.",
        rfc3339(read.commit_time_us),
        read.count
    );
    Ok(Found::Plan(Box::new(SkipPlan { sessions, from, commit, reason, text })))
}

impl SkipPlan {
    /// Carries it out.
    ///
    /// # Errors
    /// When the state database does not answer.
    pub(crate) async fn carry_out(self) -> Result<Recovered<SkippedChange>, Failure> {
        let Self { mut sessions, from, commit, reason, .. } = self;
        let epoch = sessions.state.leave_out(from, commit, &reason).await?;
        let (from, to) = (commit.to_string(), Lsn(commit.0 + 1).to_string());
        Ok(Recovered { recovered: SkippedChange { bytes: None, epoch: epoch.0, from, reason, to } })
    }
}

/// Reads the transaction as `run` does.
async fn read_text(config: &Config, from: Lsn, commit: Lsn, deadline: Instant) -> Result<Read> {
    let mut stream = Source::open(config, from, deadline, false).await?;
    let protocol = stream.stream.protocol();
    let mut changes = Changes::new(from);
    let mut count = Count::default();
    let mut begun = None;
    loop {
        let frame = match stream.next(commit).await? {
            Ok(frame) => frame,
            Err(problem) => {
                let commit_time_us = begun.with_context(|| before(commit, &problem))?;
                return Ok(Read { commit_time_us, count, problem: Some(problem) });
            }
        };
        let message = match &frame {
            Frame::XLogData { payload, .. } => decode(protocol, payload),
            Frame::Oversize { head, bytes, .. } => decode_head(protocol, head, *bytes),
            Frame::Keepalive { .. } => continue,
        };
        let steps = message.map_err(|e| e.to_string()).and_then(|message| {
            changes.handle(wal_start(&frame), message).map_err(|e| e.to_string())
        });
        let steps = match steps {
            Ok(steps) => steps,
            Err(problem) => {
                let commit_time_us = begun.with_context(|| before(commit, &problem))?;
                return Ok(Read { commit_time_us, count, problem: Some(problem) });
            }
        };
        for step in steps {
            match step {
                Step::Begin(transaction) if transaction.commit_lsn == commit => {
                    begun = Some(transaction.commit_time_us);
                }
                Step::Begin(transaction) if transaction.commit_lsn > commit => {
                    return Err(absent(
                        commit,
                        from,
                        &format!("the next is {}", transaction.commit_lsn),
                    ));
                }
                Step::Change(change) if begun.is_some() => {
                    let operation = match &change.rows {
                        Rows::Insert { .. } => "insert",
                        Rows::Update { .. } => "update",
                        Rows::Delete { .. } => "delete",
                        Rows::Truncate => "truncate",
                        Rows::Oversize { operation, .. } => operation.as_str(),
                    };
                    let relation = &change.relation;
                    count.add(format!("{}.{}", relation.schema, relation.name), operation);
                }
                Step::Message(message) if begun.is_some() => count.add_message(message.prefix),
                Step::Commit { .. } => {
                    if let Some(commit_time_us) = begun {
                        return Ok(Read { commit_time_us, count, problem: None });
                    }
                }
                Step::Begin(_) | Step::Relation(_) | Step::Change(_) | Step::Message(_) => {}
            }
        }
    }
}

/// Counts the changes of the whole transaction by their heads.
async fn count_binary(config: &Config, from: Lsn, commit: Lsn, deadline: Instant) -> Result<Count> {
    let mut stream = Source::open(config, from, deadline, true).await?;
    let protocol = stream.stream.protocol();
    let mut count = Count::default();
    let mut names = BTreeMap::new();
    let mut inside = false;
    loop {
        let frame = stream.next(commit).await?.map_err(anyhow::Error::msg)?;
        let message = match &frame {
            Frame::XLogData { payload, .. }
                if matches!(payload.first(), Some(b'I' | b'U' | b'D')) =>
            {
                decode_head(protocol, payload, 0)
            }
            Frame::XLogData { payload, .. } => decode(protocol, payload),
            Frame::Oversize { head, bytes, .. } => decode_head(protocol, head, *bytes),
            Frame::Keepalive { .. } => continue,
        };
        match message? {
            Message::Begin { commit_lsn, .. } => inside = commit_lsn == commit,
            Message::Relation(relation) => {
                names.insert(relation.oid, format!("{}.{}", relation.schema, relation.name));
            }
            Message::Oversize { relation, operation, .. } if inside => {
                count.add(names.get(&relation).cloned().unwrap_or_default(), operation.as_str());
            }
            Message::Truncate { relations } if inside => {
                for relation in relations {
                    count.add(names.get(&relation).cloned().unwrap_or_default(), "truncate");
                }
            }
            Message::Logical { transactional: true, prefix, .. }
            | Message::OversizeLogical { prefix, .. }
                if inside =>
            {
                count.add_message(prefix);
            }
            Message::Commit { .. } if inside => return Ok(count),
            Message::Commit { .. }
            | Message::Insert { .. }
            | Message::Update { .. }
            | Message::Delete { .. }
            | Message::Oversize { .. }
            | Message::Truncate { .. }
            | Message::Logical { .. }
            | Message::OversizeLogical { .. }
            | Message::Type { .. }
            | Message::Ignored => {}
        }
    }
}

fn before(commit: Lsn, problem: &str) -> String {
    format!("cannot read as far as the transaction {commit}: {problem}")
}

fn absent(commit: Lsn, from: Lsn, what: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "no transaction that is published has the commit LSN {commit} after the checkpoint {from}: {what}. \
         `walhook status` shows the one that the halt names"
    )
}

fn wal_start(frame: &Frame) -> Lsn {
    match frame {
        Frame::XLogData { wal_start, .. } | Frame::Oversize { wal_start, .. } => *wal_start,
        Frame::Keepalive { wal_end, .. } => *wal_end,
    }
}

/// A stream for looking at: the slot does not move.
struct Source {
    stream: Stream,
    from: Lsn,
    deadline: Instant,
    status_at: Instant,
}

impl Source {
    async fn open(config: &Config, from: Lsn, deadline: Instant, binary: bool) -> Result<Self> {
        let source = &config.source;
        let url = source.replication_url.as_ref().unwrap_or(&source.url);
        let max = config.memory.max_change_bytes();
        let stream = loop {
            let replication = wire::connect(url, super::NAME).await?;
            let replication = replication.with_messages(config.reads_messages());
            let replication = replication.with_binary(binary);
            match replication.start(&source.slot, &source.publication, from, max).await {
                // The stream that was read before takes a moment to end.
                Err(error)
                    if wire::classify(&error) == Class::SlotInUse && Instant::now() < deadline =>
                {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                started => break started?,
            }
        };
        Ok(Self { stream, from, deadline, status_at: Instant::now() })
    }

    /// The next frame; within, why the server cannot send it.
    async fn next(&mut self, commit: Lsn) -> Result<Result<Frame, String>> {
        loop {
            if Instant::now() >= self.deadline {
                bail!(
                    "the transaction {commit} was not read to its end in time; try longer with --wait 10m"
                );
            }
            if Instant::now() >= self.status_at {
                // Tells nothing but that we are here, and asks where the server is.
                let (write, flush) = (self.from, Lsn::ZERO);
                self.stream.send_status(StatusUpdate { write, flush, request_reply: true }).await?;
                self.status_at = Instant::now() + STATUS_EVERY;
            }
            match timeout_at(self.status_at.min(self.deadline), self.stream.next()).await {
                Err(_) => {}
                // Everything before it was sent, and the transaction was not.
                Ok(Ok(Frame::Keepalive { wal_end, .. })) if wal_end > commit => {
                    return Err(absent(commit, self.from, &format!("the server is at {wal_end}")));
                }
                Ok(Ok(frame)) => return Ok(Ok(frame)),
                Ok(Err(error)) if wire::classify(&error) == Class::Unsendable => {
                    return Ok(Err(format!("{:#}", anyhow::Error::from(error))));
                }
                Ok(Err(error)) => return Err(error.into()),
            }
        }
    }
}
