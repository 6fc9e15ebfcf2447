//! Looks accounts' endpoints up, batch after batch: costly ones in a session of their own, beside all others.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::error::TaskError;
use super::responder::Responder;
use super::sessions::{COSTLY_LOOK_UPS, LOOK_UPS};
use crate::config::Config;
use crate::server::health::Teller;
use crate::server::trouble::Part;
use walhook_core::event::AccountId;
use walhook_dispatch::dispatcher::{LookUp, LookUpAnswer};
use walhook_dispatch::route::LookUpLine;
use walhook_postgres::lookup::{Answer, Apart, Failing, LookupSession, Lookups};
use walhook_postgres::timelines::Timelines;

/// Reads the endpoint table for one line. One that cannot be read is a person's to fix: what is committed
/// meanwhile waits, and nothing is lost.
pub(super) struct LookupResponder {
    line: LookUpLine,
    config: Config,
    timelines: Timelines,
    lookups: Lookups,
    apart: Apart,
    session: Option<LookupSession>,
    failing: Arc<FailingAlone>,
    tell: Teller,
}

impl LookupResponder {
    /// Those of both lines, in the order of [`LookUpLine::ALL`].
    pub(super) fn both(config: &Config, timelines: &Timelines, tell: &Teller) -> [Self; 2] {
        let failing = Arc::new(FailingAlone::default());
        let lookups = |line| match line {
            LookUpLine::Usual => Lookups::of(config.lookups()).of_few(),
            LookUpLine::Costly => Lookups::of(config.lookups()),
        };
        LookUpLine::ALL.map(|line| Self {
            line,
            config: config.clone(),
            timelines: timelines.clone(),
            lookups: lookups(line),
            apart: Apart::default(),
            session: None,
            failing: Arc::clone(&failing),
            tell: tell.clone(),
        })
    }

    async fn fetch(&mut self, accounts: &[AccountId]) -> Result<Answer, TaskError> {
        let session = match &mut self.session {
            Some(session) => session,
            None => {
                let purpose = match self.line {
                    LookUpLine::Usual => LOOK_UPS,
                    LookUpLine::Costly => COSTLY_LOOK_UPS,
                };
                let opened = LookupSession::open(self.config.lookups(), purpose.name).await?;
                // Their endpoints may be those of yesterday.
                self.timelines.check(opened.primary().await?)?;
                self.session.insert(opened)
            }
        };
        let answer = self.apart.fetch(session, &self.lookups, accounts).await?;
        self.failing.tell(self.line, self.apart.failing(), &self.tell);
        Ok(answer)
    }
}

impl Responder for LookupResponder {
    type Question = LookUp;
    type Answer = LookUpAnswer;

    /// A batch's statement may take 30 s, and then it is asked again in parts.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn part(&self) -> Part {
        match self.line {
            LookUpLine::Usual => Part::Lookups,
            LookUpLine::Costly => Part::CostlyLookups,
        }
    }

    async fn answer(&mut self, look_up: &LookUp) -> Result<LookUpAnswer, TaskError> {
        let Answer { fetched, put_off } = self.fetch(&look_up.accounts).await?;
        let snapshot = fetched.snapshot.parse()?;
        let (line, costly, answers) = (self.line, fetched.costly, fetched.routes);
        Ok(LookUpAnswer { line, snapshot, costly, put_off, answers })
    }

    async fn probe(&mut self) -> Result<(), TaskError> {
        match self.line {
            LookUpLine::Usual => self.fetch(&[]).await.map(|_| ()),
            // Few need it, and seldom.
            LookUpLine::Costly => {
                self.session = None;
                Ok(())
            }
        }
    }

    fn hang_up(&mut self, hung: bool) {
        // A session that was refused something is as good as before, and another might not be had.
        if hung || self.session.as_ref().is_some_and(LookupSession::is_closed) {
            self.session = None;
        }
    }
}

/// The accounts of both lines that cannot be looked up for a reason of their own: told together.
#[derive(Debug, Default)]
struct FailingAlone(Mutex<[Option<Failing>; 2]>);

impl FailingAlone {
    /// These are those of the line now.
    fn tell(&self, line: LookUpLine, failing: Option<Failing>, tell: &Teller) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [usual, costly] = &mut *lines;
        match line {
            LookUpLine::Usual => *usual = failing,
            LookUpLine::Costly => *costly = failing,
        }
        match (usual, costly) {
            (None, None) => tell.works(Part::Accounts),
            (Some(Failing { since, error, fix }), None)
            | (None, Some(Failing { since, error, fix })) => {
                tell.fails_with(Part::Accounts, *since, error, fix);
            }
            (Some(usual), Some(costly)) => {
                let error = format!("{}; {}", usual.error, costly.error);
                let since = usual.since.min(costly.since);
                tell.fails_with(Part::Accounts, since, &error, &usual.fix);
            }
        }
    }
}
