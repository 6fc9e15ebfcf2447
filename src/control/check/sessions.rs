//! Sessions: does the server let us have as many as a leader needs?

use anyhow::Result;
use tokio_postgres::Client;

use super::{NAME, Report};
use crate::config::Config;
use walhook_postgres::ident::quote_ident;
use walhook_postgres::op::{EQ, GE, MINUS};
use walhook_postgres::pg::DatabaseUrl;
use walhook_postgres::sql::Connection;

const WHAT: &str = "sessions";

/// SQL sessions of a leader with the source: the one that watches for the server's end, look-ups, the
/// observer, the replay window. A test counts them.
const OF_SOURCE: i64 = 4;

/// Replication connections of a leader. They count against the limits of role and database.
const SENDERS: i64 = 1;

/// SQL sessions of a leader with the state database. A test counts them.
const OF_STATE: i64 = 8;

/// What comes on top for a while: a replay (two sessions and a replication connection), a standby, and a
/// command that an operator runs beside.
const FOR_A_WHILE: i64 = 5;

/// What a URL needs.
struct Need {
    key: &'static str,
    /// Of a leader alone.
    least: i64,
    /// With all that comes on top.
    most: i64,
    /// Replication connections among them.
    senders: i64,
}

pub(super) async fn check(config: &Config, source: &Client, report: &mut Report) -> Result<()> {
    let of_state = if config.state.url.is_none() { OF_STATE } else { 0 };
    let least = OF_SOURCE + SENDERS + of_state;
    let most = least + FOR_A_WHILE;
    limits(source, Need { key: "source.url", least, most, senders: SENDERS }, report).await?;
    let Some(url) = &config.state.url else { return Ok(()) };
    // That there is none is said where the state is looked at.
    let Ok(state) = open(url).await else { return Ok(()) };
    let most = OF_STATE + FOR_A_WHILE;
    limits(&state, Need { key: "state.url", least: OF_STATE, most, senders: 0 }, report).await
}

async fn open(url: &DatabaseUrl) -> Result<Connection> {
    Ok(Connection::open(url, NAME).await?)
}

/// The limits of the role, the database and the server, each with what others take of it. Sessions of a
/// walhook that runs, and this one, are not others.
async fn limits(client: &Client, need: Need, report: &mut Report) -> Result<()> {
    let ours = format!(
        "a.usename {EQ} current_user AND pg_catalog.starts_with(a.application_name, 'walhook')"
    );
    // A superuser has no limit of its own; -1 is none. Replication connections take none of the
    // server's, but one of the role's and the database's.
    let sql = format!(
        "WITH others AS (
             SELECT a.usesysid, a.datid FROM pg_catalog.pg_stat_activity a
             WHERE a.datid IS NOT NULL AND NOT coalesce({ours}, false))
         SELECT 'role', r.rolname::pg_catalog.text, r.rolconnlimit::bigint,
                (SELECT pg_catalog.count(*) FROM others o WHERE o.usesysid {EQ} r.oid)
         FROM pg_catalog.pg_roles r
         WHERE r.rolname {EQ} current_user AND NOT r.rolsuper AND r.rolconnlimit {GE} 0
         UNION ALL
         SELECT 'database', d.datname::pg_catalog.text, d.datconnlimit::bigint,
                (SELECT pg_catalog.count(*) FROM others o WHERE o.datid {EQ} d.oid)
         FROM pg_catalog.pg_database d
         WHERE d.datname {EQ} pg_catalog.current_database() AND d.datconnlimit {GE} 0
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_roles r
                           WHERE r.rolname {EQ} current_user AND r.rolsuper)
         UNION ALL
         SELECT 'server', '', pg_catalog.current_setting('max_connections')::bigint
                {MINUS} pg_catalog.current_setting('superuser_reserved_connections')::bigint
                {MINUS} coalesce(pg_catalog.current_setting('reserved_connections', true), '0')::bigint,
                (SELECT pg_catalog.count(*) FROM others)"
    );
    let mut is_tight = false;
    for row in client.query(&sql, &[]).await? {
        let (kind, name): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        let (limit, others): (i64, i64) = (row.try_get(2)?, row.try_get(3)?);
        let (least, most) = match kind {
            "server" => (need.least - need.senders, need.most - need.senders),
            _ => (need.least, need.most),
        };
        if limit - others >= most {
            continue;
        }
        is_tight = true;
        let (of, fix) = match kind {
            "role" => {
                let alter = format!("ALTER ROLE {} CONNECTION LIMIT {most}", quote_ident(name));
                (format!("the role {name} may have {limit}"), alter)
            }
            "database" => {
                let more = most + others;
                let alter = format!("ALTER DATABASE {} CONNECTION LIMIT {more}", quote_ident(name));
                (format!("the database {name} takes {limit}"), alter)
            }
            _ => {
                let fix = "raise max_connections, or end sessions that are not needed";
                (
                    format!("the server takes {limit} (max_connections less those reserved)"),
                    fix.to_owned(),
                )
            }
        };
        let finding = format!(
            "{of}, of which others use {others} now; a leader needs {least} by {}, and up to {most} with a \
             replay, a standby and commands",
            need.key
        );
        match limit < least {
            true => report.fail(WHAT, finding, fix),
            false => report.warn(WHAT, finding, fix),
        }
    }
    if !is_tight {
        let Need { key, least, most, .. } = need;
        report
            .pass(WHAT, format!("{key} may have the {least} of a leader, and the {most} at most"));
    }
    Ok(())
}
