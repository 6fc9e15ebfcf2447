//! The list: the customer's table and what the state tables know, side by side.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Serialize;
use url::Url;

use crate::config::Config;
use crate::control::{Databases, Failure};
use walhook_core::event::rfc3339;
use walhook_postgres::lookup::{self, Listed, Lookups, Which};
use walhook_postgres::sql::Connection;
use walhook_process::clock::unix_us;
use walhook_state::{Standing, StateStore};

/// Characters of an endpoint's event types that are shown.
const LONGEST_NAMED: usize = 64;

/// Endpoints in trouble that are read at once where those of one account are wanted: each time the state tables are read
/// for all of them.
const LOOKED_THROUGH: i64 = 1000;

/// What is to be listed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query {
    /// Those of this account.
    pub(crate) account: Option<String>,
    /// Only endpoints that are stopped or fail, or have deferred deliveries or dead letters.
    pub(crate) trouble: bool,
    /// So many at most.
    pub(crate) limit: i64,
    /// Those with ids above this one.
    pub(crate) after: String,
}

/// Why nothing is sent to an endpoint that its owner has switched off.
const NOT_ENABLED: &str = "its row is not enabled";

/// One page of the list.
#[derive(Debug, Serialize)]
pub(crate) struct EndpointPage {
    /// By their ids' bytes.
    pub(crate) endpoints: Vec<EndpointView>,
    /// Where the next page begins; null where this is the last.
    pub(crate) next_after: Option<String>,
}

/// An endpoint as it is shown.
#[derive(Debug, Serialize)]
pub(crate) struct EndpointView {
    /// Its id.
    pub(crate) id: String,
    /// The account that owns it.
    pub(crate) account_id: Option<String>,
    /// Of the URL, which may hold secrets, this alone. Null when there is no such row, or no host in it.
    pub(crate) host: Option<String>,
    /// Null when there is no such row.
    pub(crate) enabled: Option<bool>,
    /// `removed`: there is no such row in the endpoint table, but something in the state tables.
    /// `invalid`: the row cannot be used, as the reason says.
    pub(crate) state: String,
    /// Why nothing, or little, is sent to it.
    pub(crate) reason: Option<String>,
    /// Since when it is stopped or fails.
    pub(crate) since: Option<String>,
    /// Its deferred deliveries.
    pub(crate) deferred: i64,
    /// Its dead letters.
    pub(crate) dead_letters: i64,
    /// What the last request failed by, while it fails.
    pub(crate) last_error: Option<String>,
    /// When.
    pub(crate) last_error_at: Option<String>,
    /// How many have failed in a row.
    pub(crate) failed: i64,
}

/// Lists endpoints by their ids.
///
/// # Errors
/// When a database does not answer, or the endpoint table cannot be read.
pub(crate) async fn list(config: &Config, asked: &Query) -> Result<EndpointPage, Failure> {
    let state = Databases::of(config).open_state().await?;
    let source = lookup::connect(config.lookups(), "walhook endpoints").await;
    let source = source.context("source.url")?;
    let limit = usize::try_from(asked.limit).unwrap_or(usize::MAX);
    let is_of_account = |line: &EndpointView| {
        asked.account.as_deref().is_none_or(|account| line.account_id.as_deref() == Some(account))
    };
    // Whose an endpoint in trouble is only its row says: then it is looked for among many.
    let least = if asked.trouble && asked.account.is_some() { LOOKED_THROUGH } else { 0 };
    // One more than asked for tells whether there are more.
    let page = asked.limit.max(least).saturating_add(1);
    let (mut shown, mut after) = (Vec::new(), asked.after.clone());
    loop {
        let lines = lines(config, &source, &state, asked, &after, page).await?;
        let is_last = i64::try_from(lines.len()).is_ok_and(|read| read < page);
        for (id, (row, standing)) in lines {
            after.clone_from(&id);
            shown.push(view(config, id, row, standing));
        }
        shown.retain(is_of_account);
        if is_last || shown.len() > limit {
            break;
        }
    }
    let is_cut = shown.len() > limit;
    shown.truncate(limit);
    let next_after = shown.last().map(|line| line.id.clone()).filter(|_| is_cut);
    Ok(EndpointPage { endpoints: shown, next_after })
}

/// So many at most behind `after`, with the row and what is known of each, by their ids' bytes.
async fn lines(
    config: &Config,
    source: &Connection,
    state: &StateStore,
    asked: &Query,
    after: &str,
    page: i64,
) -> Result<BTreeMap<String, (Option<Listed>, Option<Standing>)>, Failure> {
    let (rows, standings) = if asked.trouble {
        let standings = state.standings(None, after, page).await?;
        let ids: Vec<String> = standings.iter().map(|s| s.endpoint.clone()).collect();
        (rows(config, source, Some(&ids), None, "", page).await?, standings)
    } else {
        let account = asked.account.as_deref();
        let rows = rows(config, source, None, account, after, page).await?;
        let ids: Vec<String> = rows.iter().map(|row| row.id.clone()).collect();
        (rows, state.standings(Some(&ids), "", page).await?)
    };
    let mut lines: BTreeMap<String, (Option<Listed>, Option<Standing>)> =
        rows.into_iter().map(|row| (row.id.clone(), (Some(row), None))).collect();
    for standing in standings {
        let id = standing.endpoint.clone();
        lines.entry(id).or_default().1 = Some(standing);
    }
    Ok(lines)
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

fn view(config: &Config, id: String, row: Option<Listed>, s: Option<Standing>) -> EndpointView {
    let unsent = row.as_ref().and_then(|row| match row.enabled {
        true => wants_nothing(config, row),
        false => Some(NOT_ENABLED.to_owned()),
    });
    let view = EndpointView::new(id, row, s);
    EndpointView { reason: view.reason.or(unsent), ..view }
}

/// What an endpoint wants of which no rule makes anything; `None`: it wants something.
fn wants_nothing(config: &Config, row: &Listed) -> Option<String> {
    let is_made = |pattern: &String| config.events.iter().any(|rule| rule.makes(pattern));
    if row.event_types.is_empty() || row.event_types.iter().any(is_made) {
        return None;
    }
    let types = row.event_types.join(", ").chars().take(LONGEST_NAMED).collect::<String>();
    Some(format!("no rule makes an event of a type that it wants: {types}"))
}

impl EndpointView {
    fn new(id: String, row: Option<Listed>, standing: Option<Standing>) -> Self {
        let standing = standing.unwrap_or_else(|| Standing {
            endpoint: id.clone(),
            state: "ok".to_owned(),
            ..Standing::default()
        });
        let reason = why(&standing, unix_us());
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
fn why(standing: &Standing, now_us: i64) -> Option<String> {
    const OFTEN: &str = "it failed too often, and is tried again";
    let reason = || match (&*standing.state, standing.open_until_us) {
        ("breaker_open", Some(until)) if until > now_us => {
            Some(format!("{OFTEN} at {}", rfc3339(until)))
        }
        // Nothing is stored for a probe.
        ("breaker_open", _) => Some(format!("{OFTEN} now and then")),
        ("failing", _) if standing.failed == 1 => Some("its last request failed".to_owned()),
        ("failing", _) if standing.failed > 1 => {
            Some(format!("its last {} requests failed", standing.failed))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fixture::Fixture;
    use crate::control::setup;

    #[tokio::test]
    async fn endpoints_in_trouble_of_an_account_are_found_behind_any_number_of_others() {
        let fixture = Fixture::start().await;
        let config = fixture.config("");
        setup::quietly(&config).await.unwrap();
        // 1100 to 2199 are of one account, but for two of the last.
        let of_two = "CASE WHEN n < 2198 THEN 1 ELSE 2 END";
        fixture
            .run(&format!(
                "INSERT INTO webhooks OVERRIDING SYSTEM VALUE
                     SELECT n, {of_two}, 'http://h/', '{{*}}', '' FROM generate_series(1100, 2199) n;
                 INSERT INTO walhook.endpoint_state (pipeline, endpoint, reason, disabled_at, kind)
                     SELECT 'walhook', n, '', now(), 'paused' FROM generate_series(1100, 2199) n"
            ))
            .await;
        let listed = async |account: Option<&str>, after: &str| {
            let account = account.map(str::to_owned);
            let asked = Query { account, trouble: true, limit: 1, after: after.to_owned() };
            let page = list(&config, &asked).await.unwrap();
            let ids: Vec<String> = page.endpoints.into_iter().map(|line| line.id).collect();
            (ids.join(" "), page.next_after)
        };
        let cut = |id: &str| (id.to_owned(), Some(id.to_owned()));
        assert_eq!(listed(Some("2"), "").await, cut("2198"));
        assert_eq!(listed(Some("2"), "2198").await, ("2199".to_owned(), None));
        assert_eq!(listed(Some("1"), "1105").await, cut("1106"));
        assert_eq!(listed(Some("3"), "").await, (String::new(), None));
        assert_eq!(listed(None, "").await, cut("1100"));
    }

    #[test]
    fn reason_says_what_holds_an_endpoint_back_and_when_it_is_tried_again() {
        let standing = |state: &str, failed, open_until_us| Standing {
            state: state.to_owned(),
            failed,
            open_until_us,
            ..Standing::default()
        };
        let (past, coming) = (Some(9_000_000), Some(11_000_000));
        for (standing, expected) in [
            (standing("ok", 0, None), None),
            (standing("failing", 1, None), Some("its last request failed")),
            (standing("failing", 3, None), Some("its last 3 requests failed")),
            (
                standing("breaker_open", 5, past),
                Some("it failed too often, and is tried again now and then"),
            ),
            (
                standing("breaker_open", 5, coming),
                Some("it failed too often, and is tried again at 1970-01-01T00:00:11.000000Z"),
            ),
        ] {
            assert_eq!(why(&standing, 10_000_000).as_deref(), expected);
        }
    }

    #[test]
    fn of_a_url_only_host_and_port_are_shown() {
        for (url, shown) in [
            ("https://user:hush@hooks.example/hush?token=hush", Some("hooks.example")),
            ("http://hooks.example:8080/", Some("hooks.example:8080")),
            ("http://[::1]:8080/", Some("[::1]:8080")),
            ("http://[hush", None),
            ("data:hush", None),
        ] {
            assert_eq!(host(url).as_deref(), shown, "{url}");
        }
    }
}
