//! The set-up: the state schema, the publication, the slot and the first checkpoint.
//!
//! In this order, because each rests on the one before: a slot that is older than its publication
//! can never be read, and a checkpoint is the place where the slot begins. Every step looks first
//! and does only what is missing, so an interrupted set-up is completed by running it again.

mod alone;
mod own;
mod owner;
mod publication;
mod script;
mod slot;
#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tokio_postgres::Client;

use super::{Databases, Failure, Progress, Tell};
use crate::config::Config;
use crate::server::prepared;
use walhook_core::endpoint::Secret;
use walhook_core::halt::{self, Halt, SourceIdentity};
use walhook_core::lsn::Lsn;
use walhook_core::partition::Partition;
use walhook_postgres::coverage;
use walhook_postgres::coverage::begin;
use walhook_postgres::ident::quote_ident;
use walhook_postgres::op::EQ;
use walhook_postgres::pg::Conninfo;
use walhook_postgres::slot::{Slot, read as read_slot};
use walhook_postgres::source;
use walhook_postgres::sql::Connection;
use walhook_state::slots;

pub(crate) use script::Server;
pub(super) use script::{looked_up, published};
pub(super) use slot::{FAILOVER_SLOTS, create_slot_within};
pub(crate) use walhook_state::SCHEMA_VERSION;

const NAME: &str = "walhook setup";

/// What a step found or did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Did {
    /// It was there.
    Exists,
    /// It is there now.
    Created,
    /// It was there, and is as it should be now.
    Changed,
}

/// A step of the set-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct StepView {
    /// Which.
    pub(crate) step: String,
    /// What it found or did.
    pub(crate) did: Did,
    /// More of that.
    pub(crate) detail: String,
}

/// The set-up.
#[derive(Debug, Serialize)]
pub(crate) struct SetupView {
    /// In the order in which they were taken.
    pub(crate) steps: Vec<StepView>,
}

/// The set-up as a script.
#[derive(Debug, Serialize)]
pub(crate) struct ScriptView {
    /// For psql.
    pub(crate) sql: String,
}

/// How to set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options<'a> {
    /// As this administrator in the source.
    pub(crate) admin: Option<&'a Secret>,
    /// How long to try to create the slot.
    pub(crate) wait: Duration,
    /// A slot of our name that is there is ours, although no state table says so.
    pub(crate) adopts_slot: bool,
}

/// Sets up, and says each step as it ends.
///
/// # Errors
/// When a step fails, or cannot be done without losing changes; the message says what to do.
pub(crate) async fn set_up(
    config: &Config,
    options: Options<'_>,
    tell: Tell<'_>,
) -> Result<SetupView, Failure> {
    let mut report = Report { steps: vec![], tell };
    steps(config, options, &mut report).await?;
    Ok(SetupView { steps: report.steps })
}

/// The statements of the set-up, with the grants for this kind of server. Runs none.
///
/// # Errors
/// When the configuration names tables that cannot be.
pub(crate) fn script(config: &Config, server: Server) -> Result<ScriptView, Failure> {
    let source = Conninfo::parse(&config.source.url).context("source.url")?;
    let sql = script::whole(config, server, source.user(), &source).map_err(anyhow::Error::from)?;
    Ok(ScriptView { sql })
}

/// The steps so far; each is said as it ends.
struct Report<'a> {
    steps: Vec<StepView>,
    tell: Tell<'a>,
}

impl Report<'_> {
    fn step(&mut self, step: &str, did: Did, detail: impl Into<String>) {
        let view = StepView { step: step.to_owned(), did, detail: detail.into() };
        (self.tell)(Progress::Step(&view));
        self.steps.push(view);
    }
}

/// The sessions: with `--admin-url` the source's statements are the administrator's.
struct Sessions {
    source: Connection,
    state: Option<Connection>,
    /// Our own role in source and state, where it is another than the session's.
    grant_to: Option<String>,
    identity: SourceIdentity,
}

impl Sessions {
    async fn open(config: &Config, admin: Option<&Secret>) -> Result<Self> {
        let own = Conninfo::parse(&config.source.url).context("source.url")?;
        let source = match admin {
            Some(url) => Connection::open(url, NAME).await.context("--admin-url")?,
            None => Connection::open(&config.source.url, NAME).await.context("source.url")?,
        };
        let identity = source::identity(&source, &own).await?;
        if admin.is_some() {
            let database = own.database();
            ensure!(
                identity.database == database,
                "--admin-url leads to the database {}, source.url to {database}; name the same",
                identity.database
            );
        }
        let state = match &config.state.url {
            Some(url) => Some(Connection::open(url, NAME).await.context("state.url")?),
            None => None,
        };
        let grant_to = admin.map(|_| own.user().to_owned());
        Ok(Self { source, state, grant_to, identity })
    }

    /// The session of the state database.
    fn state(&self) -> &Client {
        self.state.as_ref().unwrap_or(&self.source)
    }
}

async fn steps(
    config: &Config,
    Options { admin, wait, adopts_slot }: Options<'_>,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    let sessions = Sessions::open(config, admin).await?;
    alone::wait(sessions.state(), &config.state.schema, wait, report.tell).await?;
    let version = source::server_version(&sessions.source).await?;
    if version < source::OLDEST_SERVER {
        let error = anyhow::anyhow!("the server's version is {version}; walhook needs 14 or later");
        return Err(error.into());
    }
    state_schema(config, &sessions, report).await?;
    grants(config, &sessions, report).await?;
    // Looked at before anything is created that could not be undone.
    same_source(config, &sessions).await?;
    // The slot first: what a leader confirms is never ahead of the checkpoint at that moment.
    let slot =
        read_slot(&sessions.source, &config.source.slot).await.map_err(anyhow::Error::from)?;
    let checkpoint = Checkpoint::read(config, sessions.state()).await?;
    if checkpoint.is_none() {
        own::ensure_ours(config, &sessions, slot.as_ref(), adopts_slot).await?;
    }
    usable(config, &sessions, slot.as_ref(), checkpoint.as_ref()).await?;
    publication::publication(config, &sessions.source, slot.is_some(), report).await?;
    let begin = create_slot(config, &sessions, slot, wait, report).await?;
    first_rows(config, &sessions, begin, checkpoint, report).await?;
    raise_version(config, sessions.state(), report).await
}

/// Says that the tables are of this program's version now. From here on the version before takes no lease.
async fn raise_version(
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

/// Makes the state tables those of an earlier version, for a walhook of that version, and says so.
///
/// # Errors
/// When the tables cannot be read or changed.
pub(crate) async fn go_back(
    config: &Config,
    version: i32,
    tell: Tell<'_>,
) -> Result<SetupView, Failure> {
    let rows = Databases::of(config).open_state().await?.lower_version(version).await?;
    let mut report = Report { steps: vec![], tell };
    let detail = format!("{version}; {rows} deferred deliveries in pages are rows now");
    report.step("schema version", Did::Changed, detail);
    Ok(SetupView { steps: report.steps })
}

/// Refuses a slot, or the lack of one, with which changes would be missing.
async fn usable(
    config: &Config,
    sessions: &Sessions,
    slot: Option<&Slot>,
    checkpoint: Option<&Checkpoint>,
) -> Result<(), Failure> {
    let name = &config.source.slot;
    let state = slot.map(Slot::state);
    if let Some(checkpoint) = checkpoint {
        let mut at = checkpoint.frontier;
        if slot.and_then(|slot| slot.confirmed_flush).is_some_and(|confirmed| confirmed > at) {
            // Prepared for an upgrade?
            let store = Databases::of(config).open_state().await?;
            at = prepared::checkpoint(&store, &sessions.source, name, slot).await?;
        }
        return Ok(halt::check_slot(name, state.as_ref(), at)?);
    }
    let Some(state) = state else { return Ok(()) };
    let from = state.confirmed_flush.unwrap_or_default();
    match halt::check_slot(name, Some(&state), from) {
        Err(Halt::SlotLost { why, .. }) => Err(anyhow::anyhow!(
            "the slot {name} is lost, and no checkpoint rests on it: {why}. Run `walhook teardown`, \
             then set up again"
        )
        .into()),
        checked => Ok(checked?),
    }
}

async fn state_schema(
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
    sessions.state().batch_execute(&walhook_state::schema_sql(schema)).await.with_context(
        || format!("cannot create the state schema {schema}; use --admin-url or --print-sql"),
    )?;
    let did = if before == 0 { Did::Created } else { Did::Changed };
    report.step(&step, did, format!("{} of {} tables added", tables.len() - before, tables.len()));
    Ok(())
}

/// How many of the tables there are.
pub(super) async fn existing_tables(
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

async fn grants(
    config: &Config,
    sessions: &Sessions,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    let Some(role) = &sessions.grant_to else { return Ok(()) };
    let looked_up = looked_up(config).map_err(anyhow::Error::from)?;
    let mut statements = script::source_grants(role, &looked_up);
    if sessions.state.is_none() {
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

/// Refuses state that belongs to another database than the source.
async fn same_source(config: &Config, sessions: &Sessions) -> Result<(), Failure> {
    let sql = format!(
        "SELECT system_identifier::pg_catalog.text, timeline, host, database FROM {}.meta
         WHERE pipeline {EQ} $1",
        quote_ident(&config.state.schema)
    );
    let row = sessions.state().query_opt(&sql, &[&config.source.slot]).await;
    let Some(row) = row.map_err(anyhow::Error::from)? else { return Ok(()) };
    let text = |n: usize| row.try_get::<_, String>(n).map_err(anyhow::Error::from);
    let stored = SourceIdentity {
        system_identifier: text(0)?.parse().map_err(anyhow::Error::from)?,
        timeline: row.try_get::<_, i32>(1).map_err(anyhow::Error::from)?.cast_unsigned(),
        host: text(2)?,
        database: text(3)?,
    };
    Ok(halt::check_source(&sessions.identity, &stored)?)
}

/// Creates the slot where it is missing, and returns the position where it begins.
async fn create_slot(
    config: &Config,
    sessions: &Sessions,
    slot: Option<Slot>,
    wait: Duration,
    report: &mut Report<'_>,
) -> Result<Lsn, Failure> {
    let name = &config.source.slot;
    let step = format!("slot {name}");
    let Some(slot) = slot else {
        // An administrator need not have the right that was just granted to our role.
        let own = match source::replication_right(&sessions.source).await?.1 {
            true => None,
            false => Some(Connection::open(&config.source.url, NAME).await.context("source.url")?),
        };
        let client = own.as_ref().unwrap_or(&sessions.source);
        // Before the slot: interrupted between the two, the next run knows that it is ours.
        let (state, schema) = (sessions.state(), &config.state.schema);
        slots::record(state, schema, name).await.context("cannot record the slot")?;
        let begin = match create_slot_within(client, name, wait, report.tell).await {
            Ok(begin) => begin,
            Err(error) => {
                slots::forget(state, schema, name).await.context("cannot take back the record")?;
                return Err(error.into());
            }
        };
        report.step(&step, Did::Created, format!("begins at {begin}"));
        return Ok(begin);
    };
    let begin = slot.confirmed_flush.with_context(|| {
        format!("the slot {name} is being created by another session; try again when that is done")
    })?;
    report.step(&step, Did::Exists, format!("acknowledged up to {begin}"));
    Ok(begin)
}

/// The stored checkpoint.
struct Checkpoint {
    frontier: Lsn,
}

impl Checkpoint {
    async fn read(config: &Config, state: &Client) -> Result<Option<Self>> {
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
async fn first_rows(
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
        .await
        .context("cannot write the first checkpoint; use --admin-url for the grants")?;
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

/// Sets up and says nothing, for the tests of the commands that need it.
#[cfg(test)]
pub(crate) async fn quietly(config: &Config) -> Result<(), Failure> {
    let options = Options { admin: None, wait: Duration::from_secs(60), adopts_slot: false };
    set_up(config, options, &mut |_| {}).await.map(drop)
}
