//! What our own role may do, where an administrator sets up for it.

use anyhow::{Context, Result};
use tokio_postgres::Client;

use super::script::{self, Server, looked_up};
use super::sessions::Sessions;
use super::{Did, Report};
use crate::config::Config;
use crate::control::Failure;
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

/// The statement that gives the right to replicate on this server.
async fn right_to_replicate(client: &Client, role: &str) -> Result<String> {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname {EQ} 'rds_replication')"
    );
    let is_rds = client.query_one(&sql, &[]).await?.try_get(0)?;
    let server = if is_rds { Server::Rds } else { Server::SelfHosted };
    Ok(server.may_replicate(role))
}
