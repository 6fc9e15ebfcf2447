//! Stopping an endpoint for a while, and starting it again: the leader does both, so each leaves a job.

use std::time::Duration;

use anyhow::{Context, anyhow};
use serde::Serialize;

use crate::config::Config;
use crate::control::jobs::{self, JobView};
use crate::control::{Databases, Failure, Tell};
use walhook_postgres::lookup::{self, Lookups, Which};
use walhook_state::{Ask, EndpointStop};

/// What came of pausing or resuming.
#[derive(Debug, Serialize)]
pub(crate) struct StopView {
    /// Whether it was otherwise before.
    pub(crate) changed: bool,
    /// How many deferred deliveries it drops to resume an endpoint whose row is gone; null: it drops none.
    pub(crate) dropped: Option<i64>,
    /// The endpoint's id.
    pub(crate) endpoint: String,
    /// Whether the leader has done it.
    pub(crate) finished: bool,
    /// The job's id.
    pub(crate) job: i64,
    /// Whether its row is switched off: nothing is sent, whatever walhook's own stops are.
    #[serde(skip)]
    pub(crate) is_row_off: bool,
    /// The job itself.
    #[serde(skip)]
    pub(crate) work: JobView,
}

/// Has the leader send nothing to an endpoint until it is resumed, and waits for that, at most `wait`.
///
/// # Errors
/// When nobody knows the endpoint, or a database does not answer.
pub(crate) async fn pause(
    config: &Config,
    id: &str,
    reason: String,
    wait: Duration,
    tell: Tell<'_>,
) -> Result<StopView, Failure> {
    find(config, id).await?;
    let ask = Ask::PauseEndpoint(EndpointStop { endpoint: id.to_owned(), reason });
    carry_out(config, id, &ask, wait, tell).await
}

/// Has the leader send to an endpoint again, whether an operator paused it or walhook switched it off, and
/// waits for that, at most `wait`.
///
/// # Errors
/// When nobody knows the endpoint, or a database does not answer.
pub(crate) async fn resume(
    config: &Config,
    id: &str,
    wait: Duration,
    tell: Tell<'_>,
) -> Result<StopView, Failure> {
    let found = find(config, id).await?;
    let reason = String::new();
    let ask = Ask::ResumeEndpoint(EndpointStop { endpoint: id.to_owned(), reason });
    let done = carry_out(config, id, &ask, wait, tell).await?;
    let dropped = match found {
        Found::Removed { deferred } if done.changed => Some(deferred),
        Found::Removed { .. } | Found::Row { .. } => None,
    };
    let is_row_off = matches!(found, Found::Row { enabled: false });
    Ok(StopView { dropped, is_row_off, ..done })
}

async fn carry_out(
    config: &Config,
    id: &str,
    ask: &Ask,
    wait: Duration,
    tell: Tell<'_>,
) -> Result<StopView, Failure> {
    let work = jobs::ask(Databases::of(config), ask, wait, tell).await?;
    let work = work.context("nothing is to be done")?;
    let (changed, finished, job) = (work.done > 0, work.finished, work.id);
    let (endpoint, dropped, is_row_off) = (id.to_owned(), None, false);
    Ok(StopView { changed, dropped, endpoint, finished, job, is_row_off, work })
}

/// Where an endpoint is known.
enum Found {
    /// In the endpoint table.
    Row { enabled: bool },
    /// In the state tables alone: the customer has removed it, and it may still be stopped.
    Removed { deferred: i64 },
}

async fn find(config: &Config, id: &str) -> Result<Found, Failure> {
    let source = lookup::connect(config.lookups(), "walhook endpoints").await;
    let source = source.context("source.url")?;
    let ids = [id.to_owned()];
    let which = Which { ids: Some(&ids), limit: 1, ..Which::default() };
    let rows = Lookups::of(config.lookups()).list(&source, which).await;
    if let Some(row) = rows.context("cannot read the endpoint table")?.first() {
        return Ok(Found::Row { enabled: row.enabled });
    }
    let state = Databases::of(config).open_state().await?;
    if let Some(standing) = state.standings(Some(&ids), "", 1).await?.first() {
        return Ok(Found::Removed { deferred: standing.deferred });
    }
    let table = &config.endpoints.table;
    Err(anyhow!("{table} has no endpoint {id}; `walhook endpoints list` shows them").into())
}
