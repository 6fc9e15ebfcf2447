//! Against a list of all that came, asked again after each step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use walhook_core::event::{AccountId, Event, Operation, RowKeys, Scope};
use walhook_core::position::{EventId, Position, WalPosition};

fn event(commit: u64, n: u64, account: u8) -> Item {
    let position = Position::Wal(WalPosition {
        commit_lsn: Lsn(commit),
        change_lsn: Lsn(n),
        relation: 1,
        n: 0,
    });
    Item::Event(Arc::new(Event {
        id: EventId::derive(1, &position, "a.b", 0),
        position,
        event_type: "a.b".into(),
        account: AccountId::new(account.to_string()),
        operation: Operation::Insert,
        commit_time_us: 0,
        keys: RowKeys::new(),
        row: Bytes::from_static(b"\"data\":{}"),
    }))
}

fn accounts(of: &BTreeSet<u8>) -> Foreseen {
    let mut foreseen = Foreseen::nothing();
    of.iter().for_each(|account| foreseen.add_account(&account.to_string()));
    foreseen
}

#[derive(Debug, Clone)]
enum Action {
    /// A live transaction goes on with an event of this account, or begins with it.
    Live(u8),
    Invalidate,
    EndLive,
    /// A streamed transaction commits that has events of these accounts.
    Commit(Vec<u8>),
    /// It is not known of which.
    CommitAll(Vec<u8>),
    /// The play goes on.
    Play,
    Progress,
    Take,
}

fn action() -> impl Strategy<Value = Action> {
    let events = prop::collection::vec(0u8..5, 0..5);
    prop_oneof![
        6 => (0u8..5).prop_map(Action::Live),
        1 => Just(Action::Invalidate),
        3 => Just(Action::EndLive),
        1 => events.clone().prop_map(Action::Commit),
        1 => prop::collection::vec(0u8..2, 0..5).prop_map(Action::Commit),
        1 => events.prop_map(Action::CommitAll),
        4 => Just(Action::Play),
        1 => Just(Action::Progress),
        2 => Just(Action::Take),
    ]
}

/// One change of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Event { n: u64, account: u8 },
    Invalidate,
}

#[derive(Debug)]
struct Txn {
    commit: u64,
    changes: Vec<Change>,
    ended: bool,
    /// Where it is played: its accounts, or all.
    play: Option<Option<BTreeSet<u8>>>,
    /// So many of its changes were played, those before `cut` live.
    played: usize,
    cut: usize,
    /// What was told when it committed.
    told: Vec<Change>,
}

impl Txn {
    /// So many of its changes came from the live stream.
    fn live(&self) -> usize {
        if self.play.is_some() { self.cut } else { self.changes.len() }
    }
}

#[derive(Debug, Default)]
struct Model {
    txns: Vec<Txn>,
    next: u64,
}

impl Model {
    fn begin(&mut self) -> u64 {
        self.next += 10;
        let (commit, changes) = (self.next, Vec::new());
        self.txns.push(Txn {
            commit,
            changes,
            ended: false,
            play: None,
            played: 0,
            cut: 0,
            told: Vec::new(),
        });
        commit
    }

    fn live(&self) -> Option<&Txn> {
        self.txns.last().filter(|txn| txn.play.is_none() && !txn.ended)
    }

    /// Whether a play before the transaction is not over, and holds such a change.
    fn is_held(&self, at: usize, change: Change) -> bool {
        self.txns[..at].iter().filter(|txn| !txn.ended).any(|txn| match (&txn.play, change) {
            (None, _) | (Some(Some(_)), Change::Invalidate) => false,
            (Some(None), _) => true,
            (Some(Some(accounts)), Change::Event { account, .. }) => accounts.contains(&account),
        })
    }

    fn playing(&self) -> Option<usize> {
        self.txns.iter().position(|txn| txn.play.is_some() && !txn.ended)
    }

    /// What must have come out by now: of each transaction its changes, and whether its end did.
    fn expected(&self) -> BTreeMap<u64, (Vec<Change>, bool)> {
        let of = |(at, txn): (usize, &Txn)| {
            let live = txn.changes[..txn.live()].iter().copied();
            let live = live.filter(|change| !self.is_held(at, *change));
            let played = txn.changes.get(txn.live()..txn.played).unwrap_or_default();
            let mut changes: Vec<Change> = live.chain(played.iter().copied()).collect();
            let is_whole = txn.ended && changes.len() == txn.changes.len();
            changes.extend(&txn.told);
            changes.sort_unstable();
            (txn.commit, (changes, is_whole))
        };
        self.txns.iter().enumerate().map(of).collect()
    }
}

/// What came out, held against what may come.
#[derive(Debug, Default)]
struct Reader {
    came: BTreeMap<u64, (Vec<Change>, bool)>,
    reading: Option<u64>,
    paused: BTreeSet<u64>,
    /// Of each account the place of its last event.
    last: BTreeMap<u8, (u64, u64)>,
    progress: u64,
}

impl Reader {
    fn came(&mut self) -> &BTreeMap<u64, (Vec<Change>, bool)> {
        self.came.values_mut().for_each(|(changes, _)| changes.sort_unstable());
        &self.came
    }

    fn read(&mut self, item: Item) {
        match item {
            Item::Begin { commit_lsn } => {
                assert!(self.reading.is_none());
                assert!(self.came.keys().next_back().is_none_or(|last| *last < commit_lsn.0));
                self.came.insert(commit_lsn.0, (Vec::new(), false));
                self.reading = Some(commit_lsn.0);
            }
            Item::Pause => assert!(self.paused.insert(self.reading.take().unwrap())),
            Item::Resume { commit_lsn } => {
                assert!(self.reading.is_none() && self.paused.remove(&commit_lsn.0));
                self.reading = Some(commit_lsn.0);
            }
            Item::Event(event) => {
                let Position::Wal(position) = event.position;
                let account: u8 = event.account.parse().unwrap();
                let (commit, n) = (position.commit_lsn.0, position.change_lsn.0);
                assert_eq!(self.reading, Some(commit));
                let last = self.last.insert(account, (commit, n));
                assert!(last.is_none_or(|last| last < (commit, n)), "{last:?} before {commit}");
                self.came.get_mut(&commit).unwrap().0.push(Change::Event { n, account });
            }
            Item::Invalidate(invalidation) => {
                let commit = self.reading.unwrap();
                assert_eq!(u64::from(invalidation.xid), commit);
                self.came.get_mut(&commit).unwrap().0.push(Change::Invalidate);
            }
            Item::Commit { end_lsn } => {
                let commit = self.reading.take().unwrap();
                assert_eq!(end_lsn.0, commit + 1);
                self.came.get_mut(&commit).unwrap().1 = true;
            }
            Item::Progress { wal_end } => {
                assert!(self.reading.is_none() && wal_end.0 > self.progress);
                self.progress = wal_end.0;
            }
            Item::Unroutable(_) => unreachable!("none is made here"),
        }
    }
}

fn act(action: Action, model: &mut Model, turns: &mut Turns) {
    match action {
        Action::Live(account) => change(Some(account), model, turns),
        Action::Invalidate => change(None, model, turns),
        Action::EndLive => {
            if model.live().is_some() {
                let txn = model.txns.last_mut().unwrap();
                txn.ended = true;
                turns.live(Item::Commit { end_lsn: Lsn(txn.commit + 1) });
            }
        }
        Action::Commit(events) => commit(&events, false, model, turns),
        Action::CommitAll(events) => commit(&events, true, model, turns),
        Action::Play => play(model, turns),
        Action::Progress => {
            if model.live().is_none() {
                model.next += 1;
                turns.live(Item::Progress { wal_end: Lsn(model.next) });
            }
        }
        Action::Take => {}
    }
}

/// The live transaction goes on, or begins: with an event, or an invalidation.
fn change(account: Option<u8>, model: &mut Model, turns: &mut Turns) {
    if model.live().is_none() {
        turns.live(Item::Begin { commit_lsn: Lsn(model.begin()) });
    }
    let txn = model.txns.last_mut().unwrap();
    let n = txn.changes.len() as u64;
    let change = account.map_or(Change::Invalidate, |account| Change::Event { n, account });
    txn.changes.push(change);
    turns.live(item(txn.commit, change));
}

/// A streamed transaction commits. Where a live one was read in part, that one goes on as a play.
fn commit(events: &[u8], all: bool, model: &mut Model, turns: &mut Turns) {
    let cut = model.live().map_or(0, |txn| txn.changes.len());
    if model.live().is_none() {
        model.begin();
    }
    let txn = model.txns.last_mut().unwrap();
    let of: BTreeSet<u8> = events.iter().copied().collect();
    let mut foreseen = if all { Foreseen::anything() } else { accounts(&of) };
    // One that has many also changes routes.
    let Item::Invalidate(told) = item(txn.commit, Change::Invalidate) else { unreachable!() };
    let tells = !all && events.len() > 3;
    txn.told.extend(tells.then_some(Change::Invalidate));
    if tells {
        foreseen.add_invalidation(told);
    }
    turns.begin_play(Lsn(txn.commit), foreseen);
    let event =
        |(n, account): (usize, &u8)| Change::Event { n: (cut + n) as u64, account: *account };
    txn.changes.extend(events.iter().enumerate().map(event));
    txn.changes.extend((all || tells).then_some(Change::Invalidate));
    (txn.play, txn.played, txn.cut) = (Some((!all).then_some(of)), cut, cut);
}

fn play(model: &mut Model, turns: &mut Turns) {
    let Some(at) = model.playing() else {
        assert_eq!(turns.playing(), None);
        return;
    };
    let txn = &mut model.txns[at];
    assert_eq!(turns.playing(), Some(Lsn(txn.commit)));
    if let Some(change) = txn.changes.get(txn.played) {
        turns.play(item(txn.commit, *change));
        txn.played += 1;
    } else {
        txn.ended = true;
        turns.play(Item::Commit { end_lsn: Lsn(txn.commit + 1) });
    }
}

fn item(commit: u64, change: Change) -> Item {
    match change {
        Change::Event { n, account } => event(commit, n, account),
        Change::Invalidate => {
            let xid = u32::try_from(commit).unwrap();
            Item::Invalidate(Invalidation::new(xid, Scope::All))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn turns_hold_exactly_what_a_play_before_it_may_have_events_of(
        actions in prop::collection::vec(action(), 0..120),
    ) {
        let (mut model, mut turns, mut reader) =
            (Model::default(), Turns::new(1 << 20), Reader::default());
        for action in actions {
            let takes = matches!(action, Action::Take);
            act(action, &mut model, &mut turns);
            if takes {
                while !turns.is_empty() {
                    turns.take().into_iter().for_each(|item| reader.read(item));
                }
                prop_assert_eq!(reader.came(), &model.expected());
                let is_held = |(at, txn): (usize, &Txn)| {
                    txn.changes[..txn.live()].iter().any(|c| model.is_held(at, *c))
                };
                let any = model.txns.iter().enumerate().any(is_held);
                prop_assert_eq!(any, turns.held_bytes() > 0);
            }
        }
        if model.live().is_some() {
            act(Action::EndLive, &mut model, &mut turns);
        }
        while model.playing().is_some() {
            act(Action::Play, &mut model, &mut turns);
        }
        while !turns.is_empty() {
            turns.take().into_iter().for_each(|item| reader.read(item));
        }
        prop_assert!(model.txns.iter().all(|txn| txn.ended));
        prop_assert_eq!(reader.came(), &model.expected());
        prop_assert!(reader.came.values().all(|(_, whole)| *whole) && reader.paused.is_empty());
        prop_assert_eq!((turns.held_bytes(), turns.memory_bytes()), (0, 0));
    }
}

#[test]
fn turns_bound_what_they_hold_and_what_a_batch_takes() {
    let mut turns = Turns::new(4_096);
    turns.begin_play(Lsn(10), accounts(&BTreeSet::from([1])));
    let mut commit = 20;
    while turns.wants_live() {
        turns.live(Item::Begin { commit_lsn: Lsn(commit) });
        turns.live(event(commit, 0, 1));
        turns.live(event(commit, 1, 2));
        turns.live(Item::Commit { end_lsn: Lsn(commit + 1) });
        commit += 10;
    }
    assert!((4_096..5_000).contains(&turns.held_bytes()), "{}", turns.held_bytes());
    turns.play(event(10, 0, 1));
    turns.play(Item::Commit { end_lsn: Lsn(11) });
    assert!(turns.wants_live() && turns.held_bytes() == 0);
    for n in 0..1_000 {
        turns.live(Item::Progress { wal_end: Lsn(commit + n) });
    }
    assert!(turns.is_full());
    while !turns.is_empty() {
        let batch = turns.take();
        assert!(batch.len() <= BATCH_ITEMS);
        assert!(batch.iter().map(Item::size_bytes).sum::<usize>() <= BATCH_BYTES + 1_000);
    }
}

#[test]
fn turns_read_nothing_live_behind_a_play_that_may_change_routes() {
    let mut turns = Turns::new(1 << 20);
    turns.begin_play(Lsn(10), Foreseen::anything());
    assert!(!turns.wants_live());
    turns.evict(Invalidation::new(7, Scope::All));
    turns.play(Item::Commit { end_lsn: Lsn(11) });
    assert!(turns.wants_live());
    let items = turns.take();
    assert!(
        matches!(
            items[..],
            [
                Item::Begin { commit_lsn: Lsn(10) },
                Item::Invalidate(_),
                Item::Commit { end_lsn: Lsn(11) }
            ]
        ),
        "{items:?}"
    );
}
