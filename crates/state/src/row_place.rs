//! The place of a deferred row: in a list, and in its queue.

use tokio_postgres::Row;

use super::{StateError, place, replay_column, text};
use walhook_core::persist::{EventKey, QueueId, RowKey};

/// The columns of a row's place.
pub(super) fn place_columns() -> String {
    format!("event_id, endpoint, replay_id, account, {}, event_type", place::columns(""))
}

/// Reads it back from a row that has [`place_columns`].
pub(super) fn read_place(row: &Row) -> Result<(QueueId, RowKey), StateError> {
    let position = place::read(row, "a deferred row")?;
    let event_type = row.try_get::<_, &str>("event_type")?.into();
    let queue = text::queue(row.try_get("account")?, row.try_get("endpoint")?);
    let event = EventKey { position, event_type };
    Ok((queue, RowKey { event, replay: replay_column::read(row.try_get("replay_id")?) }))
}
