//! What the source says of a replication slot.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::{PgLsn, Type};

use crate::error::SourceError;
use crate::op::EQ;
use walhook_core::halt::{Lost, SlotState};
use walhook_core::lsn::Lsn;

fn slot_sql() -> String {
    format!(
        "
    SELECT plugin::pg_catalog.text, database::pg_catalog.text,
        coalesce(database {EQ} pg_catalog.current_database(), false), active_pid,
           wal_status, confirmed_flush_lsn, restart_lsn, safe_wal_size,
           CASE WHEN NOT in_recovery THEN pg_catalog.pg_current_wal_insert_lsn() END,
           pg_catalog.to_jsonb(s) OPERATOR(pg_catalog.->>) 'invalidation_reason',
           coalesce((pg_catalog.to_jsonb(s) OPERATOR(pg_catalog.->>) 'conflicting')::boolean, false),
           pg_catalog.current_setting('max_slot_wal_keep_size'),
           coalesce(pg_catalog.current_setting('idle_replication_slot_timeout', true), ''),
           s.temporary, s.two_phase, in_recovery, slot_name IS NOT NULL
      FROM pg_catalog.pg_is_in_recovery() in_recovery
      LEFT JOIN pg_catalog.pg_replication_slots s ON slot_name {EQ} $1"
    )
}

/// A slot as `pg_replication_slots` shows it, with the WAL's end at the same moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The output plugin, `None` for a physical slot.
    pub plugin: Option<String>,
    /// The database, `None` for a physical slot.
    pub database: Option<String>,
    /// Whether that is the database that we are connected to.
    pub here: bool,
    /// The server process that streams from it: some instance is the leader.
    pub active_pid: Option<i32>,
    /// How safe its WAL is.
    pub wal_status: WalStatus,
    /// Below this the server sends nothing any more; `None` while the slot is being created.
    pub confirmed_flush: Option<Lsn>,
    /// The oldest WAL that it makes the server keep.
    pub restart: Option<Lsn>,
    /// What can still be written before it is in danger; `None` where nothing limits it.
    pub safe_bytes: Option<u64>,
    /// The end of the WAL.
    pub wal_end: Lsn,
    /// Why it cannot be read any more, where that is so.
    pub lost: Option<Lost>,
    /// It vanishes with the session that made it.
    pub temporary: bool,
    /// It decodes prepared transactions.
    pub two_phase: bool,
}

/// The column `wal_status`.
///
/// Source: PostgreSQL manual, "pg_replication_slots".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalStatus {
    /// Within `max_wal_size`.
    Reserved,
    /// Beyond it, but kept.
    Extended,
    /// May be removed at the next checkpoint.
    Unreserved,
    /// Removed: the slot is of no use any more.
    Lost,
    /// A word that this program does not know.
    Unknown,
}

impl Slot {
    /// The WAL that the slot makes the server keep.
    #[must_use]
    pub fn retained_bytes(&self) -> u64 {
        self.restart.map_or(0, |restart| self.wal_end.bytes_since(restart))
    }

    /// Whether its WAL is gone, so that it can never be read again.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// Whether it may be one of ours: a lasting one of pgoutput in this database.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.here && self.plugin.as_deref() == Some("pgoutput") && !self.temporary
    }

    /// What decides whether streaming from it would miss something.
    #[must_use]
    pub fn state(&self) -> SlotState {
        SlotState {
            confirmed_flush: self.confirmed_flush,
            lost: self.lost.clone(),
            plugin: self.plugin.clone().unwrap_or_default(),
            here: self.here,
            temporary: self.temporary,
            two_phase: self.two_phase,
        }
    }
}

/// Reads the slot's row; `None` when there is no such slot.
///
/// # Errors
/// The server's. [`SourceError::Standby`] in recovery, whatever slots are there: that ours is not says nothing, and one
/// that follows ours is not to be read.
pub async fn read(client: &Client, slot: &str) -> Result<Option<Slot>, SourceError> {
    let row = client.query_typed_one(&slot_sql(), &[(&slot, Type::TEXT)]).await?;
    if row.try_get(15)? {
        return Err(SourceError::Standby);
    }
    if !row.try_get(16)? {
        return Ok(None);
    }
    let lsn = |lsn: PgLsn| Lsn(lsn.into());
    let wal_status = match row.try_get(4)? {
        Some("reserved") => WalStatus::Reserved,
        Some("extended") => WalStatus::Extended,
        Some("unreserved") => WalStatus::Unreserved,
        Some("lost") => WalStatus::Lost,
        Some(_) | None => WalStatus::Unknown,
    };
    let safe: Option<i64> = row.try_get(7)?;
    let word: Option<&str> = row.try_get(9)?;
    let lost = (wal_status == WalStatus::Lost || word.is_some())
        .then(|| {
            let conflicting = row.try_get(10)?;
            Ok::<_, tokio_postgres::Error>(Lost::new(
                word,
                conflicting,
                row.try_get(11)?,
                row.try_get(12)?,
            ))
        })
        .transpose()?;
    // Of a lost slot the column is null, as of one without a limit.
    let safe = if lost.is_some() { Some(0) } else { safe };
    Ok(Some(Slot {
        plugin: row.try_get(0)?,
        database: row.try_get(1)?,
        here: row.try_get(2)?,
        active_pid: row.try_get(3)?,
        wal_status,
        confirmed_flush: row.try_get::<_, Option<PgLsn>>(5)?.map(lsn),
        restart: row.try_get::<_, Option<PgLsn>>(6)?.map(lsn),
        safe_bytes: safe.map(|bytes| u64::try_from(bytes).unwrap_or(0)),
        wal_end: row.try_get::<_, Option<PgLsn>>(8)?.map(lsn).unwrap_or_default(),
        lost,
        temporary: row.try_get(13)?,
        two_phase: row.try_get(14)?,
    }))
}

/// The end of a primary's WAL.
///
/// # Errors
/// The server's; on a standby always.
pub async fn wal_end(client: &Client) -> Result<Lsn, tokio_postgres::Error> {
    let row = client.query_typed_one("SELECT pg_catalog.pg_current_wal_insert_lsn()", &[]).await?;
    Ok(Lsn(row.try_get::<_, PgLsn>(0)?.into()))
}

/// What `idle_replication_slot_timeout` is set to; `None` where it is 0, and before version 18.
///
/// # Errors
/// The server's.
pub async fn idle_timeout(client: &Client) -> Result<Option<Duration>, tokio_postgres::Error> {
    let sql = "SELECT extract(epoch FROM pg_catalog.current_setting(
                   'idle_replication_slot_timeout', true)::interval)::bigint";
    let seconds: Option<i64> = client.query_typed_one(sql, &[]).await?.try_get(0)?;
    let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Ok(seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs))
}

/// What of a primary's WAL is on disk.
///
/// # Errors
/// The server's; on a standby always.
pub async fn wal_flushed(client: &Client) -> Result<Lsn, tokio_postgres::Error> {
    let row = client.query_typed_one("SELECT pg_catalog.pg_current_wal_flush_lsn()", &[]).await?;
    Ok(Lsn(row.try_get::<_, PgLsn>(0)?.into()))
}

/// Moves a slot forward to `to`, which must be flushed.
///
/// # Errors
/// The server's: it is behind already, lost, or in use.
pub async fn advance(client: &Client, slot: &str, to: Lsn) -> Result<(), tokio_postgres::Error> {
    let to = PgLsn::from(to.0);
    let sql = "SELECT pg_catalog.pg_replication_slot_advance($1, $2)";
    client.query_typed(sql, &[(&slot, Type::TEXT), (&to, Type::PG_LSN)]).await?;
    Ok(())
}

/// Drops a slot.
///
/// # Errors
/// The server's: there is none, or it is in use.
pub async fn drop(client: &Client, slot: &str) -> Result<(), tokio_postgres::Error> {
    let sql = "SELECT pg_catalog.pg_drop_replication_slot($1)";
    client.query_typed(sql, &[(&slot, Type::TEXT)]).await?;
    Ok(())
}

/// The cluster's lasting logical slots but for this pipeline's two.
///
/// # Errors
/// The server's.
pub async fn other_logical(
    client: &Client,
    slot: &str,
) -> Result<Vec<String>, tokio_postgres::Error> {
    let sql = format!(
        "SELECT slot_name::pg_catalog.text FROM pg_catalog.pg_replication_slots
         WHERE slot_type {EQ} 'logical' AND NOT temporary
           AND NOT slot_name {EQ} ANY (ARRAY[$1, $1 OPERATOR(pg_catalog.||) '_anchor']) ORDER BY 1"
    );
    let rows = client.query_typed(&sql, &[(&slot, Type::TEXT)]).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}
