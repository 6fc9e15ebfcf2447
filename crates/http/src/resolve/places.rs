//! The places of look-ups: who may ask, and how much at a time.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use walhook_core::event::AccountId;

/// Look-ups at a time that are not yet slow: a thousand accounts may bring silent name servers at one
/// moment and still leave room.
const QUICK_MAX: usize = 1536;

/// Look-ups at a time that are slow.
const SLOW_MAX: usize = 512;

/// Of the descriptors that the process may have, this part at most is for a look-up each: one that is
/// not answered takes up to eight, for two questions are sent four times, each from a port of its own.
const DESCRIPTORS_EACH: usize = 16;

/// Of one account; the turns of one that nobody has answered yet are one.
const ACCOUNT_MAX: u32 = 8;

/// An account stays answered, or silent, for so long.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Accounts that are remembered.
const ACCOUNTS_MAX: u64 = 65_536;

#[derive(Debug)]
pub(super) struct Places {
    quick: Arc<Semaphore>,
    slow: Arc<Semaphore>,
    turns: Mutex<HashMap<AccountId, Arc<Semaphore>>>,
    /// Accounts that hold a slow place.
    slow_accounts: Mutex<HashSet<AccountId>>,
    /// Whether the last look-up of an account was answered in time.
    answered: Cache<AccountId, bool>,
}

/// One account's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    account: AccountId,
    quick: Option<(Turn, OwnedSemaphorePermit)>,
    slow: Option<OwnedSemaphorePermit>,
}

impl Places {
    /// As many as a process with so many descriptors can have.
    pub(super) fn new(descriptors: usize) -> Self {
        let part = (descriptors / DESCRIPTORS_EACH).max(32);
        let cache = Cache::builder().max_capacity(ACCOUNTS_MAX).time_to_live(REMEMBERED);
        Self {
            quick: Arc::new(Semaphore::new(QUICK_MAX.min(part))),
            slow: Arc::new(Semaphore::new(SLOW_MAX.min(part / 2))),
            turns: Mutex::default(),
            slow_accounts: Mutex::default(),
            answered: cache.build(),
        }
    }

    /// Waits for a place; of an account whose name servers are silent it is a slow one, and `None`
    /// where that is taken.
    pub(super) async fn take(places: &Arc<Self>, account: &AccountId) -> Option<Place> {
        let mut place =
            Place { places: Arc::clone(places), account: account.clone(), quick: None, slow: None };
        if places.is_silent(account) {
            return place.slow_down().then_some(place);
        }
        let turn = Turn::take(places, account).await?;
        if places.is_silent(account) {
            return place.slow_down().then_some(place); // it became so while we waited
        }
        let quick = Arc::clone(&places.quick).acquire_owned().await.ok()?;
        place.quick = Some((turn, quick));
        Some(place)
    }

    fn is_silent(&self, account: &AccountId) -> bool {
        self.answered.get(account) == Some(false)
    }
}

impl Place {
    /// The account's name servers answer: it may ask more at a time.
    pub(super) fn answered(&self) {
        self.places.answered.insert(self.account.clone(), true);
    }

    /// Leaves the quick place for a slow one. `false` where there is none: the account has one already,
    /// or all are taken. The account counts as silent from now on.
    pub(super) fn slow_down(&mut self) -> bool {
        self.places.answered.insert(self.account.clone(), false);
        self.quick = None;
        if self.slow.is_some() {
            return true;
        }
        let mut accounts = lock(&self.places.slow_accounts);
        if accounts.contains(&self.account) {
            return false;
        }
        let Ok(slow) = Arc::clone(&self.places.slow).try_acquire_owned() else { return false };
        accounts.insert(self.account.clone());
        self.slow = Some(slow);
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.slow.is_some() {
            lock(&self.places.slow_accounts).remove(&self.account);
        }
    }
}

/// One account's turn, or its wait for one. There are entries for the accounts that ask just now alone.
#[derive(Debug)]
struct Turn {
    places: Arc<Places>,
    account: AccountId,
    permit: Option<OwnedSemaphorePermit>,
}

impl Turn {
    async fn take(places: &Arc<Places>, account: &AccountId) -> Option<Self> {
        let most = usize::try_from(ACCOUNT_MAX).unwrap_or(1);
        let turns = {
            let mut all = lock(&places.turns);
            let turns = all.entry(account.clone());
            Arc::clone(turns.or_insert_with(|| Arc::new(Semaphore::new(most))))
        };
        // Made before the wait: dropped in the middle of it, it clears up too.
        let mut turn = Self { places: Arc::clone(places), account: account.clone(), permit: None };
        let alone = places.answered.get(account) != Some(true);
        let permits = if alone { ACCOUNT_MAX } else { 1 };
        turn.permit = Some(turns.acquire_many_owned(permits).await.ok()?);
        Some(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut all = lock(&self.places.turns);
        drop(self.permit.take());
        // Handles are made under the lock alone; whoever waits or asks holds one.
        if let Entry::Occupied(turns) = all.entry(self.account.clone())
            && Arc::strong_count(turns.get()) == 1
        {
            turns.remove();
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
impl Places {
    /// Free places: quick, slow; and the accounts that are asking.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        let asking = lock(&self.turns).len() + lock(&self.slow_accounts).len();
        (self.quick.available_permits(), self.slow.available_permits(), asking)
    }
}
