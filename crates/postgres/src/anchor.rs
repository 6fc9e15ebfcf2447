//! The anchor: a second, inactive slot that keeps the WAL of the replay window.
//!
//! It trails the checkpoint by the window. A replay streams from a temporary copy of it, beside the
//! live slot; the copy begins where the anchor stands and can be started anywhere behind that. The
//! live slot itself stays at the checkpoint, so a takeover does not decode the window again.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::error::SourceError;
use super::slot::{self, Slot};
use walhook_core::lsn::Lsn;

/// The anchor's name, for the live slot's. A slot's name has at most 63 bytes, the live one's 56.
#[must_use]
pub fn name(slot: &str) -> String {
    format!("{slot}_anchor")
}

/// Reads the anchor; `None` when there is none.
///
/// # Errors
/// As [`slot::read`].
pub async fn read(client: &Client, slot: &str) -> Result<Option<Slot>, SourceError> {
    slot::read(client, &name(slot)).await
}

/// Makes an anchor where the live slot stands now. That one may be streaming; unlike a new slot, a
/// copy waits for no transaction.
///
/// # Errors
/// The server's: there is one already, no slot is free, or the live slot is lost.
pub async fn create(client: &Client, slot: &str) -> Result<(), tokio_postgres::Error> {
    let sql = "SELECT pg_catalog.pg_copy_logical_replication_slot($1, $2, false)";
    client.query_typed(sql, &[(&slot, Type::TEXT), (&name(slot), Type::TEXT)]).await?;
    Ok(())
}

/// Makes the live slot, which must not be there, of the anchor: it begins where that stands.
///
/// # Errors
/// The server's: there is one already, no slot is free, or the anchor is lost or in use.
pub async fn make_slot(client: &Client, slot: &str) -> Result<(), tokio_postgres::Error> {
    let sql = "SELECT pg_catalog.pg_copy_logical_replication_slot($1, $2, false)";
    client.query_typed(sql, &[(&name(slot), Type::TEXT), (&slot, Type::TEXT)]).await?;
    Ok(())
}

/// Moves the anchor forward to `to`, and lets the server forget what lies before.
///
/// # Errors
/// The server's: it is behind already, lost, or being copied at this moment.
pub async fn advance(client: &Client, slot: &str, to: Lsn) -> Result<(), tokio_postgres::Error> {
    slot::advance(client, &name(slot), to).await
}

/// Drops the anchor.
///
/// # Errors
/// The server's: there is none, or it is in use.
pub async fn drop(client: &Client, slot: &str) -> Result<(), tokio_postgres::Error> {
    slot::drop(client, &name(slot)).await
}
