//! Endpoints that fail, as the log and the table are told of them.

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::super::failures::KNOWN_MIN;
use super::*;
use crate::dispatcher::Start;
use crate::dispatcher::rig::{Rig, settings};
use crate::fixture;
use walhook_core::event::{Invalidation, Item};
use walhook_core::lsn::Lsn;
use walhook_core::persist::EndpointError;
use walhook_core::position::Position;

fn queue_of(rig: &mut Rig, name: &str) -> QueueNo {
    rig.dispatcher.queues.intern(&AccountId::new(name), &EndpointId::new(name))
}

fn told(rig: &mut Rig) -> Vec<(EndpointChange, String)> {
    rig.changes().into_iter().map(|changed| (changed.change, changed.detail)).collect()
}

fn one(rig: &mut Rig, status: u16) {
    rig.commit("7");
    let sent = rig.send();
    assert!(!sent.is_empty());
    sent.iter().for_each(|dispatch| rig.answer(dispatch.attempt.first().id, status));
}

#[test]
fn first_failure_of_an_endpoint_is_told_and_stored_at_once_and_the_next_ones_are_not() {
    let mut rig = Rig::new(settings());
    one(&mut rig, 503);
    let first = told(&mut rig);
    assert!(matches!(&first[..], [(EndpointChange::Failing, d)] if d.contains("status 503")));
    rig.store();
    let errors: Vec<_> = rig.stored.iter().flat_map(|batch| &batch.errors).collect();
    assert_eq!((errors.len(), errors[0].failed, &*errors[0].error), (1, 1, "status 503"));
    // A minute of failures is one row more, and no line.
    for _ in 0..600 {
        rig.wait(Duration::from_millis(100));
        let queue = queue_of(&mut rig, "7");
        rig.dispatcher.begin_failing(
            queue,
            EventId::derive(1, &Position::FIRST, "t", 0),
            "timeout: x",
            false,
            rig.now,
        );
    }
    rig.store();
    let errors: Vec<_> = rig.stored.iter().flat_map(|batch| &batch.errors).collect();
    assert_eq!((errors.len(), errors[1].failed), (2, 601));
    assert_eq!(errors[1].error, "timeout: x");
    assert!(told(&mut rig).is_empty());
}

#[test]
fn recovery_is_told_with_what_failed_and_the_row_goes() {
    let mut rig = Rig::new(settings());
    one(&mut rig, 500);
    rig.store();
    rig.wait(Duration::from_secs(100));
    one(&mut rig, 200);
    let changes = told(&mut rig);
    let (last, detail) = changes.last().unwrap();
    assert_eq!(*last, EndpointChange::Recovered);
    assert!(detail.contains("in which 1 requests failed") && detail.contains("1m 40s"), "{detail}");
    rig.store();
    let gone = rig.stored.iter().flat_map(|batch| &batch.errors_gone).count();
    assert_eq!((gone, rig.dispatcher.endpoints.failing.len()), (1, 0));
}

#[test]
fn endpoint_that_fails_every_other_time_is_told_of_now_and_then() {
    let mut rig = Rig::new(settings());
    let queue = queue_of(&mut rig, "7");
    let event = EventId::derive(1, &Position::FIRST, "t", 0);
    for _ in 0..300 {
        rig.wait(Duration::from_millis(50));
        rig.dispatcher.begin_failing(queue, event, "status 500", false, rig.now);
        rig.wait(Duration::from_millis(50));
        rig.dispatcher.end_failing(queue, rig.now);
        rig.store();
    }
    let lines = told(&mut rig).len();
    let rows: usize = rig.stored.iter().map(|b| b.errors.len() + b.errors_gone.len()).sum();
    // Ten seconds apart, while the rig's time went on for a minute or more.
    let most = 2 * usize::try_from(rig.now.0 / 10_000_000).unwrap();
    assert!(lines <= most && rows <= most, "{lines} lines, {rows} rows, at most {most}");
    assert!(lines >= 2);
}

#[test]
fn failures_of_very_many_endpoints_are_known_up_to_a_bound() {
    let mut rig = Rig::new(super::super::Settings { memory_limit: 1 << 20, ..settings() });
    let event = EventId::derive(1, &Position::FIRST, "t", 0);
    for n in 0..3_000 {
        let id = n.to_string();
        let queue = queue_of(&mut rig, &id);
        rig.dispatcher.begin_failing(queue, event, &"x".repeat(2_000), false, rig.now);
    }
    assert_eq!(rig.dispatcher.endpoints.failing.len(), KNOWN_MIN);
    let line = &told(&mut rig)[0].1;
    assert!(line.len() < 400, "{line}");
}

/// A change of endpoint 7's row, which names the account that has it now.
fn change(rig: &mut Rig, scope: Scope) {
    rig.dispatcher.handle_item(Item::Invalidate(Invalidation::new(5, scope)), rig.now);
}

fn of_row() -> Scope {
    let (endpoints, accounts) = ([EndpointId::new("7")], [AccountId::new("9")]);
    Scope::Endpoint {
        endpoints: endpoints.into_iter().collect(),
        accounts: accounts.into_iter().collect(),
    }
}

/// What account 7 has after that: its endpoint so, or none. Returns whether it was asked for.
fn look_up(rig: &mut Rig, row: Option<fn(&mut Endpoint)>) -> bool {
    let Some(look_up) = rig.dispatcher.poll_lookup(rig.now) else { return false };
    let asked = look_up.accounts.contains(&AccountId::new("7"));
    let answer = look_up.answered(fixture::snapshot(), |account| {
        let endpoints = row.map(|row| {
            let mut endpoint = fixture::endpoint("7", account);
            row(&mut endpoint);
            Arc::new(endpoint)
        });
        Routes::new(endpoints.into_iter().collect(), 1.0)
    });
    rig.dispatcher.handle_lookup(answer, rig.now);
    asked
}

fn gone(rig: &Rig) -> usize {
    rig.stored.iter().flat_map(|batch| &batch.errors_gone).count()
}

#[test]
fn endpoint_that_moved_or_was_switched_off_in_its_row_fails_no_more() {
    let off: fn(&mut Endpoint) = |endpoint| endpoint.enabled = false;
    let invalid: fn(&mut Endpoint) = |endpoint| endpoint.invalid = Some("no URL".to_owned());
    for row in [None, Some(off), Some(invalid)] {
        let mut rig = Rig::new(settings());
        // Nothing is pending afterwards.
        one(&mut rig, 410);
        rig.store();
        assert_eq!((gone(&rig), rig.dispatcher.endpoints.failing.len()), (0, 1));
        // Where every endpoint may have changed, nobody asks for all that fail: others would wait for it.
        change(&mut rig, Scope::All);
        assert!(!look_up(&mut rig, row));
        change(&mut rig, of_row());
        assert!(look_up(&mut rig, row), "nobody asks whose it is now");
        rig.store();
        assert_eq!((gone(&rig), rig.dispatcher.endpoints.failing.len()), (1, 0));
        assert!(!told(&mut rig).iter().any(|(change, _)| *change == EndpointChange::Recovered));
    }
}

#[test]
fn endpoint_whose_row_changes_otherwise_goes_on_failing() {
    let same: fn(&mut Endpoint) = |endpoint| endpoint.url = "other".to_owned();
    let mut rig = Rig::new(settings());
    one(&mut rig, 410);
    rig.store();
    change(&mut rig, of_row());
    assert!(look_up(&mut rig, Some(same)));
    // Nor is one forgotten whose account's rows cannot be read.
    change(&mut rig, of_row());
    let look_up = rig.dispatcher.poll_lookup(rig.now).unwrap();
    let refused = |_: &AccountId| Routes::refused("x".to_owned(), 1.0);
    rig.dispatcher.handle_lookup(look_up.answered(fixture::snapshot(), refused), rig.now);
    rig.store();
    assert_eq!((gone(&rig), rig.dispatcher.endpoints.failing.len()), (0, 1));
}

#[test]
fn request_that_was_under_way_when_the_endpoint_moved_makes_it_fail_no_more() {
    let mut rig = Rig::new(settings());
    rig.commit("7");
    let sent = rig.send();
    change(&mut rig, of_row());
    // Its account is looked up for what comes next.
    rig.commit_unrouted("7");
    assert!(look_up(&mut rig, None));
    sent.iter().for_each(|dispatch| rig.answer(dispatch.attempt.first().id, 410));
    rig.store();
    assert_eq!(rig.dispatcher.endpoints.failing.len(), 0);
}

#[test]
fn next_leader_looks_whether_what_failed_is_still_sent_to() {
    let queue = QueueId { account: AccountId::new("7"), endpoint: EndpointId::new("7") };
    let error =
        EndpointError { queue, since_us: 1, failed: 3, last_us: 1, error: "status 410".into() };
    let start = Start { frontier: Lsn(1_000), failing: vec![error], ..Start::default() };
    let mut rig = Rig::new(settings());
    rig.dispatcher = Dispatcher::new(settings(), start, SmallRng::seed_from_u64(1));
    rig.wait(Duration::ZERO);
    assert!(look_up(&mut rig, None));
    rig.store();
    assert_eq!((gone(&rig), rig.dispatcher.endpoints.failing.len()), (1, 0));
}
