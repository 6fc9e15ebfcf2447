//! Which slots of the source walhook made itself.
//!
//! `setup` writes the row before it creates the slot: interrupted between the two, the next run finds the
//! row and takes the slot. Where the slot could not be created, the row goes again.

use tokio_postgres::Client;

use walhook_postgres::ident::quote_ident;
use walhook_postgres::op::EQ;

/// Whether walhook recorded that it makes the slot for the pipeline of the same name.
///
/// # Errors
/// The server's.
pub async fn is_recorded(
    client: &Client,
    schema: &str,
    slot: &str,
) -> Result<bool, tokio_postgres::Error> {
    let s = quote_ident(schema);
    let sql =
        format!("SELECT EXISTS (SELECT FROM {s}.slots WHERE pipeline {EQ} $1 AND slot {EQ} $1)");
    client.query_one(&sql, &[&slot]).await?.try_get(0)
}

/// Records that the slot is about to be made.
///
/// # Errors
/// The server's.
pub async fn record(
    client: &Client,
    schema: &str,
    slot: &str,
) -> Result<(), tokio_postgres::Error> {
    let s = quote_ident(schema);
    let sql =
        format!("INSERT INTO {s}.slots (pipeline, slot) VALUES ($1, $1) ON CONFLICT DO NOTHING");
    client.execute(&sql, &[&slot]).await?;
    Ok(())
}

/// Takes note that it was not made.
///
/// # Errors
/// The server's.
pub async fn forget(
    client: &Client,
    schema: &str,
    slot: &str,
) -> Result<(), tokio_postgres::Error> {
    let s = quote_ident(schema);
    client.execute(&format!("DELETE FROM {s}.slots WHERE pipeline {EQ} $1"), &[&slot]).await?;
    Ok(())
}
