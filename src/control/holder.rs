//! Who uses a slot: for the operator who is to stop it.

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use super::Databases;
use super::check::session;
use walhook_postgres::op::EQ;
use walhook_postgres::slot;

/// The server gives a slot up a moment after the process that read it has ended, later where it is busy.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(2);

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Refuses while the pipeline's slot is active, and names the process. Waits a moment for one that has just ended.
pub(super) async fn refuse_while_active(databases: Databases<'_>, source: &Client) -> Result<()> {
    let name = databases.pipeline();
    let until = Instant::now() + GIVEN_UP_WITHIN;
    loop {
        let slot = slot::read(source, name).await?;
        let Some(pid) = slot.and_then(|slot| slot.active_pid) else { return Ok(()) };
        if Instant::now() >= until {
            let user = user(databases, source, pid).await?;
            anyhow::bail!("the slot {name} is in use by {user}; stop that first")
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The process at the other end of the session `pid`: where that is a walhook, its own pid and host, as it
/// wrote them when it took the lease.
pub(super) async fn user(databases: Databases<'_>, source: &Client, pid: i32) -> Result<String> {
    let session = session(source, pid).await?;
    let sql = format!(
        "SELECT coalesce(pg_catalog.bool_or(application_name {EQ} 'walhook'), false)
         FROM pg_catalog.pg_stat_activity WHERE pid {EQ} $1"
    );
    let is_walhook: bool = source.query_one(&sql, &[&pid]).await?.try_get(0)?;
    if !is_walhook {
        return Ok(session);
    }
    // Nobody may have the state tables that this configuration names.
    let holder = match databases.open_state().await {
        Ok(state) => state.holder().await.ok().flatten(),
        Err(_) => None,
    };
    Ok(match holder {
        // It is written as `host pid n`.
        Some(holder) => match holder.rsplit_once(" pid ") {
            Some((host, own)) => {
                format!("walhook, pid {own} on {host} (its session in the server: {session})")
            }
            None => format!("walhook, {holder} (its session in the server: {session})"),
        },
        None => session,
    })
}
