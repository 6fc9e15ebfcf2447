//! Connections that wait for their next request, and requests that wait for a connection.
//!
//! ```text
//! request ─► one is idle ─────────────────────────► it is used
//!        └─► none is ─► a new one is opened ──┬───► whichever comes first; a new one that comes too late
//!                   └─► one that is given back ┘    is kept for the next request
//! ```
//!
//! Where others are in use, and fewer requests wait for them, a new one is opened only when none of them has been
//! given back within [`PATIENCE`]: as many as a steady rate needs are there soon, and not one for each peak.
//!
//! A host has as many connections as it had requests in flight at once, and those that rest, for of those that a request
//! may have the last one is used first (`pool/own.rs`), and what is not used for [`IDLE_FOR`], or too old
//! (`pool/open.rs`), is closed. All hosts together are bounded by [`Bounds`]: where these are reached, the connection
//! that was idle longest gives way.
//!
//! An HTTP/1 connection rests before it goes to another account: what its receiver sends behind an answer would be the
//! answer to that account's request (`doubt.rs`).
//!
//! Each thread that sends has a shelf of its own, for a connection wakes the thread that opened it. The
//! bounds are those of all shelves together.
//!
//! Nothing drives an idle HTTP/1 connection. What its receiver sends meanwhile stays in the kernel, which
//! holds little of it; that, and that it was closed, is seen before it is used.

mod handles;
mod open;
mod own;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lru_slab::LruSlab;
use tokio::sync::oneshot;
use tokio::time::Instant;
use walhook_core::event::AccountId;

use super::course::Wait;
pub(super) use handles::{Lent, Spare, Waiting};
pub(super) use open::Open;
use own::{Own, Owned};

/// An idle connection is closed after this time: below the 5 s that the least patient common servers
/// keep it (Node.js, uvicorn), so that a request seldom meets a connection that the other side is just
/// closing; and so that idle sockets are at most what a few seconds' requests have opened.
pub(super) const IDLE_FOR: Duration = Duration::from_secs(4);

/// How long a request waits for a connection that is in use before it opens another: longer than quick receivers
/// take to answer, little beside what it takes to open one.
pub(super) const PATIENCE: Duration = Duration::from_millis(3);

/// Connections of one host that go on being opened although no request waits for them any more.
const SPARE_MAX: u32 = 64;

/// Where connections lead that may serve the same requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Host {
    pub(super) https: bool,
    /// Whether nothing but HTTP/1.1 is spoken there.
    pub(super) http1: bool,
    /// Name and port, in small letters.
    pub(super) authority: String,
    /// Whose requests alone may use them; none: those of all accounts that are not apart.
    pub(super) account: Option<AccountId>,
}

/// How many connections there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// All that are open, as far as the requests in flight leave a choice.
    pub(super) open: usize,
    /// Those that are idle.
    pub(super) idle: usize,
}

/// What is kept.
pub(super) trait Kept: Sized + Send + 'static {
    /// Whether requests share it.
    fn is_shared(&self) -> bool;
    /// Another handle of the same connection, for a request of the account (none: of any), where it is shared
    /// and has room for one.
    fn share(&self, account: Option<&AccountId>, now: Instant) -> Option<Self>;
    /// Whose request was the last on it, and how long it rests before another account's; none: it had none.
    fn last(&self) -> Option<(AccountId, Duration)>;
    /// Whether a request may still be sent on it, as far as is known.
    fn is_open(&self, now: Instant) -> bool;
}

/// Connections to all hosts.
#[derive(Debug)]
pub(super) struct Pool<C: Kept> {
    bounds: Bounds,
    open: Arc<AtomicUsize>,
    /// So far, modulo 2^32.
    opened: AtomicU32,
    idle: AtomicUsize,
    shelves: Vec<Mutex<Shelf<C>>>,
}

/// The connections of one thread.
#[derive(Debug)]
struct Shelf<C> {
    idle: LruSlab<Idle<C>>,
    /// Those of which anything is to be remembered.
    hosts: HashMap<Arc<Host>, Places<C>>,
    /// Requests that have waited so far.
    requests: u64,
}

#[derive(Debug)]
struct Idle<C> {
    host: Arc<Host>,
    since: Instant,
    /// None: requests share it.
    owned: Option<Owned>,
    connection: C,
}

/// What is known of one host.
#[derive(Debug)]
struct Places<C> {
    /// Its idle connections that requests do not share.
    own: Own,
    /// Those that requests share: as few as have room for all.
    shared: Vec<u32>,
    /// Requests without a connection, in the order in which they came.
    waiting: BTreeMap<u64, (AccountId, oneshot::Sender<C>)>,
    /// Connections that are opened for no request.
    spare: u32,
    /// Those in use.
    lent: usize,
    /// Of the requests on them, those that wait behind another account's, or did until they were answered.
    behind: Vec<Arc<Wait>>,
}

impl<C> Default for Places<C> {
    fn default() -> Self {
        let (own, shared, waiting) = (Own::default(), Vec::new(), BTreeMap::new());
        Self { own, shared, waiting, spare: 0, lent: 0, behind: Vec::new() }
    }
}

impl<C> Places<C> {
    fn is_empty(&self) -> bool {
        self.own.is_empty()
            && self.shared.is_empty()
            && self.waiting.is_empty()
            && self.spare == 0
            && self.lent == 0
    }
}

impl<C: Kept> Pool<C> {
    /// With so many shelves.
    pub(super) fn new(bounds: Bounds, shelves: usize) -> Self {
        let shelf = || Shelf { idle: LruSlab::new(), hosts: HashMap::new(), requests: 0 };
        let shelves = (0..shelves).map(|_| Mutex::new(shelf())).collect();
        let (opened, idle) = (AtomicU32::new(0), AtomicUsize::new(0));
        Self { bounds, open: Arc::default(), opened, idle, shelves }
    }

    /// An idle connection to the host, or else a place among the requests that wait for one.
    pub(super) fn take(
        self: &Arc<Self>,
        shelf: usize,
        host: &Arc<Host>,
        account: &AccountId,
        now: Instant,
    ) -> Result<C, Waiting<C>> {
        // They are closed when they are dropped, which others need not wait for.
        let mut stale = Vec::new();
        let taken = self.on(shelf, |shelf| {
            let taken = shelf.take(host, account, now, &mut stale);
            taken.ok_or_else(|| shelf.wait(host, account))
        });
        taken.map_err(|(number, receiver, is_patient)| {
            let (pool, host) = (Arc::clone(self), Arc::clone(host));
            Waiting { pool, shelf, host, number, receiver, is_patient }
        })
    }

    /// A connection to the host is in use until what is returned is dropped, by a request that waits so.
    pub(super) fn lend(
        self: &Arc<Self>,
        shelf: usize,
        host: &Arc<Host>,
        wait: Option<Arc<Wait>>,
    ) -> Lent<C> {
        self.on(shelf, |shelf| {
            let places = shelf.hosts.entry(Arc::clone(host)).or_default();
            places.lent += 1;
            places.behind.extend(wait.clone());
        });
        Lent { pool: Arc::clone(self), shelf, host: Arc::clone(host), wait }
    }

    /// Whether a request of the account has waited there for long behind another account's, with nothing answered: the
    /// next one might wait too.
    pub(super) fn is_held_up(
        &self,
        shelf: usize,
        host: &Arc<Host>,
        account: &AccountId,
        now: Instant,
    ) -> bool {
        self.on(shelf, |shelf| {
            let places = shelf.hosts.get(host);
            places.is_some_and(|places| places.behind.iter().any(|wait| wait.is_long(account, now)))
        })
    }

    /// Takes a connection that can serve another request: of those that it may serve at once, the one that has waited
    /// longest gets it.
    pub(super) fn give(&self, shelf: usize, host: &Arc<Host>, connection: C, now: Instant) {
        if !connection.is_open(now) {
            return;
        }
        let left_over = self.on(shelf, |shelf| shelf.give(host, connection, now));
        drop(left_over);
        if self.idle.load(Relaxed) > self.bounds.idle {
            self.evict();
        }
    }

    /// Counts a connection from when it begins to be opened until what is returned is dropped. Where there
    /// are too many, an idle one is closed for it.
    pub(super) fn open(&self, now: Instant) -> Open {
        let others = self.open.fetch_add(1, Relaxed);
        if others >= self.bounds.open {
            self.evict();
        }
        Open::new(&self.open, self.opened.fetch_add(1, Relaxed), now)
    }

    /// Lets a connection be opened for no request, if there are not too many such.
    pub(super) fn spare(self: &Arc<Self>, shelf: usize, host: &Arc<Host>) -> Option<Spare<C>> {
        if self.open.load(Relaxed) >= self.bounds.open {
            return None;
        }
        let may = self.on(shelf, |shelf| {
            let places = shelf.hosts.entry(Arc::clone(host)).or_default();
            let may = places.spare < SPARE_MAX && places.shared.is_empty();
            places.spare += u32::from(may);
            shelf.tidy(host);
            may
        });
        may.then(|| Spare { pool: Arc::clone(self), shelf, host: Arc::clone(host) })
    }

    /// Closes what has been idle for too long.
    pub(super) fn close_expired(&self, now: Instant) {
        for shelf in 0..self.shelves.len() {
            while let Some(expired) = self.on(shelf, |shelf| shelf.take_expired(now)) {
                drop(expired);
            }
        }
    }

    /// Closes the connection that has been idle longest.
    fn evict(&self) {
        let since = |shelf| self.on(shelf, |shelf| shelf.idle_since());
        let shelves = (0..self.shelves.len()).filter_map(|shelf| Some((since(shelf)?, shelf)));
        let evicted = shelves.min().and_then(|(_, shelf)| self.on(shelf, Shelf::evict));
        drop(evicted);
    }

    /// Does something on a shelf, and keeps count of what is idle.
    fn on<R>(&self, shelf: usize, act: impl FnOnce(&mut Shelf<C>) -> R) -> R {
        let shelf = self.shelves.get(shelf).or(self.shelves.first());
        #[expect(clippy::expect_used, reason = "a pool without a shelf is a bug")]
        let shelf = shelf.expect("a pool has a shelf");
        // A panic elsewhere leaves whole entries.
        let mut shelf = shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let before = shelf.idle.len() as usize;
        let result = act(&mut shelf);
        let after = shelf.idle.len() as usize;
        if after > before {
            self.idle.fetch_add(after - before, Relaxed);
        } else if before > after {
            self.idle.fetch_sub(before - after, Relaxed);
        }
        result
    }
}

impl<C: Kept> Shelf<C> {
    /// The first one that is shared and has room, or else the account's own that was used last, or that which has
    /// rested last. Those that are of no use any more come to `stale`.
    fn take(
        &mut self,
        host: &Arc<Host>,
        account: &AccountId,
        now: Instant,
        stale: &mut Vec<C>,
    ) -> Option<C> {
        let places = self.hosts.get_mut(host)?;
        let mut taken = None;
        places.shared.retain(|slot| {
            if taken.is_some() {
                return true;
            }
            let Idle { since, connection, .. } = self.idle.peek(*slot);
            if !is_usable(connection, *since, now) {
                stale.push(self.idle.remove(*slot).connection);
                return false;
            }
            taken = connection.share(Some(account), now);
            if taken.is_some() {
                self.idle.get_mut(*slot).since = now;
            }
            true
        });
        while taken.is_none() {
            let Some(slot) = places.own.find(account, now) else { break };
            let Idle { since, owned, connection, .. } = self.idle.remove(slot);
            if let Some(owned) = &owned {
                places.own.remove(owned, slot);
            }
            if is_usable(&connection, since, now) {
                taken = Some(connection);
            } else {
                stale.push(connection);
            }
        }
        self.tidy(host);
        taken
    }

    /// A place at the end of the line, and whether more connections are in use than requests wait before it.
    fn wait(&mut self, host: &Arc<Host>, account: &AccountId) -> (u64, oneshot::Receiver<C>, bool) {
        let (sender, receiver) = oneshot::channel();
        let number = self.requests;
        self.requests += 1;
        let places = self.hosts.entry(Arc::clone(host)).or_default();
        let is_patient = places.lent > places.waiting.len();
        places.waiting.insert(number, (account.clone(), sender));
        (number, receiver, is_patient)
    }

    /// Returns it if it is of no use.
    fn give(&mut self, host: &Arc<Host>, mut connection: C, now: Instant) -> Option<C> {
        let places = self.hosts.entry(Arc::clone(host)).or_default();
        if connection.is_shared() {
            return self.give_shared(host, connection, now);
        }
        let last = connection.last();
        let serves = |(number, (account, _)): (&u64, &(AccountId, _))| {
            last.as_ref().is_none_or(|(last, _)| last == account).then_some(*number)
        };
        while let Some((_, waiting)) =
            places.waiting.iter().find_map(serves).and_then(|number| places.waiting.remove(&number))
        {
            match waiting.send(connection) {
                Ok(()) => return None,
                Err(left) => connection = left,
            }
        }
        let (last, rest) = last.unzip();
        let owned = places.own.give(last, now + rest.unwrap_or_default());
        let host = Arc::clone(host);
        let slot =
            self.idle.insert(Idle { host, since: now, owned: Some(owned.clone()), connection });
        places.own.insert(owned, slot);
        None
    }

    /// As [`Shelf::give`], of one that requests share: of no use is one more beside one that has room.
    fn give_shared(&mut self, host: &Arc<Host>, connection: C, now: Instant) -> Option<C> {
        let places = self.hosts.entry(Arc::clone(host)).or_default();
        while let Some(first) = places.waiting.first_entry()
            && let Some(shared) = connection.share(Some(&first.get().0), now)
        {
            let (_, waiting) = first.remove();
            // To one that has gone it leaves the room.
            let _gone = waiting.send(shared);
        }
        let has_room = |slot: &u32| self.idle.peek(*slot).connection.share(None, now).is_some();
        if places.shared.iter().any(has_room) {
            return Some(connection);
        }
        let idle = Idle { host: Arc::clone(host), since: now, owned: None, connection };
        places.shared.push(self.idle.insert(idle));
        None
    }

    /// Takes the one out that has been idle longest.
    fn evict(&mut self) -> Option<C> {
        let slot = self.idle.lru()?;
        let Idle { host, owned, connection, .. } = self.idle.remove(slot);
        if let Some(places) = self.hosts.get_mut(&host) {
            match &owned {
                Some(owned) => places.own.remove(owned, slot),
                None => places.shared.retain(|shared| *shared != slot),
            }
        }
        self.tidy(&host);
        Some(connection)
    }

    /// Since when the one has been idle that has been so longest.
    fn idle_since(&self) -> Option<Instant> {
        self.idle.lru().map(|slot| self.idle.peek(slot).since)
    }

    /// Takes out one that has been idle for too long.
    fn take_expired(&mut self, now: Instant) -> Option<C> {
        let idle = now.saturating_duration_since(self.idle_since()?);
        if idle < IDLE_FOR { None } else { self.evict() }
    }

    /// Forgets a host of which nothing is to be remembered.
    fn tidy(&mut self, host: &Arc<Host>) {
        if self.hosts.get(host).is_some_and(Places::is_empty) {
            self.hosts.remove(host);
        }
    }
}

/// Whether it may serve a request that has been idle since then.
fn is_usable<C: Kept>(connection: &C, since: Instant, now: Instant) -> bool {
    connection.is_open(now) && now.saturating_duration_since(since) < IDLE_FOR
}

#[cfg(test)]
mod tests;
