//! `[scheduler]`, `[memory]` and `[wal]`: how much there may be of everything that waits.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units;
use walhook_core::size::ByteSize;

/// `[scheduler]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scheduler {
    /// Requests in flight to endpoints that answer within a second.
    pub fast_slots: u32,
    /// Requests in flight beside those, to slower endpoints.
    pub slow_slots: u32,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self { fast_slots: 256, slow_slots: 1024 }
    }
}

/// `[memory]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// For pending events and cached routes together.
    pub limit: ByteSize,
}

impl Memory {
    /// All of it.
    #[must_use]
    pub fn limit_bytes(&self) -> usize {
        usize::try_from(self.limit.0).unwrap_or(usize::MAX)
    }

    /// The largest change that is read: a quarter of the limit, and at least 1 MiB. What is larger
    /// passes by without being held.
    #[must_use]
    pub fn max_change_bytes(&self) -> usize {
        const LEAST: u64 = 1 << 20;
        usize::try_from((self.limit.0 / 4).max(LEAST)).unwrap_or(usize::MAX)
    }

    /// What the endpoints of one account may take: half of the limit. Events of an account that has more
    /// are dead letters.
    #[must_use]
    pub fn max_account_bytes(&self) -> usize {
        usize::try_from(self.limit.0 / 2).unwrap_or(usize::MAX)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self { limit: ByteSize(256 << 20) }
    }
}

/// `[wal]`: how much WAL undelivered events may hold back. What would hold more is deferred.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wal {
    /// For how long a delivery may hold the checkpoint back.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::as_duration")]
    pub max_hold: Duration,
    /// By how much the checkpoint may lag behind what was read.
    pub max_retained: ByteSize,
}

impl Default for Wal {
    fn default() -> Self {
        Self { max_hold: Duration::from_secs(30), max_retained: ByteSize(256 << 20) }
    }
}
