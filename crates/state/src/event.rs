//! An event, as `bodies` holds it.

use bytes::Bytes;
use tokio_postgres::Row;

use super::{StateError, place, text, unreadable};
use walhook_core::event::{AccountId, Event, Operation, RowKeys};

/// What [`read_event`] wants of `bodies b`.
pub(super) fn event_columns() -> String {
    format!(
        "b.event_id, b.event_type, b.account, b.operation,
         (extract(epoch FROM b.committed_at) OPERATOR(pg_catalog.*) 1000000)::bigint AS committed,
         {}, b.keys, b.row",
        place::columns("b.")
    )
}

/// Reads the event back from a row that has [`event_columns`].
pub(super) fn read_event(row: &Row) -> Result<Event, StateError> {
    let id: &str = row.try_get("event_id")?;
    let event_type: &str = row.try_get("event_type")?;
    let account: &str = row.try_get("account")?;
    let operation: &str = row.try_get("operation")?;
    let of = |column: &str| format!("{column} of the body of {id}");
    let keys: Vec<i64> = row.try_get("keys")?;
    Ok(Event {
        id: id.parse().map_err(unreadable(&of("event_id")))?,
        position: place::read(row, &format!("the body of {id}"))?,
        event_type: event_type.into(),
        account: AccountId::new(text::read(account)),
        operation: parse_operation(operation)
            .ok_or(operation)
            .map_err(unreadable(&of("operation")))?,
        commit_time_us: row.try_get("committed")?,
        keys: keys.into_iter().map(i64::cast_unsigned).collect::<RowKeys>(),
        row: Bytes::copy_from_slice(row.try_get("row")?),
    })
}

fn parse_operation(word: &str) -> Option<Operation> {
    [
        Operation::Insert,
        Operation::Update,
        Operation::Delete,
        Operation::Truncate,
        Operation::Message,
    ]
    .into_iter()
    .find(|operation| operation.as_str() == word)
}
