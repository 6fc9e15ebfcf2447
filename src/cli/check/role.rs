//! Our role: what it may do, and the timeouts that were set for it.

use anyhow::Result;
use tokio_postgres::Client;

use super::{Report, one};
use crate::cli::setup::looked_up;
use crate::config::Config;
use crate::io::ident::{quote_ident, quote_name};
use crate::io::op::{EQ, GT, LE};
use crate::io::source;

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
    privileges(config, client, report).await
}

/// As they are in our own session: the server's, the database's or the role's setting.
async fn timeouts(client: &Client, report: &mut Report) -> Result<()> {
    let names: Vec<&str> = TIMEOUTS.to_vec();
    let sql = format!(
        "SELECT name, setting::bigint, current_user::pg_catalog.text FROM pg_catalog.pg_settings
               WHERE name {EQ} ANY ($1) AND setting::bigint {GT} 0
                 AND setting::bigint {LE} $2 ORDER BY name"
    );
    let short = client.query(&sql, &[&names, &(SHORTEST_TIMEOUT_MS - 1)]).await?;
    for row in &short {
        let (name, ms, role): (&str, i64, &str) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let mend = format!("ALTER ROLE {} SET {name} = 0", quote_ident(role));
        report.warn(name, format!("{ms} ms for {role}: may end what is merely slow"), mend);
    }
    if short.is_empty() {
        report.pass("timeouts", "none is shorter than 30 s for our role");
    }
    Ok(())
}

/// What to do where state tables are missing.
pub(super) async fn mend_of_state(client: &Client) -> Result<&'static str> {
    let sql = "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')";
    Ok(match one(client, sql).await? {
        true => "run `walhook setup`",
        false => "our role may not CREATE in this database: run `walhook setup --admin-url`",
    })
}

async fn privileges(config: &Config, client: &Client, report: &mut Report) -> Result<()> {
    let (role, may_replicate) = source::replication_right(client).await?;
    let quoted = quote_ident(&role);
    if may_replicate {
        report.pass("privileges", format!("{role} may replicate"));
    } else {
        let mend = format!("ALTER ROLE {quoted} REPLICATION, or run `walhook setup --admin-url`");
        report.fail("privileges", format!("{role} may not replicate"), mend);
    }
    for table in looked_up(config)? {
        let sql = format!(
            "SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
                     pg_catalog.has_table_privilege(c.oid, 'SELECT')
                   FROM pg_catalog.pg_class c
                   JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
                   WHERE n.nspname {EQ} $1 AND c.relname {EQ} $2"
        );
        let row = client.query_opt(&sql, &[&table.schema, &table.name]).await?;
        // That a table does not exist is said where its columns are checked.
        let Some(row) = row else { continue };
        let schema = quote_ident(&table.schema);
        let mend = match (row.try_get(0)?, row.try_get(1)?) {
            (true, true) => {
                report.pass("privileges", format!("{role} may read {table}"));
                continue;
            }
            (true, false) => format!("GRANT SELECT ON {} TO {quoted}", quote_name(&table)),
            (false, _) => format!(
                "GRANT USAGE ON SCHEMA {schema} TO {quoted}; GRANT SELECT ON {} TO {quoted}",
                quote_name(&table)
            ),
        };
        report.fail("privileges", format!("{role} may not read {table}"), mend);
    }
    Ok(())
}
