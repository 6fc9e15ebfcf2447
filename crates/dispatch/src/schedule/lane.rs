//! One account's lane, as the scheduler knows it.

use std::time::Duration;

use walhook_core::endpoint::Share;
use walhook_core::tick::micros;

use super::Tag;
use super::pool::{POOLS, Pool};

/// Weights are held as multiples of 1/65,536, and so bounded to what that can express.
pub(super) const WEIGHT_ONE: u32 = 1 << 16;

#[derive(Debug)]
pub(super) struct Lane {
    /// In units of 1/65,536; above 0.
    pub(super) weight: u32,
    /// Slots reserved for it, in each of the fast and the slow pool.
    pub(super) reserved: u32,
    pub(super) in_flight: u32,
    /// Little of it is pending.
    pub(super) has_little: bool,
    pools: [InPool; POOLS],
}

impl Lane {
    pub(super) fn new(share: Share) -> Self {
        let (weight, reserved) = (weight_units(share.weight), share.reserved);
        Self { weight, reserved, in_flight: 0, has_little: true, pools: Default::default() }
    }

    pub(super) fn set_share(&mut self, share: Share) {
        (self.weight, self.reserved) = (weight_units(share.weight), share.reserved);
    }

    pub(super) fn in_pool(&mut self, pool: Pool) -> &mut InPool {
        let [fast, slow, probe] = &mut self.pools;
        match pool {
            Pool::Fast => fast,
            Pool::Slow => slow,
            Pool::Probe => probe,
        }
    }

    /// What of the pool is reserved for it.
    pub(super) fn reserved_in(&self, pool: Pool) -> u32 {
        if pool == Pool::Probe { 0 } else { self.reserved }
    }

    /// Whether nothing of it is in flight and little waits: it is none of those that fill the slots.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.has_little
    }

    pub(super) fn cost(&self, hold: Duration) -> Tag {
        let scaled = Tag::from(micros(hold)) * Tag::from(WEIGHT_ONE) * Tag::from(WEIGHT_ONE);
        scaled / Tag::from(self.weight)
    }
}

/// Where a lane stands in one pool.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct InPool {
    pub(super) tag: Tag,
    pub(super) is_ready: bool,
    /// Requests on its reserved slots.
    pub(super) covered: u32,
}

impl InPool {
    /// What part of `reserved` it would hold with one more, in 1/2^64: exact enough to tell any two apart.
    pub(super) fn fill(&self, reserved: u32) -> Tag {
        ((Tag::from(self.covered) + 1) << 64) / Tag::from(reserved.max(1))
    }

    pub(super) fn is_owed(&self, reserved: u32) -> bool {
        self.covered < reserved
    }
}

/// A tag that was raised by `charged`, where it was to be by `cost`.
pub(super) fn corrected(tag: Tag, charged: Tag, cost: Tag) -> Tag {
    tag.saturating_add(cost).saturating_sub(charged)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to 1..=u32::MAX, where the fraction is meant to be lost"
)]
pub(super) fn weight_units(weight: f64) -> u32 {
    if !weight.is_finite() || weight <= 0.0 {
        return WEIGHT_ONE;
    }
    (weight * f64::from(WEIGHT_ONE)).clamp(1.0, f64::from(u32::MAX)) as u32
}
