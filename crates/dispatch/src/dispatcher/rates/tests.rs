//! Rows whose rate is changed while deliveries wait for it.

use std::sync::Arc;
use std::time::Duration;

use crate::dispatcher::rig::{Rig, settings};
use crate::fixture;
use walhook_core::endpoint::{Endpoint, Routes};
use walhook_core::event::{AccountId, EndpointId, Invalidation, Item, Scope};
use walhook_core::lsn::Lsn;

const SECOND: Duration = Duration::from_secs(1);

/// What the endpoint's row says of its rate; `None`: there is no such row.
type Row = Option<Option<f64>>;

fn look_up(rig: &mut Rig, row: Row) -> bool {
    let Some(look_up) = rig.dispatcher.poll_lookup(rig.now) else { return false };
    let routes = |account: &AccountId| {
        let endpoint = |rate_per_second| {
            Arc::new(Endpoint { rate_per_second, ..fixture::endpoint(account, account) })
        };
        Routes::new(row.map(endpoint).into_iter().collect(), 1.0)
    };
    let answer = look_up.answered(fixture::snapshot(), routes);
    rig.dispatcher.handle_lookup(answer, rig.now);
    true
}

/// Sends all that may be sent, each answered well. How much that was.
fn sent(rig: &mut Rig) -> usize {
    let mut sent = 0;
    loop {
        let dispatches = rig.send();
        if dispatches.is_empty() {
            return sent;
        }
        for dispatch in dispatches {
            rig.answer(dispatch.attempt.first().id, 204);
            sent += 1;
        }
    }
}

/// One delivery was sent, and four wait for the rate of 0.001 a second.
fn resting() -> Rig {
    let mut rig = Rig::new(settings());
    (0..5).for_each(|_| _ = rig.commit_unrouted("7"));
    assert!(look_up(&mut rig, Some(Some(0.001))));
    assert_eq!(sent(&mut rig), 1);
    rig.wait(2 * SECOND);
    assert_eq!(sent(&mut rig), 0);
    rig
}

/// The row is changed, and looked up without another event.
fn change(rig: &mut Rig, scope: Scope, row: Row) {
    rig.dispatcher.handle_item(Item::Invalidate(Invalidation::new(5, scope)), rig.now);
    assert!(look_up(rig, row), "nobody asks for a row that was changed");
}

fn of_endpoint() -> Scope {
    let (endpoints, accounts) = ([EndpointId::new("7")], [AccountId::new("7")]);
    Scope::Endpoint {
        endpoints: endpoints.into_iter().collect(),
        accounts: accounts.into_iter().collect(),
    }
}

#[test]
fn rate_that_is_raised_lets_go_what_waits_for_it() {
    for scope in [of_endpoint(), Scope::All] {
        let mut rig = resting();
        change(&mut rig, scope, Some(Some(1.0)));
        assert_eq!(sent(&mut rig), 1, "the last was sent 2 s ago");
        for _ in 0..3 {
            assert_eq!(sent(&mut rig), 0);
            rig.wait(SECOND);
            assert_eq!(sent(&mut rig), 1);
        }
    }
}

#[test]
fn rate_that_is_taken_away_lets_all_go() {
    let mut rig = resting();
    change(&mut rig, of_endpoint(), Some(None));
    assert_eq!(sent(&mut rig), 4);
}

#[test]
fn rate_that_is_lowered_counts_for_what_waits() {
    let mut rig = resting();
    change(&mut rig, of_endpoint(), Some(Some(0.1)));
    assert_eq!(sent(&mut rig), 0);
    change(&mut rig, of_endpoint(), Some(Some(0.05)));
    rig.wait(8 * SECOND);
    assert_eq!(sent(&mut rig), 0, "10 s after the last one, and the row says 20 s");
    rig.wait(10 * SECOND);
    assert_eq!(sent(&mut rig), 1);
}

#[test]
fn endpoint_that_is_removed_while_it_rests_keeps_nothing_waiting() {
    let mut rig = resting();
    change(&mut rig, of_endpoint(), None);
    assert_eq!(sent(&mut rig), 0);
    rig.store();
    assert_eq!(rig.dispatcher.queued(), 0);
}

/// A table without ids says of each of its rows that everything may have changed.
#[test]
fn change_of_everything_has_what_rests_looked_up_once_for_each_transaction() {
    let mut rig = resting();
    for (xid, commit) in [(5, 90_000), (6, 91_000)] {
        let change = || Item::Invalidate(Invalidation::new(xid, Scope::All));
        let asked = |rig: &mut Rig| {
            let look_up = rig.dispatcher.poll_lookup(rig.now);
            let asked = look_up.as_ref().map_or(0, |look_up| look_up.accounts.len());
            let routes = |account: &AccountId| {
                let row = Endpoint { rate_per_second: Some(0.001), ..fixture::endpoint("7", "7") };
                assert_eq!(account.as_str(), "7");
                Routes::new(vec![Arc::new(row)], 1.0)
            };
            if let Some(look_up) = look_up {
                let answer = look_up.answered(fixture::snapshot(), routes);
                rig.dispatcher.handle_lookup(answer, rig.now);
            }
            asked
        };
        rig.dispatcher.handle_item(Item::Begin { commit_lsn: Lsn(commit) }, rig.now);
        rig.dispatcher.handle_item(change(), rig.now);
        assert_eq!(asked(&mut rig), 1);
        rig.dispatcher.handle_item(change(), rig.now);
        assert_eq!(asked(&mut rig), 0, "a look-up has seen the transaction");
        rig.dispatcher.handle_item(Item::Commit { end_lsn: Lsn(commit + 10) }, rig.now);
    }
}
