//! Large requests, where workers are full of small ones.

use std::collections::VecDeque;
use std::time::Duration;

use super::super::*;
use super::rig::*;
use crate::frame::Hello;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const MS: Duration = Duration::from_millis(1);

/// Workers that take so many bytes, with slots enough.
fn with_budget(workers: u128, byte_budget: u64) -> Rig {
    let mut rig = Rig::new(Local::Never, workers);
    (0..workers).for_each(|n| says(&mut rig, n, byte_budget));
    rig
}

fn says(rig: &mut Rig, n: u128, byte_budget: u64) {
    rig.hellos += 1;
    let hello = Hello {
        byte_budget,
        fast_slots: 10_000,
        slow_slots: 10_000,
        received_upto: 1,
        ..rig.plain()
    };
    rig.frame(n, rig.hellos, Body::Hello(hello));
}

/// What the dispatcher does: it hands over what it has while there are slots, and again what comes back unsent.
struct Work {
    rig: Rig,
    workers: u128,
    budget: u64,
    /// What runs: the worker, the key and the delivery.
    runs: Vec<(u128, u64, DeliveryId)>,
    waiting: VecDeque<Attempt>,
    placed: BTreeMap<DeliveryId, Attempt>,
}

impl Work {
    fn new(workers: u128, budget: u64) -> Self {
        let (runs, waiting) = (Vec::new(), VecDeque::new());
        let rig = with_budget(workers, budget);
        Self { rig, workers, budget, runs, waiting, placed: BTreeMap::new() }
    }

    fn add(&mut self, bytes: usize) -> DeliveryId {
        self.rig.next += 1;
        self.waiting.push_back(attempt(self.rig.next, "a.example", bytes));
        DeliveryId(self.rig.next)
    }

    fn take(&mut self, effects: Vec<FleetEffect>) {
        for effect in effects {
            match effect {
                FleetEffect::Pack { session, attempts, .. } => {
                    let packed = attempts.iter();
                    let runs = packed.map(|it| (session.0 - 1, it.key, it.attempt.first().id));
                    self.runs.extend(runs);
                }
                FleetEffect::Ended { delivery, ending, .. } => {
                    let attempt = self.placed.remove(&delivery).expect("it was placed");
                    if ending == Ending::Unsent {
                        self.waiting.push_front(attempt);
                    }
                }
                _ => {}
            }
        }
    }

    fn place_all(&mut self) {
        for _ in 0..self.waiting.len() {
            let effects = self.rig.effects();
            self.take(effects);
            let slots = self.rig.fleet.gauges().slots;
            if self.placed.len() >= usize::try_from(slots.fast + slots.slow).unwrap() {
                return;
            }
            let Some(attempt) = self.waiting.pop_front() else { return };
            assert_eq!(self.rig.fleet.place(self.rig.now, &attempt), Placement::Taken);
            self.placed.insert(attempt.first().id, attempt);
        }
        let effects = self.rig.effects();
        self.take(effects);
    }

    /// Ten milliseconds pass, one of what runs ends, and what waits is handed over.
    fn step(&mut self, ends: usize) {
        self.rig.now = self.rig.now + 10 * MS;
        (0..self.workers).for_each(|n| says(&mut self.rig, n, self.budget));
        if !self.runs.is_empty() {
            let (worker, key, _) = self.runs.swap_remove(ends % self.runs.len());
            let effects = self.rig.outcome(worker, key, Some(delivered()));
            self.take(effects);
        }
        self.place_all();
    }

    fn has_gone(&self, delivery: DeliveryId) -> bool {
        !self.placed.contains_key(&delivery)
            && self.waiting.iter().all(|attempt| attempt.first().id != delivery)
            || self.runs.iter().any(|(.., of)| *of == delivery)
    }
}

#[test]
fn large_request_finds_room_at_a_worker_that_is_full_of_small_ones() {
    let mut work = Work::new(1, 1 << 20);
    (0..300).for_each(|_| _ = work.add(2_000));
    work.place_all();
    let full = work.runs.len();
    work.waiting.clear();
    assert!(full > 200, "{full}");
    let large = work.add(600_000);
    // As many as make room for it, and some that end while it is not handed over.
    let enough = 600_000 / 4_000 + 20;
    for ends in 0..enough {
        work.add(2_000);
        work.step(ends);
        if work.has_gone(large) {
            break;
        }
    }
    assert!(work.has_gone(large), "{} run", work.runs.len());
    // And the others have the rest.
    for ends in 0..50 {
        work.add(2_000);
        work.step(ends);
    }
    assert!(work.runs.len() > full / 4, "{}", work.runs.len());
}

#[test]
fn requests_of_any_size_find_room_in_time_whatever_the_mix() {
    for seed in 0..10 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let workers = rng.random_range(1..4);
        let mut work = Work::new(workers, 200_000);
        // Of the large ones there are three at a time at most, beside small ones without an end.
        let mut large: BTreeMap<DeliveryId, usize> = BTreeMap::new();
        for step in 0..600 {
            // What was handed over and does not run comes back.
            while work.waiting.len() + work.placed.len() < work.runs.len() + 30 {
                work.add(rng.random_range(10..4_000));
            }
            if large.len() < 3 && rng.random_range(0..5) == 0 {
                large.insert(work.add(rng.random_range(50_000..300_000)), step);
            }
            work.step(rng.random_range(0..1_000));
            large.retain(|delivery, _| !work.has_gone(*delivery));
            let longest = large.values().map(|since| step - since).max().unwrap_or(0);
            assert!(longest < 400, "{seed}: no room for {longest} steps");
        }
    }
}

#[test]
fn room_is_kept_for_what_comes_for_it_in_time_and_of_half_of_the_budget_at_most() {
    let mut rig = with_budget(1, 100_000);
    let small = |rig: &mut Rig| {
        rig.next += 1;
        let attempt = attempt(rig.next, "a.example", 8_000);
        assert_eq!(rig.fleet.place(rig.now, &attempt), Placement::Taken);
        packed(&rig.effects()).pop()
    };
    let mut keys: Vec<u64> = std::iter::from_fn(|| small(&mut rig)).map(|(_, key)| key).collect();
    assert_eq!(keys.len(), 9);
    let huge = attempt(1_000, "a.example", 300_000);
    // What found no room before keeps some no more.
    let gone = DeliveryId(rig.next);
    rig.fleet.handle(rig.now, FleetInput::Aborted(gone));
    assert_eq!(rig.fleet.place(rig.now, &huge), Placement::Taken);
    assert!(packed(&rig.effects()).is_empty());
    for key in keys.split_off(3) {
        rig.outcome(0, key, Some(delivered()));
    }
    let slots = rig.slots();
    assert!(slots.fast > 100, "there is room again for others: {slots:?}");
    assert!(small(&mut rig).is_some_and(|(_, key)| {
        keys.push(key);
        true
    }));
    assert_eq!(small(&mut rig), None, "the rest is kept");
    // It never comes for it, since its endpoint was removed.
    let end = rig.now + TIMEOUT + LEASE;
    while rig.now < end {
        rig.now = (rig.now + LEASE / 4).min(end);
        says(&mut rig, 0, 100_000);
        rig.effects();
    }
    assert!(small(&mut rig).is_some());
}

#[test]
fn bus_that_is_large_enough_for_an_event_takes_its_request() {
    for data in [1 << 10, 1 << 20, 8 << 20] {
        let mut rig = Rig::new(Local::Never, 1);
        let max = usize::try_from(max_payload_for(data, 0)).unwrap();
        assert_eq!(largest_data(max_payload_for(data, 0)), data);
        rig.fleet.handle(rig.now, FleetInput::Bus { connected: true, max_payload: max });
        let data = usize::try_from(data).unwrap();
        assert_eq!(
            rig.fleet.place(rig.now, &attempt(1, "a.example", data)),
            Placement::Taken,
            "{data}"
        );
        // What was too large goes where the bus is made as large as was said.
        let larger = attempt(2, "a.example", 2 * data + (64 << 10));
        assert_eq!(rig.fleet.place(rig.now, &larger), Placement::TooLarge);
        let told = rig.fleet.gauges().too_large.unwrap();
        let max_payload = usize::try_from(max_payload_for(0, told)).unwrap();
        rig.fleet.handle(rig.now, FleetInput::Bus { connected: true, max_payload });
        assert_eq!(rig.fleet.place(rig.now, &larger), Placement::Taken);
    }
}
