//! SQL connections.

use std::ops::{Deref, DerefMut};

use anyhow::{Context, Result};
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use crate::engine::endpoint::Secret;

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
    /// When the URL cannot be used or the server cannot be reached; the message never holds the
    /// password.
    pub async fn open(url: &Secret, application_name: &str) -> Result<Self> {
        let mut config: tokio_postgres::Config =
            url.expose().parse().context("the database URL cannot be read")?;
        config.application_name(application_name);
        config.connect_timeout(std::time::Duration::from_secs(10));
        let (client, connection) =
            config.connect(NoTls).await.context("cannot connect to PostgreSQL")?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        // `on` even where the database's default is `off`: what is acknowledged must be durable.
        client.batch_execute("SET synchronous_commit = on; SET timezone = 'UTC'").await?;
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

/// Quotes a name so that SQL takes it as it is.
#[must_use]
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes `schema.name` (or a bare `name`, which the search path resolves).
#[must_use]
pub fn quote_table(table: &str) -> String {
    match table.split_once('.') {
        Some((schema, name)) => format!("{}.{}", quote_ident(schema), quote_ident(name)),
        None => quote_ident(table),
    }
}

/// Quotes a text constant.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    // The E form reads the same whatever `standard_conforming_strings` says.
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
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
    fn names_and_constants_are_quoted() {
        assert_eq!(quote_table("public.web\"hooks"), "\"public\".\"web\"\"hooks\"");
        assert_eq!(quote_table("hooks"), "\"hooks\"");
        assert_eq!(quote_literal(r"it's \ "), r"E'it''s \\ '");
    }

    #[tokio::test]
    async fn refused_connection_is_transient() {
        let refused = tokio_postgres::connect("postgres://nobody@127.0.0.1:1/x", NoTls).await;
        assert!(is_transient(&refused.err().unwrap()));
        let unreadable = tokio_postgres::connect("postgres://[", NoTls).await;
        assert!(!is_transient(&unreadable.err().unwrap()));
    }
}
