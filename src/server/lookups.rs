//! Looks accounts' endpoints up, batch after batch.

use std::time::Duration;

use super::error::TaskError;
use super::responder::Responder;
use super::sessions::LOOK_UPS;
use crate::config::Config;
use crate::server::health::Teller;
use crate::server::trouble::Part;
use walhook_core::event::AccountId;
use walhook_dispatch::dispatcher::LookUpAnswer;
use walhook_postgres::lookup::{Answer, Apart, LookupSession, Lookups};

/// What the dispatcher asks.
pub(super) struct LookupRequest {
    pub(super) accounts: Vec<AccountId>,
}

/// Reads the endpoint table. One that cannot be read is a person's to fix: what is committed
/// meanwhile waits, and nothing is lost.
pub(super) struct LookupResponder {
    config: Config,
    lookups: Lookups,
    apart: Apart,
    session: Option<LookupSession>,
    tell: Teller,
}

impl LookupResponder {
    pub(super) fn new(config: Config, tell: Teller) -> Self {
        let lookups = Lookups::of(config.lookups());
        Self { config, lookups, apart: Apart::default(), session: None, tell }
    }

    async fn fetch(&mut self, accounts: &[AccountId]) -> Result<Answer, TaskError> {
        let session = match &mut self.session {
            Some(session) => session,
            None => {
                let opened = LookupSession::open(self.config.lookups(), LOOK_UPS.name).await?;
                self.session.insert(opened)
            }
        };
        let answer = self.apart.fetch(session, &self.lookups, accounts).await?;
        match self.apart.failing() {
            Some(failing) => {
                let (since, error) = (failing.since, failing.error);
                self.tell.fails_with(Part::Accounts, since, &error, &failing.fix);
            }
            None => self.tell.works(Part::Accounts),
        }
        Ok(answer)
    }
}

impl Responder for LookupResponder {
    type Question = LookupRequest;
    type Answer = LookUpAnswer;

    const PART: Part = Part::Lookups;

    /// A batch's statement may take 30 s, and then it is asked again in parts.
    const PATIENCE: Duration = Duration::from_secs(60);

    async fn answer(&mut self, request: &LookupRequest) -> Result<LookUpAnswer, TaskError> {
        let Answer { fetched, put_off } = self.fetch(&request.accounts).await?;
        let snapshot = fetched.snapshot.parse()?;
        Ok(LookUpAnswer { snapshot, put_off, answers: fetched.routes })
    }

    async fn probe(&mut self) -> Result<(), TaskError> {
        self.fetch(&[]).await.map(|_| ())
    }

    fn hang_up(&mut self, hung: bool) {
        // A session that was refused something is as good as before, and another might not be had.
        if hung || self.session.as_ref().is_some_and(LookupSession::is_closed) {
            self.session = None;
        }
    }
}
