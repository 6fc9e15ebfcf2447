//! Large requests on a slow way, and what keeps the worker alive beside them.

use super::super::*;
use super::rig::*;
use crate::frame::{Hello, HelloState};

#[test]
fn grants_go_while_large_requests_wait_until_the_worker_has_taken_others() {
    let mut rig = Rig::new(Local::Never, 0);
    let says = |rig: &mut Rig, seq, received_upto| {
        let state = HelloState::Serving;
        let hello = Hello { byte_budget: 16 << 20, received_upto, state, ..rig.plain() };
        rig.frame(0, seq, Body::Hello(hello));
        let effects = rig.effects();
        let grants = effects.iter().filter(|effect| match effect {
            FleetEffect::Publish(frame) => matches!(frame.body, Body::Grant(_)),
            _ => false,
        });
        let last = effects.iter().rev().find_map(|effect| match effect {
            FleetEffect::Pack { seq, .. } => Some(*seq),
            _ => None,
        });
        (grants.count(), packed(&effects).len(), last)
    };
    says(&mut rig, 1, 0);
    says(&mut rig, 2, 1);
    for n in 0..8 {
        let large = attempt(100 + n, "a.example", 300 << 10);
        assert_eq!(rig.fleet.place(rig.now, &large), Placement::Taken);
    }
    let went = packed(&rig.effects()).len();
    assert_eq!(went, 4, "1 MiB is on its way");
    rig.now = rig.now + LEASE / 8;
    assert_eq!(says(&mut rig, 3, 2), (1, 0, None), "it has taken none of them");
    assert!(!rig.fleet.gauges().slow);
    // It took them at the pace of the way: a frame of each, between two grants.
    rig.now = rig.now + LEASE / 4 + LEASE / 16;
    let (grants, more, _) = says(&mut rig, 4, 3);
    assert_eq!((grants, more), (1, 0), "it was late, so less is to be on its way");
    assert!(rig.fleet.gauges().slow);
    rig.now = rig.now + LEASE / 8;
    let (grants, more, _) = says(&mut rig, 5, 6);
    assert!(grants == 1 && more > 0, "{more}");
    rig.now = rig.now + SLOW_FOR;
    rig.effects();
    assert!(!rig.fleet.gauges().slow);
}
