//! Over a major upgrade of PostgreSQL without a gap.
//!
//! pg_upgrade takes slots along (from 17 on) when they have read everything. A slot has never read
//! walhook's own last write, so `prepare` looks for itself that nothing is owed, and moves the slots
//! behind it. It writes first and moves then, and where the slots stand says that it came to its end.

pub(crate) mod finish;
pub(crate) mod prepare;
#[cfg(test)]
mod tests;

pub(crate) use finish::plan as plan_finish;
pub(crate) use prepare::{PreparedView, prepare};

/// Slots are carried over by pg_upgrade where the old server has this version or a later one.
const CARRIED: i32 = 170_000;
