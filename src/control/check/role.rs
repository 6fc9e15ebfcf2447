//! Our role: what it may do, and the timeouts that were set for it.

use anyhow::Result;
use tokio_postgres::Client;

use super::{Report, one};
use crate::config::Config;
use crate::control::setup::{looked_up, right_to_create};
use walhook_postgres::ident::quote_ident;
use walhook_postgres::op::{EQ, GT, LE};
use walhook_postgres::preflight;

/// Below this a timeout may end a look-up or a state transaction of ours that is merely slow.
const SHORTEST_TIMEOUT_MS: i64 = 30_000;

/// What ends a session's statements or transactions. Our sessions lift `idle_session_timeout`.
const TIMEOUTS: [&str; 4] = [
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
];

pub(super) async fn check(config: &Config, client: &Client, report: &mut Report) -> Result<()> {
    timeouts(client, report).await?;
    read_only(client, report).await?;
    privileges(config, client, report).await
}

/// As they are in our own session: the server's, the database's or the role's setting.
async fn timeouts(client: &Client, report: &mut Report) -> Result<()> {
    let names: Vec<&str> = TIMEOUTS.to_vec();
    // What is no number is not cast, in whichever order the planner tests.
    let sql = format!(
        "SELECT name, ms, current_user::pg_catalog.text, of_url FROM (
             SELECT name, source {EQ} 'client' AS of_url, CASE WHEN name {EQ} ANY ($1) THEN setting::bigint END AS ms
             FROM pg_catalog.pg_settings) s
         WHERE ms {GT} 0 AND ms {LE} $2 ORDER BY name"
    );
    let short = client.query(&sql, &[&names, &(SHORTEST_TIMEOUT_MS - 1)]).await?;
    for row in &short {
        let (name, ms, role): (&str, i64, &str) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        // No setting of the role or the database outdoes that of the session.
        let fix = match row.try_get(3)? {
            true => format!("take {name} out of `options` in the URL, or out of PGOPTIONS"),
            false => format!("ALTER ROLE {} SET {name} = 0", quote_ident(role)),
        };
        report.warn(name, format!("{ms} ms for {role}: may end what is merely slow"), fix);
    }
    if short.is_empty() {
        report.pass("timeouts", "none is shorter than 30 s for our role");
    }
    Ok(())
}

/// Whether transactions of our role may write, where nothing else is said.
async fn read_only(client: &Client, report: &mut Report) -> Result<()> {
    let sql = format!(
        "SELECT pg_catalog.current_setting('default_transaction_read_only') {EQ} 'on', current_user::pg_catalog.text"
    );
    let row = client.query_one(&sql, &[]).await?;
    let (is_read_only, role): (bool, &str) = (row.try_get(0)?, row.try_get(1)?);
    if is_read_only {
        let fix =
            format!("ALTER ROLE {} SET default_transaction_read_only = off", quote_ident(role));
        report.fail("read-only", format!("the transactions of {role} may not write"), fix);
    }
    Ok(())
}

/// What to do where state tables are missing.
pub(super) async fn fix_of_state(config: &Config, client: &Client) -> Result<String> {
    let sql = "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')";
    if one(client, sql).await? {
        return Ok("run `walhook setup`".to_owned());
    }
    if config.state.url.is_none() {
        return Ok(
            "our role may not CREATE in this database: run `walhook setup --admin-url`".to_owned()
        );
    }
    let grant = right_to_create(client).await?;
    Ok(format!("in the state database, as its owner, `{grant}`, then run `walhook setup`"))
}

async fn privileges(config: &Config, client: &Client, report: &mut Report) -> Result<()> {
    let (role, fault) = preflight::replication_right(client).await?;
    match fault {
        None => report.pass("privileges", format!("{role} may replicate")),
        Some(fault) => report.fault(fault),
    }
    for table in looked_up(config)? {
        match preflight::read_right(client, &role, &table).await? {
            None => report.pass("privileges", format!("{role} may read {table}")),
            Some(fault) => report.fault(fault),
        }
    }
    let sql = format!("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname {EQ} current_user");
    if one(client, &sql).await? {
        report.warn(
            "role",
            format!("{role} is a superuser: what a view or a trigger of yours calls runs with its rights"),
            "use a role of its own with the rights that docs/install.md lists: `walhook setup --admin-url` \
             grants them",
        );
    }
    Ok(())
}
