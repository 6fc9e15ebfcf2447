use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::dispatcher::rig::{Rig, event, settings};
use crate::dispatcher::{Dispatch, OperatorInput, Settings};
use crate::fixture;
use walhook_core::attempt::Outcome;
use walhook_core::endpoint::Routes;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::id::JobId;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The request took so long where it was sent from, and its answer is here now.
fn answer(rig: &mut Rig, sent: &Dispatch, status: u16, took: Duration) -> Option<Waits> {
    let outcome = Outcome { elapsed: took, ..fixture::answered(status) };
    let id = sent.attempt.first().id;
    let settled = rig.dispatcher.handle_outcome(id, &outcome, rig.now)?;
    settled.measured.map(|measured| measured.waits)
}

/// What the delivery waited for, in milliseconds, without the time until its transaction was read. All of it adds up
/// to the time since its commit.
fn waited(rig: &mut Rig, sent: &Dispatch) -> Vec<(Cause, u64)> {
    let waits = answer(rig, sent, 204, ms(0)).expect("it is delivered");
    let committed_us = sent.attempt.first().event.commit_time_us;
    assert_eq!(
        i64::try_from(waits.total_us()).unwrap(),
        rig.dispatcher.unix_us(rig.now) - committed_us
    );
    let besides = waits.iter().filter(|(cause, _)| *cause != Cause::Read);
    besides.map(|(cause, us)| (cause, us / 1_000)).collect()
}

/// What the account of which most waits does wait for now.
fn cause_now(rig: &Rig) -> Option<Cause> {
    rig.dispatcher.standing(1, rig.now).accounts.first().map(|account| account.cause)
}

fn only(mut sent: Vec<Dispatch>) -> Dispatch {
    assert_eq!(sent.len(), 1, "{sent:?}");
    sent.remove(0)
}

/// An event comes, and its account has one endpoint of its name, which takes so much.
fn commit_to(rig: &mut Rig, commit: u64, account: &str, limits: (Option<u32>, Option<f64>)) {
    let items = fixture::transaction(commit, [event(account, commit)]);
    items.into_iter().for_each(|item| rig.dispatcher.handle_item(item, rig.now));
    let Some(look_up) = rig.dispatcher.poll_lookup(rig.now) else { return };
    let routes = |account: &AccountId| {
        let mut endpoint = fixture::endpoint(account, account);
        (endpoint.max_in_flight, endpoint.rate_per_second) = limits;
        Routes::new(vec![Arc::new(endpoint)], 1.0)
    };
    rig.dispatcher.handle_lookup(look_up.answered(fixture::snapshot(), routes), rig.now);
}

#[test]
fn request_is_the_attempt_as_long_as_it_took_and_else_its_way() {
    let mut rig = Rig::new(settings());
    rig.commit("7");
    let sent = only(rig.send());
    rig.wait(ms(10));
    let waits = answer(&mut rig, &sent, 204, ms(7)).unwrap();
    assert_eq!(waits.us(Cause::Read), 60_000_000, "it came at that tick, and committed in 1970");
    assert_eq!((waits.us(Cause::Attempt), waits.us(Cause::Bus)), (7_000, 3_000));
    assert_eq!(waits.total_us(), 60_010_000);
}

#[test]
fn request_that_is_said_to_have_taken_longer_than_it_could_counts_as_long_as_it_was_away() {
    let mut rig = Rig::new(settings());
    rig.commit("7");
    let sent = only(rig.send());
    rig.wait(ms(10));
    let waits = answer(&mut rig, &sent, 204, ms(50)).unwrap();
    assert_eq!((waits.us(Cause::Attempt), waits.us(Cause::Bus)), (10_000, 0));
}

#[test]
fn delivery_waits_for_the_order_until_the_one_before_it_is_settled() {
    let mut rig = Rig::new(settings());
    rig.commit_with("7", &[1]);
    rig.commit_with("7", &[1]);
    let first = only(rig.send());
    rig.wait(ms(20));
    assert_eq!(cause_now(&rig), Some(Cause::Order));
    waited(&mut rig, &first);
    let second = only(rig.send());
    rig.wait(ms(5));
    assert_eq!(waited(&mut rig, &second), [(Cause::Order, 20), (Cause::Bus, 5)]);
    assert_eq!(cause_now(&rig), None);
}

#[test]
fn delivery_waits_for_its_endpoints_limit_although_others_have_their_turn_too() {
    let mut rig = Rig::new(settings());
    for n in 0..2 {
        commit_to(&mut rig, 3_000 + 100 * n, "7", (Some(1), None));
    }
    let first = only(rig.send());
    rig.wait(ms(30));
    assert_eq!(cause_now(&rig), Some(Cause::EndpointLimit));
    waited(&mut rig, &first);
    let second = only(rig.send());
    assert_eq!(waited(&mut rig, &second), [(Cause::EndpointLimit, 30)]);
}

#[test]
fn delivery_waits_for_its_endpoints_rate() {
    let mut rig = Rig::new(settings());
    for n in 0..2 {
        commit_to(&mut rig, 3_000 + 100 * n, "7", (None, Some(4.0)));
    }
    let first = only(rig.send());
    waited(&mut rig, &first);
    rig.wait(ms(250));
    let second = only(rig.send());
    assert_eq!(waited(&mut rig, &second), [(Cause::RateLimit, 250)]);
}

#[test]
fn with_every_slot_in_use_one_waits_for_a_slot_and_all_others_for_their_turn() {
    let mut rig = Rig::new(Settings { fast_slots: 1, slow_slots: 1, ..settings() });
    let accounts = ["7", "8", "9"];
    accounts.iter().for_each(|account| _ = rig.commit(account));
    let mut waits = Vec::new();
    for _ in accounts {
        let sent = only(rig.send());
        rig.wait(ms(10));
        waits.push(waited(&mut rig, &sent));
    }
    assert_eq!(waits[0], [(Cause::Bus, 10)]);
    assert_eq!(waits[1], [(Cause::Pool, 10), (Cause::Bus, 10)]);
    assert_eq!(waits[2], [(Cause::Pool, 10), (Cause::Turn, 10), (Cause::Bus, 10)]);
}

#[test]
fn delivery_waits_for_the_look_up_of_its_account() {
    let mut rig = Rig::new(settings());
    let items = fixture::transaction(3_000, [event("7", 3_000)]);
    items.into_iter().for_each(|item| rig.dispatcher.handle_item(item, rig.now));
    rig.wait(ms(40));
    assert_eq!(cause_now(&rig), Some(Cause::Lookup));
    rig.look_up();
    let sent = only(rig.send());
    assert_eq!(waited(&mut rig, &sent), [(Cause::Lookup, 40)]);
}

#[test]
fn event_that_the_reader_had_no_room_for_waited_for_memory() {
    let mut rig = Rig::new(settings());
    let limit = settings().memory_limit;
    rig.dispatcher.memory.take(limit);
    rig.dispatcher.note_full(rig.now);
    rig.wait(ms(70));
    rig.dispatcher.memory.give_back(limit);
    rig.dispatcher.note_full(rig.now);
    rig.wait(ms(5));
    rig.commit("7");
    let sent = only(rig.send());
    assert_eq!(waited(&mut rig, &sent), [(Cause::Memory, 70)]);
}

#[test]
fn nothing_is_sent_while_the_state_database_is_slow_or_far_behind() {
    let mut rig = Rig::new(settings());
    rig.commit("7");
    let first = only(rig.send());
    waited(&mut rig, &first);
    rig.wait(ms(200));
    assert!(rig.dispatcher.poll_persist(rig.now).is_some());
    rig.wait(ms(1_001));
    rig.commit("7");
    assert!(rig.send().is_empty());
    rig.wait(ms(60));
    assert_eq!(cause_now(&rig), Some(Cause::State));
    rig.dispatcher.handle_persisted(&Default::default(), rig.now);
    for _ in 0..super::super::UNPERSISTED_MAX {
        rig.dispatcher.outbox.count_outcome();
    }
    assert!(rig.send().is_empty());
    rig.wait(ms(100));
    assert!(rig.dispatcher.poll_persist(rig.now).is_some());
    rig.dispatcher.handle_persisted(&Default::default(), rig.now);
    let sent = only(rig.send());
    assert_eq!(waited(&mut rig, &sent), [(Cause::State, 60), (Cause::Unpersisted, 100)]);
}

#[test]
fn idle_account_is_sent_to_while_others_wait_until_their_outcomes_are_stored() {
    let mut rig = Rig::new(settings());
    let outcomes = |rig: &mut Rig, n: usize| {
        (0..n).for_each(|_| rig.dispatcher.outbox.count_outcome());
    };
    rig.commit("7");
    assert_eq!(rig.send().len(), 1, "it is in flight from now on");
    outcomes(&mut rig, super::super::UNPERSISTED_MAX - 256);
    rig.commit("7");
    assert!(rig.send().is_empty());
    assert_eq!(cause_now(&rig), Some(Cause::Unpersisted));
    rig.wait(ms(10));
    rig.commit("8");
    let sent = only(rig.send());
    assert_eq!(waited(&mut rig, &sent), [], "it waits for nothing");
    outcomes(&mut rig, 256);
    rig.commit("9");
    assert!(rig.send().is_empty(), "the bound holds for everybody");
    rig.wait(ms(100));
    assert!(rig.dispatcher.poll_persist(rig.now).is_some());
    rig.dispatcher.handle_persisted(&Default::default(), rig.now);
    assert!(rig.send().iter().any(|sent| sent.attempt.first().event.account.as_str() == "9"));
}

#[test]
fn delivery_that_failed_waits_for_its_next_attempt_and_tells_of_both() {
    let mut rig = Rig::new(settings());
    rig.commit("7");
    let sent = only(rig.send());
    rig.wait(ms(10));
    assert_eq!(answer(&mut rig, &sent, 500, ms(10)), None);
    assert!(rig.send().is_empty());
    let due = rig.dispatcher.deadline_at(rig.now).unwrap().since(rig.now);
    // What is due first is stored.
    rig.store();
    let began = rig.now;
    while rig.dispatcher.sending.len() == 0 {
        rig.wait(ms(1));
        if let [sent] = &rig.send()[..] {
            let waited = waited(&mut rig, sent);
            let retried = began.since(Tick(60_010_000)) + rig.now.since(began);
            assert_eq!(waited[..1], [(Cause::Retry, u64::try_from(retried.as_millis()).unwrap())]);
            assert_eq!(waited[1..], [(Cause::Attempt, 10)], "due was {due:?}");
            return;
        }
    }
}

#[test]
fn row_waits_while_its_endpoint_is_paused_and_then_to_be_read_back() {
    let mut rig = Rig::new(settings());
    let endpoint = EndpointId::new("7");
    let reason = String::new();
    let pause = OperatorInput::Pause { job: JobId(1), endpoint: endpoint.clone(), reason };
    rig.commit("7");
    assert!(rig.dispatcher.handle_operator(pause, rig.now));
    let paused = rig.now;
    rig.store();
    rig.wait(ms(500));
    assert_eq!(cause_now(&rig), Some(Cause::Stopped));
    let resume = OperatorInput::Resume { job: JobId(2), endpoint: endpoint.clone() };
    assert!(rig.dispatcher.handle_operator(resume, rig.now));
    let stood = u64::try_from(rig.now.since(paused).as_millis()).unwrap();
    assert_eq!(cause_now(&rig), Some(Cause::Refill));
    rig.wait(ms(8));
    assert_eq!(rig.read(), 1);
    let sent = only(rig.send());
    let waited = waited(&mut rig, &sent);
    // It committed in 1970, and its row does not tell what it waited for until it was paused.
    assert_eq!(waited, [(Cause::Stopped, stood), (Cause::Refill, 60_000 + 8)]);
}

#[test]
fn row_waits_for_its_breaker_and_what_is_tried_first_tells_so() {
    let mut rig = Rig::new(settings());
    let opened = loop {
        rig.commit("7");
        for sent in rig.send() {
            answer(&mut rig, &sent, 500, ms(0));
        }
        if cause_now(&rig) == Some(Cause::Breaker) {
            break rig.now;
        }
        rig.wait(ms(50));
    };
    rig.commit("7");
    rig.store();
    let mut probe = Vec::new();
    while probe.is_empty() {
        rig.wait(ms(100));
        rig.read();
        probe = rig.send();
    }
    let open = u64::try_from(rig.now.since(opened).as_millis()).unwrap();
    let waits = answer(&mut rig, &only(probe), 204, ms(0)).unwrap();
    assert_eq!(waits.us(Cause::Breaker) / 1_000, open, "{waits:?}");
    assert_ne!(cause_now(&rig), Some(Cause::Breaker));
}

#[test]
fn attempt_that_was_not_begun_was_on_its_way_and_goes_again() {
    let mut rig = Rig::new(settings());
    rig.commit("7");
    let sent = only(rig.send());
    rig.wait(ms(15));
    rig.dispatcher.handle_unsent(sent.attempt.first().id, rig.now);
    let again = only(rig.send());
    rig.wait(ms(2));
    let waits = answer(&mut rig, &again, 204, ms(2)).unwrap();
    assert_eq!((waits.us(Cause::Bus), waits.us(Cause::Attempt)), (15_000, 2_000));
}

#[test]
fn what_an_operator_asked_for_is_not_told_of() {
    let mut rig = Rig::new(settings());
    let event = event("7", 3_000);
    let (dead_letter, endpoint) = (walhook_core::id::DeadLetterId(1), EndpointId::new("7"));
    let retry = crate::dispatcher::Retry { dead_letter, job: JobId(1), event, endpoint };
    rig.dispatcher.handle_retry(retry, rig.now);
    rig.look_up();
    let sent = only(rig.send());
    assert_eq!(answer(&mut rig, &sent, 204, ms(0)), None);
}

#[test]
fn pending_delivery_takes_at_most_32_bytes_for_what_it_waits_for() {
    let measured = size_of::<crate::clock::Reading>() + size_of::<Option<Box<Waits>>>();
    // The number of its attempts had as much beside it that was not used.
    assert!(measured <= 32 + size_of::<u32>(), "{measured} bytes");
    assert!(size_of::<Pending>() <= 128 + 8, "{} bytes", size_of::<Pending>());
}
