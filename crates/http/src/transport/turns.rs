//! Turns at signing what takes long: few at a time, and of one account one after the other, so that no account
//! waits for more than one of each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use walhook_core::event::AccountId;

/// Large bodies that are signed at a time.
const AT_ONCE: usize = 2;

/// See the module's documentation.
///
/// Invariant: `of_accounts` has those alone that wait or sign.
#[derive(Debug)]
pub(super) struct Turns {
    all: Semaphore,
    of_accounts: Mutex<HashMap<AccountId, Arc<Semaphore>>>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    _of_all: SemaphorePermit<'a>,
    _of_account: Place<'a>,
}

/// A place in the line of an account.
#[derive(Debug)]
struct Place<'a> {
    turns: &'a Turns,
    account: &'a AccountId,
    line: Option<Arc<Semaphore>>,
    turn: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { all: Semaphore::new(AT_ONCE), of_accounts: Mutex::default() }
    }

    /// Waits for a turn of the account. `None` would be that the turns are over, which they never are.
    pub(super) async fn take<'a>(&'a self, account: &'a AccountId) -> Option<Turn<'a>> {
        let line = {
            let mut of_accounts = self.of_accounts.lock().unwrap_or_else(PoisonError::into_inner);
            let line = of_accounts.entry(account.clone());
            Arc::clone(line.or_insert_with(|| Arc::new(Semaphore::new(1))))
        };
        let mut place = Place { turns: self, account, line: Some(Arc::clone(&line)), turn: None };
        place.turn = Some(line.acquire_owned().await.ok()?);
        let _of_all = self.all.acquire().await.ok()?;
        Some(Turn { _of_all, _of_account: place })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut of_accounts = self.turns.of_accounts.lock().unwrap_or_else(PoisonError::into_inner);
        (self.turn, self.line) = (None, None);
        // The map's own is the last: nobody waits in this line any more.
        if of_accounts.get(self.account).is_some_and(|line| Arc::strong_count(line) == 1) {
            of_accounts.remove(self.account);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn account_that_asks_for_many_turns_leaves_one_to_each_other() {
        let (turns, a, b) = (Turns::new(), AccountId::new("a"), AccountId::new("b"));
        let first = turns.take(&a).now_or_never().unwrap();
        let mut second = Box::pin(turns.take(&a));
        assert!(second.as_mut().now_or_never().is_none(), "its account has one");
        let of_other = turns.take(&b).now_or_never().unwrap();
        let c = AccountId::new("c");
        assert!(turns.take(&c).now_or_never().is_none(), "there are two");
        assert_eq!(turns.of_accounts.lock().unwrap().len(), 2, "who waits no more is forgotten");
        drop(first);
        assert!(second.now_or_never().is_some());
        drop(of_other);
        assert!(turns.of_accounts.lock().unwrap().is_empty());
    }
}
