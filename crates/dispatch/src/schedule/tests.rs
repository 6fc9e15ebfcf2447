//! The scheduler against one that scans all lanes, and the invariants of its order.

use proptest::prelude::*;
use proptest::sample::Index;

use super::lane::{WEIGHT_ONE, weight_units};
use super::*;

const POOLS: [Pool; 2] = [Pool::Fast, Pool::Slow];

/// A weight as (eighths, what the scheduler is told): eighths keep the model's arithmetic in integers.
fn told(eighths: u128) -> f64 {
    f64::from(u32::try_from(eighths).unwrap()) / 8.0
}

#[derive(Default, Clone)]
struct NaiveLane {
    eighths: u128,
    reserved: u32,
    tag: [u128; 2],
    ready: [bool; 2],
    covered: [u32; 2],
    in_flight: u32,
}

struct Naive {
    slots: [u32; 2],
    in_flight: [u32; 2],
    covered: [u32; 2],
    virtual_time: [u128; 2],
    lanes: Vec<Option<NaiveLane>>,
}

impl Naive {
    fn cost(lane: &NaiveLane, us: u64) -> u128 {
        (u128::from(us.max(1_000)) << 32) / (lane.eighths << 13)
    }

    fn lane(&mut self, id: LaneId) -> &mut NaiveLane {
        self.lanes[id.0 as usize].as_mut().unwrap()
    }

    /// The ready lane that has the least of its reserved slots, one more counted, if it may have one more.
    fn owed(&self, pool: usize) -> Option<LaneId> {
        let may = self.covered[pool] < self.slots[pool] / 2;
        let owed = |lane: &NaiveLane| may && lane.ready[pool] && lane.covered[pool] < lane.reserved;
        let with = |lane: &NaiveLane| u64::from(lane.covered[pool] + 1);
        (0..)
            .map(LaneId)
            .zip(&self.lanes)
            .filter_map(|(id, lane)| Some((id, lane.as_ref().filter(|lane| owed(lane))?)))
            .min_by(|(_, a), (_, b)| {
                (with(a) * u64::from(b.reserved)).cmp(&(with(b) * u64::from(a.reserved)))
            })
            .map(|(id, _)| id)
    }

    fn covers(&self, pool: usize, lane: LaneId) -> bool {
        let lane = self.lanes[lane.0 as usize].as_ref().unwrap();
        self.covered[pool] < self.slots[pool] / 2 && lane.covered[pool] < lane.reserved
    }

    fn peek(&self, pool: usize) -> Option<LaneId> {
        let free = self.slots[pool].saturating_sub(self.in_flight[pool]);
        if free > 0
            && let Some(lane) = self.owed(pool)
        {
            return Some(lane);
        }
        let idle_only = pool == 0 && free <= (self.slots[0] + 16) / 32;
        let admitted =
            |lane: &NaiveLane| free > 0 && lane.ready[pool] && (!idle_only || lane.in_flight == 0);
        let start = |tag: u128| tag.max(self.virtual_time[pool]);
        (0..)
            .map(LaneId)
            .zip(&self.lanes)
            .filter_map(|(id, lane)| Some((id, lane.as_ref().filter(|lane| admitted(lane))?)))
            .min_by_key(|(id, lane)| (start(lane.tag[pool]), lane.tag[pool], *id))
            .map(|(id, _)| id)
    }
}

#[derive(Debug, Clone)]
enum Action {
    Add {
        eighths: u128,
    },
    Remove(Index),
    Share {
        lane: Index,
        eighths: u128,
        reserved: u32,
    },
    Slots([u32; 2]),
    Ready {
        lane: Index,
        pool: usize,
        ready: bool,
    },
    /// `more`: the lane is ready afterwards too.
    Start {
        pool: usize,
        expected_us: u64,
        more: bool,
    },
    Move(Index),
    Finish {
        request: Index,
        actual_us: u64,
    },
}

fn action() -> impl Strategy<Value = Action> {
    let index = any::<Index>;
    let hold = || prop_oneof![0u64..2_000, 1_000u64..10_000_000];
    prop_oneof![
        2 => (1u128..40).prop_map(|eighths| Action::Add { eighths }),
        1 => index().prop_map(Action::Remove),
        2 => (index(), 1u128..40, prop_oneof![Just(0), 1u32..9])
            .prop_map(|(lane, eighths, reserved)| Action::Share { lane, eighths, reserved }),
        1 => (0u32..40, 0u32..9).prop_map(|(fast, slow)| Action::Slots([fast, slow])),
        6 => (index(), 0usize..2, any::<bool>())
            .prop_map(|(lane, pool, ready)| Action::Ready { lane, pool, ready }),
        6 => (0usize..2, hold(), prop::bool::weighted(0.8))
            .prop_map(|(pool, expected_us, more)| Action::Start { pool, expected_us, more }),
        2 => index().prop_map(Action::Move),
        4 => (index(), hold())
            .prop_map(|(request, actual_us)| Action::Finish { request, actual_us }),
    ]
}

fn pick<T: Clone>(index: Index, all: &[T]) -> Option<T> {
    (!all.is_empty()).then(|| index.get(all).clone())
}

struct Pair {
    real: Scheduler,
    naive: Naive,
    live: Vec<LaneId>,
    /// With what the model knows of each: pool, charged (`None`: covered), microseconds paid elsewhere.
    requests: Vec<(Charge, usize, Option<u128>, u64)>,
}

impl Pair {
    fn new(slots: [u32; 2]) -> Self {
        Self {
            real: Scheduler::new(slots[0], slots[1], 0),
            naive: Naive {
                slots,
                in_flight: [0; 2],
                covered: [0; 2],
                virtual_time: [0; 2],
                lanes: vec![],
            },
            live: vec![],
            requests: vec![],
        }
    }

    fn apply(&mut self, action: Action) {
        let (real, naive) = (&mut self.real, &mut self.naive);
        match action {
            Action::Add { eighths } => {
                let id = real.add_lane(told(eighths));
                let at = id.0 as usize;
                naive.lanes.resize(naive.lanes.len().max(at + 1), None);
                assert!(naive.lanes[at].is_none(), "an id in use was given away");
                naive.lanes[at] = Some(NaiveLane { eighths, ..NaiveLane::default() });
                self.live.push(id);
            }
            Action::Remove(lane) => {
                let idle =
                    |id: &LaneId| naive.lanes[id.0 as usize].as_ref().unwrap().in_flight == 0;
                let idle: Vec<LaneId> = self.live.iter().copied().filter(idle).collect();
                let Some(id) = pick(lane, &idle) else { return };
                real.remove_lane(id);
                naive.lanes[id.0 as usize] = None;
                self.live.retain(|live| *live != id);
            }
            Action::Share { lane, eighths, reserved } => {
                let Some(id) = pick(lane, &self.live) else { return };
                real.set_share(id, Share { weight: told(eighths), reserved });
                (naive.lane(id).eighths, naive.lane(id).reserved) = (eighths, reserved);
            }
            Action::Slots([fast, slow]) => {
                real.set_slots(fast, slow, 0);
                naive.slots = [fast, slow];
            }
            Action::Ready { lane, pool, ready } => {
                let Some(id) = pick(lane, &self.live) else { return };
                self.set_ready(id, pool, ready);
            }
            Action::Start { pool, expected_us, more } => {
                if let Some(id) = self.start(pool, expected_us)
                    && more
                {
                    self.set_ready(id, pool, true);
                }
            }
            Action::Move(request) => self.move_to_slow(request),
            Action::Finish { request, actual_us } => {
                if self.requests.is_empty() {
                    return;
                }
                let at = request.index(self.requests.len());
                let (charge, pool, charged, elsewhere) = self.requests.swap_remove(at);
                let lane = naive.lane(charge.lane());
                let cost = Naive::cost(lane, actual_us.saturating_sub(elsewhere));
                lane.in_flight -= 1;
                match charged {
                    Some(charged) => {
                        lane.tag[pool] = (lane.tag[pool] + cost).saturating_sub(charged)
                    }
                    None => lane.covered[pool] -= 1,
                }
                naive.covered[pool] -= u32::from(charged.is_none());
                naive.in_flight[pool] -= 1;
                real.finish(charge, Duration::from_micros(actual_us));
            }
        }
    }

    fn set_ready(&mut self, id: LaneId, pool: usize, ready: bool) {
        self.real.set_ready(id, POOLS[pool], ready);
        let now = self.naive.virtual_time[pool];
        let lane = self.naive.lane(id);
        if ready && !lane.ready[pool] {
            lane.tag[pool] = lane.tag[pool].max(now);
        }
        lane.ready[pool] = ready;
    }

    /// Whose request it is. One that was covered has had no turn.
    fn start(&mut self, pool: usize, expected_us: u64) -> Option<LaneId> {
        let (real, naive) = (&mut self.real, &mut self.naive);
        let id = real.peek(POOLS[pool])?;
        let charge = real.start(id, POOLS[pool], Duration::from_micros(expected_us));
        let now = naive.virtual_time[pool];
        let is_covered = naive.covers(pool, id);
        let lane = naive.lane(id);
        assert!(lane.ready[pool], "picked a lane that is not ready");
        lane.in_flight += 1;
        let charged = if is_covered {
            lane.covered[pool] += 1;
            naive.covered[pool] += 1;
            assert!(naive.covered[pool] <= naive.slots[pool] / 2, "more than half are covered");
            None
        } else {
            let (start, cost) = (lane.tag[pool].max(now), Naive::cost(lane, expected_us));
            (lane.tag[pool], lane.ready[pool]) = (start + cost, false);
            naive.virtual_time[pool] = start;
            Some(cost)
        };
        naive.in_flight[pool] += 1;
        self.requests.push((charge, pool, charged, 0));
        Some(id)
    }

    fn move_to_slow(&mut self, request: Index) {
        let (real, naive) = (&mut self.real, &mut self.naive);
        if self.requests.is_empty() {
            return;
        }
        let at = request.index(self.requests.len());
        let (charge, pool, charged, elsewhere) = &mut self.requests[at];
        let full = *pool == 0 && naive.in_flight[1] >= naive.slots[1];
        assert_eq!(real.move_to_slow(charge), !full);
        if full || *pool == 1 {
            return;
        }
        let slow_now = naive.virtual_time[1];
        let is_covered = naive.covers(1, charge.lane());
        let lane = naive.lane(charge.lane());
        let cost = Naive::cost(lane, 1_000_000);
        match *charged {
            Some(charged) => lane.tag[0] = (lane.tag[0] + cost).saturating_sub(charged),
            None => lane.covered[0] -= 1,
        }
        if is_covered {
            lane.covered[1] += 1;
        } else {
            lane.tag[1] = lane.tag[1].max(slow_now) + cost;
        }
        naive.covered[0] -= u32::from(charged.is_none());
        naive.covered[1] += u32::from(is_covered);
        (*pool, *charged, *elsewhere) = (1, (!is_covered).then_some(cost), 1_000_000);
        naive.in_flight[0] -= 1;
        naive.in_flight[1] += 1;
    }
}

/// A request of a lane that has more to send from the fast pool.
fn start(scheduler: &mut Scheduler, lane: LaneId, expected: Duration) -> Charge {
    let charge = scheduler.start(lane, Pool::Fast, expected);
    scheduler.set_ready(lane, Pool::Fast, true);
    charge
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn scheduler_agrees_with_a_scan_of_all_lanes(
        fast in prop_oneof![1u32..6, 32u32..70],
        slow in 1u32..6,
        actions in prop::collection::vec(action(), 0..200),
    ) {
        let mut pair = Pair::new([fast, slow]);
        for action in actions {
            let before = [pair.real.fast.virtual_time, pair.real.slow.virtual_time];
            pair.apply(action);
            for (at, pool) in POOLS.into_iter().enumerate() {
                prop_assert_eq!(pair.real.peek(pool), pair.naive.peek(at));
                prop_assert_eq!(pair.real.in_flight(pool), pair.naive.in_flight[at]);
                prop_assert_eq!(pair.real.covered(pool), pair.naive.covered[at]);
                let none_is_free = pair.real.in_flight(pool) >= pair.naive.slots[at];
                prop_assert!(!none_is_free || pair.real.peek(pool).is_none());
                let after = pair.real.slots(pool).virtual_time;
                prop_assert!(after >= before[at], "V went back");
                prop_assert_eq!(after, pair.naive.virtual_time[at]);
            }
            for id in &pair.live {
                let expected = pair.naive.lanes[id.0 as usize].as_ref().unwrap().in_flight;
                prop_assert_eq!(pair.real.lane_in_flight(*id), expected);
            }
        }
    }

    /// Between two turns of a lane that costs c, another that costs d has at most c/d + 1 turns (and
    /// one more for the tie).
    #[test]
    fn scheduler_picks_a_ready_lane_within_a_bounded_number_of_decisions(
        lanes in prop::collection::vec((1u128..40, 1u64..500), 1..30),
    ) {
        let mut scheduler = Scheduler::new(1, 0, 0);
        // c/d = (ms of c / weight of c) / (ms of d / weight of d), rounded up.
        let turns = |c: &(u128, u64), d: &(u128, u64)| {
            (u128::from(c.1) * d.0).div_ceil(u128::from(d.1) * c.0)
        };
        for (eighths, _) in &lanes {
            let id = scheduler.add_lane(told(*eighths));
            scheduler.set_ready(id, Pool::Fast, true);
        }
        let mut waited = vec![0u128; lanes.len()];
        for _ in 0..1_000 {
            let id = scheduler.peek(Pool::Fast).unwrap();
            let at = id.0 as usize;
            // Expected wrongly, so that the bound holds for what was really used.
            let charge = start(&mut scheduler, id, Duration::from_millis(250));
            scheduler.finish(charge, Duration::from_millis(lanes[at].1));
            for (waiting, waited) in waited.iter_mut().enumerate() {
                *waited = if waiting == at { 0 } else { *waited + 1 };
                let bound: u128 = lanes.iter().map(|d| turns(&lanes[waiting], d) + 2).sum();
                prop_assert!(*waited <= bound, "lane {} waited for {} decisions", waiting, waited);
            }
        }
    }
}

#[test]
fn scheduler_keeps_a_reserve_for_lanes_with_nothing_in_flight() {
    let mut scheduler = Scheduler::new(64, 0, 0);
    let whale = scheduler.add_lane(1.0);
    scheduler.set_ready(whale, Pool::Fast, true);
    let mut charges = vec![];
    while let Some(lane) = scheduler.peek(Pool::Fast) {
        charges.push(start(&mut scheduler, lane, Duration::from_millis(250)));
    }
    assert_eq!(charges.len(), 62, "two of 64 are reserved");
    assert_eq!((scheduler.total(Pool::Fast), scheduler.usable(Pool::Fast)), (64, 62));
    let small = scheduler.add_lane(1.0);
    scheduler.set_ready(small, Pool::Fast, true);
    assert_eq!(scheduler.peek(Pool::Fast), Some(small));
}

proptest! {
    /// All have something to send always. What is reserved is given in full where that is at most half of the slots,
    /// and half in proportion where it is more: nobody holds so much of its part that it would not be owed less than
    /// another with one more.
    #[test]
    fn reserved_slots_are_given_in_full_or_half_of_all_in_proportion(
        slots in 2u32..200,
        all in prop::collection::vec(1u32..40, 1..20),
        ends in prop::collection::vec(any::<Index>(), 0..100),
    ) {
        let mut scheduler = Scheduler::new(slots, 0, 0);
        let lane = |reserved| (Share { weight: 1.0, reserved }, reserved);
        let mut lanes = vec![];
        for (share, reserved) in all.into_iter().map(lane).chain([lane(0)]) {
            let id = scheduler.add_lane(share);
            scheduler.set_ready(id, Pool::Fast, true);
            lanes.push((id, reserved));
        }
        let mut requests = vec![];
        let fill = |scheduler: &mut Scheduler, requests: &mut Vec<Charge>| {
            while let Some(lane) = scheduler.peek(Pool::Fast) {
                requests.push(start(scheduler, lane, Duration::from_millis(50)));
            }
        };
        fill(&mut scheduler, &mut requests);
        let covered = |requests: &[Charge], id| -> u64 {
            requests.iter().map(|charge| u64::from(charge.lane == id && charge.is_covered)).sum()
        };
        for (a, reserved_a) in &lanes {
            for (b, reserved_b) in &lanes {
                let (has_a, has_b) = (covered(&requests, *a), covered(&requests, *b));
                let is_full = has_b == u64::from(*reserved_b);
                let fair = has_a * u64::from(*reserved_b) <= (has_b + 1) * u64::from(*reserved_a);
                prop_assert!(is_full || fair, "{has_a} of {reserved_a}, and {has_b} of {reserved_b}");
            }
        }
        let reserved: u32 = lanes.iter().map(|(_, reserved)| reserved).sum();
        // Whatever ends, by the next decision all that may be covered is.
        for end in ends {
            let end = requests.swap_remove(end.index(requests.len()));
            scheduler.finish(end, Duration::from_millis(50));
            fill(&mut scheduler, &mut requests);
            prop_assert_eq!(scheduler.covered(Pool::Fast), reserved.min(slots / 2));
        }
    }
}

#[test]
fn next_slot_that_frees_goes_to_the_lane_that_is_owed_one() {
    let mut scheduler = Scheduler::new(64, 0, 0);
    let whale = scheduler.add_lane(1_000.0);
    scheduler.set_ready(whale, Pool::Fast, true);
    let mut charges = vec![];
    while let Some(lane) = scheduler.peek(Pool::Fast) {
        charges.push(start(&mut scheduler, lane, Duration::from_millis(250)));
    }
    let small = scheduler.add_lane(Share { weight: 0.001, reserved: 4 });
    for _ in 0..4 {
        scheduler.set_ready(small, Pool::Fast, true);
        scheduler.finish(charges.pop().unwrap(), Duration::from_millis(250));
        assert_eq!(scheduler.peek(Pool::Fast), Some(small));
        let charge = start(&mut scheduler, small, Duration::from_millis(250));
        assert!(charge.is_covered);
        charges.insert(0, charge);
    }
    scheduler.finish(charges.pop().unwrap(), Duration::from_millis(250));
    assert_eq!(scheduler.peek(Pool::Fast), Some(small), "its turn, like everybody's");
    let in_turn = start(&mut scheduler, small, Duration::from_millis(250));
    assert!(!in_turn.is_covered);
    for _ in 0..3 {
        scheduler.finish(charges.pop().unwrap(), Duration::from_millis(250));
    }
    assert_eq!(scheduler.peek(Pool::Fast), Some(whale), "it has what is its own, and had its turn");
    let before = scheduler.fast.virtual_time;
    scheduler.finish(charges.remove(0), Duration::from_secs(9));
    assert_eq!(scheduler.peek(Pool::Fast), Some(small));
    let charge = start(&mut scheduler, small, Duration::from_secs(9));
    assert_eq!(scheduler.fast.virtual_time, before, "what is reserved is outside of the order");
    scheduler.finish(charge, Duration::from_secs(9));
    scheduler.finish(in_turn, Duration::from_millis(250));
}

#[test]
fn scheduler_takes_a_weight_that_is_none_for_one() {
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(weight_units(weight), WEIGHT_ONE, "{weight}");
    }
    assert_eq!(weight_units(f64::MIN_POSITIVE), 1);
    assert_eq!(weight_units(f64::MAX), u32::MAX);
}

/// With a scan at each decision, this would be 10¹⁰ steps and not end within a test's patience.
#[test]
fn scheduler_decides_among_a_hundred_thousand_lanes_without_a_scan() {
    let mut scheduler = Scheduler::new(256, 0, 0);
    let lanes = 100_000;
    for _ in 0..lanes {
        let id = scheduler.add_lane(1.0);
        scheduler.set_ready(id, Pool::Fast, true);
    }
    let mut turns = vec![0u32; lanes];
    for _ in 0..lanes {
        let id = scheduler.peek(Pool::Fast).unwrap();
        let charge = start(&mut scheduler, id, Duration::from_millis(250));
        scheduler.finish(charge, Duration::from_millis(50));
        turns[id.0 as usize] += 1;
    }
    assert!(turns.iter().all(|turns| *turns == 1), "equal lanes take turns");
}
