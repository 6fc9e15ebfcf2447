//! `walhook dead-letters`: list, show, retry, discard.
//!
//! Listing and discarding need the state tables only. A retry is the leader's to send: the command
//! leaves a job for it and watches.

mod print;
mod select;

#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::{Context, anyhow};
use serde_json::json;

use crate::config::Config;
use walhook_state::{Ask, DeadLetterFilter, StateStore};

use super::confirm::confirm_removal;
use super::status::open_state;
use super::{CommandResult, Common, Failure, job, print_json, print_line};
use select::{Filters, Selection};

/// Of retries that failed again, so many are shown with their errors.
const ERRORS_SHOWN: i64 = 20;

/// List, show, retry or discard deliveries that ended without success
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List dead letters, by id
    List(List),
    /// Show one with its event's body
    Show {
        /// Its id
        id: i64,
    },
    /// Have the leader send them again, outside of their rows' order
    Retry(Retry),
    /// Remove them for good
    Discard(Discard),
}

#[derive(Debug, Default, clap::Args)]
struct List {
    #[command(flatten)]
    filters: Filters,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    limit: i64,
    /// Only ids above this one: continues an earlier list
    #[arg(long, value_name = "ID", default_value_t = 0)]
    after: i64,
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
}

/// Runs the subcommand.
///
/// # Errors
/// [`Failure::Usage`] when nothing is selected or nobody can be asked; [`Failure::Failed`] when
/// there is no such dead letter, when a retry failed again or did not end within the wait.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    match args.command {
        Command::List(list) => run_list(&config, &list, common.json).await,
        Command::Show { id } => show(&config, id, common.json).await,
        Command::Retry(retry) => run_retry(&config, &retry, common.json).await,
        Command::Discard(discard) => run_discard(&config, &discard, common.json).await,
    }
}

async fn run_list(config: &Config, list: &List, json: bool) -> CommandResult {
    let page = page(&open_state(config).await?, list).await?;
    if json { print_json(&page.to_json()) } else { print_line(&page.to_text()) }
}

async fn page(state: &StateStore, list: &List) -> Result<print::Page, Failure> {
    // One more than asked for tells whether there are more.
    let mut letters =
        state.dead_letters(&list.filters.to_filter(), list.after, list.limit + 1).await?;
    let limit = usize::try_from(list.limit).unwrap_or(usize::MAX);
    let more = letters.len() > limit;
    letters.truncate(limit);
    let next_after = letters.last().map(|letter| letter.id).filter(|_| more);
    // What is counted only, where the list is of everything, or of an endpoint or account.
    let filter = list.filters.to_filter();
    let of_queue = DeadLetterFilter {
        endpoint: filter.endpoint.clone(),
        account: filter.account.clone(),
        ..DeadLetterFilter::default()
    };
    let mut beyond = if filter == of_queue { state.gaps(false).await? } else { Vec::new() };
    beyond.retain(|gap| {
        let fits = |wanted: &Option<String>, of: &Option<String>| wanted.is_none() || wanted == of;
        gap.dead_letters
            && fits(&filter.endpoint, &gap.endpoint)
            && fits(&filter.account, &gap.account)
    });
    Ok(print::Page { letters, next_after, beyond })
}

async fn show(config: &Config, id: i64, json: bool) -> CommandResult {
    let filter = DeadLetterFilter { ids: Some(vec![id]), ..DeadLetterFilter::default() };
    let letters = open_state(config).await?.dead_letters(&filter, 0, 1).await?;
    let letter = letters.first().ok_or_else(|| anyhow!("there is no dead letter {id}"))?;
    if json { print_json(&print::whole(letter)?) } else { print_line(&print::whole_text(letter)) }
}

async fn run_retry(config: &Config, retry: &Retry, json: bool) -> CommandResult {
    let ask = Ask::RetryDeadLetters(retry.selection.to_filter()?);
    let job = job::ask(config, &ask, retry.wait).await?;
    let job = job.context("no dead letter with an endpoint fits")?;
    let failed = match job.failed {
        0 => Vec::new(),
        _ => open_state(config).await?.retried_in_vain(job.id, ERRORS_SHOWN).await?,
    };
    if json {
        print_json(&print::retry_json(&job, &failed))?;
    } else {
        job::print(&job, false)?;
        failed.iter().try_for_each(|letter| print_line(&print::failed_line(letter)))?;
        let more = job.failed.saturating_sub(i64::try_from(failed.len()).unwrap_or(i64::MAX));
        if more > 0 {
            print_line(&format!("and {more} more; `walhook dead-letters list` shows them"))?;
        }
    }
    // Without a wait, having asked is all there is to do.
    if retry.wait.is_zero() { Ok(()) } else { job::verdict(&job) }
}

async fn run_discard(config: &Config, discard: &Discard, json: bool) -> CommandResult {
    let filter = discard.selection.to_filter()?;
    let mut state = open_state(config).await?;
    let count = state.count_dead_letters(&filter).await?;
    if count > 0 && !discard.yes {
        confirm_removal(&format!("Remove {count} dead letters for good?"))?;
    }
    let discarded = if count > 0 { state.discard_dead_letters(&filter).await? } else { 0 };
    if json {
        print_json(&json!({ "discarded": discarded }))
    } else {
        print_line(&format!("discarded {discarded}"))
    }
}
