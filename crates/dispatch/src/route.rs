//! Which endpoints an account has: a bounded cache that is kept true by the stream itself.
//!
//! ```text
//! event ──get──► routes, or want ──poll_lookup──► (SQL) ──handle_lookup──► routes
//! change of a watched table ──handle_invalidation──► outdated, and remembered until SQL shows it
//! ```
//!
//! # Why what it answers is true
//!
//! A change of the endpoint table arrives in the stream, in commit order, and outdates what it
//! concerns. But the stream can show a commit before SQL does (under synchronous replication for
//! seconds), and a look-up can overlap an invalidation. So every invalidation is remembered, with
//! its transaction's id, until some look-up's snapshot has seen that transaction. A look-up's answer
//! counts only if its snapshot sees every remembered transaction that concerns it; else it is asked
//! again. One batch is in flight at a time, and on one primary a later snapshot sees all that an
//! earlier one saw; so what one snapshot has seen, every later look-up sees, and may be forgotten.
//!
//! Whether an invalidation concerns an answer is known exactly: it names the account, or one of the
//! endpoints in the answer. An endpoint that moves away from an account whose old row the WAL does
//! not name is found by its id among that account's endpoints.
//!
//! What is remembered is lost in a crash. So the dispatcher holds the frontier at a transaction that
//! invalidated something until a snapshot has seen it: else the next process would not hear of it
//! again, and believe a look-up that does not show it yet. While anything is remembered, look-ups are
//! made for their snapshot's sake alone.
//!
//! Routes also grow old (`ROUTES_TTL`): they are asked for again, so that a corrected endpoint reaches us
//! even while the stream stands still, because memory is full of what that endpoint does not take. Until
//! the answer comes they go on being used: no invalidation says that they do not hold, and an account that
//! is known must not notice that look-ups fail.
//!
//! # Which endpoints have joined
//!
//! Routes that no longer hold stay in memory, as far as there is room, to be held against the ones
//! that follow: an endpoint that they did not have, or that wanted less, has *joined* the account.
//! Where there are none to compare, every endpoint that the stream has named lately counts as joined.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use walhook_core::endpoint::{Endpoint, Routes};
use walhook_core::event::{AccountId, EndpointId, Invalidation, Scope};
use walhook_core::heap::map_entry;
use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;

use named::Named;
use owners::Owners;

mod named;
mod owners;

/// Accounts looked up by one statement. Enough to make the round trip cheap, few enough to keep it
/// short.
pub const LOOKUP_BATCH: usize = 500;

/// How old routes get before they are asked for again, although nothing invalidates them.
const ROUTES_TTL: Duration = Duration::from_secs(60);

/// For each endpoint they may be so much older: reading hundreds of thousands takes seconds.
const TTL_OF_ENDPOINT: Duration = Duration::from_millis(3);

/// How long to wait before asking again when SQL does not show yet what the stream has shown.
const UNSEEN_RETRY: Duration = Duration::from_millis(20);

/// So many invalidations of one transaction are remembered as one of everything.
const OF_ONE_TXN: usize = 256;

/// With so many the older half is remembered as one: see [`Snapshot::sees_all_to`].
const REMEMBER_AT_MOST: usize = 4_096;

/// A snapshot as `pg_current_snapshot()` prints it: which transactions its statement sees.
///
/// Source: PostgreSQL manual, "Transaction ID and Snapshot Information Functions".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    xmin: u64,
    xmax: u64,
    in_progress: Vec<u64>,
}

/// The text is not a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a snapshot; expected xmin:xmax:xip,xip")]
pub struct ParseSnapshotError(String);

impl std::str::FromStr for Snapshot {
    type Err = ParseSnapshotError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.splitn(3, ':');
            let xmin = parts.next()?.parse().ok()?;
            let xmax = parts.next()?.parse().ok()?;
            let list = parts.next()?;
            let xids = list.split(',').filter(|xid| !xid.is_empty()).map(|xid| xid.parse().ok());
            Some(Self { xmin, xmax, in_progress: xids.collect::<Option<_>>()? })
        };
        parse().ok_or_else(|| ParseSnapshotError(text.to_owned()))
    }
}

impl Snapshot {
    /// Whether a transaction that has committed is seen, by the 32-bit id that the stream gives.
    ///
    /// The id's upper half is taken from the snapshot: of all 64-bit ids with this lower half the
    /// one nearest to `xmax` is meant, since transactions are never 2³¹ apart.
    #[must_use]
    pub fn sees(&self, xid: u32) -> bool {
        let xid = self.whole(xid);
        xid < self.xmin || (xid < self.xmax && !self.in_progress.contains(&xid))
    }

    /// Whether all that have committed are seen up to this one, by their ids.
    #[must_use]
    pub fn sees_all_to(&self, xid: u32) -> bool {
        self.whole(xid) < self.xmin
    }

    /// The 64-bit id that is meant by its lower half.
    fn whole(&self, xid: u32) -> u64 {
        let half = 1u64 << 31;
        let near = (self.xmax & !0xFFFF_FFFF) | u64::from(xid);
        if near > self.xmax.saturating_add(half) {
            near.wrapping_sub(half << 1)
        } else if near.saturating_add(half) < self.xmax {
            near + (half << 1)
        } else {
            near
        }
    }
}

/// What a look-up has told of an account.
#[derive(Debug)]
pub struct LookedUp {
    /// The account.
    pub account: AccountId,
    /// Its routes. Large ones are pinned: unpin them where nothing is pending.
    pub routes: Arc<Routes>,
    /// The endpoints that have joined: to which earlier events of the account may not have been
    /// routed, although they would be now.
    pub joined: Vec<EndpointId>,
}

/// Routes that would take more than one part in so many of the cache are never in it: they would drive
/// out all others.
const CACHE_PARTS: usize = 8;

/// What is known of an account beside its routes.
const KNOWN_BYTES: usize = map_entry(size_of::<AccountId>() + size_of::<Option<Known>>()) + 64;

/// Routes with what tells whether they still hold.
#[derive(Debug, Clone)]
struct Known {
    routes: Arc<Routes>,
    /// An invalidation concerns them.
    outdated: bool,
    /// Counts the invalidations of everything: routes of an earlier era do not hold.
    era: u64,
    fetched: Tick,
}

impl Known {
    fn bytes(&self) -> usize {
        KNOWN_BYTES + self.routes.size_bytes()
    }
}

/// The routes of all accounts, as far as they are known.
///
/// Invariant: an account whose deliveries are pending is *pinned*: its routes are never evicted for
/// room. The others live in a cache of bounded size that drops the least recently used. Large ones are
/// pinned when they are looked up, for the cache does not take them.
#[derive(Debug)]
pub struct Router {
    pinned: HashMap<AccountId, Option<Known>>,
    pinned_bytes: usize,
    cache: Cache<AccountId, Known>,
    /// Larger ones are not for the cache.
    cached_max: usize,
    /// What the cache has dropped since we looked last.
    dropped: Arc<Mutex<Vec<(AccountId, Known)>>>,
    owners: Owners,
    named: Named,
    era: u64,
    /// Invalidations that no snapshot has been known to see, oldest first.
    unseen: VecDeque<Invalidation>,
    /// Older ones, which concern everything: the latest of their transactions.
    older: Option<u32>,
    wanted: VecDeque<AccountId>,
    /// Asked again no earlier than then, the earliest first.
    again: VecDeque<(Tick, AccountId)>,
    /// All accounts in `wanted`, `again` or the batch in flight.
    asking: HashSet<AccountId>,
    /// The batch in flight.
    in_flight: Option<Vec<AccountId>>,
    /// Large routes that nobody needs now: kept until the batch in flight is answered, for while look-ups
    /// fail they would not come back.
    kept: HashSet<AccountId>,
    /// No look-up for its snapshot's sake alone before then.
    probe_at: Tick,
}

impl Router {
    /// A router whose cache of accounts without pending deliveries takes at most `cache_bytes`.
    #[must_use]
    pub fn new(cache_bytes: u64) -> Self {
        let dropped = Arc::new(Mutex::new(Vec::new()));
        let heap = Arc::clone(&dropped);
        let weigh = |account: &AccountId, known: &Known| {
            u32::try_from(known.bytes() + account.len() + 128).unwrap_or(u32::MAX)
        };
        let cache = Cache::builder()
            .max_capacity(cache_bytes)
            .weigher(weigh)
            // Recency, not frequency: an account that was just looked up is about to be used.
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |account: Arc<AccountId>, known, _cause| {
                let mut heap = heap.lock().unwrap_or_else(PoisonError::into_inner);
                heap.push(((*account).clone(), known));
            })
            .build();
        Self {
            pinned: HashMap::new(),
            pinned_bytes: 0,
            cache,
            cached_max: usize::try_from(cache_bytes).unwrap_or(usize::MAX) / CACHE_PARTS,
            dropped,
            owners: Owners::default(),
            named: Named::default(),
            era: 0,
            unseen: VecDeque::new(),
            older: None,
            wanted: VecDeque::new(),
            again: VecDeque::new(),
            asking: HashSet::new(),
            in_flight: None,
            kept: HashSet::new(),
            probe_at: Tick(0),
        }
    }

    /// The account's routes, where they are known and hold. Old ones are asked for again beside that.
    #[must_use]
    pub fn get(&mut self, account: &AccountId, now: Tick) -> Option<Arc<Routes>> {
        let known = self.known(account).filter(|known| self.still_holds(known))?;
        let endpoints = u32::try_from(known.routes.endpoints.len()).unwrap_or(u32::MAX);
        if now.since(known.fetched) >= ROUTES_TTL + TTL_OF_ENDPOINT * endpoints {
            self.want(account);
        }
        Some(known.routes)
    }

    /// Whether the account's routes are known and hold.
    #[must_use]
    pub fn holds(&self, account: &AccountId) -> bool {
        self.known(account).is_some_and(|known| self.still_holds(&known))
    }

    fn still_holds(&self, known: &Known) -> bool {
        !known.outdated && known.era == self.era
    }

    /// The account's last routes, whether they hold or not.
    #[must_use]
    pub fn last(&self, account: &AccountId) -> Option<Arc<Routes>> {
        self.known(account).map(|known| known.routes)
    }

    fn known(&self, account: &AccountId) -> Option<Known> {
        match self.pinned.get(account) {
            Some(known) => known.clone(),
            None => self.cache.get(account),
        }
    }

    /// How many enabled endpoints in known routes cannot be used.
    #[must_use]
    pub fn invalid(&self) -> usize {
        self.owners.invalid()
    }

    /// Asks for the account's routes; they come through [`Router::handle_lookup`].
    pub fn want(&mut self, account: &AccountId) {
        if self.asking.insert(account.clone()) {
            self.wanted.push_back(account.clone());
        }
    }

    /// Keeps the account's routes until [`Router::unpin`].
    pub fn pin(&mut self, account: &AccountId) {
        if self.pinned.contains_key(account) {
            return;
        }
        let known = self.cache.get(account);
        self.pinned_bytes += pinned_bytes(known.as_ref());
        self.pinned.insert(account.clone(), known);
        self.cache.invalidate(account);
    }

    /// What all routes hold in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let cached = usize::try_from(self.cache.weighted_size()).unwrap_or(usize::MAX);
        self.pinned_bytes + cached + self.owners.bytes()
    }

    /// Lets the account's routes be evicted for room again. Large ones are kept while a look-up is under way:
    /// see [`Router::take_kept`].
    pub fn unpin(&mut self, account: &AccountId) {
        if self.in_flight.is_some()
            && let Some(Some(known)) = self.pinned.get(account)
            && known.routes.size_bytes() > self.cached_max
        {
            self.kept.insert(account.clone());
            return;
        }
        let known = self.pinned.remove(account);
        self.pinned_bytes -= known.as_ref().map_or(0, |known| pinned_bytes(known.as_ref()));
        if let Some(Some(known)) = known {
            if known.routes.size_bytes() > self.cached_max {
                self.dropped().push((account.clone(), known));
            } else {
                self.cache.insert(account.clone(), known);
            }
        }
        self.forget_owners_of_dropped();
    }

    /// The accounts whose routes were kept although nobody needed them. Call it after
    /// [`Router::handle_lookup`], and unpin those again for which nothing is pending.
    pub fn take_kept(&mut self) -> HashSet<AccountId> {
        std::mem::take(&mut self.kept)
    }

    /// A watched table changed: what it concerns is looked up again. `received`: how far the stream
    /// was read, the transaction that made the change included.
    pub fn handle_invalidation(&mut self, invalidation: Invalidation, received: Lsn) {
        self.named.name(&invalidation.scope, received);
        match &invalidation.scope {
            Scope::All => self.era += 1,
            Scope::Endpoint { endpoints, accounts } => {
                let owners = endpoints.iter().flat_map(|id| self.owners.of(id)).cloned();
                let outdated: Vec<AccountId> = owners.chain(accounts.iter().cloned()).collect();
                outdated.iter().for_each(|account| self.outdate(account));
            }
        }
        self.remember(invalidation);
    }

    /// An earlier leader has heard of a change that look-ups may not show yet.
    pub fn expect(&mut self, xid: u32) {
        self.remember(Invalidation::new(xid, Scope::All));
    }

    /// The checkpoint is stored at `frontier`: nothing before it will be read again.
    pub fn handle_checkpoint(&mut self, frontier: Lsn) {
        self.named.forget(frontier);
    }

    /// The next accounts to look up, where there are some and no batch is in flight.
    ///
    /// An empty batch asks for a snapshot alone. Each batch is answered once, by
    /// [`Router::handle_lookup`].
    pub fn poll_lookup(&mut self, now: Tick) -> Option<Vec<AccountId>> {
        if self.in_flight.is_some() {
            return None;
        }
        let due = self.again.partition_point(|(due, _)| *due <= now);
        self.wanted.extend(self.again.drain(..due).map(|(_, account)| account));
        let is_seen = self.unseen.is_empty() && self.older.is_none();
        if self.wanted.is_empty() && (is_seen || self.probe_at > now) {
            return None;
        }
        let count = self.wanted.len().min(LOOKUP_BATCH);
        let batch: Vec<AccountId> = self.wanted.drain(..count).collect();
        self.in_flight = Some(batch.clone());
        Some(batch)
    }

    /// These of the batch in flight are not answered for, and asked for again no earlier than so long from
    /// now. Call it before [`Router::handle_lookup`].
    pub fn put_off(&mut self, accounts: Vec<(AccountId, Duration)>, now: Tick) {
        let Some(batch) = self.in_flight.as_mut().filter(|_| !accounts.is_empty()) else { return };
        let put_off: HashSet<&AccountId> = accounts.iter().map(|(account, _)| account).collect();
        batch.retain(|account| !put_off.contains(account));
        for (account, wait) in accounts {
            self.ask_again(now + wait, account);
        }
    }

    fn ask_again(&mut self, at: Tick, account: AccountId) {
        let place = self.again.partition_point(|(due, _)| *due <= at);
        self.again.insert(place, (at, account));
    }

    /// Takes a batch's answer and returns what is now known.
    ///
    /// Some may be missing; these are asked for again.
    /// Accounts for which SQL does not show yet what the stream has shown are asked again shortly.
    pub fn handle_lookup(
        &mut self,
        snapshot: &Snapshot,
        answers: Vec<(AccountId, Routes)>,
        now: Tick,
    ) -> Vec<LookedUp> {
        let asked = self.in_flight.take().unwrap_or_default();
        if asked.len() > answers.len() {
            let answered: HashSet<&AccountId> =
                answers.iter().map(|(account, _)| account).collect();
            let missing = asked.into_iter().rev().filter(|account| !answered.contains(account));
            missing.for_each(|account| self.wanted.push_front(account));
        }
        let mut ready = Vec::with_capacity(answers.len());
        for (account, routes) in answers {
            if self.is_outdated(snapshot, &account, &routes) {
                self.ask_again(now + UNSEEN_RETRY, account);
                continue;
            }
            self.asking.remove(&account);
            for endpoint in &routes.endpoints {
                // SQL shows a move that the stream will show later: what the old account's routes say
                // is outdated already. Or both texts are one key, and they are looked up once more.
                for before in self.owners.add(endpoint, &account) {
                    self.outdate(&before);
                }
            }
            let routes = Arc::new(routes);
            let joined = self.joined(&account, &routes);
            ready.push(LookedUp { account: account.clone(), routes: Arc::clone(&routes), joined });
            let known = Known { routes, outdated: false, era: self.era, fetched: now };
            if known.routes.size_bytes() > self.cached_max {
                self.pin(&account);
            }
            match self.pinned.get_mut(&account) {
                None => self.cache.insert(account, known),
                Some(pinned) => {
                    self.pinned_bytes += pinned_bytes(Some(&known));
                    self.pinned_bytes -= pinned_bytes(pinned.as_ref());
                    let old = pinned.replace(known).map(|old| (account, old));
                    self.dropped().extend(old);
                }
            }
        }
        self.older.take_if(|older| snapshot.sees_all_to(*older));
        self.unseen.retain(|invalidation| !snapshot.sees(invalidation.xid));
        self.probe_at = now + UNSEEN_RETRY;
        self.forget_owners_of_dropped();
        ready
    }

    /// When [`Router::poll_lookup`] may have something although nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Tick> {
        if self.in_flight.is_some() {
            return None;
        }
        let is_seen = self.unseen.is_empty() && self.older.is_none();
        let probe = (!is_seen).then_some(self.probe_at);
        self.again.front().map(|(due, _)| *due).into_iter().chain(probe).min()
    }

    fn is_outdated(&self, snapshot: &Snapshot, account: &AccountId, routes: &Routes) -> bool {
        let concerns = |scope: &Scope| match scope {
            Scope::All => true,
            Scope::Endpoint { endpoints, accounts } => {
                accounts.contains(account)
                    || endpoints.iter().any(|id| routes.endpoint(id).is_some())
            }
        };
        self.older.is_some_and(|older| !snapshot.sees_all_to(older))
            || self.unseen.iter().any(|known| concerns(&known.scope) && !snapshot.sees(known.xid))
    }

    fn joined(&self, account: &AccountId, routes: &Routes) -> Vec<EndpointId> {
        let before = self.known(account).map(|known| known.routes);
        let has_joined = |endpoint: &&Arc<Endpoint>| {
            let takes_what_it_took = match &before {
                Some(before) => before.endpoint(&endpoint.id).is_some_and(|b| b.covers(endpoint)),
                None => !self.named.has(&endpoint.id),
            };
            endpoint.enabled && !takes_what_it_took
        };
        routes.endpoints.iter().filter(has_joined).map(|endpoint| endpoint.id.clone()).collect()
    }

    fn outdate(&mut self, account: &AccountId) {
        match self.pinned.get_mut(account) {
            None => {
                if let Some(known) = self.cache.get(account) {
                    self.cache.insert(account.clone(), Known { outdated: true, ..known });
                }
            }
            Some(Some(known)) => known.outdated = true,
            Some(None) => {}
        }
    }

    /// Remembers an invalidation; a transaction with very many counts as one of everything.
    fn remember(&mut self, invalidation: Invalidation) {
        let of_same = self.unseen.iter().rev().take_while(|i| i.xid == invalidation.xid).count();
        if of_same >= OF_ONE_TXN
            || self.unseen.back().is_some_and(|last| covers(last, &invalidation))
        {
            self.unseen.truncate(self.unseen.len() - of_same);
            self.unseen.push_back(Invalidation::new(invalidation.xid, Scope::All));
        } else {
            self.unseen.push_back(invalidation);
        }
        if self.unseen.len() >= REMEMBER_AT_MOST {
            let older =
                self.unseen.drain(..REMEMBER_AT_MOST / 2).map(|invalidation| invalidation.xid);
            self.older = older.chain(self.older).reduce(later);
        }
    }

    fn dropped(&self) -> MutexGuard<'_, Vec<(AccountId, Known)>> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets whose the endpoints are that stand in no known routes any more.
    fn forget_owners_of_dropped(&mut self) {
        let dropped = std::mem::take(&mut *self.dropped());
        for (account, old) in dropped {
            let current = self.known(&account);
            for endpoint in &old.routes.endpoints {
                let kept =
                    current.as_ref().is_some_and(|c| c.routes.endpoint(&endpoint.id).is_some());
                if !kept {
                    self.owners.remove(&endpoint.id, &account);
                }
            }
        }
    }
}

/// What an account that is pinned takes.
fn pinned_bytes(known: Option<&Known>) -> usize {
    known.map_or(KNOWN_BYTES, Known::bytes)
}

/// The later of two transactions that are less than 2³¹ apart.
fn later(a: u32, b: u32) -> u32 {
    if a.wrapping_sub(b).cast_signed() > 0 { a } else { b }
}

fn covers(last: &Invalidation, next: &Invalidation) -> bool {
    last.xid == next.xid && last.scope == Scope::All
}

#[cfg(test)]
mod tests;
