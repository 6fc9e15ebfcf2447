//! Reading rows back: where the next page begins, and which of its rows may go.

use std::collections::BTreeSet;

use super::{Backlog, Reading};
use walhook_core::event::RowKeys;
use walhook_core::persist::{Deferred, RowKey, Tried};
use walhook_core::tick::Tick;

/// Keys that a walk notes as held; with more it stands until a head's time has come.
const HELD_MAX: usize = 4_096;

/// So many rows are tried in turn as probes: one of them the endpoint will take, if any.
const PROBED_MAX: usize = 64;

/// What a page is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// Whatever may go now.
    Rows,
    /// One row, whether its time has come or not: of a key that was not tried, where there is one,
    /// else the head whose time comes first.
    Probe,
}

/// How much may be taken into memory.
#[derive(Debug, Clone, Copy)]
pub struct PageBudget {
    /// Rows.
    pub rows: usize,
    /// Bytes of events.
    pub bytes: usize,
    /// Heads to be known at most.
    pub heads: usize,
}

/// A row of a page.
#[derive(Debug)]
pub struct Read {
    /// The row.
    pub row: Deferred,
    /// Its ordering keys.
    pub keys: RowKeys,
    /// Its time, on the engine's clock.
    pub due: Option<Tick>,
}

/// A row for the queue in memory.
#[derive(Debug)]
pub struct Load {
    /// The row.
    pub row: Deferred,
    /// Its ordering keys.
    pub keys: RowKeys,
}

impl Backlog {
    /// Whether reading may yield a row now.
    #[must_use]
    pub fn wants_page(&self, for_what: Page, now: Tick) -> bool {
        let heads_until = match for_what {
            Page::Rows => now,
            Page::Probe => Tick(u64::MAX),
        };
        self.reading.is_none()
            && (self.due_head(heads_until).is_some() || self.can_walk() || self.must_recount())
    }

    /// Where the next page begins; answered by [`Backlog::take_page`].
    pub fn begin_page(&mut self, for_what: Page, now: Tick) -> Option<RowKey> {
        assert!(self.wants_page(for_what, now), "a page is read that nobody wants");
        let head = match for_what {
            Page::Rows => self.due_head(now).cloned(),
            Page::Probe if self.can_walk() && self.heads.len() < PROBED_MAX => None,
            Page::Probe => self.hasten(now),
        };
        if let Some(head) = head {
            self.reading =
                Some(Reading { head: Some(head.clone()), ceiling: None, changed: BTreeSet::new() });
            return Some(head);
        }
        if !self.can_walk() {
            (self.cursor, self.at_end, self.met) = (None, false, Some(false));
            self.held.clear();
        }
        self.reading = Some(Reading {
            head: None,
            ceiling: self.storing.first().cloned(),
            changed: BTreeSet::new(),
        });
        self.cursor.clone()
    }

    /// The head whose time came first, where it is durable.
    fn due_head(&self, now: Tick) -> Option<&RowKey> {
        let due = self.waiting.iter().take_while(|(due, _)| *due <= now);
        due.map(|(_, key)| key).find(|key| !self.storing.contains(*key))
    }

    /// The head whose time comes first is due now.
    fn hasten(&mut self, now: Tick) -> Option<RowKey> {
        let key = self.due_head(Tick(u64::MAX))?.clone();
        let head = self.heads.get_mut(&key)?;
        self.waiting.remove(&(head.due, key.clone()));
        head.due = head.due.min(now);
        self.waiting.insert((head.due, key.clone()));
        Some(key)
    }

    fn can_walk(&self) -> bool {
        let first = self.storing.first();
        let reachable = first.is_none_or(|first| self.cursor.as_ref().is_none_or(|at| at < first));
        !self.at_end && !self.full && self.held.len() <= HELD_MAX && reachable
    }

    /// Rows are counted, but none is known of, and the walk is at its end: somebody else removed them,
    /// which a walk from the first row shows.
    fn must_recount(&self) -> bool {
        self.at_end && self.rows > 0 && self.is_quiet()
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.storing.is_empty()
            && self.loaded.is_empty()
            && self.heads.is_empty()
            && self.gone.is_empty()
    }

    /// Takes the page that was asked for, and says which rows go into the queue.
    pub fn take_page(
        &mut self,
        rows: Vec<Read>,
        end: bool,
        room: PageBudget,
        now: Tick,
    ) -> Vec<Load> {
        let Some(reading) = self.reading.take() else {
            panic!("a page came that was not asked for")
        };
        let loads = match reading.head {
            Some(head) => self.revisit(&head, &reading.changed, rows, room, now),
            None => self.walk(reading.ceiling.as_ref(), rows, end, room, now),
        };
        self.gone.retain(|_, durably| !*durably);
        loads
    }

    /// Loads the heads in the page whose time has come.
    fn revisit(
        &mut self,
        first: &RowKey,
        changed: &BTreeSet<RowKey>,
        rows: Vec<Read>,
        room: PageBudget,
        now: Tick,
    ) -> Vec<Load> {
        if rows.first().is_none_or(|read| read.row.key != *first) && self.heads.contains_key(first)
        {
            // Somebody else has removed it.
            self.in_table = self.in_table.saturating_sub(1);
            self.resolve(first);
            self.gone.remove(first);
        }
        let mut loads = Vec::new();
        let mut bytes = 0;
        for Read { mut row, keys, .. } in rows {
            if changed.contains(&row.key) {
                // It may not be as the page shows it: it is read again.
                continue;
            }
            let Some(head) = self.heads.get(&row.key).copied() else { continue };
            let waits = (head.due, row.key.clone());
            if head.due > now || !self.waiting.contains(&waits) {
                continue;
            }
            bytes += row.event.size_bytes();
            if loads.len() >= room.rows || (bytes > room.bytes && !loads.is_empty()) {
                break;
            }
            if self.is_held(&row.key, &keys) {
                // The keys are not what they were: the walk finds it again behind the other.
                self.heads.remove(&row.key);
                self.waiting.remove(&waits);
                continue;
            }
            self.waiting.remove(&waits);
            (row.attempts, row.first_attempt_us) = (head.attempts, head.first_attempt_us);
            self.loaded.insert(row.key.clone());
            loads.push(Load { row, keys });
        }
        loads
    }

    fn walk(
        &mut self,
        ceiling: Option<&RowKey>,
        rows: Vec<Read>,
        end: bool,
        room: PageBudget,
        now: Tick,
    ) -> Vec<Load> {
        self.met = self.met.map(|met| met || !rows.is_empty());
        let mut loads: Vec<Load> = Vec::new();
        let mut bytes = 0;
        for Read { row, keys, due } in rows {
            let at = row.key.clone();
            let ceiling = ceiling.into_iter().chain(self.storing.first()).min();
            if let Some(ceiling) = ceiling.filter(|ceiling| **ceiling <= at) {
                self.cursor = Some(ceiling.clone());
                return loads;
            }
            let later = due.filter(|due| *due > now);
            if self.loaded.contains(&at) || self.gone.contains_key(&at) {
                // In the queue, or no more.
            } else if self.heads.contains_key(&at) || self.is_held(&at, &keys) {
                self.hold(&at, &keys);
            } else if let Some(later) = later {
                if self.heads.len() >= room.heads {
                    (self.cursor, self.full) = (Some(at), true);
                    return loads;
                }
                let Deferred { attempts, first_attempt_us, .. } = row;
                let tried = Tried { attempts, first_attempt_us, ..Tried::default() };
                self.wait(&at, &keys, &tried, later);
            } else {
                bytes += row.event.size_bytes();
                if loads.len() >= room.rows || (bytes > room.bytes && !loads.is_empty()) {
                    self.cursor = Some(at);
                    return loads;
                }
                self.loaded.insert(at.clone());
                loads.push(Load { row, keys });
            }
            self.cursor = Some(at.successor());
        }
        match ceiling {
            _ if !end => {}
            Some(ceiling) => self.cursor = Some(ceiling.clone()),
            None => self.come_to_end(),
        }
        loads
    }

    fn come_to_end(&mut self) {
        self.at_end = true;
        if self.met.take() == Some(false) && self.is_quiet() {
            self.count_none();
        }
    }
}
