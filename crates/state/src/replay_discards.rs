//! What was removed of a replay while its range is read: the table `replay_discards`.
//!
//! A leader that goes on from the replay's stored position passes over what is deferred or dead from there on. What
//! an operator discarded of that is neither, and would be sent after all. So whoever removes it leaves its name here,
//! in the same statement. A name is of use until the position has passed its event: it goes with the next position,
//! or with the replay's end. So there are never more than a leader has to read again (see `STORE_EVERY` in
//! `src/server/replay.rs`), and than there were dead letters.

use tokio_postgres::types::Type;

use super::place::COMMIT;
use super::unfinished::of_unfinished_job;
use super::{Param, Scope, StateError, Transaction};
use walhook_core::id::{JobId, ReplayId};
use walhook_postgres::op::{EQ, GT, LE};

/// The table's name.
pub(super) const TABLE: &str = "replay_discards";

/// What a `WITH` goes on with that has `gone`, the rows which it deletes from `deferred`: names those of replays
/// that a leader may read again. `$1` is the pipeline.
pub(super) fn with_rows_named(s: &str) -> String {
    with_named(s, &format!("{LE} g.{COMMIT}"))
}

/// Likewise of rows of `dead_letters`, which do not say where their events committed.
pub(super) fn with_letters_named(s: &str) -> String {
    with_named(s, "IS NOT NULL")
}

/// `reads` is what is asked of the replay's position; there is none when its range was read to its end.
fn with_named(s: &str, reads: &str) -> String {
    format!(
        "named AS (
             INSERT INTO {s}.{TABLE} (pipeline, replay_id, event_id, endpoint)
             SELECT $1, g.replay_id, g.event_id, g.endpoint FROM gone g
             WHERE g.replay_id {GT} 0 AND {} {reads}
             ON CONFLICT DO NOTHING)",
        of_unfinished_job(s, "coalesce(position, '0/0')", "g.replay_id")
    )
}

/// All before the replay's position was sent again. Those before it are at their end: they are read in the order of
/// their ids.
pub(super) async fn forget_passed(
    tx: &Transaction<'_>,
    scope: &Scope,
    replay: ReplayId,
) -> Result<(), StateError> {
    forget(tx, scope, LE, replay.0).await
}

/// The job, which may be a replay, is finished.
pub(super) async fn forget_finished(
    tx: &Transaction<'_>,
    scope: &Scope,
    job: JobId,
) -> Result<(), StateError> {
    forget(tx, scope, EQ, job.0).await
}

async fn forget(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    which: &str,
    id: i64,
) -> Result<(), StateError> {
    let sql = format!("DELETE FROM {s}.{TABLE} WHERE pipeline {EQ} $1 AND replay_id {which} $2");
    let params: [Param<'_>; 2] = [(pipeline, Type::TEXT), (&id, Type::INT8)];
    tx.execute_typed(&sql, &params).await?;
    Ok(())
}
