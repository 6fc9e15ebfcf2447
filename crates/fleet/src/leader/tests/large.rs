//! Small events beside large ones, on a slow way from the leader to the bus that all workers share.

use std::collections::VecDeque;
use std::time::Duration;

use super::super::*;
use super::rig::*;
use crate::frame::Hello;

const STEP: Duration = Duration::from_millis(5);

/// Large events that the dispatcher has in flight at most.
const LARGE_MAX: usize = 55;

const LARGE: usize = 900 << 10;

/// What a request takes at its endpoint.
const ANSWERED_AFTER: Duration = Duration::from_millis(50);

/// What is on its way: the worker, the frame, its bytes, and the requests in it.
type OnTheWay = (u128, u64, u64, Vec<(u64, DeliveryId)>);

/// A leader, its workers, and a way of so many bytes a second to all of them.
struct Link {
    rig: Rig,
    workers: u128,
    bytes_per_second: u64,
    queue: VecDeque<OnTheWay>,
    credit: u64,
    taken: Vec<u64>,
    runs: VecDeque<(Tick, u128, u64)>,
    large: BTreeSet<DeliveryId>,
    /// Small ones that are not at a worker yet, since when.
    small: BTreeMap<DeliveryId, Tick>,
    waiting: VecDeque<Attempt>,
    longest: Duration,
    carried: u64,
}

impl Link {
    fn new(workers: u128, bytes_per_second: u64) -> Self {
        let mut link = Self {
            rig: Rig::new(Local::Never, workers),
            workers,
            bytes_per_second,
            queue: VecDeque::new(),
            credit: 0,
            taken: vec![1; usize::try_from(workers).unwrap()],
            runs: VecDeque::new(),
            large: BTreeSet::new(),
            small: BTreeMap::new(),
            waiting: VecDeque::new(),
            longest: Duration::ZERO,
            carried: 0,
        };
        (0..workers).for_each(|n| link.hello(n));
        link
    }

    fn hello(&mut self, n: u128) {
        self.rig.hellos += 1;
        let received_upto = self.taken[usize::try_from(n).unwrap()];
        let (fast_slots, slow_slots, byte_budget) = (256, 1_024, 16 << 20);
        let plain = self.rig.plain();
        let hello = Hello { fast_slots, slow_slots, byte_budget, received_upto, ..plain };
        self.rig.frame(n, self.rig.hellos, Body::Hello(hello));
    }

    fn take(&mut self, effects: Vec<FleetEffect>) {
        for effect in effects {
            match effect {
                FleetEffect::Pack { session, seq, attempts, .. } => {
                    let bytes = attempts.iter().map(|it| pick::bytes_of(&it.attempt)).sum();
                    let keys = attempts.iter().map(|it| (it.key, it.attempt.first().id));
                    self.queue.push_back((session.0 - 1, seq, bytes, keys.collect()));
                }
                FleetEffect::Publish(frame) if frame.seq > 0 => {
                    self.queue.push_back((frame.session.0 - 1, frame.seq, 100, vec![]));
                }
                FleetEffect::Ended { delivery, ending: Ending::Unsent, .. } => {
                    if self.large.remove(&delivery) {
                        self.waiting.push_back(attempt(delivery.0, &host(delivery.0), LARGE));
                    } else {
                        self.waiting.push_front(attempt(delivery.0, &host(delivery.0), 500));
                    }
                }
                FleetEffect::Ended { delivery, ending, .. } => {
                    assert!(matches!(ending, Ending::Outcome(_)), "{ending:?}");
                    self.large.remove(&delivery);
                }
                _ => {}
            }
        }
    }

    fn place(&mut self, attempt: Attempt) {
        assert_eq!(self.rig.fleet.place(self.rig.now, &attempt), Placement::Taken);
        if attempt.first().event.row.len() == LARGE {
            self.large.insert(attempt.first().id);
        }
        let effects = self.rig.effects();
        self.take(effects);
    }

    fn has_slots(&mut self) -> bool {
        let effects = self.rig.effects();
        self.take(effects);
        let slots = self.rig.fleet.gauges().slots;
        self.rig.fleet.in_flight() < usize::try_from(slots.fast + slots.slow).unwrap()
    }

    fn step(&mut self, n: u32) {
        self.rig.now = self.rig.now + STEP;
        let now = self.rig.now;
        self.credit += self.bytes_per_second * 5 / 1_000;
        while let Some((worker, seq, bytes, keys)) = self.queue.pop_front() {
            if bytes > self.credit {
                self.queue.push_front((worker, seq, bytes, keys));
                break;
            }
            self.credit -= bytes;
            self.carried += bytes;
            self.taken[usize::try_from(worker).unwrap()] = seq;
            for (key, delivery) in keys {
                self.runs.push_back((now + ANSWERED_AFTER, worker, key));
                if let Some(since) = self.small.remove(&delivery) {
                    self.longest = self.longest.max(now.since(since));
                }
            }
        }
        if self.queue.is_empty() {
            self.credit = 0;
        }
        while self.runs.front().is_some_and(|(at, ..)| now >= *at) {
            let (_, worker, key) = self.runs.pop_front().unwrap();
            let effects = self.rig.outcome(worker, key, Some(delivered()));
            self.take(effects);
        }
        if n.is_multiple_of(50) {
            (0..self.workers).for_each(|n| self.hello(n));
        }
        // Whoever has least has the first turn.
        if n.is_multiple_of(20) {
            self.rig.next += 1;
            self.small.insert(DeliveryId(self.rig.next), now);
            self.waiting.push_front(attempt(self.rig.next, &host(self.rig.next), 500));
        }
        while self.waiting.iter().filter(|it| it.first().event.row.len() == LARGE).count()
            + self.large.len()
            < LARGE_MAX
        {
            self.rig.next += 1;
            self.waiting.push_back(attempt(self.rig.next, &host(self.rig.next), LARGE));
        }
        for _ in 0..self.waiting.len() {
            if !self.has_slots() {
                break;
            }
            let Some(attempt) = self.waiting.pop_front() else { break };
            self.place(attempt);
        }
        for since in self.small.values() {
            self.longest = self.longest.max(now.since(*since));
        }
    }
}

fn host(n: u64) -> String {
    format!("h{}.example", n % 50)
}

#[test]
fn small_events_do_not_wait_for_all_large_ones_that_were_given_to_their_worker() {
    const PACE: u64 = 3_000_000;
    for workers in [1, 2, 4] {
        let (mut link, seconds) = (Link::new(workers, PACE), 12);
        (0..seconds * 200).for_each(|n| link.step(n));
        // A large one goes to each worker, and windows are wide at first.
        let longest = link.longest;
        let most = Duration::from_secs(u64::try_from(workers).unwrap());
        assert!(longest <= most, "{workers} workers: {longest:?}");
        let carried = link.carried / u64::from(seconds);
        assert!(carried > PACE * 9 / 10, "{workers} workers: {carried} bytes a second");
    }
}
