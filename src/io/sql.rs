//! SQL connections.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::task::JoinSet;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use crate::engine::endpoint::Secret;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A SQL session together with the task that drives it; both end when this is dropped.
#[derive(Debug)]
pub struct Connection {
    client: Client,
    driver: JoinSet<Result<(), tokio_postgres::Error>>,
}

impl Connection {
    /// Connects and pins the session's settings that others rely on.
    ///
    /// # Errors
    /// When the URL cannot be used or the server cannot be reached; the message names host, port,
    /// database and user, and never holds the password.
    pub async fn open(url: &Secret, application_name: &str) -> Result<Self> {
        let mut config = session(url)?;
        config.application_name(application_name);
        let cannot = || format!("cannot connect to PostgreSQL at {}", describe(&config));
        let (client, connection) = config.connect(NoTls).await.with_context(cannot)?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        // `on` even where the database's default is `off`: what is acknowledged must be durable.
        // No timeout for idling: most of our sessions do little else, and one watches for the server's
        // shutdown by idling.
        let settings =
            "SET synchronous_commit = on; SET timezone = 'UTC'; SET idle_session_timeout = 0";
        client.batch_execute(settings).await?;
        Ok(Self { client, driver })
    }

    /// Waits until the session ends, and says why (`None`: it was closed in order).
    ///
    /// Cancel-safe. Used as a sentinel: PostgreSQL's shutdown ends ordinary sessions at once.
    pub async fn closed(&mut self) -> Option<tokio_postgres::Error> {
        match self.driver.join_next().await {
            Some(Ok(Err(error))) => Some(error),
            Some(Ok(Ok(())) | Err(_)) | None => None,
        }
    }
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// What a `postgres://` URL says, with a timeout for connecting where it says none.
///
/// # Errors
/// When it cannot be read, or asks for TLS, which it would not get. The message holds no part of it
/// but names of options.
pub fn session(url: &Secret) -> Result<tokio_postgres::Config> {
    let text = url.expose();
    ensure!(
        text.starts_with("postgres://") || text.starts_with("postgresql://"),
        "is not a postgres:// URL; write it as postgres://user@host:5432/database"
    );
    let options = text.split_once('?').map_or("", |(_, options)| options);
    for option in options.split('&').filter_map(|option| option.split_once('=')) {
        match option {
            ("sslmode", mode @ ("require" | "verify-ca" | "verify-full")) => bail!(
                "sslmode={mode} is not supported by this version; connect over a private network or \
                 a Unix socket with sslmode=disable"
            ),
            ("sslrootcert" | "sslcert" | "sslkey", _) => bail!(
                "{} is not supported by this version, which has no TLS to PostgreSQL; remove it",
                option.0
            ),
            _ => {}
        }
    }
    let mut config: tokio_postgres::Config = text.parse().context("the URL cannot be read")?;
    ensure!(config.get_ssl_mode() != SslMode::Require, "TLS is not supported by this version");
    ensure!(
        !config.get_hosts().is_empty() || !config.get_hostaddrs().is_empty(),
        "names no host; write it as postgres://user@host:5432/database"
    );
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    Ok(config)
}

/// Where a connection goes and as whom, for people: never the password.
#[must_use]
pub fn describe(config: &tokio_postgres::Config) -> String {
    let ports = config.get_ports();
    let port = |n: usize| ports.get(n).or(ports.first()).copied().unwrap_or(5432);
    let host = |(n, host): (usize, &Host)| match host {
        Host::Tcp(name) => format!("{name}:{}", port(n)),
        Host::Unix(dir) => format!("{} (port {})", dir.display(), port(n)),
    };
    let hosts: Vec<String> = config.get_hosts().iter().enumerate().map(host).collect();
    let user = config.get_user().unwrap_or("the operating system's user");
    let database = config.get_dbname().unwrap_or(user);
    format!("{}, database {database}, user {user}", hosts.join(", "))
}

/// The server's own words, which tokio-postgres prints only as "db error".
#[must_use]
pub fn error_text(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(
        || error.to_string(),
        |db| format!("{} (SQLSTATE {})", db.message(), db.code().code()),
    )
}

/// Whether the same statement may well succeed later, on a new connection if need be.
#[must_use]
pub fn is_transient(error: &tokio_postgres::Error) -> bool {
    let Some(code) = error.code() else {
        // Not an answer of the server: the connection failed, unless it was our own doing.
        return error.is_closed() || has_io_error(error);
    };
    let class = code.code().get(..2).unwrap_or_default();
    // Connection exceptions, insufficient resources, operator intervention.
    ["08", "53", "57"].contains(&class)
        || [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
            SqlState::IO_ERROR,
            SqlState::READ_ONLY_SQL_TRANSACTION,
        ]
        .contains(code)
}

fn has_io_error(error: &tokio_postgres::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.is::<std::io::Error>() {
            return true;
        }
        source = cause.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_refuses_what_it_cannot_keep_and_names_no_secret() {
        for (url, expected) in [
            ("postgres://u:hush@h/d?sslmode=verify-full", "sslmode=verify-full is not supported"),
            ("postgres://u:hush@h/d?sslrootcert=/ca", "sslrootcert is not supported"),
            ("postgres://u:hush@h:port/d", "cannot be read"),
            ("host=h password=hush", "is not a postgres:// URL"),
            ("postgres:///d", "names no host"),
        ] {
            let error = format!("{:#}", session(&Secret::new(url)).unwrap_err());
            assert!(error.contains(expected), "{url}: {error}");
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn description_names_every_host_and_no_password() {
        let url = Secret::new("postgres://u:hush@one:1,two:2/d?sslmode=prefer");
        let config = session(&url).unwrap();
        assert_eq!(describe(&config), "one:1, two:2, database d, user u");
    }

    #[tokio::test]
    async fn connection_error_names_host_port_database_and_user() {
        // Port 1 of the loopback address: nobody listens there.
        let url = Secret::new("postgres://u:hush@127.0.0.1:1/d");
        let error = format!("{:#}", Connection::open(&url, "test").await.unwrap_err());
        assert!(error.contains("127.0.0.1:1, database d, user u"), "{error}");
        assert!(!error.contains("hush"), "{error}");
    }

    #[tokio::test]
    async fn refused_connection_is_transient() {
        let refused = tokio_postgres::connect("postgres://nobody@127.0.0.1:1/x", NoTls).await;
        assert!(is_transient(&refused.err().unwrap()));
        let unreadable = tokio_postgres::connect("postgres://[", NoTls).await;
        assert!(!is_transient(&unreadable.err().unwrap()));
    }
}
