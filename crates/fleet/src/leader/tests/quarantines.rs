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
