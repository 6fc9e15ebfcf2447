//! `walhook deferred`: list, retry, discard.
//!
//! Listing needs the state tables only. The leader knows its rows, in memory too, so all else is for
//! it to do: the command leaves a job and watches.

mod print;
mod select;

#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use walhook_state::{Ask, DeferredCursor, JobState, StateStore};

use super::confirm::confirm_removal;
use super::status::open_state;
use super::{CommandResult, Common, Failure, job, print_json, print_line};
use select::{Filters, Selection, cursor};

/// List, retry or discard deliveries that wait for their next attempt in the state tables
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List deferred deliveries, those of the oldest commits first
    List(List),
    /// Have the leader try them as soon as their turn comes, whatever their next attempt's time
    Retry(Retry),
    /// Have the leader remove them for good
    Discard(Discard),
}

#[derive(Debug, Default, clap::Args)]
struct List {
    #[command(flatten)]
    filters: Filters,
    /// Of this event
    #[arg(long, value_name = "ID")]
    event: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    limit: i64,
    /// Continues an earlier list, which printed this
    #[arg(long, value_name = "PLACE", value_parser = cursor)]
    after: Option<DeferredCursor>,
}

#[derive(Debug, clap::Args)]
struct Retry {
    #[command(flatten)]
    selection: Selection,
    /// How long to wait for the end of the job; 0s does not wait
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

#[derive(Debug, clap::Args)]
struct Discard {
    #[command(flatten)]
    selection: Selection,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// How long to wait for the end of the job; 0s does not wait
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// Runs the subcommand.
///
/// # Errors
/// [`Failure::Usage`] when nothing is selected or nobody can be asked; [`Failure::Failed`] when no
/// row fits what is to be retried, or the job did not end within the wait.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    match args.command {
        Command::List(list) => {
            let page = page(&open_state(&config).await?, &list).await?;
            if common.json { print_json(&page) } else { print_line(&page.to_text()) }
        }
        Command::Retry(Retry { selection, wait }) => {
            let ask = Ask::RetryDeferred(selection.to_filter()?);
            let job = job::ask(&config, &ask, wait).await?;
            end(&job.context("no deferred delivery fits")?, wait, common.json)
        }
        Command::Discard(Discard { selection, yes, wait }) => {
            let filter = selection.to_filter()?;
            let count = open_state(&config).await?.count_deferred(&filter).await?;
            if count > 0 && !yes {
                confirm_removal(&format!("Remove {count} deferred deliveries for good?"))?;
            }
            let ask = Ask::DiscardDeferred(filter);
            match job::ask(&config, &ask, wait).await? {
                Some(job) => end(&job, wait, common.json),
                // Nothing is left of what was to go, as asked.
                None if common.json => print_json(&json!({ "discarded": 0 })),
                None => print_line("discarded 0"),
            }
        }
    }
}

async fn page(state: &StateStore, list: &List) -> Result<print::Page, Failure> {
    let mut filter = list.filters.to_filter();
    filter.ids = list.event.clone().map(|event| vec![event]);
    let after = list.after.clone().unwrap_or_default();
    // One more than asked for tells whether there are more.
    let mut deferred = state.deferred(&filter, &after, list.limit + 1).await?;
    let limit = usize::try_from(list.limit).unwrap_or(usize::MAX);
    let more = deferred.len() > limit;
    deferred.truncate(limit);
    let next_after = deferred.last().map(select::place).filter(|_| more);
    let without_endpoint = state.without_endpoint(&filter).await?.map(print::Waiting::new);
    Ok(print::Page { deferred, next_after, without_endpoint })
}

/// What came of a job. Without a wait, having asked is all there is to do.
fn end(job: &JobState, wait: Duration, json: bool) -> CommandResult {
    job::print(job, json)?;
    if wait.is_zero() { Ok(()) } else { job::verdict(job) }
}
