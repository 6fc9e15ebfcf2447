//! Lines of the delivery log that tell of deliveries which an operator discarded.
//!
//! One each, in the transaction that removes the rows: whoever asks afterwards what became of a delivery is answered.
//! While that goes on no leader writes, so the lines' numbers are free.

use tokio_postgres::Row;

use super::deliveries::{Page, append};
use super::row_place::read_place;
use super::{Scope, StateError, Transaction, unreadable};
use walhook_core::delivery_log::Entry;
use walhook_core::position::EventId;

/// What came of lines of the delivery log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Logged {
    /// So many are stored.
    pub stored: u64,
    /// So many were left out, for the table refused them.
    pub dropped: u64,
}

/// Logs that what these rows stood for was discarded, at `at_us`; `None`: the log keeps no such lines. The rows have the
/// columns of a place, and in `committed` when the event was committed, in microseconds since 1970-01-01 UTC.
///
/// # Errors
/// [`StateError::Sql`], [`StateError::Unreadable`].
pub(super) async fn log(
    tx: &Transaction<'_>,
    scope: &Scope,
    gone: &[Row],
    at_us: Option<i64>,
) -> Result<Logged, StateError> {
    let Some(at_us) = at_us else { return Ok(Logged::default()) };
    let entries = gone.iter().map(|row| entry(row, at_us)).collect::<Result<Vec<_>, _>>()?;
    let lines = entries.len() as u64;
    let Some(page) = Page::of(&entries) else { return Ok(Logged::default()) };
    // A page that the server refuses must not keep anything from being discarded.
    tx.batch_execute("SAVEPOINT log").await?;
    match append(tx, scope, Some(&page)).await {
        Ok(()) => Ok(Logged { stored: lines, dropped: 0 }),
        Err(StateError::LogRefused(_)) => {
            tx.batch_execute("ROLLBACK TO SAVEPOINT log").await?;
            Ok(Logged { stored: 0, dropped: lines })
        }
        Err(error) => Err(error),
    }
}

fn entry(row: &Row, at_us: i64) -> Result<Entry, StateError> {
    let (queue, key) = read_place(row)?;
    let event: EventId =
        row.try_get::<_, &str>("event_id")?.parse().map_err(unreadable("an event_id"))?;
    // Where the event's own time is lost its id still has it, to the millisecond.
    let committed_us: Option<i64> = row.try_get("committed")?;
    let by_id = || i64::try_from(event.commit_ms()).unwrap_or(i64::MAX).saturating_mul(1_000);
    let committed_us = committed_us.unwrap_or_else(by_id);
    Ok(Entry::discarded(event, queue, key, (committed_us, at_us)))
}
