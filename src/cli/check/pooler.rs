//! A connection pooler between us and the server: what of a session does it keep?

use std::time::Duration;

use anyhow::Result;

use super::{NAME, Report, one};
use crate::engine::endpoint::Secret;
use crate::io::sql::Connection;
use crate::io::wire;

const WHAT: &str = "connection pooler";

/// For one statement, which a pool that is too small would let wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// Checks the URL that stands under `key`. Returns whether SQL through it works.
pub(super) async fn check(key: &str, url: &Secret, report: &mut Report) -> Result<bool> {
    match wire::is_pooled(url, NAME).await {
        Ok(true) => {}
        // What cannot be reached is told of elsewhere.
        Ok(false) | Err(_) => return Ok(true),
    }
    if !keeps_prepared_statements(url).await? {
        report.fail(
            WHAT,
            format!(
                "{key} leads through one that forgets prepared statements between transactions"
            ),
            format!(
                "set max_prepared_statements = 200 there (PgBouncer 1.21 or later), or pool_mode = \
                 session for our user, or let {key} lead past it"
            ),
        );
        return Ok(false);
    }
    // Sessions turn it on, but a transaction may run in one that another client has opened.
    let client = Connection::open(url, NAME).await?;
    let default: String =
        one(&client, "SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'").await?;
    if default == "off" {
        report.fail(
            WHAT,
            format!("{key} leads through one, and synchronous_commit is off by default"),
            "ALTER ROLE ... SET synchronous_commit = on, for our user, and reconnect the pooler",
        );
    } else {
        report.pass(WHAT, format!("{key} leads through one that keeps prepared statements"));
    }
    Ok(true)
}

/// Prepares a statement in one session, gives the server's session that has it to another client, and
/// asks for the statement.
async fn keeps_prepared_statements(url: &Secret) -> Result<bool> {
    let (ours, other) = (Connection::open(url, NAME).await?, Connection::open(url, NAME).await?);
    // It may be there already: an earlier client's.
    let Ok(statement) = ours.prepare("SELECT 1").await else { return Ok(false) };
    other.batch_execute("BEGIN").await?;
    let asked = tokio::time::timeout(PATIENCE, ours.query(&statement, &[])).await;
    Ok(asked.is_ok_and(|answered| answered.is_ok()))
}
