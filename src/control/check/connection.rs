//! Both ways to the server: SQL, and the replication connection. Is a pooler in between?

use anyhow::Result;

use super::{NAME, Report, one, pooler};
use crate::config::Config;
use walhook_postgres::pg::{Conninfo, Security};
use walhook_postgres::sql::Connection;
use walhook_postgres::wire;

/// The SQL session; `None` when there is none to be had.
pub(super) async fn open(config: &Config, report: &mut Report) -> Option<Connection> {
    match Connection::open(&config.source.url, NAME).await {
        Ok(source) => {
            answers(report, "connection", "the source database", source.security());
            Some(source)
        }
        Err(error) => {
            report.fail_to_connect("connection", "source.url", &error);
            None
        }
    }
}

/// Warns of a URL by which a standby may answer: where the primary is away for a moment, the next host is taken.
pub(super) fn hosts(config: &Config, report: &mut Report) {
    let (source, state) = (&config.source, &config.state);
    let urls = [
        ("source.url", Some(&source.url)),
        ("source.replication_url", source.replication_url.as_ref()),
        ("state.url", state.url.as_ref()),
    ];
    for (key, url) in urls {
        let takes_any = url.and_then(|url| Conninfo::parse(url).ok());
        if takes_any.is_some_and(|info| info.takes_any_of_several()) {
            let finding = format!("{key} names several hosts, and takes a standby for the primary");
            report.warn("hosts", finding, format!("add target_session_attrs=read-write to {key}"));
        }
    }
}

/// Looks for poolers. Returns whether SQL through them works.
pub(super) async fn pools(config: &Config, report: &mut Report) -> Result<bool> {
    let mut usable = pooler::check("source.url", &config.source.url, report).await?;
    if let Some(url) = &config.state.url {
        usable &= pooler::check("state.url", url, report).await?;
    }
    Ok(usable)
}

/// Whether the replication connection is taken, and leads to the same cluster and database.
pub(super) async fn replication(
    config: &Config,
    source: &Connection,
    report: &mut Report,
) -> Result<()> {
    let what = "replication connection";
    let (key, direct, url) = match &config.source.replication_url {
        Some(url) if wire::is_pooled(url, NAME).await.is_ok_and(|pooled| pooled) => {
            let finding = "source.replication_url leads through a connection pooler";
            report.fail(what, finding, "let it lead to the server itself");
            return Ok(());
        }
        Some(url) => match Connection::open(url, NAME).await {
            Ok(direct) => ("source.replication_url", Some(direct), url),
            Err(error) => {
                report.fail_to_connect(what, "source.replication_url", &error);
                return Ok(());
            }
        },
        None => ("source.url", None, &config.source.url),
    };
    let system = match wire::connect(url, NAME).await {
        Ok(mut replication) => replication.identify_system().await,
        Err(error) => Err(error),
    };
    let system = match system {
        Ok(system) => system,
        Err(error) => {
            let fix = "give the role REPLICATION, and the server a free sender (max_wal_senders); \
                        behind a pooler, set source.replication_url to the server itself";
            report.fail(what, format!("{:#}", anyhow::Error::from(error)), fix);
            return Ok(());
        }
    };
    let sql = "SELECT system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system()";
    let identifier: i64 = one::<String>(source, sql).await?.parse()?;
    let database: String =
        one(source, "SELECT pg_catalog.current_database()::pg_catalog.text").await?;
    if (identifier.cast_unsigned(), &database) != (system.system_identifier, &system.database) {
        let finding = format!("{key} leads to another cluster or database than source.url");
        report.fail(what, finding, format!("correct {key}"));
    } else if let Some(direct) = direct {
        answers(report, what, "the server", direct.security());
    } else {
        report.pass(what, format!("{key} is taken for replication"));
    }
    Ok(())
}

/// That somebody answers, and who else may be listening.
fn answers(report: &mut Report, what: &str, who: &str, security: &Security) {
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
