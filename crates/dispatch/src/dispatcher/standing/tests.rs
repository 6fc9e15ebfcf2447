use std::time::Duration;

use super::super::rig::{Rig, settings};
use super::super::{Input, OperatorInput, Settings};
use super::*;
use walhook_core::id::JobId;

fn causes(rig: &Rig) -> Vec<(String, usize, Cause)> {
    let standing = rig.dispatcher.standing(10, rig.now);
    let of = |it: AccountStanding| (it.account.to_string(), it.waiting, it.cause);
    standing.accounts.into_iter().map(of).collect()
}

#[test]
fn standing_of_an_idle_dispatcher_is_nothing() {
    let rig = Rig::new(settings());
    assert_eq!(rig.dispatcher.standing(10, rig.now), Standing::default());
}

#[test]
fn standing_names_the_accounts_of_which_most_waits_and_counts_the_others() {
    let mut rig = Rig::new(Settings { fast_slots: 1, ..settings() });
    for (account, events) in [("few", 1), ("most", 5), ("many", 3), ("some", 2)] {
        (0..events).for_each(|_| _ = rig.commit(account));
    }
    rig.send();
    let standing = rig.dispatcher.standing(2, rig.now);
    let named: Vec<&str> = standing.accounts.iter().map(|it| it.account.as_str()).collect();
    assert_eq!(named, ["most", "many"]);
    assert_eq!((standing.waiting_accounts, standing.pending, standing.in_flight), (4, 11, 1));
    let first = &standing.accounts[0];
    assert_eq!((first.waiting + first.in_flight, first.deferred), (5, 0));
    assert_eq!(first.endpoint.as_deref(), Some("most"));
    assert!(rig.dispatcher.standing(0, rig.now).accounts.is_empty());
}

#[test]
fn standing_says_whose_delivery_holds_the_checkpoint_and_what_it_waits_for() {
    let mut rig = Rig::new(settings());
    let first = rig.commit("a");
    let second = rig.commit("b");
    let sent = rig.send();
    let oldest = |rig: &Rig| rig.dispatcher.standing(1, rig.now).oldest.unwrap();
    let now = oldest(&rig);
    assert_eq!((now.event, now.cause, now.attempts), (first.id, Cause::Attempt, 1));
    assert_eq!(now.endpoint.as_deref(), Some("a"));
    rig.answer(sent[0].attempt.first().id, 500);
    assert_eq!(oldest(&rig).cause, Cause::Retry);
    let id = sent[0].attempt.first().id;
    rig.wait(Duration::from_secs(2));
    let again = rig.send();
    assert_eq!(again[0].attempt.first().id, id);
    rig.answer(id, 200);
    assert_eq!(oldest(&rig).event, second.id, "the next one holds it now");
    rig.answer(sent[1].attempt.first().id, 200);
    assert_eq!(rig.dispatcher.standing(1, rig.now).oldest, None);
}

#[test]
fn standing_tells_order_limits_turns_and_slots_apart() {
    let mut rig = Rig::new(Settings { fast_slots: 1, slow_slots: 1, ..settings() });
    // Of one row: the second waits for the first.
    let _first = rig.commit_with("a", &[7]);
    let _second = rig.commit_with("a", &[7]);
    assert_eq!(rig.send().len(), 1);
    assert_eq!(causes(&rig), [("a".to_owned(), 1, Cause::Order)]);
    // The one slot is in use: whoever waits alone waits for a slot, and then for others.
    rig.commit("b");
    rig.send();
    assert_eq!(causes(&rig)[1], ("b".to_owned(), 1, Cause::Pool));
    rig.commit("c");
    rig.send();
    assert_eq!(
        causes(&rig)[1..],
        [("b".to_owned(), 1, Cause::Turn), ("c".to_owned(), 1, Cause::Turn)]
    );
}

#[test]
fn standing_says_that_there_are_no_slots_and_not_that_others_have_their_turn() {
    let mut rig = Rig::new(settings());
    rig.dispatcher.handle(rig.now, Input::Slots { fast: 0, slow: 0 });
    rig.commit("a");
    rig.commit("b");
    assert!(rig.send().is_empty());
    assert_eq!(causes(&rig), [("a".to_owned(), 1, Cause::Pool), ("b".to_owned(), 1, Cause::Pool)]);
}

#[test]
fn standing_says_that_an_endpoint_takes_no_more_at_once() {
    let mut rig = Rig::new(Settings { fast_slots: 1_000, ..settings() });
    (0..200).for_each(|_| _ = rig.commit("a"));
    let sent = rig.send().len();
    assert!(sent < 200, "{sent} are in flight at once");
    assert_eq!(causes(&rig), [("a".to_owned(), 200 - sent, Cause::EndpointLimit)]);
}

#[test]
fn standing_counts_what_is_deferred_for_a_paused_endpoint() {
    let mut rig = Rig::new(settings());
    let pause = OperatorInput::Pause {
        job: JobId(1),
        endpoint: EndpointId::new("a"),
        reason: "maintenance".to_owned(),
    };
    rig.dispatcher.handle_operator(pause, rig.now);
    (0..3).for_each(|_| _ = rig.commit("a"));
    rig.send();
    rig.store();
    let standing = rig.dispatcher.standing(1, rig.now);
    let account = &standing.accounts[0];
    assert_eq!((account.deferred, account.cause), (3, Cause::Stopped), "{standing:?}");
}

#[test]
fn standing_counts_events_whose_account_is_being_looked_up() {
    let mut rig = Rig::new(settings());
    let event = rig.commit_unrouted("a");
    let standing = rig.dispatcher.standing(1, rig.now);
    assert_eq!((standing.unrouted, standing.pending, standing.waiting_accounts), (1, 0, 1));
    let oldest = standing.oldest.unwrap();
    assert_eq!((oldest.event, oldest.endpoint, oldest.cause), (event.id, None, Cause::Lookup));
    let account = &standing.accounts[0];
    assert_eq!((account.waiting, account.cause, &account.endpoint), (1, Cause::Lookup, &None));
}
