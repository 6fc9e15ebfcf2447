//! Turns: a transaction that was received while it was open is played at its commit, and what committed later does
//! not wait for it as a whole.
//!
//! ```text
//! live stream ──live──►┌────────── Turns ──────────┐
//!                      │ line: play, held, play, … │──take──► Items, in batches
//! play ──────play─────►└───────────────────────────┘
//! ```
//!
//! # Why the order is kept
//!
//! What has to come in order is each account's: its deliveries to an endpoint, and the ranges of them that are
//! settled. So an event of the live stream is held while a play that committed before it is not over and may have
//! its account: [`Foreseen`]. Everything else passes. It follows, for each account:
//!
//! - An event is held if and only if such a play stands before it in the line. Events of one account have the more
//!   plays before them the later they come, so where one is held all later ones are.
//! - When a play is over, what no play before it holds any more is let out in the order in which it came, before
//!   anything else is taken.
//! - Plays are played one after the other, in commit order, and what was held in front of one is let out before it
//!   begins: nothing but plays holds anything.
//!
//! Unroutable changes pass, for nothing is ordered by them.
//!
//! # Why routes hold
//!
//! To be told of an invalidation early makes routes fresher than the place of the stream asks for, as a look-up may
//! be at any time; to be told of it after events that it concerns would lose some. So invalidations of the live stream
//! pass, and those that a play may bring are told when it commits, before what comes later, and once more in their
//! places. Where too much is to be told, or what a play may bring cannot be ([`Foreseen::anything`]), everything
//! waits behind it, as behind a transaction that comes whole.
//!
//! # How transactions look
//!
//! Transactions begin in the order of their commits whatever is held of them, and end when nothing of them is held.
//! One that was read in part from the live stream, and is played after a reconnection, stands in the line twice: what
//! is held of it before its play.

mod accounts;
mod foreseen;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use walhook_core::event::{Invalidation, Item};
use walhook_core::lsn::Lsn;

pub use accounts::Accounts;
pub use foreseen::Foreseen;

/// Items in a batch at most: enough to make a channel cheap.
pub const BATCH_ITEMS: usize = 256;

/// Event bytes in a batch, beyond which it takes no further item.
pub const BATCH_BYTES: usize = 64 << 10;

/// What a held item takes beside its event.
const HELD_BYTES: usize = 64;

/// See the module's documentation.
///
/// Memory: while [`Turns::wants_live`] is heeded, so many bytes as are to be held, and a batch.
#[derive(Debug)]
pub struct Turns {
    held_max_bytes: usize,
    /// From the play that has its turn on, in commit order. Where nothing is played it is empty.
    line: VecDeque<InLine>,
    held_bytes: usize,
    /// The transaction that the live stream stands in.
    live: Option<Lsn>,
    /// What may be taken.
    out: VecDeque<Item>,
    out_bytes: usize,
    /// The transaction that whoever takes the items reads.
    reading: Option<Lsn>,
}

#[derive(Debug)]
enum InLine {
    Play { commit_lsn: Lsn, foreseen: Foreseen },
    Held(Held),
}

/// What is held of a transaction of the live stream.
#[derive(Debug)]
struct Held {
    commit_lsn: Lsn,
    items: VecDeque<Item>,
    /// Its end, where nothing more comes of it.
    end_lsn: Option<Lsn>,
}

impl Turns {
    /// Nothing is played. At most `held_max_bytes` are held, and what is read in one go beyond that.
    #[must_use]
    pub fn new(held_max_bytes: usize) -> Self {
        Self {
            held_max_bytes,
            line: VecDeque::new(),
            held_bytes: 0,
            live: None,
            out: VecDeque::new(),
            out_bytes: 0,
            reading: None,
        }
    }

    /// Takes the live stream's next item.
    pub fn live(&mut self, item: Item) {
        match item {
            Item::Begin { commit_lsn } => {
                self.live = Some(commit_lsn);
                self.begin(commit_lsn);
            }
            Item::Commit { end_lsn } => self.end_live(end_lsn),
            Item::Progress { .. } => {
                self.turn_to(None);
                self.push(item);
            }
            Item::Event(_) | Item::Unroutable(_) | Item::Invalidate(_) => {
                let Some(live) = self.live else { panic!("a change outside of a transaction") };
                if self.line.iter().any(|before| before.holds(&item)) {
                    self.hold(live, item);
                } else {
                    self.turn_to(Some(live));
                    self.push(item);
                }
            }
            Item::Pause | Item::Resume { .. } => panic!("the live stream knows no turns"),
        }
    }

    /// Routes are to be looked up again, for the sake of what the stream does not tell.
    pub fn evict(&mut self, invalidation: Invalidation) {
        self.push(Item::Invalidate(invalidation));
    }

    /// A transaction that was received while it was open has committed, the live stream standing between two: it
    /// is to be played behind those that wait for that already. It may be the one that an earlier connection broke
    /// in: then its rest is played.
    pub fn begin_play(&mut self, commit_lsn: Lsn, mut foreseen: Foreseen) {
        match self.live.take() {
            Some(cut) => assert_eq!(cut, commit_lsn, "a commit inside another transaction"),
            None => self.begin(commit_lsn),
        }
        for invalidation in foreseen.take_invalidations() {
            self.turn_to(Some(commit_lsn));
            self.push(Item::Invalidate(invalidation));
        }
        self.line.push_back(InLine::Play { commit_lsn, foreseen });
    }

    /// The transaction that is played, by the LSN of its commit.
    #[must_use]
    pub fn playing(&self) -> Option<Lsn> {
        match self.line.front() {
            Some(InLine::Play { commit_lsn, .. }) => Some(*commit_lsn),
            Some(InLine::Held(_)) | None => None,
        }
    }

    /// Takes the next item of the transaction that is played: a change of it, or its `Commit`, with which the play
    /// is over.
    pub fn play(&mut self, item: Item) {
        let Some(commit_lsn) = self.playing() else { panic!("nothing is played") };
        self.turn_to(Some(commit_lsn));
        let is_over = matches!(item, Item::Commit { .. });
        self.push(item);
        if is_over {
            self.reading = None;
            self.line.pop_front();
            self.let_out();
        }
    }

    /// Whether more of the live stream may be read, as far as what is held is concerned.
    #[must_use]
    pub fn wants_live(&self) -> bool {
        self.held_bytes < self.held_max_bytes && !self.line.iter().any(InLine::holds_all)
    }

    /// Whether a batch is full: take it before more is read.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.out.len() >= BATCH_ITEMS || self.out_bytes >= BATCH_BYTES
    }

    /// Whether nothing is to be taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// What is held of the live stream, in bytes.
    #[must_use]
    pub const fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// What it takes in memory, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let foreseen: usize = self.line.iter().map(InLine::foreseen_bytes).sum();
        self.held_bytes + self.out_bytes + foreseen
    }

    /// The next batch: at most so much that it is full.
    pub fn take(&mut self) -> Vec<Item> {
        let mut items = 0;
        let mut bytes = 0;
        while items < BATCH_ITEMS && bytes < BATCH_BYTES {
            let Some(item) = self.out.get(items) else { break };
            items += 1;
            bytes += item.size_bytes();
        }
        self.out_bytes -= bytes;
        if items == self.out.len() {
            return std::mem::take(&mut self.out).into();
        }
        self.out.drain(..items).collect()
    }

    fn begin(&mut self, commit_lsn: Lsn) {
        self.turn_to(None);
        self.push(Item::Begin { commit_lsn });
        self.reading = Some(commit_lsn);
    }

    fn end_live(&mut self, end_lsn: Lsn) {
        let Some(live) = self.live.take() else { panic!("a commit outside of a transaction") };
        match self.line.back_mut() {
            Some(InLine::Held(held)) if held.commit_lsn == live => held.end_lsn = Some(end_lsn),
            Some(_) | None => self.commit(live, end_lsn),
        }
    }

    fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) {
        self.turn_to(Some(commit_lsn));
        self.push(Item::Commit { end_lsn });
        self.reading = None;
    }

    fn hold(&mut self, live: Lsn, item: Item) {
        self.held_bytes += HELD_BYTES + item.size_bytes();
        match self.line.back_mut() {
            Some(InLine::Held(held)) if held.commit_lsn == live => held.items.push_back(item),
            Some(_) | None => self.line.push_back(InLine::Held(Held {
                commit_lsn: live,
                items: VecDeque::from([item]),
                end_lsn: None,
            })),
        }
    }

    /// A play is over: what no other holds goes.
    fn let_out(&mut self) {
        for in_line in std::mem::take(&mut self.line) {
            match in_line {
                play @ InLine::Play { .. } => self.line.push_back(play),
                InLine::Held(held) => self.let_out_of(held),
            }
        }
    }

    fn let_out_of(&mut self, mut held: Held) {
        let commit_lsn = held.commit_lsn;
        for item in std::mem::take(&mut held.items) {
            if self.line.iter().any(|before| before.holds(&item)) {
                held.items.push_back(item);
            } else {
                self.held_bytes -= HELD_BYTES + item.size_bytes();
                self.turn_to(Some(commit_lsn));
                self.push(item);
            }
        }
        match held.end_lsn.filter(|_| held.items.is_empty()) {
            Some(end_lsn) => self.commit(commit_lsn, end_lsn),
            None if held.items.is_empty() => {}
            None => self.line.push_back(InLine::Held(held)),
        }
    }

    /// What is pushed next belongs to this transaction, or to none.
    fn turn_to(&mut self, txn: Option<Lsn>) {
        if self.reading == txn {
            return;
        }
        if self.reading.is_some() {
            self.push(Item::Pause);
        }
        if let Some(commit_lsn) = txn {
            self.push(Item::Resume { commit_lsn });
        }
        self.reading = txn;
    }

    fn push(&mut self, item: Item) {
        self.out_bytes += item.size_bytes();
        self.out.push_back(item);
    }
}

impl InLine {
    /// Whether the item may not pass it.
    fn holds(&self, item: &Item) -> bool {
        let Self::Play { foreseen, .. } = self else { return false };
        match item {
            Item::Event(event) => foreseen.may_have(&event.account),
            Item::Unroutable(_)
            | Item::Invalidate(_)
            | Item::Begin { .. }
            | Item::Commit { .. }
            | Item::Pause
            | Item::Resume { .. }
            | Item::Progress { .. } => foreseen.is_anything(),
        }
    }

    fn holds_all(&self) -> bool {
        matches!(self, Self::Play { foreseen, .. } if foreseen.is_anything())
    }

    fn foreseen_bytes(&self) -> usize {
        match self {
            Self::Play { foreseen, .. } => foreseen.memory_bytes(),
            Self::Held(_) => 0,
        }
    }
}
