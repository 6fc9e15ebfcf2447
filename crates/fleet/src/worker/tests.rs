mod kept;

use bytes::Bytes;

use super::*;
use crate::frame::{
    Abort, Attempts, Body, Bye, Digest, Frame, Grant, HelloState, Lead, PipelineId, Refused,
    Request, SPOKEN,
};
use walhook_core::attempt::{FailureKind, Meaning, Outcome};
use walhook_core::delivery_key::DeliveryKey;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::position::{EventId, Position};

const LEASE: Duration = Duration::from_secs(2);
const MS: u64 = 1_000;

/// A worker, and what a leader says to it.
struct Rig {
    serving: Serving,
    now: u64,
    session: SessionId,
    epoch: i64,
    pipeline: Option<PipelineId>,
    seq: u64,
}

fn request(key: u64) -> Request {
    Request {
        key,
        number: 1,
        timeout: Duration::from_secs(15),
        account: AccountId::new("a"),
        endpoint: EndpointId::new("e"),
        event: EventId::derive(1, &Position::FIRST, "t", 0),
        delivery: Some(delivery(key)),
        url: "https://a.example/".into(),
        headers: vec![],
        body: Bytes::new(),
    }
}

/// What tells the delivery of this key.
fn delivery(key: u64) -> DeliveryKey {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&key.to_be_bytes());
    DeliveryKey(bytes)
}

fn outcome() -> Option<Outcome> {
    Some(Outcome::new(Meaning::Delivered, Duration::from_millis(1)))
}

impl Rig {
    fn new() -> Self {
        let settings = ServeSettings {
            versions: SPOKEN,
            fast_slots: 8,
            slow_slots: 16,
            byte_budget: 1 << 20,
            host: "host".into(),
            build: "1".into(),
            egress: Digest::default(),
            seed: [7; 32],
        };
        let mut rig = Self {
            serving: Serving::new(settings),
            now: 5_000 * MS,
            session: SessionId(0),
            epoch: 3,
            pipeline: Some(PipelineId([1; 16])),
            seq: 0,
        };
        rig.serving.handle(rig.now, ServeInput::Bus { connected: true, max_payload: 1 << 20 });
        rig.lead(3);
        rig.join();
        rig
    }

    fn say(&mut self, epoch: i64, session: SessionId, seq: u64, body: Body) {
        self.say_of(self.pipeline, epoch, session, seq, body);
    }

    /// Of the leader of this pipeline.
    fn say_of(
        &mut self,
        pipeline: Option<PipelineId>,
        epoch: i64,
        session: SessionId,
        seq: u64,
        body: Body,
    ) {
        let frame = Frame { version: 1, epoch: Epoch(epoch), pipeline, session, seq, body };
        self.serving.handle(self.now, ServeInput::Frame(Box::new(frame)));
    }

    fn lead(&mut self, epoch: i64) {
        let lead = Lead { versions: SPOKEN, lease: LEASE, egress: None, asks: true };
        self.say(epoch, SessionId::default(), 0, Body::Lead(lead));
    }

    fn order(&mut self, body: Body) {
        self.seq += 1;
        self.say(self.epoch, self.session, self.seq, body);
    }

    fn grant(&mut self, stamp_us: u64, outcomes_upto: u64, closed: bool) {
        self.order(Body::Grant(Grant { stamp_us, lease: LEASE, outcomes_upto, closed }));
    }

    fn attempts(&mut self, keys: std::ops::Range<u64>) {
        self.order(Body::Attempts(Attempts { requests: keys.map(request).collect() }));
    }

    fn effects(&mut self) -> Vec<ServeEffect> {
        std::iter::from_fn(|| self.serving.poll(self.now)).collect()
    }

    /// Takes the session that the worker begins, and grants it a lease.
    fn join(&mut self) -> Vec<ServeEffect> {
        let effects = self.effects();
        let session = effects.iter().find_map(|effect| match effect {
            ServeEffect::Subscribe(session) => Some(*session),
            _ => None,
        });
        self.session = session.expect("it joins");
        self.seq = 0;
        self.grant(self.now, 0, false);
        assert_eq!(self.serving.state(), ServeState::Serving);
        effects
    }

    fn key(&self, key: u64) -> AttemptKey {
        AttemptKey { session: self.session, key }
    }
}

fn begun(effects: &[ServeEffect]) -> Vec<u64> {
    let begun = |effect: &ServeEffect| match effect {
        ServeEffect::Begin { key, .. } => Some(key.key),
        _ => None,
    };
    effects.iter().filter_map(begun).collect()
}

fn said(effects: &[ServeEffect]) -> Vec<&Body> {
    fn body(effect: &ServeEffect) -> Option<&Body> {
        match effect {
            ServeEffect::Publish { frame, .. } => Some(&frame.body),
            _ => None,
        }
    }
    effects.iter().filter_map(body).collect()
}

/// The outcomes that are published: the first one's number, and of each its key and whether it was begun.
fn outcomes(effects: &[ServeEffect]) -> Vec<(u64, Vec<(u64, bool)>)> {
    let of = |body: &Body| match body {
        Body::Outcomes(said) => {
            let each = said.outcomes.iter().map(|outcome| (outcome.key, outcome.outcome.is_some()));
            Some((said.first, each.collect()))
        }
        _ => None,
    };
    said(effects).into_iter().filter_map(of).collect()
}

#[test]
fn request_begins_only_before_the_end_of_a_lease_on_the_workers_own_stamp() {
    let mut rig = Rig::new();
    let stamp = rig.now;
    rig.attempts(0..2);
    let effects = rig.effects();
    assert_eq!(begun(&effects), [0, 1]);
    let until = effects.iter().find_map(|effect| match effect {
        ServeEffect::Begin { until_us, .. } => Some(*until_us),
        _ => None,
    });
    assert_eq!(until, Some(stamp + 2_000 * MS));
    // Frozen for the rest of the lease: what comes now is not begun, and the session is over.
    rig.now = stamp + 2_000 * MS;
    rig.attempts(2..4);
    let effects = rig.join();
    assert!(begun(&effects).is_empty(), "{effects:?}");
    let bye = Body::Bye(Bye { received_upto: 2, why: ByeReason::Lease });
    assert!(said(&effects).contains(&&bye), "{effects:?}");
    // A stamp that this clock has not shown yet gives no right.
    rig.grant(rig.now + 60_000 * MS, 0, false);
    rig.now += 2_000 * MS;
    rig.attempts(4..5);
    assert!(begun(&rig.effects()).is_empty());
}

#[test]
fn frame_that_is_missing_ends_the_session_and_what_runs_is_heard_of() {
    let mut rig = Rig::new();
    rig.attempts(0..1);
    rig.effects();
    rig.seq += 1;
    rig.attempts(1..2);
    let old = rig.session;
    let effects = rig.join();
    assert!(begun(&effects).is_empty());
    assert!(
        said(&effects).contains(&&Body::Bye(Bye { received_upto: 2, why: ByeReason::Gap })),
        "{effects:?}"
    );
    assert!(
        said(&effects).iter().any(|body| matches!(
            body,
            Body::Hello(Hello { state: HelloState::Closing(ByeReason::Gap), received_upto: 2, .. })
        )),
        "it is said twice, for either may be lost: {effects:?}"
    );
    // The running one takes a slot of the new session's.
    let free = said(&effects).into_iter().find_map(|body| match body {
        Body::Hello(hello) if hello.state == HelloState::Serving => Some(hello.fast_slots),
        _ => None,
    });
    assert_eq!(free, Some(7));
    rig.serving.handle(
        rig.now,
        ServeInput::Ended { key: AttemptKey { session: old, key: 0 }, outcome: outcome() },
    );
    assert_eq!(outcomes(&rig.effects()), [(0, vec![(0, true)])]);
}

#[test]
fn outcome_is_said_again_until_it_is_acknowledged() {
    let mut rig = Rig::new();
    rig.attempts(0..2);
    rig.effects();
    rig.serving.handle(rig.now, ServeInput::Ended { key: rig.key(0), outcome: outcome() });
    rig.serving.handle(rig.now, ServeInput::Ended { key: rig.key(1), outcome: None });
    let both = [(0, vec![(0, true), (1, false)])];
    assert_eq!(outcomes(&rig.effects()), both);
    rig.now += 1_000 * MS;
    assert_eq!(outcomes(&rig.effects()), both);
    rig.grant(rig.now, 1, false);
    rig.now += 1_000 * MS;
    assert_eq!(outcomes(&rig.effects()), [(1, vec![(1, false)])]);
    rig.grant(rig.now, 2, false);
    rig.now += 1_000 * MS;
    assert!(outcomes(&rig.effects()).is_empty());
}

#[test]
fn outcome_that_was_lost_is_said_again_although_others_follow() {
    let mut rig = Rig::new();
    rig.attempts(0..20);
    rig.effects();
    let mut again_at = None;
    for key in 0..20 {
        rig.serving.handle(rig.now, ServeInput::Ended { key: rig.key(key), outcome: outcome() });
        // What came of the first is lost each time, so that nothing is acknowledged.
        let said = outcomes(&rig.effects());
        if key > 0 && said.iter().any(|(first, _)| *first == 0) {
            again_at.get_or_insert(key);
        }
        rig.now += 250 * MS;
        rig.grant(rig.now, 0, false);
    }
    assert!(again_at.is_some_and(|round| round <= 4), "half a lease: {again_at:?}");
    // Of one that is heard nothing is said twice.
    let mut rig = Rig::new();
    rig.attempts(0..20);
    rig.effects();
    let mut said = Vec::new();
    for key in 0..20 {
        rig.serving.handle(rig.now, ServeInput::Ended { key: rig.key(key), outcome: outcome() });
        said.extend(outcomes(&rig.effects()).into_iter().map(|(first, each)| (first, each.len())));
        rig.now += 250 * MS;
        // It is behind by one.
        rig.grant(rig.now, key, false);
    }
    assert_eq!(said, (0..20).map(|first| (first, 1)).collect::<Vec<_>>());
}

#[test]
fn higher_epoch_ends_everything_of_the_lower_and_a_lower_one_is_not_heard() {
    let mut rig = Rig::new();
    rig.attempts(0..1);
    rig.effects();
    let old = rig.session;
    rig.lead(4);
    rig.attempts(1..2);
    let effects = rig.effects();
    assert!(begun(&effects).is_empty(), "{effects:?}");
    let joins = effects.iter().filter(|effect| matches!(effect, ServeEffect::Subscribe(_))).count();
    assert_eq!((joins, rig.serving.epoch()), (1, Some(Epoch(4))));
    rig.serving.handle(
        rig.now,
        ServeInput::Ended { key: AttemptKey { session: old, key: 0 }, outcome: outcome() },
    );
    assert!(outcomes(&rig.effects()).is_empty(), "nobody wants to hear of it");
    rig.now += 1_000 * MS;
    assert_eq!(rig.serving.lower_heard(rig.now), None);
    rig.lead(3);
    rig.effects();
    assert_eq!(rig.serving.epoch(), Some(Epoch(4)));
    assert_eq!(rig.serving.lower_heard(rig.now), Some(Duration::ZERO));
    // The state tables were made anew: epochs begin again.
    rig.now += 61_000 * MS;
    rig.lead(1);
    assert_eq!(rig.serving.epoch(), Some(Epoch(1)));
}

#[test]
fn worker_that_leaves_takes_nothing_more_and_goes_when_its_last_outcome_is_acknowledged() {
    let mut rig = Rig::new();
    rig.attempts(0..1);
    rig.effects();
    rig.serving.handle(rig.now, ServeInput::Drain);
    rig.attempts(1..2);
    let effects = rig.effects();
    assert!(begun(&effects).is_empty());
    assert!(
        said(&effects).contains(&&Body::Bye(Bye { received_upto: 2, why: ByeReason::Leaving }))
    );
    rig.serving.handle(rig.now, ServeInput::Ended { key: rig.key(0), outcome: outcome() });
    assert_eq!(outcomes(&rig.effects()), [(0, vec![(0, true)])]);
    assert!(!rig.serving.is_drained(), "it is not acknowledged");
    assert_eq!(rig.serving.untold(), 1);
    rig.grant(rig.now, 1, true);
    rig.effects();
    assert!(rig.serving.is_drained());
    assert_eq!(rig.serving.untold(), 0);
}

#[test]
fn worker_that_leaves_goes_in_time_where_no_leader_answers() {
    for (requests, heard) in [(0, 0), (3, 0), (3, 2)] {
        let mut rig = Rig::new();
        rig.attempts(0..requests);
        rig.effects();
        rig.serving.handle(rig.now, ServeInput::Drain);
        for key in 0..requests {
            rig.serving
                .handle(rig.now, ServeInput::Ended { key: rig.key(key), outcome: outcome() });
        }
        rig.effects();
        rig.grant(rig.now, heard, false);
        assert!(!rig.serving.is_drained());
        rig.now += 4_000 * MS;
        rig.effects();
        assert!(rig.serving.is_drained());
        assert_eq!(rig.serving.untold(), requests - heard);
    }
}

#[test]
fn what_a_lost_session_makes_while_its_worker_leaves_is_told_to_nobody() {
    let mut rig = Rig::new();
    rig.attempts(0..3);
    rig.effects();
    rig.serving.handle(rig.now, ServeInput::Ended { key: rig.key(0), outcome: outcome() });
    rig.serving.handle(rig.now, ServeInput::Drain);
    rig.order(Body::Refused(Refused { why: Refusal::Lost }));
    rig.serving.handle(rig.now, ServeInput::Ended { key: rig.key(1), outcome: outcome() });
    rig.serving.handle(rig.now, ServeInput::Ended { key: rig.key(2), outcome: None });
    rig.effects();
    assert!(rig.serving.is_drained());
    assert_eq!(rig.serving.untold(), 2);
}

#[test]
fn worker_that_is_refused_asks_again_after_a_while_and_at_once_where_it_was_lost() {
    let mut rig = Rig::new();
    rig.order(Body::Refused(Refused { why: Refusal::Lost }));
    rig.join();
    rig.order(Body::Refused(Refused { why: Refusal::Egress }));
    rig.effects();
    assert_eq!(rig.serving.state(), ServeState::Refused(Refusal::Egress));
    rig.now += 9_000 * MS;
    rig.lead(3);
    assert!(said(&rig.effects()).is_empty());
    rig.now += 1_000 * MS;
    rig.join();
}

#[test]
fn request_that_is_given_up_is_dropped_and_nothing_is_said_of_it() {
    let mut rig = Rig::new();
    rig.attempts(0..2);
    rig.effects();
    rig.order(Body::Abort(Abort { keys: vec![1, 9] }));
    let effects = rig.effects();
    assert!(matches!(effects[..], [ServeEffect::GiveUp(AttemptKey { key: 1, .. })]), "{effects:?}");
    rig.serving.handle(rig.now, ServeInput::Ended { key: rig.key(1), outcome: outcome() });
    assert!(outcomes(&rig.effects()).is_empty());
    assert_eq!(rig.serving.in_flight(), 1);
}

#[test]
fn connection_that_is_lost_ends_the_session_and_what_was_not_acknowledged_is_said_over_the_next() {
    let mut rig = Rig::new();
    rig.attempts(0..1);
    rig.effects();
    let key = rig.key(0);
    rig.serving.handle(rig.now, ServeInput::Bus { connected: false, max_payload: 1 << 20 });
    rig.serving.handle(rig.now, ServeInput::Ended { key, outcome: outcome() });
    assert!(said(&rig.effects()).is_empty(), "nothing can be said");
    rig.now += 500 * MS;
    rig.serving.handle(rig.now, ServeInput::Bus { connected: true, max_payload: 1 << 20 });
    let effects = rig.join();
    assert_eq!(outcomes(&effects), [(0, vec![(0, true)])]);
    assert!(
        said(&effects)
            .contains(&&Body::Bye(Bye { received_upto: 2, why: ByeReason::Disconnected })),
        "{effects:?}"
    );
}

#[test]
fn outcomes_are_said_in_frames_that_the_bus_takes_one_in_each_if_need_be() {
    for (max_payload, frames) in [(1 << 20, 1), (4 << 10, 5), (1 << 10, 9)] {
        let mut rig = Rig::new();
        rig.attempts(0..9);
        rig.effects();
        let connected = true;
        rig.serving.handle(rig.now, ServeInput::Bus { connected, max_payload });
        for key in 0..9 {
            let text = "x".repeat(800);
            let outcome = Outcome::failed(FailureKind::Connect, &text, Duration::ZERO);
            let key = rig.key(key);
            rig.serving.handle(rig.now, ServeInput::Ended { key, outcome: Some(outcome) });
        }
        let said = outcomes(&rig.effects());
        assert_eq!(said.len(), frames, "{said:?}");
        let keys: Vec<u64> =
            said.into_iter().flat_map(|(_, each)| each).map(|(key, _)| key).collect();
        assert_eq!(keys, (0..9).collect::<Vec<_>>());
    }
}

#[test]
fn worker_serves_the_pipeline_that_it_heard_first_until_that_is_silent_for_long() {
    let mut rig = Rig::new();
    let (ours, theirs) = (rig.pipeline, Some(PipelineId([2; 16])));
    rig.attempts(0..1);
    assert_eq!(begun(&rig.effects()), [0]);
    let lead = || Body::Lead(Lead { versions: SPOKEN, lease: LEASE, egress: None, asks: true });
    assert_eq!(rig.serving.another_heard(rig.now), None);
    for epoch in [3, 9] {
        // Whatever its epoch, and although it names our session.
        rig.say_of(theirs, epoch, SessionId::default(), 0, lead());
        let requests = vec![request(7)];
        let session = rig.session;
        rig.say_of(theirs, epoch, session, rig.seq + 1, Body::Attempts(Attempts { requests }));
        rig.say_of(theirs, epoch, session, 0, Body::Refused(Refused { why: Refusal::Lost }));
        assert!(begun(&rig.effects()).is_empty());
        assert_eq!(
            (rig.serving.epoch(), rig.serving.state()),
            (Some(Epoch(3)), ServeState::Serving)
        );
    }
    assert_eq!(rig.serving.another_heard(rig.now), Some(Duration::ZERO));
    rig.attempts(1..2);
    let effects = rig.effects();
    assert_eq!(begun(&effects), [1], "the other one's frame took no number");
    let key = rig.key(0);
    rig.serving.handle(rig.now, ServeInput::Ended { key, outcome: outcome() });
    let named = |effect: ServeEffect| match effect {
        ServeEffect::Publish { frame, .. } => Some(frame.pipeline),
        _ => None,
    };
    let named: Vec<_> = rig.effects().into_iter().filter_map(named).collect();
    assert!(!named.is_empty() && named.iter().all(|pipeline| *pipeline == ours), "{named:?}");

    rig.now += 59_000 * MS;
    rig.say_of(theirs, 9, SessionId::default(), 0, lead());
    assert_eq!(rig.serving.epoch(), Some(Epoch(3)));
    rig.now += 1_000 * MS;
    rig.effects();
    // One request of ours still runs: it is none of theirs.
    rig.say_of(theirs, 1, SessionId::default(), 0, lead());
    assert_eq!(rig.serving.epoch(), Some(Epoch(1)));
    (rig.pipeline, rig.epoch) = (theirs, 1);
    let effects = rig.join();
    let hello = said(&effects).into_iter().find_map(|body| match body {
        Body::Hello(hello) if hello.state == HelloState::Serving => Some(hello.clone()),
        _ => None,
    });
    let hello = hello.expect("it joins");
    assert_eq!((hello.kept, hello.former, hello.fast_slots), (0, vec![], 7));
}

#[test]
fn leader_of_an_earlier_build_names_no_pipeline_and_is_served_before_and_after_one_that_does() {
    let mut rig = Rig::new();
    let ours = rig.pipeline;
    for (epoch, pipeline) in [(4, None), (5, ours), (6, None)] {
        (rig.pipeline, rig.epoch) = (pipeline, epoch);
        rig.lead(epoch);
        rig.join();
        rig.attempts(0..1);
        assert_eq!(begun(&rig.effects()), [0], "{epoch}");
        let key = rig.key(0);
        rig.serving.handle(rig.now, ServeInput::Ended { key, outcome: outcome() });
        rig.effects();
    }
}
