//! Requests that time out at a worker.

use std::time::Duration;

use super::super::*;
use super::one_in_quarantine;
use super::rig::*;
use walhook_core::attempt::{FailureKind, Outcome};

fn timed_out() -> Outcome {
    Outcome::failed(FailureKind::Timeout, "no answer in time", TIMEOUT)
}

/// Five requests to as many hosts, all of one worker: which one, and their keys.
fn five_at_one(rig: &mut Rig, worker: u128) -> Vec<(String, u64)> {
    let mut placed = Vec::new();
    for n in 0.. {
        let host = format!("h{n}.example");
        let (_, at, key) = rig.place(&host);
        if at == worker {
            placed.push((host, key));
        } else {
            rig.outcome(at, key, Some(delivered()));
        }
        if placed.len() == 5 {
            return placed;
        }
    }
    unreachable!("hosts spread")
}

#[test]
fn retry_after_a_time_out_goes_to_another_worker_than_the_last_one() {
    let mut rig = Rig::new(Local::Never, 2);
    let (_, mut last, mut key) = rig.place("a.example");
    for _ in 0..6 {
        let effects = rig.outcome(last, key, Some(timed_out()));
        assert_eq!(endings(&effects).len(), 1, "it counts, for it may have been received");
        let (_, worker, next) = rig.place("a.example");
        assert_ne!(worker, last);
        (last, key) = (worker, next);
    }
    let counters = rig.fleet.counters();
    assert_eq!((counters.confirmed, counters.contradicted), (5, 0), "the endpoint is dead");
    // Where only the last one has room it has it.
    let mut rig = Rig::new(Local::Never, 1);
    let (_, last, key) = rig.place("a.example");
    rig.outcome(last, key, Some(timed_out()));
    assert_eq!(rig.place("a.example").1, last);
}

#[test]
fn retry_after_a_time_out_goes_to_the_last_worker_where_the_other_is_in_quarantine() {
    let mut rig = Rig::new(Local::Never, 2);
    let bad = one_in_quarantine(&mut rig);
    let (_, last, key) = rig.place("b.example");
    assert_ne!(last, bad);
    rig.outcome(last, key, Some(timed_out()));
    assert_eq!(rig.place("b.example").1, last);
}

#[test]
fn leader_takes_no_more_of_what_timed_out_than_it_has_room_for_while_a_worker_has_some() {
    let mut rig = Rig::new(Local::Always, 2);
    let hosts: Vec<String> = (0..36).map(|n| format!("h{n}.example")).collect();
    for host in &hosts {
        // So many requests are under way at the leader that the workers have it.
        rig.fleet.handle(rig.now, FleetInput::LocalInFlight(OWN.fast + OWN.slow));
        let (_, worker, key) = rig.place(host);
        rig.outcome(worker, key, Some(timed_out()));
    }
    rig.fleet.handle(rig.now, FleetInput::LocalInFlight(0));
    for host in &hosts {
        rig.next += 1;
        let again = attempt(rig.next, host, 100);
        assert_eq!(rig.fleet.place(rig.now, &again), Placement::Taken);
    }
    let effects = rig.effects();
    let local = effects.iter().filter(|it| matches!(it, FleetEffect::CarryLocally(_))).count();
    assert_eq!(local + packed(&effects).len(), hosts.len());
    assert!(local <= 12, "{local}");
}

#[test]
fn worker_whose_requests_all_time_out_where_others_are_answered_is_put_into_quarantine() {
    let mut rig = Rig::new(Local::Never, 2);
    let five = five_at_one(&mut rig, 0);
    rig.wait(Duration::from_secs(1), 2);
    for (_, key) in &five {
        rig.outcome(0, *key, Some(timed_out()));
    }
    for (n, (host, _)) in five.iter().enumerate() {
        assert_eq!(rig.fleet.gauges().quarantined, 0, "{n}");
        let (_, worker, key) = rig.place(host);
        assert_eq!(worker, 1);
        rig.outcome(1, key, Some(delivered()));
    }
    assert_eq!((rig.fleet.counters().contradicted, rig.fleet.gauges().quarantined), (5, 1));
}

#[test]
fn endpoints_that_are_slow_now_and_then_put_no_worker_into_quarantine() {
    let mut rig = Rig::new(Local::Never, 2);
    let five = five_at_one(&mut rig, 0);
    rig.wait(Duration::from_secs(1), 2);
    let answered = five_at_one(&mut rig, 0).swap_remove(0).1;
    rig.outcome(0, answered, Some(delivered()));
    for (_, key) in &five {
        rig.outcome(0, *key, Some(timed_out()));
    }
    for (host, _) in &five {
        let (_, worker, key) = rig.place(host);
        assert_eq!(worker, 1, "it is tried by another in any case");
        rig.outcome(1, key, Some(delivered()));
    }
    assert_eq!((rig.fleet.counters().contradicted, rig.fleet.counters().undecided), (0, 5));
    assert_eq!(rig.fleet.gauges().quarantined, 0);
}

#[test]
fn leader_that_may_send_carries_what_timed_out_at_its_only_worker() {
    let mut rig = Rig::new(Local::Fallback, 1);
    for n in 1..=5 {
        let host = format!("h{n}.example");
        let (_, worker, key) = rig.place(&host);
        rig.now = rig.now + Duration::from_millis(10);
        rig.outcome(worker, key, Some(timed_out()));
        rig.next += 1;
        let again = attempt(rig.next, &host, 100);
        assert_eq!(rig.fleet.place(rig.now, &again), Placement::Taken);
        let effects = rig.effects();
        assert!(
            effects.iter().any(|effect| matches!(effect, FleetEffect::CarryLocally(_))),
            "{effects:?}"
        );
        let delivery = again.first().id;
        rig.fleet.handle(rig.now, FleetInput::Ended { delivery, outcome: delivered() });
        let effects = rig.effects();
        assert_eq!(endings(&effects), [(delivery, &Ending::Outcome(delivered()))]);
    }
    assert_eq!((rig.fleet.counters().contradicted, rig.fleet.gauges().quarantined), (5, 1));
}

#[test]
fn worker_that_answers_again_or_was_kept_from_an_endpoint_for_long_has_it_again() {
    let mut rig = Rig::new(Local::Never, 2);
    let (_, last, key) = rig.place("a.example");
    let (.., second) = rig.place("a.example");
    rig.outcome(last, key, Some(timed_out()));
    rig.outcome(last, second, Some(delivered()));
    let (_, worker, key) = rig.place("a.example");
    assert_eq!(worker, last);
    rig.outcome(last, key, Some(timed_out()));
    rig.wait(Duration::from_secs(59), 2);
    assert_ne!(rig.place("a.example").1, last);
    rig.wait(Duration::from_secs(1), 2);
    assert_eq!(rig.place("a.example").1, last);
}
