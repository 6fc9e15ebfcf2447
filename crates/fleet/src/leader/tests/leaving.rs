//! Workers that end their sessions, and go.

use super::super::*;
use super::rig::*;
use crate::frame::{ByeReason, HelloState};

/// Of which nothing is heard for so long is silent.
const LEASE_HALF: std::time::Duration = LEASE.checked_div(2).unwrap();

fn became(effects: &[FleetEffect]) -> Vec<WorkerState> {
    let state = |effect: &FleetEffect| match effect {
        FleetEffect::Changed(changed) => Some(changed.state),
        _ => None,
    };
    effects.iter().filter_map(state).collect()
}

#[test]
fn worker_that_has_said_that_it_ends_and_has_nothing_left_is_gone_and_not_silent() {
    let mut rig = Rig::new(Local::Never, 2);
    rig.effects();
    rig.hello(0, HelloState::Closing(ByeReason::Leaving), 1);
    assert_eq!(became(&rig.effects()), [WorkerState::Draining]);
    rig.wait(LEASE_HALF / 2, 0);
    rig.hello(1, HelloState::Serving, 0);
    rig.now = rig.now + LEASE_HALF / 2;
    assert_eq!(became(&rig.effects()), [WorkerState::Left]);
    let gauges = rig.fleet.gauges();
    assert_eq!((gauges.serving, gauges.draining, gauges.silent), (1, 0, 0));
    assert_eq!(rig.fleet.counters().sessions_lost, 0);
    // What it says later is not its session any more.
    rig.hello(0, HelloState::Closing(ByeReason::Leaving), 1);
    assert!(became(&rig.effects()).is_empty());
    assert_eq!(rig.fleet.gauges().draining, 0);
}

#[test]
fn worker_that_ends_with_a_request_under_way_is_waited_for() {
    let mut rig = Rig::new(Local::Never, 1);
    rig.place("a.example");
    rig.hello(0, HelloState::Closing(ByeReason::Leaving), 2);
    assert_eq!(became(&rig.effects()), [WorkerState::Draining]);
    rig.now = rig.now + LEASE_HALF;
    assert_eq!(became(&rig.effects()), [WorkerState::Silent]);
}

/// A worker of which the bus has said that its last request reached nobody.
fn unheard() -> Rig {
    let mut rig = Rig::new(Local::Never, 1);
    rig.next += 1;
    assert_eq!(rig.fleet.place(rig.now, &attempt(1, "a.example", 100)), Placement::Taken);
    let went = rig.effects();
    let seq = went.iter().find_map(|effect| match effect {
        FleetEffect::Pack { seq, .. } => Some(*seq),
        _ => None,
    });
    let (session, seq) = (session(0), seq.expect("it is packed"));
    rig.fleet.handle(rig.now, FleetInput::Unheard { session, seq });
    let effects = rig.effects();
    assert_eq!(endings(&effects), [(DeliveryId(1), &Ending::Unsent)]);
    assert_eq!(became(&effects), [WorkerState::Draining]);
    rig
}

#[test]
fn worker_that_was_killed_is_lost_also_where_nothing_that_it_had_is() {
    let mut rig = unheard();
    let effects = rig.silence(LEASE + LOST_AFTER_LEASE);
    assert_eq!(became(&effects), [WorkerState::Silent, WorkerState::Lost]);
    assert_eq!(rig.fleet.counters().sessions_lost, 1);
}

#[test]
fn worker_that_was_not_heard_for_a_moment_and_says_so_has_left_its_session() {
    let mut rig = unheard();
    rig.hello(0, HelloState::Closing(ByeReason::Gap), 1);
    let effects = rig.silence(LEASE + LOST_AFTER_LEASE);
    assert_eq!(became(&effects), [WorkerState::Left]);
    assert_eq!(rig.fleet.counters().sessions_lost, 0);
}
