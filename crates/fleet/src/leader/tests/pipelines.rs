//! Two pipelines whose leaders share the subjects, and count their epochs alike.

use super::super::*;
use super::rig::*;
use crate::frame::{EARLIER_KEYS, HelloState, Outcomes, PipelineId, WireOutcome};

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
