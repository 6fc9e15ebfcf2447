//! The account of a run against what was written and what came.

use super::*;
use crate::demo::plan;

const MS: Duration = Duration::from_millis(1);
const SMALL: i64 = 10; // has a second endpoint, 1010, that wants deletes only

fn ledger() -> Ledger {
    Ledger::new(&plan::endpoints(&plan::accounts()))
}

fn change(kind: Kind, id: i64, version: i64) -> Change {
    Change { kind, id, version }
}

fn receipt(endpoint: i64, change: Change) -> Receipt<'static> {
    Receipt { endpoint, event_id: "evt_1", change }
}

#[test]
fn ledger_expects_a_delivery_for_each_endpoint_that_wants_the_kind() {
    let mut ledger = ledger();
    ledger.handle_committed(SMALL, &[change(Kind::Created, 1, 1)], MS);
    ledger.handle_committed(SMALL, &[change(Kind::Deleted, 1, 1)], MS);
    let tally = ledger.tally(Class::Small);
    assert_eq!((tally.committed, tally.expected, tally.waiting()), (2, 3, 3));
}

#[test]
fn ledger_counts_a_repeat_as_duplicate_not_as_delivered() {
    let mut ledger = ledger();
    let created = change(Kind::Created, 1, 1);
    ledger.handle_committed(SMALL, &[created], MS);
    ledger.handle_received(receipt(SMALL, created), 3 * MS);
    ledger.handle_received(receipt(SMALL, created), 4 * MS);
    let tally = ledger.tally(Class::Small);
    assert_eq!((tally.delivered, ledger.duplicates(), ledger.verified()), (1, 1, 2));
    assert_eq!(tally.latency(99), Some(2 * MS));
    assert!(ledger.violations().is_empty());
}

#[test]
fn ledger_accepts_an_event_that_overtakes_its_acknowledgement() {
    let mut ledger = ledger();
    let created = change(Kind::Created, 1, 1);
    ledger.handle_received(receipt(SMALL, created), MS);
    assert_eq!(ledger.violations().invented, 1, "until the commit is acknowledged");
    ledger.handle_committed(SMALL, &[created], 2 * MS);
    assert_eq!(ledger.waiting_in_all(), 0);
    assert!(ledger.violations().is_empty());
}

#[test]
fn ledger_finds_an_event_that_was_never_committed() {
    let mut ledger = ledger();
    ledger.handle_received(receipt(SMALL, change(Kind::Created, 7, 7)), MS);
    assert_eq!(ledger.violations().invented, 1);
    ledger.handle_doubtful(&[change(Kind::Created, 7, 7)]);
    assert_eq!(ledger.violations().invented, 0, "nobody knows whether it was committed");
}

#[test]
fn ledger_finds_a_delivery_to_an_endpoint_that_did_not_ask() {
    let mut ledger = ledger();
    let created = change(Kind::Created, 1, 1);
    ledger.handle_committed(SMALL, &[created], MS);
    ledger.handle_received(receipt(1010, created), 2 * MS);
    assert_eq!(ledger.violations().invented, 1);
    assert_eq!(ledger.missing(9), [(SMALL, created)]);
}

#[test]
fn ledger_finds_a_changed_id() {
    let mut ledger = ledger();
    let created = change(Kind::Created, 1, 1);
    ledger.handle_committed(SMALL, &[created], MS);
    ledger.handle_received(receipt(SMALL, created), 2 * MS);
    let other = Receipt { event_id: "evt_2", ..receipt(SMALL, created) };
    ledger.handle_received(other, 3 * MS);
    assert_eq!(ledger.violations().changed_ids, 1);
}

#[test]
fn ledger_finds_a_rows_events_out_of_order_but_not_a_repeat() {
    let mut ledger = ledger();
    let (first, second) = (change(Kind::Created, 1, 1), change(Kind::Updated, 1, 5));
    let last = change(Kind::Deleted, 1, 5);
    ledger.handle_committed(11, &[first, second, last], MS);
    let ids = |change, event_id| Receipt { endpoint: 11, event_id, change };
    ledger.handle_received(ids(second, "evt_2"), 2 * MS);
    ledger.handle_received(ids(last, "evt_3"), 2 * MS);
    ledger.handle_received(ids(second, "evt_2"), 2 * MS);
    assert_eq!(ledger.violations().out_of_order, 0);
    ledger.handle_received(ids(first, "evt_1"), 2 * MS);
    assert_eq!(ledger.violations().out_of_order, 1);
}

#[test]
fn ledger_counts_a_dead_letter_once_and_a_received_one_as_delivered() {
    let mut ledger = ledger();
    let created = change(Kind::Created, 1, 1);
    ledger.handle_committed(SMALL, &[created], MS);
    ledger.handle_dead_letter(SMALL, created);
    ledger.handle_dead_letter(SMALL, created);
    assert_eq!((ledger.tally(Class::Small).dead, ledger.waiting_in_all()), (1, 0));
    ledger.handle_deferred(SMALL, created);
    assert_eq!(ledger.tally(Class::Small).deferred, 0, "it was moved meanwhile");
    ledger.handle_received(receipt(SMALL, created), 2 * MS);
    let tally = ledger.tally(Class::Small);
    assert_eq!((tally.dead, tally.delivered, tally.waiting()), (0, 1, 0));
}

#[test]
fn calm_latency_leaves_out_what_the_kill_touched() {
    let mut ledger = ledger();
    let changes: Vec<_> = (1..=3).map(|n| change(Kind::Created, n, n)).collect();
    let deliver = |n: usize, committed: u32, received: u32, ledger: &mut Ledger| {
        ledger.handle_committed(11, &changes[n..=n], MS * committed);
        ledger.handle_received(receipt(11, changes[n]), MS * received);
    };
    deliver(0, 1, 2, &mut ledger);
    ledger.handle_down(10 * MS);
    deliver(1, 9, 500, &mut ledger);
    ledger.handle_recovered(600 * MS);
    deliver(2, 700, 703, &mut ledger);
    let tally = ledger.tally(Class::Small);
    assert_eq!(tally.latency(99), Some(491 * MS));
    assert_eq!(tally.calm_latency(99), Some(3 * MS));
    assert_eq!(tally.calm_latency(50), Some(MS));
}

#[test]
fn percentile_is_the_nearest_rank() {
    let hundred: Vec<u32> = (1..=100).rev().collect();
    let us = |percent| percentile(&hundred, percent).map(|d| d.as_micros());
    assert_eq!((us(50), us(99), us(100)), (Some(50), Some(99), Some(100)));
    assert_eq!(percentile(&[], 99), None);
}
