//! For whom a step of the set-up waits.

use anyhow::Result;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use walhook_postgres::op::{EQ, NE};

/// Who holds the locks `l` that `condition` is true of, in words.
pub(super) async fn blockers(
    client: &Client,
    condition: &str,
    params: &[&(dyn ToSql + Sync)],
) -> Result<String> {
    let rows = client
        .query(
            &format!("SELECT DISTINCT
                    CASE WHEN l.pid IS NULL THEN 'a prepared transaction'
                    ELSE pg_catalog.format('pid %s (%s, %s, %s)', l.pid, a.usename,
                                CASE WHEN a.application_name {NE} '' THEN a.application_name ELSE 'no application name' END,
                                coalesce(a.state, 'state unknown')) END
             FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid {EQ} l.pid
             WHERE {condition}
               AND (l.pid IS NULL OR l.pid {NE} pg_catalog.pg_backend_pid())
             ORDER BY 1"),
            params,
        )
        .await?;
    let names: Vec<String> =
        rows.iter().map(|row| row.try_get(0)).collect::<std::result::Result<_, _>>()?;
    if names.is_empty() {
        Ok("sessions that have just ended".to_owned())
    } else {
        Ok(names.join(", "))
    }
}
