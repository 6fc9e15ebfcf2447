//! Whose requests are on a connection: who waits there behind whom, and who was there when it ended.
//!
//! A connection is *silent* from the first request after its last answer on, until the next answer's head. Informational
//! ones are none: a receiver that sends them for one account may read nothing of another.

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

/// A request, and no answer since.
#[derive(Debug)]
struct Silence {
    account: AccountId,
    since: Instant,
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
    /// A request of the account begins. With the other account that it waits behind: the one that the connection is
    /// silent for, whose request was the last, or one that has a request there.
    pub(super) fn begin(
        self: &Arc<Self>,
        account: &AccountId,
        now: Instant,
    ) -> (Using, Option<AccountId>) {
        let mut inner = self.inner();
        let last = inner.last.replace(account.clone());
        let is_other = |other: &AccountId| other != account;
        inner.handovers += u32::from(last.as_ref().is_some_and(is_other));
        let before = inner.silence.as_ref().map(|silence| silence.account.clone()).filter(is_other);
        let present = || inner.present.iter().map(|(_, of)| of).find(|of| is_other(of)).cloned();
        let before = before.or(last.filter(is_other)).or_else(present);
        inner.silence.get_or_insert_with(|| Silence { account: account.clone(), since: now });
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

    /// The head of an answer came.
    pub(super) fn note_answer(&self, now: Instant) {
        let mut inner = self.inner();
        (inner.answered, inner.silence) = (Some(now), None);
    }

    /// When an answer came last.
    pub(super) fn last_answer(&self) -> Option<Instant> {
        self.inner().answered
    }

    /// Whether a request of the account would wait behind another account's that has waited for long.
    pub(super) fn is_silent_for(&self, account: Option<&AccountId>, now: Instant) -> bool {
        let inner = self.inner();
        inner.silence.as_ref().is_some_and(|silence| {
            account != Some(&silence.account)
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
        let behind = |account: &AccountId| users.begin(account, now).1;
        assert_eq!(behind(&a), None, "it is the first");
        assert_eq!(behind(&a), None, "its own account is no other");
        assert_eq!(behind(&b), Some(a.clone()));
        assert_eq!(behind(&c), Some(a.clone()), "it is silent for the first");
        users.note_answer(now);
        assert_eq!(behind(&a), Some(c.clone()), "whose was the last");
        assert_eq!(behind(&b), Some(a.clone()));
        assert_eq!(
            behind(&a),
            Some(b.clone()),
            "it is silent for its own, and the last was another's"
        );
        assert_eq!(behind(&a), None, "no other has a request there any more");
        users.note_answer(now);
        let _using = users.begin(&c, now).0;
        users.note_answer(now);
        assert_eq!([behind(&a), behind(&a)], [Some(c.clone()), Some(c.clone())]);

        let silent = |account, after| users.is_silent_for(account, now + after);
        assert!(!silent(Some(&b), SILENT_FOR / 2));
        assert!(silent(Some(&b), SILENT_FOR) && silent(None, SILENT_FOR));
        assert!(!silent(Some(&a), SILENT_FOR), "it waits for itself alone");
        users.note_answer(now);
        assert!(!silent(Some(&b), SILENT_FOR), "it was answered");
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
            users.begin(account, now);
        }
        assert_eq!(long, [32, 64, 96]);
    }

    #[test]
    fn accounts_at_the_end_are_those_whose_requests_had_not_ended() {
        let (users, now) = (Arc::new(Users::default()), Instant::now());
        let [a, b, c] = ["a", "b", "c"].map(AccountId::new);
        let using = [&a, &b, &a, &c].map(|account| users.begin(account, now).0);
        let [first, second, third, fourth] = using;
        drop(fourth);
        assert_eq!(users.several_at_end(), None, "it has not ended");
        users.end();
        drop((first, second, third));
        users.end();
        assert_eq!(users.several_at_end().as_deref(), Some(&[a.clone(), b][..]));

        let alone = Arc::new(Users::default());
        let _using = [&a, &a].map(|account| alone.begin(account, now).0);
        alone.end();
        assert_eq!(alone.several_at_end(), None);
    }
}
