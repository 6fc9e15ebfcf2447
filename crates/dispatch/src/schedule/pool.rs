//! The pools of slots.

/// Probes in flight at most, all dead endpoints together: 128 that are given up after 2 s each try 1,000 endpoints
/// within 16 s.
pub const PROBE_SLOTS: u32 = 128;

/// They are an eighth of the slow ones at most: dead endpoints that hang would fill those otherwise, and the
/// file descriptors suffice for no more.
const SLOTS_PER_PROBE: u32 = 8;

/// Which slots a request takes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pool {
    /// For what is expected to end within [`SLOW_AFTER`](super::SLOW_AFTER).
    Fast,
    /// For everything else.
    Slow,
    /// For the probes of dead endpoints.
    Probe,
}

/// How many pools there are.
pub const POOLS: usize = Pool::ALL.len();

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
