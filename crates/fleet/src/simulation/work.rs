//! What leaders send, and what befalls all of them.

use std::collections::VecDeque;
use std::sync::Arc;

use rand::RngExt;

use super::bus::Node;
use super::world::{BUSY, Happens, MS, Mode, SECOND, World};
use crate::leader::{Ending, FleetInput, Placement};
use crate::worker::ServeInput;
use walhook_core::attempt::{Attempt, Delivery, DeliveryId, FailureKind};
use walhook_core::tick::Tick;

impl World {
    pub(super) fn work(&mut self) {
        let delay = self.rng.random_range(MS..40 * MS);
        self.after(delay, Happens::Work);
        for at in 0..self.leaders.len() {
            if self.frozen(Node::Leader(at)) {
                continue;
            }
            let mut burst = VecDeque::from_iter(0..self.rng.random_range(0..12));
            while burst.pop_front().is_some() {
                let Some(Some(leader)) = self.leaders.get_mut(at) else { break };
                let room = leader.slots.fast + leader.slots.slow;
                if leader.in_flight.len() >= usize::try_from(room).unwrap() {
                    break;
                }
                match leader.todo.pop_front() {
                    Some(number) => self.place(at, number),
                    None if self.leads(at) && self.now < BUSY => {
                        let number = self.commit(self.led[at]);
                        self.place(at, number);
                    }
                    None => break,
                }
            }
            let give_up = self.mode == Mode::All && self.now < BUSY;
            let give_up = give_up && self.rng.random_range(0..10) == 0;
            if let Some(Some(leader)) = self.leaders.get(at)
                && let Some((delivery, _)) = leader.in_flight.first_key_value().filter(|_| give_up)
                && !leader.local.contains(delivery)
            {
                let delivery = *delivery;
                self.tell_leader(at, FleetInput::Aborted(delivery));
            }
            self.drive(Node::Leader(at));
        }
    }

    /// Something that is to be delivered: of an event, or an operator's wish.
    fn commit(&mut self, of: usize) -> u64 {
        let so_far = self.deliveries.end().0;
        if so_far > 1 && self.rng.random_range(0..8) == 0 {
            let again = self.rng.random_range(1..so_far);
            if self.deliveries.get(again).of == of {
                return self.deliveries.replay(again);
            }
        }
        let endpoint = Arc::clone(&self.endpoints[self.rng.random_range(0..self.endpoints.len())]);
        let bytes = self.rng.random_range(10..4_000);
        self.deliveries.add(of, &endpoint, bytes)
    }

    fn place(&mut self, at: usize, number: u64) {
        self.next_delivery += 1;
        let delivery = DeliveryId(self.next_delivery);
        let wanted = self.deliveries.get(number);
        let deliveries = Delivery {
            id: delivery,
            event: Arc::clone(&wanted.event),
            number: 1,
            asked: wanted.asked.map(Box::new),
        };
        let attempt =
            Attempt { endpoint: Arc::clone(&wanted.endpoint), deliveries: deliveries.into() };
        if !self.leads(at) {
            // It does not know that it was overtaken, and a worker that is new may serve it for a moment.
            self.deliveries.excuse(number);
        }
        let now = self.now;
        let Some(Some(leader)) = self.leaders.get_mut(at) else { return };
        self.account.placed(leader.of, (leader.epoch, delivery), number);
        leader.in_flight.insert(delivery, number);
        match leader.fleet.place(Tick(now - leader.began), &attempt) {
            Placement::Taken => {}
            Placement::Local => self.carry_locally(at, delivery, false),
            Placement::TooLarge => panic!("nothing is too large"),
        }
    }

    /// An attempt has come back to the leader, which goes on with it as a dispatcher does.
    pub(super) fn came_back(&mut self, at: usize, delivery: DeliveryId, ending: &Ending) {
        let Some(Some(leader)) = self.leaders.get_mut(at) else { return };
        let number = leader.in_flight.remove(&delivery).expect("it is in flight");
        self.account.back((leader.epoch, delivery), ending, self.now);
        match ending {
            Ending::Outcome(outcome) if outcome.delivered() => {
                assert!(
                    self.deliveries.was_taken_by(number, outcome.resends),
                    "{number} counts as delivered, and nobody took it"
                );
                let delay = self.rng.random_range(MS..400 * MS);
                self.after(delay, Happens::Stored { leader: at, number });
            }
            Ending::Outcome(outcome) => {
                if outcome.record.failure == Some(FailureKind::Aborted) {
                    self.deliveries.excuse(number);
                }
                leader.todo.push_back(number);
            }
            Ending::Unsent | Ending::Lost { .. } => leader.todo.push_back(number),
        }
    }

    /// A worker is gone, with what it knows.
    pub(super) fn end_worker(&mut self, at: usize) {
        if let Some(worker) = self.workers[at].take() {
            let numbers: Vec<u64> = self.account.numbers_by(worker.life).collect();
            numbers.into_iter().for_each(|number| self.deliveries.excuse(number));
        }
    }

    fn kill_worker(&mut self, at: usize) {
        self.end_worker(at);
        let delay = self.rng.random_range(0..4 * SECOND);
        self.after(delay, Happens::Born(at));
    }

    fn freeze(&mut self, node: Node, until: u64) {
        let link = self.links.entry(node).or_default();
        let until = until.max(link.frozen_until.unwrap_or(0));
        link.frozen_until = Some(until);
        self.at(until, Happens::Thaw(node));
    }

    pub(super) fn fault(&mut self) {
        if self.now >= BUSY {
            for at in 0..self.leaders.len() {
                if !self.leads(at) {
                    self.leaders[at] = None;
                }
            }
            self.bus.weather.lost = 0;
            self.bus.weather.slowest_us = 2 * MS;
            return;
        }
        // The table of workers is behind by a second.
        let least = if self.mode == Mode::Leaders { 1_300 * MS } else { 100 * MS };
        let delay = self.rng.random_range(least..3 * SECOND);
        self.after(delay, Happens::Fault);
        let at = self.rng.random_range(0..self.workers.len());
        let node = Node::Worker(at);
        let of = self.rng.random_range(0..self.pipelines);
        let last = self.leading(of).unwrap();
        let leading = Node::Leader(last);
        let long = self.rng.random_range(10 * MS..6 * SECOND);
        let free = self.workers[at].as_ref().is_some_and(|worker| !worker.draining);
        let fault = match self.mode {
            Mode::Drains => 0,
            Mode::Leaders => 7,
            Mode::Mute => 8,
            Mode::Swallows => 9,
            Mode::Pauses => 4,
            Mode::All => self.rng.random_range(0..9),
        };
        match fault {
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
                let before = self.led[..last].iter().rposition(|pipeline| *pipeline == of);
                if self.rng.random() {
                    self.leaders[last] = None;
                } else if let Some(before) = before {
                    self.leaders[before] = None;
                }
                self.lead(of);
                // The new leader was a worker, which ends, and tells itself what it knows.
                if free && self.rng.random_range(0..3) == 0 {
                    if let Some(worker) = &mut self.workers[at] {
                        worker.draining = true;
                    }
                    self.tell_worker(at, ServeInput::Drain);
                    self.drive(node);
                }
            }
            8 if free => {
                let until = self.mute_until();
                if let Some(worker) = &mut self.workers[at] {
                    worker.mute_until = until;
                }
            }
            _ => {}
        }
    }
}
