//! What would end the slot while we are away: idle time-out, and failover to a standby.

use anyhow::Result;
use tokio_postgres::Client;

use super::{NAME, Report};
use walhook_postgres::op::{EQ, NE};
use walhook_postgres::source::server_version;

/// `synchronized_standby_slots`, and slots that standbys follow.
const FAILOVER: i32 = 170_000;

pub(super) async fn settings(client: &Client, report: &mut Report) -> Result<()> {
    // Since version 18; null on older servers.
    let sql = "SELECT pg_catalog.current_setting('idle_replication_slot_timeout', true)";
    let timeout: Option<String> = client.query_one(sql, &[]).await?.try_get(0)?;
    match timeout.as_deref() {
        None => {}
        Some("0") => report.pass("idle_replication_slot_timeout", "0: a slot may stay idle"),
        Some(timeout) => report.warn(
            "idle_replication_slot_timeout",
            format!("{timeout}: when walhook is stopped for longer, its slot is lost, with a gap"),
            "set it to 0, or to longer than walhook may ever be stopped",
        ),
    }
    Ok(())
}

/// Whether the slot is there after a failover. Only where there is a standby to fail over to: one that
/// has a slot, or streams now.
pub(super) async fn slot(client: &Client, name: &str, report: &mut Report) -> Result<()> {
    // The connection that `check` has just tried may not be gone yet; it is no standby. Of another
    // role's the name may be hidden, which makes it null.
    let sql = format!("SELECT EXISTS (SELECT FROM pg_catalog.pg_replication_slots
                       WHERE slot_type {EQ} 'physical')
                   OR EXISTS (SELECT FROM pg_catalog.pg_stat_replication r
                              WHERE (application_name IS NULL OR application_name {NE} $1) AND NOT EXISTS (
                                  SELECT FROM pg_catalog.pg_replication_slots s
                                      WHERE s.active_pid {EQ} r.pid))");
    let has_standby: bool = client.query_one(&sql, &[&NAME]).await?.try_get(0)?;
    if !has_standby {
        return Ok(());
    }
    if server_version(client).await? < FAILOVER {
        let finding = format!("{name} does not exist on a standby: a failover leaves a gap");
        let fix = "let the failover manager keep it (Patroni: slots), or expect \
                    `walhook recover` after one";
        report.warn("failover", finding, fix);
        return Ok(());
    }
    let sql = format!(
        "SELECT failover, pg_catalog.current_setting('synchronized_standby_slots') {NE} ''
               FROM pg_catalog.pg_replication_slots WHERE slot_name {EQ} $1"
    );
    let row = client.query_one(&sql, &[&name]).await?;
    match (row.try_get(0)?, row.try_get(1)?) {
        (true, true) => report.pass("failover", format!("standbys keep {name}")),
        (true, false) => report.warn(
            "failover",
            "synchronized_standby_slots is empty: walhook may deliver what a standby lacks when it \
             is promoted",
            "name the standbys' slots in it",
        ),
        (false, _) => report.warn(
            "failover",
            format!("standbys do not keep {name}: a failover leaves a gap"),
            "with walhook stopped, drop the slot and let `walhook recover --accept-gap` make it anew",
        ),
    }
    Ok(())
}
