//! What the server says about our replication slot.

use tokio_postgres::Client;

use crate::engine::halt::SlotState;
use crate::engine::lsn::Lsn;

const QUERY: &str = "
    SELECT confirmed_flush_lsn::text, restart_lsn::text, wal_status, plugin, database = current_database(),
           active_pid,
           CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END::text,
           safe_wal_size
      FROM pg_replication_slots WHERE slot_name = $1";

/// The slot as it stands, with how far the WAL has come.
#[derive(Debug, Clone)]
pub struct Slot {
    /// What decides whether it can be used.
    pub state: SlotState,
    /// The server process that streams from it, where there is one.
    pub active_pid: Option<i32>,
    /// Where the WAL ends.
    pub wal_end: Lsn,
    /// From where on the server keeps WAL for it.
    pub restart_lsn: Option<Lsn>,
    /// How many more bytes of WAL may be written before it is lost; `None`: no limit is set.
    pub safe_bytes: Option<i64>,
}

impl Slot {
    /// The WAL that the slot makes the server keep, in bytes.
    #[must_use]
    pub fn retained_bytes(&self) -> u64 {
        self.restart_lsn.map_or(0, |restart| self.wal_end.bytes_since(restart))
    }
}

/// Reads the slot; `None` when there is none of this name.
///
/// # Errors
/// When the query fails.
pub async fn read(client: &Client, name: &str) -> Result<Option<Slot>, tokio_postgres::Error> {
    let Some(row) = client.query_opt(QUERY, &[&name]).await? else { return Ok(None) };
    let lsn = |column: usize| row.get::<_, Option<&str>>(column).and_then(|text| text.parse().ok());
    Ok(Some(Slot {
        state: SlotState {
            confirmed_flush: lsn(0),
            lost: row.get::<_, Option<&str>>(2) == Some("lost"),
            plugin: row.get::<_, Option<&str>>(3).unwrap_or_default().to_owned(),
            here: row.get::<_, Option<bool>>(4).unwrap_or(false),
        },
        active_pid: row.get(5),
        wal_end: lsn(6).unwrap_or(Lsn::ZERO),
        restart_lsn: lsn(1),
        safe_bytes: row.get(7),
    }))
}
