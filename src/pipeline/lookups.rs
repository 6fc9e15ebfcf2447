//! Looks accounts' endpoints up, batch after batch.

use super::desk::Desk;
use crate::config::Config;
use crate::engine::endpoint::Routes;
use crate::engine::event::AccountId;
use crate::engine::route::Snapshot;
use crate::io::lookup::{self, Fetched, Lookups};
use crate::io::sql::Connection;

/// What the dispatcher asks.
pub(super) struct LookupRequest {
    pub(super) accounts: Vec<AccountId>,
}

/// The answer: one for each request, perhaps for some of the accounts only.
pub(super) struct LookupReply {
    pub(super) snapshot: Snapshot,
    pub(super) answers: Vec<(AccountId, Routes)>,
}

/// Reads the endpoint table. One that cannot be read is a person's to mend: what is committed
/// meanwhile waits, and nothing is lost.
pub(super) struct LookupDesk {
    config: Config,
    lookups: Lookups,
    connection: Option<Connection>,
}

impl LookupDesk {
    pub(super) fn new(config: Config) -> Self {
        let lookups = Lookups::of(&config);
        Self { config, lookups, connection: None }
    }
}

impl Desk for LookupDesk {
    type Question = LookupRequest;
    type Answer = LookupReply;

    const DOES: &str = "look endpoints up";

    async fn answer(&mut self, request: &LookupRequest) -> anyhow::Result<LookupReply> {
        let client = match &mut self.connection {
            Some(client) => client,
            None => {
                let opened = lookup::connect(&self.config, "walhook look-ups").await?;
                self.connection.insert(opened)
            }
        };
        let Fetched { snapshot, routes, .. } =
            self.lookups.fetch(client, &request.accounts).await?;
        Ok(LookupReply { snapshot: snapshot.parse()?, answers: routes })
    }

    fn hang_up(&mut self) {
        self.connection = None;
    }
}
