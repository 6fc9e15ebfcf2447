//! Name resolution for endpoints: a name that leads to a forbidden address is refused, and a name
//! server that does not answer one account costs no other.
//!
//! ```text
//! name ─► known for less than 30 s? ─yes──────────────────────► its addresses ─► judged ─► permitted
//!            │ no                                                    ▲
//!            ├─► silent a moment ago? ─yes─► what was known, or an error
//!            │ no                                                    │
//!            └─► a turn of the account ─► a place for a second ─► name servers ◄── a slow place for 9 s
//!                                              └──── still no answer ─────────────────────┘
//! ```
//!
//! A look-up is a task, which costs some sockets and no thread, and can be dropped. It holds one of
//! the places that others need for `QUICK` at most; then it goes on in one of the places for slow
//! names, of which an account has one, or ends there if none is free. An account that has not yet had
//! an answer asks one thing at a time; one that has waited for a name server in vain has slow places
//! only, until it is answered. A name that nobody answered for is asked for again only after a while,
//! and its attempts fail at once. A name that gets no place is not to blame (`ResolveError::Crowded`).
//!
//! What is judged is never remembered: addresses are, and each connection judges anew.

mod health;
mod look_up;
mod places;
mod system;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use crate::egress::{Policy, Refusal};
use health::Health;
pub use health::NamesTrouble;
use places::{Place, Places};
pub(super) use system::System;
use walhook_core::event::AccountId;
use walhook_process::descriptors;

/// Addresses are used for so long without asking again: a customer who moves waits no longer for new connections.
const FRESH: Duration = Duration::from_secs(30);

/// And for so long when asking fails: what was right before an outage mostly is right within it.
const STALE: Duration = Duration::from_secs(600);

/// So long one waits for an answer where older addresses are known.
const STALE_PATIENCE: Duration = Duration::from_millis(100);

/// So long a look-up holds a place that others need.
const QUICK: Duration = Duration::from_secs(1);

/// So long it goes on in a place for slow names.
const SLOW: Duration = Duration::from_secs(9);

/// A name that nobody answered for is left alone for so long, then twice that, and so on.
const SILENCE: Duration = Duration::from_secs(2);

/// But for no longer than this.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Names that are remembered; beyond, those that are seldom used are forgotten.
const NAMES_MAX: u64 = 16_384;

/// What leads nowhere.
#[derive(Debug, Clone, thiserror::Error)]
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
    /// The name servers have not answered.
    #[error("the name is not resolved within {0:?}")]
    Silent(Duration),
    /// The name servers did not answer a moment ago, and are not asked again so soon.
    #[error("the name's servers do not answer; they are asked again {0:?} after they were last")]
    Left(Duration),
    /// It was not asked for in time: other look-ups, of its account or of all, take up all that may be asked at once.
    /// That is a limit of ours, and says nothing of the name.
    #[error("the name had no turn to be asked for: too many others are, and wait for an answer")]
    Crowded,
}

/// A name's addresses.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) addresses: Vec<IpAddr>,
    /// Whether name servers said so: it may stand here, in a file.
    pub(super) by_servers: bool,
}

/// The addresses of a name, once they come. Where name servers say that there are none, the error is a `NotFound`; where
/// there can be none, an `InvalidInput`.
pub(super) type Answer = Pin<Box<dyn Future<Output = io::Result<Found>> + Send>>;

/// Asks for a name's addresses. What it returns can be dropped.
pub(super) type Lookup = dyn Fn(String) -> Answer + Send + Sync;

/// The system's name servers.
pub(super) fn system_lookup() -> Arc<Lookup> {
    let system = Arc::new(System::new());
    Arc::new(move |name| {
        let system = Arc::clone(&system);
        Box::pin(async move { system.addresses(&name).await })
    })
}

/// Resolves names. Cheap to clone; all clones share what is known and the places.
#[derive(Clone)]
pub(super) struct Resolver(Arc<Inner>);

struct Inner {
    policy: Arc<Policy>,
    lookup: Arc<Lookup>,
    /// How long one waits.
    patience: Duration,
    known: Cache<String, Known>,
    silent: Cache<String, Silence>,
    /// What is being asked just now.
    asking: Mutex<HashMap<String, Asking>>,
    places: Arc<Places>,
    health: Mutex<Health>,
    tasks: TaskTracker,
}

#[derive(Clone)]
struct Known {
    addresses: Arc<[IpAddr]>,
    since: Instant,
    /// Whether they are asked for anew before their time.
    is_outdated: Arc<AtomicBool>,
}

impl Known {
    fn new(addresses: Arc<[IpAddr]>) -> Self {
        Self { addresses, since: Instant::now(), is_outdated: Arc::default() }
    }

    fn is_fresh(&self) -> bool {
        self.since.elapsed() < FRESH && !self.is_outdated.load(Relaxed)
    }
}

/// A name that nobody answered for.
#[derive(Debug, Clone, Copy)]
struct Silence {
    since: Instant,
    lasts: Duration,
}

/// What became of a question.
enum Asked {
    /// Another was answered meanwhile.
    Known(Arc<[IpAddr]>),
    /// It is under way.
    Asking(Asking),
}

/// `None` until there is an answer.
type Asking = watch::Receiver<Option<Result<Arc<[IpAddr]>, ResolveError>>>;

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
            silent: Cache::builder().max_capacity(NAMES_MAX).time_to_live(STALE).build(),
            asking: Mutex::default(),
            places: Arc::new(Places::new(descriptors::limit())),
            health: Mutex::default(),
            tasks: TaskTracker::new(),
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
        Ok(permitted.into_iter().flatten().collect())
    }

    /// The addresses of a name that the operator chose, whatever they are.
    pub(super) async fn own(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let addresses = self.addresses(name, None).await?;
        match addresses.is_empty() {
            true => Err(ResolveError::Nothing),
            false => Ok(addresses.to_vec()),
        }
    }

    /// Whether an address may be contacted.
    pub(super) fn check(&self, address: IpAddr) -> Result<(), ResolveError> {
        self.0.policy.check_address(address).map_err(ResolveError::Forbidden)
    }

    /// Asks anew the next time: none of the name's addresses took a connection. While nobody answers they are used
    /// as before: at another port, for another account, they may take one.
    pub(super) fn outdate(&self, name: &str) {
        if let Some(known) = self.0.known.get(name) {
            known.is_outdated.store(true, Relaxed);
        }
    }

    async fn addresses(
        &self,
        name: &str,
        account: Option<&AccountId>,
    ) -> Result<Arc<[IpAddr]>, ResolveError> {
        let known = self.0.known.get(name);
        let patience = match &known {
            Some(known) if known.is_fresh() => {
                return Ok(Arc::clone(&known.addresses));
            }
            Some(_) => self.0.patience.min(STALE_PATIENCE),
            None => self.0.patience,
        };
        let asked = self.within(patience, name, account).await;
        asked.or_else(|error| known.map(|known| known.addresses).ok_or(error))
    }

    /// The answer, if it comes in time: whose fault it is that it does not shows by whether it was asked for.
    async fn within(
        &self,
        patience: Duration,
        name: &str,
        account: Option<&AccountId>,
    ) -> Result<Arc<[IpAddr]>, ResolveError> {
        let began = Instant::now();
        let Ok(asked) = timeout(patience, self.ask(name, account)).await else {
            return Err(ResolveError::Crowded);
        };
        let asking = match asked? {
            Asked::Known(addresses) => return Ok(addresses),
            Asked::Asking(asking) => asking,
        };
        let left = patience.saturating_sub(began.elapsed());
        timeout(left, answer(asking)).await.unwrap_or_else(|_| {
            // Most of the time went by before the name servers were asked.
            let had_no_turn = left < patience / 2;
            Err(if had_no_turn { ResolveError::Crowded } else { ResolveError::Silent(patience) })
        })
    }

    /// Finds the question that is under way already, or takes a place and asks.
    async fn ask(&self, name: &str, account: Option<&AccountId>) -> Result<Asked, ResolveError> {
        if let Some(asking) = self.under_way(name) {
            return Ok(Asked::Asking(asking));
        }
        self.0.check_silence(name)?;
        let place = match account {
            Some(account) => match Places::take(&self.0.places, account).await {
                Some(place) => Some(place),
                None => return Err(ResolveError::Crowded),
            },
            // The operator's own names are few.
            None => None,
        };
        // While we waited for our place, another may have asked, or been answered.
        self.0.check_silence(name)?;
        if let Some(known) = self.0.known.get(name).filter(Known::is_fresh) {
            return Ok(Asked::Known(known.addresses));
        }
        Ok(Asked::Asking(self.start(name, place)))
    }

    fn under_way(&self, name: &str) -> Option<Asking> {
        self.0.asking().get(name).cloned()
    }

    /// Asks on a task of its own: what was asked is answered and remembered although nobody waits for
    /// it any more.
    fn start(&self, name: &str, place: Option<Place>) -> Asking {
        let mut all = self.0.asking();
        if let Some(asking) = all.get(name) {
            return asking.clone();
        }
        let (tell, asking) = watch::channel(None);
        all.insert(name.to_owned(), asking.clone());
        drop(all);
        let (inner, name) = (Arc::clone(&self.0), name.to_owned());
        self.0.tasks.spawn(async move {
            // Taken off the list however the task ends.
            let listed = Listed { inner: &inner, name: &name };
            let (answer, doubted) = inner.look_up(&name, place).await;
            drop(listed);
            tell.send_replace(Some(answer));
            inner.ask_beside(doubted);
        });
        asking
    }

    /// Whether this machine's name servers answer for no name now.
    pub(super) fn trouble(&self) -> Option<NamesTrouble> {
        self.0.health().trouble(Instant::now())
    }
}

/// A name on the list of those that are being asked.
struct Listed<'a> {
    inner: &'a Inner,
    name: &'a str,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.inner.asking().remove(self.name);
    }
}

async fn answer(mut asking: Asking) -> Result<Arc<[IpAddr]>, ResolveError> {
    let ended = || ResolveError::Dns(Arc::new(io::Error::other("the look-up has ended")));
    let answer = asking.wait_for(Option::is_some).await.map_err(|_| ended())?;
    answer.clone().unwrap_or_else(|| Err(ended()))
}

impl Inner {
    fn asking(&self) -> std::sync::MutexGuard<'_, HashMap<String, Asking>> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
