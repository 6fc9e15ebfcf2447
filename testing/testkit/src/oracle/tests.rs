//! The account of a run against what was written and what came.

use super::*;

const MS: Duration = Duration::from_millis(1);
const DELETES: &[Kind] = &[Kind::Deleted];

/// Account 10 has two endpoints, of which the second wants deletes only; account 11 has one.
fn oracle() -> Oracle {
    let second = Endpoint { wants: DELETES, ..Endpoint::new(1010, 10) };
    Oracle::new(&[Endpoint::new(10, 10), second, Endpoint { group: 1, ..Endpoint::new(11, 11) }])
}

fn change(kind: Kind, id: i64, version: i64) -> Change {
    Change { kind, id, version }
}

fn receipt(endpoint: i64, change: Change) -> Receipt<'static> {
    let event_id =
        ["evt_0", "evt_1", "evt_2", "evt_3"][usize::try_from(change.version % 4).unwrap()];
    Receipt { endpoint, event_id, change, body: b"body", taken: true, replay: false }
}

#[test]
fn oracle_expects_a_delivery_for_each_endpoint_that_wants_the_kind() {
    let mut oracle = oracle();
    oracle.committed(10, &[change(Kind::Created, 1, 1)], MS);
    oracle.committed(10, &[change(Kind::Deleted, 1, 1)], MS);
    let tally = oracle.tally(0);
    assert_eq!((tally.committed, tally.expected, tally.waiting()), (2, 3, 3));
    assert_eq!(oracle.missing().count(), 3);
}

#[test]
fn oracle_expects_of_an_endpoint_that_comes_later_what_is_written_since() {
    let mut oracle = oracle();
    let (before, after) = (change(Kind::Created, 1, 1), change(Kind::Created, 2, 2));
    oracle.committed(10, &[before, after], MS);
    oracle.add_endpoint(Endpoint { since: 1, ..Endpoint::new(12, 10) });
    let of_it: Vec<_> = oracle.missing().filter(|(endpoint, _)| *endpoint == 12).collect();
    assert_eq!(of_it, [(12, after)]);
    // It may get the others too.
    oracle.received(receipt(12, before), MS);
    oracle.received(receipt(12, after), MS);
    assert!(oracle.faults().is_empty(), "{:?}", oracle.examples());
}

#[test]
fn oracle_counts_a_repeat_as_duplicate_not_as_delivered() {
    let mut oracle = oracle();
    let created = change(Kind::Created, 1, 1);
    oracle.committed(10, &[created], MS);
    assert_eq!(oracle.received(receipt(10, created), 3 * MS), Entered::First);
    assert_eq!(oracle.received(receipt(10, created), 4 * MS), Entered::Again);
    let tally = oracle.tally(0);
    assert_eq!((tally.delivered, oracle.duplicates(), oracle.taken()), (1, 1, 2));
    assert_eq!(tally.latency(99), Some(2 * MS));
    assert!(oracle.faults().is_empty());
}

#[test]
fn oracle_accepts_an_event_that_overtakes_its_acknowledgement() {
    let mut oracle = oracle();
    let created = change(Kind::Created, 1, 1);
    oracle.received(receipt(10, created), MS);
    assert_eq!(oracle.faults().invented, 1, "until the commit is acknowledged");
    oracle.committed(10, &[created], 2 * MS);
    assert_eq!(oracle.waiting_in_all(), 0);
    assert!(oracle.faults().is_empty());
}

#[test]
fn oracle_finds_an_event_that_was_never_committed_or_is_of_another_row_or_kind() {
    let mut oracle = oracle();
    oracle.received(receipt(10, change(Kind::Created, 7, 7)), MS);
    assert_eq!((oracle.faults().invented, oracle.examples().len()), (1, 1));
    oracle.doubtful(10, &[change(Kind::Created, 7, 7)]);
    assert_eq!(oracle.faults().invented, 0, "nobody knows whether it was committed");
    oracle.committed(10, &[change(Kind::Created, 8, 8)], MS);
    oracle.received(receipt(10, change(Kind::Created, 9, 8)), MS);
    oracle.received(receipt(10, change(Kind::Updated, 8, 8)), MS);
    assert_eq!(oracle.faults().invented, 2);
    // Also where the request came first.
    oracle.received(receipt(10, change(Kind::Created, 5, 12)), MS);
    oracle.committed(10, &[change(Kind::Created, 6, 12)], MS);
    assert_eq!(oracle.faults().invented, 3);
}

#[test]
fn oracle_knows_that_a_crash_gives_the_versions_of_a_lost_transaction_out_again() {
    let (lost, kept) = (change(Kind::Created, 246, 7), change(Kind::Created, 265, 7));
    let mut oracle = oracle();
    oracle.doubtful(11, &[lost]);
    oracle.received(receipt(10, kept), MS);
    oracle.committed(10, &[kept], MS);
    assert!(oracle.faults().is_empty(), "{:?}", oracle.examples());
    // The news of the loss may come last.
    oracle.doubtful(11, &[lost]);
    assert!(oracle.faults().is_empty(), "{:?}", oracle.examples());
    assert_eq!(oracle.changes(), [1, 0, 0]);
    // Both may be in doubt: one of them came.
    let [first, second, other] = [9, 10, 11].map(|id| change(Kind::Created, id, 13));
    oracle.doubtful(10, &[first]);
    oracle.doubtful(11, &[second]);
    oracle.received(receipt(11, second), MS);
    assert!(oracle.faults().is_empty(), "{:?}", oracle.examples());
    oracle.received(receipt(11, other), MS);
    assert_eq!(oracle.faults().invented, 1);
}

#[test]
fn oracle_finds_a_doubtful_change_that_came_to_another_account_or_as_another_row() {
    let mut oracle = oracle();
    oracle.doubtful(10, &[change(Kind::Created, 7, 7)]);
    oracle.received(receipt(11, change(Kind::Created, 7, 7)), MS);
    assert_eq!(oracle.faults().invented, 1);
    oracle.doubtful(10, &[change(Kind::Created, 8, 8)]);
    oracle.received(receipt(10, change(Kind::Created, 9, 8)), MS);
    assert_eq!(oracle.faults().invented, 2);
}

#[test]
fn oracle_finds_a_request_at_an_endpoint_that_did_not_ask_or_of_another_account() {
    let mut oracle = oracle();
    let created = change(Kind::Created, 1, 1);
    oracle.committed(10, &[created], MS);
    oracle.received(receipt(1010, created), 2 * MS);
    assert_eq!(oracle.faults().invented, 1);
    assert_eq!(oracle.missing().collect::<Vec<_>>(), [(10, created)]);
    oracle.received(Receipt { taken: false, ..receipt(11, created) }, 2 * MS);
    oracle.received(receipt(999, created), 2 * MS);
    assert_eq!(oracle.faults().invented, 3, "also where it was refused, or nobody has it");
}

#[test]
fn oracle_finds_a_changed_id_an_id_of_two_changes_and_a_changed_body() {
    let mut oracle = oracle();
    let (one, two) = (change(Kind::Created, 1, 1), change(Kind::Created, 2, 2));
    oracle.committed(10, &[one, two], MS);
    oracle.received(receipt(10, one), 2 * MS);
    oracle.received(Receipt { event_id: "evt_9", ..receipt(10, one) }, 3 * MS);
    assert_eq!(oracle.faults().changed_ids, 1);
    oracle.received(Receipt { event_id: "evt_1", ..receipt(10, two) }, 3 * MS);
    oracle.received(Receipt { event_id: "evt_1", body: b"other", ..receipt(10, two) }, 3 * MS);
    let faults = oracle.faults();
    assert_eq!((faults.changed_ids, faults.changed_bodies), (3, 1));
}

#[test]
fn oracle_finds_a_rows_events_out_of_order_but_not_a_repeat() {
    let mut oracle = oracle();
    let (first, second) = (change(Kind::Created, 1, 1), change(Kind::Updated, 1, 6));
    let last = change(Kind::Deleted, 1, 6);
    oracle.committed(11, &[first, second, last], MS);
    oracle.received(receipt(11, second), 2 * MS);
    oracle.received(Receipt { event_id: "evt_9", ..receipt(11, last) }, 2 * MS);
    oracle.received(receipt(11, second), 2 * MS);
    assert_eq!(oracle.faults().out_of_order, 0);
    oracle.received(receipt(11, first), 2 * MS);
    assert_eq!(oracle.faults().out_of_order, 1);
}

#[test]
fn oracle_counts_what_stands_in_a_table_once_and_what_was_received_as_delivered() {
    let mut oracle = oracle();
    let created = change(Kind::Created, 1, 1);
    oracle.committed(10, &[created], MS);
    assert_eq!(oracle.stored(10, created, Stored::Deferred), None);
    let counts = |oracle: &Oracle| {
        let Tally { dead, deferred, delivered, .. } = oracle.tally(0);
        (dead, deferred, delivered, oracle.waiting_in_all())
    };
    assert_eq!(counts(&oracle), (0, 1, 0, 0));
    assert_eq!(oracle.stored(10, created, Stored::DeadLetter), Some(Stored::Deferred));
    assert_eq!(oracle.stored(10, created, Stored::DeadLetter), Some(Stored::DeadLetter));
    assert_eq!(counts(&oracle), (1, 0, 0, 0));
    assert_eq!(oracle.undelivered().next(), Some((10, created, Some(Stored::DeadLetter))));
    oracle.received(receipt(10, created), 2 * MS);
    assert_eq!(counts(&oracle), (0, 0, 1, 0));
    assert_eq!((oracle.missing().count(), oracle.in_table(Stored::DeadLetter)), (0, 1));
}

#[test]
fn calm_latency_leaves_out_what_the_kill_touched() {
    let mut oracle = oracle();
    let deliver = |n: i64, committed: u32, received: u32, oracle: &mut Oracle| {
        let change = change(Kind::Created, n, n);
        oracle.committed(11, &[change], MS * committed);
        oracle.received(receipt(11, change), MS * received);
    };
    deliver(1, 1, 2, &mut oracle);
    oracle.down(10 * MS);
    deliver(2, 9, 500, &mut oracle);
    oracle.recovered(600 * MS);
    deliver(3, 700, 703, &mut oracle);
    let tally = oracle.tally(1);
    assert_eq!(tally.latency(99), Some(491 * MS));
    assert_eq!(tally.calm_latency(99), Some(3 * MS));
    assert_eq!(tally.calm_latency(50), Some(MS));
}

#[test]
fn oracle_adds_up_accounts_with_an_endpoint_each_also_where_the_event_comes_first() {
    let mut oracle = Oracle::one_each();
    let created = |n| change(Kind::Created, n, n);
    oracle.received(receipt(7, created(1)), 3 * MS);
    oracle.committed(7, &[created(1), created(2), created(3)], MS);
    oracle.received(receipt(7, created(2)), 4 * MS);
    oracle.received(Receipt { replay: true, ..receipt(7, created(1)) }, 9 * MS);
    oracle.received(receipt(7, created(2)), 9 * MS);
    let sums = Sums { committed: 3, expected: 3, delivered: 2, duplicates: 1, replayed: 1 };
    assert_eq!((oracle.sums(1..=9), oracle.sums(8..=9)), (sums, Sums::default()));
    let last = (4 * MS, 9 * MS);
    assert_eq!((oracle.committed_in_all(), oracle.replayed(), oracle.last()), (3, 1, last));
    let mut latencies = oracle.latencies(1..=9, Duration::ZERO, Duration::MAX);
    latencies.sort_unstable();
    assert_eq!(latencies, [2_000, 3_000]);
    assert_eq!(oracle.tally(0).latency(50), Some(2 * MS));
    assert_eq!(oracle.changes(), [3, 0, 0]);
    assert!(oracle.faults().is_empty(), "{:?}", oracle.examples());
    oracle.received(receipt(8, change(Kind::Created, 4, 4)), MS);
    assert_eq!(oracle.faults().invented, 1, "its commit was never acknowledged");
}
