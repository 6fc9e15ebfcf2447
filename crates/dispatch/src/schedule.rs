//! Which lane sends next: start-time fair queueing over slot-seconds, in two pools, and a third for probes.
//!
//! What is scarce is not events but request slots times the time each is held. A lane's share is
//! therefore counted in slot-time: [`Scheduler::start`] charges the expected hold time in advance,
//! [`Scheduler::finish`] corrects it to the time that was really held, so that an account with a
//! five-second endpoint pays a hundred times what one with a 50 ms endpoint pays for each request.
//!
//! ```text
//! start tag  = max(V, finish tag)          V: the pool's virtual time, the greatest start tag so far
//! finish tag = start tag + cost / weight   the lane with the least tag goes next
//! ```
//!
//! What is sent to find out whether a dead endpoint is back has a third pool, so that thousands of dead endpoints
//! take no slot from the living, nor the other way round.
//!
//! Requests that hold a slot for [`SLOW_AFTER`] or longer live in a pool of their own, with its own V
//! and tags: a pool full of hanging requests delays nobody whose endpoint answers. When that pool is full
//! too, and few fast slots are free, a request that has become old is given up, and tried again later.
//!
//! Why nobody starves: a lane that becomes ready gets a tag of at least V, and every request adds at
//! least [`MIN_CHARGE`] to its lane's tag, so the lanes ahead overtake a waiting one only so often. No
//! credit builds up: a tag below V counts as V.
//!
//! Cost: O(log n) for each call, with n the ready lanes; the order stands in heaps, and a tag that changes is
//! moved at once.
//!
//! Sources: Goyal, Vin and Cheng, "Start-time Fair Queueing" (1996); Kubernetes' API priority and
//! fairness, for the correction at the end of a request.

use std::time::Duration;

use walhook_core::tick::micros;

mod learned;
mod order;

pub use learned::{AdaptiveLimit, AnswerTime, HoldEstimate};
use order::Order;

/// A request that holds its slot so long, or is expected to, belongs to [`Pool::Slow`].
pub const SLOW_AFTER: Duration = Duration::from_secs(1);

/// The least that a request costs. Without it, lanes whose requests cost nothing would never move
/// back in the order.
pub const MIN_CHARGE: Duration = Duration::from_millis(1);

/// Of so many fast slots, one goes only to lanes with nothing in flight: 8 of 256. An account that
/// was quiet then finds a slot however many others are busy.
const SLOTS_PER_RESERVED: u32 = 32;

/// Probes in flight at most, all dead endpoints together: 128 that are given up after 2 s each try 1,000 endpoints
/// within 16 s.
pub const PROBE_SLOTS: u32 = 128;

/// They are an eighth of the slow ones at most: dead endpoints that hang would fill those otherwise, and the
/// file descriptors suffice for no more.
const SLOTS_PER_PROBE: u32 = 8;

/// Weights are held as multiples of 1/65,536, and so bounded to what that can express.
const WEIGHT_ONE: u32 = 1 << 16;

/// An account's lane; an index, used again after the lane was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub u32);

/// Which slots a request takes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// For what is expected to end within [`SLOW_AFTER`].
    Fast,
    /// For everything else.
    Slow,
    /// For the probes of dead endpoints.
    Probe,
}

/// How many pools there are.
const POOLS: usize = Pool::ALL.len();

impl Pool {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Fast, Self::Slow, Self::Probe];
}

/// What the slow and the probing requests have of the slots that are not fast. Each has at least one.
#[must_use]
pub fn divided(slots: u32) -> (u32, u32) {
    let probes = (slots / SLOTS_PER_PROBE).clamp(1, PROBE_SLOTS);
    (slots.saturating_sub(probes).max(1), probes)
}

/// Slot-time divided by weight. Units: 1/65,536 of a microsecond at weight 1. 128 bits, because 64
/// would be used up in days by one busy lane.
type Tag = u128;

/// One request in flight. Give it back through [`Scheduler::finish`], or its slot is lost.
#[must_use = "the slot is freed only by Scheduler::finish"]
#[derive(Debug, PartialEq, Eq)]
pub struct Charge {
    lane: LaneId,
    pool: Pool,
    /// What the lane's tag in `pool` was raised by.
    charged: Tag,
    /// Time that the request spent, and paid for, in another pool.
    paid_elsewhere: Duration,
}

impl Charge {
    /// Whose request it is.
    #[must_use]
    pub fn lane(&self) -> LaneId {
        self.lane
    }

    /// Whose slot it holds now.
    #[must_use]
    pub fn pool(&self) -> Pool {
        self.pool
    }
}

/// All lanes in the order in which they may send.
#[derive(Debug)]
pub struct Scheduler {
    fast: Slots,
    slow: Slots,
    probe: Slots,
    lanes: Vec<Option<Lane>>,
    vacant: Vec<LaneId>,
}

#[derive(Debug)]
struct Slots {
    total: u32,
    reserved: u32,
    in_flight: u32,
    virtual_time: Tag,
    /// The ready lanes. Idle are those with nothing in flight in any pool.
    ready: Order,
}

#[derive(Debug)]
struct Lane {
    /// In units of 1/65,536; above 0.
    weight: u32,
    in_flight: u32,
    /// Where it stands in each pool.
    tags: [Tag; POOLS],
    ready: [bool; POOLS],
}

impl Slots {
    fn new(total: u32, reserved: u32) -> Self {
        Self { total, reserved, in_flight: 0, virtual_time: 0, ready: Order::default() }
    }

    fn free(&mut self) {
        assert!(self.in_flight > 0, "a slot becomes free, and none was taken");
        self.in_flight -= 1;
    }
}

impl Lane {
    fn tag_mut(&mut self, pool: Pool) -> &mut Tag {
        let [fast, slow, probe] = &mut self.tags;
        match pool {
            Pool::Fast => fast,
            Pool::Slow => slow,
            Pool::Probe => probe,
        }
    }

    fn ready_mut(&mut self, pool: Pool) -> &mut bool {
        let [fast, slow, probe] = &mut self.ready;
        match pool {
            Pool::Fast => fast,
            Pool::Slow => slow,
            Pool::Probe => probe,
        }
    }

    fn cost(&self, hold: Duration) -> Tag {
        let scaled = Tag::from(micros(hold)) * Tag::from(WEIGHT_ONE) * Tag::from(WEIGHT_ONE);
        scaled / Tag::from(self.weight)
    }
}

impl Scheduler {
    /// A scheduler without lanes. Of the fast slots, one in 32 is reserved for lanes with nothing in
    /// flight.
    #[must_use]
    pub fn new(fast_slots: u32, slow_slots: u32, probe_slots: u32) -> Self {
        Self {
            fast: Slots::new(fast_slots, reserved(fast_slots)),
            slow: Slots::new(slow_slots, 0),
            probe: Slots::new(probe_slots, 0),
            lanes: Vec::new(),
            vacant: Vec::new(),
        }
    }

    /// There are so many slots from now on. Fewer than are taken: nothing is sent before enough are free.
    pub fn set_slots(&mut self, fast_slots: u32, slow_slots: u32, probe_slots: u32) {
        (self.fast.total, self.fast.reserved) = (fast_slots, reserved(fast_slots));
        self.slow.total = slow_slots;
        self.probe.total = probe_slots;
    }

    /// Adds a lane with the share `weight`; one that is not finite and above 0 counts as 1.
    pub fn add_lane(&mut self, weight: f64) -> LaneId {
        let lane = Lane {
            weight: weight_units(weight),
            in_flight: 0,
            tags: Default::default(),
            ready: Default::default(),
        };
        if let Some(id) = self.vacant.pop() {
            let before = self.lanes.get_mut(index(id)).map(|place| place.replace(lane));
            assert!(matches!(before, Some(None)), "{id:?} is vacant, and a lane");
            return id;
        }
        let Ok(id) = u32::try_from(self.lanes.len()) else { panic!("2^32 accounts are pending") };
        self.lanes.push(Some(lane));
        LaneId(id)
    }

    /// Changes the lane's share, for requests that start or end from now on.
    ///
    /// # Panics
    /// The lane was removed.
    pub fn set_weight(&mut self, lane: LaneId, weight: f64) {
        self.lane_mut(lane).weight = weight_units(weight);
    }

    /// Forgets the lane. What it had used is forgotten too: one that comes back starts at V.
    ///
    /// # Panics
    /// Something of it is in flight, or it was removed before.
    pub fn remove_lane(&mut self, lane: LaneId) {
        assert_eq!(self.lane_in_flight(lane), 0, "{lane:?} goes, and has requests in flight");
        Pool::ALL.into_iter().for_each(|pool| self.set_ready(lane, pool, false));
        if let Some(place) = self.lanes.get_mut(index(lane)) {
            *place = None;
        }
        self.vacant.push(lane);
    }

    /// Whether the lane has something that may be sent now from this pool. Cheap when that is known
    /// already.
    ///
    /// # Panics
    /// The lane was removed.
    pub fn set_ready(&mut self, lane: LaneId, pool: Pool, ready: bool) {
        let virtual_time = self.slots(pool).virtual_time;
        let of_lane = self.lane_mut(lane);
        if std::mem::replace(of_lane.ready_mut(pool), ready) == ready {
            return;
        }
        let is_idle = of_lane.in_flight == 0;
        if ready {
            // The start tag is that of the moment of arrival, so that lanes which owe nothing go
            // in the order in which they came.
            let tag = of_lane.tag_mut(pool);
            *tag = virtual_time.max(*tag);
            let tag = *tag;
            self.slots_mut(pool).ready.insert(lane, tag, is_idle);
        } else {
            self.slots_mut(pool).ready.remove(lane, is_idle);
        }
    }

    /// The ready lane with the least start tag, if a slot of the pool is free for it. Changes nothing.
    #[must_use]
    pub fn peek(&self, pool: Pool) -> Option<LaneId> {
        let slots = self.slots(pool);
        let free = slots.total.saturating_sub(slots.in_flight);
        if free == 0 {
            return None;
        }
        slots.ready.first(free <= slots.reserved)
    }

    /// The ready lane with the least start tag, whether a slot is free or not.
    #[must_use]
    pub fn first_in_line(&self, pool: Pool) -> Option<LaneId> {
        self.slots(pool).ready.first(false)
    }

    /// The lane sends one request that is expected to hold its slot for `expected`.
    ///
    /// A free slot is the caller's to see to, by [`Scheduler::peek`]. Whether the lane is still ready
    /// afterwards is too.
    ///
    /// # Panics
    /// No slot is free, or the lane was removed.
    pub fn start(&mut self, lane: LaneId, pool: Pool, expected: Duration) -> Charge {
        let slots = self.slots_mut(pool);
        assert!(slots.in_flight < slots.total, "{lane:?} sends, and no slot of {pool:?} is free");
        slots.in_flight += 1;
        let virtual_time = slots.virtual_time;
        let (mut charged, mut start) = (0, 0);
        self.update(lane, |lane| {
            charged = lane.cost(expected.max(MIN_CHARGE));
            lane.in_flight += 1;
            let tag = lane.tag_mut(pool);
            start = virtual_time.max(*tag);
            *tag = start.saturating_add(charged);
        });
        self.slots_mut(pool).virtual_time = start;
        Charge { lane, pool, charged, paid_elsewhere: Duration::ZERO }
    }

    /// A request that reached the age of [`SLOW_AFTER`] moves from FAST to SLOW and frees its fast
    /// slot. Its lane then has paid FAST for that age, and pays SLOW for as much again in advance.
    ///
    /// False, and nothing changes, when SLOW is full; nor does anything change for a request that is
    /// not in FAST (true).
    pub fn move_to_slow(&mut self, charge: &mut Charge) -> bool {
        if charge.pool != Pool::Fast {
            return true;
        }
        if !self.has_slow() {
            return false;
        }
        self.fast.free();
        self.slow.in_flight += 1;
        let virtual_time = self.slow.virtual_time;
        self.update(charge.lane, |lane| {
            let cost = lane.cost(SLOW_AFTER);
            let fast = lane.tag_mut(Pool::Fast);
            *fast = corrected(*fast, charge.charged, cost);
            // V stays: it follows decisions, and this was none.
            let slow = lane.tag_mut(Pool::Slow);
            *slow = virtual_time.max(*slow).saturating_add(cost);
            charge.charged = cost;
        });
        charge.pool = Pool::Slow;
        charge.paid_elsewhere = SLOW_AFTER;
        true
    }

    /// Whether a slow slot is free.
    #[must_use]
    pub fn has_slow(&self) -> bool {
        self.slow.in_flight < self.slow.total
    }

    /// Whether few fast slots are free: at most a quarter. Not where there are none at all: to give up a request
    /// would let no other be sent.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        let free = self.fast.total.saturating_sub(self.fast.in_flight);
        self.fast.total > 0 && free <= self.fast.total / 4
    }

    /// The request ended, `actual` after it started: its slot is free, and the lane's tag is corrected
    /// by (actual − charged) / weight.
    pub fn finish(&mut self, charge: Charge, actual: Duration) {
        self.slots_mut(charge.pool).free();
        let hold = actual.saturating_sub(charge.paid_elsewhere).max(MIN_CHARGE);
        self.update(charge.lane, |lane| {
            assert!(lane.in_flight > 0, "a request ends, and its lane has none in flight");
            lane.in_flight -= 1;
            let cost = lane.cost(hold);
            let tag = lane.tag_mut(charge.pool);
            *tag = corrected(*tag, charge.charged, cost);
        });
    }

    /// The requests that hold a slot of the pool.
    #[must_use]
    pub fn in_flight(&self, pool: Pool) -> u32 {
        self.slots(pool).in_flight
    }

    /// The lane's requests in flight, in all pools.
    ///
    /// # Panics
    /// The lane was removed.
    #[must_use]
    pub fn lane_in_flight(&self, lane: LaneId) -> u32 {
        match self.lanes.get(index(lane)) {
            Some(Some(lane)) => lane.in_flight,
            Some(None) | None => no_lane(lane),
        }
    }

    /// Takes the lane out of the order, changes it, and puts it back where it then belongs.
    fn update(&mut self, id: LaneId, change: impl FnOnce(&mut Lane)) {
        let Some(Some(lane)) = self.lanes.get_mut(index(id)) else { no_lane(id) };
        let mut orders = [&mut self.fast.ready, &mut self.slow.ready, &mut self.probe.ready];
        let ready = lane.ready;
        let was_idle = lane.in_flight == 0;
        for (order, _) in orders.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            order.remove(id, was_idle);
        }
        change(lane);
        let is_idle = lane.in_flight == 0;
        let standing = lane.tags.into_iter().zip(ready);
        for (order, (tag, _)) in orders.into_iter().zip(standing).filter(|(_, (_, ready))| *ready) {
            order.insert(id, tag, is_idle);
        }
    }

    fn lane_mut(&mut self, id: LaneId) -> &mut Lane {
        match self.lanes.get_mut(index(id)) {
            Some(Some(lane)) => lane,
            Some(None) | None => no_lane(id),
        }
    }

    fn slots(&self, pool: Pool) -> &Slots {
        match pool {
            Pool::Fast => &self.fast,
            Pool::Slow => &self.slow,
            Pool::Probe => &self.probe,
        }
    }

    fn slots_mut(&mut self, pool: Pool) -> &mut Slots {
        match pool {
            Pool::Fast => &mut self.fast,
            Pool::Slow => &mut self.slow,
            Pool::Probe => &mut self.probe,
        }
    }
}

fn no_lane(lane: LaneId) -> ! {
    panic!("{lane:?} was removed, and is scheduled")
}

/// Of so many fast slots, these go only to lanes with nothing in flight.
fn reserved(fast_slots: u32) -> u32 {
    fast_slots / SLOTS_PER_RESERVED
}

fn corrected(tag: Tag, charged: Tag, cost: Tag) -> Tag {
    tag.saturating_add(cost).saturating_sub(charged)
}

fn index(lane: LaneId) -> usize {
    usize::try_from(lane.0).unwrap_or(usize::MAX)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to 1..=u32::MAX, where the fraction is meant to be lost"
)]
fn weight_units(weight: f64) -> u32 {
    if !weight.is_finite() || weight <= 0.0 {
        return WEIGHT_ONE;
    }
    (weight * f64::from(WEIGHT_ONE)).clamp(1.0, f64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests;
