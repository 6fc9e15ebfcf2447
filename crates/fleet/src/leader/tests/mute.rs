//! Workers that are heard, and of which it is not heard what becomes of their requests.

use std::time::Duration;

use super::super::*;
use super::rig::*;
use crate::frame::{ByeReason, HelloState};

/// Of a worker that says how it is, and has taken all frames so far.
fn says_that_it_has_all(rig: &mut Rig, worker: u128, time: Duration) -> Vec<FleetEffect> {
    let (end, mut effects) = (rig.now + time, Vec::new());
    while rig.now < end {
        rig.now = (rig.now + LEASE / 4).min(end);
        rig.hello(worker, HelloState::Serving, 1_000);
        effects.extend(rig.effects());
    }
    effects
}

/// What came of its requests should have been heard by then.
const OVERDUE: Duration =
    TIMEOUT.saturating_add(LEASE).saturating_add(LOST_AFTER_LEASE).saturating_add(LEASE);

#[test]
fn worker_that_is_heard_and_whose_outcomes_are_not_is_given_nothing_more_and_lost() {
    let mut rig = Rig::new(Local::Fallback, 1);
    let (first, ..) = rig.place("a.example");
    let (second, ..) = rig.place("a.example");
    let effects = says_that_it_has_all(&mut rig, 0, OVERDUE - LEASE);
    assert!(endings(&effects).is_empty(), "it may yet be heard: {effects:?}");
    assert_eq!(rig.fleet.gauges().serving, 1);
    let effects = says_that_it_has_all(&mut rig, 0, LEASE / 4);
    assert!(
        effects.iter().any(|effect| matches!(
            effect,
            FleetEffect::Changed(changed) if changed.state == WorkerState::Mute
        )),
        "{effects:?}"
    );
    assert!(endings(&effects).is_empty(), "it may begin them until its lease is over");
    assert_eq!((rig.fleet.gauges().mute, rig.fleet.counters().overdue), (1, 1));
    assert_eq!(rig.slots(), Slots { fast: OWN.fast, slow: OWN.slow + 2 }, "the leader sends");
    assert_eq!(rig.fleet.place(rig.now, &attempt(100, "a.example", 100)), Placement::Local);
    let effects = says_that_it_has_all(&mut rig, 0, LEASE + LOST_AFTER_LEASE);
    let lost = endings(&effects);
    assert_eq!(lost.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [first, second]);
    assert!(lost.iter().all(|(_, ending)| matches!(ending, Ending::Lost { .. })), "{lost:?}");
    let granted = |effect: &FleetEffect| match effect {
        FleetEffect::Publish(frame) => matches!(frame.body, Body::Grant(_)),
        _ => false,
    };
    assert!(!effects.iter().any(granted), "its lease has to run out");
}

/// A leader whose worker 0 was mute, and has begun session 1.
fn after_mute(local: Local) -> Rig {
    let mut rig = Rig::new(local, 1);
    rig.place("a.example");
    says_that_it_has_all(&mut rig, 0, OVERDUE);
    rig.hello(0, HelloState::Closing(ByeReason::Lease), 1_000);
    rig.hello(1, HelloState::Serving, 0);
    rig.effects();
    rig
}

#[test]
fn mute_worker_is_tried_with_one_request_after_a_while_and_serves_once_it_is_heard() {
    let mut rig = after_mute(Local::Fallback);
    let mut next = 100;
    let mut place = |rig: &mut Rig| {
        next += 1;
        rig.fleet.place(rig.now, &attempt(next, "a.example", 100))
    };
    assert_eq!(place(&mut rig), Placement::Local);
    says_that_it_has_all(&mut rig, 1, Duration::from_secs(31));
    assert_eq!(rig.fleet.gauges().mute, 1, "nothing has shown that it is heard");
    assert_eq!((place(&mut rig), place(&mut rig)), (Placement::Taken, Placement::Local));
    let (_, key) = packed(&rig.effects()).pop().unwrap();
    rig.outcome(1, key, Some(delivered()));
    assert_eq!((rig.fleet.gauges().mute, rig.fleet.gauges().serving), (0, 1));
    assert_eq!(rig.slots(), Slots { fast: 8, slow: 16 });
    assert_eq!((place(&mut rig), place(&mut rig)), (Placement::Taken, Placement::Taken));
}

#[test]
fn mute_worker_is_tried_at_once_when_the_leader_may_hear_again() {
    let mut rig = after_mute(Local::Fallback);
    rig.fleet.handle(rig.now, FleetInput::MayHear);
    says_that_it_has_all(&mut rig, 1, LEASE + LOST_AFTER_LEASE);
    assert_eq!(rig.fleet.gauges().mute, 1, "nothing has shown that it is heard");
    let tried = rig.fleet.place(rig.now, &attempt(100, "a.example", 100));
    assert_eq!(tried, Placement::Taken);
    let (_, key) = packed(&rig.effects()).pop().unwrap();
    rig.outcome(1, key, Some(delivered()));
    assert_eq!((rig.fleet.gauges().mute, rig.fleet.gauges().serving), (0, 1));
}

#[test]
fn mute_worker_is_tried_also_where_no_host_prefers_it() {
    for other in 2..10 {
        let mut rig = after_mute(Local::Never);
        rig.hello(other, HelloState::Serving, 0);
        rig.effects();
        for _ in 0..62 {
            rig.now = rig.now + LEASE / 4;
            [1, other].into_iter().for_each(|n| rig.hello(n, HelloState::Serving, 1_000));
            rig.effects();
        }
        let tried = [rig.place("a.example").1, rig.place("a.example").1];
        assert_eq!(tried, [1, other], "once, until it is heard");
    }
}

#[test]
fn mute_worker_of_a_leader_that_never_sends_is_tried_at_once() {
    let mut rig = after_mute(Local::Never);
    says_that_it_has_all(&mut rig, 1, LEASE + LOST_AFTER_LEASE);
    assert_eq!(rig.slots(), Slots { fast: 1, slow: 0 });
    let (_, worker, key) = rig.place("a.example");
    rig.outcome(worker, key, Some(delivered()));
    assert_eq!(rig.slots(), Slots { fast: 8, slow: 16 });
}

#[test]
fn two_mute_workers_of_one_host_stay_so_in_the_sessions_that_they_begin() {
    let mut rig = Rig::new(Local::Fallback, 2);
    (0..7).for_each(|_| _ = rig.place("a.example"));
    for _ in 0..18 {
        rig.now = rig.now + LEASE / 4;
        (0..2).for_each(|n| rig.hello(n, HelloState::Serving, 1_000));
        rig.effects();
    }
    assert_eq!(rig.fleet.gauges().mute, 2);
    (0..2).for_each(|n| rig.hello(n, HelloState::Closing(ByeReason::Lease), 1_000));
    (2..5).for_each(|n| rig.hello(n, HelloState::Serving, 0));
    rig.effects();
    let gauges = rig.fleet.gauges();
    assert_eq!((gauges.mute, gauges.serving), (4, 1), "the third is another one");
}
