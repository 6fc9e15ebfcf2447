//! The other pipelines of the same schema and source that no instance runs: what waits there is sent by nobody, and
//! their slots keep the WAL.

use anyhow::Result;
use serde::Serialize;
use tokio_postgres::Client;

use super::{Databases, READER};
use walhook_core::halt::SourceIdentity;
use walhook_postgres::ident::quote_ident;
use walhook_postgres::op::{EQ, NE};
use walhook_postgres::slot;
use walhook_postgres::sql::Connection;

/// A pipeline whose slot is there, and read by nobody.
#[derive(Debug, Serialize)]
pub(crate) struct IdlePipeline {
    /// Its name, which is that of its slot.
    pub(crate) pipeline: String,
    /// The WAL that its slot makes the server keep.
    pub(crate) retained_bytes: u64,
}

/// Finds them, for the pipeline of this name.
///
/// # Errors
/// When a database does not answer.
pub(crate) async fn find(
    (source, identity): (&Client, &SourceIdentity),
    state: &Client,
    (schema, own): (&str, &str),
) -> Result<Vec<IdlePipeline>> {
    let sql = format!(
        "SELECT pipeline FROM {}.meta
         WHERE pipeline {NE} $1 AND system_identifier {EQ} $2::pg_catalog.text::numeric AND database {EQ} $3
         ORDER BY pipeline",
        quote_ident(schema)
    );
    let system_identifier = identity.system_identifier.to_string();
    let mut idle = Vec::new();
    for row in state.query(&sql, &[&own, &system_identifier, &identity.database]).await? {
        let pipeline: String = row.try_get(0)?;
        let Some(slot) = slot::read(source, &pipeline).await? else { continue };
        if slot.is_ours() && slot.active_pid.is_none() {
            idle.push(IdlePipeline { retained_bytes: slot.retained_bytes(), pipeline });
        }
    }
    Ok(idle)
}

/// The same of a pipeline that is set up, by sessions of its own.
///
/// # Errors
/// When a database does not answer.
pub(crate) async fn gather(databases: Databases<'_>) -> Result<Vec<IdlePipeline>> {
    let identity = databases.open_state().await?.source_identity().await?;
    let source = databases.open_source(READER).await?;
    let other = match &databases.state.url {
        Some(url) => Some(Connection::open(url, READER).await?),
        None => None,
    };
    let state: &Client = other.as_ref().unwrap_or(&source);
    find((&source, &identity), state, (&databases.state.schema, databases.pipeline())).await
}
