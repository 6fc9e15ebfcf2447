//! Builds of neighbouring versions serve each other. The second version is the tests' own: it is written as the first
//! with a field more, and what is not of a version that both speak cannot be read.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::frame::{
    Attempts, Body, Digest, Frame, FrameError, PipelineId, Refusal, Request, SPOKEN, Versions,
};
use crate::leader::{
    Before, Ending, Fleet, FleetEffect, FleetInput, FleetSettings, Local, Placement, Slots,
};
use crate::worker::{ServeEffect, ServeInput, ServeSettings, ServeState, Serving};
use walhook_core::attempt::{Attempt, Delivery, DeliveryId, Meaning, Outcome};
use walhook_core::delivery_key::DeliveryKey;
use walhook_core::endpoint::Endpoint;
use walhook_core::event::{AccountId, EndpointId, Event, Operation, RowKeys};
use walhook_core::id::Epoch;
use walhook_core::position::{EventId, Position};
use walhook_core::tick::Tick;

const PIPELINE: PipelineId = PipelineId([1; 16]);
const NEXT: Versions = Versions { oldest: 1, newest: 2 };
const AFTER_NEXT: Versions = Versions { oldest: 2, newest: 3 };

/// A frame goes over the wire: from a build of the second version with the field that it adds.
fn carry(frame: &Frame, reader: Versions) -> Result<Frame, FrameError> {
    let mut bytes = BytesMut::from(&frame.encode()[..]);
    if frame.version > SPOKEN.newest {
        // Field 99, a number.
        bytes.put_slice(&[0x98, 0x06, 1]);
    }
    Frame::decode(bytes.freeze(), reader)
}

fn attempt() -> Attempt {
    let event = Event {
        id: EventId::derive(1, &Position::FIRST, "t", 0),
        position: Position::FIRST,
        event_type: "t".into(),
        account: AccountId::new("a"),
        operation: Operation::Insert,
        commit_time_us: 0,
        keys: RowKeys::new(),
        row: Bytes::new(),
    };
    let endpoint = Endpoint {
        id: EndpointId::new("e"),
        account: AccountId::new("a"),
        url: "https://a.example/".into(),
        event_types: vec![],
        secrets: vec![],
        enabled: true,
        headers: vec![],
        max_in_flight: None,
        rate_per_second: None,
        invalid: None,
    };
    let delivery = Delivery { id: DeliveryId(1), event: Arc::new(event), number: 1, asked: None };
    Attempt { endpoint: Arc::new(endpoint), deliveries: delivery.into() }
}

fn request(attempt: &Attempt, key: u64) -> Request {
    Request {
        key,
        number: 1,
        timeout: Duration::from_secs(15),
        account: attempt.endpoint.account.clone(),
        endpoint: attempt.endpoint.id.clone(),
        event: attempt.first().event.id,
        delivery: Some(DeliveryKey::of(attempt)),
        url: attempt.endpoint.url.clone(),
        headers: vec![],
        body: Bytes::new(),
    }
}

/// The version in which a delivery went through, or why it did not.
fn meet(leader: Versions, worker: Versions) -> Result<u8, Refusal> {
    let settings = FleetSettings {
        epoch: Epoch(1),
        pipeline: PIPELINE,
        versions: leader,
        lease: Duration::from_secs(2),
        timeout: Duration::from_secs(15),
        local: Local::Never,
        own: Slots::default(),
        egress: None,
        before: Before::NOTHING,
        seed: 1,
    };
    let (mut fleet, now) = (Fleet::new(settings, Tick(0)), Tick(0));
    let mut serving = Serving::new(ServeSettings {
        versions: worker,
        fast_slots: 1,
        slow_slots: 1,
        byte_budget: 1 << 20,
        host: "host".into(),
        build: "1".into(),
        egress: Digest::default(),
        seed: [1; 32],
    });
    fleet.handle(now, FleetInput::Bus { connected: true, max_payload: 1 << 20 });
    serving.handle(0, ServeInput::Bus { connected: true, max_payload: 1 << 20 });
    let (mut placed, mut version) = (false, 0);
    for _ in 0..100 {
        while let Some(effect) = serving.poll(0) {
            match effect {
                ServeEffect::Publish { frame, .. } => {
                    let frame = carry(&frame, leader).expect("the leader reads what a worker says");
                    version = version.max(frame.version);
                    fleet.handle(now, FleetInput::Frame(Box::new(frame)));
                }
                ServeEffect::Begin { key, .. } => {
                    let outcome = Some(Outcome::new(Meaning::Delivered, Duration::ZERO));
                    serving.handle(0, ServeInput::Ended { key, outcome });
                }
                ServeEffect::State(ServeState::Refused(why)) => return Err(why),
                ServeEffect::Subscribe(_)
                | ServeEffect::Unsubscribe(_)
                | ServeEffect::GiveUp(_)
                | ServeEffect::State(_) => {}
            }
        }
        if !placed && fleet.gauges().serving == 1 {
            assert_eq!(fleet.place(now, &attempt()), Placement::Taken);
            placed = true;
        }
        while let Some(effect) = fleet.poll(now) {
            let frame = match effect {
                FleetEffect::PublishLead(frame) | FleetEffect::Publish(frame) => *frame,
                FleetEffect::Pack { session, seq, version, attempts } => {
                    let requests =
                        attempts.iter().map(|packed| request(&packed.attempt, packed.key));
                    let body = Body::Attempts(Attempts { requests: requests.collect() });
                    let (epoch, pipeline) = (Epoch(1), Some(PIPELINE));
                    Frame { version, epoch, pipeline, session, seq, body }
                }
                FleetEffect::Ended { ending: Ending::Outcome(_), .. } => return Ok(version),
                FleetEffect::Ended { .. }
                | FleetEffect::CarryLocally(_)
                | FleetEffect::Doubt { .. }
                | FleetEffect::Slots(_)
                | FleetEffect::Workers(_)
                | FleetEffect::Changed(_)
                | FleetEffect::TookOver { .. } => continue,
            };
            let frame = carry(&frame, worker).expect("the worker reads what a leader says");
            serving.handle(0, ServeInput::Frame(Box::new(frame)));
        }
    }
    panic!("neither served nor refused");
}

#[test]
fn leader_and_worker_of_neighbouring_versions_serve_each_other() {
    assert_eq!(meet(SPOKEN, SPOKEN), Ok(1));
    assert_eq!(meet(SPOKEN, NEXT), Ok(1), "the worker is ahead");
    assert_eq!(meet(NEXT, SPOKEN), Ok(1), "the leader is ahead");
    assert_eq!(meet(NEXT, NEXT), Ok(2));
    assert_eq!(meet(NEXT, AFTER_NEXT), Ok(2));
    assert_eq!(meet(AFTER_NEXT, NEXT), Ok(2));
}

#[test]
fn worker_without_a_version_in_common_is_refused_and_knows_why() {
    assert_eq!(meet(SPOKEN, AFTER_NEXT), Err(Refusal::Version));
    assert_eq!(meet(AFTER_NEXT, SPOKEN), Err(Refusal::Version));
}
