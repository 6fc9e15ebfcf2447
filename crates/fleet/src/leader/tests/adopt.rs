//! What workers tell of an earlier leader's requests.

use super::*;
use crate::frame::{EARLIER_KEYS, Earlier};
use walhook_core::attempt::Asked;
use walhook_core::delivery_key::DeliveryKey;
use walhook_core::id::ReplayId;
use walhook_core::lsn::Lsn;
use walhook_core::position::WalPosition;

const MS: Duration = Duration::from_millis(1);

/// A session of the leader before.
const FORMER: SessionId = SessionId(77);

fn before() -> Before {
    Before { until: Lsn(100), sessions: vec![FORMER] }
}

fn key(host: &str) -> DeliveryKey {
    DeliveryKey::of(&attempt(0, host, 100))
}

fn runs(n: u64, host: &str) -> WireOutcome {
    let earlier = Some(Earlier::Runs(key(host)));
    WireOutcome { key: EARLIER_KEYS + n, outcome: None, earlier }
}

fn taken(n: u64, host: &str) -> WireOutcome {
    let earlier = Some(Earlier::Delivered(key(host)));
    WireOutcome { key: EARLIER_KEYS + n, outcome: Some(delivered()), earlier }
}

impl Rig {
    /// A worker joins, that has these to tell.
    fn keeps(&mut self, n: u128, kept: u64) {
        self.hellos += 1;
        let hello = Hello { kept, former: vec![FORMER], ..self.plain() };
        self.frame(n, self.hellos, Body::Hello(hello));
    }

    fn tells(&mut self, n: u128, first: u64, outcomes: Vec<WireOutcome>) -> Vec<FleetEffect> {
        self.frame(n, 1 + first, Body::Outcomes(Outcomes { first, outcomes }));
        self.effects()
    }

    fn asks(&mut self, id: u64, host: &str) -> Placement {
        self.fleet.place(self.now, &attempt(id, host, 100))
    }

    fn passes(&mut self, time: Duration) -> Vec<FleetEffect> {
        self.now = self.now + time;
        self.effects()
    }
}

fn took_over(effects: &[FleetEffect]) -> Option<(usize, usize, usize)> {
    effects.iter().find_map(|effect| match *effect {
        FleetEffect::TookOver { delivered, running, silent } => Some((delivered, running, silent)),
        _ => None,
    })
}

#[test]
fn what_an_earlier_leaders_worker_knows_to_be_taken_is_not_sent_again() {
    let mut rig = Rig::after(Local::Fallback, before());
    assert_eq!(rig.asks(1, "a.example"), Placement::Taken, "it is held, and not the leader's");
    assert!(endings(&rig.effects()).is_empty());
    rig.keeps(0, 2);
    let effects = rig.tells(0, 0, vec![taken(0, "a.example"), taken(1, "b.example")]);
    assert!(endings(&effects).is_empty(), "others may know more of it: {effects:?}");
    let effects = rig.passes(100 * MS);
    assert_eq!(took_over(&effects), Some((2, 0, 0)));
    assert_eq!(endings(&effects), [(DeliveryId(1), &Ending::Unsent)]);
    for (id, host) in [(2, "a.example"), (3, "b.example")] {
        assert_eq!(rig.asks(id, host), Placement::Taken);
        let ending = Ending::Outcome(delivered());
        assert_eq!(endings(&rig.effects()), [(DeliveryId(id), &ending)]);
    }
    // It was settled by that: who sends it once more means it.
    assert_eq!(rig.asks(4, "a.example"), Placement::Taken);
    assert_eq!(packed(&rig.effects()).len(), 1);
    assert_eq!(rig.fleet.counters().adopted_delivered, 2);
}

#[test]
fn what_runs_at_an_earlier_leaders_worker_is_waited_for_and_may_be_given_up() {
    let mut rig = Rig::after(Local::Never, before());
    rig.keeps(0, 3);
    rig.tells(0, 0, vec![runs(0, "a.example"), runs(1, "b.example"), runs(2, "c.example")]);
    rig.passes(100 * MS);
    let slots = rig.slots();
    for (id, host) in [(1, "a.example"), (2, "b.example")] {
        assert_eq!(rig.asks(id, host), Placement::Taken);
        assert!(packed(&rig.effects()).is_empty(), "it is there already");
    }
    assert_eq!(rig.slots(), Slots { fast: slots.fast + 2, ..slots }, "the worker's own are free");
    rig.fleet.handle(rig.now, FleetInput::Aborted(DeliveryId(2)));
    let given_up = |effect: &FleetEffect| match effect {
        FleetEffect::Publish(frame) => match &frame.body {
            Body::Abort(abort) => Some(abort.keys.clone()),
            _ => None,
        },
        _ => None,
    };
    assert_eq!(rig.effects().iter().find_map(given_up), Some(vec![EARLIER_KEYS + 1]));
    let ended = WireOutcome { key: EARLIER_KEYS, outcome: Some(delivered()), earlier: None };
    let effects = rig.tells(0, 3, vec![ended]);
    let ending = Ending::Outcome(delivered());
    assert_eq!(endings(&effects), [(DeliveryId(1), &ending)]);
    // One of which nobody has asked so far: what came of it is remembered.
    let ended = WireOutcome { key: EARLIER_KEYS + 2, outcome: Some(delivered()), earlier: None };
    rig.tells(0, 4, vec![ended]);
    assert_eq!(rig.asks(3, "c.example"), Placement::Taken);
    assert_eq!(endings(&rig.effects()), [(DeliveryId(3), &ending)]);
    assert_eq!(rig.slots(), slots);
}

#[test]
fn what_ran_at_a_worker_that_is_lost_comes_back_as_lost() {
    let mut rig = Rig::after(Local::Fallback, before());
    rig.keeps(0, 2);
    rig.tells(0, 0, vec![runs(0, "a.example"), runs(1, "b.example")]);
    rig.passes(100 * MS);
    assert_eq!(rig.asks(1, "a.example"), Placement::Taken);
    rig.effects();
    let effects = rig.silence(LEASE + LOST_AFTER_LEASE);
    assert!(matches!(endings(&effects)[..], [(DeliveryId(1), Ending::Lost { .. })]), "{effects:?}");
    // Of the other nobody can say anything any more.
    assert_eq!(rig.asks(2, "b.example"), Placement::Local);
}

#[test]
fn leader_waits_half_a_second_for_a_worker_that_may_know_and_not_at_all_for_what_is_new() {
    let mut rig = Rig::after(Local::Fallback, before());
    let Position::Wal(first) = Position::FIRST;
    let position = Position::Wal(WalPosition { commit_lsn: Lsn(100), ..first });
    let new = attempt_of(position, 1, "a.example", 100);
    assert_eq!(rig.fleet.place(rig.now, &new), Placement::Local, "no leader before has read it");
    assert_eq!(rig.asks(2, "a.example"), Placement::Taken);
    // Another worker has nothing to tell, and the one that was known does not answer.
    rig.hello(1, HelloState::Serving, 0);
    let effects = rig.passes(499 * MS);
    assert!(endings(&effects).is_empty() && took_over(&effects).is_none(), "{effects:?}");
    let effects = rig.passes(MS);
    assert_eq!(took_over(&effects), Some((0, 0, 1)));
    assert_eq!(endings(&effects), [(DeliveryId(2), &Ending::Unsent)]);
    assert_eq!(rig.asks(2, "a.example"), Placement::Taken);
    assert_eq!(packed(&rig.effects()).len(), 1);
}

#[test]
fn outcome_settles_the_delivery_of_its_wish_and_url_and_no_other() {
    let mut rig = Rig::after(Local::Fallback, Before { sessions: vec![], ..before() });
    rig.keeps(0, 1);
    rig.tells(0, 0, vec![taken(0, "a.example")]);
    rig.passes(100 * MS);
    let mut replayed = attempt(1, "a.example", 100);
    let asked = Some(Box::new(Asked::Replay(ReplayId(1))));
    replayed.deliveries = Delivery { asked, ..replayed.first().clone() }.into();
    for other in [replayed, attempt(2, "moved.example", 100)] {
        assert_eq!(rig.fleet.place(rig.now, &other), Placement::Taken);
        assert_eq!(packed(&rig.effects()).len(), 1, "it is sent");
    }
    assert_eq!(rig.asks(3, "a.example"), Placement::Taken);
    assert_eq!(endings(&rig.effects()).len(), 1);
}

#[test]
fn what_is_told_out_of_turn_or_again_is_taken_once() {
    let mut rig = Rig::after(Local::Never, before());
    rig.keeps(0, 2);
    // The frame before it was lost: it comes again, behind that one.
    rig.tells(0, 1, vec![runs(1, "b.example")]);
    let both = vec![runs(0, "a.example"), runs(1, "b.example")];
    rig.tells(0, 0, both.clone());
    let ended = WireOutcome { key: EARLIER_KEYS + 1, outcome: None, earlier: None };
    rig.tells(0, 2, vec![ended]);
    rig.tells(0, 0, both);
    rig.passes(100 * MS);
    assert_eq!(rig.asks(1, "b.example"), Placement::Taken);
    assert_eq!(packed(&rig.effects()).len(), 1, "it was not begun there: it is sent");
    assert_eq!(rig.fleet.counters().adopted_running, 0);
}

#[test]
fn worker_that_only_tells_takes_no_work_and_keeps_no_leader_from_sending() {
    let mut rig = Rig::after(Local::Fallback, before());
    rig.hellos += 1;
    let hello =
        Hello { fast_slots: 0, slow_slots: 0, kept: 1, former: vec![FORMER], ..rig.plain() };
    rig.frame(0, rig.hellos, Body::Hello(hello));
    rig.tells(0, 0, vec![taken(0, "a.example")]);
    rig.passes(100 * MS);
    assert_eq!(rig.slots(), OWN);
    assert_eq!((rig.fleet.gauges().draining, rig.fleet.gauges().serving), (1, 0));
    assert_eq!(rig.asks(1, "b.example"), Placement::Local);
}
