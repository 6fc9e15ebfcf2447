//! Leaders, workers, the bus between them, and what happens to them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::account::Account;
use super::bus::{Bus, Letter, Node, Weather};
use super::deliveries::Deliveries;
use crate::frame::{Frame, PipelineId, SessionId};
use crate::leader::{Fleet, FleetInput, Local, Slots};
use crate::worker::{AttemptKey, Serving};
use walhook_core::attempt::DeliveryId;
use walhook_core::endpoint::Endpoint;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::id::Epoch;

pub(super) const LEASE: Duration = Duration::from_secs(2);
/// No request takes longer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(4);
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
    /// What workers say of their requests reaches nobody for a while, and nothing else.
    Mute,
    /// What one worker sends is swallowed on its way to endpoints, and nothing else.
    Swallows,
    /// Leaders are stopped for a while and go on, and nothing else.
    Pauses,
    /// Anything.
    All,
}

#[derive(Debug)]
pub(super) struct Leader {
    /// Which pipeline's.
    pub(super) of: usize,
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
    /// Nothing that it sends is answered until then.
    pub(super) swallows_until: u64,
    /// What it says of its requests reaches nobody until then.
    pub(super) mute_until: u64,
    /// The pipeline that it heard first, which it serves to the end, and the highest epoch of it.
    pub(super) highest: Option<(PipelineId, Epoch)>,
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
    /// Of each of them the pipeline.
    pub(super) led: Vec<usize>,
    pub(super) workers: Vec<Option<Worker>>,
    pub(super) lives: u32,
    pub(super) links: BTreeMap<Node, Link>,
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    pub(super) next_delivery: u64,
    pub(super) deliveries: Deliveries,
    /// The worker, by its life, at which a delivery timed out last.
    pub(super) timed_out: BTreeMap<u64, u32>,
    /// So many share the subjects, and count their epochs alike.
    pub(super) pipelines: usize,
    /// The tables of workers, by pipeline.
    pub(super) tables: Vec<Vec<SessionId>>,
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
        let mode = match seed % 7 {
            0 => Mode::Drains,
            1 => Mode::Leaders,
            2 => Mode::Mute,
            3 => Mode::Swallows,
            4 => Mode::Pauses,
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
        let pipelines = 1 + usize::from(mode == Mode::All && local != Local::Never && rng.random());
        let mut world = Self {
            rng,
            now: 0,
            next: 0,
            events: BTreeMap::new(),
            bus: Bus::new(weather),
            mode,
            local,
            leaders: Vec::new(),
            led: Vec::new(),
            workers: Vec::new(),
            lives: 0,
            links: BTreeMap::new(),
            endpoints: (0..8).map(endpoint).collect(),
            next_delivery: 0,
            deliveries: Deliveries::default(),
            timed_out: BTreeMap::new(),
            pipelines,
            tables: vec![Vec::new(); pipelines],
            account: Account::default(),
        };
        (0..pipelines).for_each(|of| world.lead(of));
        let least = if world.mode == Mode::Swallows { 2 } else { 1 };
        for _ in 0..world.rng.random_range(least..5) {
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
        let alive = self.workers.iter().flatten().count();
        let mut serve = 0;
        for of in 0..self.pipelines {
            let leading = self.leading(of).and_then(|at| self.leaders[at].as_ref());
            let Some(leader) = leading else { panic!("nobody leads") };
            self.account.check_all_back(of, leader.epoch, self.now);
            let counters = leader.fleet.counters();
            assert!(self.account.mute || counters.overdue == 0, "what is said again is heard");
            self.account.counters.push(counters);
            let gauges = leader.fleet.gauges();
            assert_eq!((gauges.in_flight, gauges.silent, gauges.draining), (0, 0, 0), "{gauges:?}");
            let workers = gauges.serving + gauges.quarantined + gauges.mute;
            serve += workers;
            // Those in quarantine have a slot at most, and what was found slow may not have all of its own yet.
            let workers = u32::try_from(workers).unwrap();
            let most = Slots { fast: 8 * workers + 16, slow: 16 * workers + 16 };
            assert!(gauges.slots.fast <= most.fast && gauges.slots.slow <= most.slow, "{gauges:?}");
            assert!(gauges.slots.fast > 0, "{gauges:?}");
        }
        assert_eq!(serve, alive, "each serves one pipeline");
        for worker in self.workers.iter().flatten() {
            assert_eq!(worker.serving.in_flight(), 0, "{:?}", worker.serving);
        }
        let missing: Vec<u64> =
            (0..self.pipelines).flat_map(|of| self.deliveries.not_stored(of)).collect();
        assert!(missing.is_empty(), "{missing:?} were not delivered");
        let (repeated, without_reason) = self.deliveries.repeated();
        self.account.repeated = repeated;
        if matches!(self.mode, Mode::Leaders | Mode::Pauses) {
            assert!(without_reason.is_empty(), "{without_reason:?} were sent twice");
        }
        if matches!(self.mode, Mode::Drains | Mode::Pauses) {
            let account = &self.account;
            assert_eq!((account.lost, account.twice), (0, 0), "{:?}", self.mode);
        }
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

    pub(super) fn happen(&mut self, happens: Happens) {
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
                if self.leads(leader)
                    && let Some(leader) = &self.leaders[leader]
                {
                    self.tables[leader.of] = sessions;
                }
            }
        }
        if let Some(node) = node {
            self.drive(node);
        }
    }
}
