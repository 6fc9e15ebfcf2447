//! Statements that wait for locks on the application's tables.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::blockers::blockers;
use crate::control::{Progress, Tell};
use walhook_core::catalog::TableName;
use walhook_postgres::op::{EQ, NE};

/// Between two tries, for the sessions that queue behind us.
const PAUSE: Duration = Duration::from_millis(500);

/// Who holds a lock on one of the tables `$1` (schemas) and `$2` (names) that a publication's alteration waits for.
fn holds_one() -> String {
    format!(
        "l.locktype {EQ} 'relation' AND l.granted
         AND l.mode {NE} ALL ('{{AccessShareLock,RowShareLock,RowExclusiveLock}}'::pg_catalog.text[])
         AND l.database {EQ} (SELECT d.oid FROM pg_catalog.pg_database d
                              WHERE d.datname {EQ} pg_catalog.current_database())
         AND EXISTS (SELECT FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]),
                                            pg_catalog.unnest($2::pg_catalog.text[])) AS t(nspname, relname)
                     JOIN pg_catalog.pg_namespace n ON n.nspname {EQ} t.nspname
                     JOIN pg_catalog.pg_class c ON c.relnamespace {EQ} n.oid AND c.relname {EQ} t.relname
                     WHERE c.oid {EQ} l.relation)"
    )
}

/// For how long locks are waited for, and who is told.
pub(super) struct Waiting<'a, 'b> {
    wait: Duration,
    tell: &'a mut Tell<'b>,
}

impl<'a, 'b> Waiting<'a, 'b> {
    pub(super) fn new(wait: Duration, tell: &'a mut Tell<'b>) -> Self {
        Self { wait, tell }
    }

    /// Runs a statement that locks `tables`. Where others hold their locks it is tried again, and says who they are.
    ///
    /// A migration that waits for a lock of ours while we wait for one of its must not be ended as deadlocked. We wait
    /// half as long again as `deadlock_timeout`: after that time an autovacuum gives way to us, and we look for a deadlock
    /// ourselves; and by the end of it nobody has looked who came to wait later.
    ///
    /// # Errors
    /// When the locks outlast the wait. What the server refuses is the inner result.
    pub(super) async fn run(
        &mut self,
        client: &Client,
        sql: &str,
        tables: &BTreeSet<&TableName>,
    ) -> Result<Result<(), tokio_postgres::Error>> {
        let limit = format!(
            "SELECT pg_catalog.set_config('lock_timeout',
                 (setting::bigint OPERATOR(pg_catalog.*) 3 OPERATOR(pg_catalog./) 2)::pg_catalog.text, false)
             FROM pg_catalog.pg_settings WHERE name {EQ} 'deadlock_timeout'"
        );
        client.query(&limit, &[]).await?;
        let deadline = Instant::now() + self.wait;
        let mut shown = String::new();
        let ran = loop {
            let error = match client.batch_execute(sql).await {
                Err(error) if is_of_locks(&error) => error,
                ran => break ran,
            };
            let schemas: Vec<&str> = tables.iter().map(|table| &*table.schema).collect();
            let names: Vec<&str> = tables.iter().map(|table| &*table.name).collect();
            let blockers = blockers(client, &holds_one(), &[&schemas, &names]).await?;
            let list: Vec<String> = tables.iter().map(ToString::to_string).collect();
            let list = list.join(", ");
            if Instant::now() >= deadline {
                bail!(
                    "`{sql}` waits for a lock on {list} of {blockers}; end them, or try longer with --wait 10m ({error})"
                );
            }
            if blockers != shown {
                let text = format!("waiting  publication: for a lock on {list} of {blockers}");
                (self.tell)(Progress::Note(&text));
                shown = blockers;
            }
            sleep(PAUSE).await;
        };
        client.batch_execute("RESET lock_timeout").await?;
        Ok(ran)
    }
}

fn is_of_locks(error: &tokio_postgres::Error) -> bool {
    let codes = [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED];
    error.code().is_some_and(|code| codes.contains(code))
}
