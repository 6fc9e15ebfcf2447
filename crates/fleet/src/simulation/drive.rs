//! Carries out what leaders and workers ask for.

use rand::RngExt;

use super::bus::{Node, Subject};
use super::nodes::pipeline;
use super::world::{Happens, MS, SECOND, TIMEOUT, World};
use crate::frame::{Attempts, Body, Frame, Request};
use crate::leader::{FleetEffect, FleetInput};
use crate::worker::{ServeEffect, To};
use walhook_core::delivery_key::DeliveryKey;
use walhook_core::tick::Tick;

impl World {
    pub(super) fn drive(&mut self, node: Node) {
        match node {
            Node::Leader(at) => self.drive_leader(at),
            Node::Worker(at) => self.drive_worker(at),
        }
    }

    pub(super) fn wake(&mut self, node: Node, at: u64) {
        let at = at.max(self.now + 1);
        let now = self.now;
        let link = self.links.entry(node).or_default();
        if link.wakes_at.is_none_or(|wakes| at < wakes || wakes <= now) {
            link.wakes_at = Some(at);
            self.at(at, Happens::Wake(node));
        }
    }

    pub(super) fn drive_leader(&mut self, at: usize) {
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
                            timeout: TIMEOUT,
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
                    let pipeline = Some(pipeline(self.led[at]));
                    let frame = Frame { version, epoch, pipeline, session, seq, body };
                    self.hand_to_packer(at, frame);
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

    pub(super) fn drive_worker(&mut self, at: usize) {
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
                ServeEffect::Publish { to: To::Leader, .. } if now < worker.mute_until => {}
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
