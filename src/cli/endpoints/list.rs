//! The list: the customer's table and what the state tables know, side by side.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Serialize;
use url::Url;

use crate::cli::status::open_state;
use crate::cli::table::{one_line, table};
use crate::cli::{CommandResult, Failure, print_json, print_line};
use crate::config::Config;
use walhook_core::event::rfc3339;
use walhook_postgres::lookup::{self, Listed, Lookups, Which};
use walhook_postgres::sql::Connection;
use walhook_state::Standing;

#[derive(Debug, Default, clap::Args)]
pub(super) struct List {
    /// Of this account
    #[arg(long, value_name = "ID")]
    pub(super) account: Option<String>,
    /// Only endpoints that are stopped or fail, or have deferred deliveries or dead letters
    #[arg(long)]
    pub(super) trouble: bool,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    pub(super) limit: i64,
    /// Only ids above this one: continues an earlier list
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub(super) after: String,
}

/// One page of the list.
#[derive(Debug, Serialize)]
pub(super) struct Page {
    pub(super) endpoints: Vec<Line>,
    /// Where the next page begins, if there is one.
    pub(super) next_after: Option<String>,
}

/// An endpoint as it is shown.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    id: String,
    account_id: Option<String>,
    /// Of the URL, which may hold secrets, this alone. Null when there is no such row, or no host in it.
    host: Option<String>,
    /// Null when there is no such row.
    enabled: Option<bool>,
    /// `removed`: there is no such row in the endpoint table, but something in the state tables.
    /// `invalid`: the row cannot be used, as the reason says.
    state: String,
    reason: Option<String>,
    since: Option<String>,
    deferred: i64,
    dead_letters: i64,
    /// What the last request failed by, and when, and how many have failed in a row: while it fails.
    last_error: Option<String>,
    last_error_at: Option<String>,
    failed: i64,
}

pub(super) async fn run(config: &Config, asked: &List, json: bool) -> CommandResult {
    let page = page(config, asked).await?;
    if json { print_json(&page) } else { print_line(&page.to_text()) }
}

pub(super) async fn page(config: &Config, asked: &List) -> Result<Page, Failure> {
    let state = open_state(config).await?;
    let source = lookup::connect(config.lookups(), "walhook endpoints").await;
    let source = source.context("source.url")?;
    let limit = usize::try_from(asked.limit).unwrap_or(usize::MAX);
    // One more than asked for tells whether there are more.
    let (rows, standings) = if asked.trouble {
        let standings = state.standings(None, &asked.after, asked.limit + 1).await?;
        let ids: Vec<String> = standings.iter().map(|s| s.endpoint.clone()).collect();
        (rows(config, &source, Some(&ids), None, "", asked.limit + 1).await?, standings)
    } else {
        let account = asked.account.as_deref();
        let rows = rows(config, &source, None, account, &asked.after, asked.limit + 1).await?;
        let ids: Vec<String> = rows.iter().map(|row| row.id.clone()).collect();
        (rows, state.standings(Some(&ids), "", asked.limit + 1).await?)
    };
    let mut lines: BTreeMap<String, (Option<Listed>, Option<Standing>)> =
        rows.into_iter().map(|row| (row.id.clone(), (Some(row), None))).collect();
    for standing in standings {
        let id = standing.endpoint.clone();
        lines.entry(id).or_default().1 = Some(standing);
    }
    let more = lines.len() > limit;
    let of_account = |line: &Line| {
        asked.account.as_deref().is_none_or(|account| line.account_id.as_deref() == Some(account))
    };
    let shown: Vec<Line> =
        lines.into_iter().take(limit).map(|(id, (row, s))| Line::new(id, row, s)).collect();
    let next_after = shown.last().map(|line| line.id.clone()).filter(|_| more);
    Ok(Page { endpoints: shown.into_iter().filter(of_account).collect(), next_after })
}

async fn rows(
    config: &Config,
    source: &Connection,
    ids: Option<&[String]>,
    account: Option<&str>,
    after: &str,
    limit: i64,
) -> Result<Vec<Listed>, Failure> {
    let which = Which { ids, account, after, limit };
    let listed = Lookups::of(config.lookups()).list(source, which).await;
    Ok(listed.context("cannot read the endpoint table")?)
}

impl Line {
    fn new(id: String, row: Option<Listed>, standing: Option<Standing>) -> Self {
        let standing = standing.unwrap_or_else(|| Standing {
            endpoint: id.clone(),
            state: "ok".to_owned(),
            ..Standing::default()
        });
        let reason = why(&standing);
        let Standing { account, since_us, deferred, dead_letters, state, failed, .. } = standing;
        let Standing { last_error, last_error_us, .. } = standing;
        let invalid = row.as_ref().filter(|row| row.enabled).and_then(|row| row.invalid.clone());
        let (state, reason) = match (&row, invalid) {
            (None, _) => ("removed".to_owned(), reason),
            // What an operator or walhook has decided says more, but for what is only waiting.
            (Some(_), Some(why)) if reason.is_none() => ("invalid".to_owned(), Some(why)),
            (Some(_), _) => (state, reason),
        };
        Self {
            id,
            account_id: row.as_ref().map(|row| row.account.clone()).or(account),
            host: row.as_ref().and_then(|row| host(&row.url)),
            enabled: row.as_ref().map(|row| row.enabled),
            state,
            reason,
            since: since_us.map(rfc3339),
            deferred,
            dead_letters,
            last_error,
            last_error_at: last_error_us.map(rfc3339),
            failed,
        }
    }
}

/// Why nothing, or little, is sent to it.
fn why(standing: &Standing) -> Option<String> {
    let reason = || match (&*standing.state, standing.open_until_us) {
        ("breaker_open", Some(until)) => {
            Some(format!("it failed too often, and is tried again at {}", rfc3339(until)))
        }
        ("failing", _) if standing.failed > 0 => {
            Some(format!("{} requests have failed in a row", standing.failed))
        }
        _ => None,
    };
    standing.reason.clone().or_else(reason)
}

/// Host and port of a URL: its user, path and query may be secret.
pub(super) fn host(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

impl Page {
    pub(super) fn to_text(&self) -> String {
        let mut text = if self.endpoints.is_empty() {
            "no endpoint fits".to_owned()
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
            rows.extend(self.endpoints.iter().map(|line| {
                let or_dash =
                    |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
                let enabled = line.enabled.map_or("-", |on| if on { "yes" } else { "no" });
                [
                    line.id.clone(),
                    or_dash(&line.account_id),
                    or_dash(&line.host),
                    enabled.to_owned(),
                    line.state.clone(),
                    or_dash(&line.since),
                    line.deferred.to_string(),
                    line.dead_letters.to_string(),
                    one_line(line.reason.as_deref().unwrap_or("-")),
                    match (&line.last_error_at, &line.last_error) {
                        (Some(at), Some(error)) => one_line(&format!("{at} {error}")),
                        _ => "-".to_owned(),
                    },
                ]
            }));
            table(&rows)
        };
        if let Some(after) = &self.next_after {
            text.push_str(&format!("\nthere are more: --after {after}"));
        }
        text
    }
}
