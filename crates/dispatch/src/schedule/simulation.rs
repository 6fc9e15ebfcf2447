//! The point of it all, in virtual time: a whale with a slow endpoint does not delay small accounts.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use walhook_core::tick::{Tick, micros};

const FAST_SLOTS: u32 = 256;
const SLOW_SLOTS: u32 = 1_024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Arrives { account: usize },
    TurnsSlow { request: u64 },
    Ends { request: u64 },
}

/// An account with one endpoint that always takes the same time.
struct Account {
    lane: LaneId,
    hold: Duration,
    queue: VecDeque<Tick>,
    estimate: HoldEstimate,
    waits: Vec<Duration>,
    slot_time: Duration,
}

struct Request {
    account: usize,
    arrived: Tick,
    started: Tick,
    charge: Charge,
}

struct Simulation {
    now: Tick,
    scheduler: Scheduler,
    accounts: Vec<Account>,
    by_lane: BTreeMap<LaneId, usize>,
    agenda: BinaryHeap<Reverse<(Tick, Happening)>>,
    requests: BTreeMap<u64, Request>,
    next_request: u64,
    /// Whether old requests are given up when both pools are full.
    aborts: bool,
}

impl Simulation {
    fn new(fast_slots: u32, slow_slots: u32) -> Self {
        Self {
            now: Tick(0),
            scheduler: Scheduler::new(fast_slots, slow_slots, 0),
            accounts: vec![],
            by_lane: BTreeMap::new(),
            agenda: BinaryHeap::new(),
            requests: BTreeMap::new(),
            next_request: 0,
            aborts: true,
        }
    }

    fn account(&mut self, share: impl Into<Share>, hold: Duration, backlog: usize) -> usize {
        let lane = self.scheduler.add_lane(share);
        let account = self.accounts.len();
        self.by_lane.insert(lane, account);
        let queue = VecDeque::from(vec![self.now; backlog]);
        let (estimate, waits, slot_time) = (HoldEstimate::new(), vec![], Duration::ZERO);
        self.accounts.push(Account { lane, hold, queue, estimate, waits, slot_time });
        self.refresh(account);
        account
    }

    fn arrive(&mut self, at: Tick, account: usize) {
        self.agenda.push(Reverse((at, Happening::Arrives { account })));
    }

    fn refresh(&mut self, account: usize) {
        let account = &self.accounts[account];
        let pool = account.estimate.pool(self.now);
        self.scheduler.set_pending(account.lane, account.queue.len());
        for each in [Pool::Fast, Pool::Slow] {
            let ready = each == pool && !account.queue.is_empty();
            self.scheduler.set_ready(account.lane, each, ready);
        }
    }

    fn dispatch(&mut self) {
        for pool in [Pool::Fast, Pool::Slow] {
            while let Some(lane) = self.scheduler.peek(pool) {
                let at = self.by_lane[&lane];
                let account = &mut self.accounts[at];
                if account.estimate.pool(self.now) == pool {
                    let arrived = account.queue.pop_front().expect("a ready lane has something");
                    let expected = account.estimate.expected(self.now);
                    let charge = self.scheduler.start(lane, pool, expected);
                    account.estimate.started(self.now);
                    let (id, started) = (self.next_request, self.now);
                    self.next_request += 1;
                    let (ends, turns_slow) = (started + account.hold, started + SLOW_AFTER);
                    self.agenda.push(Reverse((ends, Happening::Ends { request: id })));
                    if pool == Pool::Fast && ends > turns_slow {
                        let turns = Happening::TurnsSlow { request: id };
                        self.agenda.push(Reverse((turns_slow, turns)));
                    }
                    account.waits.push(started.since(arrived));
                    self.requests.insert(id, Request { account: at, arrived, started, charge });
                }
                self.refresh(at);
            }
        }
    }

    fn end(&mut self, id: u64) -> Option<Request> {
        // None when it was aborted.
        let request = self.requests.remove(&id)?;
        let hold = self.now.since(request.started);
        let account = &mut self.accounts[request.account];
        account.slot_time += hold;
        account.estimate.ended(request.started, hold);
        Some(request)
    }

    fn run(&mut self, until: Tick) {
        self.dispatch();
        while let Some(Reverse((at, happening))) = self.agenda.peek().copied()
            && at <= until
        {
            self.agenda.pop();
            self.now = at;
            match happening {
                Happening::Arrives { account } => {
                    self.accounts[account].queue.push_back(at);
                    self.refresh(account);
                }
                Happening::Ends { request } => {
                    let Some(request) = self.end(request) else { continue };
                    self.scheduler.finish(request.charge, at.since(request.started));
                    self.refresh(request.account);
                }
                Happening::TurnsSlow { request: id } => {
                    let Some(request) = self.requests.get_mut(&id) else { continue };
                    let account = request.account;
                    if self.scheduler.move_to_slow(&mut request.charge) {
                        // It goes on.
                    } else if !self.aborts || !self.scheduler.is_pressed() {
                        let again = at + Duration::from_millis(100);
                        self.agenda.push(Reverse((again, happening)));
                    } else if let Some(aborted) = self.end(id) {
                        self.scheduler.finish(aborted.charge, at.since(aborted.started));
                        self.accounts[account].queue.push_front(aborted.arrived);
                    }
                    self.refresh(account);
                }
            }
            self.dispatch();
        }
    }
}

fn p99(mut waits: Vec<Duration>) -> Duration {
    waits.sort();
    waits[waits.len() * 99 / 100]
}

/// Arrivals of 1,000 small accounts, each with an event every ten seconds on average, for `span`.
fn small_arrivals(span: Duration) -> Vec<(Tick, usize)> {
    let mut rng = SmallRng::seed_from_u64(7);
    let end = micros(span);
    let mut arrivals: Vec<(Tick, usize)> = (0..100 * span.as_secs())
        .map(|_| (Tick(rng.random_range(0..end)), rng.random_range(0..1_000)))
        .collect();
    arrivals.sort();
    arrivals
}

/// The same load in one queue for all slots: who comes first is served first.
fn fifo_p99(arrivals: &[(Tick, usize)], whale: (usize, Duration), small: Duration) -> Duration {
    let slots = FAST_SLOTS + SLOW_SLOTS;
    let mut free_at: BinaryHeap<Reverse<Tick>> = (0..slots).map(|_| Reverse(Tick(0))).collect();
    let mut serve = |arrived: Tick, hold: Duration| {
        let Reverse(free) = free_at.pop().unwrap();
        let start = free.max(arrived);
        free_at.push(Reverse(start + hold));
        start.since(arrived)
    };
    (0..whale.0).for_each(|_| _ = serve(Tick(0), whale.1));
    p99(arrivals.iter().map(|(at, _)| serve(*at, small)).collect())
}

#[test]
fn small_accounts_do_not_wait_for_a_whale_with_a_slow_endpoint() {
    let (span, small_hold) = (Duration::from_secs(60), Duration::from_millis(50));
    let (whale_events, whale_hold) = (200_000, Duration::from_secs(5));
    let arrivals = small_arrivals(span);

    let mut simulation = Simulation::new(FAST_SLOTS, SLOW_SLOTS);
    let smalls: Vec<usize> = (0..1_000).map(|_| simulation.account(1.0, small_hold, 0)).collect();
    let whale = simulation.account(1.0, whale_hold, whale_events);
    arrivals.iter().for_each(|(at, small)| simulation.arrive(*at, smalls[*small]));
    simulation.run(Tick(micros(span)));

    let waits: Vec<Duration> =
        smalls.iter().flat_map(|small| simulation.accounts[*small].waits.clone()).collect();
    assert_eq!(waits.len(), arrivals.len(), "every small event was sent");
    let fair = p99(waits);
    let fifo = fifo_p99(&arrivals, (whale_events, whale_hold), small_hold);
    let whale_sent = simulation.accounts[whale].waits.len();
    println!(
        "p99 queue wait of small accounts: {fair:?}, under FIFO {fifo:?}; whale: {whale_sent}"
    );
    // Without the reserve, half a second: the whale fills FAST before it is known to be slow.
    assert!(fair < Duration::from_millis(100), "{fair:?}");
    assert!(fifo > 100 * fair.max(Duration::from_secs(1)), "{fifo:?} against {fair:?}");
    assert!(whale_sent > 10_000, "nor does the whale starve: {whale_sent}");
}

/// Twenty of them, where there are 16 slots: most have nothing in flight most of the time.
#[test]
fn small_account_finds_a_slot_where_accounts_with_a_backlog_are_more_than_slots() {
    let mut simulation = Simulation::new(16, 16);
    let small = simulation.account(1.0, Duration::from_millis(1), 0);
    let whales: Vec<usize> =
        (0..20).map(|_| simulation.account(1.0, Duration::from_millis(50), 2_000)).collect();
    let every = Duration::from_millis(16);
    let arrivals = 60 * 60;
    (0..arrivals).for_each(|n| simulation.arrive(Tick(0) + every * n, small));
    simulation.run(Tick(0) + Duration::from_secs(60));
    let waits = simulation.accounts[small].waits.clone();
    assert_eq!(waits.len(), usize::try_from(arrivals).unwrap());
    let fair = p99(waits);
    assert!(fair < Duration::from_millis(2), "{fair:?}");
    let sent = |whale: &usize| simulation.accounts[*whale].waits.len();
    let (least, most) = (whales.iter().map(sent).min(), whales.iter().map(sent).max());
    assert!(least > Some(800) && most < Some(1_000), "{least:?} to {most:?} of 15 slots");
}

/// Each of 1,000 dead endpoints holds every request for the whole timeout, and none is known as dead at
/// first: for the first seconds they fill FAST, second by second.
fn p99_among_dead_endpoints(backlog: usize, aborts: bool) -> Duration {
    let (span, small_hold) = (Duration::from_secs(60), Duration::from_millis(50));
    let arrivals = small_arrivals(span);

    let mut simulation = Simulation::new(FAST_SLOTS, SLOW_SLOTS);
    simulation.aborts = aborts;
    let smalls: Vec<usize> = (0..1_000).map(|_| simulation.account(1.0, small_hold, 0)).collect();
    for _ in 0..1_000 {
        simulation.account(1.0, Duration::from_secs(15), backlog);
    }
    arrivals.iter().for_each(|(at, small)| simulation.arrive(*at, smalls[*small]));
    simulation.run(Tick(micros(span)));

    let waits: Vec<Duration> =
        smalls.iter().flat_map(|small| simulation.accounts[*small].waits.clone()).collect();
    assert_eq!(waits.len(), arrivals.len(), "every small event was sent");
    p99(waits)
}

#[test]
fn small_accounts_do_not_wait_for_a_thousand_endpoints_that_die_at_once() {
    let p99 = |backlog| [true, false].map(|aborts| p99_among_dead_endpoints(backlog, aborts));
    let [with, without] = p99(LITTLE);
    println!("p99 queue wait of small accounts: {with:?}, {without:?} where nothing is given up");
    // Without the move to SLOW either, over 40 s.
    assert!(with < Duration::from_secs(3), "{with:?}");
    assert!(without > 3 * with.max(Duration::from_secs(1)), "{without:?} against {with:?}");
    // Those with a backlog have none of the slots that are kept.
    let all = p99(100);
    println!("beside those with a backlog: {all:?}");
    assert!(all.iter().all(|wait| *wait < Duration::from_millis(50)), "{all:?}");
}

/// The slot-seconds of lanes with endless queues, each of a weight and a hold time, in 200 s on eight slots.
fn slot_seconds<const N: usize>(lanes: [(f64, u64); N]) -> [f64; N] {
    let mut simulation = Simulation::new(8, 8);
    let accounts = lanes.map(|(weight, hold_ms)| {
        simulation.account(weight, Duration::from_millis(hold_ms), 200_000)
    });
    simulation.run(Tick(200_000_000));
    let had = accounts.map(|account| simulation.accounts[account].slot_time.as_secs_f64());
    assert!(had.iter().sum::<f64>() > 8.0 * 190.0, "no slot stood idle");
    had
}

/// What one had of the other's.
fn shares(one: (f64, u64), other: (f64, u64)) -> f64 {
    let [one, other] = slot_seconds([one, other]);
    one / other
}

#[test]
fn weights_one_three_one_give_such_slot_time_with_the_third_eight_times_slower() {
    let had = slot_seconds([(1.0, 50), (3.0, 50), (1.0, 400)]);
    let part = had.iter().sum::<f64>() / 5.0;
    println!("slot-seconds {had:.1?}, {:.1?} in parts of a fifth", had.map(|had| had / part));
    for (had, weight) in had.into_iter().zip([1.0, 3.0, 1.0]) {
        let off = had / (weight * part) - 1.0;
        assert!(off.abs() < 0.05, "weight {weight}: {off:+.3}");
    }
}

/// Twenty whales hold all slots, with requests of 200 ms that end one after the other. One account comes, whose weight
/// is a thousandth of theirs: its requests in flight after so long, those on reserved slots first.
fn in_flight_after(after: Duration, reserved: u32) -> (u32, u32) {
    let hold = Duration::from_millis(200);
    let mut simulation = Simulation::new(16, 8);
    let whales: Vec<usize> = (0..20).map(|_| simulation.account(1.0, hold, 0)).collect();
    for n in 0..20_000 {
        simulation.arrive(Tick(n * 7_000 % 160_000), whales[usize::try_from(n).unwrap() % 20]);
    }
    let came = Tick(5_000_000);
    simulation.run(came);
    let (all_but_the_kept_one, in_flight) = (15, simulation.scheduler.in_flight(Pool::Fast));
    assert_eq!(in_flight, all_but_the_kept_one, "what is reserved is lent");
    let share = Share { weight: 0.001, reserved };
    let account = simulation.account(share, hold, 1_000);
    simulation.run(came + after);
    let in_flight = simulation.scheduler.lane_in_flight(simulation.accounts[account].lane);
    (simulation.scheduler.covered(Pool::Fast), in_flight)
}

#[test]
fn reserved_slots_come_back_within_the_hold_time_of_those_that_they_were_lent_to() {
    let hold = Duration::from_millis(200);
    for after in [200, 300, 1_000, 7_000] {
        let (reserved, in_flight) = in_flight_after(Duration::from_millis(after), 4);
        assert_eq!(reserved, 4, "after {after} ms");
        assert!(in_flight <= 5, "its turns beyond them come by weight: {in_flight}");
    }
    let (reserved, in_flight) = in_flight_after(hold, 0);
    assert!(reserved == 0 && in_flight <= 1, "by its weight it has one at most: {in_flight}");
}

#[test]
fn equal_lanes_get_equal_slot_time_whatever_they_hold() {
    for holds in [(50, 400), (20, 900), (1_100, 9_000)] {
        let share = shares((1.0, holds.0), (1.0, holds.1));
        println!("holds of {holds:?} ms: {share:.3}");
        assert!((0.95..1.05).contains(&share), "{holds:?}: {share}");
    }
}

#[test]
fn weight_two_gets_twice_the_slot_time() {
    for holds in [(50, 50), (50, 400), (400, 50)] {
        let share = shares((2.0, holds.0), (1.0, holds.1));
        println!("holds of {holds:?} ms, weights 2 and 1: {share:.3}");
        assert!((1.9..2.1).contains(&share), "{holds:?}: {share}");
    }
}
