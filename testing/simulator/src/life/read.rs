//! How a process reads: frames to messages, steps and items, of the stream and of what is played beside it.

use std::sync::Arc;

use rand::RngExt;

use walhook_core::event::{Event, Item};
use walhook_core::halt::Halt;
use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;
use walhook_decode::change::{Changes, Step};
use walhook_decode::pgoutput::{self, DecodeError, Message, Protocol};
use walhook_decode::streamed::{Committed, Payload, Play, Taken};
use walhook_rules::rule::Rules;

use super::{Broken, Life};
use crate::postgres::{Connection, Frame, Postgres};
use crate::schema;

impl Frame {
    fn parts(&self) -> (Lsn, Payload<'_>) {
        match self {
            Self::Data { wal_start, payload } => (*wal_start, Payload::Whole(payload)),
            Self::Oversize { wal_start, head, bytes } => {
                (*wal_start, Payload::Oversize { head, bytes: *bytes })
            }
        }
    }
}

fn decode(payload: Payload<'_>) -> Result<Message<'_>, DecodeError> {
    match payload {
        Payload::Whole(payload) => pgoutput::decode(Protocol::V1, payload),
        Payload::Oversize { head, bytes } => pgoutput::decode_head(Protocol::V1, head, bytes),
    }
}

impl Life {
    /// Opens the stream anew, where it had come to.
    pub(crate) fn reconnect(&mut self, postgres: &Postgres) {
        self.changes.handle_reconnected();
        self.open.handle_reconnected();
        self.foreseen.clear();
        let streaming = self.streaming.draw(&mut self.rng);
        let from = self.changes.resume_lsn();
        self.connection = Some(Connection::start(postgres, from, streaming));
    }

    /// Whether something is left to be played.
    pub(crate) fn is_playing(&self) -> bool {
        !self.plays.is_empty()
    }

    /// Reads so many messages: of the stream, where it is `live`, and of what is played. `forgets`: a fault is
    /// planted.
    pub(crate) fn read(
        &mut self,
        postgres: &Postgres,
        messages: usize,
        live: bool,
        forgets: bool,
    ) -> Result<(), Broken> {
        for _ in 0..messages {
            let has_more = self.connection.as_ref().is_some_and(|c| c.has_more(postgres));
            let live = live && self.turns.wants_live();
            if self.is_playing() && (!live || !has_more || self.rng.random_bool(0.4)) {
                self.play();
            } else if live {
                if !has_more {
                    self.keepalive(postgres);
                    return Ok(());
                }
                self.read_live(postgres, forgets)?;
            } else {
                return Ok(());
            }
        }
        Ok(())
    }

    fn read_live(&mut self, postgres: &Postgres, forgets: bool) -> Result<(), Broken> {
        let frame = self.connection.as_mut().and_then(|connection| connection.next(postgres));
        let Some(frame) = frame else { return Ok(()) };
        let (at, payload) = frame.parts();
        match self.open.handle(Tick(0), at, payload) {
            Err(error) => return Err(self.not_understood(&error.to_string())),
            Ok(Taken::Live) => {}
            Ok(Taken::Passed) => return Ok(()),
            Ok(Taken::Kept(kept)) => {
                let foreseen = self.foreseen.entry(kept.xid).or_default();
                if let (Ok(message), false) = (decode(kept.payload), forgets) {
                    let table = |oid| kept.described.table(oid);
                    self.rules.foresee(kept.xid, message, table, foreseen);
                }
                return Ok(());
            }
            Ok(Taken::Committed(committed)) => return self.committed(committed),
            Ok(Taken::Unclear { .. }) => {
                self.streaming.pause();
                return Err(Broken::Connection);
            }
        }
        let steps = match decode(payload) {
            Ok(message) => self.changes.handle(at, message).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let steps = match steps {
            Ok(steps) => steps,
            Err(problem) => return Err(self.not_understood(&problem)),
        };
        let mut items = Vec::new();
        for step in steps {
            take(&mut self.rules, step, &mut items).map_err(Broken::Halt)?;
        }
        items.into_iter().for_each(|item| self.turns.live(item));
        Ok(())
    }

    /// A transaction that was streamed has committed.
    fn committed(&mut self, committed: Committed) -> Result<(), Broken> {
        let Committed { transaction, end_lsn, described, .. } = committed;
        let foreseen = self.foreseen.remove(&transaction.xid).unwrap_or_default();
        match self.changes.handle_streamed(transaction, end_lsn) {
            Ok(Some(ours)) => {
                self.streamed += 1;
                self.turns.begin_play(transaction.commit_lsn, foreseen);
                self.plays.push_back(ours);
            }
            Ok(None) => self.open.forget_committed(),
            Err(error) => return Err(self.not_understood(&error.to_string())),
        }
        for message in described {
            let steps = decode(Payload::Whole(&message)).map(|message| {
                self.changes.handle(Lsn(0), message).map_err(|error| error.to_string())
            });
            if !matches!(steps, Ok(Ok(_))) {
                return Err(self.not_understood("a description"));
            }
        }
        Ok(())
    }

    /// The next message of the transaction that is played.
    fn play(&mut self) {
        let Some(ours) = self.plays.front() else { return };
        if self.changes.played().is_none() {
            // It began with its commit.
            self.changes.begin_play(*ours);
        }
        let mut items = Vec::new();
        match self.open.play() {
            Ok(Play::Record(record)) => {
                let payload = match record.oversize {
                    None => Payload::Whole(&record.payload),
                    Some(bytes) => Payload::Oversize { head: &record.payload, bytes },
                };
                let message = decode(payload).ok();
                let steps = message.and_then(|m| self.changes.play(record.wal_start, m).ok());
                for step in steps.into_iter().flatten() {
                    // What does not fit shows in what is missing.
                    let _ = take(&mut self.rules, step, &mut items);
                }
            }
            Ok(Play::End) => {
                self.plays.pop_front();
                if let Some(step) = self.changes.end_play() {
                    let _ = take(&mut self.rules, step, &mut items);
                }
            }
            Ok(Play::Wait) | Err(_) => {}
        }
        items.into_iter().for_each(|item| self.turns.play(item));
    }

    fn keepalive(&mut self, postgres: &Postgres) {
        let wal_end = postgres.wal_end();
        let is_between = !self.changes.in_transaction() && !self.open.in_block();
        if is_between && self.progress < wal_end {
            self.progress = wal_end;
            self.turns.live(Item::Progress { wal_end });
        }
    }

    /// Once may have a passing cause; twice in a row halts.
    fn not_understood(&mut self, problem: &str) -> Broken {
        let Some(transaction) = self.changes.transaction() else { return Broken::Connection };
        let commit = transaction.commit_lsn;
        if self.left_out.contains(&commit) {
            if let Some(Step::Commit { end_lsn }) = self.changes.handle_left_out() {
                self.turns.live(Item::Commit { end_lsn });
            }
            return Broken::Connection;
        }
        if self.unreadable.replace(commit) == Some(commit) {
            return Broken::Halt(Halt::Unreadable { commit, problem: problem.to_owned() });
        }
        Broken::Connection
    }
}

/// Appends what a step makes.
fn take(rules: &mut Rules, step: Step<'_>, items: &mut Vec<Item>) -> Result<(), Halt> {
    match step {
        Step::Begin(transaction) => items.push(Item::Begin { commit_lsn: transaction.commit_lsn }),
        Step::Relation(relation) => {
            rules
                .handle_relation(&relation)
                .map_err(|broken| Halt::RuleBroken(broken.to_string()))?;
        }
        Step::Change(change) => rules.handle_change(&change, items),
        Step::Message(message) => rules.handle_message(&message, items),
        Step::Commit { end_lsn } => items.push(Item::Commit { end_lsn }),
    }
    Ok(())
}

/// The events of these transactions, read from the WAL once more.
pub(crate) fn read_again(postgres: &Postgres, from: Lsn, to: Lsn) -> Vec<Arc<Event>> {
    let mut rules = schema::rules();
    let mut changes = Changes::new(from);
    let mut connection = Connection::from_anchor(postgres, from);
    let mut items = Vec::new();
    while postgres.txns.get(connection.txn()).is_some_and(|txn| txn.commit_lsn < to)
        && let Some(frame) = connection.next(postgres)
    {
        let (at, payload) = frame.parts();
        let steps = decode(payload).ok().and_then(|message| changes.handle(at, message).ok());
        let is_read = steps.is_some();
        for step in steps.into_iter().flatten() {
            // What does not fit has halted the live stream.
            let _ = take(&mut rules, step, &mut items);
        }
        if !is_read {
            // Its rest was given up.
            changes.handle_left_out();
            changes.handle_reconnected();
            connection = Connection::from_anchor(postgres, changes.resume_lsn());
        }
    }
    let event = |item| if let Item::Event(event) = item { Some(event) } else { None };
    items.into_iter().filter_map(event).collect()
}
