//! Leaders, workers, the bus between them, and what happens to them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::account::Account;
use super::bus::{Bus, Letter, Node, Subject, Weather};
use super::deliveries::Deliveries;
use crate::frame::{Attempts, Body, Digest, Frame, Header, Request, SPOKEN, SessionId, Versions};
use crate::leader::{Before, Ending, Fleet, FleetEffect, FleetInput, FleetSettings, Local, Slots};
use crate::worker::{AttemptKey, ServeEffect, ServeInput, ServeSettings, Serving, To};
use walhook_core::attempt::{DeliveryId, FailureKind, Meaning, Outcome};
use walhook_core::delivery_key::DeliveryKey;
use walhook_core::endpoint::Endpoint;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::id::Epoch;
use walhook_core::tick::Tick;

pub(super) const LEASE: Duration = Duration::from_secs(2);
pub(super) const MS: u64 = 1_000;
pub(super) const SECOND: u64 = 1_000 * MS;

/// Work and faults until then; then all is well, and what is under way ends.
pub(super) const BUSY: u64 = 20 * SECOND;
const END: u64 = 45 * SECOND;

#[derive(Debug)]
pub(super) enum Happens {
    Arrives(Letter),
    Unheard {
        leader: usize,
        session: SessionId,
        seq: u64,
    },
    Publish {
        leader: usize,
        frame: Box<Frame>,
    },
    Begin {
        worker: usize,
        life: u32,
        key: AttemptKey,
        epoch: Epoch,
        until_us: u64,
    },
    End {
        worker: usize,
        life: u32,
        key: AttemptKey,
        run: u32,
    },
    LocalEnd {
        leader: usize,
        delivery: DeliveryId,
        run: u32,
        told: bool,
    },
    Wake(Node),
    Thaw(Node),
    Work,
    Fault,
    Link {
        node: Node,
        up: bool,
    },
    Told {
        node: Node,
        up: bool,
    },
    Born(usize),
    /// What was delivered is durable, if this leader still leads.
    Stored {
        leader: usize,
        number: u64,
    },
    /// The table of workers is written, likewise.
    Table {
        leader: usize,
        sessions: Vec<SessionId>,
    },
}

/// What befalls them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Workers are told to end, and nothing else.
    Drains,
    /// Leaders follow each other, and nothing else.
    Leaders,
    /// Anything.
    All,
}

#[derive(Debug)]
pub(super) struct Leader {
    pub(super) fleet: Fleet,
    pub(super) epoch: Epoch,
    pub(super) began: u64,
    pub(super) slots: Slots,
    pub(super) local: BTreeSet<DeliveryId>,
    /// Frames of a session are published in their order.
    pub(super) packed_at: BTreeMap<SessionId, u64>,
    /// What it has placed: the numbers of the deliveries.
    pub(super) in_flight: BTreeMap<DeliveryId, u64>,
    /// What it has to send, by number.
    pub(super) todo: VecDeque<u64>,
}

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) serving: Serving,
    pub(super) life: u32,
    /// What its boot-time clock shows at 0.
    pub(super) clock: u64,
    pub(super) heard: BTreeSet<SessionId>,
    pub(super) running: BTreeMap<AttemptKey, Option<u32>>,
    /// It cannot connect to anybody.
    pub(super) cut_off: bool,
    pub(super) highest: Epoch,
    pub(super) draining: bool,
}

#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) down: bool,
    pub(super) frozen_until: Option<u64>,
    /// What came meanwhile, in its order.
    pub(super) held: VecDeque<Happens>,
    pub(super) wakes_at: Option<u64>,
}

pub(super) struct World {
    pub(super) rng: SmallRng,
    pub(super) now: u64,
    pub(super) next: u64,
    pub(super) events: BTreeMap<(u64, u64), Happens>,
    pub(super) bus: Bus,
    pub(super) mode: Mode,
    pub(super) local: Local,
    pub(super) leaders: Vec<Option<Leader>>,
    pub(super) workers: Vec<Option<Worker>>,
    pub(super) lives: u32,
    pub(super) links: BTreeMap<Node, Link>,
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    pub(super) next_delivery: u64,
    pub(super) deliveries: Deliveries,
    /// The table of workers.
    pub(super) table: Vec<SessionId>,
    pub(super) account: Account,
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
        let mode = match seed % 5 {
            0 => Mode::Drains,
            1 => Mode::Leaders,
            _ => Mode::All,
        };
        let weather = if mode != Mode::All {
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
            mode,
            local,
            leaders: Vec::new(),
            workers: Vec::new(),
            lives: 0,
            links: BTreeMap::new(),
            endpoints: (0..8).map(endpoint).collect(),
            next_delivery: 0,
            deliveries: Deliveries::default(),
            table: Vec::new(),
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

    pub(super) fn after(&mut self, delay: u64, happens: Happens) {
        self.at(self.now + delay, happens);
    }

    pub(super) fn at(&mut self, at: u64, happens: Happens) {
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
        let missing: Vec<u64> = self.deliveries.not_stored().collect();
        assert!(missing.is_empty(), "{missing:?} were not delivered");
        let (repeated, without_reason) = self.deliveries.repeated();
        self.account.repeated = repeated;
        if self.mode == Mode::Leaders {
            assert!(without_reason.is_empty(), "{without_reason:?} were sent twice");
        }
        if self.mode == Mode::Drains {
            let account = &self.account;
            assert_eq!((account.lost, account.twice), (0, 0), "nothing but drains happened");
        }
    }

    /// Whether a node is not to be told anything now: it is told all of it when it thaws.
    pub(super) fn frozen(&self, node: Node) -> bool {
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
            Happens::Stored { leader, .. } | Happens::Table { leader, .. } => {
                Some(Node::Leader(*leader))
            }
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
            Happens::Stored { leader, number } => {
                if self.leads(leader) {
                    self.deliveries.store(number);
                }
            }
            Happens::Table { leader, sessions } => {
                if self.leads(leader) {
                    self.table = sessions;
                }
            }
        }
        if let Some(node) = node {
            self.drive(node);
        }
    }

    /// Whether it is the last one, and alive.
    pub(super) fn leads(&self, leader: usize) -> bool {
        leader + 1 == self.leaders.len() && self.leaders[leader].is_some()
    }

    pub(super) fn lead(&mut self) {
        let epoch = Epoch(i64::try_from(self.leaders.len()).unwrap() + 1);
        let settings = FleetSettings {
            epoch,
            versions: SPOKEN,
            lease: LEASE,
            local: self.local,
            own: Slots { fast: 8, slow: 16 },
            egress: Some(Digest::default()),
            before: Before { until: self.deliveries.end(), sessions: self.table.clone() },
            seed: self.rng.random(),
        };
        let leader = Leader {
            fleet: Fleet::new(settings, Tick(0)),
            epoch,
            began: self.now,
            slots: Slots::default(),
            local: BTreeSet::new(),
            packed_at: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            todo: self.deliveries.not_stored().collect(),
        };
        self.leaders.push(Some(leader));
        let node = Node::Leader(self.leaders.len() - 1);
        self.links.insert(node, Link::default());
        self.after(0, Happens::Told { node, up: true });
    }

    pub(super) fn bear(&mut self, at: usize) {
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
            cut_off: self.mode == Mode::All && self.rng.random_range(0..6) == 0,
            highest: Epoch(0),
            draining: false,
        });
        let node = Node::Worker(at);
        self.links.insert(node, Link::default());
        self.after(0, Happens::Told { node, up: true });
    }

    pub(super) fn tell_leader(&mut self, at: usize, input: FleetInput) {
        let now = self.now;
        if let Some(Some(leader)) = self.leaders.get_mut(at) {
            leader.fleet.handle(Tick(now - leader.began), input);
        }
    }

    pub(super) fn tell_worker(&mut self, at: usize, input: ServeInput) {
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
            Node::Worker(at) => {
                self.tell_worker(at, ServeInput::Bus { connected: up, max_payload: 1 << 20 })
            }
        }
    }

    pub(super) fn is_down(&self, node: Node) -> bool {
        self.links.get(&node).is_none_or(|link| link.down)
    }

    fn is_alive(&self, node: Node) -> bool {
        match node {
            Node::Leader(at) => self.leaders.get(at).is_some_and(Option::is_some),
            Node::Worker(at) => self.workers[at].is_some(),
        }
    }

    pub(super) fn set_link(&mut self, node: Node, up: bool) {
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
        let run = self.account.begin_key(epoch, key.key, life, now);
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
        if outcome.delivered() {
            self.deliveries.taken(self.account.number_of(run), run);
        }
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
                self.came_back(at, delivery, &Ending::Outcome(outcome));
            }
        }
    }

    pub(super) fn carry_locally(&mut self, at: usize, delivery: DeliveryId, told: bool) {
        let Some(Some(leader)) = self.leaders.get_mut(at) else { return };
        leader.local.insert(delivery);
        let number = leader.in_flight[&delivery];
        let run = self.account.begin((leader.epoch, delivery), None, self.now);
        self.deliveries.excuse(number);
        let takes = self.rng.random_range(MS..300 * MS);
        self.after(takes, Happens::LocalEnd { leader: at, delivery, run, told });
    }

    pub(super) fn drive(&mut self, node: Node) {
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
                            delivery: Some(DeliveryKey::of(attempt)),
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
                    self.came_back(at, delivery, &ending);
                }
                FleetEffect::Doubt { deliveries, doubtful } => {
                    for delivery in deliveries {
                        self.account.doubt((epoch, delivery), doubtful);
                    }
                }
                FleetEffect::Slots(slots) => leader.slots = slots,
                FleetEffect::Workers(workers) => {
                    let sessions = workers.iter().map(|worker| worker.session).collect();
                    let delay = self.rng.random_range(MS..200 * MS);
                    self.after(delay, Happens::Table { leader: at, sessions });
                }
                FleetEffect::Changed(_) | FleetEffect::TookOver { .. } => {}
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
                    self.end_worker(at);
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
}
