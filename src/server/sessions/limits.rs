//! Whether server, database and role let us have as many sessions as there may be.

use tokio_postgres::Client;

use super::{ALL, Database, Open};
use crate::config::Config;
use walhook_postgres::ident::quote_ident;
use walhook_postgres::op::{EQ, GE, MINUS};

/// What a URL needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    key: &'static str,
    /// Of a leader while it is idle.
    least: i64,
    /// With all that comes on top for a while.
    most: i64,
    /// Replication connections among them.
    senders: (i64, i64),
}

impl Need {
    fn of(key: &'static str, databases: &[Database]) -> Self {
        let count = |open: &[Open], replicates: &[bool]| {
            let counted = ALL.iter().filter(|purpose| {
                databases.contains(&purpose.database)
                    && open.contains(&purpose.open)
                    && replicates.contains(&purpose.replicates)
            });
            i64::try_from(counted.count()).unwrap_or(i64::MAX)
        };
        let (leading, any) = ([Open::Leading], [Open::Leading, Open::WhileNeeded]);
        Self {
            key,
            least: count(&leading, &[false, true]),
            most: count(&any, &[false, true]),
            senders: (count(&leading, &[true]), count(&any, &[true])),
        }
    }

    /// Of `source.url`, and of `state.url` where there is one.
    pub(crate) fn of_config(config: &Config) -> (Self, Option<Self>) {
        match config.state.url {
            None => (Self::of("source.url", &[Database::Source, Database::State]), None),
            Some(_) => (
                Self::of("source.url", &[Database::Source]),
                Some(Self::of("state.url", &[Database::State])),
            ),
        }
    }
}

/// How limits compare with what is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There is room.
    Pass,
    /// There is not, while others have what they have now, or something else is done beside.
    Warn,
    /// Whatever others have, a leader lacks sessions.
    Fail,
}

/// What one limit says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// How it compares.
    pub verdict: Verdict,
    /// What the limit is, and what is needed.
    pub text: String,
    /// Empty where nothing is to be done.
    pub fix: String,
}

/// Compares the limits of the role, the database and the server, each with what others take of it.
/// Sessions of a walhook that runs, and this one, are not others.
///
/// # Errors
/// The server's.
pub(crate) async fn findings(
    client: &Client,
    need: Need,
) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let rows = client.query(&limits_sql(), &[]).await?;
    let mut found = Vec::new();
    for row in rows {
        let limit = Limit {
            kind: row.try_get(0)?,
            name: row.try_get(1)?,
            limit: row.try_get(2)?,
            others: row.try_get(3)?,
        };
        found.extend(limit.compare(need));
    }
    if found.is_empty() {
        let Need { key, least, most, .. } = need;
        found.push(Finding {
            verdict: Verdict::Pass,
            text: format!("{key} may have the {least} of a leader, and the {most} at most"),
            fix: String::new(),
        });
    }
    Ok(found)
}

fn limits_sql() -> String {
    let ours = format!(
        "a.usename {EQ} current_user AND pg_catalog.starts_with(a.application_name, 'walhook')"
    );
    // A superuser has no limit of its own; -1 is none. Replication connections take none of the
    // server's, but one of the role's and the database's.
    format!(
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
    )
}

/// A row of [`limits_sql`].
struct Limit {
    /// `role`, `database` or `server`.
    kind: String,
    name: String,
    limit: i64,
    others: i64,
}

impl Limit {
    fn compare(&self, need: Need) -> Option<Finding> {
        let Self { kind, name, limit, others } = self;
        let (least, most) = match kind.as_str() {
            "server" => (need.least - need.senders.0, need.most - need.senders.1),
            _ => (need.least, need.most),
        };
        if limit - others >= most {
            return None;
        }
        let (of, fix) = match kind.as_str() {
            "role" => {
                let alter = format!("ALTER ROLE {} CONNECTION LIMIT {most}", quote_ident(name));
                (format!("the role {name} may have {limit}"), alter)
            }
            "database" => {
                let more = most + others;
                let alter = format!("ALTER DATABASE {} CONNECTION LIMIT {more}", quote_ident(name));
                (format!("the database {name} takes {limit}"), alter)
            }
            _ => (
                format!("the server takes {limit} (max_connections less those reserved)"),
                "raise max_connections, or end sessions that are not needed".to_owned(),
            ),
        };
        let text = format!(
            "{of}, of which others use {others} now; a leader needs {least} by {}, and up to {most} with \
             deferred deliveries, a replay, a standby and commands",
            need.key
        );
        let verdict = if *limit < least { Verdict::Fail } else { Verdict::Warn };
        Some(Finding { verdict, text, fix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_a_failure_below_what_a_leader_needs_and_a_warning_below_what_may_come() {
        let need = Need::of("source.url", &[Database::Source, Database::State]);
        let verdict = |kind: &str, limit, others| {
            let limit = Limit { kind: kind.to_owned(), name: "r".to_owned(), limit, others };
            limit.compare(need).map(|finding| finding.verdict)
        };
        let Need { least, most, senders, .. } = need;
        assert_eq!(verdict("role", least - 1, 0), Some(Verdict::Fail));
        assert_eq!(verdict("role", least, 0), Some(Verdict::Warn));
        assert_eq!(verdict("role", most - 1, 0), Some(Verdict::Warn));
        assert_eq!(verdict("role", most, 0), None);
        assert_eq!(verdict("database", most, 1), Some(Verdict::Warn));
        assert_eq!(verdict("server", most - senders.1, 0), None);
        assert_eq!(verdict("server", least - senders.0 - 1, 0), Some(Verdict::Fail));
    }
}
