//! A SQL session of the kit's own.

use std::ops::{Deref, DerefMut};

use anyhow::Result;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

/// A session without TLS, with the server's own settings; closed when dropped.
#[derive(Debug)]
pub struct Session {
    client: Client,
    _driver: JoinSet<Result<(), tokio_postgres::Error>>,
}

impl Session {
    /// Connects to a URL or a list of key=value.
    ///
    /// # Errors
    /// When the server does not take it.
    pub async fn open(url: &str) -> Result<Self> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Ok(Self { client, _driver: driver })
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}
