//! The end of a pipeline: drops what the set-up made for it.
//!
//! Publication and state go in transactions, which are committed last, and the slots, which know none, in
//! between: whatever cannot be dropped shows before anything is. Interrupted, it is run again.

mod publication;
mod rights;
#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Transaction};

use super::holder::{refuse_while_active, user};
use super::setup::alone;
use super::{Databases, Tell};
use crate::config::Config;
use walhook_core::endpoint::Secret;
use walhook_postgres::anchor;
use walhook_postgres::ident::quote_ident;
use walhook_postgres::op::{EQ, NE};
use walhook_postgres::pg::Conninfo;
use walhook_postgres::slot;
use walhook_postgres::source;
use walhook_postgres::sql::Connection;
use walhook_state::{Relations, slots};

use publication::Publication;

const NAME: &str = "walhook teardown";

/// For another that runs, or waits to be confirmed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Somebody may be reading the tables.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '10s'";

/// What was done, item by item.
#[derive(Debug, Default, Serialize)]
pub(crate) struct TornDown {
    /// What is gone.
    pub(crate) dropped: Vec<String>,
    /// What stays, and why.
    pub(crate) kept: Vec<String>,
}

/// What is to be dropped.
pub(crate) struct TeardownPlan {
    sessions: Sessions,
    plan: Plan,
    /// What that is, for whoever is to confirm it; `None` where there is nothing.
    pub(crate) text: Option<String>,
}

/// Looks what is there of the pipeline, and whether all of it may be dropped: in the source by an
/// administrator, where one is given. Changes nothing.
///
/// # Errors
/// When the slot is in use, a right is missing, or a database does not answer.
pub(crate) async fn plan(
    config: &Config,
    admin: Option<&Secret>,
    tell: Tell<'_>,
) -> Result<TeardownPlan> {
    let sessions = Sessions::open(config, admin).await?;
    alone::wait(sessions.state(), &config.state.schema, PATIENCE, tell).await?;
    let plan = find(config, &sessions).await?;
    let text = (!plan.is_empty()).then(|| plan.to_text(config));
    Ok(TeardownPlan { sessions, plan, text })
}

impl TeardownPlan {
    /// Drops what the plan says, or nothing.
    ///
    /// # Errors
    /// When something cannot be dropped.
    pub(crate) async fn carry_out(mut self, config: &Config) -> Result<TornDown> {
        if self.plan.is_empty() {
            return Ok(TornDown { kept: self.plan.kept, ..TornDown::default() });
        }
        tear_down(config, &mut self.sessions, self.plan).await
    }
}

/// The databases.
struct Sessions {
    source: Connection,
    /// Whose right to replicate drops the slots, where the source's session has none.
    replicating: Option<Connection>,
    state: Option<Connection>,
}

impl Sessions {
    /// Opens them; the source's as an administrator where one is given.
    async fn open(config: &Config, admin: Option<&Secret>) -> Result<Self> {
        let own = Connection::open(&config.source.url, NAME).await.context("source.url");
        let (source, replicating) = match admin {
            None => (own?, None),
            Some(url) => {
                let info = Conninfo::parse(&config.source.url).context("source.url")?;
                let theirs = Conninfo::parse(url).context("--admin-url")?;
                ensure!(
                    info.database() == theirs.database(),
                    "--admin-url leads to another database than source.url; name the same"
                );
                let admin = Connection::open(url, NAME).await.context("--admin-url")?;
                let may = source::replication_right(&admin).await?.1;
                // Our own role may be gone already.
                (admin, own.ok().filter(|_| !may))
            }
        };
        let state = match &config.state.url {
            None => None,
            Some(url) => Some(Connection::open(url, NAME).await.context("state.url")?),
        };
        Ok(Self { source, replicating, state })
    }

    fn state(&self) -> &Client {
        self.state.as_ref().unwrap_or(&self.source)
    }

    fn replicating(&self) -> &Client {
        self.replicating.as_ref().unwrap_or(&self.source)
    }
}

/// What is there to be dropped.
#[derive(Debug, Default)]
struct Plan {
    slots: Vec<String>,
    publication: Publication,
    state: State,
    kept: Vec<String>,
}

/// What of the state.
#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Nothing,
    /// The tables hold other pipelines: the rows of this one.
    Rows(Relations),
    /// The tables, their views, and the schema where nothing else is in it.
    Tables(Relations),
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.slots.is_empty()
            && self.publication == Publication::Untouched
            && self.state == State::Nothing
    }

    fn to_text(&self, config: &Config) -> String {
        let mut items: Vec<String> =
            self.slots.iter().map(|slot| format!("the slot {slot}")).collect();
        let (slot, schema) = (&config.source.slot, &config.state.schema);
        items.extend(self.publication.describe(config).map(|what| format!("the {what}")));
        match &self.state {
            State::Nothing => {}
            State::Rows(_) => items.push(format!("{slot}'s state in the schema {schema}")),
            State::Tables(ours) => {
                items.push(format!("{} state tables in the schema {schema}", ours.tables.len()));
            }
        }
        let mut text =
            format!("This drops {}: what is not yet delivered is forgotten.", items.join(", "));
        for kept in &self.kept {
            text.push_str(&format!("\nIt keeps {kept}."));
        }
        text
    }
}

/// Looks what is there, and whether all of it may be dropped.
async fn find(config: &Config, sessions: &Sessions) -> Result<Plan> {
    let source = &sessions.source;
    refuse_while_active(Databases::of(config), source).await?;
    let (schema, name) = (&config.state.schema, &config.source.slot);
    let mut plan = Plan::default();
    let relations = Relations::find(sessions.state(), schema).await?;
    let ours = is_set_up(sessions.state(), schema, &relations.tables, name).await?;
    for slot in [name.clone(), anchor::name(name)] {
        let Some(found) = slot::read(source, &slot).await? else { continue };
        if !ours || !found.is_ours() {
            let why = if ours { "walhook did not make it".to_owned() } else { elsewhere(config) };
            plan.kept.push(format!(
                "the slot {slot}: {why}; only if nobody reads it, \
                 `SELECT pg_catalog.pg_drop_replication_slot('{slot}')`"
            ));
            continue;
        }
        if let Some(pid) = found.active_pid {
            anyhow::bail!(
                "the slot {slot} is in use by {}; stop that first",
                user(Databases::of(config), source, pid).await?
            );
        }
        plan.slots.push(slot);
    }
    let reader = match (ours, plan.kept.is_empty()) {
        (true, true) => None,
        (true, false) => Some(format!("a slot {name} stays, which may read it")),
        (false, _) => Some(elsewhere(config)),
    };
    plan.publication = publication::find(config, source, reader, &mut plan.kept).await?;
    if !relations.foreign.is_empty() {
        let foreign = relations.foreign.join(", ");
        plan.kept.push(format!("in the schema {schema} what walhook did not make: {foreign}"));
    }
    let has_others = has_others(sessions.state(), schema, &relations.tables, name).await?;
    plan.state = match (relations.tables.is_empty(), has_others, ours) {
        (true, _, _) | (false, true, false) => State::Nothing,
        (false, true, true) => State::Rows(relations),
        (false, false, _) => State::Tables(relations),
    };
    rights::check(config, sessions, &plan).await?;
    Ok(plan)
}

/// Why what has the pipeline's name is left, where the state does not know the pipeline.
fn elsewhere(config: &Config) -> String {
    format!(
        "the schema {} holds no state of the pipeline {}: `state.schema` or `state.url` is another than the \
         pipeline's own, or walhook did not make it",
        config.state.schema, config.source.slot
    )
}

/// Whether the state knows the pipeline: its slots are ours then.
async fn is_set_up(client: &Client, schema: &str, tables: &[&str], name: &str) -> Result<bool> {
    let s = quote_ident(schema);
    for table in ["checkpoint", "meta"].iter().filter(|table| tables.contains(table)) {
        let sql = format!("SELECT EXISTS (SELECT FROM {s}.{table} WHERE pipeline {EQ} $1)");
        let found = client.query_one(&sql, &[&name]).await;
        if found
            .with_context(|| format!("cannot read {schema}.{table} (--admin-url)"))?
            .try_get(0)?
        {
            return Ok(true);
        }
    }
    Ok(tables.contains(&"slots") && slots::is_recorded(client, schema, name).await?)
}

/// Whether the tables hold other pipelines.
async fn has_others(client: &Client, schema: &str, tables: &[&str], name: &str) -> Result<bool> {
    if !tables.contains(&"meta") {
        return Ok(false);
    }
    let s = quote_ident(schema);
    let sql = format!("SELECT EXISTS (SELECT FROM {s}.meta WHERE pipeline {NE} $1)");
    Ok(client.query_one(&sql, &[&name]).await?.try_get(0)?)
}

/// Drops what the plan says, or nothing.
async fn tear_down(config: &Config, sessions: &mut Sessions, plan: Plan) -> Result<TornDown> {
    let Sessions { source, replicating, state } = sessions;
    let mut done = TornDown { dropped: vec![], kept: plan.kept };
    // Slots know no transaction: they go when all else has gone as far as it can.
    let mut tx = source.transaction().await?;
    tx.batch_execute(LOCK_TIMEOUT).await?;
    let publication = &config.source.publication;
    if let Some(change) = plan.publication.to_sql(publication) {
        let failed = || format!("cannot run `{change}`; the publication's owner can (--admin-url)");
        tx.batch_execute(&change).await.with_context(failed)?;
    }
    let (mut dropped, mut kept) = (vec![], vec![]);
    let state_tx = match state {
        None => {
            drop_state(config, &mut tx, &plan.state, &mut dropped, &mut kept).await?;
            None
        }
        Some(state) => {
            let mut tx = state.transaction().await?;
            tx.batch_execute(LOCK_TIMEOUT).await?;
            drop_state(config, &mut tx, &plan.state, &mut dropped, &mut kept).await?;
            Some(tx)
        }
    };
    for slot in &plan.slots {
        let sql = "SELECT pg_catalog.pg_drop_replication_slot($1)";
        let drop = match replicating {
            Some(client) => client.execute(sql, &[slot]).await,
            None => tx.execute(sql, &[slot]).await,
        };
        drop.with_context(|| {
            let before = match done.dropped.as_slice() {
                [] => "; nothing was dropped".to_owned(),
                dropped => format!("; dropped already: {}", dropped.join(", ")),
            };
            format!("cannot drop the slot {slot}{before}")
        })?;
        done.dropped.push(format!("slot {slot}"));
    }
    tx.commit().await.context("the slots are dropped, the rest is not; run it again")?;
    done.dropped.extend(plan.publication.describe(config));
    if let Some(tx) = state_tx {
        tx.commit().await.context("the state is not dropped yet; run it again")?;
    }
    done.dropped.append(&mut dropped);
    done.kept.append(&mut kept);
    Ok(done)
}

/// Removes this pipeline's rows, or the tables and their schema.
async fn drop_state(
    config: &Config,
    tx: &mut Transaction<'_>,
    state: &State,
    dropped: &mut Vec<String>,
    kept: &mut Vec<String>,
) -> Result<()> {
    let name = &config.state.schema;
    let schema = quote_ident(name);
    let slot = &config.source.slot;
    let ours = match state {
        State::Nothing => return Ok(()),
        State::Rows(ours) => {
            for table in &ours.tables {
                let sql = format!("DELETE FROM {schema}.{table} WHERE pipeline {EQ} $1");
                tx.execute(&sql, &[slot]).await?;
            }
            dropped.push(format!("state of {slot} in {name}"));
            kept.push(format!("the schema {name}: it holds other pipelines"));
            return Ok(());
        }
        State::Tables(ours) => ours,
    };
    let views = ours.views.iter().map(|view| ("VIEW", view));
    for (kind, relation) in views.chain(ours.tables.iter().map(|table| ("TABLE", table))) {
        let drop = format!("DROP {kind} {schema}.{relation}");
        let failed = || {
            format!(
                "cannot drop {name}.{relation}, so nothing was dropped: what depends on it goes first"
            )
        };
        tx.batch_execute(&drop).await.with_context(failed)?;
        dropped.push(format!("{} {name}.{relation}", kind.to_lowercase()));
    }
    // What is not ours in it stays, and so does the schema then; `public` is never ours.
    if name == "public" {
        return Ok(());
    }
    let inner = tx.transaction().await?;
    match inner.batch_execute(&format!("DROP SCHEMA {schema}")).await {
        Ok(()) => {
            inner.commit().await?;
            dropped.push(format!("schema {name}"));
        }
        Err(error) if error.code() == Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST) => {
            kept.push(format!("the schema {name}: it holds what is not walhook's"));
        }
        Err(error) => return Err(error).with_context(|| format!("cannot drop the schema {name}")),
    }
    Ok(())
}
