use smallvec::smallvec;

use super::*;

const BEFORE: Lsn = Lsn(5);
const AT: Lsn = Lsn(10);

fn id(id: &str) -> EndpointId {
    EndpointId::new(id)
}

/// The row of `endpoint` is inserted, or switched on.
fn joins(endpoint: &str) -> Invalidation {
    Invalidation { joined: smallvec![id(endpoint)], ..changes(endpoint) }
}

/// The row of `endpoint` is removed, or changed otherwise.
fn changes(endpoint: &str) -> Invalidation {
    let scope = Scope::Endpoint { endpoints: smallvec![id(endpoint)], accounts: smallvec![] };
    Invalidation::new(3, scope)
}

fn joiners(seen: &[(Invalidation, Lsn)]) -> Joiners {
    let mut joiners = Joiners::default();
    for (invalidation, at) in seen {
        joiners.see(invalidation, *at, true);
    }
    joiners
}

#[test]
fn new_endpoint_gets_nothing_from_before() {
    let joiners = joiners(&[(joins("a"), AT)]);
    assert!(joiners.keeps_out(&id("a"), BEFORE));
    assert!(!joiners.keeps_out(&id("a"), AT), "of its own transaction it does");
    assert!(!joiners.keeps_out(&id("b"), BEFORE));
}

/// Failed once: what waited was sent to nobody.
#[test]
fn endpoint_whose_row_comes_back_with_the_transaction_that_removed_it_is_not_new() {
    let truncated = Invalidation::new(3, Scope::All);
    for removed in [truncated, changes("a")] {
        let joiners = joiners(&[(removed, AT), (joins("a"), AT)]);
        assert!(!joiners.keeps_out(&id("a"), BEFORE));
    }
}

#[test]
fn what_another_transaction_or_row_did_before_says_nothing_of_an_endpoint() {
    let joiners = joiners(&[
        (Invalidation::new(2, Scope::All), BEFORE),
        (changes("b"), AT),
        (joins("a"), AT),
        // Once it is new in a transaction, what that does further changes nothing.
        (changes("a"), AT),
        (joins("a"), AT),
    ]);
    assert!(joiners.keeps_out(&id("a"), BEFORE));
}

#[test]
fn transaction_is_known_again_when_it_goes_on_behind_others() {
    let other = Lsn(11);
    let joiners = joiners(&[(changes("a"), AT), (joins("b"), other), (joins("a"), AT)]);
    assert!(!joiners.keeps_out(&id("a"), BEFORE));
    assert!(joiners.keeps_out(&id("b"), BEFORE));
}

#[test]
fn nothing_is_remembered_of_who_joins_while_nothing_waits_but_of_what_was_removed_is() {
    let mut joiners = Joiners::default();
    joiners.see(&joins("a"), AT, false);
    joiners.see(&changes("b"), AT, false);
    joiners.see(&joins("b"), AT, true);
    assert!(!joiners.keeps_out(&id("a"), BEFORE) && !joiners.keeps_out(&id("b"), BEFORE));
}

#[test]
fn very_many_changes_of_one_transaction_are_remembered_as_one_of_any() {
    let mut joiners = Joiners::default();
    for n in 0..=JOINED_MAX {
        joiners.see(&changes(&n.to_string()), AT, true);
    }
    let held: usize = joiners.changed.iter().map(|(_, changed)| changed.endpoints.len()).sum();
    assert_eq!(held, 0);
    joiners.see(&joins("a"), AT, true);
    assert!(!joiners.keeps_out(&id("a"), BEFORE));
    for at in 100..200 {
        joiners.see(&changes("a"), Lsn(at), true);
    }
    assert!(joiners.changed.len() <= CHANGED_MAX);
}
