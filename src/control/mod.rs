//! What an operator may ask and order: each query and each command once.
//!
//! ```text
//! command line ─┐                       ┌─► state tables (rows, jobs for the leader)
//!               ├─► control: function ──┼─► source (slots, catalog, endpoint table)
//! HTTP, later ──┘      │                └─► the instance that runs here (admin server)
//!                      ▼
//!                 a view: plain data, whose JSON is contract
//! ```
//!
//! A function takes the settings that it needs and what is asked; it returns a view. A view is a small type
//! of its own, never a row of a table: times are RFC 3339 in UTC, positions are LSNs as PostgreSQL writes
//! them, other units stand last in a field's name, and what is not known is null. Its JSON is contract and
//! held by a snapshot beside it in `contract/`: a field may be added, none renamed or removed.
//!
//! Nothing here reads the command line, prints, or asks whether to go on. A command that gives something up
//! has a plan, which says what, and which whoever calls shows before it is carried out. What takes a while
//! says how far it is by [`Tell`].
//!
//! To add one: a function and its view in the file of its noun, a snapshot in `contract.rs`, a command in
//! `cli` that prints it.

mod branch;
pub(crate) mod check;
pub(crate) mod checkpoint;
pub(crate) mod config;
#[cfg(test)]
pub(crate) mod contract;
pub(crate) mod dead_letters;
pub(crate) mod deferred;
pub(crate) mod endpoints;
pub(crate) mod event_type;
pub(crate) mod events;
mod failure;
#[cfg(test)]
pub(crate) mod fixture;
pub(crate) mod gaps;
pub(crate) mod health;
mod holder;
pub(crate) mod idle_pipelines;
mod instance;
pub(crate) mod jobs;
mod progress;
pub(crate) mod recover;
pub(crate) mod replay;
pub(crate) mod setup;
#[cfg(test)]
pub(crate) mod state_fixture;
pub(crate) mod status;
pub(crate) mod teardown;
mod text;
pub(crate) mod time;
pub(crate) mod upgrade;
pub(crate) mod workers;

pub use failure::Failure;
pub(crate) use progress::{Progress, Tell};
pub(crate) use text::bytes;

use std::time::Duration;

use anyhow::ensure;

use crate::config::{Config, DeliveryMode, Source, State};
use crate::server::prepared;
use walhook_core::halt::{self, Halt};
use walhook_core::lsn::Lsn;
use walhook_postgres::pg::Conninfo;
use walhook_postgres::slot::{self, Slot};
use walhook_postgres::source;
use walhook_postgres::sql::Connection;
use walhook_state::{SessionSettings, StateError, StateStore};

pub(crate) use walhook_state::Filter;

/// The settings that lead to a pipeline: its source with the slot that names it, and its state tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Databases<'a> {
    source: &'a Source,
    state: &'a State,
}

impl<'a> Databases<'a> {
    /// Those of a configuration.
    pub(crate) fn of(config: &'a Config) -> Self {
        Self { source: &config.source, state: &config.state }
    }

    /// The slot's name, which is the pipeline's.
    pub(crate) fn pipeline(self) -> &'a str {
        &self.source.slot
    }

    /// Opens the state tables.
    async fn open_state(self) -> Result<StateStore, StateError> {
        let url = self.state.url.as_ref().unwrap_or(&self.source.url);
        StateStore::open(url, &self.state.schema, &self.source.slot).await
    }

    /// The same, in a session that waits for a lock no longer than that.
    async fn open_state_within(self, lock_timeout: Duration) -> Result<StateStore, StateError> {
        let url = self.state.url.as_ref().unwrap_or(&self.source.url);
        let settings =
            SessionSettings { lock_timeout: Some(lock_timeout), ..SessionSettings::default() };
        StateStore::open_with(url, &self.state.schema, &self.source.slot, settings).await
    }

    /// Opens the source; `name` is the session's in `pg_stat_activity`.
    async fn open_source(self, name: &str) -> anyhow::Result<Connection> {
        Ok(Connection::open(&self.source.url, name).await?)
    }

    /// Reads the slot from the source.
    async fn read_slot(self) -> anyhow::Result<Option<Slot>> {
        let source = self.open_source(READER).await?;
        Ok(slot::read(&source, &self.source.slot).await?)
    }

    /// Why the source is not that of the state tables, where it is another.
    async fn elsewhere(self, state: &StateStore) -> anyhow::Result<Option<Halt>> {
        let source = self.open_source(READER).await?;
        let found = source::identity(&source, &Conninfo::parse(&self.source.url)?).await?;
        Ok(halt::check_source(&found, &state.source_identity().await?).err())
    }

    /// The checkpoint of a pipeline that may be prepared for an upgrade; `slot` was read before.
    async fn checkpoint(self, state: &StateStore, slot: Option<&Slot>) -> anyhow::Result<Lsn> {
        let source = self.open_source(READER).await?;
        Ok(prepared::checkpoint(state, &source, &self.source.slot, slot).await?)
    }
}

/// What is sent again, or to try an endpoint, would otherwise only be logged, and count as done.
///
/// # Errors
/// When nothing is sent from here.
pub(crate) fn ensure_live(config: &Config) -> anyhow::Result<()> {
    let is_live = config.delivery.mode == DeliveryMode::Live;
    ensure!(is_live, "delivery.mode is \"log\": nothing is sent from here");
    Ok(())
}

/// The name of sessions that only look.
const READER: &str = "walhook status";

/// Whether a leader streams from the slot now.
///
/// # Errors
/// When the source does not answer.
pub(crate) async fn leader_runs(databases: Databases<'_>) -> anyhow::Result<bool> {
    Ok(databases.read_slot().await?.is_some_and(|slot| slot.active_pid.is_some()))
}
