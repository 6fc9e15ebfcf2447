//! What the tables of state hold: deliveries that wait, and dead letters, each with its event's row.

use anyhow::Result;
use tokio_postgres::Client;

/// A delivery that a table of state holds.
#[derive(Debug)]
pub struct StoredDelivery {
    /// The event's id.
    pub event_id: String,
    /// The endpoint's id; empty for a dead letter without one.
    pub endpoint: String,
    /// Where the event's transaction committed.
    pub commit_lsn: u64,
    /// The event's type.
    pub event_type: String,
    /// The event's row, as JSON.
    pub row: Vec<u8>,
}

/// Those that wait, whatever form the tables hold them in. Events without a route are none.
///
/// # Errors
/// When a query fails.
pub async fn deferred(sql: &Client) -> Result<Vec<StoredDelivery>> {
    of_table(sql, "deferred").await
}

/// Dead letters.
///
/// # Errors
/// When a query fails.
pub async fn dead_letters(sql: &Client) -> Result<Vec<StoredDelivery>> {
    of_table(sql, "dead_letters").await
}

async fn of_table(sql: &Client, table: &str) -> Result<Vec<StoredDelivery>> {
    let query = format!(
        "SELECT d.event_id, d.endpoint, (b.commit_lsn - '0/0'::pg_lsn)::bigint, b.event_type, b.row
         FROM walhook.{table} d JOIN walhook.bodies b USING (pipeline, event_id)"
    );
    let read = |row: &tokio_postgres::Row| {
        Ok(StoredDelivery {
            event_id: row.try_get(0)?,
            endpoint: row.try_get(1)?,
            commit_lsn: u64::try_from(row.try_get::<_, i64>(2)?)?,
            event_type: row.try_get(3)?,
            row: row.try_get(4)?,
        })
    };
    sql.query(&query, &[]).await?.iter().map(read).collect()
}
