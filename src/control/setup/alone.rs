//! One set-up or teardown at a time: `IF NOT EXISTS` makes no two of them safe beside each other, and replicas of an
//! instance are often set up at once.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::control::{Progress, Tell};

/// The first key of our advisory locks: the letters "walh".
const LOCK: i32 = 0x7761_6c68;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Waits until no other set-up or teardown of this schema runs, for so long; then goes on all the same, as behind a pooler that keeps
/// the session of one that has ended. The lock goes with the session.
pub(in crate::control) async fn wait(
    client: &Client,
    schema: &str,
    patience: Duration,
    tell: Tell<'_>,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    let lock = "SELECT pg_catalog.pg_try_advisory_lock($1, pg_catalog.hashtext($2))";
    let mut is_told = false;
    loop {
        let row = client.query_one(lock, &[&LOCK, &schema]).await;
        if row.context("cannot lock the state schema")?.try_get(0)? || Instant::now() >= deadline {
            return Ok(());
        }
        if !std::mem::replace(&mut is_told, true) {
            tell(Progress::Note(
                "waiting  for another `walhook setup` or `walhook teardown` that runs",
            ));
        }
        sleep(PAUSE).await;
    }
}
