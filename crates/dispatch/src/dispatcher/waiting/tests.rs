//! Against a naive model: a list of all that waits, and a list of who stands in line.

use proptest::prelude::*;

use super::*;
use crate::fixture;
use crate::tracker::Tracker;
use walhook_core::id::ReplayId;
use walhook_core::lsn::Lsn;

/// One that waits: whose, its commit, whether it is the stream's, when the account's first moved last.
#[derive(Debug, Clone, PartialEq)]
struct Modelled {
    account: u8,
    commit: u64,
    stream: bool,
}

#[derive(Debug, Default)]
struct Model {
    waits: Vec<Modelled>,
    /// With when the account's first event moved, and up to which transaction they are overdue.
    accounts: BTreeMap<u8, (Tick, Option<u64>)>,
    line: VecDeque<u8>,
}

impl Model {
    fn of(&self, account: u8) -> impl Iterator<Item = &Modelled> {
        self.waits.iter().filter(move |one| one.account == account)
    }
}

#[derive(Debug, Clone)]
enum Action {
    Push(u8, bool),
    Join(u8),
    /// The first of the line routes so many of its events, and then stands in it again, or not.
    Turn(usize, bool),
    Shelve(u8),
    Overdue(u64),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0u8..4, any::<bool>()).prop_map(|(account, stream)| Action::Push(account, stream)),
        3 => (0u8..4).prop_map(Action::Join),
        4 => (0usize..4, any::<bool>()).prop_map(|(events, again)| Action::Turn(events, again)),
        1 => (0u8..4).prop_map(Action::Shelve),
        1 => (1u64..120).prop_map(Action::Overdue),
    ]
}

fn name(account: u8) -> AccountId {
    AccountId::new(account.to_string())
}

/// The transactions that commit at 1, 2, 3, ...
fn txns() -> Vec<TxnSeq> {
    let mut tracker = Tracker::new(Lsn(0));
    let mut open = |commit| {
        let txn = tracker.open(Lsn(commit), Tick(0));
        tracker.add(txn, 1);
        tracker.close(txn, Lsn(commit));
        txn
    };
    (1..200).map(&mut open).collect()
}

fn parked(account: u8, commit: u64, txn: Option<TxnSeq>) -> Parked {
    let event = fixture::event(&account.to_string(), fixture::position(commit, commit), &[]);
    let one = To::One { endpoint: EndpointId::new("7"), asked: Asked::Replay(ReplayId(1)) };
    let to = txn.map_or(one, To::All);
    Parked::new(Arc::new(SharedEvent::new(Arc::new(event))), to, &Waits::default())
}

fn commit_of(parked: &Parked) -> u64 {
    parked.held.event.position.commit_lsn().0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn waiting_events_stand_in_line_as_a_list_of_them_would(
        actions in prop::collection::vec(action(), 0..120),
    ) {
        let (mut waiting, mut model, txns) = (Waiting::default(), Model::default(), txns());
        let txn_at = |commit: u64| txns[usize::try_from(commit).unwrap() - 1];
        let commit_of_txn = |txn: &TxnSeq| txns.iter().position(|one| one == txn).unwrap() as u64 + 1;
        for (at, action) in (1u64..).zip(actions) {
            let now = Tick(at);
            match action {
                Action::Push(account, stream) => {
                    waiting.push(name(account), parked(account, at, stream.then(|| txn_at(at))), now);
                    model.waits.push(Modelled { account, commit: at, stream });
                    model.accounts.entry(account).or_insert((now, None));
                }
                Action::Join(account) => {
                    waiting.join_line(&name(account), now);
                    if model.accounts.contains_key(&account) && !model.line.contains(&account) {
                        model.line.push_back(account);
                    }
                }
                Action::Turn(events, again) => {
                    prop_assert_eq!(waiting.begin_looks(), model.line.len());
                    let taken = waiting.next_in_line();
                    prop_assert_eq!(&taken, &model.line.pop_front().map(name));
                    let Some(account) = taken else { continue };
                    let no: u8 = account.parse().unwrap();
                    for _ in 0..events {
                        if waiting.first(&account).is_none() {
                            break;
                        }
                        prop_assert_eq!(commit_of(waiting.first_mut(&account, now)), model.of(no).next().unwrap().commit);
                        model.accounts.get_mut(&no).unwrap().0 = now;
                        let first = model.waits.iter().position(|one| one.account == no).unwrap();
                        let gone = model.waits.remove(first);
                        prop_assert_eq!(commit_of(&waiting.take_first(&account)), gone.commit);
                    }
                    if waiting.first(&account).is_none() {
                        waiting.forget(&account);
                        model.accounts.remove(&no);
                    } else if again {
                        waiting.put_back(account, Cause::Turn, now);
                        model.line.push_back(no);
                    } else {
                        waiting.leave_line(&account, now);
                    }
                }
                Action::Shelve(account) => {
                    let taken = waiting.take_stream(&name(account), now);
                    let taken: Vec<u64> = taken.iter().map(|(_, txn)| commit_of_txn(txn)).collect();
                    let expected: Vec<u64> =
                        model.of(account).filter(|one| one.stream).map(|one| one.commit).collect();
                    prop_assert_eq!(taken, expected);
                    model.waits.retain(|one| one.account != account || !one.stream);
                    if model.of(account).next().is_none() && !model.line.contains(&account) {
                        model.accounts.remove(&account);
                    } else if let Some(of_it) = model.accounts.get_mut(&account) {
                        *of_it = (now, None);
                    }
                }
                Action::Overdue(last) => {
                    let since = Tick(at.saturating_sub(5));
                    waiting.note_overdue(txn_at(last), since);
                    for (moved, overdue) in model.accounts.values_mut() {
                        if *moved <= since {
                            *overdue = Some(last);
                        }
                    }
                }
            }
            compare(&waiting, &model)?;
        }
    }
}

fn compare(waiting: &Waiting, model: &Model) -> Result<(), TestCaseError> {
    prop_assert_eq!(waiting.is_empty(), model.accounts.is_empty());
    let mut overdue = Vec::new();
    for account in 0u8..4 {
        let known = model.accounts.get(&account);
        prop_assert_eq!(waiting.has(&name(account)), known.is_some());
        prop_assert_eq!(waiting.is_in_line(&name(account)), model.line.contains(&account));
        let first = waiting.first(&name(account)).map(commit_of);
        prop_assert_eq!(first, model.of(account).next().map(|one| one.commit));
        let first = model.of(account).find(|one| one.stream).map(|one| one.commit);
        let position = waiting.first_position(&name(account));
        prop_assert_eq!(position.map(|at| at.commit_lsn().0), first);
        let one = parked(account, 1, None).held.event.size_bytes();
        prop_assert_eq!(waiting.bytes_of(&name(account)), model.of(account).count() * one);
        let last = known.and_then(|(_, overdue)| *overdue);
        if first.is_some_and(|first| last.is_some_and(|last| first <= last)) {
            overdue.push(name(account));
        }
    }
    prop_assert_eq!(waiting.overdue().cloned().collect::<Vec<_>>(), overdue);
    let moved = Tick(50);
    let stands: Vec<AccountId> =
        waiting.not_moved_since(moved).map(|(_, account)| account.clone()).collect();
    let expected = model.accounts.iter().filter(|(_, (at, _))| *at <= moved);
    prop_assert_eq!(stands, expected.map(|(account, _)| name(*account)).collect::<Vec<_>>());
    Ok(())
}
