//! `walhook check`: is everything in place? Changes nothing.
//!
//! Every finding is one line: pass, warn or fail, and where something is wrong, the mend.

mod pooler;
mod server;
mod tables;

use anyhow::Result;
use serde::Serialize;
use tokio_postgres::Client;

use super::{CommandResult, Common, print_json, print_line};
use crate::config::Config;
use crate::engine::halt::Halt;
use crate::engine::lsn::Lsn;
use crate::io::pg::Security;
use crate::io::slot;
use crate::io::source;
use crate::io::sql::Connection;
use crate::io::wire;

pub(crate) use server::session;

const NAME: &str = "walhook check";

/// What the command takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exits with 0 when nothing fails, also with warnings, and with 1 on a failure.

Examples:
  walhook check
  walhook check --json | jq '.findings[] | select(.verdict != \"pass\")'")]
pub struct Args {}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Pass,
    /// Works, but something will hurt one day.
    Warn,
    /// Does not work.
    Fail,
}

#[derive(Debug, Clone, Serialize)]
struct Finding {
    verdict: Verdict,
    what: String,
    finding: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

/// The findings in the order in which they were made.
#[derive(Debug, Default)]
struct Report(Vec<Finding>);

impl Report {
    fn add(&mut self, verdict: Verdict, what: &str, finding: String, mend: Option<String>) {
        self.0.push(Finding { verdict, what: what.to_owned(), finding, mend });
    }

    fn pass(&mut self, what: &str, finding: impl Into<String>) {
        self.add(Verdict::Pass, what, finding.into(), None);
    }

    fn warn(&mut self, what: &str, finding: impl Into<String>, mend: impl Into<String>) {
        self.add(Verdict::Warn, what, finding.into(), Some(mend.into()));
    }

    fn fail(&mut self, what: &str, finding: impl Into<String>, mend: impl Into<String>) {
        self.add(Verdict::Fail, what, finding.into(), Some(mend.into()));
    }

    /// A failure whose text names the mend already.
    fn halt(&mut self, what: &str, halt: &Halt) {
        self.add(Verdict::Fail, what, halt.to_string(), None);
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.0.iter().filter(|finding| finding.verdict == verdict).count()
    }
}

/// Checks.
///
/// # Errors
/// When a finding is a failure.
pub async fn run(_: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    let mut report = Report::default();
    check(&config, &mut report).await?;
    let (failures, warnings) = (report.count(Verdict::Fail), report.count(Verdict::Warn));
    if common.json {
        print_json(&serde_json::json!({
            "findings": report.0, "failures": failures, "warnings": warnings,
        }))?;
    } else {
        report.0.iter().try_for_each(|finding| print_line(&line(finding)))?;
    }
    if failures == 0 {
        return Ok(());
    }
    Err(anyhow::anyhow!("check: failures: {failures}, warnings: {warnings}").into())
}

fn line(finding: &Finding) -> String {
    let verdict = match finding.verdict {
        Verdict::Pass => "pass",
        Verdict::Warn => "warn",
        Verdict::Fail => "fail",
    };
    let mend = finding.mend.as_ref().map(|mend| format!("; {mend}")).unwrap_or_default();
    format!("{verdict}  {}: {}{mend}", finding.what, finding.finding)
}

async fn check(config: &Config, report: &mut Report) -> Result<()> {
    let source = match Connection::open(&config.source.url, NAME).await {
        Ok(source) => source,
        Err(error) => {
            let mend = "correct source.url, or let the server take connections from here";
            report.fail("connection", format!("{error:#}"), mend);
            return Ok(());
        }
    };
    connection(report, "connection", "the source database", source.security());
    let mut usable = pooler::check("source.url", &config.source.url, report).await?;
    if let Some(url) = &config.state.url {
        usable &= pooler::check("state.url", url, report).await?;
    }
    if let Some(url) = &config.source.replication_url {
        if wire::is_pooled(url, NAME).await.is_ok_and(|pooled| pooled) {
            let finding = "source.replication_url leads through a connection pooler";
            report.fail("replication connection", finding, "let it lead to the server itself");
        }
        match Connection::open(url, NAME).await {
            Ok(direct) => {
                connection(report, "replication connection", "the server", direct.security());
            }
            Err(error) => {
                let mend = "correct source.replication_url";
                report.fail("replication connection", format!("{error:#}"), mend);
            }
        }
    }
    if !usable {
        return Ok(());
    }
    let version = source::server_version(&source).await?;
    if version < source::OLDEST_SERVER {
        report.fail("server", format!("version {version}"), "walhook needs PostgreSQL 14 or later");
        return Ok(());
    }
    report.pass("server", format!("version {}.{}", version / 10_000, version % 10_000));
    server::check(config, &source, report).await?;
    // The slot first: what a leader confirms is never ahead of the checkpoint at that moment.
    let slot = slot::read(&source, &config.source.slot).await?;
    let frontier = state(config, &source, report).await?;
    server::slot(config, &source, slot, frontier, report).await?;
    tables::check(config, &source, report).await
}

/// That somebody answers, and who else may be listening.
fn connection(report: &mut Report, what: &str, who: &str, security: &Security) {
    let finding = format!("{who} answers {security}");
    match security {
        Security::Plain => report.warn(
            what,
            format!("{finding}: others on its way can read and change what it sends"),
            "turn TLS on at the server, and set sslmode=verify-full and sslrootcert in the URL",
        ),
        Security::Local | Security::Tls { .. } => report.pass(what, finding),
    }
}

/// The state, which may be in another database than the source. Returns the checkpoint, where there
/// is one of this source.
async fn state(config: &Config, source: &Connection, report: &mut Report) -> Result<Option<Lsn>> {
    let Some(url) = &config.state.url else {
        return server::state(config, source, report).await;
    };
    match Connection::open(url, NAME).await {
        Ok(state) => server::state(config, &state, report).await,
        Err(error) => {
            report.fail("state", format!("{error:#}"), "correct state.url");
            Ok(None)
        }
    }
}

async fn one<T>(client: &Client, sql: &str) -> Result<T>
where
    T: for<'a> tokio_postgres::types::FromSql<'a>,
{
    Ok(client.query_one(sql, &[]).await?.try_get(0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fixture::Fixture;
    use crate::cli::setup;

    /// The findings that are not passes, one a line.
    async fn complaints(config: &Config) -> Vec<String> {
        let mut report = Report::default();
        check(config, &mut report).await.unwrap();
        report.0.iter().filter(|f| f.verdict != Verdict::Pass).map(line).collect()
    }

    #[tokio::test]
    async fn check_passes_what_setup_made_and_warns_of_unbounded_wal() {
        let fixture = Fixture::start().await;
        let config = fixture.config("");
        setup::quietly(&config).await.unwrap();
        let found = complaints(&config).await;
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("warn  max_slot_wal_keep_size: "), "{found:?}");
    }

    #[tokio::test]
    async fn check_fails_before_setup_and_says_what_to_run() {
        let fixture =
            Fixture::start_with(&[("wal_level", "replica"), ("wal_sender_timeout", "0")]).await;
        let found = complaints(&fixture.config("")).await;
        for expected in [
            "fail  wal_level: replica; set wal_level = logical",
            "warn  wal_sender_timeout: 0",
            "fail  state: the schema walhook has 0 of",
            "fail  publication: walhook does not exist; run `walhook setup`",
            "fail  slot: walhook does not exist; run `walhook setup`",
        ] {
            assert!(found.iter().any(|line| line.starts_with(expected)), "{expected}: {found:?}");
        }
    }

    #[tokio::test]
    async fn check_names_each_fault_with_its_mend() {
        let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
        let config = fixture.config("");
        setup::quietly(&config).await.unwrap();
        assert_eq!(complaints(&config).await, Vec::<String>::new());
        for (breaks, mends, expected) in [
            (
                "ALTER TABLE webhooks RENAME enabled TO active",
                "ALTER TABLE webhooks RENAME active TO enabled",
                "fail  endpoints.enabled: public.webhooks has no column enabled",
            ),
            (
                "ALTER TABLE webhooks ALTER event_types TYPE text USING ''",
                "ALTER TABLE webhooks ALTER event_types TYPE text[] USING '{}'",
                "fail  endpoints.event_types: public.webhooks.event_types is text; it must be text[]",
            ),
            (
                "ALTER TABLE subscribers RENAME email TO mail",
                "ALTER TABLE subscribers RENAME mail TO email",
                "fail  rule 1 (a.b): columns: public.subscribers has no column email (did you mean",
            ),
            (
                "ALTER TABLE subscribers REPLICA IDENTITY NOTHING",
                "ALTER TABLE subscribers REPLICA IDENTITY DEFAULT",
                "fail  replica identity: subscribers has none",
            ),
            (
                "ALTER PUBLICATION walhook SET (publish = 'insert')",
                "ALTER PUBLICATION walhook SET (publish = 'insert, update, delete, truncate')",
                "fail  publication: walhook does not publish update",
            ),
            (
                "ALTER PUBLICATION walhook DROP TABLE subscribers",
                "ALTER PUBLICATION walhook ADD TABLE subscribers",
                "fail  publication: walhook does not hold public.subscribers",
            ),
            (
                "ALTER PUBLICATION walhook SET TABLE webhooks, subscribers WHERE (id > 0)",
                "ALTER PUBLICATION walhook SET TABLE webhooks, subscribers",
                "fail  publication: walhook has a row filter on public.subscribers",
            ),
            (
                "UPDATE walhook.meta SET timeline = 7",
                "UPDATE walhook.meta SET timeline = 1",
                "fail  state: this is not the database that walhook was set up for: its timeline is 1, it was 7",
            ),
        ] {
            fixture.run(breaks).await;
            let found = complaints(&config).await;
            assert!(found.iter().any(|line| line.starts_with(expected)), "{expected}: {found:?}");
            fixture.run(mends).await;
            assert_eq!(complaints(&config).await, Vec::<String>::new(), "after {mends}");
        }
    }

    #[tokio::test]
    async fn check_fails_where_run_would_halt_and_says_how_to_recover() {
        let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
        let config = fixture.config("");
        setup::quietly(&config).await.unwrap();
        fixture.run("SELECT pg_drop_replication_slot('walhook')").await;
        for expected in ["does not exist any more", "after the checkpoint"] {
            let found = complaints(&config).await;
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with("fail  slot: ") && found[0].contains(expected));
            assert!(found[0].contains("`walhook recover --accept-gap`"), "{found:?}");
            let again = "SELECT pg_create_logical_replication_slot('walhook', 'pgoutput')
                         WHERE NOT EXISTS (SELECT FROM pg_replication_slots)";
            fixture.run(again).await;
        }
    }

    #[tokio::test]
    async fn check_fails_when_the_customers_commits_would_wait_for_us() {
        let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
        let config = fixture.config("");
        setup::quietly(&config).await.unwrap();
        let set = async |names: &str| {
            let client = fixture.connect().await;
            // Each in a transaction of its own, and nothing that would wait for a standby.
            let set = format!("ALTER SYSTEM SET synchronous_standby_names = {names}");
            client.batch_execute("SET synchronous_commit = off").await.unwrap();
            client.batch_execute(&set).await.unwrap();
            client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
            let shown = "SELECT current_setting('synchronous_standby_names')";
            let wanted = names.trim_matches('\'');
            let seen = async { while fixture.text(shown).await != wanted {} };
            tokio::time::timeout(std::time::Duration::from_secs(30), seen).await.unwrap();
        };
        for names in ["'*'", "'FIRST 1 (replica, \"WalHook\")'"] {
            set(names).await;
            let found = complaints(&config).await;
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with("fail  synchronous_standby_names: "), "{found:?}");
        }
        set("'ANY 1 (replica, walhook2)'").await;
        assert_eq!(complaints(&config).await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn check_names_missing_privileges_and_hidden_rows() {
        let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
        setup::quietly(&fixture.config("")).await.unwrap();
        fixture.run("CREATE ROLE sender LOGIN").await;
        let config = fixture.config_as("sender", "");
        let found = complaints(&config).await;
        for expected in [
            "fail  privileges: sender may not replicate; ALTER ROLE \"sender\" REPLICATION",
            "fail  privileges: sender may not read public.webhooks; GRANT SELECT",
            "fail  state: sender may not use the schema walhook",
        ] {
            assert!(found.iter().any(|line| line.starts_with(expected)), "{expected}: {found:?}");
        }
        fixture
            .run(
                "ALTER ROLE sender REPLICATION; GRANT SELECT ON webhooks TO sender;
                 GRANT USAGE ON SCHEMA walhook TO sender;
                 GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA walhook TO sender;
                 ALTER TABLE webhooks ENABLE ROW LEVEL SECURITY",
            )
            .await;
        let found = complaints(&config).await;
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("fail  row-level security: hides rows of public.webhooks"));
    }

    #[tokio::test]
    async fn check_says_that_the_server_cannot_be_reached() {
        let text =
            "[source]\nurl = \"postgres://u:hush@127.0.0.1:1/d\"\n[endpoints]\ntable = \"a.b\"\n";
        let config = crate::config::parse(std::path::Path::new("t"), text, []).unwrap();
        let found = complaints(&config).await;
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("fail  connection: ") && !found[0].contains("hush"));
    }
}
