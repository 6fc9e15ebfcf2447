//! Stopping an endpoint for a while, and starting it again: the leader does both, so each leaves a job.

use std::time::Duration;

use anyhow::{Context, anyhow};
use serde_json::json;

use crate::cli::status::open_state;
use crate::cli::{CommandResult, Failure, job, print_json, print_line};
use crate::config::Config;
use walhook_postgres::lookup::{self, Lookups, Which};
use walhook_state::{Ask, EndpointStop, JobState};

#[derive(Debug, clap::Args)]
pub(super) struct Pause {
    /// Its id
    id: String,
    /// Why, for those who look at `endpoints list`
    #[arg(long, default_value = "by an operator")]
    reason: String,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, clap::Args)]
pub(super) struct Resume {
    /// Its id
    id: String,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, clap::Args)]
struct Wait {
    /// How long to wait until the leader has done it; 0s does not wait
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

pub(super) async fn pause(config: &Config, asked: Pause, json: bool) -> CommandResult {
    let Pause { id, reason, wait } = asked;
    ensure_known(config, &id).await?;
    let ask = Ask::PauseEndpoint(EndpointStop { endpoint: id.clone(), reason });
    let done = format!(
        "paused endpoint {id}: its deliveries are deferred until `walhook endpoints resume {id}`"
    );
    let already = format!("endpoint {id} is paused already");
    carry_out(config, &ask, &id, wait.wait, [done, already], json).await
}

pub(super) async fn resume(config: &Config, asked: Resume, json: bool) -> CommandResult {
    let Resume { id, wait } = asked;
    ensure_known(config, &id).await?;
    let reason = String::new();
    let ask = Ask::ResumeEndpoint(EndpointStop { endpoint: id.clone(), reason });
    let done = format!(
        "resumed endpoint {id}: what was deferred comes back. What became dead letters while it was \
         switched off stays so until `walhook dead-letters retry --endpoint {id}`"
    );
    let already = format!("endpoint {id} was neither paused nor switched off");
    carry_out(config, &ask, &id, wait.wait, [done, already], json).await
}

/// One that the customer has removed may still be stopped.
async fn ensure_known(config: &Config, id: &str) -> Result<(), Failure> {
    let source = lookup::connect(config.lookups(), "walhook endpoints").await;
    let source = source.context("source.url")?;
    let ids = [id.to_owned()];
    let which = Which { ids: Some(&ids), limit: 1, ..Which::default() };
    let rows = Lookups::of(config.lookups()).list(&source, which).await;
    if !rows.context("cannot read the endpoint table")?.is_empty()
        || !open_state(config).await?.standings(Some(&ids), "", 1).await?.is_empty()
    {
        return Ok(());
    }
    let table = &config.endpoints.table;
    Err(anyhow!("{table} has no endpoint {id}; `walhook endpoints list` shows them").into())
}

/// Leaves the job and says what came of it: the one text, or that it was so already.
async fn carry_out(
    config: &Config,
    ask: &Ask,
    id: &str,
    wait: Duration,
    [done, already]: [String; 2],
    json: bool,
) -> CommandResult {
    let job = job::ask(config, ask, wait).await?.context("nothing is to be done")?;
    let changed = job.done > 0;
    if json {
        let JobState { id: job, finished, .. } = job;
        print_json(
            &json!({ "endpoint": id, "job": job, "finished": finished, "changed": changed }),
        )?;
    } else if job.finished && job.error.is_none() {
        print_line(if changed { &done } else { &already })?;
    } else {
        job::print(&job, json)?;
    }
    if wait.is_zero() { Ok(()) } else { job::verdict(&job) }
}
