//! Turns at signing what takes long: few at a time, of one account one after the other, and by what each costs.
//!
//! ```text
//! take ─► line of the account ─► line of all ─► turn
//! ```
//!
//! Of all accounts that one is next that would be done first if all of them signed at the same time, each as fast as
//! the others. So what costs little waits for those alone that sign just then, however many wait that cost much; and
//! an account that has had much comes behind those that have had less. One that gives up has had nothing.
//!
//! Source: A. Demers, S. Keshav and S. Shenker, "Analysis and simulation of a fair queueing algorithm", 1989.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use walhook_core::event::AccountId;

/// Large bodies that are signed at a time.
const AT_ONCE: usize = 2;

/// See the module's documentation.
///
/// Invariant: `of_accounts` has those alone that wait or sign.
#[derive(Debug)]
pub(super) struct Turns {
    line: Mutex<Line>,
    of_accounts: Mutex<HashMap<AccountId, Arc<Semaphore>>>,
}

/// Where each account has the one that is next.
///
/// Invariants: nobody waits while a turn is free. While nobody signs it remembers no account.
#[derive(Debug)]
struct Line {
    free: usize,
    /// So many bytes each account could have had signed, if all of them always had something.
    now: u64,
    /// How many came.
    came: u64,
    /// By when they would be done, and then as they came.
    waiting: BTreeMap<(u64, u64), Waiting>,
    /// When those would be done that wait, or have had more than their share.
    accounts: HashMap<AccountId, u64>,
}

#[derive(Debug)]
struct Waiting {
    bytes: u64,
    given: oneshot::Sender<()>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    _of_all: Place<'a>,
    _of_account: AccountPlace<'a>,
}

/// A place in the line of all, or the turn that it has come to.
#[derive(Debug)]
struct Place<'a> {
    turns: &'a Turns,
    account: &'a AccountId,
    key: (u64, u64),
}

/// A place in the line of an account.
#[derive(Debug)]
struct AccountPlace<'a> {
    turns: &'a Turns,
    account: &'a AccountId,
    line: Option<Arc<Semaphore>>,
    turn: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub(super) fn new() -> Self {
        let (waiting, accounts) = (BTreeMap::new(), HashMap::new());
        let line = Line { free: AT_ONCE, now: 0, came: 0, waiting, accounts };
        Self { line: Mutex::new(line), of_accounts: Mutex::default() }
    }

    /// Waits for a turn of the account to sign so many bytes, once for each secret. `None` would be that the turns are
    /// over, which they never are.
    pub(super) async fn take<'a>(
        &'a self,
        account: &'a AccountId,
        bytes: usize,
    ) -> Option<Turn<'a>> {
        let line = {
            let mut of_accounts = self.of_accounts.lock().unwrap_or_else(PoisonError::into_inner);
            let line = of_accounts.entry(account.clone());
            Arc::clone(line.or_insert_with(|| Arc::new(Semaphore::new(1))))
        };
        let mut of_account =
            AccountPlace { turns: self, account, line: Some(Arc::clone(&line)), turn: None };
        of_account.turn = Some(line.acquire_owned().await.ok()?);
        let (place, turn) = self.stand_in_line(account, bytes);
        turn.await.ok()?;
        Some(Turn { _of_all: place, _of_account: of_account })
    }

    fn stand_in_line<'a>(
        &'a self,
        account: &'a AccountId,
        bytes: usize,
    ) -> (Place<'a>, oneshot::Receiver<()>) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let (given, turn) = oneshot::channel();
        let mut line = self.line();
        let had = line.accounts.get(account).copied().unwrap_or(0);
        let key = (had.max(line.now).saturating_add(bytes), line.came);
        line.came += 1;
        line.accounts.insert(account.clone(), key.0);
        line.waiting.insert(key, Waiting { bytes, given });
        line.give();
        (Place { turns: self, account, key }, turn)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // A panic elsewhere leaves whole entries.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// Gives the turns that are free. One that nobody waits for any more comes back when its place is dropped.
    fn give(&mut self) {
        while self.free > 0
            && let Some((_, Waiting { bytes, given })) = self.waiting.pop_first()
        {
            self.free -= 1;
            let sharing = self.accounts.len().max(1 + self.waiting.len());
            self.now = self.now.saturating_add(bytes / u64::try_from(sharing).unwrap_or(u64::MAX));
            let now = self.now;
            self.accounts.retain(|_, until| *until > now);
            let _unless_it_gave_up = given.send(());
        }
        if self.free == AT_ONCE {
            self.accounts.clear();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut line = self.turns.line();
        match line.waiting.remove(&self.key) {
            Some(Waiting { bytes, .. }) => {
                let had = self.key.0.saturating_sub(bytes);
                line.accounts.insert(self.account.clone(), had);
            }
            None => {
                line.free += 1;
                line.give();
            }
        }
    }
}

impl Drop for AccountPlace<'_> {
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

    const LARGE: usize = 9_000_000;
    const SMALL: usize = 300_000;

    fn accounts<const N: usize>() -> [AccountId; N] {
        std::array::from_fn(|n| AccountId::new(n.to_string().as_str()))
    }

    #[test]
    fn account_that_asks_for_many_turns_leaves_one_to_each_other() {
        let (turns, [a, b, c]) = (Turns::new(), accounts());
        let first = turns.take(&a, LARGE).now_or_never().unwrap();
        let mut second = Box::pin(turns.take(&a, LARGE));
        assert!(second.as_mut().now_or_never().is_none(), "its account has one");
        let of_other = turns.take(&b, LARGE).now_or_never().unwrap();
        assert!(turns.take(&c, LARGE).now_or_never().is_none(), "there are two");
        assert_eq!(turns.of_accounts.lock().unwrap().len(), 2, "who waits no more is forgotten");
        drop(first);
        assert!(second.now_or_never().is_some());
        drop(of_other);
        assert!(turns.of_accounts.lock().unwrap().is_empty());
        let line = turns.line();
        assert_eq!((line.free, line.waiting.len(), line.accounts.len()), (AT_ONCE, 0, 0));
    }

    #[test]
    fn what_costs_little_waits_for_what_is_signed_just_then_and_hardly_for_anyone_else() {
        let (turns, accounts, other) = (Turns::new(), accounts::<40>(), AccountId::new("other"));
        // Each of these always has more to be signed.
        let take_again = |account| Some(Box::pin(turns.take(account, LARGE)));
        let mut large: Vec<_> =
            accounts.iter().map(|account| (account, take_again(account), None)).collect();
        let (mut small, mut since, mut most) = (None, 0, 0);
        for signed in 0..400 {
            for (_, take, turn) in &mut large {
                let next = take.as_mut().and_then(|take| take.as_mut().now_or_never());
                if let Some(next) = next {
                    (*take, *turn) = (None, next);
                }
            }
            // The other one has less than its share: something now and then.
            if signed % 5 == 0 {
                small = Some(Box::pin(turns.take(&other, SMALL)));
                since = signed;
            }
            if small.as_mut().is_some_and(|take| take.as_mut().now_or_never().is_some()) {
                (small, most) = (None, most.max(signed - since));
            }
            let signing = large.iter_mut().find(|(.., turn)| turn.is_some());
            let (account, take, turn) = signing.expect("a turn is one of theirs");
            (*take, *turn) = (take_again(*account), None);
        }
        assert!(small.is_none() && (1..=3).contains(&most), "{most}");
    }

    #[test]
    fn what_costs_much_has_its_share_beside_what_costs_little() {
        let (turns, [held, much, one, two]) = (Turns::new(), accounts());
        let _held = turns.take(&held, SMALL).now_or_never().unwrap();
        let mut turn = turns.take(&two, SMALL).now_or_never().unwrap();
        let mut waits = Box::pin(turns.take(&much, LARGE));
        assert!(waits.as_mut().now_or_never().is_none());
        let mut before = 0;
        for account in [&one, &two].into_iter().cycle() {
            let mut next = Box::pin(turns.take(account, SMALL));
            assert!(next.as_mut().now_or_never().is_none());
            drop(turn);
            match next.now_or_never() {
                Some(next) => (turn, before) = (next, before + 1),
                None => break,
            }
        }
        assert!(waits.now_or_never().is_some());
        assert!((10..=2 * LARGE / SMALL).contains(&before), "{before}");
    }
}
