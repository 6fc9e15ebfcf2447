//! A backlog against a naive model: the list of all deferred deliveries, scanned.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::fixture;
use walhook_core::event::Event;
use walhook_core::persist::Deferred;
use walhook_core::persist::EventKey;

mod removals;

fn event(n: u64, keys: &[u64]) -> Arc<Event> {
    Arc::new(fixture::event("a", fixture::position(n, n), keys))
}

fn key(event: &Event) -> RowKey {
    RowKey { event: EventKey::of(event), replay: None }
}

#[derive(Debug, Clone)]
enum Action {
    /// An event comes: it is deferred where it must be, and else stands in memory.
    Arrive(Vec<u64>),
    /// One in memory fails for the last time, or leaves for another reason.
    Leave(usize, Option<u64>),
    /// One in flight gets a row.
    Keep(usize),
    HandOut,
    Stored,
    BeginPage(Page, usize),
    Read,
    TakePage,
    Deliver(usize),
    Fail(usize, u64),
    Unload(usize),
    /// An operator's transaction removes a row: that is told, and it commits, or it does not.
    Remove(usize, bool),
    /// It is told that it has committed. True: what is in memory of the row leaves, else it is in flight.
    TellRemoved(bool),
    /// Nobody will tell.
    LoseRemoved,
    /// All joins, for no other reason than order: as when a breaker has closed.
    BlockAll,
    Wait(u64),
}

fn action() -> impl Strategy<Value = Action> {
    let keys = proptest::collection::btree_set(0u64..4, 0..3).prop_map(|k| k.into_iter().collect());
    let due = prop_oneof![Just(None), (0u64..50).prop_map(Some)];
    prop_oneof![
        6 => keys.prop_map(Action::Arrive),
        3 => (any::<usize>(), due).prop_map(|(n, due)| Action::Leave(n, due)),
        1 => any::<usize>().prop_map(Action::Keep),
        3 => Just(Action::HandOut),
        3 => Just(Action::Stored),
        5 => (1usize..5).prop_map(|rows| Action::BeginPage(Page::Rows, rows)),
        1 => (1usize..5).prop_map(|rows| Action::BeginPage(Page::Probe, rows)),
        5 => Just(Action::Read),
        5 => Just(Action::TakePage),
        8 => any::<usize>().prop_map(Action::Deliver),
        4 => (any::<usize>(), 0u64..50).prop_map(|(n, due)| Action::Fail(n, due)),
        1 => any::<usize>().prop_map(Action::Unload),
        3 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(n, c)| Action::Remove(n, c)),
        2 => any::<bool>().prop_map(Action::TellRemoved),
        1 => Just(Action::LoseRemoved),
        1 => Just(Action::BlockAll),
        3 => (1u64..30).prop_map(Action::Wait),
    ]
}

/// A delivery that has not ended.
#[derive(Debug, Clone)]
struct Live {
    event: Arc<Event>,
    keys: RowKeys,
    /// In memory; else only in the table, or on its way there.
    in_memory: bool,
    has_row: bool,
    /// It failed, and is not tried before then.
    due: Option<Tick>,
    /// Somebody else has removed its row; and that was told.
    removed: bool,
    told: bool,
}

impl Live {
    /// Nothing but a row that is gone, which may still be counted.
    fn is_over(&self) -> bool {
        self.removed && !self.in_memory
    }
}

/// A row to be inserted, and when it is due.
type Insert = (RowKey, Arc<Event>, Option<Tick>);

struct Model {
    backlog: Backlog,
    /// In stream order.
    live: Vec<Live>,
    table: BTreeMap<RowKey, (Arc<Event>, Option<Tick>)>,
    /// Changes that no batch has, and those of the batch under way.
    inserts: Vec<Insert>,
    removals: Vec<RowKey>,
    batch: Option<(Vec<Insert>, Vec<RowKey>)>,
    page: Option<(Option<RowKey>, usize)>,
    read: Option<(Vec<Read>, bool)>,
    /// Removed by a transaction of which nobody has said yet that it has committed.
    untold: Option<RowKey>,
    now: Tick,
    next: u64,
    room: PageBudget,
    /// Of all rows since there were none; `None`: nobody knows.
    keys: Option<BTreeSet<u64>>,
}

impl Model {
    fn new() -> Self {
        Self {
            backlog: Backlog::new(Blocked::Keys(Vec::new()), DeferReason::Behind),
            live: Vec::new(),
            table: BTreeMap::new(),
            inserts: Vec::new(),
            removals: Vec::new(),
            batch: None,
            page: None,
            read: None,
            untold: None,
            now: Tick(0),
            next: 1,
            room: PageBudget { rows: 3, bytes: 1 << 20, heads: 3 },
            keys: Some(BTreeSet::new()),
        }
    }

    /// Of what is in memory, those that nothing older in memory holds back.
    fn sendable(&self) -> Vec<usize> {
        let mut found = Vec::new();
        for (at, live) in self.live.iter().enumerate().filter(|(_, live)| live.in_memory) {
            let before = self.live[..at].iter().filter(|live| live.in_memory);
            let shares = |other: &Live| live.keys.iter().any(|k| other.keys.contains(k));
            if !before.into_iter().any(shares) {
                found.push(at);
            }
        }
        found
    }

    fn pick(&self, n: usize, wanted: impl Fn(&Live) -> bool) -> Option<usize> {
        let all: Vec<usize> =
            self.sendable().into_iter().filter(|at| wanted(&self.live[*at])).collect();
        (!all.is_empty()).then(|| all[n % all.len()])
    }

    /// Whatever is sent is the first of each of its keys, wherever the others stand.
    fn check_first(&self, at: usize) {
        let live = &self.live[at];
        let mut before = self.live[..at].iter().filter(|other| !other.is_over());
        let ahead = before.find(|o| live.keys.iter().any(|k| o.keys.contains(k)));
        assert!(ahead.is_none(), "{:?} overtakes {:?}", live.event.id, ahead);
    }

    fn joins(&self, keys: &RowKeys) -> bool {
        let may_hold = |keys: &RowKeys| {
            self.keys.as_ref().is_none_or(|known| keys.iter().any(|key| known.contains(key)))
        };
        self.backlog.rows() > 0 && self.backlog.blocks(keys, may_hold)
    }

    fn insert(&mut self, at: usize, due: Option<Tick>) {
        let live = &mut self.live[at];
        if let Some(known) = &mut self.keys {
            known.extend(&live.keys);
        }
        live.has_row = true;
        self.inserts.push((key(&live.event), Arc::clone(&live.event), due));
    }

    fn leave(&mut self, at: usize, due: Option<Tick>) {
        self.leave_one(at, due, false);
        let mut keys: Vec<u64> = self.live[at].keys.to_vec();
        for behind in at + 1..self.live.len() {
            let live = &self.live[behind];
            if live.in_memory && live.keys.iter().any(|k| keys.contains(k)) {
                keys.extend(live.keys.iter().copied());
                self.leave_one(behind, None, due.is_some());
            }
        }
    }

    fn leave_one(&mut self, at: usize, due: Option<Tick>, behind: bool) {
        let (row, keys) = (key(&self.live[at].event), self.live[at].keys.clone());
        let tried = Tried::default();
        match (self.live[at].has_row, due) {
            (false, _) => {
                self.backlog.defer(&row, &keys, &tried, due, behind);
                self.insert(at, due);
            }
            (true, Some(due)) => self.backlog.fail(&row, &keys, &tried, due),
            (true, None) => self.backlog.unload(&row, &keys, behind),
        }
        self.live[at].in_memory = false;
        self.live[at].due = due.or(self.live[at].due);
    }

    fn remove(&mut self, n: usize, commits: bool) {
        let nth = n % self.table.len().max(1);
        let Some(row) = self.table.keys().nth(nth).filter(|_| self.untold.is_none()).cloned()
        else {
            return;
        };
        self.backlog.forget_removals();
        self.backlog.may_be_removed(&row);
        if commits {
            self.table.remove(&row);
            if let Some(live) = self.live.iter_mut().find(|live| key(&live.event) == row) {
                live.removed = true;
            }
            self.untold = Some(row);
        }
    }

    fn tell_removed(&mut self, leaves: bool) {
        let Some(row) = self.untold.take() else { return };
        self.backlog.look_again(&row, self.now);
        let at = self.live.iter().position(|live| key(&live.event) == row);
        if let Some(at) = at.filter(|at| leaves && self.sendable().contains(at)) {
            self.leave(at, None);
        }
        self.backlog.removed_by_others(&row);
        let Some(at) = at else { return };
        self.live[at].told = true;
        if !self.live[at].in_memory {
            self.live.remove(at);
        }
    }

    /// Every row counts once; one that is gone, once at most.
    fn check_counts(&mut self) {
        // It left the queue, where its count ends.
        self.live.retain(|live| !(live.is_over() && live.told && live.due.is_none()));
        let there = self.live.iter().filter(|live| live.has_row && !live.is_over()).count();
        let over = self.live.iter().filter(|live| live.is_over()).count();
        let rows = self.backlog.rows();
        assert!(
            (there as u64..=(there + over) as u64).contains(&rows),
            "{rows} of {there}, {over}"
        );
        let (inserts, removals) = self.batch.as_ref().map_or((&[][..], &[][..]), |(i, r)| (i, r));
        let inserts = inserts.iter().map(|(row, ..)| row);
        let stored: BTreeSet<&RowKey> =
            self.table.keys().chain(inserts).filter(|row| !removals.contains(row)).collect();
        assert!(self.backlog.in_table() >= stored.len() as u64, "too few in the table");
        if rows == 0 {
            self.live.retain(|live| !live.is_over());
            self.backlog.unblock();
            self.keys = Some(BTreeSet::new());
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each action, in both models")]
    fn act(&mut self, action: &Action) {
        match action {
            Action::Arrive(keys) => {
                let event = event(self.next, keys);
                self.next += 1;
                let keys = event.keys.clone();
                let deferred = self.joins(&keys);
                let (in_memory, has_row, due) = (true, false, None);
                let (removed, told) = (false, false);
                self.live.push(Live { event, keys, in_memory, has_row, due, removed, told });
                if deferred {
                    self.leave_one(self.live.len() - 1, None, false);
                }
            }
            Action::Leave(n, after) => {
                if let Some(at) = self.pick(*n, |live| !live.has_row) {
                    self.leave(at, after.map(|after| self.now + Duration::from_micros(after)));
                }
            }
            Action::Keep(n) => {
                if let Some(at) = self.pick(*n, |live| !live.has_row) {
                    let (row, keys) = (key(&self.live[at].event), self.live[at].keys.clone());
                    self.backlog.keep(&row, &keys);
                    self.insert(at, None);
                }
            }
            Action::HandOut => {
                if self.batch.is_none() {
                    let (inserts, removals) =
                        (std::mem::take(&mut self.inserts), std::mem::take(&mut self.removals));
                    inserts.iter().for_each(|_| self.backlog.handed_out());
                    removals.iter().for_each(|_| self.backlog.taken_out());
                    self.batch = Some((inserts, removals));
                }
            }
            Action::Stored => {
                for (row, event, due) in self.batch.iter().flat_map(|(inserts, _)| inserts) {
                    self.table.insert(row.clone(), (Arc::clone(event), *due));
                    self.backlog.stored(row);
                }
                for row in self.batch.iter().flat_map(|(_, removals)| removals) {
                    self.table.remove(row);
                    self.backlog.removed(row);
                }
                self.batch = None;
            }
            Action::BeginPage(what, rows) => {
                if self.backlog.wants_page(*what, self.now) {
                    self.page = Some((self.backlog.begin_page(*what, self.now), *rows));
                }
            }
            Action::Read => {
                if let (Some((from, rows)), None) = (&self.page, &self.read) {
                    let from = |row: &RowKey| from.as_ref().is_none_or(|from| from <= row);
                    let mut behind = self.table.iter().filter(|(row, _)| from(row));
                    let read = |(row, (event, due)): (&RowKey, &(Arc<Event>, Option<Tick>))| {
                        let row = Deferred {
                            key: row.clone(),
                            event: Arc::clone(event),
                            attempts: 0,
                            first_attempt_us: None,
                            due_us: None,
                        };
                        Read { keys: row.event.keys.clone(), due: *due, row }
                    };
                    let page: Vec<Read> = behind.by_ref().take(*rows).map(read).collect();
                    self.read = Some((page, behind.next().is_none()));
                }
            }
            Action::TakePage => {
                let Some((page, end)) = self.read.take() else { return };
                self.page = None;
                let loads = self.backlog.take_page(page, end, self.room, self.now);
                for load in loads {
                    let at = self.live.iter().position(|l| key(&l.event) == load.row.key);
                    let live = &mut self.live[at.expect("what has ended is not read back")];
                    assert!(!live.in_memory, "read back while it is in memory");
                    live.in_memory = true;
                }
            }
            Action::Deliver(n) => {
                if let Some(at) = self.pick(*n, |_| true) {
                    self.check_first(at);
                    let live = self.live.remove(at);
                    if live.has_row {
                        self.backlog.resolve(&key(&live.event));
                        self.removals.push(key(&live.event));
                    }
                }
            }
            Action::Fail(n, after) => {
                if let Some(at) = self.pick(*n, |live| live.has_row) {
                    self.check_first(at);
                    self.leave(at, Some(self.now + Duration::from_micros(*after)));
                }
            }
            Action::Unload(n) => {
                if let Some(at) = self.pick(*n, |live| live.has_row) {
                    self.leave(at, None);
                }
            }
            Action::Remove(n, commits) => self.remove(*n, *commits),
            Action::TellRemoved(leaves) => self.tell_removed(*leaves),
            Action::LoseRemoved => self.untold = None,
            Action::BlockAll => self.backlog.block_all(DeferReason::Behind),
            Action::Wait(us) => self.now = self.now + Duration::from_micros(*us),
        }
        self.check_counts();
    }

    /// Another leader goes on with what the table has, and reads the rest from the stream again.
    fn restart(&mut self) {
        self.act(&Action::HandOut);
        self.act(&Action::Stored);
        self.act(&Action::HandOut);
        self.act(&Action::Stored);
        let blocked = self.backlog.blocked().clone();
        self.backlog = Backlog::recovered(blocked, self.backlog.in_table());
        (self.page, self.read, self.keys, self.untold) = (None, None, None, None);
        for at in 0..self.live.len() {
            let blocked = self.joins(&self.live[at].keys);
            (self.live[at].in_memory, self.live[at].told) = (!self.live[at].has_row, false);
            if blocked && self.live[at].in_memory {
                self.leave_one(at, None, false);
            }
        }
    }

    /// Nothing but success for so many rounds.
    fn succeed(&mut self, rounds: usize, wait_us: u64) {
        for _ in 0..rounds {
            for action in [
                Action::HandOut,
                Action::Stored,
                Action::BeginPage(Page::Rows, 4),
                Action::Read,
                Action::TakePage,
                Action::Deliver(0),
                Action::Wait(wait_us),
            ] {
                self.act(&action);
            }
            if self.live.is_empty() && self.batch.is_none() && self.removals.is_empty() {
                break;
            }
        }
    }

    /// What waits although time stands still has failed, or stands behind one that has.
    fn check_held(&self) {
        let mut held: BTreeSet<u64> = BTreeSet::new();
        for live in &self.live {
            let waits = live.due.is_some_and(|due| due > self.now);
            let is_held = waits || live.keys.iter().any(|key| held.contains(key));
            assert!(is_held || live.is_over(), "stuck: {live:?}");
            if is_held {
                held.extend(&live.keys);
            }
        }
    }

    /// With nothing but success from now on, everything ends.
    fn drain(&mut self) {
        self.succeed(500, 0);
        if !self.backlog.full {
            self.check_held();
        }
        self.succeed(2_000, 5);
        assert!(self.live.is_empty(), "stuck: {:?}, {:?}", self.live, self.backlog);
        assert!(self.table.is_empty());
        assert_eq!((self.backlog.rows(), self.backlog.in_table()), (0, 0));
        assert!(self.backlog.is_quiet());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn backlog_keeps_the_order_of_each_key_and_forgets_nothing(
        actions in proptest::collection::vec(action(), 1..200),
        recovered in any::<prop::sample::Index>(),
    ) {
        let mut model = Model::new();
        let restart = recovered.index(actions.len());
        for (at, action) in actions.iter().enumerate() {
            model.act(action);
            if at == restart {
                model.restart();
            }
        }
        model.drain();
    }
}

#[test]
fn backlog_notices_that_its_rows_were_removed_by_others() {
    let mut backlog = Backlog::recovered(Blocked::All, 7);
    assert!(backlog.wants_page(Page::Rows, Tick(0)));
    assert_eq!(backlog.begin_page(Page::Rows, Tick(0)), None);
    let room = PageBudget { rows: 1, bytes: 1, heads: 1 };
    let none = backlog.take_page(vec![], true, room, Tick(0));
    assert!(none.is_empty());
    assert_eq!((backlog.rows(), backlog.in_table()), (0, 0));
    assert!(!backlog.wants_page(Page::Rows, Tick(0)));
}
