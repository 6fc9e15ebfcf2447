//! Whose a quarantine is, where several workers run on one host.

use super::super::*;
use super::one_in_quarantine;
use super::rig::*;
use crate::frame::{ByeReason, Hello, HelloState, WorkerId};

/// A session of this process begins.
fn begin(rig: &mut Rig, n: u128, worker: u128) {
    for received_upto in [0, 1] {
        rig.hellos += 1;
        let hello = Hello { worker: Some(WorkerId(worker)), received_upto, ..rig.plain() };
        rig.frame(n, rig.hellos, Body::Hello(hello));
    }
}

/// The sessions that are quarantined.
fn quarantined(rig: &Rig) -> Vec<u128> {
    let sessions = rig.fleet.sessions.iter();
    let bad = sessions.filter(|(_, it)| it.phase == session::Phase::Serving);
    let bad = bad.filter(|(_, it)| it.health.is_quarantined(rig.now));
    bad.map(|(id, _)| id.0 - 1).collect()
}

/// Two processes on one host, of which one is in quarantine: which ones.
fn one_of_two() -> (Rig, u128, u128) {
    let mut rig = Rig::new(Local::Never, 0);
    (0..2).for_each(|n| begin(&mut rig, n, n + 100));
    let bad = one_in_quarantine(&mut rig);
    assert_eq!(quarantined(&rig), [bad]);
    (rig, bad, 1 - bad)
}

fn end(rig: &mut Rig, n: u128) {
    rig.hello(n, HelloState::Closing(ByeReason::Disconnected), 1_000);
}

#[test]
fn process_that_is_heard_again_keeps_its_quarantine_whichever_of_the_host_is_heard_first() {
    for bad_first in [true, false] {
        let (mut rig, bad, good) = one_of_two();
        let mut sessions = [(bad, 2), (good, 3)];
        for round in 0..5 {
            sessions
                .into_iter()
                .for_each(|(of, _)| end(&mut rig, if round == 0 { of } else { 2 * round + of }));
            sessions = [(bad, 2 * round + 2 + bad), (good, 2 * round + 2 + good)];
            let [first, second] = if bad_first { sessions } else { [sessions[1], sessions[0]] };
            [first, second].into_iter().for_each(|(of, n)| begin(&mut rig, n, of + 100));
            rig.effects();
            assert_eq!(quarantined(&rig), [sessions[0].1], "{bad_first} {round}");
        }
    }
}

#[test]
fn process_that_is_new_on_the_host_takes_it_on_until_the_old_one_is_heard_again() {
    let (mut rig, bad, _) = one_of_two();
    begin(&mut rig, 5, 200);
    assert_eq!(quarantined(&rig), [bad], "the old one serves");
    end(&mut rig, bad);
    begin(&mut rig, 6, 201);
    assert_eq!(quarantined(&rig), [6], "it may be the old one, started anew");
    begin(&mut rig, 7, 202);
    assert_eq!(quarantined(&rig), [6], "there was one");
    begin(&mut rig, 8, bad + 100);
    assert_eq!(quarantined(&rig), [8], "it was not");
    end(&mut rig, 6);
    begin(&mut rig, 9, 201);
    assert_eq!(quarantined(&rig), [8]);
}

/// Has each of these hosts reached by every worker, as far as it has anything to do.
fn deliver(rig: &mut Rig, hosts: std::ops::Range<u32>) {
    for n in hosts {
        let (_, worker, key) = rig.place(&format!("h{n}.example"));
        rig.outcome(worker, key, Some(delivered()));
    }
}

/// The endpoint ends each first connection, at whichever worker, and takes each second.
fn takes_each_second(rig: &mut Rig, host: &str) {
    let (_, first, key) = rig.place(host);
    let effects = rig.outcome(first, key, Some(unreachable()));
    if let Some((second, key)) = packed(&effects).pop() {
        rig.outcome(second, key, Some(delivered()));
    } else if endings(&effects).is_empty() {
        let (delivery, outcome) = (DeliveryId(rig.next), delivered());
        rig.fleet.handle(rig.now, FleetInput::Ended { delivery, outcome });
        rig.effects();
    }
}

#[test]
fn endpoint_that_takes_each_second_connection_quarantines_nobody() {
    for local in [Local::Never, Local::Fallback] {
        let mut rig = Rig::new(local, 3);
        // As many requests as all others, and more than each worker's share of those.
        for round in 0..20 {
            deliver(&mut rig, 0..20);
            (0..10).for_each(|_| takes_each_second(&mut rig, "a.example"));
            rig.wait(LEASE / 4, 3);
            let counters = rig.fleet.counters();
            assert_eq!((counters.contradicted, counters.quarantines), (10 * (round + 1), 0));
        }
        // Nor those of two accounts, beside a worker's first answers.
        let mut rig = Rig::new(local, 3);
        deliver(&mut rig, 0..20);
        for _ in 0..40 {
            ["a.example", "b.example"].iter().for_each(|host| takes_each_second(&mut rig, host));
        }
        assert_eq!(rig.fleet.counters().quarantines, 0);
    }
}

#[test]
fn worker_that_fails_as_often_as_not_for_several_accounts_is_put_into_quarantine() {
    // Names do not resolve any more, and some connections are still open.
    let mut rig = Rig::new(Local::Never, 2);
    let hosts: Vec<String> = (0..).map(|n| format!("h{n}.example")).take(200).collect();
    let (mut at_first, mut answered) = (0, 0);
    for host in &hosts {
        let (_, worker, key) = rig.place(host);
        let of_first = worker == 0;
        at_first += u32::from(of_first);
        let fails = of_first && at_first % 3 > 0;
        answered += u32::from(of_first && !fails);
        let effects =
            rig.outcome(worker, key, Some(if fails { unreachable() } else { delivered() }));
        if let Some((other, key)) = packed(&effects).pop() {
            rig.outcome(other, key, Some(delivered()));
        }
    }
    assert_eq!(quarantined(&rig), [0]);
    assert!((5..=8).contains(&(at_first - answered)), "{at_first} {answered}");
}

#[test]
fn where_all_are_in_quarantine_all_serve_unless_the_leader_does() {
    let all_in_quarantine = |local| {
        let mut rig = Rig::new(local, 2);
        for host in ["a.example", "b.example", "c.example"] {
            // A host prefers one; when that is in quarantine it is the other's.
            for _ in 0..10 {
                // Else the leader has it.
                if quarantined(&rig).len() < 2 {
                    takes_each_second(&mut rig, host);
                }
            }
        }
        rig
    };
    let mut rig = all_in_quarantine(Local::Never);
    assert_eq!(quarantined(&rig), [0, 1]);
    assert_eq!(rig.slots(), Slots { fast: 16, slow: 32 });
    let workers: Vec<u128> = (0..16).map(|_| rig.place("d.example").1).collect();
    assert!(workers.iter().filter(|worker| **worker == 0).count() >= 6, "{workers:?}");
    // One that is well has all of it.
    rig.hello(2, HelloState::Serving, 0);
    assert_eq!(rig.slots(), Slots { fast: 24, slow: 16 }, "beside what the others still have");
    assert_eq!(rig.place("d.example").1, 2);
    let mut rig = all_in_quarantine(Local::Fallback);
    assert_eq!((quarantined(&rig), rig.slots()), (vec![0, 1], OWN));
}
