//! The columns that name a replay: `replay_id` of `deferred` and `dead_letters`. They are part of the rows' keys,
//! so the stream's own rows have 0 there, which is no job's id. That is said here, and nowhere else.

use walhook_core::id::ReplayId;

/// What the column says of a delivery of `replay`.
#[must_use]
pub fn of(replay: Option<ReplayId>) -> i64 {
    replay.map_or(0, |replay| replay.0)
}

/// Whose delivery it is, by what the column says.
#[must_use]
pub fn read(column: i64) -> Option<ReplayId> {
    (column != 0).then_some(ReplayId(column))
}
