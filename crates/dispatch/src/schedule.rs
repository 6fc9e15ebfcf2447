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
//! Beside its weight a lane may have slots reserved, in the fast pool and as many in the slow one: see `slots`. They
//! are lent while it does not use them; what it sends beyond them takes turns like everybody's.
//!
//! A flood of the fast pool is spread over the time that it takes: see `pace`.
//!
//! Why nobody starves: a lane that becomes ready gets a tag of at least V, and every request adds at
//! least [`MIN_CHARGE`] to its lane's tag, so the lanes ahead overtake a waiting one only so often; and reserved slots
//! are at most half of all. No credit builds up: a tag below V counts as V.
//!
//! Cost: O(log n) for each call, with n the ready lanes; the order stands in heaps, and a tag that changes is
//! moved at once.
//!
//! Sources: Goyal, Vin and Cheng, "Start-time Fair Queueing" (1996); Kubernetes' API priority and
//! fairness, for the correction at the end of a request.

use std::time::Duration;

use walhook_core::endpoint::Share;

mod lane;
mod learned;
mod order;
mod pace;
mod pool;
mod slots;

pub use learned::{AdaptiveLimit, AnswerTime, HoldEstimate};
pub use pace::Pace;
pub use pool::{POOLS, PROBE_SLOTS, Pool, divided};

use lane::{Lane, corrected};
use slots::Slots;

/// A request that holds its slot so long, or is expected to, belongs to [`Pool::Slow`].
pub const SLOW_AFTER: Duration = Duration::from_secs(1);

/// The least that a request costs. Without it, lanes whose requests cost nothing would never move
/// back in the order.
pub const MIN_CHARGE: Duration = Duration::from_millis(1);

/// Of so many fast slots, one goes only to idle lanes: 8 of 256, and 1 of 16. An account that was quiet then finds a slot
/// however many others are busy.
const SLOTS_PER_IDLE: u32 = 32;

/// An idle lane has nothing in flight, and so many deliveries at most. With more it takes its turn like everybody: where
/// there are fewer slots than accounts with a backlog, most of these have nothing in flight most of the time, and would
/// take all that is kept.
pub const LITTLE: usize = 16;

/// An account's lane; an index, used again after the lane was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub u32);

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
    /// It has one of the slots of `pool` that are reserved for its lane, and costs it nothing.
    is_covered: bool,
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

impl Scheduler {
    /// A scheduler without lanes. Of the fast slots, one in 32 is kept for idle lanes: those with nothing in
    /// flight, of which little is pending.
    #[must_use]
    pub fn new(fast_slots: u32, slow_slots: u32, probe_slots: u32) -> Self {
        Self {
            fast: Slots::new(fast_slots, reserve(fast_slots)),
            slow: Slots::new(slow_slots, 0),
            probe: Slots::new(probe_slots, 0),
            lanes: Vec::new(),
            vacant: Vec::new(),
        }
    }

    /// There are so many slots from now on. Fewer than are taken: nothing is sent before enough are free.
    pub fn set_slots(&mut self, fast_slots: u32, slow_slots: u32, probe_slots: u32) {
        (self.fast.total, self.fast.reserve) = (fast_slots, reserve(fast_slots));
        self.slow.total = slow_slots;
        self.probe.total = probe_slots;
    }

    /// Adds a lane with this share; a weight that is not finite and above 0 counts as 1.
    pub fn add_lane(&mut self, share: impl Into<Share>) -> LaneId {
        let lane = Lane::new(share.into());
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
    pub fn set_share(&mut self, lane: LaneId, share: impl Into<Share>) {
        let share = share.into();
        let of_lane = self.lane_mut(lane);
        if of_lane.reserved == share.reserved {
            of_lane.set_share(share);
        } else {
            // That may be owed to it, or no more.
            self.update(lane, |lane| lane.set_share(share));
        }
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

    /// How many deliveries of the lane are pending. Cheap while they stay few, or many.
    ///
    /// # Panics
    /// The lane was removed.
    #[inline]
    pub fn set_pending(&mut self, lane: LaneId, pending: usize) {
        let has_little = pending <= LITTLE;
        if self.lane_mut(lane).has_little != has_little {
            self.update(lane, |lane| lane.has_little = has_little);
        }
    }

    /// Whether the lane has something that may be sent now from this pool. Cheap when that is known
    /// already.
    ///
    /// # Panics
    /// The lane was removed.
    #[inline]
    pub fn set_ready(&mut self, lane: LaneId, pool: Pool, ready: bool) {
        if self.lane_mut(lane).in_pool(pool).is_ready != ready {
            self.change_ready(lane, pool, ready);
        }
    }

    fn change_ready(&mut self, lane: LaneId, pool: Pool, ready: bool) {
        let virtual_time = self.slots(pool).virtual_time;
        let of_lane = self.lane_mut(lane);
        let (is_idle, reserved) = (of_lane.is_idle(), of_lane.reserved_in(pool));
        let standing = of_lane.in_pool(pool);
        standing.is_ready = ready;
        if ready {
            // The start tag is that of the moment of arrival, so that lanes which owe nothing go
            // in the order in which they came.
            standing.tag = virtual_time.max(standing.tag);
        }
        let standing = *standing;
        let slots = self.slots_mut(pool);
        if ready {
            slots.insert(lane, &standing, reserved, is_idle);
        } else {
            slots.remove(lane, &standing, reserved, is_idle);
        }
    }

    /// The lane that goes next, if a slot of the pool is free for it: one that has reserved slots which it does not
    /// hold, else the ready one with the least start tag. Changes nothing.
    #[must_use]
    pub fn peek(&self, pool: Pool) -> Option<LaneId> {
        self.slots(pool).first()
    }

    /// As [`Scheduler::peek`], of those alone that are idle, or have fewer in flight than they have reserved.
    #[must_use]
    pub fn peek_idle(&self, pool: Pool) -> Option<LaneId> {
        self.slots(pool).first_idle()
    }

    /// The lane that would go next, were there slots enough.
    #[must_use]
    pub fn first_in_line(&self, pool: Pool) -> Option<LaneId> {
        self.slots(pool).first_in_line()
    }

    /// The lane sends one request that is expected to hold its slot for `expected`.
    ///
    /// A free slot is the caller's to see to, by [`Scheduler::peek`]. So is whether the lane is still ready: it is not
    /// until that is said, but where a reserved slot covers the request, for then it has had no turn.
    ///
    /// # Panics
    /// No slot is free, or the lane was removed.
    pub fn start(&mut self, lane: LaneId, pool: Pool, expected: Duration) -> Charge {
        let slots = self.slots(pool);
        assert!(slots.in_flight < slots.total, "{lane:?} sends, and no slot of {pool:?} is free");
        let virtual_time = slots.virtual_time;
        let is_covered = self.covers(lane, pool);
        let (mut charged, mut start) = (0, virtual_time);
        self.update(lane, |lane| {
            lane.in_flight += 1;
            let cost = lane.cost(expected.max(MIN_CHARGE));
            let standing = lane.in_pool(pool);
            if is_covered {
                standing.covered += 1;
            } else {
                charged = cost;
                start = virtual_time.max(standing.tag);
                standing.tag = start.saturating_add(charged);
                standing.is_ready = false;
            }
        });
        let slots = self.slots_mut(pool);
        slots.take(is_covered);
        slots.virtual_time = start;
        Charge { lane, pool, charged, paid_elsewhere: Duration::ZERO, is_covered }
    }

    /// A request that reached the age of [`SLOW_AFTER`] moves from FAST to SLOW and frees its fast
    /// slot. Its lane then has paid FAST for that age, and pays SLOW for as much again in advance; where a
    /// reserved slot covers it, nothing.
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
        let virtual_time = self.slow.virtual_time;
        let was_covered =
            std::mem::replace(&mut charge.is_covered, self.covers(charge.lane, Pool::Slow));
        let is_covered = charge.is_covered;
        self.fast.free(was_covered);
        self.slow.take(is_covered);
        self.update(charge.lane, |lane| {
            let cost = lane.cost(SLOW_AFTER);
            let fast = lane.in_pool(Pool::Fast);
            if was_covered {
                fast.covered -= 1;
            } else {
                fast.tag = corrected(fast.tag, charge.charged, cost);
            }
            let slow = lane.in_pool(Pool::Slow);
            if is_covered {
                slow.covered += 1;
                charge.charged = 0;
            } else {
                // V stays: it follows decisions, and this was none.
                slow.tag = virtual_time.max(slow.tag).saturating_add(cost);
                charge.charged = cost;
            }
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
    /// by (actual − charged) / weight; that of a covered one costs nothing.
    pub fn finish(&mut self, charge: Charge, actual: Duration) {
        self.slots_mut(charge.pool).free(charge.is_covered);
        let hold = actual.saturating_sub(charge.paid_elsewhere).max(MIN_CHARGE);
        self.update(charge.lane, |lane| {
            assert!(lane.in_flight > 0, "a request ends, and its lane has none in flight");
            lane.in_flight -= 1;
            let cost = lane.cost(hold);
            let standing = lane.in_pool(charge.pool);
            if charge.is_covered {
                standing.covered -= 1;
            } else {
                standing.tag = corrected(standing.tag, charge.charged, cost);
            }
        });
    }

    /// How many slots the pool has.
    #[must_use]
    pub fn total(&self, pool: Pool) -> u32 {
        self.slots(pool).total
    }

    /// Of these, the slots that lanes with a backlog may use: some fast ones are kept for idle lanes.
    #[must_use]
    pub fn usable(&self, pool: Pool) -> u32 {
        let slots = self.slots(pool);
        slots.total.saturating_sub(slots.reserve)
    }

    /// The requests that hold a slot of the pool.
    #[must_use]
    pub fn in_flight(&self, pool: Pool) -> u32 {
        self.slots(pool).in_flight
    }

    /// Of these, those on slots that are reserved for their lanes.
    #[must_use]
    pub fn covered(&self, pool: Pool) -> u32 {
        self.slots(pool).covered
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

    /// Whether a request of the lane that starts now has a reserved slot.
    fn covers(&mut self, id: LaneId, pool: Pool) -> bool {
        let lane = self.lane_mut(id);
        let (standing, reserved) = (*lane.in_pool(pool), lane.reserved_in(pool));
        self.slots(pool).covers(&standing, reserved)
    }

    /// Takes the lane out of the order, changes it, and puts it back where it then belongs.
    fn update(&mut self, id: LaneId, change: impl FnOnce(&mut Lane)) {
        let Some(Some(lane)) = self.lanes.get_mut(index(id)) else { no_lane(id) };
        let mut pools = [&mut self.fast, &mut self.slow, &mut self.probe];
        let is_idle = lane.is_idle();
        for (slots, pool) in pools.iter_mut().zip(Pool::ALL) {
            let (reserved, standing) = (lane.reserved_in(pool), lane.in_pool(pool));
            if standing.is_ready {
                slots.remove(id, standing, reserved, is_idle);
            }
        }
        change(lane);
        let is_idle = lane.is_idle();
        for (slots, pool) in pools.into_iter().zip(Pool::ALL) {
            let (reserved, standing) = (lane.reserved_in(pool), lane.in_pool(pool));
            if standing.is_ready {
                slots.insert(id, standing, reserved, is_idle);
            }
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

/// Of so many fast slots, these go only to idle lanes. With less than half of [`SLOTS_PER_IDLE`]
/// one would be too large a part of what there is.
fn reserve(fast_slots: u32) -> u32 {
    fast_slots.saturating_add(SLOTS_PER_IDLE / 2) / SLOTS_PER_IDLE
}

fn index(lane: LaneId) -> usize {
    usize::try_from(lane.0).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests;
