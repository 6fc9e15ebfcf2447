//! The state tables, and of which version they are.

use anyhow::{Context, Result};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::grants::right_to_create;
use super::sessions::Sessions;
use super::{Did, Report, SCHEMA_VERSION, owner};
use crate::config::Config;
use crate::control::Failure;
use walhook_postgres::ident::quote_ident;
use walhook_postgres::op::EQ;
use walhook_postgres::pg::Conninfo;
use walhook_postgres::row_security;
use walhook_state::Relations;

/// What is there of them.
///
/// # Errors
/// When something that walhook did not make stands there under a name that it needs, or belongs to a stranger.
pub(super) async fn look(config: &Config, sessions: &Sessions) -> Result<Relations, Failure> {
    let schema = &config.state.schema;
    let found = Relations::find(sessions.state(), schema).await.map_err(anyhow::Error::from)?;
    if found.tables.len() < walhook_state::tables().len() || sessions.grant_to.is_some() {
        let own = Conninfo::parse(config.state.url.as_ref().unwrap_or(&config.source.url));
        let own = own.map_err(anyhow::Error::from)?;
        owner::ensure_ours(sessions.state(), schema, own.user()).await?;
    }
    if let Some((problem, fix)) = foreign(schema, &found) {
        return Err(anyhow::anyhow!("{problem}; {fix}").into());
    }
    // An administrator sees the rows that our role does not.
    let (state, tables) = (sessions.state(), walhook_state::tables());
    let role = sessions.grant_to.as_deref().filter(|_| sessions.is_one());
    let barred = row_security::barred(state, schema, &tables, role).await;
    if let Some(barred) = barred.map_err(anyhow::Error::from)? {
        return Err(anyhow::anyhow!("{}; {}", barred.finding(), barred.fix()).into());
    }
    Ok(found)
}

/// Creates what is missing of them, where so many are there.
pub(super) async fn state_schema(
    config: &Config,
    sessions: &Sessions,
    before: usize,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    let schema = &config.state.schema;
    let all = walhook_state::tables().len();
    let step = format!("state schema {schema}");
    // Not run when all is there: CREATE SCHEMA IF NOT EXISTS asks for the right to create one.
    if before == all {
        report.step(&step, Did::Exists, format!("{before} tables"));
        return Ok(());
    }
    let created = sessions.state().batch_execute(&walhook_state::schema_sql(schema)).await;
    if let Err(error) = created {
        let may_not = error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
        let fix = match (may_not, sessions.is_one()) {
            (false, _) => String::new(),
            (true, true) => "; use --admin-url or --print-sql".to_owned(),
            (true, false) => {
                let grant = right_to_create(sessions.state()).await?;
                format!("; in the state database, as its owner, `{grant}`; or --print-sql")
            }
        };
        let failed = format!("cannot create the state schema {schema}{fix}");
        return Err(anyhow::Error::from(error).context(failed).into());
    }
    let did = if before == 0 { Did::Created } else { Did::Changed };
    report.step(&step, did, format!("{} of {all} tables added", all - before));
    Ok(())
}

/// What stands in the schema that is not walhook's, under names that it needs, and what to do about that.
pub(in crate::control) fn foreign(
    schema: &str,
    found: &Relations,
) -> Option<(String, &'static str)> {
    let foreign = &found.foreign;
    (!foreign.is_empty()).then(|| {
        let problem = format!(
            "the schema {schema} holds what walhook did not make under names that it needs: {}",
            foreign.join(", ")
        );
        (problem, "name a schema of walhook's own in `state.schema`")
    })
}

/// Says that the tables are of this program's version now. From here on the version before takes no lease.
pub(super) async fn raise_version(
    config: &Config,
    state: &Client,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    let sql = format!(
        "UPDATE {}.meta SET schema_version = $2
         WHERE pipeline {EQ} $1 AND schema_version OPERATOR(pg_catalog.<) $2",
        quote_ident(&config.state.schema)
    );
    let raised = state.execute(&sql, &[&config.source.slot, &SCHEMA_VERSION]).await;
    if raised.context("cannot raise the version of the state tables")? > 0 {
        let detail = format!(
            "{SCHEMA_VERSION}, which a walhook of the version before does not lead on; \
             `walhook setup --schema-version {}` goes back",
            SCHEMA_VERSION - 1
        );
        report.step("schema version", Did::Changed, detail);
    }
    Ok(())
}
