//! Against a naive model: a list of all transactions, each with all its deliveries.

use proptest::prelude::*;

use super::*;
use crate::fixture;
use walhook_core::position::{Position, WalPosition};

#[derive(Debug, Clone)]
enum Action {
    /// A transaction of so many events, each for one of three endpoints.
    Txn(Vec<u8>),
    /// One of those that are left ends: now, or with the batch that is handed out next.
    Settle(usize, bool),
    HandOut,
    Stored,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => prop::collection::vec(0u8..3, 0..4).prop_map(Action::Txn),
        5 => (any::<usize>(), any::<bool>()).prop_map(|(at, now)| Action::Settle(at, now)),
        2 => Just(Action::HandOut),
        2 => Just(Action::Stored),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Left,
    /// It ends when the batch that is handed out next is stored, or is under way.
    WithBatch,
    Settled,
}

#[derive(Debug)]
struct Delivery {
    event: Event,
    queue: QueueId,
    ordinal: u64,
    txn: TxnSeq,
    fate: Fate,
    /// That it ended is in a batch that was handed out.
    told: bool,
}

#[derive(Debug)]
struct Txn {
    commit: u64,
    opened: Tick,
    deliveries: Vec<Delivery>,
}

fn end(txn: &Txn) -> Lsn {
    Lsn(txn.commit + 10)
}

/// All before this is settled.
fn frontier(txns: &[Txn]) -> Lsn {
    let is_settled = |txn: &&Txn| txn.deliveries.iter().all(|one| one.fate == Fate::Settled);
    txns.iter().take_while(is_settled).last().map_or(Lsn(50), end)
}

fn begin(progress: &mut Progress, at: u64, endpoints: &[u8], ordinals: &mut [u64; 3]) -> Txn {
    let (commit, opened) = (100 * at, Tick(at));
    progress.begin(Lsn(commit), opened);
    let txn = progress.reading();
    let deliver = |(n, endpoint): (u64, &u8)| {
        progress.add(txn);
        let event = fixture::event("7", fixture::position(commit, commit - 50 + n), &[]);
        let ordinal = &mut ordinals[usize::from(*endpoint)];
        *ordinal += 1;
        let endpoint = EndpointId::new(endpoint.to_string());
        let queue = QueueId { account: event.account.clone(), endpoint };
        Delivery { event, queue, ordinal: *ordinal, txn, fate: Fate::Left, told: false }
    };
    let deliveries = (0..).zip(endpoints).map(deliver).collect();
    progress.commit(Lsn(commit + 10));
    Txn { commit, opened, deliveries }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn progress_is_what_a_list_of_all_deliveries_says_also_after_a_crash(
        actions in prop::collection::vec(action(), 0..80),
    ) {
        let mut progress = Progress::new(Lsn(50), &[]);
        let (mut txns, mut ordinals, mut told) = (Vec::<Txn>::new(), [0; 3], Vec::new());
        let mut under_way: Option<(Lsn, Vec<TxnSeq>)> = None;
        let mut stored = (Lsn(50), 0);
        for (at, action) in (1u64..).zip(actions) {
            match action {
                Action::Txn(endpoints) => {
                    txns.push(begin(&mut progress, at, &endpoints, &mut ordinals));
                }
                Action::Settle(which, now) => {
                    let all = txns.iter_mut().flat_map(|txn| &mut txn.deliveries);
                    let mut left: Vec<_> = all.filter(|one| one.fate == Fate::Left).collect();
                    if left.is_empty() {
                        continue;
                    }
                    let which = which % left.len();
                    let one = &mut left[which];
                    if now {
                        progress.settle(&one.queue, one.ordinal, &one.event, one.txn);
                        one.fate = Fate::Settled;
                    } else if under_way.is_none() {
                        progress.settle_with_batch(&one.queue, one.ordinal, &one.event, one.txn);
                        one.fate = Fate::WithBatch;
                    }
                }
                Action::HandOut if under_way.is_none() => {
                    told.extend(progress.hand_out());
                    let mut waits = Vec::new();
                    for one in txns.iter_mut().flat_map(|txn| &mut txn.deliveries) {
                        waits.extend((one.fate == Fate::WithBatch).then_some(one.txn));
                        one.told |= one.fate != Fate::Left;
                    }
                    under_way = Some((progress.frontier(), waits));
                }
                Action::Stored => {
                    let Some((frontier, waits)) = under_way.take() else { continue };
                    waits.into_iter().for_each(|txn| progress.complete(txn));
                    progress.handle_stored(frontier);
                    for one in txns.iter_mut().flat_map(|txn| &mut txn.deliveries) {
                        if one.fate == Fate::WithBatch && one.told {
                            one.fate = Fate::Settled;
                        }
                    }
                    stored = (frontier, told.len());
                }
                Action::HandOut => {}
            }
            prop_assert_eq!(progress.frontier(), frontier(&txns));
            let unsettled = txns.iter().find(|txn| end(txn) > frontier(&txns));
            prop_assert_eq!(progress.oldest_unsettled(), unsettled.map(|txn| txn.opened));
            prop_assert_eq!(progress.received(), txns.last().map_or(Lsn(50), end));
            prop_assert!(progress.reading_or_between().is_none() && progress.is_caught_up());
        }
        crashed(&txns, stored, &told, under_way.is_some())?;
    }
}

/// The next leader begins with what was stored, and knows which deliveries ended.
fn crashed(
    txns: &[Txn],
    (frontier, ranges): (Lsn, usize),
    told: &[SettledRange],
    in_doubt: bool,
) -> Result<(), TestCaseError> {
    let ranges = &told[..ranges];
    let mut next = Progress::new(frontier, ranges);
    prop_assert_eq!(
        next.is_caught_up(),
        ranges.is_empty() || last_commit_lsn(ranges) < Some(frontier)
    );
    let again = txns.iter().filter(|txn| Lsn(txn.commit) >= frontier);
    for one in again.clone().flat_map(|txn| &txn.deliveries).filter(|_| !in_doubt) {
        prop_assert_eq!(next.was_settled(&one.event, &one.queue.endpoint), one.told, "{:?}", one);
    }
    for txn in again {
        prop_assert!(
            next.may_be_known(Lsn(txn.commit))
                || ranges.is_empty()
                || Some(Lsn(txn.commit)) > last_commit_lsn(ranges)
        );
        next.begin(Lsn(txn.commit), Tick(1));
        next.commit(end(txn));
    }
    prop_assert!(next.is_caught_up(), "all has been read that the one before had settled");
    // What the checkpoint has passed is known no more.
    next.handle_stored(Lsn(u64::MAX));
    prop_assert!(next.settled_of(&AccountId::new("7")).is_empty());
    Ok(())
}

#[test]
#[should_panic(expected = "an event outside of a transaction")]
fn event_between_two_transactions_is_refused() {
    let mut progress = Progress::new(Lsn(50), &[]);
    progress.begin(Lsn(100), Tick(1));
    progress.commit(Lsn(110));
    progress.reading();
}

#[test]
fn progress_stays_before_a_transaction_that_is_paused_and_knows_which_one_it_reads() {
    let key = |commit| {
        let commit_lsn = Lsn(commit);
        let at = WalPosition { commit_lsn, change_lsn: Lsn(1), relation: 1, n: 0 };
        EventKey::before_all_at(Position::Wal(at))
    };
    let (account, endpoint) = (AccountId::new("a"), EndpointId::new("e"));
    let settled = SettledRange { account, endpoint, from: key(200), to: key(200) };
    let mut progress = Progress::new(Lsn(50), &[settled]);
    progress.begin(Lsn(100), Tick(1));
    progress.pause();
    progress.begin(Lsn(200), Tick(2));
    assert_eq!(progress.place(), Lsn(200));
    progress.commit(Lsn(210));
    progress.pass(Lsn(300));
    assert_eq!((progress.frontier(), progress.place()), (Lsn(50), Lsn(300)));
    assert!(!progress.is_caught_up(), "an earlier leader may have sent what is still to come");
    progress.resume(Lsn(100));
    assert_eq!(progress.place(), Lsn(100));
    progress.commit(Lsn(110));
    assert!(progress.is_caught_up());
    assert_eq!(progress.frontier(), Lsn(300));
}

#[test]
#[should_panic(expected = "progress to 0/C8 inside the transaction that commits at 0/64")]
fn progress_inside_a_transaction_that_is_read_is_refused() {
    let mut progress = Progress::new(Lsn(50), &[]);
    progress.begin(Lsn(100), Tick(1));
    progress.pass(Lsn(200));
}

#[test]
#[should_panic(expected = "was not paused")]
fn transaction_that_was_not_paused_does_not_go_on() {
    let mut progress = Progress::new(Lsn(50), &[]);
    progress.begin(Lsn(100), Tick(1));
    progress.commit(Lsn(110));
    progress.resume(Lsn(100));
}
