//! A leader that is driven by hand: its workers, what it is told, and what it does.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;
pub(super) use crate::LOST_AFTER_LEASE;
use crate::frame::{Digest, Hello, HelloState, Outcomes, PipelineId, SPOKEN, WireOutcome};
use walhook_core::attempt::{Delivery, FailureKind, Meaning, Outcome};
use walhook_core::endpoint::Endpoint;
use walhook_core::event::{AccountId, EndpointId, Event, Operation, RowKeys};
use walhook_core::id::Epoch;
use walhook_core::position::{EventId, Position};

pub(super) const LEASE: Duration = Duration::from_secs(2);

pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) const PIPELINE: PipelineId = PipelineId([1; 16]);

pub(super) const OWN: Slots = Slots { fast: 4, slow: 8 };

/// A leader with workers A, B, ..., each with 8 fast and 16 slow slots.
pub(super) struct Rig {
    pub(super) fleet: Fleet,
    pub(super) now: Tick,
    pub(super) hellos: u64,
    pub(super) said: u64,
    pub(super) next: u64,
    pub(super) begun: BTreeSet<u128>,
}

pub(super) fn session(n: u128) -> SessionId {
    SessionId(n + 1)
}

/// Each host is an account's.
pub(super) fn attempt(id: u64, host: &str, bytes: usize) -> Attempt {
    attempt_of(Position::FIRST, id, host, bytes)
}

/// Of an event at this position.
pub(super) fn attempt_of(position: Position, id: u64, host: &str, bytes: usize) -> Attempt {
    let endpoint = Endpoint {
        id: EndpointId::new("e"),
        account: AccountId::new(host),
        url: format!("https://{host}/hook"),
        event_types: vec![],
        secrets: vec![],
        enabled: true,
        headers: vec![],
        max_in_flight: None,
        rate_per_second: None,
        invalid: None,
    };
    let event = Event {
        id: EventId::derive(1, &position, "t", 0),
        position,
        event_type: "t".into(),
        account: AccountId::new(host),
        operation: Operation::Insert,
        commit_time_us: 0,
        keys: RowKeys::new(),
        row: Bytes::from(vec![b'1'; bytes]),
    };
    let delivery = Delivery { id: DeliveryId(id), event: Arc::new(event), number: 1, asked: None };
    Attempt { endpoint: Arc::new(endpoint), deliveries: delivery.into() }
}

pub(super) fn delivered() -> Outcome {
    let mut outcome = Outcome::new(Meaning::Delivered, Duration::from_millis(1));
    outcome.record.status = Some(200);
    outcome
}

pub(super) fn unreachable() -> Outcome {
    Outcome::failed(FailureKind::Connect, "no route to host", Duration::from_millis(1))
}

impl Rig {
    pub(super) fn new(local: Local, workers: u128) -> Self {
        let mut rig = Self::after(local, Before::NOTHING);
        (0..workers).for_each(|n| rig.hello(n, HelloState::Serving, 0));
        rig
    }

    /// A leader after another, of whom no worker has heard.
    pub(super) fn after(local: Local, before: Before) -> Self {
        Self::of(local, before, 7)
    }

    /// The first leader, of whom no worker has heard.
    pub(super) fn seeded(local: Local, seed: u64) -> Self {
        Self::of(local, Before::NOTHING, seed)
    }

    fn of(local: Local, before: Before, seed: u64) -> Self {
        let settings = FleetSettings {
            epoch: Epoch(3),
            pipeline: PIPELINE,
            versions: SPOKEN,
            lease: LEASE,
            timeout: TIMEOUT,
            local,
            own: OWN,
            egress: Some(Digest::default()),
            before,
            seed,
        };
        let mut rig = Self {
            fleet: Fleet::new(settings, Tick(0)),
            now: Tick(0),
            hellos: 0,
            said: 0,
            next: 0,
            begun: BTreeSet::new(),
        };
        rig.fleet.handle(rig.now, FleetInput::Bus { connected: true, max_payload: 1 << 20 });
        rig
    }

    pub(super) fn frame(&mut self, n: u128, seq: u64, body: Body) {
        self.frame_of(Some(PIPELINE), n, seq, body);
    }

    pub(super) fn frame_of(&mut self, pipeline: Option<PipelineId>, n: u128, seq: u64, body: Body) {
        let session = session(n);
        let frame = Frame { version: 1, epoch: Epoch(3), pipeline, session, seq, body };
        self.fleet.handle(self.now, FleetInput::Frame(Box::new(frame)));
    }

    pub(super) fn plain(&self) -> Hello {
        Hello {
            versions: SPOKEN,
            fast_slots: 8,
            slow_slots: 16,
            byte_budget: 1 << 20,
            stamp_us: self.now.0,
            received_upto: 0,
            state: HelloState::Serving,
            host: "host".into(),
            build: "1".into(),
            egress: Digest::default(),
            kept: 0,
            former: vec![],
            worker: None,
        }
    }

    /// One that begins hears the first grant at once.
    pub(super) fn hello(&mut self, n: u128, state: HelloState, received_upto: u64) {
        let begins = self.begun.insert(n) && (state, received_upto) == (HelloState::Serving, 0);
        self.only_hello(n, state, received_upto);
        if begins {
            self.only_hello(n, state, 1);
        }
    }

    pub(super) fn only_hello(&mut self, n: u128, state: HelloState, received_upto: u64) {
        self.hellos += 1;
        let hello = Hello { state, received_upto, ..self.plain() };
        self.frame(n, self.hellos, Body::Hello(hello));
    }

    /// All that is to be done now; frames count as published.
    pub(super) fn effects(&mut self) -> Vec<FleetEffect> {
        let mut effects = Vec::new();
        while let Some(effect) = self.fleet.poll(self.now) {
            let published = match &effect {
                FleetEffect::Pack { session, seq, .. } => Some((*session, *seq)),
                FleetEffect::Publish(frame) if frame.seq > 0 => Some((frame.session, frame.seq)),
                _ => None,
            };
            if let Some((session, seq)) = published {
                self.fleet.handle(self.now, FleetInput::Published { session, seq });
            }
            effects.push(effect);
        }
        effects
    }

    /// Places an attempt; which worker has it, and under which key.
    pub(super) fn place(&mut self, host: &str) -> (DeliveryId, u128, u64) {
        self.next += 1;
        let attempt = attempt(self.next, host, 100);
        assert_eq!(self.fleet.place(self.now, &attempt), Placement::Taken);
        let (worker, key) = packed(&self.effects()).pop().expect("it is packed");
        (DeliveryId(self.next), worker, key)
    }

    pub(super) fn outcome(
        &mut self,
        n: u128,
        key: u64,
        outcome: Option<Outcome>,
    ) -> Vec<FleetEffect> {
        let outcomes = vec![WireOutcome { key, outcome, earlier: None }];
        self.said += 1;
        self.frame(n, self.said, Body::Outcomes(Outcomes { first: self.said - 1, outcomes }));
        self.effects()
    }

    pub(super) fn slots(&mut self) -> Slots {
        self.effects();
        self.fleet.gauges().slots
    }

    /// Time passes, and nothing is heard.
    pub(super) fn silence(&mut self, time: Duration) -> Vec<FleetEffect> {
        let (end, mut effects) = (self.now + time, Vec::new());
        while self.now < end {
            self.now = (self.now + LEASE / 4).min(end);
            effects.extend(self.effects());
        }
        effects
    }

    /// Time passes, and the workers go on saying that they are there.
    pub(super) fn wait(&mut self, time: Duration, workers: u128) {
        let end = self.now + time;
        while self.now < end {
            self.now = (self.now + LEASE / 4).min(end);
            (0..workers).for_each(|n| self.hello(n, HelloState::Serving, 0));
            self.effects();
        }
    }
}

pub(super) fn packed(effects: &[FleetEffect]) -> Vec<(u128, u64)> {
    let mut found = Vec::new();
    for effect in effects {
        if let FleetEffect::Pack { session, attempts, .. } = effect {
            found.extend(attempts.iter().map(|packed| (session.0 - 1, packed.key)));
        }
    }
    found
}

pub(super) fn endings(effects: &[FleetEffect]) -> Vec<(DeliveryId, &Ending)> {
    let ended = |effect| match effect {
        &FleetEffect::Ended { delivery, ref ending, .. } => Some((delivery, ending)),
        _ => None,
    };
    effects.iter().filter_map(ended).collect()
}
