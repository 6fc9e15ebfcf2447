//! Creating the slot, which waits for every transaction that is open at that moment.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::blockers::blockers;
use crate::control::{Progress, Tell};
use walhook_core::lsn::Lsn;
use walhook_postgres::op::{CAT, EQ};
use walhook_postgres::source;

/// Slots that follow a promotion came with version 17.
pub(crate) const FAILOVER_SLOTS: i32 = 170_000;

/// Between two tries to create the slot, for the sessions that queue behind us.
const PAUSE: Duration = Duration::from_millis(500);

/// Creates the slot, and returns the position where it begins. Says for whom it waits.
///
/// Tries for one second at a time: a wait without end would leave an active slot that cannot be
/// dropped, and pins WAL, should we be killed meanwhile.
///
/// # Errors
/// When the transactions that were open outlast `wait`, which names their sessions, or the server
/// refuses. There is no slot then.
pub(crate) async fn create_slot_within(
    client: &Client,
    name: &str,
    wait: Duration,
    tell: Tell<'_>,
) -> Result<Lsn> {
    client.batch_execute("SET lock_timeout = '1s'").await?;
    let deadline = Instant::now() + wait;
    let mut shown = String::new();
    // A standby that synchronises slots then has it too, and a promotion loses nothing.
    let sql = if source::server_version(client).await? >= FAILOVER_SLOTS {
        "SELECT lsn::pg_catalog.text
         FROM pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput', failover => true)"
    } else {
        "SELECT lsn::pg_catalog.text
         FROM pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput')"
    };
    loop {
        let error = match client.query_one(sql, &[&name]).await {
            Ok(row) => return Ok(row.try_get::<_, &str>(0)?.parse()?),
            Err(error) => error,
        };
        if error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) {
            let fix = fix(client, &error).await?;
            return Err(error).with_context(|| format!("cannot create the slot {name}; {fix}"));
        }
        let blockers = blockers(client, &holds_transaction(), &[]).await?;
        if Instant::now() >= deadline {
            bail!(
                "the slot {name} waits for open transactions of {blockers}; end them, or try longer \
                 with --wait 10m"
            );
        }
        if blockers != shown {
            let text = format!("waiting  slot {name}: for open transactions of {blockers}");
            tell(Progress::Note(&text));
            shown = blockers;
        }
        sleep(PAUSE).await;
    }
}

/// What to do about a refusal.
async fn fix(client: &Client, error: &tokio_postgres::Error) -> Result<String> {
    let Some(code) = error.code() else { return Ok("see `walhook check`".to_owned()) };
    if *code == SqlState::CONFIGURATION_LIMIT_EXCEEDED {
        let sql = format!(
            "SELECT pg_catalog.current_setting('max_replication_slots'),
                          pg_catalog.string_agg(
                       slot_name {CAT} CASE WHEN active THEN '' ELSE ' (inactive)' END,
                                     ', ' ORDER BY slot_name)
                   FROM pg_catalog.pg_replication_slots"
        );
        let row = client.query_one(&sql, &[]).await?;
        let (most, slots): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        return Ok(format!(
            "max_replication_slots = {most} are used by {slots}: drop one that nobody reads, or raise \
             it and restart the server"
        ));
    }
    Ok(match *code {
        SqlState::INSUFFICIENT_PRIVILEGE => {
            "our role may not replicate: use --admin-url or --print-sql"
        }
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE => {
            "set wal_level = logical and restart the server"
        }
        _ => "see `walhook check` for privileges and free slots",
    }
    .to_owned())
}

/// Who holds the transactions that a new slot waits for: all with a transaction id, in any database.
fn holds_transaction() -> String {
    format!("l.locktype {EQ} 'transactionid' AND l.mode {EQ} 'ExclusiveLock' AND l.granted")
}
