//! May everything be dropped that is to be? Asked before anything is.

use anyhow::{Result, ensure};
use tokio_postgres::Client;

use super::{Plan, Publication, Sessions, State};
use crate::config::Config;
use walhook_postgres::ident::quote_ident;
use walhook_postgres::op::{EQ, NE};
use walhook_postgres::source;

/// Refuses with every right that is missing.
pub(super) async fn check(config: &Config, sessions: &Sessions, plan: &Plan) -> Result<()> {
    let mut missing = vec![];
    if !plan.slots.is_empty() {
        let (role, may) = source::replication_right(sessions.replicating()).await?;
        if !may {
            missing.push(format!(
                "{role} may not replicate, so not drop the slot {}: ALTER ROLE {} REPLICATION",
                plan.slots.join(", "),
                quote_ident(&role)
            ));
        }
    }
    if plan.publication != Publication::Untouched {
        let sql = format!(
            "SELECT pg_catalog.pg_get_userbyid(pubowner)::pg_catalog.text,
                    pg_catalog.pg_has_role(pubowner, 'USAGE')
             FROM pg_catalog.pg_publication WHERE pubname {EQ} $1"
        );
        let publication = &config.source.publication;
        let row = sessions.source.query_opt(&sql, &[publication]).await?;
        if let Some(row) = row
            && !row.try_get::<_, bool>(1)?
        {
            let owner: String = row.try_get(0)?;
            missing.push(format!("the publication {publication} belongs to {owner}"));
        }
    }
    state(config, sessions.state(), &plan.state, &mut missing).await?;
    let state_url =
        if config.state.url.is_some() { "; state.url for the state tables" } else { "" };
    ensure!(
        missing.is_empty(),
        "nothing was dropped, for the rights do not suffice: {}. Run it with --admin-url, as a role that \
         may{state_url}",
        missing.join("; ")
    );
    Ok(())
}

async fn state(
    config: &Config,
    client: &Client,
    state: &State,
    missing: &mut Vec<String>,
) -> Result<()> {
    let name = &config.state.schema;
    let role = "SELECT current_user::pg_catalog.text";
    let role: String = client.query_one(role, &[]).await?.try_get(0)?;
    match state {
        State::Nothing => {}
        State::Rows(ours) => {
            let sql = format!(
                "SELECT c.relname::pg_catalog.text
                 FROM pg_catalog.pg_class c
                 JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
                 WHERE n.nspname {EQ} $1 AND c.relkind {EQ} 'r' AND c.relname {EQ} ANY ($2)
                   AND NOT (pg_catalog.has_schema_privilege(n.oid, 'USAGE')
                            AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
                            AND pg_catalog.has_table_privilege(c.oid, 'DELETE'))
                 ORDER BY 1"
            );
            for row in client.query(&sql, &[name, &ours.tables]).await? {
                let table: String = row.try_get(0)?;
                missing.push(format!("{role} may not DELETE from {name}.{table}"));
            }
        }
        State::Tables(ours) => {
            let relations = [&*ours.tables, &*ours.views].concat();
            let sql = format!(
                "SELECT pg_catalog.pg_get_userbyid(c.relowner)::pg_catalog.text,
                        pg_catalog.string_agg(c.relname::pg_catalog.text, ', ' ORDER BY c.relname)
                 FROM pg_catalog.pg_class c
                 JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
                 WHERE n.nspname {EQ} $1 AND c.relname {EQ} ANY ($2)
                   AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')
                   AND NOT pg_catalog.pg_has_role(n.nspowner, 'USAGE')
                 GROUP BY 1 ORDER BY 1"
            );
            for row in client.query(&sql, &[name, &relations]).await? {
                let (owner, which): (String, String) = (row.try_get(0)?, row.try_get(1)?);
                missing.push(format!("in the schema {name} {which} belong to {owner}"));
            }
            // What else is in it keeps the schema, and then its owner is not asked.
            let sql = format!(
                "SELECT pg_catalog.pg_get_userbyid(n.nspowner)::pg_catalog.text
                 FROM pg_catalog.pg_namespace n
                 WHERE n.nspname {EQ} $1 AND n.nspname {NE} 'public'
                   AND NOT pg_catalog.pg_has_role(n.nspowner, 'USAGE')"
            );
            if let Some(row) = client.query_opt(&sql, &[name]).await? {
                let owner: String = row.try_get(0)?;
                missing.push(format!("the schema {name} belongs to {owner}"));
            }
        }
    }
    Ok(())
}
