//! The first rows of a pipeline: who the source is, where to begin, and what the publication covers.

use anyhow::Result;
use tokio_postgres::Client;

use super::grants::use_of_state;
use super::script::published;
use super::sessions::Sessions;
use super::{Did, Report, SCHEMA_VERSION};
use crate::config::Config;
use crate::control::{Databases, Failure};
use walhook_core::lsn::Lsn;
use walhook_core::partition::Partition;
use walhook_postgres::coverage::{self, begin};
use walhook_postgres::ident::quote_ident;
use walhook_postgres::op::EQ;

/// The stored checkpoint.
pub(super) struct Checkpoint {
    pub(super) frontier: Lsn,
}

impl Checkpoint {
    pub(super) async fn read(config: &Config, state: &Client) -> Result<Option<Self>> {
        let sql = format!(
            "SELECT frontier::pg_catalog.text FROM {}.checkpoint
             WHERE pipeline {EQ} $1 AND partition {EQ} $2",
            quote_ident(&config.state.schema)
        );
        let row = state.query_opt(&sql, &[&config.source.slot, &Partition::SOLE.number()]).await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Self { frontier: row.try_get::<_, &str>(0)?.parse()? }))
    }
}

/// Who the source is, the fence, and where to begin: in one statement, so all or none.
pub(super) async fn first_rows(
    config: &Config,
    sessions: &Sessions,
    begin: Lsn,
    checkpoint: Option<Checkpoint>,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    let schema = quote_ident(&config.state.schema);
    let sql = format!(
        "WITH meta AS (
             INSERT INTO {schema}.meta
                    (pipeline, schema_version, system_identifier, timeline, host, database)
             VALUES ($1, $2, $3::pg_catalog.text::numeric, $4, $5, $6) ON CONFLICT DO NOTHING),
         lease AS (
             INSERT INTO {schema}.lease (pipeline, partition, epoch) VALUES ($1, $8, 0)
             ON CONFLICT DO NOTHING)
         INSERT INTO {schema}.checkpoint (pipeline, partition, frontier)
         VALUES ($1, $8, $7::pg_catalog.text::pg_catalog.pg_lsn)
         ON CONFLICT DO NOTHING"
    );
    let id = &sessions.identity;
    let system_identifier = id.system_identifier.to_string();
    let inserted = sessions
        .state()
        .execute(
            &sql,
            &[
                &config.source.slot,
                &SCHEMA_VERSION,
                &system_identifier,
                &id.timeline.cast_signed(),
                &id.host,
                &id.database,
                &begin.to_string(),
                &Partition::SOLE.number(),
            ],
        )
        .await;
    let inserted = match inserted {
        Ok(inserted) => inserted,
        Err(error) => {
            let fix = use_of_state(config, sessions.state()).await?;
            let failed = format!("cannot write the first checkpoint; {fix}");
            return Err(anyhow::Error::from(error).context(failed).into());
        }
    };
    match checkpoint {
        Some(checkpoint) if inserted == 0 => {
            report.step("checkpoint", Did::Exists, checkpoint.frontier.to_string());
        }
        _ => {
            first_look(config, sessions).await?;
            report.step("checkpoint", Did::Created, format!("begins at {begin}"));
        }
    }
    Ok(())
}

/// What the publication covers now: what changes from here on, before the first leader looks, is found.
async fn first_look(config: &Config, sessions: &Sessions) -> Result<(), Failure> {
    let mut state = Databases::of(config).open_state().await?;
    state.write_as(state.current_epoch().await?);
    let named = published(config).map_err(anyhow::Error::from)?;
    let (name, system) = (&config.source.publication, sessions.identity.system_identifier);
    let looked = coverage::look(&sessions.source, name, &named, system).await?;
    if let Some(mut seen) = looked.coverage {
        begin(&mut seen, looked.before);
        state.store_look(looked.before, &seen, &[], &[]).await?;
    }
    Ok(())
}
