mod adopt;
mod alone;
mod large;
mod leaving;
mod mute;
mod pipelines;
mod quarantines;
mod rig;
mod room;
mod timeouts;
mod window;

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::QUIET_SIXTEENTHS;
use crate::frame::{
    ByeReason, Digest, Grant, Hello, HelloState, Outcomes, Refusal, Refused, Versions, WireOutcome,
    WorkerId,
};
use rig::*;
use walhook_core::attempt::{Delivery, FailureKind, Outcome};
use walhook_core::position::Position;

#[test]
fn host_stays_with_one_worker_below_three_quarters_and_spreads_beyond() {
    let mut rig = Rig::new(Local::Never, 4);
    let workers: Vec<u128> = (0..24).map(|_| rig.place("one.example").1).collect();
    let first: BTreeSet<_> = workers[..6].iter().collect();
    assert_eq!(first.len(), 1, "below 6 of 8 it is the one that the host prefers: {workers:?}");
    let all: BTreeSet<_> = workers.iter().collect();
    assert_eq!(all.len(), 4, "a whale has all of them: {workers:?}");
    let preferred: BTreeSet<u128> =
        (0..40).map(|n| Rig::new(Local::Never, 4).place(&format!("h{n}.example")).1).collect();
    assert_eq!(preferred.len(), 4, "hosts prefer different ones");
}

#[test]
fn slots_are_those_of_the_workers_and_the_leaders_own_as_it_sends() {
    let of = |local, workers| Rig::new(local, workers).slots();
    let two = Slots { fast: 16, slow: 32 };
    assert_eq!(of(Local::Fallback, 0), OWN);
    assert_eq!(of(Local::Fallback, 2), two);
    assert_eq!(of(Local::Always, 2), Slots { fast: 20, slow: 40 });
    assert_eq!(of(Local::Never, 2), two);
    assert_eq!(of(Local::Never, 0), Slots::default());
}

#[test]
fn slots_of_a_silent_worker_are_what_it_holds_until_it_is_lost() {
    let mut rig = Rig::new(Local::Fallback, 1);
    rig.place("a.example");
    rig.place("a.example");
    rig.now = rig.now + LEASE / 2;
    assert_eq!(
        rig.slots(),
        Slots { fast: OWN.fast, slow: OWN.slow + 2 },
        "the leader sends beside what is held, which has become slow"
    );
    let effects = rig.silence(LEASE / 2 + LOST_AFTER_LEASE);
    let lost = endings(&effects);
    assert_eq!(lost.len(), 2);
    assert!(lost.iter().all(|(_, ending)| matches!(ending, Ending::Lost { .. })), "{lost:?}");
    assert_eq!(rig.slots(), OWN);
    // What it says now is too late, and it cannot come back as the same.
    rig.hello(0, HelloState::Serving, 1);
    let refused = rig.effects().into_iter().find_map(|effect| match effect {
        FleetEffect::Publish(frame) => Some(frame.body),
        _ => None,
    });
    assert_eq!(refused, Some(Body::Refused(Refused { why: Refusal::Lost })));
}

#[test]
fn leader_that_was_stopped_hears_before_it_gives_up() {
    for heard in [true, false] {
        let mut rig = Rig::new(Local::Fallback, 1);
        let (delivery, worker, key) = rig.place("a.example");
        rig.now = rig.now + Duration::from_secs(4);
        let effects = rig.effects();
        assert!(endings(&effects).is_empty(), "{effects:?}");
        if heard {
            let effects = rig.outcome(worker, key, Some(delivered()));
            assert_eq!(endings(&effects), [(delivery, &Ending::Outcome(delivered()))]);
            continue;
        }
        let until = rig.now + LEASE;
        while rig.now < until {
            assert!(rig.fleet.deadline() > rig.now, "it does not spin");
            rig.now = rig.fleet.deadline().min(until);
            let effects = rig.effects();
            let lost = matches!(endings(&effects)[..], [(_, Ending::Lost { .. })]);
            assert_eq!(lost, rig.now == until, "{:?}: {effects:?}", rig.now);
        }
    }
}

#[test]
fn worker_of_which_nothing_is_heard_gets_no_work_and_what_it_has_is_in_doubt_until_it_is() {
    let mut rig = Rig::new(Local::Fallback, 1);
    let (first, worker, key) = rig.place("a.example");
    let (second, ..) = rig.place("a.example");
    let doubts = |effects: &[FleetEffect]| -> Vec<(Vec<DeliveryId>, bool)> {
        let doubt = |effect: &FleetEffect| match effect {
            FleetEffect::Doubt { deliveries, doubtful } => Some((deliveries.clone(), *doubtful)),
            _ => None,
        };
        effects.iter().filter_map(doubt).collect()
    };
    rig.now = rig.now + LEASE * QUIET_SIXTEENTHS / 16 - Duration::from_micros(1);
    assert!(doubts(&rig.effects()).is_empty());
    rig.now = rig.now + Duration::from_micros(1);
    assert_eq!(rig.fleet.deadline(), rig.now);
    let effects = rig.effects();
    assert_eq!(doubts(&effects), [(vec![first, second], true)]);
    assert_eq!(rig.fleet.gauges().serving, 1, "it may be a hiccup, which is told nobody");
    let third = attempt(100, "a.example", 100);
    assert_eq!(rig.fleet.place(rig.now, &third), Placement::Local);
    // Any word of it will do.
    let effects = rig.outcome(worker, key, Some(delivered()));
    assert_eq!(doubts(&effects), [(vec![first, second], false)]);
    assert_eq!(rig.fleet.place(rig.now, &third), Placement::Taken);
}

#[test]
fn frame_that_nobody_heard_comes_back_unsent_with_all_behind_it() {
    let mut rig = Rig::new(Local::Never, 1);
    let (before, ..) = rig.place("a.example");
    let (unheard, ..) = rig.place("a.example");
    let (behind, ..) = rig.place("a.example");
    // The grant was frame 1.
    rig.fleet.handle(rig.now, FleetInput::Unheard { session: session(0), seq: 3 });
    let effects = rig.effects();
    assert_eq!(endings(&effects), [(unheard, &Ending::Unsent), (behind, &Ending::Unsent)]);
    assert_eq!(rig.fleet.in_flight(), 1, "{before:?} may run");
    rig.hello(0, HelloState::Closing(ByeReason::Gap), 1);
    let effects = rig.effects();
    assert_eq!(endings(&effects), [(before, &Ending::Unsent)], "it has not come either");
}

#[test]
fn attempt_that_the_packer_refuses_ends_and_none_that_has_come_back_before() {
    let mut rig = Rig::new(Local::Never, 2);
    let (delivery, first, key) = rig.place("a.example");
    let refuse = |rig: &mut Rig, worker, key| {
        let outcome = Outcome::failed(FailureKind::Local, "too much is to be signed", TIMEOUT);
        rig.fleet.handle(rig.now, FleetInput::Refused { session: session(worker), key, outcome });
        rig.effects()
    };
    // A frame before it was not taken by the bus; it is sent by the other worker.
    rig.fleet.handle(rig.now, FleetInput::Unheard { session: session(first), seq: 2 });
    assert_eq!(endings(&rig.effects()), [(delivery, &Ending::Unsent)]);
    let again = attempt(delivery.0, "a.example", 100);
    assert_eq!(rig.fleet.place(rig.now, &again), Placement::Taken);
    let (second, again) = packed(&rig.effects()).pop().unwrap();
    assert_ne!(second, first);
    let effects = refuse(&mut rig, first, key);
    assert!(endings(&effects).is_empty(), "the other has it: {effects:?}");
    let effects = rig.outcome(second, again, Some(delivered()));
    assert_eq!(endings(&effects), [(delivery, &Ending::Outcome(delivered()))]);

    let (delivery, worker, key) = rig.place("a.example");
    let effects = refuse(&mut rig, worker, key);
    assert!(matches!(endings(&effects)[..], [(of, Ending::Outcome(_))] if of == delivery));
    assert_eq!(rig.fleet.in_flight(), 0);
}

#[test]
fn grant_names_the_stamp_and_says_how_far_outcomes_have_come() {
    let mut rig = Rig::new(Local::Never, 1);
    let (_, worker, key) = rig.place("a.example");
    rig.outcome(worker, key, Some(delivered()));
    rig.now = Tick(300_000);
    rig.hello(0, HelloState::Serving, 2);
    let grant = rig.effects().into_iter().find_map(|effect| match effect {
        FleetEffect::Publish(frame) => Some(frame.body),
        _ => None,
    });
    let expected = Grant { stamp_us: 300_000, lease: LEASE, outcomes_upto: 1, closed: false };
    assert_eq!(grant, Some(Body::Grant(expected)));
}

#[test]
fn worker_without_a_network_of_its_own_fails_no_endpoint_and_is_put_into_quarantine() {
    let mut rig = Rig::new(Local::Never, 2);
    // The one that the host prefers is cut off.
    let (delivery, bad, key) = rig.place("a.example");
    let good = 1 - bad;
    let fail = |rig: &mut Rig, delivery: DeliveryId, key: u64| {
        let effects = rig.outcome(bad, key, Some(unreachable()));
        assert!(endings(&effects).is_empty(), "the first failure does not count: {effects:?}");
        let (other, again) = packed(&effects).pop().expect("another tries");
        assert_eq!(other, good);
        let effects = rig.outcome(good, again, Some(delivered()));
        let [(ended, Ending::Outcome(outcome))] = endings(&effects)[..] else {
            panic!("{effects:?}")
        };
        assert_eq!(
            (ended, outcome.delivered(), outcome.elapsed),
            (delivery, true, Duration::from_millis(2))
        );
    };
    fail(&mut rig, delivery, key);
    for _ in 1..5 {
        let (delivery, worker, key) = rig.place("a.example");
        assert_eq!(worker, bad);
        fail(&mut rig, delivery, key);
    }
    assert_eq!((rig.fleet.counters().contradicted, rig.fleet.gauges().quarantined), (5, 1));
    assert_eq!(rig.slots(), Slots { fast: 8, slow: 16 });
    for _ in 0..8 {
        assert_eq!(rig.place("a.example").1, good, "it is given nothing while another has room");
    }
    rig.wait(Duration::from_secs(31), 2);
    assert_eq!(rig.fleet.gauges().quarantined, 0);
    // It has not become better: twice as long.
    for _ in 0..5 {
        let (delivery, worker, key) = rig.place("a.example");
        assert_eq!(worker, bad);
        fail(&mut rig, delivery, key);
    }
    rig.wait(Duration::from_secs(59), 2);
    assert_eq!(rig.fleet.gauges().quarantined, 1);
    rig.wait(Duration::from_secs(2), 2);
    assert_eq!((rig.fleet.gauges().quarantined, rig.fleet.counters().quarantines), (0, 2));
}

/// Brings the worker that has what goes to one host into quarantine: nothing is reachable there, and another reaches it.
fn one_in_quarantine(rig: &mut Rig) -> u128 {
    let mut bad = 0;
    for _ in 0..5 {
        let (_, worker, key) = rig.place("a.example");
        bad = worker;
        let effects = rig.outcome(bad, key, Some(unreachable()));
        let (good, again) = packed(&effects).pop().expect("another tries");
        rig.outcome(good, again, Some(delivered()));
    }
    bad
}

#[test]
fn worker_in_quarantine_that_begins_another_session_stays_in_it_and_its_neighbour_does_not() {
    let mut rig = Rig::new(Local::Never, 2);
    let bad = one_in_quarantine(&mut rig);
    let quarantined = |rig: &mut Rig| {
        rig.effects();
        rig.fleet.gauges().quarantined
    };
    assert_eq!(quarantined(&mut rig), 1);
    // Another one of the same host, beside it.
    rig.hello(7, HelloState::Serving, 0);
    assert_eq!(quarantined(&mut rig), 1);
    rig.hello(bad, HelloState::Closing(ByeReason::Gap), 2);
    assert_eq!(quarantined(&mut rig), 0);
    rig.hello(8, HelloState::Serving, 0);
    assert_eq!(quarantined(&mut rig), 1, "it has not become another one");
    rig.wait(Duration::from_secs(31), 9);
    assert_eq!(quarantined(&mut rig), 0);
}

#[test]
fn dead_endpoint_is_one_failure_and_marks_no_worker() {
    let mut rig = Rig::new(Local::Never, 2);
    for _ in 0..20 {
        let (delivery, first, key) = rig.place("dead.example");
        let effects = rig.outcome(first, key, Some(unreachable()));
        let (second, key) = packed(&effects).pop().unwrap();
        let effects = rig.outcome(second, key, Some(unreachable()));
        let [(ended, Ending::Outcome(outcome))] = endings(&effects)[..] else {
            panic!("{effects:?}")
        };
        assert_eq!((ended, outcome.record.failure), (delivery, Some(FailureKind::Connect)));
    }
    let counters = rig.fleet.counters();
    assert_eq!((counters.confirmed, counters.contradicted, counters.quarantines), (20, 0, 0));
}

#[test]
fn only_worker_is_asked_second_by_the_leader_where_that_may_send() {
    let mut rig = Rig::new(Local::Fallback, 1);
    let (delivery, worker, key) = rig.place("a.example");
    let effects = rig.outcome(worker, key, Some(unreachable()));
    assert!(
        effects.iter().any(|effect| matches!(effect, FleetEffect::CarryLocally(_))),
        "{effects:?}"
    );
    rig.fleet.handle(rig.now, FleetInput::Ended { delivery, outcome: delivered() });
    assert_eq!(endings(&rig.effects()).len(), 1);
    let mut rig = Rig::new(Local::Never, 1);
    let (_, worker, key) = rig.place("a.example");
    let effects = rig.outcome(worker, key, Some(unreachable()));
    assert_eq!(endings(&effects).len(), 1, "nobody else can tell");
}

#[test]
fn worker_that_takes_long_beside_its_requests_has_fewer_slots_and_regains_them() {
    let mut rig = Rig::new(Local::Never, 1);
    let takes = |rig: &mut Rig, ms: u64| {
        let (_, worker, key) = rig.place("a.example");
        rig.now = rig.now + Duration::from_millis(ms);
        rig.outcome(worker, key, Some(delivered()));
        rig.hello(0, HelloState::Serving, 1_000);
    };
    takes(&mut rig, 2);
    // The leader itself was stopped meanwhile.
    takes(&mut rig, 4_000);
    rig.wait(LEASE, 1);
    assert_eq!(rig.slots(), Slots { fast: 8, slow: 16 });
    (0..4).for_each(|_| takes(&mut rig, 600));
    assert_eq!(rig.slots(), Slots { fast: 4, slow: 8 });
    rig.wait(Duration::from_secs(6), 1);
    assert_eq!(rig.slots(), Slots { fast: 8, slow: 16 });
}

#[test]
fn worker_at_its_byte_budget_has_no_room_and_one_request_always_fits() {
    let mut rig = Rig::new(Local::Never, 1);
    rig.hellos += 1;
    let hello = Hello { byte_budget: 10_000, ..rig.plain() };
    rig.frame(0, rig.hellos, Body::Hello(hello));
    assert_eq!(rig.fleet.place(rig.now, &attempt(1, "a.example", 50_000)), Placement::Taken);
    let effects = rig.effects();
    assert_eq!(packed(&effects).len(), 1);
    assert_eq!(rig.slots(), Slots { fast: 1, slow: 0 }, "nothing more");
    assert_eq!(rig.fleet.place(rig.now, &attempt(2, "a.example", 10)), Placement::Taken);
    assert!(endings(&rig.effects()).is_empty(), "it would be handed over again at once");
    assert_eq!(rig.fleet.deadline(), rig.now + NOBODY_FOR);
    rig.now = rig.now + NOBODY_FOR;
    assert_eq!(endings(&rig.effects()), [(DeliveryId(2), &Ending::Unsent)]);
}

#[test]
fn attempt_that_the_bus_does_not_take_is_the_leaders_or_refused() {
    let large = attempt(1, "a.example", 1 << 20);
    let place = |local| {
        let mut rig = Rig::new(local, 1);
        let placement = rig.fleet.place(rig.now, &large);
        (placement, rig.fleet.gauges().too_large.is_some())
    };
    // Nobody waits for a bus that takes it where the leader sends it.
    assert_eq!(place(Local::Fallback), (Placement::Local, false));
    assert_eq!(place(Local::Always), (Placement::Local, false));
    assert_eq!(place(Local::Never), (Placement::TooLarge, true));
}

#[test]
fn worker_of_another_version_or_egress_is_refused_and_named_once() {
    let refusal = |hello: &dyn Fn(Hello) -> Hello| {
        let mut rig = Rig::new(Local::Fallback, 0);
        let hello = hello(rig.plain());
        rig.frame(0, 1, Body::Hello(hello.clone()));
        rig.frame(0, 2, Body::Hello(hello));
        let effects = rig.effects();
        let changed = effects.iter().filter_map(|effect| match effect {
            FleetEffect::Changed(changed) => changed.refused,
            _ => None,
        });
        let changed: Vec<_> = changed.collect();
        assert_eq!(rig.slots(), OWN);
        changed
    };
    let version = refusal(&|hello| Hello { versions: Versions { oldest: 2, newest: 3 }, ..hello });
    assert_eq!(version, [Refusal::Version]);
    let egress = refusal(&|hello| Hello { egress: Digest([1; 32]), ..hello });
    assert_eq!(egress, [Refusal::Egress]);
}

#[test]
fn request_that_is_given_up_comes_back_at_once_and_its_late_outcome_settles_nothing() {
    let mut rig = Rig::new(Local::Never, 1);
    let (delivery, worker, key) = rig.place("a.example");
    rig.fleet.handle(rig.now, FleetInput::Aborted(delivery));
    let effects = rig.effects();
    let [(ended, Ending::Outcome(outcome))] = endings(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!((ended, outcome.says_nothing_of_the_endpoint()), (delivery, true));
    let abort = effects.iter().find_map(|effect| match effect {
        FleetEffect::Publish(frame) => Some(frame.body.clone()),
        _ => None,
    });
    assert_eq!(abort, Some(Body::Abort(crate::frame::Abort { keys: vec![key] })));
    // The same delivery is tried again by the same worker.
    assert_eq!(rig.fleet.place(rig.now, &attempt(delivery.0, "a.example", 100)), Placement::Taken);
    rig.effects();
    let effects = rig.outcome(worker, key, Some(unreachable()));
    assert!(endings(&effects).is_empty(), "that was of the first");
    assert_eq!(rig.fleet.counters().late, 1);
}

#[test]
fn lost_attempts_are_the_workers_and_not_its_neighbours_on_the_same_host() {
    let mut rig = Rig::new(Local::Never, 0);
    let hello = |rig: &mut Rig, n: u128, worker: u128| {
        rig.hellos += 1;
        let hello = Hello { worker: Some(WorkerId(worker)), ..rig.plain() };
        rig.frame(n, rig.hellos, Body::Hello(hello.clone()));
        rig.hellos += 1;
        rig.frame(n, rig.hellos, Body::Hello(Hello { received_upto: 1, ..hello }));
    };
    hello(&mut rig, 0, 7);
    rig.place("a.example");
    rig.place("a.example");
    // It begins another session when its lease is over, before the leader has lost the first.
    let (mut told, end) = (Vec::new(), rig.now + LEASE + LOST_AFTER_LEASE);
    while rig.now < end {
        rig.now = rig.now + LEASE / 4;
        hello(&mut rig, 1, 7);
        hello(&mut rig, 2, 8);
        for effect in rig.effects() {
            if let FleetEffect::Workers(workers) = effect {
                told = workers.iter().map(|worker| (worker.session, worker.lost)).collect();
            }
        }
    }
    assert_eq!(told, [(session(1), 2), (session(2), 0)]);
}

/// Whoever lists them reads when each was heard last; and a database that has crashed has no list.
#[test]
fn workers_of_which_nothing_becomes_are_told_again_every_ten_seconds() {
    let mut rig = Rig::new(Local::Fallback, 2);
    let mut told = Vec::new();
    for _ in 0..60 {
        rig.now = rig.now + Duration::from_millis(500);
        (0..2).for_each(|n| rig.hello(n, HelloState::Serving, 0));
        told.extend(rig.effects().into_iter().filter_map(|effect| match effect {
            FleetEffect::Workers(workers) => Some((rig.now, workers)),
            _ => None,
        }));
    }
    assert_eq!(told.len(), 3, "{told:?}");
    for (at, workers) in told {
        assert!(workers.len() == 2 && workers.iter().all(|worker| worker.seen == at), "{at:?}");
    }
}

#[test]
fn worker_that_has_not_shown_that_it_hears_the_leader_is_given_nothing_and_counted() {
    let mut rig = Rig::new(Local::Fallback, 0);
    rig.only_hello(0, HelloState::Serving, 0);
    rig.effects();
    let gauges = rig.fleet.gauges();
    assert_eq!((gauges.joining, gauges.serving, gauges.unconfirmed), (1, 0, 0));
    assert_eq!(rig.slots(), OWN, "the leader sends meanwhile");
    assert_eq!(rig.fleet.place(rig.now, &attempt(1, "a.example", 100)), Placement::Local);
    // It hears none of the grants, begins anew each lease, and stays counted.
    for n in 0..6 {
        for _ in 0..8 {
            rig.now = rig.now + LEASE / 8;
            rig.only_hello(n, HelloState::Serving, 0);
            rig.effects();
        }
        let gauges = rig.fleet.gauges();
        assert!(gauges.unconfirmed > 0 && gauges.serving == 0, "{n}: {gauges:?}");
        assert_eq!(rig.fleet.place(rig.now, &attempt(2, "a.example", 100)), Placement::Local);
    }
    rig.hello(9, HelloState::Serving, 0);
    rig.effects();
    assert_eq!(rig.fleet.gauges().serving, 1);
    assert_eq!(rig.fleet.place(rig.now, &attempt(3, "a.example", 100)), Placement::Taken);
    rig.wait(LEASE + LOST_AFTER_LEASE, 10);
    assert_eq!((rig.fleet.gauges().unconfirmed, rig.fleet.counters().sessions_lost), (0, 0));
}

#[test]
fn what_the_bus_does_not_take_is_told_until_it_does_or_nobody_asks_any_more() {
    let mut rig = Rig::new(Local::Never, 1);
    assert_eq!(rig.fleet.place(rig.now, &attempt(1, "a.example", 1 << 20)), Placement::TooLarge);
    let told = |rig: &Rig| rig.fleet.gauges().too_large;
    let bytes = told(&rig).expect("it is told");
    assert!(bytes > 1 << 20);
    assert_eq!(rig.fleet.place(rig.now, &attempt(2, "a.example", 1_020_000)), Placement::TooLarge);
    assert_eq!(told(&rig), Some(bytes), "the largest");
    rig.fleet.handle(rig.now, FleetInput::Bus { connected: true, max_payload: 2 << 20 });
    assert_eq!(told(&rig), None);
    rig.fleet.handle(rig.now, FleetInput::Bus { connected: true, max_payload: 1 << 20 });
    rig.wait(Duration::from_secs(3_600), 1);
    assert_eq!(told(&rig), None);
}
