//! One pool: its slots, the ready lanes in the order of their tags, and those that have reserved slots which they
//! do not hold.
//!
//! A request is covered where a reserved slot of its lane is free for it. Covered requests are outside of the fair
//! order: they cost their lane nothing and leave V where it is. What they take is a change of the rate at which the
//! others are served, and start-time fair queueing is fair whatever that rate does: that is its theorem.
//!
//! # Invariants
//!
//! - At most half of the slots are covered when a request starts covered; so at least half take turns.
//! - No slot waits for a lane that has nothing to send. A slot that is free goes to a lane that is owed one, where
//!   there is one: so what was lent comes back with the next request that ends.
//! - Of those that are owed, the one goes first that has the least of what it has reserved, this slot counted:
//!   where all together have reserved more than half, each gets its part of half in proportion.

use super::lane::InPool;
use super::order::Order;
use super::{LaneId, Tag};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) total: u32,
    /// The last so many that are free go only to idle lanes, or to those that are owed one.
    pub(super) reserve: u32,
    pub(super) in_flight: u32,
    /// Of these, the covered ones.
    pub(super) covered: u32,
    pub(super) virtual_time: Tag,
    /// The ready lanes. Idle are those with nothing in flight in any pool, of which little is pending.
    ready: Order,
    /// The ready lanes that are owed a slot, by [`InPool::fill`].
    owed: Order,
}

impl Slots {
    pub(super) fn new(total: u32, reserve: u32) -> Self {
        Self {
            total,
            reserve,
            in_flight: 0,
            covered: 0,
            virtual_time: 0,
            ready: Order::default(),
            owed: Order::default(),
        }
    }

    /// The lane that goes next, if a slot is free for it.
    pub(super) fn first(&self) -> Option<LaneId> {
        let free = self.total.saturating_sub(self.in_flight);
        if free == 0 {
            return None;
        }
        self.owed().or_else(|| self.ready.first(free <= self.reserve))
    }

    /// As [`Slots::first`], of idle lanes and those that are owed one.
    pub(super) fn first_idle(&self) -> Option<LaneId> {
        let is_free = self.in_flight < self.total;
        is_free.then(|| self.owed().or_else(|| self.ready.first(true))).flatten()
    }

    /// The lane that would go next, were there slots enough.
    pub(super) fn first_in_line(&self) -> Option<LaneId> {
        self.owed().or_else(|| self.ready.first(false))
    }

    /// Who goes next for a reserved slot, where one may still be given.
    fn owed(&self) -> Option<LaneId> {
        if self.may_cover() { self.owed.first(false) } else { None }
    }

    /// Whether a request of the lane that starts now is covered.
    pub(super) fn covers(&self, lane: &InPool, reserved: u32) -> bool {
        self.may_cover() && lane.is_owed(reserved)
    }

    fn may_cover(&self) -> bool {
        self.covered < self.total / 2
    }

    /// A slot is taken.
    pub(super) fn take(&mut self, is_covered: bool) {
        self.in_flight += 1;
        self.covered += u32::from(is_covered);
    }

    /// A slot is given back.
    pub(super) fn free(&mut self, was_covered: bool) {
        assert!(self.in_flight > 0, "a slot becomes free, and none was taken");
        self.in_flight -= 1;
        self.covered -= u32::from(was_covered);
    }

    /// A ready lane comes, idle or not.
    pub(super) fn insert(&mut self, id: LaneId, lane: &InPool, reserved: u32, is_idle: bool) {
        self.ready.insert(id, lane.tag, is_idle);
        if lane.is_owed(reserved) {
            self.owed.insert(id, lane.fill(reserved), false);
        }
    }

    /// A lane goes that came as it is now.
    pub(super) fn remove(&mut self, id: LaneId, lane: &InPool, reserved: u32, is_idle: bool) {
        self.ready.remove(id, is_idle);
        if lane.is_owed(reserved) {
            self.owed.remove(id, false);
        }
    }
}
