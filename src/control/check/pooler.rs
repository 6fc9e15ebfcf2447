//! A connection pooler between us and the server: does it leave us our sessions?

use std::time::Duration;

use anyhow::Result;
use tokio::time::timeout;

use super::{NAME, Report};
use walhook_postgres::pg::DatabaseUrl;
use walhook_postgres::sql::Connection;
use walhook_postgres::wire;

const WHAT: &str = "connection pooler";

/// For one statement, which a pool that is too small would let wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clients that ask in between: a pool need not lend the session that it took back last.
const OTHERS: usize = 4;

/// Checks the URL that stands under `key`. Returns whether SQL through it works.
pub(super) async fn check(key: &str, url: &DatabaseUrl, report: &mut Report) -> Result<bool> {
    match wire::is_pooled(url, NAME).await {
        Ok(true) => {}
        // What cannot be reached is told of elsewhere.
        Ok(false) | Err(_) => return Ok(true),
    }
    if keeps_sessions(url).await? {
        report.pass(WHAT, format!("{key} leads through one that keeps sessions"));
        return Ok(true);
    }
    report.fail(
        WHAT,
        format!(
            "{key} leads through one that lends the server's sessions by transaction: what walhook \
             sets for its sessions, search_path above all, does not hold there"
        ),
        format!("set pool_mode = session there for our user, or let {key} lead past it"),
    );
    Ok(false)
}

/// Whether a client stays with one session of the server while others begin transactions.
async fn keeps_sessions(url: &DatabaseUrl) -> Result<bool> {
    let ours = Connection::open(url, NAME).await?;
    // All before the first question: what a client's coming brings along would go to the next who asks.
    let mut others = Vec::new();
    for _ in 0..OTHERS {
        // A pool by session may have none left, which is for `run` to meet.
        let Ok(other) = Connection::open(url, NAME).await else { break };
        others.push(other);
    }
    let Some(mine) = pid(&ours).await else { return Ok(false) };
    // Their transactions stay open, so that whoever gets ours keeps it from us.
    for other in &others {
        if other.batch_execute("BEGIN").await.is_err()
            || pid(other).await == Some(mine)
            || pid(&ours).await != Some(mine)
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The process that serves the client now.
async fn pid(client: &Connection) -> Option<i32> {
    let asked = client.query_typed_one("SELECT pg_catalog.pg_backend_pid()", &[]);
    timeout(PATIENCE, asked).await.ok()?.ok()?.try_get(0).ok()
}
