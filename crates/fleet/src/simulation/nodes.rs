//! Leaders and workers as they come, freeze and lose the bus, and what goes between them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use rand::RngExt;

use super::bus::{Letter, Node, Subject};
use super::world::{BUSY, Happens, LEASE, Leader, Link, MS, Mode, SECOND, TIMEOUT, Worker, World};
use crate::frame::{Digest, Frame, Header, PipelineId, SPOKEN, SessionId, Versions};
use crate::leader::{Before, Fleet, FleetInput, FleetSettings, Slots};
use crate::worker::{ServeInput, ServeSettings, Serving};
use walhook_core::id::Epoch;
use walhook_core::tick::Tick;

/// The name of a pipeline.
pub(super) fn pipeline(of: usize) -> PipelineId {
    PipelineId([u8::try_from(of).unwrap() + 1; 16])
}

impl World {
    /// Whether a node is not to be told anything now: it is told all of it when it thaws.
    pub(super) fn frozen(&self, node: Node) -> bool {
        self.links
            .get(&node)
            .and_then(|link| link.frozen_until)
            .is_some_and(|until| until > self.now)
    }

    pub(super) fn thaw(&mut self, node: Node) {
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

    /// Whether it is the last one of its pipeline, and alive.
    pub(super) fn leads(&self, leader: usize) -> bool {
        let of = self.leaders[leader].as_ref().map(|leader| leader.of);
        of.is_some_and(|of| self.leading(of) == Some(leader))
    }

    /// The last one of a pipeline: its epochs are counted from 1, one for each.
    pub(super) fn leading(&self, of: usize) -> Option<usize> {
        self.led.iter().rposition(|pipeline| *pipeline == of)
    }

    pub(super) fn lead(&mut self, of: usize) {
        self.led.push(of);
        let epochs = self.led.iter().filter(|pipeline| **pipeline == of).count();
        let epoch = Epoch(i64::try_from(epochs).unwrap());
        let settings = FleetSettings {
            epoch,
            pipeline: pipeline(of),
            versions: SPOKEN,
            lease: LEASE,
            timeout: TIMEOUT,
            local: self.local,
            own: Slots { fast: 8, slow: 16 },
            egress: Some(Digest::default()),
            before: Before { until: self.deliveries.end(), sessions: self.tables[of].clone() },
            seed: self.rng.random(),
        };
        let leader = Leader {
            of,
            fleet: Fleet::new(settings, Tick(0)),
            epoch,
            began: self.now,
            slots: Slots::default(),
            local: BTreeSet::new(),
            packed_at: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            todo: self.deliveries.not_stored(of).collect(),
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
        let mute = match self.mode {
            Mode::Drains | Mode::Leaders | Mode::Swallows | Mode::Pauses => false,
            Mode::Mute | Mode::All => self.rng.random_range(0..6) == 0,
        };
        let mute_until = if mute { self.mute_until() } else { 0 };
        let swallows = match self.mode {
            Mode::Swallows => at == 0,
            Mode::All => self.rng.random_range(0..8) == 0,
            Mode::Drains | Mode::Leaders | Mode::Mute | Mode::Pauses => false,
        };
        self.workers[at] = Some(Worker {
            swallows_until: if swallows { BUSY } else { 0 },
            serving: Serving::new(settings),
            life: self.lives,
            clock: self.rng.random_range(0..1 << 50),
            heard: BTreeSet::new(),
            running: BTreeMap::new(),
            cut_off: self.mode == Mode::All && self.rng.random_range(0..6) == 0,
            mute_until,
            highest: None,
            draining: false,
        });
        let node = Node::Worker(at);
        self.links.insert(node, Link::default());
        self.after(0, Happens::Told { node, up: true });
    }

    /// For so long a worker is mute that becomes so now.
    pub(super) fn mute_until(&mut self) -> u64 {
        self.account.mute = true;
        (self.now + self.rng.random_range(SECOND..15 * SECOND)).min(BUSY)
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

    pub(super) fn told(&mut self, node: Node, up: bool) {
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

    pub(super) fn is_alive(&self, node: Node) -> bool {
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

    pub(super) fn send(&mut self, from: Node, to: Node, subject: Subject, bytes: &Bytes) {
        if self.is_down(from) || self.is_down(to) || !self.is_alive(to) {
            return;
        }
        for at in self.bus.carry(&mut self.rng, self.now, (from, to, subject)) {
            self.at(at, Happens::Arrives(Letter { to, bytes: bytes.clone() }));
        }
    }

    pub(super) fn arrive(&mut self, letter: &Letter) {
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
                let frame = frame.expect("a leader's frame can be read");
                let named = frame.pipeline.expect("a leader names its pipeline");
                self.tell_worker(at, ServeInput::Frame(Box::new(frame)));
                let Some(worker) = &mut self.workers[at] else { return };
                if let Some((served, highest)) = &mut worker.highest {
                    if *served == named {
                        *highest = header.epoch.max(*highest);
                    }
                } else {
                    worker.highest = Some((named, header.epoch));
                }
            }
        }
    }

    /// The packer has come to a frame of the leader's.
    pub(super) fn publish_ordered(&mut self, at: usize, frame: Frame) {
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

    pub(super) fn hand_to_packer(&mut self, at: usize, frame: Frame) {
        let delay = self.rng.random_range(10..2 * MS);
        let now = self.now;
        let Some(Some(leader)) = self.leaders.get_mut(at) else { return };
        let last = leader.packed_at.entry(frame.session).or_default();
        *last = (now + delay).max(*last);
        let then = *last;
        self.at(then, Happens::Publish { leader: at, frame: Box::new(frame) });
    }
}
