//! Looks accounts' endpoints up, batch after batch.

use super::desk::Desk;
use crate::config::Config;
use crate::engine::endpoint::Routes;
use crate::engine::event::AccountId;
use crate::engine::route::Snapshot;
use crate::io::lookup::{Fetched, LookupSession, Lookups};
use crate::io::trouble::Part;

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
    session: Option<LookupSession>,
}

impl LookupDesk {
    pub(super) fn new(config: Config) -> Self {
        let lookups = Lookups::of(&config);
        Self { config, lookups, session: None }
    }

    async fn fetch(&mut self, accounts: &[AccountId]) -> anyhow::Result<Fetched> {
        let session = match &mut self.session {
            Some(session) => session,
            None => {
                let opened = LookupSession::open(&self.config, "walhook look-ups").await?;
                self.session.insert(opened)
            }
        };
        Ok(session.fetch(&self.lookups, accounts).await?)
    }
}

impl Desk for LookupDesk {
    type Question = LookupRequest;
    type Answer = LookupReply;

    const PART: Part = Part::Lookups;

    async fn answer(&mut self, request: &LookupRequest) -> anyhow::Result<LookupReply> {
        let Fetched { snapshot, routes, .. } = self.fetch(&request.accounts).await?;
        Ok(LookupReply { snapshot: snapshot.parse()?, answers: routes })
    }

    async fn probe(&mut self) -> anyhow::Result<()> {
        self.fetch(&[]).await.map(|_| ())
    }

    fn hang_up(&mut self, hung: bool) {
        // A session that was refused something is as good as before, and another might not be had.
        if hung || self.session.as_ref().is_some_and(LookupSession::is_closed) {
            self.session = None;
        }
    }
}
