//! Leaders, workers, the bus between them, and what happens to them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::account::Account;
use super::bus::{Bus, Letter, Node, Subject, Weather};
use crate::frame::{Attempts, Body, Digest, Frame, Header, Request, SPOKEN, SessionId, Versions};
use crate::leader::{Fleet, FleetEffect, FleetInput, FleetSettings, Local, Placement, Slots};
use crate::worker::{AttemptKey, ServeEffect, ServeInput, ServeSettings, Serving, To};
use walhook_core::attempt::{Attempt, Delivery, DeliveryId, FailureKind, Meaning, Outcome};
use walhook_core::endpoint::Endpoint;
use walhook_core::event::{AccountId, EndpointId, Event, Operation, RowKeys};
use walhook_core::id::Epoch;
use walhook_core::position::{EventId, Position};
use walhook_core::tick::Tick;

const LEASE: Duration = Duration::from_secs(2);
const MS: u64 = 1_000;
const SECOND: u64 = 1_000 * MS;

/// Work and faults until then; then all is well, and what is under way ends.
const BUSY: u64 = 20 * SECOND;
const END: u64 = 45 * SECOND;

#[derive(Debug)]
enum Happens {
    Arrives(Letter),
    Unheard { leader: usize, session: SessionId, seq: u64 },
    Publish { leader: usize, frame: Box<Frame> },
    Begin { worker: usize, life: u32, key: AttemptKey, epoch: Epoch, until_us: u64 },
    End { worker: usize, life: u32, key: AttemptKey, run: u32 },
    LocalEnd { leader: usize, delivery: DeliveryId, run: u32, told: bool },
    Wake(Node),
    Thaw(Node),
    Work,
    Fault,
    Link { node: Node, up: bool },
    Told { node: Node, up: bool },
    Born(usize),
}

#[derive(Debug)]
struct Leader {
    fleet: Fleet,
    epoch: Epoch,
    began: u64,
    slots: Slots,
    local: BTreeSet<DeliveryId>,
    /// Frames of a session are published in their order.
    packed_at: BTreeMap<SessionId, u64>,
    in_flight: BTreeSet<DeliveryId>,
}

#[derive(Debug)]
struct Worker {
    serving: Serving,
    life: u32,
    /// What its boot-time clock shows at 0.
    clock: u64,
    heard: BTreeSet<SessionId>,
    running: BTreeMap<AttemptKey, Option<u32>>,
    /// It cannot connect to anybody.
    cut_off: bool,
    highest: Epoch,
    draining: bool,
}

#[derive(Debug, Default)]
struct Link {
    down: bool,
    frozen_until: Option<u64>,
    /// What came meanwhile, in its order.
    held: VecDeque<Happens>,
    wakes_at: Option<u64>,
}

pub(super) struct World {
    rng: SmallRng,
    now: u64,
    next: u64,
    events: BTreeMap<(u64, u64), Happens>,
    bus: Bus,
    calm: bool,
    local: Local,
    leaders: Vec<Option<Leader>>,
    workers: Vec<Option<Worker>>,
    lives: u32,
    links: BTreeMap<Node, Link>,
    endpoints: Vec<Arc<Endpoint>>,
    next_delivery: u64,
    account: Account,
}

fn endpoint(n: usize) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        id: EndpointId::new(n.to_string()),
        account: AccountId::new((n % 3).to_string()),
        url: format!("https://h{n}.example/hook"),
        event_types: vec!["*".into()],
        secrets: vec![],
        enabled: true,
        headers: vec![],
        max_in_flight: None,
        rate_per_second: None,
        invalid: None,
    })
}

impl World {
    pub(super) fn run(seed: u64) -> Account {
        let mut rng = SmallRng::seed_from_u64(seed);
        let calm = seed.is_multiple_of(5);
        let weather = if calm {
            Weather { lost: 0, repeated: 0, slowest_us: rng.random_range(100..20 * MS) }
        } else {
            Weather {
                lost: rng.random_range(0..60),
                repeated: rng.random_range(0..20),
                slowest_us: rng.random_range(100..700 * MS),
            }
        };
        let local =
            [Local::Fallback, Local::Fallback, Local::Always, Local::Never][rng.random_range(0..4)];
        let mut world = Self {
            rng,
            now: 0,
            next: 0,
            events: BTreeMap::new(),
            bus: Bus::new(weather),
            calm,
            local,
            leaders: Vec::new(),
            workers: Vec::new(),
            lives: 0,
            links: BTreeMap::new(),
            endpoints: (0..8).map(endpoint).collect(),
            next_delivery: 0,
            account: Account::default(),
        };
        world.lead();
        for _ in 0..world.rng.random_range(1..5) {
            world.workers.push(None);
            world.bear(world.workers.len() - 1);
        }
        world.after(0, Happens::Work);
        world.after(SECOND, Happens::Fault);
        world.go();
        world.account
    }

    fn after(&mut self, delay: u64, happens: Happens) {
        self.at(self.now + delay, happens);
    }

    fn at(&mut self, at: u64, happens: Happens) {
        self.next += 1;
        self.events.insert((at.max(self.now), self.next), happens);
    }

    fn go(&mut self) {
        while let Some(((at, _), happens)) = self.events.pop_first() {
            if at > END {
                break;
            }
            self.now = at;
            self.happen(happens);
        }
        let Some(leader) = self.leaders.last().and_then(Option::as_ref) else {
            panic!("nobody leads")
        };
        self.account.check_all_back(leader.epoch, self.now);
        self.account.counters = leader.fleet.counters();
        let gauges = leader.fleet.gauges();
        assert_eq!(gauges.in_flight, 0);
        let alive = self.workers.iter().flatten().count();
        assert_eq!(
            (gauges.serving + gauges.quarantined, gauges.silent, gauges.draining),
            (alive, 0, 0),
            "{gauges:?}"
        );
        // Those in quarantine have a slot at most, and what was found slow may not have all of its own yet.
        let workers = u32::try_from(alive).unwrap();
        let most = Slots { fast: 8 * workers + 16, slow: 16 * workers + 16 };
        assert!(gauges.slots.fast <= most.fast && gauges.slots.slow <= most.slow, "{gauges:?}");
        assert!(gauges.slots.fast > 0, "{gauges:?}");
        for worker in self.workers.iter().flatten() {
            assert_eq!(worker.serving.in_flight(), 0, "{:?}", worker.serving);
        }
        if self.calm {
            let account = &self.account;
            assert_eq!((account.lost, account.twice), (0, 0), "nothing but drains happened");
        }
    }

    /// Whether a node is not to be told anything now: it is told all of it when it thaws.
    fn frozen(&self, node: Node) -> bool {
        self.links
            .get(&node)
            .and_then(|link| link.frozen_until)
            .is_some_and(|until| until > self.now)
    }

    fn thaw(&mut self, node: Node) {
        if self.frozen(node) {
            return;
        }
        let link = self.links.entry(node).or_default();
        link.frozen_until = None;
        for happens in std::mem::take(&mut link.held) {
            self.happen(happens);
        }
        self.drive(node);
    }

    fn node_of(happens: &Happens) -> Option<Node> {
        match happens {
            Happens::Arrives(letter) => Some(letter.to),
            Happens::Unheard { leader, .. }
            | Happens::Publish { leader, .. }
            | Happens::LocalEnd { leader, .. } => Some(Node::Leader(*leader)),
            Happens::Begin { worker, .. } | Happens::End { worker, .. } => {
                Some(Node::Worker(*worker))
            }
            Happens::Wake(node) | Happens::Told { node, .. } => Some(*node),
            Happens::Work
            | Happens::Thaw(_)
            | Happens::Fault
            | Happens::Link { .. }
            | Happens::Born(_) => None,
        }
    }

    fn happen(&mut self, happens: Happens) {
        let node = Self::node_of(&happens);
        if let Some(frozen) = node.filter(|node| self.frozen(*node)) {
            self.links.entry(frozen).or_default().held.push_back(happens);
            return;
        }
        match happens {
            Happens::Arrives(letter) => self.arrive(&letter),
            Happens::Unheard { leader, session, seq } => {
                self.tell_leader(leader, FleetInput::Unheard { session, seq });
            }
            Happens::Publish { leader, frame } => self.publish_ordered(leader, *frame),
            Happens::Begin { worker, life, key, epoch, until_us } => {
                self.begin(worker, life, key, epoch, until_us)
            }
            Happens::End { worker, life, key, run } => self.end(worker, life, key, run),
            Happens::LocalEnd { leader, delivery, run, told } => {
                self.local_end(leader, delivery, run, told)
            }
            Happens::Wake(_) => {}
            Happens::Thaw(node) => self.thaw(node),
            Happens::Work => self.work(),
            Happens::Fault => self.fault(),
            Happens::Link { node, up } => self.set_link(node, up),
            Happens::Told { node, up } => self.told(node, up),
            Happens::Born(worker) => self.bear(worker),
        }
        if let Some(node) = node {
            self.drive(node);
        }
    }

    fn lead(&mut self) {
        let epoch = Epoch(i64::try_from(self.leaders.len()).unwrap() + 1);
        let settings = FleetSettings {
            epoch,
            versions: SPOKEN,
            lease: LEASE,
            local: self.local,
            own: Slots { fast: 8, slow: 16 },
            egress: Some(Digest::default()),
            seed: self.rng.random(),
        };
        let leader = Leader {
            fleet: Fleet::new(settings, Tick(0)),
            epoch,
            began: self.now,
            slots: Slots::default(),
            local: BTreeSet::new(),
            packed_at: BTreeMap::new(),
            in_flight: BTreeSet::new(),
        };
        self.leaders.push(Some(leader));
        let node = Node::Leader(self.leaders.len() - 1);
        self.links.insert(node, Link::default());
        self.after(0, Happens::Told { node, up: true });
    }

    fn bear(&mut self, at: usize) {
        self.lives += 1;
        let mut seed = [0; 32];
        self.rng.fill(&mut seed[..]);
        let settings = ServeSettings {
            versions: if self.rng.random() { SPOKEN } else { Versions { oldest: 1, newest: 2 } },
            fast_slots: 8,
            slow_slots: 16,
            byte_budget: 60_000,
            host: format!("w{at}"),
            build: "1".into(),
            egress: Digest::default(),
            seed,
        };
        self.workers[at] = Some(Worker {
            serving: Serving::new(settings),
            life: self.lives,
            clock: self.rng.random_range(0..1 << 50),
            heard: BTreeSet::new(),
            running: BTreeMap::new(),
            cut_off: !self.calm && self.rng.random_range(0..6) == 0,
            highest: Epoch(0),
            draining: false,
        });
        let node = Node::Worker(at);
        self.links.insert(node, Link::default());
        self.after(0, Happens::Told { node, up: true });
    }

    fn tell_leader(&mut self, at: usize, input: FleetInput) {
        let now = self.now;
        if let Some(Some(leader)) = self.leaders.get_mut(at) {
            leader.fleet.handle(Tick(now - leader.began), input);
        }
    }

    fn tell_worker(&mut self, at: usize, input: ServeInput) {
        let now = self.now;
        if let Some(worker) = &mut self.workers[at] {
            worker.serving.handle(worker.clock + now, input);
        }
    }

    fn told(&mut self, node: Node, up: bool) {
        match node {
            Node::Leader(at) => {
                self.tell_leader(at, FleetInput::Bus { connected: up, max_payload: 1 << 20 });
            }
            Node::Worker(at) => self.tell_worker(at, ServeInput::Bus { connected: up }),
        }
    }

    fn is_down(&self, node: Node) -> bool {
        self.links.get(&node).is_none_or(|link| link.down)
    }

    fn is_alive(&self, node: Node) -> bool {
        match node {
            Node::Leader(at) => self.leaders.get(at).is_some_and(Option::is_some),
            Node::Worker(at) => self.workers[at].is_some(),
        }
    }

    fn set_link(&mut self, node: Node, up: bool) {
        self.links.entry(node).or_default().down = !up;
        // It is noticed a little later; what is published in between is lost.
        let delay = self.rng.random_range(0..300 * MS);
        if !up {
            self.after(delay, Happens::Told { node, up: false });
        } else {
            // The loss is always told before.
            self.after(300 * MS + delay, Happens::Told { node, up: true });
        }
    }

    fn send(&mut self, from: Node, to: Node, subject: Subject, bytes: &Bytes) {
        if self.is_down(from) || self.is_down(to) || !self.is_alive(to) {
            return;
        }
        for at in self.bus.carry(&mut self.rng, self.now, (from, to, subject)) {
            self.at(at, Happens::Arrives(Letter { to, bytes: bytes.clone() }));
        }
    }

    fn arrive(&mut self, letter: &Letter) {
        if self.is_down(letter.to) {
            return;
        }
        let frame = Frame::decode(letter.bytes.clone(), Versions { oldest: 1, newest: 2 });
        match letter.to {
            Node::Leader(at) => match frame {
                Ok(frame) => self.tell_leader(at, FleetInput::Frame(Box::new(frame))),
                Err(_) => panic!("a worker's frame cannot be read"),
            },
            Node::Worker(at) => {
                let header = Header::read(&letter.bytes).unwrap();
                let Some(worker) = &mut self.workers[at] else { return };
                if header.session != SessionId::default() && !worker.heard.contains(&header.session)
                {
                    return;
                }
                worker.highest = worker.highest.max(header.epoch);
                self.tell_worker(
                    at,
                    ServeInput::Frame(Box::new(frame.expect("a leader's frame can be read"))),
                );
            }
        }
    }

    /// The packer has come to a frame of the leader's.
    fn publish_ordered(&mut self, at: usize, frame: Frame) {
        let (session, seq) = (frame.session, frame.seq);
        if self.leaders[at].is_none() {
            return;
        }
        let from = Node::Leader(at);
        if self.is_down(from) && self.rng.random() {
            self.tell_leader(at, FleetInput::Unheard { session, seq });
            return;
        }
        let hears = |worker: &Option<Worker>| {
            worker.as_ref().is_some_and(|worker| worker.heard.contains(&session))
        };
        let to =
            self.workers.iter().position(hears).map(Node::Worker).filter(|to| !self.is_down(*to));
        let bytes = frame.encode();
        match to {
            Some(to) => self.send(from, to, Subject::Worker(session), &bytes),
            None if !self.is_down(from) && self.rng.random_range(0..5) > 0 => {
                self.after(4 * MS, Happens::Unheard { leader: at, session, seq });
            }
            None => {}
        }
        if seq > 0 {
            self.tell_leader(at, FleetInput::Published { session, seq });
        }
    }

    fn begin(&mut self, at: usize, life: u32, key: AttemptKey, epoch: Epoch, until_us: u64) {
        let now = self.now;
        let Some(worker) = self.workers[at].as_mut().filter(|worker| worker.life == life) else {
            return;
        };
        if !worker.running.contains_key(&key) {
            return;
        }
        if worker.clock + now >= until_us {
            worker.running.remove(&key);
            self.tell_worker(at, ServeInput::Ended { key, outcome: None });
            return;
        }
        assert!(
            epoch >= worker.highest || worker.serving.epoch() != Some(epoch),
            "an order of epoch {epoch}"
        );
        let run = self.account.begin_key(epoch, key.key, now);
        worker.running.insert(key, Some(run));
        let takes = match self.rng.random_range(0..20) {
            0 => self.rng.random_range(SECOND..4 * SECOND),
            _ => self.rng.random_range(MS..200 * MS),
        };
        self.after(takes, Happens::End { worker: at, life, key, run });
    }

    fn outcome(&mut self, run: u32, cut_off: bool) -> Outcome {
        let elapsed = Duration::from_millis(5);
        let mut outcome = match self.rng.random_range(0..40) {
            _ if cut_off => Outcome::failed(FailureKind::Connect, "no route", elapsed),
            0 => Outcome::failed(FailureKind::Timeout, "no answer", elapsed),
            1 => Outcome::failed(FailureKind::Dns, "no such name", elapsed),
            _ => {
                let mut outcome = Outcome::new(Meaning::Delivered, elapsed);
                outcome.record.status = Some(200);
                outcome
            }
        };
        outcome.resends = run;
        let harmless =
            matches!(outcome.record.failure, Some(FailureKind::Connect | FailureKind::Dns));
        self.account.ended(run, harmless);
        outcome
    }

    fn end(&mut self, at: usize, life: u32, key: AttemptKey, run: u32) {
        let Some(worker) = self.workers[at].as_mut().filter(|worker| worker.life == life) else {
            return;
        };
        if worker.running.remove(&key).is_none() {
            return;
        }
        let cut_off = worker.cut_off && self.now < BUSY;
        let outcome = self.outcome(run, cut_off);
        self.tell_worker(at, ServeInput::Ended { key, outcome: Some(outcome) });
    }

    fn local_end(&mut self, at: usize, delivery: DeliveryId, run: u32, told: bool) {
        let outcome = self.outcome(run, false);
        if let Some(Some(leader)) = self.leaders.get_mut(at) {
            leader.local.remove(&delivery);
            if told {
                self.tell_leader(at, FleetInput::Ended { delivery, outcome });
            } else {
                leader.in_flight.remove(&delivery);
                let name = (leader.epoch, delivery);
                self.account.back(name, &crate::leader::Ending::Outcome(outcome), self.now);
            }
        }
    }

    fn carry_locally(&mut self, at: usize, delivery: DeliveryId, told: bool) {
        let Some(Some(leader)) = self.leaders.get_mut(at) else { return };
        leader.local.insert(delivery);
        let run = self.account.begin((leader.epoch, delivery), self.now);
        let takes = self.rng.random_range(MS..300 * MS);
        self.after(takes, Happens::LocalEnd { leader: at, delivery, run, told });
    }

    fn drive(&mut self, node: Node) {
        match node {
            Node::Leader(at) => self.drive_leader(at),
            Node::Worker(at) => self.drive_worker(at),
        }
    }

    fn wake(&mut self, node: Node, at: u64) {
        let at = at.max(self.now + 1);
        let now = self.now;
        let link = self.links.entry(node).or_default();
        if link.wakes_at.is_none_or(|wakes| at < wakes || wakes <= now) {
            link.wakes_at = Some(at);
            self.at(at, Happens::Wake(node));
        }
    }

    fn drive_leader(&mut self, at: usize) {
        loop {
            let now = self.now;
            let Some(Some(leader)) = self.leaders.get_mut(at) else { return };
            let tick = Tick(now - leader.began);
            let local = u32::try_from(leader.local.len()).unwrap();
            leader.fleet.handle(tick, FleetInput::LocalInFlight(local));
            let (epoch, from) = (leader.epoch, Node::Leader(at));
            let Some(effect) = leader.fleet.poll(tick) else {
                let due = leader.began.saturating_add(leader.fleet.deadline().0);
                self.wake(from, due);
                return;
            };
            match effect {
                FleetEffect::Pack { session, seq, version, attempts } => {
                    let request = |packed: &crate::leader::Packed| {
                        let (attempt, first) = (&packed.attempt, packed.attempt.first());
                        Request {
                            key: packed.key,
                            number: first.number,
                            timeout: Duration::from_secs(15),
                            account: attempt.endpoint.account.clone(),
                            endpoint: attempt.endpoint.id.clone(),
                            event: first.event.id,
                            url: attempt.endpoint.url.clone(),
                            headers: vec![],
                            body: first.event.body(),
                        }
                    };
                    for packed in &attempts {
                        self.account.packed(epoch, packed.key, packed.attempt.first().id);
                    }
                    let body = Body::Attempts(Attempts {
                        requests: attempts.iter().map(request).collect(),
                    });
                    self.hand_to_packer(at, Frame { version, epoch, session, seq, body });
                }
                FleetEffect::Publish(frame) => self.hand_to_packer(at, *frame),
                FleetEffect::PublishLead(frame) => {
                    let bytes = frame.encode();
                    for to in 0..self.workers.len() {
                        self.send(from, Node::Worker(to), Subject::Lead, &bytes);
                    }
                }
                FleetEffect::CarryLocally(attempt) => {
                    self.carry_locally(at, attempt.first().id, true)
                }
                FleetEffect::Ended { delivery, ending, .. } => {
                    leader.in_flight.remove(&delivery);
                    self.account.back((epoch, delivery), &ending, now);
                }
                FleetEffect::Doubt { deliveries, doubtful } => {
                    for delivery in deliveries {
                        self.account.doubt((epoch, delivery), doubtful);
                    }
                }
                FleetEffect::Slots(slots) => leader.slots = slots,
                FleetEffect::Workers(_) | FleetEffect::Changed(_) => {}
            }
        }
    }

    fn hand_to_packer(&mut self, at: usize, frame: Frame) {
        let delay = self.rng.random_range(10..2 * MS);
        let now = self.now;
        let Some(Some(leader)) = self.leaders.get_mut(at) else { return };
        let last = leader.packed_at.entry(frame.session).or_default();
        *last = (now + delay).max(*last);
        let then = *last;
        self.at(then, Happens::Publish { leader: at, frame: Box::new(frame) });
    }

    fn drive_worker(&mut self, at: usize) {
        loop {
            let now = self.now;
            let Some(worker) = &mut self.workers[at] else { return };
            let node = Node::Worker(at);
            let Some(effect) = worker.serving.poll(worker.clock + now) else {
                let due = worker.serving.deadline().map(|due| due.saturating_sub(worker.clock));
                if worker.draining && worker.serving.is_drained() {
                    self.workers[at] = None;
                    self.after(SECOND, Happens::Born(at));
                    return;
                }
                if let Some(due) = due {
                    self.wake(node, due);
                }
                return;
            };
            match effect {
                ServeEffect::Subscribe(session) => _ = worker.heard.insert(session),
                ServeEffect::Unsubscribe(session) => _ = worker.heard.remove(&session),
                ServeEffect::Begin { key, until_us, request } => {
                    assert!(request.body.len() > 100);
                    worker.running.insert(key, None);
                    let (life, epoch) = (worker.life, worker.serving.epoch().unwrap());
                    let delay = self.rng.random_range(0..3 * MS);
                    self.after(delay, Happens::Begin { worker: at, life, key, epoch, until_us });
                }
                ServeEffect::GiveUp(key) => _ = worker.running.remove(&key),
                ServeEffect::Publish { to, frame } => {
                    let bytes = frame.encode();
                    for leader in 0..self.leaders.len() {
                        let epoch = self.leaders[leader].as_ref().map(|leader| leader.epoch);
                        let subject = match to {
                            To::Hello => Subject::Hello,
                            To::Leader if epoch == Some(frame.epoch) => {
                                Subject::Leader(frame.session)
                            }
                            To::Leader => continue,
                        };
                        self.send(node, Node::Leader(leader), subject, &bytes);
                    }
                }
                ServeEffect::State(_) => {}
            }
        }
    }

    fn work(&mut self) {
        if self.now >= BUSY {
            return;
        }
        let delay = self.rng.random_range(MS..40 * MS);
        self.after(delay, Happens::Work);
        for at in 0..self.leaders.len() {
            if self.frozen(Node::Leader(at)) {
                continue;
            }
            let mut burst = VecDeque::from_iter(0..self.rng.random_range(0..12));
            while burst.pop_front().is_some() {
                let Some(Some(leader)) = self.leaders.get(at) else { break };
                let room = leader.slots.fast + leader.slots.slow;
                if leader.in_flight.len() >= usize::try_from(room).unwrap() {
                    break;
                }
                self.place(at);
            }
            let give_up = self.rng.random_range(0..10) == 0;
            if let Some(Some(leader)) = self.leaders.get(at)
                && let Some(delivery) = leader.in_flight.first().copied().filter(|_| give_up)
                && !leader.local.contains(&delivery)
            {
                self.tell_leader(at, FleetInput::Aborted(delivery));
            }
            self.drive(Node::Leader(at));
        }
    }

    fn place(&mut self, at: usize) {
        self.next_delivery += 1;
        let delivery = DeliveryId(self.next_delivery);
        let event = Event {
            id: EventId::derive(
                1,
                &Position::FIRST,
                "t",
                i64::try_from(self.next_delivery).unwrap(),
            ),
            position: Position::FIRST,
            event_type: "t".into(),
            account: AccountId::new("1"),
            operation: Operation::Insert,
            commit_time_us: 0,
            keys: RowKeys::new(),
            row: Bytes::from(vec![b'1'; self.rng.random_range(10..4_000)]),
        };
        let endpoint = Arc::clone(&self.endpoints[self.rng.random_range(0..self.endpoints.len())]);
        let deliveries =
            Delivery { id: delivery, event: Arc::new(event), number: 1, asked: None }.into();
        let attempt = Attempt { endpoint, deliveries };
        let now = self.now;
        let Some(Some(leader)) = self.leaders.get_mut(at) else { return };
        self.account.placed((leader.epoch, delivery));
        leader.in_flight.insert(delivery);
        match leader.fleet.place(Tick(now - leader.began), &attempt) {
            Placement::Taken => {}
            Placement::Local => self.carry_locally(at, delivery, false),
            Placement::TooLarge => panic!("nothing is too large"),
        }
    }

    fn kill_worker(&mut self, at: usize) {
        self.workers[at] = None;
        let delay = self.rng.random_range(0..4 * SECOND);
        self.after(delay, Happens::Born(at));
    }

    fn freeze(&mut self, node: Node, until: u64) {
        let link = self.links.entry(node).or_default();
        let until = until.max(link.frozen_until.unwrap_or(0));
        link.frozen_until = Some(until);
        self.at(until, Happens::Thaw(node));
    }

    fn fault(&mut self) {
        if self.now >= BUSY {
            self.bus.weather.lost = 0;
            self.bus.weather.slowest_us = 2 * MS;
            return;
        }
        let delay = self.rng.random_range(100 * MS..3 * SECOND);
        self.after(delay, Happens::Fault);
        let at = self.rng.random_range(0..self.workers.len());
        let node = Node::Worker(at);
        let leading = Node::Leader(self.leaders.len() - 1);
        let long = self.rng.random_range(10 * MS..6 * SECOND);
        let free = self.workers[at].as_ref().is_some_and(|worker| !worker.draining);
        match if self.calm { 0 } else { self.rng.random_range(0..8) } {
            0 | 1 if free => {
                self.account.drains += 1;
                if let Some(worker) = &mut self.workers[at] {
                    worker.draining = true;
                }
                self.tell_worker(at, ServeInput::Drain);
                self.drive(node);
            }
            2 if free => self.kill_worker(at),
            3 => self.freeze(node, self.now + long),
            4 => self.freeze(leading, self.now + long),
            5 if !self.is_down(node) && free => {
                self.set_link(node, false);
                self.after(300 * MS + long, Happens::Link { node, up: true });
            }
            6 if !self.is_down(leading) => {
                self.set_link(leading, false);
                self.after(300 * MS + long, Happens::Link { node: leading, up: true });
            }
            7 => {
                // The one before dies, or goes on for a while without knowing.
                let old = self.leaders.len() - 1;
                if self.rng.random() {
                    self.leaders[old] = None;
                } else if let Some(before) = old.checked_sub(1) {
                    self.leaders[before] = None;
                }
                self.lead();
            }
            _ => {}
        }
    }
}
