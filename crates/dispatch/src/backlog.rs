//! What is known in memory of one queue's deferred rows: how many there are, which deliveries must
//! join them, and which of them may be read back now.
//!
//! ```text
//! stream ─► defer ─► storing ─► (table) ─► read back ─► loaded ─► resolved
//!                                  ▲                      │
//!                                  └── waits, as a head ◄─┘ failed
//! ```
//!
//! Memory does not depend on how many rows there are: of a row that only waits its turn nothing is
//! known here. A walk reads the table in stream order from a cursor, page by page, and takes what may
//! go. Rows that failed are *heads*: they have a time before which they are not tried again, and are
//! revisited when it has come.
//!
//! # Why the order of each key holds
//!
//! - What shares a key with a deferred row joins the table ([`Backlog::blocks`]), so the table holds
//!   all of a key's deliveries behind the first one in it.
//! - A walk that passes a row over (a head, or a row behind one) notes its keys in `held`, with the
//!   first row that holds each; what follows with one of them is passed over too. When a head ends,
//!   the cursor goes back to it, and what was held from there on is forgotten and found again.
//! - A row that is still being stored is in no page. So a walk takes nothing at or behind the first
//!   such row, nor behind one that was queued while the page was being read.
//! - A row that was removed may still be in a page that was read before that was durable: it is passed
//!   over until no page can show it.

use std::collections::{BTreeMap, BTreeSet};

use walhook_core::event::RowKeys;
use walhook_core::persist::{Blocked, DeferReason, RowKey, Tried};
use walhook_core::tick::Tick;

mod pages;
mod removals;

pub use pages::{Load, Page, PageBudget, Read};

/// Keys that block singly; with more, every delivery of the queue joins the table.
const BLOCKED_MAX: usize = 64;

/// See the module's documentation.
///
/// Numbers of rows come from the table, in part, and somebody else may remove rows: so they saturate, and are
/// counted anew by a walk that finds none.
#[derive(Debug)]
pub struct Backlog {
    blocked: Blocked,
    /// Why deliveries join it.
    why: DeferReason,
    /// Deferred deliveries that have not ended.
    rows: u64,
    /// Of these, what the table has once the batch that was handed out last is stored.
    in_table: u64,
    /// Not durable yet.
    storing: BTreeSet<RowKey>,
    /// Of these, what no batch has been handed out with.
    unasked: u64,
    /// Rows that stand in the queue in memory.
    loaded: BTreeSet<RowKey>,
    /// Ended, but a page may still show them; true: durably gone, only the page under way may.
    gone: BTreeMap<RowKey, bool>,
    /// Counted, and removed by an operator's transaction that may have committed; true: it has, and what is in memory of
    /// them counts until it leaves.
    removing: BTreeMap<RowKey, bool>,
    /// Rows that failed.
    heads: BTreeMap<RowKey, Head>,
    /// Those that wait, by their time.
    waiting: BTreeSet<(Tick, RowKey)>,
    /// For each key that rows passed over hold, the first of these rows.
    held: BTreeMap<u64, RowKey>,
    /// Where the walk goes on; `None`: at the first row.
    cursor: Option<RowKey>,
    /// No row stands at or behind the cursor.
    at_end: bool,
    /// No head can be noted any more: the walk goes on when one ends.
    full: bool,
    /// Of a walk that began at the first row: whether it met any.
    met: Option<bool>,
    reading: Option<Reading>,
}

/// A row that failed.
#[derive(Debug, Clone, Copy)]
struct Head {
    due: Tick,
    attempts: u32,
    first_attempt_us: Option<i64>,
}

/// A page that is being read.
#[derive(Debug)]
struct Reading {
    /// The head that it is for; else it belongs to the walk.
    head: Option<RowKey>,
    /// A walk takes nothing from here on.
    ceiling: Option<RowKey>,
    /// Heads that an operator has made due or removed since: the page may not show them as they are.
    changed: BTreeSet<RowKey>,
}

impl Backlog {
    /// No rows; `blocked` says which deliveries join.
    #[must_use]
    pub fn new(blocked: Blocked, why: DeferReason) -> Self {
        Self {
            blocked,
            why,
            rows: 0,
            in_table: 0,
            storing: BTreeSet::new(),
            unasked: 0,
            loaded: BTreeSet::new(),
            gone: BTreeMap::new(),
            removing: BTreeMap::new(),
            heads: BTreeMap::new(),
            waiting: BTreeSet::new(),
            held: BTreeMap::new(),
            cursor: None,
            at_end: true,
            full: false,
            met: None,
            reading: None,
        }
    }

    /// What an earlier leader left: `rows` rows, of which nothing else is known.
    #[must_use]
    pub fn recovered(blocked: Blocked, rows: u64) -> Self {
        let fresh = Self::new(blocked, DeferReason::Behind);
        Self { rows, in_table: rows, at_end: false, met: Some(false), ..fresh }
    }

    /// Whether a delivery with these keys must join the rows. `may_hold`: whether one of them may have such a
    /// key. While nothing is sent, and where there is no room, that is not the question.
    #[must_use]
    pub fn blocks(&self, keys: &RowKeys, may_hold: impl FnOnce(&RowKeys) -> bool) -> bool {
        match &self.blocked {
            Blocked::All if self.why == DeferReason::Behind => may_hold(keys),
            Blocked::All => true,
            Blocked::Keys(blocked) => keys.iter().any(|key| blocked.contains(key)),
        }
    }

    /// Which deliveries must join the rows.
    #[must_use]
    pub fn blocked(&self) -> &Blocked {
        &self.blocked
    }

    /// Why deliveries that are blocked join the rows.
    #[must_use]
    pub fn why(&self) -> DeferReason {
        self.why
    }

    /// Every delivery joins from now on.
    pub fn block_all(&mut self, why: DeferReason) {
        (self.blocked, self.why) = (Blocked::All, why);
    }

    /// No row is left: only the keys of those to come will block.
    pub fn unblock(&mut self) {
        assert_eq!(self.rows, 0, "a queue with rows is to be sent to directly");
        (self.blocked, self.why) = (Blocked::Keys(Vec::new()), DeferReason::Behind);
    }

    fn block(&mut self, keys: &RowKeys) {
        let Blocked::Keys(blocked) = &mut self.blocked else { return };
        for key in keys {
            if !blocked.contains(key) {
                blocked.push(*key);
            }
        }
        if blocked.len() > BLOCKED_MAX {
            self.block_all(DeferReason::Behind);
        }
    }

    /// Deferred deliveries that have not ended.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// How many rows the table has once the batch that was handed out last is stored.
    #[must_use]
    pub fn in_table(&self) -> u64 {
        self.in_table
    }

    /// Whether this row, which is not durable yet, must become so: its delivery is in flight, and its outcome will
    /// want it; or has ended, and its removal follows.
    #[must_use]
    pub fn needs_row(&self, key: &RowKey) -> bool {
        self.loaded.contains(key) || self.gone.contains_key(key)
    }

    /// Rows that stand in the queue in memory.
    #[must_use]
    pub fn loaded(&self) -> usize {
        self.loaded.len()
    }

    /// Rows that failed and are tried again.
    #[must_use]
    pub fn heads(&self) -> usize {
        self.heads.len()
    }

    /// A delivery leaves memory, and its row is on its way to the table. `due`: it failed, and is not
    /// tried before then. `behind`: it only leaves because one that failed does, and shares a key
    /// with it.
    pub fn defer(
        &mut self,
        key: &RowKey,
        keys: &RowKeys,
        tried: &Tried,
        due: Option<Tick>,
        behind: bool,
    ) {
        self.begin_storing(key, keys);
        match due {
            Some(due) => self.wait(key, keys, tried, due),
            None if behind => self.hold(key, keys),
            None => self.go_back_to(key),
        }
    }

    /// A delivery in flight gets a row in the table, and stays in the queue.
    pub fn keep(&mut self, key: &RowKey, keys: &RowKeys) {
        self.begin_storing(key, keys);
        self.loaded.insert(key.clone());
    }

    fn begin_storing(&mut self, key: &RowKey, keys: &RowKeys) {
        self.rows += 1;
        self.unasked += 1;
        self.block(keys);
        self.storing.insert(key.clone());
        self.lower_ceiling(key);
    }

    /// A row that no batch was handed out with will not be stored after all.
    pub fn skip(&mut self, key: &RowKey) {
        assert!(!self.needs_row(key), "a row is skipped that its delivery needs");
        self.rows = self.rows.saturating_sub(1);
        self.hand_over();
        self.storing.remove(key);
        if let Some(head) = self.heads.remove(key) {
            self.waiting.remove(&(head.due, key.clone()));
            self.full = false;
        }
    }

    /// Nothing is read back any more: what is known of rows that wait is forgotten.
    pub fn give_up(&mut self) {
        self.heads.clear();
        self.waiting.clear();
        self.held.clear();
        (self.cursor, self.at_end, self.full, self.met) = (None, false, false, None);
    }

    /// Whether every row is in the table, and none of them in the queue.
    #[must_use]
    pub fn is_all_in_table(&self) -> bool {
        self.storing.is_empty() && self.loaded.is_empty()
    }

    /// Rows were removed from the table without being read; `all`: none is left.
    pub fn purged(&mut self, rows: u64, all: bool) {
        assert!(self.is_all_in_table(), "a row that is known was removed");
        if all {
            self.count_none();
        } else {
            self.rows = self.rows.saturating_sub(rows);
            self.in_table = self.in_table.saturating_sub(rows);
        }
    }

    /// The table has none, and none is on its way there.
    fn count_none(&mut self) {
        (self.rows, self.in_table) = (0, 0);
        self.removing.clear();
    }

    /// The row is in the batch that was handed out.
    pub fn handed_out(&mut self) {
        self.in_table += 1;
        self.hand_over();
    }

    fn hand_over(&mut self) {
        assert!(self.unasked > 0, "a row is handed out that was not deferred");
        self.unasked -= 1;
    }

    /// The row is durable.
    pub fn stored(&mut self, key: &RowKey) {
        self.storing.remove(key);
        self.give_room_back();
        if self.cursor.as_ref().is_none_or(|cursor| cursor <= key) {
            self.at_end = false;
        }
    }

    /// A row in the queue failed: it leaves the queue, and is not tried before `due`.
    pub fn fail(&mut self, key: &RowKey, keys: &RowKeys, tried: &Tried, due: Tick) {
        self.loaded.remove(key);
        self.wait(key, keys, tried, due);
    }

    /// A row leaves the queue untried. `behind`: see [`Backlog::defer`].
    pub fn unload(&mut self, key: &RowKey, keys: &RowKeys, behind: bool) {
        self.loaded.remove(key);
        if let Some(head) = self.heads.get(key) {
            self.waiting.insert((head.due, key.clone()));
            self.hold(key, keys);
        } else if self.removing.get(key) == Some(&true) {
            self.removed_by_others(key);
        } else if behind {
            self.hold(key, keys);
        } else {
            self.go_back_to(key);
        }
    }

    fn wait(&mut self, key: &RowKey, keys: &RowKeys, tried: &Tried, due: Tick) {
        let Tried { attempts, first_attempt_us, .. } = *tried;
        let head = Head { due, attempts, first_attempt_us };
        if let Some(before) = self.heads.insert(key.clone(), head) {
            self.waiting.remove(&(before.due, key.clone()));
        }
        self.waiting.insert((due, key.clone()));
        self.hold(key, keys);
    }

    /// A delivery ended. Its row goes with [`Backlog::taken_out`].
    pub fn resolve(&mut self, key: &RowKey) {
        self.rows = self.rows.saturating_sub(1);
        self.loaded.remove(key);
        self.removing.remove(key);
        self.gone.insert(key.clone(), false);
        self.end_head(key);
    }

    /// An operator made this row due in the table, or removed it ([`Backlog::removed_by_others`]): it is looked at
    /// anew, whatever was known of it. A row that the walk has not come to yet waits for that, as before.
    pub fn look_again(&mut self, key: &RowKey, now: Tick) {
        let Some(head) = self.heads.get_mut(key) else {
            self.go_back_to(key);
            return;
        };
        if self.waiting.remove(&(head.due, key.clone())) {
            head.due = head.due.min(now);
            self.waiting.insert((head.due, key.clone()));
        }
        if let Some(reading) = &mut self.reading {
            reading.changed.insert(key.clone());
        }
        self.lower_ceiling(key);
    }

    /// If the row was a head, it holds nothing any more: the walk finds what stood behind it.
    fn end_head(&mut self, key: &RowKey) {
        if let Some(head) = self.heads.remove(key) {
            self.waiting.remove(&(head.due, key.clone()));
            self.full = false;
            self.go_back_to(key);
        }
    }

    /// The removal of a row is in the batch that was handed out.
    pub fn taken_out(&mut self) {
        self.in_table = self.in_table.saturating_sub(1);
    }

    /// The removal of a row is durable.
    pub fn removed(&mut self, key: &RowKey) {
        if self.reading.is_none() {
            self.gone.remove(key);
            self.give_room_back();
        } else if let Some(durably) = self.gone.get_mut(key) {
            *durably = true;
        }
    }

    /// Maps that are empty keep the room of what they held, and there are as many backlogs as endpoints.
    fn give_room_back(&mut self) {
        if self.storing.is_empty() {
            self.storing = BTreeSet::new();
        }
        if self.loaded.is_empty() {
            self.loaded = BTreeSet::new();
        }
        if self.gone.is_empty() {
            self.gone = BTreeMap::new();
        }
        if self.removing.is_empty() {
            self.removing = BTreeMap::new();
        }
    }

    /// Whether no row is left, in the table neither once the batch that was handed out is stored.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.rows == 0 && self.in_table == 0 && self.unasked == 0
    }

    /// Whether nothing remains to be known: all is over, durably, and no page is being read.
    #[must_use]
    pub fn is_forgettable(&self) -> bool {
        self.is_over() && self.is_quiet() && self.reading.is_none()
    }

    /// When the first head's time comes.
    #[must_use]
    pub fn next_due(&self) -> Option<Tick> {
        self.waiting.first().map(|(due, _)| *due)
    }

    /// Whether an earlier row that was passed over holds one of the keys.
    fn is_held(&self, row: &RowKey, keys: &RowKeys) -> bool {
        keys.iter().any(|key| self.held.get(key).is_some_and(|first| first < row))
    }

    /// The row is passed over: what shares a key with it stands behind it.
    fn hold(&mut self, row: &RowKey, keys: &RowKeys) {
        for key in keys {
            let first = self.held.entry(*key).or_insert_with(|| row.clone());
            if row < first {
                *first = row.clone();
            }
        }
    }

    /// The walk's page under way, where there is one, may not show this row as it is.
    fn lower_ceiling(&mut self, row: &RowKey) {
        if let Some(reading) = &mut self.reading
            && reading.ceiling.as_ref().is_none_or(|ceiling| row < ceiling)
        {
            reading.ceiling = Some(row.clone());
        }
    }

    /// The walk goes on at this row, where it is past it.
    fn go_back_to(&mut self, row: &RowKey) {
        self.lower_ceiling(row);
        if self.cursor.as_ref().is_some_and(|cursor| row < cursor) {
            (self.cursor, self.at_end, self.met) = (Some(row.clone()), false, None);
        }
        self.held.retain(|_, first| *first < *row);
    }
}

#[cfg(test)]
mod tests;
