//! `walhook endpoints`: list, test, pause, resume.

use std::time::Duration;

use anyhow::anyhow;

use super::table::{one_line, table};
use super::terminal::Terminal;
use super::{CommandResult, Common, job, print_json, print_line};
use crate::config::Config;
use crate::control::endpoints::{self, EndpointPage, EndpointView, ProbeView, Query, StopView};

/// List endpoints with how they stand, send one a test event, pause or resume one
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  walhook endpoints list --account 42
  walhook endpoints test 7                     sends it an event of type walhook.test, now
  walhook endpoints pause 7 --reason 'moves to another host'
  walhook endpoints resume 7")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List endpoints, by id: host, account, state, deferred deliveries, dead letters
    List(List),
    /// Send an endpoint a signed event of type webhook.test from this machine, and show what it answers
    Test {
        /// Its id
        #[arg(allow_negative_numbers = true)]
        id: String,
    },
    /// Have the leader send nothing to an endpoint: its deliveries wait in order until it is resumed
    Pause(Pause),
    /// Have the leader send to an endpoint again, whether an operator paused it or walhook switched it off
    Resume(Resume),
}

#[derive(Debug, clap::Args)]
struct List {
    /// Of this account
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    account: Option<String>,
    /// Only endpoints that are stopped or fail, or have deferred deliveries or dead letters
    #[arg(long)]
    trouble: bool,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    limit: i64,
    /// Only ids above this one: continues an earlier list
    #[arg(
        long,
        value_name = "ID",
        default_value = "",
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    after: String,
}

#[derive(Debug, clap::Args)]
struct Pause {
    /// Its id
    #[arg(allow_negative_numbers = true)]
    id: String,
    /// Why, for those who look at `endpoints list`
    #[arg(long, default_value = "by an operator")]
    reason: String,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, clap::Args)]
struct Resume {
    /// Its id
    #[arg(allow_negative_numbers = true)]
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

/// Runs the subcommand.
///
/// # Errors
/// [`Failure::Failed`](super::Failure::Failed) when a database does not answer, when there is no such
/// endpoint, when it does not take the test event, or when the leader did not act within the wait.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    match args.command {
        Command::List(List { account, trouble, limit, after }) => {
            let asked = Query { account, trouble, limit, after };
            let page = endpoints::list(&config, &asked).await?;
            if common.json { print_json(&page) } else { print_line(&page_text(&page, &asked)) }
        }
        Command::Test { id } => {
            let probe = endpoints::probe(&config, &id).await?;
            test(&probe, config.workers.is_some(), common.json)
        }
        Command::Pause(asked) => pause(&config, asked, common.json).await,
        Command::Resume(asked) => resume(&config, asked, common.json).await,
    }
}

async fn pause(config: &Config, asked: Pause, json: bool) -> CommandResult {
    let Pause { id, reason, wait: Wait { wait } } = asked;
    let terminal = Terminal::new();
    let done = endpoints::pause(config, &id, reason, wait, &mut |p| terminal.tell(p)).await?;
    let text = if done.changed {
        format!(
            "paused endpoint {id}: its deliveries are deferred until `walhook endpoints resume {id}`"
        )
    } else {
        format!("endpoint {id} is paused already")
    };
    end(&done, &text, wait, json)
}

async fn resume(config: &Config, asked: Resume, json: bool) -> CommandResult {
    let Resume { id, wait: Wait { wait } } = asked;
    let terminal = Terminal::new();
    let done = endpoints::resume(config, &id, wait, &mut |p| terminal.tell(p)).await?;
    let text = if let Some(dropped) = done.dropped {
        format!(
            "resumed endpoint {id}, whose row is gone: {dropped} deferred deliveries are dropped; `walhook events \
             list --outcome dropped --endpoint {id}` lists them"
        )
    } else if done.changed {
        format!(
            "resumed endpoint {id}: what was deferred comes back. What became dead letters while it was \
             switched off stays so until `walhook dead-letters retry --endpoint {id}`"
        )
    } else {
        format!("endpoint {id} was neither paused nor switched off by walhook")
    };
    let table = &config.endpoints.table;
    let text = match done.is_row_off {
        true => format!(
            "{text}. Nothing is sent to it all the same: its row in {table} is not enabled; switch that on"
        ),
        false => text,
    };
    end(&done, &text, wait, json)
}

/// Says what came of it: the text, where it was done.
fn end(stop: &StopView, text: &str, wait: Duration, json: bool) -> CommandResult {
    if json {
        print_json(stop)?;
    } else if stop.finished && stop.work.error.is_none() {
        print_line(text)?;
    } else {
        job::print(&stop.work, json)?;
    }
    if wait.is_zero() { Ok(()) } else { job::verdict(&stop.work) }
}

/// `workers`: whether there are some, which it does not leave from.
fn test(probe: &ProbeView, workers: bool, json: bool) -> CommandResult {
    if json {
        print_json(probe)?;
    } else {
        let none = || "none".to_owned();
        let from = workers.then(|| ("sent from", "this machine, not from a worker".to_owned()));
        let rows = [
            ("endpoint", format!("{} of account {}", probe.endpoint, probe.account_id)),
            ("host", probe.host.clone().unwrap_or_else(none)),
            ("event", probe.event_id.clone()),
            ("status", probe.status.map_or_else(none, |status| status.to_string())),
            ("latency", format!("{} ms", probe.latency_ms)),
            ("answer", probe.answer.clone().unwrap_or_else(none)),
        ];
        for (name, value) in rows.into_iter().chain(from) {
            print_line(&format!("{name:<10} {}", one_line(&value)))?;
        }
    }
    if probe.delivered {
        return Ok(());
    }
    let error = probe.error.as_deref().unwrap_or_default();
    Err(anyhow!("the endpoint did not take it: {error}").into())
}

fn page_text(page: &EndpointPage, asked: &Query) -> String {
    let mut text = if page.endpoints.is_empty() {
        match &asked.account {
            Some(account) if !asked.trouble && asked.after.is_empty() => {
                format!("account {account} has no endpoint")
            }
            _ => "no endpoint fits".to_owned(),
        }
    } else {
        let head = [
            "ID",
            "ACCOUNT",
            "HOST",
            "ENABLED",
            "STATE",
            "SINCE",
            "DEFERRED",
            "DEAD",
            "REASON",
            "LAST ERROR",
        ];
        let mut rows = vec![head.map(str::to_owned)];
        rows.extend(page.endpoints.iter().map(row));
        table(&rows)
    };
    if let Some(after) = &page.next_after {
        text.push_str(&format!("\nthere are more: --after {after}"));
    }
    text
}

fn row(endpoint: &EndpointView) -> [String; 10] {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let enabled = endpoint.enabled.map_or("-", |on| if on { "yes" } else { "no" });
    [
        endpoint.id.clone(),
        or_dash(&endpoint.account_id),
        or_dash(&endpoint.host),
        enabled.to_owned(),
        endpoint.state.clone(),
        or_dash(&endpoint.since),
        endpoint.deferred.to_string(),
        endpoint.dead_letters.to_string(),
        one_line(endpoint.reason.as_deref().unwrap_or("-")),
        match (&endpoint.last_error_at, &endpoint.last_error) {
            (Some(at), Some(error)) => one_line(&format!("{at} {error}")),
            _ => "-".to_owned(),
        },
    ]
}
