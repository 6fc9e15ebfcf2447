//! The set-up: the state schema, the publication, the slot and the first checkpoint.
//!
//! In this order, because each rests on the one before: a slot that is older than its publication
//! can never be read, and a checkpoint is the place where the slot begins. What can be refused by looking
//! is refused before the first step. Every step does only what is missing, so an interrupted set-up is
//! completed by running it again.

pub(super) mod alone;
mod blockers;
mod first;
mod grants;
mod locked;
mod own;
mod owner;
mod publication;
mod script;
mod sessions;
mod slot;
mod tables;
#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Databases, Failure, Progress, Tell};
use crate::config::Config;
use crate::server::prepared;
use first::Checkpoint;
use publication::Wanted;
use sessions::Sessions;
use walhook_core::endpoint::Secret;
use walhook_core::halt::{self, Halt, SourceIdentity};
use walhook_core::lsn::Lsn;
use walhook_postgres::ident::quote_ident;
use walhook_postgres::op::EQ;
use walhook_postgres::pg::Conninfo;
use walhook_postgres::slot::{Slot, read as read_slot};
use walhook_postgres::source;
use walhook_postgres::sql::Connection;
use walhook_state::{StateError, slots};

pub(super) use grants::{right_to_create, use_of_state};
pub(super) use publication::unpublishable;
pub(crate) use script::Server;
pub(super) use script::{looked_up, published};
pub(super) use slot::{FAILOVER_SLOTS, create_slot_within};
pub(super) use tables::foreign;
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
    /// How long to try what waits for others: the publication for locks, the slot for open transactions.
    pub(crate) wait: Duration,
    /// A slot of our name that is there is ours, although no state table says so.
    pub(crate) adopts_slot: bool,
    /// This pipeline is one more, although another of the schema is not running, or is of a database that this is a copy of.
    pub(crate) adds_pipeline: bool,
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

async fn steps(
    config: &Config,
    Options { admin, wait, adopts_slot, adds_pipeline }: Options<'_>,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    let sessions = Sessions::open(config, admin).await?;
    alone::wait(sessions.state(), &config.state.schema, wait, report.tell).await?;
    let version = source::server_version(&sessions.source).await?;
    if version < source::OLDEST_SERVER {
        let error = anyhow::anyhow!("the server's version is {version}; walhook needs 14 or later");
        return Err(error.into());
    }
    // Looked at before anything is created: in another database than meant nothing is left behind.
    let relations = tables::look(config, &sessions).await?;
    if relations.has("meta") {
        fits(config, &sessions).await?;
    }
    // The slot first: what a leader confirms is never ahead of the checkpoint at that moment.
    let slot =
        read_slot(&sessions.source, &config.source.slot).await.map_err(anyhow::Error::from)?;
    let checkpoint = match relations.has("checkpoint") {
        true => Checkpoint::read(config, sessions.state()).await?,
        false => None,
    };
    if checkpoint.is_none() {
        if !adds_pipeline && relations.has("meta") {
            own::ensure_one_more(config, &sessions).await?;
        }
        let recorded = relations.has("slots") && is_recorded(config, &sessions).await?;
        own::ensure_ours(config, &sessions, slot.as_ref(), recorded, adopts_slot).await?;
    }
    let (client, before) = (&sessions.source, checkpoint.as_ref());
    let wanted = Wanted::look(config, client).await?;
    tables::state_schema(config, &sessions, relations.tables.len(), report).await?;
    grants::grants(config, &sessions, report).await?;
    usable(config, &sessions, slot.as_ref(), before).await?;
    publication::publication(config, client, wanted, slot.as_ref(), before, wait, report).await?;
    let begin = create_slot(config, &sessions, slot, wait, report).await?;
    first::first_rows(config, &sessions, begin, checkpoint, report).await?;
    tables::raise_version(config, sessions.state(), report).await
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

/// Whether walhook recorded that it makes the slot.
async fn is_recorded(config: &Config, sessions: &Sessions) -> Result<bool> {
    let (schema, slot) = (&config.state.schema, &config.source.slot);
    Ok(slots::is_recorded(sessions.state(), schema, slot).await?)
}

/// Refuses state of a later version, and state that belongs to another database than the source.
async fn fits(config: &Config, sessions: &Sessions) -> Result<(), Failure> {
    let sql = format!(
        "SELECT system_identifier::pg_catalog.text, timeline, host, database, schema_version FROM {}.meta
         WHERE pipeline {EQ} $1",
        quote_ident(&config.state.schema)
    );
    let row = sessions.state().query_opt(&sql, &[&config.source.slot]).await;
    let Some(row) = row.map_err(anyhow::Error::from)? else { return Ok(()) };
    let found: i32 = row.try_get(4).map_err(anyhow::Error::from)?;
    if found > SCHEMA_VERSION {
        return Err(StateError::SchemaTooNew { found }.into());
    }
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

/// Sets up and says nothing, for the tests of the commands that need it.
#[cfg(test)]
pub(crate) async fn quietly(config: &Config) -> Result<(), Failure> {
    let wait = Duration::from_secs(60);
    let options = Options { admin: None, wait, adopts_slot: false, adds_pipeline: true };
    set_up(config, options, &mut |_| {}).await.map(drop)
}
