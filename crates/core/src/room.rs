//! Whether the state tables have room: when a queue's deferred rows are to be given up, and when it may
//! go on.
//!
//! PostgreSQL gives the room of removed rows back to itself, hardly ever to the disk. So the size on
//! disk alone would suspend one queue after the other although the first has made room; and what is
//! used alone would suspend before the tables have grown to their bound. Between giving up and going
//! on lies a good part of the bound: each gap stands for as much, so gaps are few.

use super::persist::QueueId;

/// Of the bound: what must be used, beside a size on disk at the bound, for the tables to be full.
const FULL_PERCENT: u64 = 80;

/// Of the bound: what is used must be less for suspended queues to go on.
const ROOMY_PERCENT: u64 = 50;

/// What the state tables take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct StateSize {
    /// On disk, indexes included, with the room that removed rows have left.
    pub total_bytes: u64,
    /// Without that room: an estimate. Never above `total_bytes`.
    pub used_bytes: u64,
    /// Of this, what the rows without an endpoint take.
    pub unrouted_bytes: u64,
}

/// What one queue has in the state tables.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Holder {
    /// The queue; without an endpoint's id, the unroutable changes of the account.
    pub queue: QueueId,
    /// Its dead letters that are rows.
    pub letters: u64,
    /// What they take, their events' bodies included.
    pub letter_bytes: u64,
}

/// One measurement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Measured {
    /// What the tables take.
    pub size: StateSize,
    /// The queues that hold most of them with dead letters and deferred rows together, the largest first,
    /// while there is not room enough.
    pub holders: Vec<Holder>,
}

/// What a size means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Rows must go.
    None,
    /// Nothing needs to go, and nothing may come back.
    Little,
    /// Suspended queues may go on.
    Enough,
}

impl StateSize {
    /// What it means where the tables may take `max_bytes`.
    #[must_use]
    pub fn room(self, max_bytes: u64) -> Room {
        if self.total_bytes >= max_bytes && self.used_bytes >= share(max_bytes, FULL_PERCENT) {
            Room::None
        } else if self.used_bytes < share(max_bytes, ROOMY_PERCENT) {
            Room::Enough
        } else {
            Room::Little
        }
    }

    /// Whether the bound is near enough to look more often for room that removed rows have left.
    #[must_use]
    pub fn is_near(self, max_bytes: u64) -> bool {
        self.total_bytes >= share(max_bytes, ROOMY_PERCENT)
    }
}

/// So much of `bytes`.
#[must_use]
pub fn share(bytes: u64, percent: u64) -> u64 {
    bytes / 100 * percent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_none_at_the_bound_and_enough_well_below_it() {
        let room = |total_bytes, used_bytes| {
            StateSize { total_bytes, used_bytes, unrouted_bytes: 0 }.room(1_000)
        };
        assert_eq!(room(999, 999), Room::Little, "the disk still has what the bound allows");
        assert_eq!(room(1_000, 799), Room::Little, "removed rows have left room");
        assert_eq!(room(1_000, 800), Room::None);
        assert_eq!(room(5_000, 500), Room::Little);
        assert_eq!(room(5_000, 499), Room::Enough, "although the files stay as large as they were");
    }
}
