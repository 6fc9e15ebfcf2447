//! `walhook dead-letters`: list, show, retry, discard.

use std::time::Duration;

use clap::builder::ValueParser;

use super::confirm::confirm_removal;
use super::filter::{Filters, Kind, Selection};
use super::table::{attempts, one_line, table};
use super::terminal::Terminal;
use super::{CommandResult, Common, job, print_json, print_line};
use crate::config::Config;
use crate::control::dead_letters::{
    self, DeadLetterPage, DeadLetterView, Query, REASONS, RetryView, WholeDeadLetter,
};
use crate::control::deferred::Discarded;
use crate::control::gaps::GapView;
use crate::control::{Databases, Progress};

/// List, show, retry or discard deliveries that ended without success
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  walhook dead-letters list --reason exhausted --since 1d
  walhook dead-letters show 4711                with the body and the last attempts
  walhook dead-letters retry --endpoint 7
  walhook dead-letters discard --account 42 --yes")]
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
    filters: Filters<DeadLetters>,
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
    selection: Selection<DeadLetters>,
    /// How long to wait for the end of the job; 0s does not wait
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

#[derive(Debug, clap::Args)]
struct Discard {
    #[command(flatten)]
    selection: Selection<DeadLetters>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Dead letters, by the ids of their table.
#[derive(Debug, Clone, Default)]
pub(super) struct DeadLetters;

impl Kind for DeadLetters {
    type Id = i64;
    const ID: &'static str = "ID";
    const PLURAL: &'static str = "ids";
    const IDS: &'static str = "Their ids";
    const REASONS: &'static [&'static str] = &REASONS;

    fn parser() -> ValueParser {
        clap::value_parser!(i64).into()
    }
}

/// Runs the subcommand.
///
/// # Errors
/// [`super::Failure::Usage`] when nothing is selected or nobody can be asked;
/// [`super::Failure::Failed`] when there is no such dead letter, when a retry failed again or did not end
/// within the wait.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    let databases = Databases::of(&config);
    match args.command {
        Command::List(List { filters, limit, after }) => {
            let query = Query { filter: filters.to_filter()?, after, limit };
            let page = dead_letters::list(databases, &query).await?;
            if common.json { print_json(&page) } else { print_line(&text(&page)) }
        }
        Command::Show { id } => {
            let letter = dead_letters::show(databases, id).await?;
            if common.json { print_json(&letter) } else { print_line(&whole_text(&letter)) }
        }
        Command::Retry(asked) => retry(&config, &asked, common.json).await,
        Command::Discard(asked) => discard(databases, &asked, common.json).await,
    }
}

async fn retry(config: &Config, asked: &Retry, json: bool) -> CommandResult {
    let filter = asked.selection.to_filter()?;
    let terminal = Terminal::new();
    let mut tell = |p: Progress<'_>| terminal.tell(p);
    let retried = dead_letters::retry(config, filter, asked.wait, &mut tell).await?;
    let RetryView { job, errors } = &retried;
    if json {
        print_json(&retried)?;
    } else {
        job::print(job, false)?;
        errors.iter().try_for_each(|letter| print_line(&failed_line(letter, &job.created_at)))?;
        let more = job.failed.saturating_sub(i64::try_from(errors.len()).unwrap_or(i64::MAX));
        if more > 0 {
            print_line(&format!("and {more} more; `walhook dead-letters list` shows them"))?;
        }
    }
    // Without a wait, having asked is all there is to do.
    if asked.wait.is_zero() { Ok(()) } else { job::verdict(job) }
}

async fn discard(databases: Databases<'_>, asked: &Discard, json: bool) -> CommandResult {
    let filter = asked.selection.to_filter()?;
    let count = dead_letters::count(databases, &filter).await?;
    if count > 0 && !asked.yes {
        confirm_removal(&format!("Remove {count} dead letters for good?"))?;
    }
    let done = match count {
        0 => Discarded { discarded: 0 },
        _ => dead_letters::discard(databases, &filter).await?,
    };
    if json { print_json(&done) } else { print_line(&format!("discarded {}", done.discarded)) }
}

fn text(page: &DeadLetterPage) -> String {
    if page.dead_letters.is_empty() && page.beyond.is_empty() {
        return "no dead letter fits".to_owned();
    }
    let head = ["ID", "STORED", "REASON", "ENDPOINT", "ACCOUNT", "TYPE", "DETAIL"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(page.dead_letters.iter().map(|letter| {
        [
            letter.id.to_string(),
            letter.died_at.clone(),
            letter.reason.clone(),
            letter.endpoint.as_deref().unwrap_or("-").to_owned(),
            letter.account_id.clone(),
            letter.event_type.clone(),
            one_line(&letter.detail),
        ]
    }));
    let mut text = table(&rows);
    if let Some(after) = page.next_after {
        text.push_str(&format!("\nthere are more: --after {after}"));
    }
    for GapView { id, endpoint, account, removed, skipped, reason, .. } in &page.beyond {
        let of = |id: &Option<String>| match id.as_deref() {
            None | Some("") => "-".to_owned(),
            Some(id) => one_line(id),
        };
        text.push_str(&format!(
            "\nand {} more of endpoint {} of account {}, counted in gap {id} (`walhook gaps list`): {}",
            removed + skipped,
            of(endpoint),
            of(account),
            one_line(reason)
        ));
    }
    text
}

/// What a retry failed by.
/// What came of a retry that was asked for then.
fn failed_line(letter: &DeadLetterView, asked_at: &str) -> String {
    let DeadLetterView { id, endpoint, event_id, attempts, detail, tried_at, .. } = letter;
    let endpoint = endpoint.as_deref().unwrap_or("-");
    let tried = match tried_at.as_str() < asked_at {
        true => "not sent".to_owned(),
        false => format!("after {attempts} attempts"),
    };
    one_line(&format!(
        "dead letter {id} (endpoint {endpoint}, event {event_id}), {tried}: {detail}"
    ))
}

fn whole_text(whole: &WholeDeadLetter) -> String {
    let letter = &whole.letter;
    let none = || "none".to_owned();
    let rows = [
        ("id", letter.id.to_string()),
        ("event", letter.event_id.clone()),
        ("type", letter.event_type.clone()),
        ("account", letter.account_id.clone()),
        ("endpoint", letter.endpoint.clone().unwrap_or_else(none)),
        ("reason", letter.reason.clone()),
        ("detail", letter.detail.clone()),
        ("attempts", letter.attempts.to_string()),
        ("last status", letter.last_status.map_or_else(none, |s| s.to_string())),
        ("stored", letter.died_at.clone()),
        ("last tried", letter.tried_at.clone()),
        ("tried", attempts(&whole.history, &" ".repeat(13))),
        ("committed", whole.committed_at.clone()),
        ("position", format!("{} in {}", whole.change_lsn, whole.commit_lsn)),
        ("body", whole.body.get().to_owned()),
    ];
    // The attempts stand on lines of their own, each escaped by itself.
    let value = |name: &str, value: &str| match name {
        "tried" => value.to_owned(),
        _ => one_line(value),
    };
    let rows: Vec<String> =
        rows.iter().map(|(name, text)| format!("{name:<12} {}", value(name, text))).collect();
    rows.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::contract::sample;

    #[test]
    fn list_ends_with_what_is_only_counted() {
        let shown = text(&sample::dead_letter_page());
        let last = shown.lines().last().unwrap();
        assert!(
            last.starts_with("and 7 more of endpoint 7 of account 42, counted in gap 3"),
            "{shown}"
        );
        assert!(shown.contains("\nthere are more: --after 2\n"), "{shown}");
    }

    #[test]
    fn show_prints_position_attempts_and_body() {
        let shown = whole_text(&sample::whole_dead_letter());
        for part in ["0/20F in 0/210", "\"data\":{\"id\":1}", "503      12 ms  status 503"] {
            assert!(shown.contains(part), "{part} is not in:\n{shown}");
        }
    }

    #[test]
    fn command_line_is_consistent() {
        #[derive(Debug, clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: Args,
        }
        <Cli as clap::CommandFactory>::command().debug_assert();
        let parse = |line: &str| <Cli as clap::Parser>::try_parse_from(line.split(' '));
        parse("x list --type a.b --reason exhausted --since 2h --limit 5 --after 9").unwrap();
        parse("x retry 1 2 --wait 5s").unwrap();
        parse("x discard --account 7 --yes").unwrap();
        assert!(parse("x list --reason boredom").is_err());
        assert!(parse("x show").is_err());
    }
}
