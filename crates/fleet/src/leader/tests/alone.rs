//! Failures before a request was sent, where nobody else can be asked.

use std::sync::Arc;
use std::time::Duration;

use super::super::*;
use super::rig::*;
use crate::frame::HelloState;
use walhook_core::attempt::{FailureKind, Outcome};
use walhook_core::endpoint::Endpoint;
use walhook_core::event::AccountId;

fn unresolved() -> Outcome {
    Outcome::failed(FailureKind::Dns, "the name servers say SERVFAIL", Duration::from_millis(1))
}

/// Has something sent to an endpoint of this account's. Which worker got it, and what followed from what came of it.
fn send(rig: &mut Rig, account: &str, host: &str, outcome: Outcome) -> (u128, Vec<FleetEffect>) {
    rig.next += 1;
    let attempt = attempt(rig.next, host, 100);
    let endpoint = Endpoint { account: AccountId::new(account), ..(*attempt.endpoint).clone() };
    let attempt = Attempt { endpoint: Arc::new(endpoint), ..attempt };
    assert_eq!(rig.fleet.place(rig.now, &attempt), Placement::Taken);
    let (worker, key) = packed(&rig.effects()).pop().expect("it is packed");
    (worker, rig.outcome(worker, key, Some(outcome)))
}

/// Nobody else is asked, and the endpoint has failed.
fn fail(rig: &mut Rig, account: &str, host: &str) {
    let (_, effects) = send(rig, account, host, unresolved());
    assert!(matches!(endings(&effects)[..], [(_, Ending::Outcome(_))]), "{effects:?}");
}

fn fail_at(rig: &mut Rig, endpoints: std::ops::Range<u32>, accounts: u32) {
    for n in endpoints {
        fail(rig, &format!("account {}", n % accounts), &format!("h{n}.example"));
    }
}

fn quarantines(rig: &Rig) -> (usize, u64) {
    (rig.fleet.gauges().quarantined, rig.fleet.counters().quarantines)
}

#[test]
fn only_worker_without_a_resolver_is_named_goes_on_and_gives_way_to_one_that_comes() {
    let mut rig = Rig::new(Local::Never, 1);
    fail_at(&mut rig, 0..4, 3);
    assert_eq!(quarantines(&rig), (0, 0));
    let (_, effects) = send(&mut rig, "account 2", "h4.example", unresolved());
    let named = effects.iter().any(|effect| match effect {
        FleetEffect::Changed(changed) => {
            (changed.state, &*changed.host) == (WorkerState::Quarantined, "host")
        }
        _ => false,
    });
    assert!(named, "{effects:?}");
    assert_eq!((quarantines(&rig), rig.slots()), ((1, 1), Slots { fast: 8, slow: 16 }));
    rig.hello(1, HelloState::Serving, 0);
    assert_eq!(rig.slots(), Slots { fast: 8, slow: 16 }, "those of the other");
    for n in 0..8 {
        let (worker, _) = send(&mut rig, "account 0", &format!("h{n}.example"), delivered());
        assert_eq!(worker, 1);
    }
}

#[test]
fn worker_without_a_resolver_fails_no_endpoint_where_another_has_one() {
    let mut rig = Rig::new(Local::Never, 2);
    for n in 0..200 {
        let (_, worker, key) = rig.place(&format!("h{n}.example"));
        let outcome = if worker == 0 { unresolved() } else { delivered() };
        let mut effects = rig.outcome(worker, key, Some(outcome));
        if let Some((other, key)) = packed(&effects).pop() {
            assert_eq!((worker, other), (0, 1));
            effects = rig.outcome(other, key, Some(delivered()));
        }
        let ended = endings(&effects);
        assert!(
            matches!(ended[..], [(_, Ending::Outcome(outcome))] if outcome.delivered()),
            "{effects:?}"
        );
    }
    assert_eq!(quarantines(&rig), (1, 1));
    assert_eq!(rig.fleet.counters().contradicted, 5);
}

#[test]
fn endpoints_of_two_accounts_quarantine_nobody_however_many_they_are() {
    let mut rig = Rig::new(Local::Never, 1);
    fail_at(&mut rig, 0..400, 2);
    assert_eq!(quarantines(&rig), (0, 0));
}

#[test]
fn worker_that_reaches_anybody_is_not_to_blame_for_endpoints_that_fail() {
    let mut rig = Rig::new(Local::Never, 1);
    for n in 0..100 {
        fail_at(&mut rig, 4 * n..4 * n + 4, 3);
        send(&mut rig, "well", "well.example", delivered());
    }
    assert_eq!(quarantines(&rig), (0, 0));
}

#[test]
fn endpoints_that_failed_before_do_not_count_in_a_quiet_night() {
    let mut rig = Rig::new(Local::Never, 1);
    for n in 0..60 {
        fail(&mut rig, &format!("account {n}"), &format!("dead{n}.example"));
        send(&mut rig, "well", "well.example", delivered());
    }
    for _ in 0..60 {
        for n in 0..60 {
            fail(&mut rig, &format!("account {n}"), &format!("dead{n}.example"));
        }
        rig.wait(Duration::from_secs(60), 1);
    }
    assert_eq!(quarantines(&rig), (0, 0));
    // Those that were reached meanwhile count when they fail again.
    for n in 0..5 {
        send(&mut rig, &format!("account {n}"), &format!("dead{n}.example"), delivered());
    }
    for n in 0..5 {
        fail(&mut rig, &format!("account {n}"), &format!("dead{n}.example"));
    }
    assert_eq!(quarantines(&rig), (1, 1));
}

#[test]
fn worker_that_reaches_nobody_stays_in_quarantine_until_it_does() {
    let mut rig = Rig::new(Local::Never, 1);
    fail_at(&mut rig, 0..5, 3);
    for _ in 0..60 {
        rig.wait(Duration::from_secs(10), 1);
        // Those that fail are tried again now and then.
        fail_at(&mut rig, 0..1, 3);
        assert_eq!(quarantines(&rig), (1, 1));
    }
    // Nothing is sent for a while.
    rig.wait(Duration::from_secs(40), 1);
    assert_eq!(quarantines(&rig), (0, 1));
    fail_at(&mut rig, 0..1, 3);
    assert_eq!(quarantines(&rig), (1, 2), "nothing has become of it");
    send(&mut rig, "account 0", "h0.example", delivered());
    rig.wait(Duration::from_secs(61), 1);
    assert_eq!(quarantines(&rig), (0, 2));
    fail_at(&mut rig, 0..4, 3);
    assert_eq!(quarantines(&rig), (0, 2), "it counts anew");
}
