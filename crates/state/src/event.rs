//! An event, as `bodies` holds it.

use bytes::Bytes;
use tokio_postgres::Row;
use tokio_postgres::types::PgLsn;

use super::{StateError, text, unreadable};
use walhook_core::event::{AccountId, Event, Operation, RowKeys};
use walhook_core::lsn::Lsn;
use walhook_core::position::{Position, WalPosition};

/// What [`read_event`] wants of `bodies b`.
pub(super) const EVENT_COLUMNS: &str = "b.event_id, b.event_type, b.account, b.operation,
    (extract(epoch FROM b.committed_at) OPERATOR(pg_catalog.*) 1000000)::bigint AS committed,
    b.commit_lsn, b.change_lsn, b.relation, b.n, b.keys, b.row";

/// Reads the event back from a row that has [`EVENT_COLUMNS`].
pub(super) fn read_event(row: &Row) -> Result<Event, StateError> {
    let id: &str = row.try_get("event_id")?;
    let event_type: &str = row.try_get("event_type")?;
    let account: &str = row.try_get("account")?;
    let operation: &str = row.try_get("operation")?;
    let of = |column: &str| format!("{column} of the body of {id}");
    let position = WalPosition {
        commit_lsn: Lsn(row.try_get::<_, PgLsn>("commit_lsn")?.into()),
        change_lsn: Lsn(row.try_get::<_, PgLsn>("change_lsn")?.into()),
        relation: row.try_get("relation")?,
        n: u32::try_from(row.try_get::<_, i64>("n")?).map_err(unreadable(&of("n")))?,
    };
    let keys: Vec<i64> = row.try_get("keys")?;
    Ok(Event {
        id: id.parse().map_err(unreadable(&of("event_id")))?,
        position: Position::Wal(position),
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
