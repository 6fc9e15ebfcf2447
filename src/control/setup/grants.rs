//! What our own role may do, where an administrator sets up for it.

use anyhow::{Context, Result};
use tokio_postgres::Client;

use super::script::{self, Server, looked_up};
use super::sessions::Sessions;
use super::{Did, Report};
use crate::config::Config;
use crate::control::Failure;
use walhook_postgres::ident::quote_ident;
use walhook_postgres::op::EQ;
use walhook_postgres::source;

pub(super) async fn grants(
    config: &Config,
    sessions: &Sessions,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    let Some(role) = &sessions.grant_to else { return Ok(()) };
    let looked_up = looked_up(config).map_err(anyhow::Error::from)?;
    let mut statements = script::source_grants(role, &looked_up);
    if sessions.is_one() {
        statements.extend(script::state_grants(role, &config.state.schema));
    }
    let may_replicate = source::may_replicate(&sessions.source, role).await?;
    match may_replicate {
        Some(true) => {}
        Some(false) => statements.push(right_to_replicate(&sessions.source, role).await?),
        None => {
            let error = anyhow::anyhow!("source.url's role {role} does not exist; create it first");
            return Err(error.into());
        }
    }
    for statement in &statements {
        let failed = || format!("the administrator may not run: {statement}");
        sessions.source.batch_execute(statement).await.with_context(failed)?;
    }
    let detail = format!("{} statements run", statements.len());
    report.step(&format!("grants to {role}"), Did::Changed, detail);
    Ok(())
}

/// The statement that lets the session's role create the state schema.
///
/// # Errors
/// When the server does not answer.
pub(in crate::control) async fn right_to_create(state: &Client) -> Result<String> {
    let sql =
        "SELECT pg_catalog.current_database()::pg_catalog.text, current_user::pg_catalog.text";
    let row = state.query_one(sql, &[]).await?;
    let (database, role): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    Ok(format!("GRANT CREATE ON DATABASE {} TO {}", quote_ident(&database), quote_ident(&role)))
}

/// What to do where our role may not use the state tables that are there.
///
/// # Errors
/// When the server does not answer.
pub(in crate::control) async fn use_of_state(config: &Config, state: &Client) -> Result<String> {
    if config.state.url.is_none() {
        return Ok("run `walhook setup --admin-url`, which grants it".to_owned());
    }
    let role = "SELECT current_user::pg_catalog.text";
    let role: String = state.query_one(role, &[]).await?.try_get(0)?;
    let grants = script::state_grants(&role, &config.state.schema);
    Ok(format!("in the state database, as the schema's owner: {}", grants.join("; ")))
}

/// The statement that gives the right to replicate on this server.
async fn right_to_replicate(client: &Client, role: &str) -> Result<String> {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname {EQ} 'rds_replication')"
    );
    let is_rds = client.query_one(&sql, &[]).await?.try_get(0)?;
    let server = if is_rds { Server::Rds } else { Server::SelfHosted };
    Ok(server.may_replicate(role))
}
