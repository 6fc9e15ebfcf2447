//! `walhook deferred`: list, retry, discard.

use std::time::Duration;

use clap::builder::ValueParser;

use super::confirm::confirm_removal;
use super::filter::{Filters, Kind, Selection};
use super::table::{one_line, table};
use super::terminal::Terminal;
use super::{CommandResult, Common, Failure, job, print_json, print_line};
use crate::control::deferred::{
    self, Cursor, DeferredPage, Discarded, OfAccountView, Query, REASONS, WithoutEndpointView,
    cursor,
};
use crate::control::jobs::JobView;
use crate::control::{Databases, Progress};
use walhook_core::position::EventId;

/// List, retry or discard deliveries that wait for their next attempt in the state tables
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  walhook deferred list --account 42
  walhook deferred retry --endpoint 7         as soon as their turn comes, not at their time
  walhook deferred discard --replay 3 --yes")]
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
    filters: Filters<DeferredDeliveries>,
    /// Of this event
    #[arg(long, value_name = "ID")]
    event: Option<EventId>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    limit: i64,
    /// Continues an earlier list, which printed this
    #[arg(long, value_name = "PLACE", value_parser = cursor)]
    after: Option<Cursor>,
}

#[derive(Debug, clap::Args)]
struct Retry {
    #[command(flatten)]
    selection: Selection<DeferredDeliveries>,
    /// How long to wait for the end of the job; 0s does not wait
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

#[derive(Debug, clap::Args)]
struct Discard {
    #[command(flatten)]
    selection: Selection<DeferredDeliveries>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// How long to wait for the end of the job; 0s does not wait
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// Deferred deliveries, by the ids of their events.
#[derive(Debug, Clone, Default)]
struct DeferredDeliveries;

impl Kind for DeferredDeliveries {
    type Id = String;
    const ID: &'static str = "EVENT";
    const PLURAL: &'static str = "events";
    const IDS: &'static str = "Of these events, to whichever endpoint";
    const REASONS: &'static [&'static str] = &REASONS;

    fn parser() -> ValueParser {
        ValueParser::new(|id: &str| id.parse().map(|id: EventId| id.to_string()))
    }
}

/// Runs the subcommand.
///
/// # Errors
/// [`super::Failure::Usage`] when nothing is selected or nobody can be asked;
/// [`super::Failure::Failed`] when no row fits what is to be retried, or the job did not end within the
/// wait.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    let databases = Databases::of(&config);
    let terminal = Terminal::new();
    let mut tell = |p: Progress<'_>| terminal.tell(p);
    match args.command {
        Command::List(list) => {
            let page = deferred::list(databases, &list.to_query()?).await?;
            if common.json { print_json(&page) } else { print_line(&text(&page)) }
        }
        Command::Retry(Retry { selection, wait }) => {
            let filter = selection.to_filter()?;
            let job = deferred::retry(databases, filter, wait, &mut tell).await?;
            end(&job, wait, common.json)?;
            if common.json || !job.finished {
                return Ok(());
            }
            print_line("done: may be tried at once; `walhook deferred list` shows which still wait")
        }
        Command::Discard(Discard { selection, yes, wait }) => {
            let filter = selection.to_filter()?;
            let count = deferred::count(databases, &filter).await?;
            if count > 0 && !yes {
                confirm_removal(&format!("Remove {count} deferred deliveries for good?"))?;
            }
            match deferred::discard(databases, filter, wait, &mut tell).await? {
                Some(job) => end(&job, wait, common.json),
                // Nothing is left of what was to go, as asked.
                None if common.json => print_json(&Discarded { discarded: 0 }),
                None => print_line("discarded 0"),
            }
        }
    }
}

impl List {
    fn to_query(&self) -> Result<Query, Failure> {
        let mut filter = self.filters.to_filter()?;
        filter.ids = self.event.map(|event| vec![event.to_string()]);
        let after = self.after.clone().unwrap_or_default();
        Ok(Query { filter, after, limit: self.limit })
    }
}

/// What came of a job. Without a wait, having asked is all there is to do.
fn end(job: &JobView, wait: Duration, json: bool) -> CommandResult {
    job::print(job, json)?;
    if wait.is_zero() { Ok(()) } else { job::verdict(job) }
}

fn text(page: &DeferredPage) -> String {
    let mut text = rows(page);
    if let Some(waiting) = &page.without_endpoint {
        text.push('\n');
        text.push_str(&waiting_text(waiting));
    }
    text
}

fn rows(page: &DeferredPage) -> String {
    if page.deferred.is_empty() {
        return "no deferred delivery fits".to_owned();
    }
    let head = [
        "EVENT", "DEFERRED", "REASON", "ENDPOINT", "ACCOUNT", "TYPE", "ATTEMPTS", "NEXT", "DETAIL",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(page.deferred.iter().map(|row| {
        [
            row.event_id.clone(),
            row.deferred_at.clone(),
            row.reason.clone(),
            row.endpoint.clone(),
            row.account_id.clone(),
            row.event_type.clone(),
            row.attempts.to_string(),
            row.next_attempt_at.clone().unwrap_or_else(|| "-".to_owned()),
            one_line(&row.detail),
        ]
    }));
    let mut text = table(&rows);
    if let Some(after) = &page.next_after {
        text.push_str(&format!("\nthere are more: --after {after}"));
    }
    text
}

fn waiting_text(waiting: &WithoutEndpointView) -> String {
    let WithoutEndpointView { events, accounts, since, most, fix } = waiting;
    let named = |OfAccountView { account_id, events }: &OfAccountView| {
        format!("{}: {events}", one_line(account_id))
    };
    let mut named: Vec<String> = most.iter().map(named).collect();
    if *accounts > i64::try_from(most.len()).unwrap_or(i64::MAX) {
        named.push("others: fewer each".to_owned());
    }
    format!(
        "without an endpoint: {events} events wait (by account: {}), the oldest since {since}, because the \
         endpoints of {accounts} accounts cannot be looked up; {fix}",
        named.join(", "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::contract::sample;

    #[test]
    fn list_ends_with_what_waits_without_an_endpoint() {
        let page = sample::deferred_page();
        let shown = text(&page);
        for part in ["failed", "status 503", "2026-11-28T12:00:10.000000Z", "evt_"] {
            assert!(shown.contains(part), "{part} is not in:\n{shown}");
        }
        let last = shown.lines().last().unwrap();
        let begins = "without an endpoint: 14 events wait (by account: 40: 2, 50: 1, others: ";
        assert!(last.starts_with(begins), "{shown}");
        assert!(
            last.contains("of 13 accounts cannot") && last.contains("`walhook check`"),
            "{shown}"
        );
        let after = format!("there are more: --after {}", page.next_after.unwrap());
        assert!(shown.contains(&after), "{shown}");
        let empty = text(&sample::empty_deferred_page());
        assert_eq!(empty, "no deferred delivery fits");
    }
}
