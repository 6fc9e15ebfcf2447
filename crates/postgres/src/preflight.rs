//! What must be in place at the source before anything is streamed, and what is not: settings, rights,
//! and the columns of the tables that are looked up.
//!
//! `check` tells of each fault, and `run` does not start with one. What stands in rows is none.

mod columns;

use std::collections::BTreeSet;
use std::fmt;

use tokio_postgres::Client;

pub use columns::columns;

use super::error::SourceError;
use super::ident::{quote_ident, quote_name};
use super::lookup::LookupSettings;
use super::op::EQ;
use super::source;
use walhook_core::catalog::TableName;

/// What is not in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The setting, right or key of the configuration.
    pub what: String,
    /// What is wrong.
    pub finding: String,
    /// What to do.
    pub fix: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, finding, fix } = self;
        write!(f, "{what}: {finding}; {fix}")
    }
}

/// All that is wrong.
///
/// # Errors
/// When the server does not answer.
pub async fn faults(
    settings: LookupSettings<'_>,
    client: &Client,
) -> Result<Vec<Fault>, SourceError> {
    let mut faults = Vec::new();
    faults.extend(wal_level(client).await?.err());
    let (role, fault) = replication_right(client).await?;
    faults.extend(fault);
    for table in looked_up(settings)? {
        faults.extend(read_right(client, &role, &table).await?);
    }
    faults.extend(columns(settings, client).await?);
    Ok(faults)
}

/// The tables that are looked up by SQL.
///
/// # Errors
/// When the configuration's names cannot be read.
pub fn looked_up(settings: LookupSettings<'_>) -> Result<BTreeSet<TableName>, SourceError> {
    let accounts = settings.accounts.map(|accounts| accounts.table.as_str());
    let tables = std::iter::once(settings.endpoints.table.as_str()).chain(accounts);
    Ok(tables.map(str::parse).collect::<Result<_, _>>()?)
}

/// Whether the WAL holds what logical decoding needs, in words.
///
/// # Errors
/// When the server does not answer; what it answers is the inner result.
pub async fn wal_level(client: &Client) -> Result<Result<String, Fault>, tokio_postgres::Error> {
    // Since version 19 the server raises the level by itself with the first logical slot.
    let sql = "SELECT pg_catalog.current_setting('wal_level'),
                      pg_catalog.current_setting('effective_wal_level', true)";
    let row = client.query_one(sql, &[]).await?;
    Ok(judge_wal_level(row.try_get(0)?, row.try_get(1)?))
}

/// Of the settings `wal_level` and, where there is one (PostgreSQL 19), `effective_wal_level`.
///
/// Source: PostgreSQL 19 documentation, "Write Ahead Log", `effective_wal_level`: at `replica` logical
/// decoding is switched on when the first logical slot is made; at `minimal` never.
fn judge_wal_level(wal_level: &str, effective: Option<&str>) -> Result<String, Fault> {
    let finding = match effective {
        Some(effective) if effective != wal_level => {
            format!("{wal_level}, and effective_wal_level is {effective}")
        }
        Some(_) | None => wal_level.to_owned(),
    };
    match (wal_level, effective) {
        (_, Some("logical")) | ("logical", None) => Ok(finding),
        ("replica", Some(_)) => {
            Ok(format!("{finding}; the server makes it logical with the first logical slot"))
        }
        (_, Some(_)) => Err(Fault {
            what: "wal_level".to_owned(),
            finding,
            fix: "set wal_level = replica or logical and restart the server".to_owned(),
        }),
        (_, None) => Err(Fault {
            what: "wal_level".to_owned(),
            finding,
            fix: "set wal_level = logical and restart the server".to_owned(),
        }),
    }
}

/// The session's role, and whether it lacks the right to replicate.
///
/// # Errors
/// When the server does not answer.
pub async fn replication_right(
    client: &Client,
) -> Result<(String, Option<Fault>), tokio_postgres::Error> {
    let (role, may_replicate) = source::replication_right(client).await?;
    let fault = (!may_replicate).then(|| Fault {
        what: "privileges".to_owned(),
        finding: format!("{role} may not replicate"),
        fix: format!(
            "ALTER ROLE {} REPLICATION, or run `walhook setup --admin-url`",
            quote_ident(&role)
        ),
    });
    Ok((role, fault))
}

/// Whether the session's role lacks the right to read a table. That there is none is said where its
/// columns are.
///
/// # Errors
/// When the server does not answer.
pub async fn read_right(
    client: &Client,
    role: &str,
    table: &TableName,
) -> Result<Option<Fault>, tokio_postgres::Error> {
    let sql = format!(
        "SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
                pg_catalog.has_table_privilege(c.oid, 'SELECT')
         FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
         WHERE n.nspname {EQ} $1 AND c.relname {EQ} $2"
    );
    let row = client.query_opt(&sql, &[&table.schema, &table.name]).await?;
    let Some(row) = row else { return Ok(None) };
    let (quoted, schema) = (quote_ident(role), quote_ident(&table.schema));
    let fix = match (row.try_get(0)?, row.try_get(1)?) {
        (true, true) => return Ok(None),
        (true, false) => format!("GRANT SELECT ON {} TO {quoted}", quote_name(table)),
        (false, _) => format!(
            "GRANT USAGE ON SCHEMA {schema} TO {quoted}; GRANT SELECT ON {} TO {quoted}",
            quote_name(table)
        ),
    };
    let finding = format!("{role} may not read {table}");
    Ok(Some(Fault { what: "privileges".to_owned(), finding, fix }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_level_of_version_19_is_the_effective_one() {
        for (wal_level, effective, good) in [
            ("logical", None, true),
            ("replica", None, false),
            ("minimal", None, false),
            ("logical", Some("logical"), true),
            // A logical slot is there.
            ("replica", Some("logical"), true),
            // None is, and `setup` makes the first.
            ("replica", Some("replica"), true),
            ("minimal", Some("minimal"), false),
        ] {
            let judged = judge_wal_level(wal_level, effective);
            assert_eq!(judged.is_ok(), good, "{wal_level} {effective:?}: {judged:?}");
            if let Err(fault) = judged {
                assert!(fault.to_string().contains("set wal_level = "), "{fault}");
            }
        }
    }
}
