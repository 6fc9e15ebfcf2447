//! Whose requests are on a connection: who waits there behind whom, and who was there when it ended.
//!
//! A connection is *silent* from the first request after its last answer on, until the next answer begins.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use walhook_core::event::AccountId;

/// A connection that was silent for so long is given to no other account: what is slower than that is rare, and
/// costs a connection.
pub(super) const SILENT_FOR: Duration = Duration::from_secs(1);

/// How long an HTTP/1 connection is idle before it goes to another account: longer than what comes behind an answer
/// takes where its receiver sends that at once, and so short that few more connections serve a host of many accounts.
pub(super) const REST: Duration = Duration::from_millis(10);

/// Each so many times it rests for [`REST_LONG`]: where each request on it has got the answer to the one before, the
/// answer to the last one comes then, and is no request's.
const REST_LONG_EVERY: u32 = 32;

/// Longer than most receivers take to answer, and with [`REST_LONG_EVERY`] half as much as [`REST`] in all.
const REST_LONG: Duration = Duration::from_millis(160);

/// The accounts that use a connection.
#[derive(Debug, Default)]
pub(super) struct Users(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Requests that have not ended.
    ///
    /// Invariant: no more than the connection has streams.
    present: Vec<(u64, AccountId)>,
    requests: u64,
    /// Whose request was the last.
    last: Option<AccountId>,
    /// How often the next request was another account's than the last one.
    handovers: u32,
    silence: Option<Silence>,
    /// When an answer came last.
    answered: Option<Instant>,
    /// Who was there when the connection ended.
    at_end: Option<Arc<[AccountId]>>,
}

/// A request, and for so long as there were so many answers: silence.
#[derive(Debug)]
struct Silence {
    account: AccountId,
    since: Instant,
    answers: u64,
}

/// A request on a connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Using {
    users: Arc<Users>,
    number: u64,
}

impl Drop for Using {
    fn drop(&mut self) {
        let mut inner = self.users.inner();
        if let Some(at) = inner.present.iter().position(|(number, _)| *number == self.number) {
            inner.present.swap_remove(at);
        }
    }
}

impl Users {
    /// A request of the account begins, after so many answers on the connection. With the other account that
    /// it waits behind: the one that the connection is silent for, whose request was the last, or one that has a
    /// request there.
    pub(super) fn begin(
        self: &Arc<Self>,
        account: &AccountId,
        answers: u64,
        now: Instant,
    ) -> (Using, Option<AccountId>) {
        let mut inner = self.inner();
        let last = inner.last.replace(account.clone());
        let silent = inner.silence.take_if(|silence| silence.answers == answers);
        let is_other = |other: &AccountId| other != account;
        inner.handovers += u32::from(last.as_ref().is_some_and(is_other));
        let before = silent.as_ref().map(|silence| silence.account.clone()).filter(is_other);
        let present = || inner.present.iter().map(|(_, of)| of).find(|of| is_other(of)).cloned();
        let before = before.or(last.filter(is_other)).or_else(present);
        inner.silence =
            silent.or_else(|| Some(Silence { account: account.clone(), since: now, answers }));
        let number = inner.requests;
        inner.requests += 1;
        inner.present.push((number, account.clone()));
        drop(inner);
        (Using { users: Arc::clone(self), number }, before)
    }

    /// Whose request was the last.
    pub(super) fn last(&self) -> Option<AccountId> {
        self.inner().last.clone()
    }

    /// Whether requests of several accounts were sent there.
    pub(super) fn are_several(&self) -> bool {
        self.inner().handovers > 0
    }

    /// How long the connection rests before another account's request.
    pub(super) fn rest(&self) -> Duration {
        let next = self.inner().handovers + 1;
        if next.is_multiple_of(REST_LONG_EVERY) { REST_LONG } else { REST }
    }

    /// An answer came.
    pub(super) fn note_answer(&self, now: Instant) {
        self.inner().answered = Some(now);
    }

    /// When an answer came last.
    pub(super) fn last_answer(&self) -> Option<Instant> {
        self.inner().answered
    }

    /// Whether a request of the account would wait behind another account's that has waited for long.
    pub(super) fn is_silent_for(
        &self,
        account: Option<&AccountId>,
        answers: u64,
        now: Instant,
    ) -> bool {
        let inner = self.inner();
        inner.silence.as_ref().is_some_and(|silence| {
            silence.answers == answers
                && account != Some(&silence.account)
                && now.saturating_duration_since(silence.since) >= SILENT_FOR
        })
    }

    /// The connection has ended: whoever is there now was there at its end.
    pub(super) fn end(&self) {
        let mut inner = self.inner();
        if inner.at_end.is_none() {
            let mut accounts: Vec<_> = inner.present.iter().map(|(_, of)| of.clone()).collect();
            accounts.sort_unstable();
            accounts.dedup();
            inner.at_end = Some(accounts.into());
        }
    }

    /// The accounts that were there at its end, if more than one was.
    pub(super) fn several_at_end(&self) -> Option<Arc<[AccountId]>> {
        self.inner().at_end.clone().filter(|accounts| accounts.len() > 1)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves whole entries.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_waits_behind_whom_the_connection_is_silent_for_or_who_was_last() {
        let (users, now) = (Arc::new(Users::default()), Instant::now());
        let [a, b, c] = ["a", "b", "c"].map(AccountId::new);
        let behind = |account: &AccountId, answers| users.begin(account, answers, now).1;
        assert_eq!(behind(&a, 0), None, "it is the first");
        assert_eq!(behind(&a, 0), None, "its own account is no other");
        assert_eq!(behind(&b, 0), Some(a.clone()));
        assert_eq!(behind(&c, 0), Some(a.clone()), "it is silent for the first");
        assert_eq!(behind(&a, 1), Some(c.clone()), "whose was the last");
        assert_eq!(behind(&b, 1), Some(a.clone()));
        assert_eq!(
            behind(&a, 1),
            Some(b.clone()),
            "it is silent for its own, and the last was another's"
        );
        assert_eq!(behind(&a, 1), None, "no other has a request there any more");
        let _using = users.begin(&c, 2, now).0;
        assert_eq!([behind(&a, 3), behind(&a, 3)], [Some(c.clone()), Some(c.clone())]);
        assert_eq!(behind(&a, 1), Some(c.clone()));

        let silent = |account, answers, after| users.is_silent_for(account, answers, now + after);
        assert!(!silent(Some(&b), 1, SILENT_FOR / 2));
        assert!(silent(Some(&b), 1, SILENT_FOR) && silent(None, 1, SILENT_FOR));
        assert!(!silent(Some(&a), 1, SILENT_FOR), "it waits for itself alone");
        assert!(!silent(Some(&b), 2, SILENT_FOR), "an answer has begun");
    }

    #[test]
    fn connection_rests_long_before_each_so_manyth_other_account() {
        let (users, now) = (Arc::new(Users::default()), Instant::now());
        let accounts = ["a", "a", "b", "b", "c"].map(AccountId::new);
        let mut long = Vec::new();
        for account in accounts.iter().cycle().take(200) {
            if users.rest() == REST_LONG && users.last().is_some_and(|last| last != *account) {
                long.push(users.inner().handovers + 1);
            }
            users.begin(account, 0, now);
        }
        assert_eq!(long, [32, 64, 96]);
    }

    #[test]
    fn accounts_at_the_end_are_those_whose_requests_had_not_ended() {
        let (users, now) = (Arc::new(Users::default()), Instant::now());
        let [a, b, c] = ["a", "b", "c"].map(AccountId::new);
        let using = [&a, &b, &a, &c].map(|account| users.begin(account, 0, now).0);
        let [first, second, third, fourth] = using;
        drop(fourth);
        assert_eq!(users.several_at_end(), None, "it has not ended");
        users.end();
        drop((first, second, third));
        users.end();
        assert_eq!(users.several_at_end().as_deref(), Some(&[a.clone(), b][..]));

        let alone = Arc::new(Users::default());
        let _using = [&a, &a].map(|account| alone.begin(account, 0, now).0);
        alone.end();
        assert_eq!(alone.several_at_end(), None);
    }
}
