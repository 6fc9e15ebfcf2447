//! What a worker tells the next leader.

use super::*;
use crate::frame::{EARLIER_KEYS, Earlier, WireOutcome};

/// What is told of earlier leaders, in its order.
fn told(effects: &[ServeEffect]) -> Vec<Earlier> {
    let told = |outcome: &WireOutcome| outcome.earlier;
    all(effects).iter().filter_map(told).collect()
}

fn all(effects: &[ServeEffect]) -> Vec<WireOutcome> {
    let of = |body: &Body| match body {
        Body::Outcomes(said) => Some(said.outcomes.clone()),
        _ => None,
    };
    said(effects).into_iter().filter_map(of).flatten().collect()
}

fn hello(effects: &[ServeEffect]) -> Hello {
    let of = |body: &Body| match body {
        Body::Hello(hello) => Some(hello.clone()),
        _ => None,
    };
    said(effects).into_iter().find_map(of).expect("it says that it is there")
}

impl Rig {
    fn ends(&mut self, key: AttemptKey, outcome: Option<Outcome>) {
        self.serving.handle(self.now, ServeInput::Ended { key, outcome });
    }

    /// Another leads, and has granted the worker's session; what it said before it was.
    fn succeed(&mut self, epoch: i64) -> Hello {
        self.epoch = epoch;
        self.lead(epoch);
        let effects = self.join();
        assert!(all(&effects).is_empty(), "nobody would hear it yet");
        hello(&effects)
    }
}

#[test]
fn next_leader_hears_what_runs_and_what_was_taken_and_nothing_else() {
    let mut rig = Rig::new();
    let first = rig.session;
    rig.attempts(0..4);
    rig.effects();
    let failed = Outcome::failed(FailureKind::Timeout, "no answer", Duration::ZERO);
    let (taken, failing, unbegun) = (rig.key(0), rig.key(1), rig.key(2));
    rig.ends(taken, outcome());
    rig.ends(failing, Some(failed));
    rig.ends(unbegun, None);
    rig.effects();
    rig.grant(rig.now, 3, false);
    rig.effects();

    let running = rig.key(3);
    let said = rig.succeed(4);
    assert_eq!((said.kept, said.former), (2, vec![first]));
    let runs = Earlier::Runs(delivery(3));
    let expected = [runs, Earlier::Delivered(delivery(0))];
    assert_eq!(told(&rig.effects()), expected);
    // Its end is told by the key under which it was.
    rig.ends(running, outcome());
    let end = WireOutcome { key: EARLIER_KEYS, outcome: outcome(), earlier: None };
    assert_eq!(all(&rig.effects()), [end]);

    // A third leader hears of both, and of none but those.
    rig.succeed(5);
    let expected = [Earlier::Delivered(delivery(3)), Earlier::Delivered(delivery(0))];
    assert_eq!(told(&rig.effects()), expected, "the newest first");
    rig.now += 60_000 * MS;
    rig.effects();
    let said = rig.succeed(6);
    assert_eq!(said.kept, 0, "a minute later nobody needs it");
}

#[test]
fn leader_that_does_not_ask_hears_nothing() {
    let mut rig = Rig::new();
    rig.attempts(0..2);
    rig.effects();
    rig.ends(rig.key(0), outcome());
    rig.effects();
    let lead = Lead { versions: SPOKEN, lease: LEASE, egress: None, asks: false };
    rig.epoch = 4;
    rig.say(4, SessionId::default(), 0, Body::Lead(lead));
    assert_eq!(hello(&rig.join()).kept, 0);
    assert!(told(&rig.effects()).is_empty());
}

#[test]
fn worker_that_leaves_tells_the_next_leader_and_takes_nothing() {
    let mut rig = Rig::new();
    rig.attempts(0..2);
    rig.effects();
    rig.ends(rig.key(0), outcome());
    rig.serving.handle(rig.now, ServeInput::Drain);
    rig.effects();
    let running = rig.key(1);
    rig.epoch = 4;
    rig.lead(4);
    let effects = rig.effects();
    let said = hello(&effects);
    assert_eq!((said.kept, said.fast_slots, said.slow_slots), (2, 0, 0));
    let subscribed = |effect: &ServeEffect| match effect {
        ServeEffect::Subscribe(session) => Some(*session),
        _ => None,
    };
    rig.session = effects.iter().find_map(subscribed).expect("it joins once more");
    rig.seq = 0;
    rig.grant(rig.now, 0, false);
    let expected = [Earlier::Runs(delivery(1)), Earlier::Delivered(delivery(0))];
    assert_eq!(told(&rig.effects()), expected);
    rig.grant(rig.now, 2, false);
    rig.effects();
    assert!(!rig.serving.is_drained(), "one runs, and the leader waits for it");
    rig.ends(running, outcome());
    assert_eq!(all(&rig.effects()).len(), 1);
    rig.grant(rig.now, 3, true);
    rig.effects();
    assert!(rig.serving.is_drained());
    assert_eq!(rig.serving.untold(), 0, "the next leader has heard of both");
}

#[test]
fn request_is_given_up_by_whoever_leads_and_not_by_the_one_before() {
    let mut rig = Rig::new();
    rig.attempts(0..2);
    rig.effects();
    let (first, seq) = (rig.session, rig.seq);
    rig.succeed(4);
    rig.effects();
    rig.say(3, first, seq + 1, Body::Abort(Abort { keys: vec![0] }));
    assert_eq!(rig.serving.in_flight(), 2);
    rig.order(Body::Abort(Abort { keys: vec![EARLIER_KEYS] }));
    let given_up = rig.effects().into_iter().find_map(|effect| match effect {
        ServeEffect::GiveUp(key) => Some(key),
        _ => None,
    });
    assert_eq!(given_up, Some(AttemptKey { session: first, key: 0 }));
    assert_eq!(rig.serving.in_flight(), 1);
}
