//! Two pipelines whose leaders share the subjects, and count their epochs alike.

use super::super::*;
use super::rig::*;
use crate::frame::{EARLIER_KEYS, HelloState, Outcomes, PipelineId, WireOutcome};
use walhook_core::id::Epoch;

#[test]
fn what_workers_of_another_pipeline_say_is_dropped_and_counted() {
    let mut rig = Rig::new(Local::Fallback, 1);
    let (delivery, worker, key) = rig.place("a.example");
    let theirs = Some(PipelineId([2; 16]));
    let outcomes = || {
        let told = WireOutcome { key, outcome: Some(delivered()), earlier: None };
        Body::Outcomes(Outcomes { first: 0, outcomes: vec![told] })
    };
    rig.frame_of(theirs, worker, 1, outcomes());
    let hello = rig.plain();
    rig.frame_of(theirs, 5, 1, Body::Hello(hello));
    let effects = rig.effects();
    assert!(endings(&effects).is_empty() && effects.is_empty(), "{effects:?}");
    assert_eq!((rig.fleet.gauges().serving, rig.fleet.counters().foreign), (1, 2));
    assert_eq!((rig.fleet.counters().strange, rig.fleet.counters().sessions_refused), (0, 0));
    // A worker of an earlier build does not say whose it is.
    rig.frame_of(None, worker, 1, outcomes());
    let effects = rig.effects();
    assert_eq!(endings(&effects), [(delivery, &Ending::Outcome(delivered()))]);
}

#[test]
fn workers_that_follow_a_leader_of_a_higher_epoch_are_counted_and_do_not_join() {
    let mut rig = Rig::new(Local::Fallback, 0);
    let said = |rig: &mut Rig, pipeline, epoch, body| {
        let (session, seq) = (SessionId(9), 1);
        let frame = Frame { version: 1, epoch: Epoch(epoch), pipeline, session, seq, body };
        rig.fleet.handle(rig.now, FleetInput::Frame(Box::new(frame)));
        (rig.fleet.counters().ahead, rig.fleet.counters().strange)
    };
    let hello = Body::Hello(rig.plain());
    assert_eq!(said(&mut rig, Some(PIPELINE), 2, hello.clone()), (0, 1), "it has not heard us yet");
    assert_eq!(said(&mut rig, None, 4, hello.clone()), (0, 2), "it may be another pipeline's");
    assert_eq!(said(&mut rig, Some(PIPELINE), 4, hello), (1, 2));
    assert_eq!(rig.fleet.gauges().joining, 0);
}

#[test]
fn keys_of_two_leaders_have_nothing_in_common_and_none_is_a_workers_own() {
    let first = |seed| {
        let mut rig = Rig::seeded(Local::Never, seed);
        rig.hello(0, HelloState::Serving, 0);
        let (.., key) = rig.place("a.example");
        let (.., next) = rig.place("a.example");
        assert_eq!(next, key + 1);
        assert!(key < EARLIER_KEYS / 2);
        key
    };
    let mut keys: Vec<u64> = (0..100).map(first).collect();
    keys.sort_unstable();
    assert!(keys.windows(2).all(|two| two[1] - two[0] > 1 << 32), "{keys:?}");
}
