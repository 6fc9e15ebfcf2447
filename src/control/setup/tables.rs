//! The state tables, and of which version they are.

use anyhow::{Context, Result};
use tokio_postgres::Client;

use super::grants::right_to_create;
use super::sessions::Sessions;
use super::{Did, Report, SCHEMA_VERSION, owner};
use crate::config::Config;
use crate::control::Failure;
use walhook_postgres::ident::quote_ident;
use walhook_postgres::op::EQ;
use walhook_postgres::pg::Conninfo;

/// Creates what is missing of them.
pub(super) async fn state_schema(
    config: &Config,
    sessions: &Sessions,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    let schema = &config.state.schema;
    let tables = walhook_state::tables();
    let before = existing_tables(sessions.state(), schema, &tables).await?;
    let step = format!("state schema {schema}");
    if before < tables.len() || sessions.grant_to.is_some() {
        let own = Conninfo::parse(config.state.url.as_ref().unwrap_or(&config.source.url));
        let own = own.map_err(anyhow::Error::from)?;
        owner::ensure_ours(sessions.state(), schema, own.user()).await?;
    }
    // Not run when all is there: CREATE SCHEMA IF NOT EXISTS asks for the right to create one.
    if before == tables.len() {
        report.step(&step, Did::Exists, format!("{before} tables"));
        return Ok(());
    }
    let created = sessions.state().batch_execute(&walhook_state::schema_sql(schema)).await;
    if let Err(error) = created {
        let fix = match sessions.is_one() {
            true => "use --admin-url or --print-sql".to_owned(),
            false => {
                let grant = right_to_create(sessions.state()).await?;
                format!("in the state database, as its owner, `{grant}`; or --print-sql")
            }
        };
        let failed = format!("cannot create the state schema {schema}; {fix}");
        return Err(anyhow::Error::from(error).context(failed).into());
    }
    let did = if before == 0 { Did::Created } else { Did::Changed };
    report.step(&step, did, format!("{} of {} tables added", tables.len() - before, tables.len()));
    Ok(())
}

/// How many of the tables there are.
pub(in super::super) async fn existing_tables(
    client: &Client,
    schema: &str,
    tables: &[&str],
) -> Result<usize> {
    let row = client
        .query_one(
            &format!(
                "SELECT pg_catalog.count(*) FROM pg_catalog.pg_class c
                      JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
             WHERE n.nspname {EQ} $1 AND c.relname {EQ} ANY ($2)"
            ),
            &[&schema, &tables],
        )
        .await?;
    Ok(usize::try_from(row.try_get::<_, i64>(0)?)?)
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
