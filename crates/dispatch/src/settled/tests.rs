//! Ranges against the set of what was really settled.

use std::collections::BTreeSet;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use walhook_core::position::{Position, WalPosition};
use walhook_core::settled::{DecodeError, decode, encode, last_commit_lsn};

use super::*;
use crate::fixture;
use crate::tracker::Tracker;
use walhook_core::tick::Tick;

const TYPES: [&str; 2] = ["row.added", "row.changed"];

fn key(commit: u64, change: u64, event_type: &str) -> EventKey {
    EventKey { position: fixture::position(commit, change), event_type: event_type.into() }
}

fn event(account: &str, key: &EventKey) -> Event {
    Event { event_type: key.event_type.clone(), ..fixture::event(account, key.position, &[]) }
}

fn range(endpoint: &str, from: EventKey, to: EventKey) -> SettledRange {
    SettledRange { account: AccountId::new("a"), endpoint: EndpointId::new(endpoint), from, to }
}

/// What one change makes: the account it belongs to, and for each type the endpoints that want it.
type ChangePlan = (u8, [[bool; 3]; 2]);

fn changes() -> impl Strategy<Value = Vec<Vec<ChangePlan>>> {
    let change = (0u8..2, any::<[[bool; 3]; 2]>());
    prop::collection::vec(prop::collection::vec(change, 0..5), 1..12)
}

struct Routed {
    account: AccountId,
    endpoint: EndpointId,
    ordinal: u64,
    key: EventKey,
    txn: TxnSeq,
}

/// Routes all transactions, as the dispatcher does: ordinals per account and endpoint.
fn route(transactions: &[Vec<ChangePlan>], tracker: &mut Tracker) -> Vec<Routed> {
    let mut routed = vec![];
    let mut ordinals: BTreeMap<(AccountId, EndpointId), u64> = BTreeMap::new();
    for (at, changes) in transactions.iter().enumerate() {
        let commit = 100 * (at as u64 + 1);
        let txn = tracker.open(Lsn(commit), Tick(0));
        for (n, (account, wanted)) in changes.iter().enumerate() {
            for (event_type, endpoints) in TYPES.iter().zip(wanted) {
                let wanting = (0..3).filter(|endpoint| endpoints[*endpoint]);
                for endpoint in wanting {
                    let account = AccountId::new(format!("a{account}"));
                    let endpoint = EndpointId::new(format!("e{endpoint}"));
                    let ordinal = ordinals.entry((account.clone(), endpoint.clone())).or_default();
                    *ordinal += 1;
                    tracker.add(txn, 1);
                    let key = key(commit, commit - 50 + n as u64, event_type);
                    routed.push(Routed { account, endpoint, ordinal: *ordinal, key, txn });
                }
            }
        }
        tracker.close(txn, Lsn(commit + 10));
    }
    routed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn recovered_contains_exactly_what_was_settled_ahead_of_the_frontier(
        transactions in changes(),
        seed: u64,
        settle_share in 0usize..=100,
        batch_sizes in prop::collection::vec(1usize..8, 1..20),
    ) {
        let mut tracker = Tracker::new(Lsn(0));
        let routed = route(&transactions, &mut tracker);
        let mut completions: Vec<usize> = (0..routed.len()).collect();
        completions.shuffle(&mut SmallRng::seed_from_u64(seed));
        completions.truncate(routed.len() * settle_share / 100);

        // Complete in random order, persist in random batches, each through the stored form.
        let (mut ahead, mut stored, mut settled) = (Ahead::new(), vec![], BTreeSet::new());
        let mut batch_sizes = batch_sizes.iter().cycle();
        let mut left_in_batch = *batch_sizes.next().unwrap();
        for done in completions {
            let Routed { account, endpoint, ordinal, key, txn } = &routed[done];
            ahead.push(account, endpoint, *ordinal, &event(account, key), *txn);
            settled.insert((account.clone(), endpoint.clone(), key.clone()));
            tracker.complete(*txn);
            left_in_batch -= 1;
            if left_in_batch == 0 {
                left_in_batch = *batch_sizes.next().unwrap();
                let ranges = ahead.take(|txn| tracker.is_passed(txn));
                prop_assert!(ahead.is_empty());
                stored.extend(decode(&encode(&ranges)).unwrap());
            }
        }
        stored.extend(ahead.take(|txn| tracker.is_passed(txn)));

        let frontier = tracker.frontier();
        let mut recovered = Recovered::from_ranges(stored);
        for pruned in [false, true] {
            if pruned {
                recovered.prune(frontier);
            }
            for Routed { account, endpoint, key, txn, .. } in &routed {
                if tracker.is_passed(*txn) {
                    continue;
                }
                let expected = settled.contains(&(account.clone(), endpoint.clone(), key.clone()));
                prop_assert_eq!(recovered.contains(account, endpoint, key), expected);
            }
        }
        recovered.prune(Lsn(u64::MAX));
        prop_assert!(recovered.is_empty() && recovered.ranges.is_empty());
    }

    #[test]
    fn recovered_agrees_with_a_scan_of_overlapping_ranges_while_it_is_pruned(
        ends in prop::collection::vec((0u8..2, 0u64..30, 0u64..6), 0..20),
        frontiers in prop::collection::vec(0u64..40, 0..6),
    ) {
        let end = |at: u64| key(at / 3, at % 3, TYPES[0]);
        let ranges: Vec<SettledRange> = ends
            .iter()
            .map(|(endpoint, from, length)| {
                range(&endpoint.to_string(), end(*from), end(from + length))
            })
            .collect();
        let mut recovered = Recovered::from_ranges(ranges.clone());
        let mut passed = Lsn(0);
        for frontier in std::iter::once(0).chain(frontiers) {
            recovered.prune(Lsn(frontier));
            passed = passed.max(Lsn(frontier));
            for endpoint in ["0", "1"] {
                for key in (0..40).map(end).filter(|key| key.position.commit_lsn() >= passed) {
                    let expected = ranges
                        .iter()
                        .any(|r| &*r.endpoint == endpoint && r.from <= key && key <= r.to);
                    prop_assert_eq!(recovered.contains("a", endpoint, &key), expected);
                    prop_assert!(!recovered.contains("b", endpoint, &key));
                }
            }
        }
    }

    #[test]
    fn settled_ranges_round_trip_through_their_record(
        ranges in prop::collection::vec(
            ((".{0,5}", ".{0,5}"), any_key(), any_key()).prop_map(|((account, endpoint), a, b)| {
                SettledRange {
                    account: AccountId::new(account),
                    endpoint: EndpointId::new(endpoint),
                    from: a.clone().min(b.clone()),
                    to: a.max(b),
                }
            }),
            0..20,
        ),
        cut in any::<prop::sample::Index>(),
    ) {
        let record = encode(&ranges);
        prop_assert_eq!(decode(&record), Ok(ranges));
        prop_assert_eq!(decode(&record[..cut.index(record.len())]), Err(DecodeError::Truncated));
        let longer = [record, vec![0]].concat();
        prop_assert_eq!(decode(&longer), Err(DecodeError::Leftover(1)));
    }

    #[test]
    fn decode_answers_arbitrary_bytes_with_an_error_or_ranges_that_encode(
        bytes in prop::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..80),
        versioned: bool,
    ) {
        let bytes = if versioned { [vec![1], bytes].concat() } else { bytes };
        if let Ok(ranges) = decode(&bytes) {
            prop_assert_eq!(decode(&encode(&ranges)), Ok(ranges));
        }
    }
}

fn any_key() -> impl Strategy<Value = EventKey> {
    (any::<[u64; 2]>(), any::<[u32; 2]>(), ".{0,5}").prop_map(|(lsns, numbers, event_type)| {
        let [commit_lsn, change_lsn] = lsns.map(Lsn);
        let [relation, n] = numbers;
        let wal = WalPosition { commit_lsn, change_lsn, relation, n };
        EventKey { position: Position::Wal(wal), event_type: event_type.into() }
    })
}

#[test]
fn ahead_merges_consecutive_deliveries_across_transactions_into_one_range() {
    let mut tracker = Tracker::new(Lsn(0));
    let held = tracker.open(Lsn(1), Tick(0));
    tracker.add(held, 1);
    tracker.close(held, Lsn(2));
    let (account, endpoint) = (AccountId::new("a"), EndpointId::new("e"));
    let mut ahead = Ahead::new();
    let keys: Vec<EventKey> = (1..=100).map(|n| key(10 * n, 10 * n - 1, TYPES[0])).collect();
    for (ordinal, key) in (1..).zip(&keys) {
        let txn = tracker.open(key.position.commit_lsn(), Tick(0));
        tracker.close(txn, Lsn(key.position.commit_lsn().0 + 1));
        ahead.push(&account, &endpoint, ordinal, &event("a", key), txn);
    }
    assert_eq!(ahead.len(), 100);
    let ranges = ahead.take(|txn| tracker.is_passed(txn));
    assert_eq!(ranges, [range("e", keys[0].clone(), keys[99].clone())]);
    assert_eq!(last_commit_lsn(&ranges), Some(Lsn(1000)));
    let bytes = encode(&ranges).len();
    assert!(bytes < 40, "a range takes {bytes} bytes");
}

#[test]
fn ahead_ends_a_range_where_the_stream_is_read_again() {
    let mut tracker = Tracker::new(Lsn(0));
    let txn = tracker.open(Lsn(1), Tick(0));
    let (account, endpoint) = (AccountId::new("a"), EndpointId::new("e"));
    let (early, late) = (key(5, 4, TYPES[0]), key(9, 8, TYPES[0]));
    let mut ahead = Ahead::new();
    ahead.push(&account, &endpoint, 1, &event("a", &late), txn);
    ahead.push(&account, &endpoint, 2, &event("a", &early), txn);
    let ranges = ahead.take(|_| false);
    assert_eq!(ranges, [range("e", late.clone(), late), range("e", early.clone(), early)]);
    assert_eq!(ahead.take(|_| false), []);
}

#[test]
fn recovered_keeps_what_the_frontier_only_reaches() {
    let at = key(5, 4, TYPES[0]);
    let mut recovered = Recovered::from_ranges([range("e", at.clone(), at.clone())]);
    recovered.prune(Lsn(5));
    assert!(recovered.contains("a", "e", &at));
    recovered.prune(Lsn(6));
    assert!(!recovered.contains("a", "e", &at) && recovered.is_empty());
}
