//! Is everything in place? Changes nothing.
//!
//! Every finding is one line: pass, warn or fail, and where something is wrong, the fix.

mod accounts;
mod age;
mod connection;
mod cost;
mod coverage;
mod failover;
mod look_up;
mod notify;
mod pooler;
mod proxy;
mod role;
mod server;
mod sessions;
mod spool;
mod tables;
#[cfg(test)]
mod tests;
#[cfg(feature = "workers")]
mod workers;

use std::fmt;

use anyhow::Result;
use serde::Serialize;
use tokio_postgres::Client;

use super::Databases;
#[cfg(feature = "workers")]
use crate::config::WorkerConfig;
use crate::config::{Config, DeliveryMode, LocalSending};
use walhook_core::escape::one_line;
use walhook_core::halt::Halt;
use walhook_postgres::coverage::{Coverage, Moment};
use walhook_postgres::preflight::Fault;
use walhook_postgres::slot;
use walhook_postgres::source;
use walhook_postgres::sql::{ConnectError, Connection};
use walhook_process::descriptors;

use server::Checkpoint;
pub(super) use server::session;

const NAME: &str = "walhook check";

/// The newest major version that the tests run on.
const NEWEST_TESTED: i32 = 18;

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct CheckView {
    /// How many findings are failures.
    pub(crate) failures: usize,
    /// In the order in which they were made.
    pub(crate) findings: Vec<Finding>,
    /// How many findings are warnings.
    pub(crate) warnings: usize,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Pass,
    /// Works, but something will hurt one day.
    Warn,
    /// Does not work.
    Fail,
}

/// One finding.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Finding {
    /// How bad it is.
    pub(crate) verdict: Verdict,
    /// What was looked at.
    pub(crate) what: String,
    /// What was found.
    pub(crate) finding: String,
    /// What to do about it; left out where nothing is to be done, or the finding says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fix: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Pass => "pass",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        };
        let fix = self.fix.as_ref().map(|fix| format!("; {fix}")).unwrap_or_default();
        f.write_str(&one_line(&format!("{verdict}  {}: {}{fix}", self.what, self.finding)))
    }
}

/// The findings in the order in which they were made.
#[derive(Debug, Default)]
struct Report(Vec<Finding>);

impl Report {
    fn add(&mut self, verdict: Verdict, what: &str, finding: String, fix: Option<String>) {
        self.0.push(Finding { verdict, what: what.to_owned(), finding, fix });
    }

    fn pass(&mut self, what: &str, finding: impl Into<String>) {
        self.add(Verdict::Pass, what, finding.into(), None);
    }

    fn warn(&mut self, what: &str, finding: impl Into<String>, fix: impl Into<String>) {
        self.add(Verdict::Warn, what, finding.into(), Some(fix.into()));
    }

    fn fail(&mut self, what: &str, finding: impl Into<String>, fix: impl Into<String>) {
        self.add(Verdict::Fail, what, finding.into(), Some(fix.into()));
    }

    /// There is no session; the error names cause and fix.
    fn fail_to_connect(&mut self, what: &str, key: &str, error: &ConnectError) {
        self.add(Verdict::Fail, what, format!("{key}: {error}"), None);
    }

    fn fault(&mut self, fault: Fault) {
        let Fault { what, finding, fix } = fault;
        self.add(Verdict::Fail, &what, finding, Some(fix));
    }

    /// A failure whose text names the fix already.
    fn halt(&mut self, what: &str, halt: &Halt) {
        self.add(Verdict::Fail, what, halt.to_string(), None);
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.0.iter().filter(|finding| finding.verdict == verdict).count()
    }

    fn view(self) -> CheckView {
        let (failures, warnings) = (self.count(Verdict::Fail), self.count(Verdict::Warn));
        CheckView { failures, findings: self.0, warnings }
    }
}

/// Checks.
pub(crate) async fn run(config: &Config) -> CheckView {
    let mut report = Report::default();
    descriptors::raise();
    let scheduler = &config.scheduler;
    let slots = (scheduler.fast_slots, scheduler.slow_slots);
    open_files(slots, descriptors::limit(), &mut report);
    spool::check(config, &mut report);
    // What was found until then is told too.
    if let Err(error) = check(config, &mut report).await {
        report.add(Verdict::Fail, "check", format!("ended before its end: {error:#}"), None);
    }
    report.view()
}

/// Checks, as a worker of this configuration: it has no database.
#[cfg(feature = "workers")]
pub(crate) async fn run_worker(config: &WorkerConfig) -> CheckView {
    let mut report = Report::default();
    descriptors::raise();
    let slots = (config.scheduler.fast_slots, config.scheduler.slow_slots);
    open_files(slots, descriptors::limit(), &mut report);
    workers::worker::check(config, &mut report).await;
    report.view()
}

/// Whether a process with the limit of this one could fill all slots. The service has its own.
fn open_files(slots: (u32, u32), limit: usize, report: &mut Report) {
    let needed = descriptors::needed(slots);
    if limit >= needed {
        report.pass("open files", format!("the limit here is {limit}; all slots need {needed}"));
        return;
    }
    let (fast, slow) = descriptors::fitting_slots(limit, slots);
    let finding = format!(
        "the limit here is {limit}, and all slots need {needed}: at most {fast} fast and {slow} slow \
         requests would be sent at once"
    );
    report.warn("open files", finding, descriptors::advice(needed));
}

async fn check(config: &Config, report: &mut Report) -> Result<()> {
    notify::check(config, report).await;
    #[cfg(feature = "workers")]
    workers::check(config, report).await;
    let sends = config.delivery.mode == DeliveryMode::Live;
    let transport = if sends { config.transport().ok() } else { None };
    let through = match &transport {
        Some(transport) => {
            let never = config.workers.as_ref().is_some_and(|it| it.local == LocalSending::Never);
            let sends = if never { proxy::Sends::Notices } else { proxy::Sends::Requests };
            proxy::check(transport, sends, report).await.then_some(transport)
        }
        None => None,
    };
    connection::hosts(config, report);
    let Some(source) = connection::open(config, report).await else { return Ok(()) };
    if !connection::pools(config, report).await? {
        return Ok(());
    }
    let version = source::server_version(&source).await?;
    if version < source::OLDEST_SERVER {
        report.fail("server", format!("version {version}"), "walhook needs PostgreSQL 14 or later");
        return Ok(());
    }
    let version = (version / 10_000, version % 10_000);
    let text = format!("version {}.{}", version.0, version.1);
    if version.0 > NEWEST_TESTED {
        let fix = format!("expect surprises, or use PostgreSQL {NEWEST_TESTED}");
        report.warn("server", format!("{text} is newer than this walhook"), fix);
    } else {
        report.pass("server", text);
    }
    if one(&source, "SELECT pg_catalog.pg_is_in_recovery()").await? {
        report.fail("server", "is a standby", "let source.url lead to the primary");
        return Ok(());
    }
    connection::replication(config, &source, report).await?;
    server::check(config, &source, report).await?;
    sessions::check(config, &source, report).await?;
    // The slot first: what a leader confirms is never ahead of the checkpoint at that moment.
    let slot = slot::read(&source, &config.source.slot).await?;
    let checkpoint = state(config, &source, report).await?;
    server::slot(config, &source, slot, checkpoint, report).await?;
    tables::check(config, &source, report).await?;
    // What is wrong with columns and rights was told of in better words.
    let told = |finding: &Finding| {
        finding.verdict == Verdict::Fail
            && ["endpoints.", "accounts.", "privileges"]
                .iter()
                .any(|key| finding.what.starts_with(key))
    };
    if report.0.iter().any(told) {
        return Ok(());
    }
    look_up::check(config, through, report).await
}

/// The state, which may be in another database than the source.
async fn state(config: &Config, source: &Connection, report: &mut Report) -> Result<Checkpoint> {
    let Some(url) = &config.state.url else {
        return server::state(config, source, report).await;
    };
    match Connection::open(url, NAME).await {
        Ok(state) => server::state(config, &state, report).await,
        Err(error) => {
            report.fail_to_connect("state", "state.url", &error);
            Ok(Checkpoint::Unknown)
        }
    }
}

/// The last look at the publication. Of state that cannot be read, or is not there yet, another line tells.
async fn last_look(config: &Config) -> Option<(Moment, Coverage)> {
    let state = Databases::of(config).open_state().await.ok()?;
    state.last_look().await.unwrap_or_default()
}

async fn one<T>(client: &Client, sql: &str) -> Result<T>
where
    T: for<'a> tokio_postgres::types::FromSql<'a>,
{
    Ok(client.query_one(sql, &[]).await?.try_get(0)?)
}
