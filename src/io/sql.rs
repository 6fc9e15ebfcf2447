//! SQL connections.

use std::ops::{Deref, DerefMut};

use anyhow::{Context, Result};
use tokio::task::JoinSet;
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
