//! The sessions in which the set-up runs its statements, and our own role where that is another than theirs.

use anyhow::{Context, Result, ensure};
use tokio_postgres::Client;

use super::NAME;
use crate::config::Config;
use walhook_core::endpoint::Secret;
use walhook_core::halt::SourceIdentity;
use walhook_postgres::pg::Conninfo;
use walhook_postgres::source;
use walhook_postgres::sql::Connection;

/// The sessions: with `--admin-url` the source's statements are the administrator's.
pub(super) struct Sessions {
    pub(super) source: Connection,
    /// Where the state has a database of its own.
    other: Option<Connection>,
    /// Our own role in source and state, where it is another than the session's.
    pub(super) grant_to: Option<String>,
    pub(super) identity: SourceIdentity,
}

impl Sessions {
    pub(super) async fn open(config: &Config, admin: Option<&Secret>) -> Result<Self> {
        let own = Conninfo::parse(&config.source.url).context("source.url")?;
        let source = match admin {
            Some(url) => Connection::open(url, NAME).await.context("--admin-url")?,
            None => Connection::open(&config.source.url, NAME).await.context("source.url")?,
        };
        let identity = source::identity(&source, &own).await?;
        if admin.is_some() {
            let database = own.database();
            ensure!(
                identity.database == database,
                "--admin-url leads to the database {}, source.url to {database}; name the same",
                identity.database
            );
        }
        let other = match &config.state.url {
            Some(url) => Some(Connection::open(url, NAME).await.context("state.url")?),
            None => None,
        };
        let grant_to = admin.map(|_| own.user().to_owned());
        Ok(Self { source, other, grant_to, identity })
    }

    /// Whether the state is in the source's database.
    pub(super) fn is_one(&self) -> bool {
        self.other.is_none()
    }

    /// The session of the state database.
    pub(super) fn state(&self) -> &Client {
        self.other.as_ref().unwrap_or(&self.source)
    }
}
