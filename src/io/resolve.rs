//! Name resolution for endpoints: a name that leads to a forbidden address is refused, and a name
//! server that does not answer one account costs no other.
//!
//! ```text
//! name ─► known for less than 30 s? ─yes─► its addresses ─► judged ─► those permitted
//!            │ no                              ▲
//!            └─► a turn of the account ─► a turn of all ─► operating system ─┘
//! ```
//!
//! The operating system is asked on a thread that cannot be stopped, and a name server that is silent
//! holds it for many seconds. So there are [`LOOKUPS_MAX`] such threads, of which one account holds
//! [`LOOKUPS_PER_ACCOUNT`] at most, until the system has answered and not only until we have lost
//! patience. What is judged is never remembered: addresses are, and each connection judges anew.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::engine::egress::{Policy, Refusal};
use crate::engine::event::AccountId;

/// Look-ups at a time: a quarter of the runtime's threads for what blocks.
const LOOKUPS_MAX: usize = 128;

/// Of one account. Sixteen accounts whose name servers are all silent do not stop the others.
const LOOKUPS_PER_ACCOUNT: usize = 8;

/// Addresses are used for so long without asking again: a customer who moves waits no longer.
const FRESH: Duration = Duration::from_secs(30);

/// And for so long when asking fails: what was right before an outage mostly is right within it.
const STALE: Duration = Duration::from_secs(600);

/// Names that are remembered; beyond, those that are seldom used are forgotten.
const NAMES_MAX: u64 = 16_384;

/// Addresses of one name that are tried: a name has as many as its owner likes.
const ADDRESSES_MAX: usize = 8;

/// What leads nowhere.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResolveError {
    /// The name leads to no permitted address.
    #[error("{0}")]
    Forbidden(Refusal),
    /// The name does not resolve.
    #[error("the name does not resolve: {0}")]
    Dns(Arc<io::Error>),
    /// It resolves to nothing.
    #[error("the name resolves to no address")]
    Nothing,
    /// The system has not answered, or so many look-ups wait that ours had no turn.
    #[error("the name is not resolved within {0:?}")]
    Silent(Duration),
}

/// Asks for a name's addresses; blocks.
pub(super) type Lookup = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// The operating system's resolver.
pub(super) fn system_lookup(name: &str) -> io::Result<Vec<IpAddr>> {
    Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
}

/// Resolves names. Cheap to clone; all clones share what is known and the turns.
#[derive(Clone)]
pub(super) struct Resolver(Arc<Inner>);

struct Inner {
    policy: Arc<Policy>,
    lookup: Arc<Lookup>,
    /// How long one waits.
    patience: Duration,
    known: Cache<String, Known>,
    turns: Arc<Semaphore>,
    accounts: Arc<Accounts>,
}

#[derive(Clone)]
struct Known {
    addresses: Arc<[IpAddr]>,
    since: Instant,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Resolver {
    pub(super) fn new(policy: Arc<Policy>, lookup: Arc<Lookup>, patience: Duration) -> Self {
        Self(Arc::new(Inner {
            policy,
            lookup,
            patience,
            known: Cache::builder().max_capacity(NAMES_MAX).time_to_live(STALE).build(),
            turns: Arc::new(Semaphore::new(LOOKUPS_MAX)),
            accounts: Arc::default(),
        }))
    }

    /// The permitted addresses of an endpoint's name, on behalf of its account.
    ///
    /// Of a name with public and private addresses these are the public ones. A name without a
    /// permitted address is refused, with the first reason.
    pub(super) async fn endpoint(
        &self,
        name: &str,
        account: &AccountId,
    ) -> Result<Vec<IpAddr>, ResolveError> {
        let addresses = self.addresses(name, Some(account)).await?;
        let judge = |address: &IpAddr| self.check(*address).map(|()| *address);
        let (permitted, refused): (Vec<_>, Vec<_>) =
            addresses.iter().map(judge).partition(Result::is_ok);
        if permitted.is_empty() {
            let first = refused.into_iter().find_map(Result::err);
            return Err(first.unwrap_or(ResolveError::Nothing));
        }
        Ok(permitted.into_iter().flatten().take(ADDRESSES_MAX).collect())
    }

    /// The addresses of a name that the operator chose, whatever they are.
    pub(super) async fn own(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let addresses = self.addresses(name, None).await?;
        match addresses.is_empty() {
            true => Err(ResolveError::Nothing),
            false => Ok(addresses.iter().copied().take(ADDRESSES_MAX).collect()),
        }
    }

    /// Whether an address may be contacted.
    pub(super) fn check(&self, address: IpAddr) -> Result<(), ResolveError> {
        self.0.policy.check_address(address).map_err(ResolveError::Forbidden)
    }

    /// Asks anew the next time: none of the name's addresses took a connection.
    pub(super) fn forget(&self, name: &str) {
        self.0.known.invalidate(name);
    }

    async fn addresses(
        &self,
        name: &str,
        account: Option<&AccountId>,
    ) -> Result<Arc<[IpAddr]>, ResolveError> {
        let known = self.0.known.get(name);
        match known {
            Some(known) if known.since.elapsed() < FRESH => Ok(known.addresses),
            known => {
                let asked = timeout(self.0.patience, self.ask(name, account)).await;
                let asked = asked.unwrap_or(Err(ResolveError::Silent(self.0.patience)));
                asked.or_else(|error| known.map(|known| known.addresses).ok_or(error))
            }
        }
    }

    /// Takes the turns and asks. What was asked is answered and remembered although nobody waits for
    /// it any more, and only then are the turns given back.
    async fn ask(
        &self,
        name: &str,
        account: Option<&AccountId>,
    ) -> Result<Arc<[IpAddr]>, ResolveError> {
        let of_account = match account {
            Some(account) => Some(Turn::take(&self.0.accounts, account).await),
            None => None,
        };
        let of_all = Arc::clone(&self.0.turns).acquire_owned().await;
        if let Some(known) = self.0.known.get(name).filter(|known| known.since.elapsed() < FRESH) {
            return Ok(known.addresses); // another's answer came while we waited
        }
        let (inner, name) = (Arc::clone(&self.0), name.to_owned());
        let asking = tokio::task::spawn_blocking(move || {
            let answer = (inner.lookup)(&name).map(Arc::<[IpAddr]>::from);
            if let Ok(addresses) = &answer {
                let known = Known { addresses: Arc::clone(addresses), since: Instant::now() };
                inner.known.insert(name, known);
            }
            drop((of_account, of_all));
            answer
        });
        let answer = asking.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        answer.map_err(|error| ResolveError::Dns(Arc::new(error)))
    }
}

/// The turns of the accounts that are asking just now; there is no entry for the others.
#[derive(Debug, Default)]
struct Accounts(Mutex<HashMap<AccountId, Arc<Semaphore>>>);

/// One account's turn, or its wait for one.
#[derive(Debug)]
struct Turn {
    accounts: Arc<Accounts>,
    account: AccountId,
    permit: Option<OwnedSemaphorePermit>,
}

impl Turn {
    async fn take(accounts: &Arc<Accounts>, account: &AccountId) -> Self {
        let turns = {
            let mut all = accounts.0.lock().unwrap_or_else(PoisonError::into_inner);
            let turns = all.entry(account.clone());
            Arc::clone(turns.or_insert_with(|| Arc::new(Semaphore::new(LOOKUPS_PER_ACCOUNT))))
        };
        // Made before the wait: dropped in the middle of it, it clears up too.
        let mut turn =
            Self { accounts: Arc::clone(accounts), account: account.clone(), permit: None };
        turn.permit = turns.acquire_owned().await.ok();
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut all = self.accounts.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.permit.take());
        // Handles are made under the lock alone; whoever waits or asks holds one.
        if let Entry::Occupied(turns) = all.entry(self.account.clone())
            && Arc::strong_count(turns.get()) == 1
        {
            turns.remove();
        }
    }
}

#[cfg(test)]
mod tests;
