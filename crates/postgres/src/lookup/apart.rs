//! A look-up that fails for single accounts only is made for ever smaller parts of the batch, so that they
//! delay nobody else for long: a view that sleeps for one of them, say, or that raises what the
//! database itself would raise in an outage.
//!
//! Whether it is of single accounts is asked of witnesses: accounts that were found before. Where none of them
//! can be looked up either, or where the connection, a lock or the server itself fails, it is an
//! outage, and nothing is split. Parts have little time, and one answer a bounded one: what is
//! not told apart by then goes on with the next. Which accounts are doubtful is remembered from one
//! answer to the next, and those that nobody doubts are asked for first.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet, VecDeque};

use tokio::time::{Duration, Instant};
use tokio_postgres::error::SqlState;

use super::memory::SUSPECTS_MAX;
use super::session::USUAL;
use super::{Fetched, LookupError, LookupSession, Lookups};
use crate::fix::Failure;
use walhook_core::endpoint::Routes;
use walhook_core::event::AccountId;

/// Accounts that are asked whether others can be looked up.
const WITNESSES: usize = 3;

/// An account that failed alone is asked for again after so long, and then after twice as long.
const FIRST_WAIT: Duration = Duration::from_secs(5);

/// But at least so often.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How long batches are asked for by the slower statement afterwards: to try the quicker one again may cost
/// as long as a statement may take.
const FENCED: Duration = Duration::from_secs(600);

/// Accounts that are named.
const NAMED: usize = 5;

/// How long statements may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// While nothing is doubtful.
    pub(super) batch: Duration,
    /// For a part of several accounts.
    pub(super) part: Duration,
    /// For one account.
    pub(super) alone: Duration,
    /// For all of one answer, from the second statement on.
    pub(super) answer: Duration,
}

/// What is known of an account whose batch has failed.
#[derive(Debug)]
struct Doubt {
    /// So many accounts are asked for together the next time.
    part: usize,
    /// How often it has failed alone.
    failures: u32,
}

/// What was found.
#[derive(Debug)]
pub struct Answer {
    /// Of some of the accounts.
    pub fetched: Fetched,
    /// Others, and how long they are not to be asked for.
    pub put_off: Vec<(AccountId, Duration)>,
}

/// The accounts that fail alone.
#[derive(Debug, PartialEq, Eq)]
pub struct Failing {
    /// Since when some do.
    pub since: Instant,
    /// How many, and the first of them, with the last error's code.
    pub error: String,
    /// What to do about it.
    pub fix: String,
}

/// Look-ups that go on for all other accounts when they fail for some.
///
/// At most `SUSPECTS_MAX` accounts are doubtful; with more it is no matter of single ones.
#[derive(Debug)]
pub struct Apart {
    times: Times,
    doubts: HashMap<AccountId, Doubt>,
    /// Accounts that had endpoints, the last of them last.
    good: VecDeque<AccountId>,
    since: Option<Instant>,
    last_error: Option<(String, Cow<'static, str>)>,
}

impl Default for Apart {
    fn default() -> Self {
        Self::new(Times {
            batch: USUAL,
            part: Duration::from_secs(2),
            alone: Duration::from_secs(5),
            answer: Duration::from_secs(7),
        })
    }
}

impl Apart {
    pub(super) fn new(times: Times) -> Self {
        Self { times, doubts: HashMap::new(), good: VecDeque::new(), since: None, last_error: None }
    }

    /// As [`LookupSession::fetch`], where single accounts may be put off. Each account is answered for, put
    /// off, or left for the next look-up, as there.
    ///
    /// # Errors
    /// As there, where it is not of single accounts.
    pub async fn fetch(
        &mut self,
        session: &LookupSession,
        lookups: &Lookups,
        accounts: &[AccountId],
    ) -> Result<Answer, LookupError> {
        if self.doubts.is_empty() || accounts.is_empty() {
            match session.fetch(lookups, accounts).await {
                Ok(fetched) => {
                    self.found(&fetched);
                    return Ok(Answer { fetched, put_off: Vec::new() });
                }
                Err(error) if accounts.is_empty() || !may_be_of_some(&error) => return Err(error),
                Err(error) => {
                    session.limit(self.times.alone).await?;
                    let heard = self.hear_witnesses(session, lookups, accounts, error).await;
                    session.limit(self.times.batch).await?;
                    heard?;
                    self.doubt(accounts)?;
                }
            }
        }
        let answer = self.fetch_apart(session, lookups, accounts).await;
        session.limit(self.times.batch).await?;
        answer
    }

    /// The accounts that fail alone, where there are some.
    #[must_use]
    pub fn failing(&self) -> Option<Failing> {
        let mut failing: Vec<&AccountId> = self
            .doubts
            .iter()
            .filter_map(|(account, doubt)| (doubt.failures > 0).then_some(account))
            .collect();
        let (since, (code, fix)) = self.since.zip(self.last_error.as_ref())?;
        failing.sort_unstable();
        let count = failing.len();
        let named: Vec<String> = failing.iter().take(NAMED).map(ToString::to_string).collect();
        let more = if count > NAMED { ", …" } else { "" };
        let error = format!("of {count}: {}{more}; the last failed with {code}", named.join(", "));
        (count > 0).then(|| Failing { since, error, fix: format!("for these accounts, {fix}") })
    }

    async fn fetch_apart(
        &mut self,
        session: &LookupSession,
        lookups: &Lookups,
        accounts: &[AccountId],
    ) -> Result<Answer, LookupError> {
        let began = Instant::now();
        lookups.fence(FENCED);
        // First, and so the oldest snapshot: what it sees, all of them see.
        let fetched = session.fetch(lookups, &[]).await?;
        let mut answer = Answer { fetched, put_off: Vec::new() };
        let mut parts = self.parts(accounts);
        let (mut has_asked, mut were_heard) = (false, false);
        while let Some(part) = self.take_next(&mut parts) {
            let limit = if part.len() == 1 { self.times.alone } else { self.times.part };
            if has_asked && began.elapsed() + limit > self.times.answer {
                answer.leave(part);
                continue;
            }
            has_asked = true;
            session.limit(limit).await?;
            match session.fetch(lookups, &part).await {
                Ok(found) => {
                    self.found(&found);
                    let answered: HashSet<&AccountId> =
                        found.routes.iter().map(|(account, _)| account).collect();
                    let left = part.iter().filter(|account| !answered.contains(account));
                    answer.leave(left.cloned().collect());
                    answer.fetched.add(found);
                }
                Err(error) if may_be_of_some(&error) => {
                    let told = (code(&error), error.fix());
                    if !were_heard {
                        session.limit(self.times.alone).await?;
                        self.hear_witnesses(session, lookups, &part, error).await?;
                        were_heard = true;
                    }
                    self.doubt(&part)?;
                    if let [account] = &part[..] {
                        self.last_error = Some(told);
                        answer.put_off.push((account.clone(), self.failed_alone(account)));
                    } else {
                        let (first, second) = part.split_at(part.len() / 2);
                        parts.extend([first.to_vec(), second.to_vec()]);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(answer)
    }

    /// Those that nobody doubts in one part, the others as they are to be asked for.
    fn parts(&self, accounts: &[AccountId]) -> Vec<Vec<AccountId>> {
        let size =
            |account: &AccountId| self.doubts.get(account).map_or(usize::MAX, |doubt| doubt.part);
        let mut parts: Vec<(usize, Vec<AccountId>)> = Vec::new();
        let mut sorted: Vec<&AccountId> = accounts.iter().collect();
        sorted.sort_by_key(|account| Reverse(size(account)));
        for account in sorted {
            let size = size(account);
            match parts.last_mut() {
                Some((of, part)) if *of == size && part.len() < size => part.push(account.clone()),
                _ => parts.push((size, vec![account.clone()])),
            }
        }
        parts.into_iter().map(|(_, part)| part).collect()
    }

    /// The part to be asked for next: that of which most is to be hoped.
    fn take_next(&self, parts: &mut Vec<Vec<AccountId>>) -> Option<Vec<AccountId>> {
        let hope = |part: &[AccountId]| {
            let failures =
                |account: &AccountId| self.doubts.get(account).map_or(0, |doubt| doubt.failures);
            let is_doubtful = part.iter().any(|account| self.doubts.contains_key(account));
            (!is_doubtful, part.len(), Reverse(part.iter().map(failures).max()))
        };
        let next = (0..parts.len()).max_by_key(|at| parts.get(*at).map(|part| hope(part)))?;
        Some(parts.swap_remove(next))
    }

    /// Fails with `error` unless others can be looked up.
    async fn hear_witnesses(
        &self,
        session: &LookupSession,
        lookups: &Lookups,
        part: &[AccountId],
        error: LookupError,
    ) -> Result<(), LookupError> {
        let mut witnesses: Vec<AccountId> =
            self.good.iter().rev().filter(|good| !part.contains(good)).cloned().collect();
        let nobody = lookups.nobody().filter(|nobody| !part.contains(nobody));
        // That nobody's rows can be read says little of a right or an object that others' rows need.
        if witnesses.is_empty() && !is_of_class(&error, "42") {
            witnesses.extend(nobody);
        }
        for witness in witnesses {
            if session.fetch(lookups, &[witness]).await.is_ok() {
                return Ok(());
            }
        }
        Err(error)
    }

    /// The batch of these has failed: half as many are asked for the next time.
    fn doubt(&mut self, part: &[AccountId]) -> Result<(), LookupError> {
        let new = part.iter().filter(|account| !self.doubts.contains_key(*account)).count();
        if self.doubts.len() + new > SUSPECTS_MAX {
            return Err(LookupError::Many(self.doubts.len() + new));
        }
        let size = (part.len() / 2).max(1);
        for account in part {
            let doubt =
                self.doubts.entry(account.clone()).or_insert(Doubt { part: size, failures: 0 });
            doubt.part = doubt.part.min(size);
        }
        Ok(())
    }

    /// How long the account is put off that has failed alone.
    fn failed_alone(&mut self, account: &AccountId) -> Duration {
        self.since.get_or_insert_with(Instant::now);
        let Some(doubt) = self.doubts.get_mut(account) else { return FIRST_WAIT };
        let wait = FIRST_WAIT.saturating_mul(1 << doubt.failures.min(8)).min(LONGEST_WAIT);
        doubt.failures = doubt.failures.saturating_add(1);
        wait
    }

    fn found(&mut self, fetched: &Fetched) {
        for (account, _) in &fetched.routes {
            self.doubts.remove(account);
        }
        if self.doubts.values().all(|doubt| doubt.failures == 0) {
            (self.since, self.last_error) = (None, None);
        }
        let is_good = |routes: &Routes| routes.refused.is_none() && !routes.endpoints.is_empty();
        let good = fetched.routes.iter().filter(|(_, routes)| is_good(routes));
        for (account, _) in good.take(WITNESSES) {
            self.good.retain(|other| other != account);
            self.good.push_back(account.clone());
        }
        let too_many = self.good.len().saturating_sub(WITNESSES);
        self.good.drain(..too_many);
    }
}

impl Answer {
    /// These are asked for again, behind all others.
    fn leave(&mut self, accounts: Vec<AccountId>) {
        self.put_off.extend(accounts.into_iter().map(|account| (account, Duration::ZERO)));
    }
}

/// Whether it may fail for some of the accounts alone. Not the connection, a lock or the server's end.
fn may_be_of_some(error: &LookupError) -> bool {
    let LookupError::Sql(sql) = error else { return false };
    let Some(state) = sql.code().filter(|_| !sql.is_closed()) else { return false };
    let is_timeout = *state == SqlState::QUERY_CANCELED;
    let is_outage = ["08", "25", "28", "3D", "57"].iter().any(|class| is_of_class(error, class));
    let is_full = [SqlState::LOCK_NOT_AVAILABLE, SqlState::TOO_MANY_CONNECTIONS].contains(state);
    is_timeout || !(is_outage || is_full)
}

fn is_of_class(error: &LookupError, class: &str) -> bool {
    matches!(error, LookupError::Sql(sql) if sql.code().is_some_and(|c| c.code().starts_with(class)))
}

/// The code of the server's error. Not its text, which may quote the row.
fn code(error: &LookupError) -> String {
    match error {
        LookupError::Sql(sql) => {
            sql.code().map_or("no SQLSTATE".to_owned(), |code| format!("SQLSTATE {}", code.code()))
        }
        LookupError::NoTable { .. }
        | LookupError::NoColumn { .. }
        | LookupError::Incomparable { .. }
        | LookupError::Shape(_)
        | LookupError::Retyped { .. }
        | LookupError::Hidden { .. }
        | LookupError::Connect(_)
        | LookupError::Many(_)
        | LookupError::TypeChanged => error.to_string(),
    }
}
