//! What the types of [`Config`] alone cannot say: keys that must fit each other.

use std::collections::HashSet;

use super::{Config, Delivery, EventRule};
use crate::engine::catalog::TableName;
use crate::engine::condition::Condition;
use crate::engine::endpoint::Secret;

/// A slot's name may have 63 bytes; `_anchor` and the like must fit behind it.
const MAX_SLOT_NAME: usize = 63 - "_anchor".len();

/// PostgreSQL's `NAMEDATALEN - 1`.
const MAX_NAME: usize = 63;

/// The key, and what is wrong with its value.
pub(super) type Problem = (String, String);

/// Checks what needs no database.
pub(super) fn validate(config: &Config) -> Result<(), Problem> {
    let source = &config.source;
    url("source.url", Some(&source.url))?;
    url("source.replication_url", source.replication_url.as_ref())?;
    url("state.url", config.state.url.as_ref())?;
    slot(&source.slot)?;
    name("source.publication", &source.publication)?;
    name("state.schema", &config.state.schema)?;
    if config.state.schema.starts_with("pg_") {
        return problem("state.schema", "names that begin with pg_ belong to PostgreSQL");
    }
    table("endpoints.table", &config.endpoints.table)?;
    for watched in &config.endpoints.watch {
        table("endpoints.watch", watched)?;
    }
    if let Some(accounts) = &config.accounts {
        table("accounts.table", &accounts.table)?;
    }
    rules(&config.events)?;
    delivery(&config.delivery)?;
    at_least_one("scheduler.fast_slots", config.scheduler.fast_slots)?;
    at_least_one("scheduler.slow_slots", config.scheduler.slow_slots)?;
    if config.memory.limit.0 < 1 << 20 {
        return problem("memory.limit", "is below 1MiB, which one event may need");
    }
    let filter = crate::io::log::filter(&config.log);
    filter.map(drop).or_else(|error| problem("log.level", format!("{error:#}")))
}

fn problem<T>(key: &str, problem: impl Into<String>) -> Result<T, Problem> {
    Err((key.to_owned(), problem.into()))
}

fn url(key: &str, url: Option<&Secret>) -> Result<(), Problem> {
    let Some(url) = url else { return Ok(()) };
    crate::io::sql::session(url).map(drop).or_else(|error| problem(key, format!("{error:#}")))
}

fn slot(slot: &str) -> Result<(), Problem> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if (1..=MAX_SLOT_NAME).contains(&slot.len()) && slot.bytes().all(allowed) {
        return Ok(());
    }
    let rule = format!("has 1 to {MAX_SLOT_NAME} of the characters a-z, 0-9 and _");
    problem("source.slot", format!("{slot:?} is not a slot's name, which {rule}"))
}

fn name(key: &str, name: &str) -> Result<(), Problem> {
    if (1..=MAX_NAME).contains(&name.len()) && !name.contains(char::is_control) {
        return Ok(());
    }
    problem(key, format!("{name:?} is not a name; it needs 1 to {MAX_NAME} bytes"))
}

fn table(key: &str, text: &str) -> Result<(), Problem> {
    text.parse::<TableName>().map(drop).or_else(|error| problem(key, error.to_string()))
}

fn at_least_one(key: &str, number: u32) -> Result<(), Problem> {
    if number == 0 { problem(key, "must be at least 1") } else { Ok(()) }
}

fn delivery(delivery: &Delivery) -> Result<(), Problem> {
    let prefix = &delivery.header_prefix;
    let part = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if !(1..=64).contains(&prefix.len())
        || !prefix.bytes().all(part)
        || prefix.starts_with('-')
        || prefix.ends_with('-')
    {
        let rule = "letters, digits and inner hyphens, at most 64, such as walhook";
        return problem(
            "delivery.header_prefix",
            format!("{prefix:?} cannot begin a header; it takes {rule}"),
        );
    }
    if http::HeaderValue::from_str(&delivery.user_agent).is_err() {
        return problem("delivery.user_agent", "holds characters that a header cannot carry");
    }
    at_least_one("delivery.quick_attempts", delivery.quick_attempts)?;
    if delivery.connect_timeout.is_zero() {
        return problem("delivery.connect_timeout", "must be above 0s");
    }
    if delivery.timeout < delivery.connect_timeout {
        return problem(
            "delivery.timeout",
            "must be at least delivery.connect_timeout, which it includes",
        );
    }
    if delivery.retry_base.is_zero() {
        return problem(
            "delivery.retry_base",
            "must be above 0s, or retries would hammer a broken endpoint",
        );
    }
    if delivery.retry_base > delivery.retry_cap {
        return problem("delivery.retry_base", "must be at most delivery.retry_cap");
    }
    Ok(())
}

fn rules(rules: &[EventRule]) -> Result<(), Problem> {
    for (n, rule) in rules.iter().enumerate() {
        let key = |key: &str| format!("events[{n}].{key}");
        one_rule(rule, &key)?;
        // Of several rules of one type that match a change, the first wins.
        let shadow = rules.iter().take(n).find(|earlier| {
            earlier.event_type == rule.event_type
                && earlier.table == rule.table
                && earlier.when.as_ref().is_none_or(|when| rule.when.as_ref() == Some(when))
                && rule.on.iter().all(|on| earlier.on.contains(on))
        });
        if shadow.is_some() {
            let text = format!(
                "an earlier rule for {} takes every change that this one matches; remove one or narrow its `when`",
                rule.event_type
            );
            return problem(&key("type"), text);
        }
    }
    Ok(())
}

fn one_rule(rule: &EventRule, key: &dyn Fn(&str) -> String) -> Result<(), Problem> {
    let part = |b: u8| b.is_ascii_alphanumeric() || b"._-:/".contains(&b);
    if !(1..=128).contains(&rule.event_type.len()) || !rule.event_type.bytes().all(part) {
        let rule = "1 to 128 letters, digits and the characters . _ - : /";
        return problem(
            &key("type"),
            format!("an event type has {rule}, such as subscriber.updated"),
        );
    }
    table(&key("table"), &rule.table)?;
    if rule.on.is_empty() {
        return problem(&key("on"), "is empty; name at least one of insert, update, delete");
    }
    if rule.account.is_empty() {
        return problem(&key("account"), "is empty; name the column that holds the account");
    }
    if rule.when.as_ref().is_some_and(|when| when.trim().is_empty()) {
        return problem(&key("when"), "is empty; leave it out to match every change");
    }
    if let Some(Err(error)) = rule.when.as_deref().map(Condition::compile) {
        return problem(&key("when"), format!("rule {}: {error}", rule.event_type));
    }
    if rule.columns.is_empty() {
        return problem(&key("columns"), "is empty; name the columns to send, or write [\"*\"]");
    }
    let every = rule.columns.iter().any(|column| column == "*");
    if every && rule.columns.len() > 1 {
        return problem(&key("columns"), "holds * beside names; write one or the other");
    }
    let mut names = HashSet::new();
    for column in &rule.columns {
        let name = rule.rename.get(column).unwrap_or(column);
        if !names.insert(name) {
            return problem(&key("columns"), format!("two columns are sent as {name}"));
        }
    }
    let unsent = rule.rename.keys().find(|column| !every && !rule.columns.contains(column));
    match unsent {
        Some(column) => problem(&key("rename"), format!("{column} is not among `columns`")),
        None => Ok(()),
    }
}
