//! What the types of [`Config`] alone cannot say: keys that must fit each other.

mod rule;
mod workers;

use std::time::Duration;

use super::{Config, Delivery, Egress, Log, Memory, Notify, Scheduler, Source, WorkerConfig};
use walhook_core::catalog::TableName;
use walhook_http::egress::Proxy;
use walhook_postgres::pg::{Conninfo, DatabaseUrl};
use walhook_sign as sign;

/// A slot's name may have 63 bytes; `_anchor` and the like must fit behind it.
const MAX_SLOT_NAME: usize = 63 - "_anchor".len();

/// Feedback is sent three times as often, and may be late on a busy machine.
const MIN_LEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// PostgreSQL's `NAMEDATALEN - 1`.
const MAX_NAME: usize = 63;

/// Time in which somebody may look at a dead letter.
const LEAST_RETENTION: Duration = Duration::from_secs(3600);

/// The empty tables take about a megabyte.
const LEAST_STATE_SIZE: u64 = 8 << 20;

/// PostgreSQL's bounds of `logical_decoding_work_mem`: 64 kB, and what 2^31 - 1 of them are.
const STREAM_ABOVE: std::ops::RangeInclusive<u64> = (64 << 10)..=(((1 << 31) - 1) << 10);

/// Some tens of thousands of deliveries.
const LEAST_LOG_SIZE: u64 = 1 << 20;

/// Less would store in the state database what its endpoint has long taken.
const LEAST_HOLD: Duration = Duration::from_secs(1);

/// Likewise.
const LEAST_RETAINED: u64 = 1 << 20;

/// Sixteen blocks of the spool: less would turn streaming off with the first transaction that needs it.
const LEAST_SPOOL: u64 = 1 << 20;

/// The key, and what is wrong with its value.
pub(super) type Problem = (String, String);

/// Checks what needs no database.
pub(super) fn validate(config: &Config) -> Result<(), Problem> {
    let source = &config.source;
    url("source.url", Some(&source.url))?;
    url("source.replication_url", source.replication_url.as_ref())?;
    url("state.url", config.state.url.as_ref())?;
    slot(&source.slot)?;
    if source.lease_timeout < MIN_LEASE_TIMEOUT {
        let problem_text =
            format!("is below {MIN_LEASE_TIMEOUT:?}: a busy leader would lose the slot");
        return problem("source.lease_timeout", problem_text);
    }
    name("source.publication", &source.publication)?;
    streamed(source)?;
    name("state.schema", &config.state.schema)?;
    if config.state.schema.starts_with("pg_") {
        return problem("state.schema", "names that begin with pg_ belong to PostgreSQL");
    }
    if config.state.retention < LEAST_RETENTION {
        return problem("state.retention", "is below 1h; a dead letter must be there to be seen");
    }
    if config.state.max_size.0 < LEAST_STATE_SIZE {
        return problem("state.max_size", "is below 8MiB; a few deferred deliveries would fill it");
    }
    if config.deliveries.retention < LEAST_RETENTION {
        return problem("deliveries.retention", "is below 1h; a line must be there to be seen");
    }
    if config.deliveries.max_size.0 < LEAST_LOG_SIZE {
        return problem(
            "deliveries.max_size",
            "is below 1MiB; \"none\" for deliveries.keep keeps nothing",
        );
    }
    if config.wal.max_hold < LEAST_HOLD {
        return problem("wal.max_hold", "is below 1s; what is on its way would be stored first");
    }
    if config.wal.max_retained.0 < LEAST_RETAINED {
        return problem("wal.max_retained", "is below 1MiB; every delivery would be stored first");
    }
    table("endpoints.table", &config.endpoints.table)?;
    for watched in &config.endpoints.watch {
        table("endpoints.watch", watched)?;
    }
    search_path("endpoints.search_path", &config.endpoints.search_path)?;
    if let Some(accounts) = &config.accounts {
        table("accounts.table", &accounts.table)?;
    }
    // What rules may take depends on what memory there is.
    sending(&config.scheduler, &config.memory, &config.egress)?;
    rule::rules(&config.events, config.memory.limit)?;
    if config.state.url.is_none() {
        rule::own_tables(&config.events, &config.state.schema)?;
    }
    delivery(&config.delivery)?;
    if let Some(workers) = &config.workers {
        workers::workers(workers)?;
    }
    notify(&config.notify)?;
    log(&config.log)
}

/// Checks what a worker needs.
pub(super) fn validate_worker(config: &WorkerConfig) -> Result<(), Problem> {
    slot(config.pipeline())?;
    if config.connect_timeout().is_zero() {
        return problem("delivery.connect_timeout", "must be above 0s");
    }
    sending(&config.scheduler, &config.memory, &config.egress)?;
    workers::workers(&config.workers)?;
    log(&config.log)
}

/// What whoever sends requests needs.
fn sending(scheduler: &Scheduler, memory: &Memory, egress: &Egress) -> Result<(), Problem> {
    at_least_one("scheduler.fast_slots", scheduler.fast_slots)?;
    at_least_one("scheduler.slow_slots", scheduler.slow_slots)?;
    if memory.limit.0 < 1 << 20 {
        return problem("memory.limit", "is below 1MiB, which one event may need");
    }
    match egress.proxy.as_ref().map(Proxy::parse) {
        Some(Err(error)) => problem("egress.proxy", error.to_string()),
        Some(Ok(_)) | None => Ok(()),
    }
}

fn log(log: &Log) -> Result<(), Problem> {
    log.filter().map(drop).or_else(|error| problem("log.level", format!("{error:#}")))
}

fn problem<T>(key: &str, problem: impl Into<String>) -> Result<T, Problem> {
    Err((key.to_owned(), problem.into()))
}

fn url(key: &str, url: Option<&DatabaseUrl>) -> Result<(), Problem> {
    let Some(url) = url else { return Ok(()) };
    Conninfo::parse(url).map(drop).or_else(|error| problem(key, error.to_string()))
}

fn slot(slot: &str) -> Result<(), Problem> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if (1..=MAX_SLOT_NAME).contains(&slot.len()) && slot.bytes().all(allowed) {
        return Ok(());
    }
    let rule = format!("has 1 to {MAX_SLOT_NAME} of the characters a-z, 0-9 and _");
    problem("source.slot", format!("{slot:?} is not a slot's name, which {rule}"))
}

/// Whether there is such a directory is seen where it is used: without it, nothing but memory is.
fn streamed(source: &Source) -> Result<(), Problem> {
    if !STREAM_ABOVE.contains(&source.stream_above.0) {
        let rule = "is what PostgreSQL takes as logical_decoding_work_mem: 64KiB to 2047GiB";
        return problem(
            "source.stream_above",
            format!("{} is not in bounds; it {rule}", source.stream_above),
        );
    }
    if source.spool_max.0 < LEAST_SPOOL {
        let fix = "leave source.spool out, or set source.streaming to \"off\", to have no spool";
        return problem("source.spool_max", format!("is below 1MiB; {fix}"));
    }
    if source.spool.as_ref().is_some_and(|spool| !spool.is_absolute()) {
        return problem("source.spool", "is no absolute path such as /var/cache/walhook");
    }
    Ok(())
}

fn name(key: &str, name: &str) -> Result<(), Problem> {
    if (1..=MAX_NAME).contains(&name.len()) && !name.contains(char::is_control) {
        return Ok(());
    }
    problem(key, format!("{name:?} is not a name; it needs 1 to {MAX_NAME} bytes"))
}

/// Names in between commas, as SQL writes them. Empty is refused: it would be no list that says what it
/// means.
fn search_path(key: &str, list: &str) -> Result<(), Problem> {
    let bare = |name: &str| {
        !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || ['_', '$'].contains(&c))
    };
    // In between quotation marks anything; what is in front of and behind them has none.
    let mut outside = String::new();
    for (at, part) in list.split('"').enumerate() {
        match at % 2 {
            0 => outside.push_str(part),
            _ => outside.push('q'),
        }
    }
    let closed = list.matches('"').count().is_multiple_of(2) && !list.contains(char::is_control);
    if closed && outside.split(',').all(|name| bare(name.trim())) {
        return Ok(());
    }
    problem(key, format!("{list:?} is no list of schemas, such as \"pg_catalog, pg_temp\""))
}

fn table(key: &str, text: &str) -> Result<(), Problem> {
    text.parse::<TableName>().map(drop).or_else(|error| problem(key, error.to_string()))
}

fn at_least_one(key: &str, number: u32) -> Result<(), Problem> {
    if number == 0 { problem(key, "must be at least 1") } else { Ok(()) }
}

/// Whether it may be contacted is for `walhook check` to say.
fn notify(notify: &Notify) -> Result<(), Problem> {
    let Some(url) = &notify.url else {
        return match notify.secret {
            Some(_) => problem("notify.secret", "signs nothing without notify.url; set that too"),
            None => Ok(()),
        };
    };
    let parsed = url::Url::parse(url.expose());
    if !parsed.is_ok_and(|url| url.has_host() && matches!(url.scheme(), "http" | "https")) {
        let rule = "is no URL such as https://ops.example.com/walhook";
        return problem("notify.url", rule);
    }
    let Some(secret) = &notify.secret else {
        return problem("notify.secret", "is missing: notices are signed; write whsec_ and base64");
    };
    let signed = sign::sign("", 0, b"", std::slice::from_ref(secret));
    signed.map(drop).or_else(|error| problem("notify.secret", error.to_string()))
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
