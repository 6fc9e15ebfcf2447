//! The routes that are known, in bounded memory.

use std::sync::Arc;
use std::time::Duration;

use lru_slab::LruSlab;
use smallvec::SmallVec;

use crate::map::{NameMap, Seeded};
use walhook_core::endpoint::Routes;
use walhook_core::event::AccountId;
use walhook_core::heap::{map_entry, shared_text};
use walhook_core::tick::Tick;

/// Routes that would take more than one part in so many of the cache are never in it: they would drive
/// out all others.
const CACHE_PARTS: usize = 8;

/// How old routes get before they are asked for again, although nothing invalidates them.
pub(super) const ROUTES_TTL: Duration = Duration::from_secs(60);

/// For each endpoint they may be so much older: reading hundreds of thousands takes seconds.
pub(super) const TTL_OF_ENDPOINT: Duration = Duration::from_millis(3);

/// What is known of an account beside its name and its routes: its entry, its number by its name, and its place
/// by its last use; of lists a third may be free.
const KNOWN_BYTES: usize = map_entry(size_of::<(AccountId, RoutesNo)>())
    + (size_of::<Option<Entry>>() + size_of::<RoutesNo>() + 12) * 4 / 3;

/// What is known of an account, by its number: the same for as long as anything is known of it, or it is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoutesNo(u32);

/// Routes with what tells whether they still hold.
#[derive(Debug)]
pub(super) struct Known {
    routes: Arc<Routes>,
    /// An invalidation concerns them.
    outdated: bool,
    /// Counts the invalidations of everything: routes of an earlier era do not hold.
    era: u64,
    fetched: Tick,
}

impl Known {
    /// Routes that hold in this era.
    pub(super) fn new(routes: Arc<Routes>, era: u64, fetched: Tick) -> Self {
        Self { routes, outdated: false, era, fetched }
    }

    pub(super) fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// Whether they are to be asked for again, although nothing has changed them.
    pub(super) fn is_old(&self, now: Tick) -> bool {
        let endpoints = u32::try_from(self.routes.endpoints.len()).unwrap_or(u32::MAX);
        now.since(self.fetched) >= ROUTES_TTL + TTL_OF_ENDPOINT * endpoints
    }

    /// Whether nothing is known that has changed them.
    pub(super) fn holds(&self, era: u64) -> bool {
        !self.outdated && self.era == era
    }
}

/// Routes that are known no longer.
pub(super) type Dropped = SmallVec<[(AccountId, Known); 1]>;

/// What is known of each account.
///
/// Accounts of which something is pending are *pinned*; the routes of the others are in the *cache*, which
/// drops those that were not used for longest. Large ones are pinned as they come, for the cache does not
/// take them.
///
/// Invariant: the cache takes `cache_bytes` at most. Each account in it has its routes and its place by its
/// last use, no pinned one has such a place, and of a pinned one nothing is dropped that is not replaced. An
/// account has one number, by which its name is found and which its name has.
///
/// The accounts are texts that customers may choose, and texts can be chosen to collide under any hash whose
/// seed is known: so they are hashed with one that is drawn anew for each leader. Nothing here depends on
/// the order that comes of it. A B-tree, which needs none, took twice as long for each delivery. Whoever keeps an
/// account pinned keeps its number, and needs no hash.
#[derive(Debug)]
pub(super) struct KnownRoutes {
    numbers: NameMap<AccountId, RoutesNo>,
    entries: Vec<Option<Entry>>,
    vacant: Vec<RoutesNo>,
    /// The accounts in the cache, by their last use.
    uses: LruSlab<RoutesNo>,
    pinned_bytes: usize,
    cached_bytes: usize,
    cache_bytes: usize,
}

#[derive(Debug)]
struct Entry {
    account: AccountId,
    known: Option<Known>,
    /// Its place in `uses`; none: it is pinned.
    place: Option<u32>,
}

impl KnownRoutes {
    /// Nothing is known. The cache will take at most `cache_bytes`.
    pub(super) fn new(cache_bytes: usize, names: Seeded) -> Self {
        Self {
            numbers: NameMap::with_hasher(names),
            entries: Vec::new(),
            vacant: Vec::new(),
            uses: LruSlab::new(),
            pinned_bytes: 0,
            cached_bytes: 0,
            cache_bytes,
        }
    }

    /// What is known of the account, which is about to be used.
    pub(super) fn get(&mut self, account: &AccountId) -> Option<&Known> {
        let no = self.number(account)?;
        let place = self.entry(no).place;
        if let Some(place) = place {
            self.uses.get_mut(place);
        }
        self.at(no)
    }

    /// What is known of the account.
    pub(super) fn peek(&self, account: &AccountId) -> Option<&Known> {
        self.at(self.number(account)?)
    }

    /// What is known of the account with this number.
    ///
    /// # Panics
    /// Nothing is, and it is not pinned.
    pub(super) fn at(&self, no: RoutesNo) -> Option<&Known> {
        self.entry(no).known.as_ref()
    }

    /// The account with this number, as [`KnownRoutes::at`].
    pub(super) fn account(&self, no: RoutesNo) -> &AccountId {
        &self.entry(no).account
    }

    /// Whether these are too large for the cache.
    pub(super) fn is_large(&self, routes: &Routes) -> bool {
        routes.size_bytes() > self.cache_bytes / CACHE_PARTS
    }

    /// What is known of the account does not hold any more.
    pub(super) fn outdate(&mut self, account: &AccountId) {
        let Some(no) = self.number(account) else { return };
        if let Some(known) = &mut self.entry_mut(no).known {
            known.outdated = true;
        }
    }

    /// This is known of the account from now on. Returns what is known no longer, of the account itself or
    /// of others that give way.
    pub(super) fn put(&mut self, account: &AccountId, known: Known) -> Dropped {
        let mut dropped = Dropped::new();
        let is_large = self.is_large(&known.routes);
        let no = self.intern(account);
        self.count_out(no);
        let entry = self.entry_mut(no);
        dropped.extend(entry.known.replace(known).map(|old| (account.clone(), old)));
        if let Some(place) = entry.place.take_if(|_| is_large) {
            self.uses.remove(place);
        } else if let Some(place) = entry.place {
            self.uses.get_mut(place);
        }
        self.count_in(no);
        self.make_room(&mut dropped);
        dropped
    }

    /// Keeps what is known of the account, also what will be, until [`KnownRoutes::unpin`].
    pub(super) fn pin(&mut self, account: &AccountId) -> RoutesNo {
        let no = self.intern(account);
        self.count_out(no);
        if let Some(place) = self.entry_mut(no).place.take() {
            self.uses.remove(place);
        }
        self.count_in(no);
        no
    }

    /// Lets what is known of the account give way. Returns what does so at once: where it is large, itself.
    pub(super) fn unpin(&mut self, account: &AccountId) -> Dropped {
        let mut dropped = Dropped::new();
        let Some(no) = self.number(account).filter(|no| self.entry(*no).place.is_none()) else {
            return dropped;
        };
        match &self.entry(no).known {
            Some(known) if !self.is_large(&known.routes) => {
                self.count_out(no);
                self.entry_mut(no).place = Some(self.uses.insert(no));
                self.count_in(no);
                self.make_room(&mut dropped);
            }
            Some(_) | None => dropped.extend(self.forget(no)),
        }
        dropped
    }

    /// Whether the account is pinned with routes that the cache would not take.
    pub(super) fn is_pinned_and_large(&self, account: &AccountId) -> bool {
        let Some(Entry { known: Some(known), place: None, .. }) =
            self.number(account).map(|no| self.entry(no))
        else {
            return false;
        };
        self.is_large(&known.routes)
    }

    /// What is known takes so much memory.
    pub(super) fn bytes(&self) -> usize {
        self.pinned_bytes + self.cached_bytes
    }

    fn number(&self, account: &AccountId) -> Option<RoutesNo> {
        self.numbers.get(account).copied()
    }

    fn entry(&self, no: RoutesNo) -> &Entry {
        match self.entries.get(index(no)).and_then(Option::as_ref) {
            Some(entry) => entry,
            None => panic!("{no:?} was given up, and is used"),
        }
    }

    fn entry_mut(&mut self, no: RoutesNo) -> &mut Entry {
        match self.entries.get_mut(index(no)).and_then(Option::as_mut) {
            Some(entry) => entry,
            None => panic!("{no:?} was given up, and is used"),
        }
    }

    /// The account's number. A new one is pinned where its routes are large, else in the cache.
    fn intern(&mut self, account: &AccountId) -> RoutesNo {
        if let Some(no) = self.number(account) {
            return no;
        }
        let no = self.vacant.pop().unwrap_or_else(|| {
            self.entries.push(None);
            RoutesNo(u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX))
        });
        let place = Some(self.uses.insert(no));
        let entry = Entry { account: account.clone(), known: None, place };
        if let Some(vacant) = self.entries.get_mut(index(no)) {
            *vacant = Some(entry);
        }
        self.numbers.insert(account.clone(), no);
        self.count_in(no);
        no
    }

    /// Gives the account's number up, and returns what was known.
    fn forget(&mut self, no: RoutesNo) -> Option<(AccountId, Known)> {
        self.count_out(no);
        let Entry { account, known, place } =
            self.entries.get_mut(index(no)).and_then(Option::take)?;
        if let Some(place) = place {
            self.uses.remove(place);
        }
        self.numbers.remove(&account);
        self.vacant.push(no);
        known.map(|known| (account, known))
    }

    /// What was not used for longest gives way.
    fn make_room(&mut self, dropped: &mut Dropped) {
        while self.cached_bytes > self.cache_bytes {
            let Some(oldest) = self.uses.lru() else {
                panic!("what takes memory in the cache has a place by its last use")
            };
            let oldest = *self.uses.peek(oldest);
            dropped.extend(self.forget(oldest));
        }
    }

    fn count_in(&mut self, no: RoutesNo) {
        let (bytes, counter) = self.counted(no);
        *counter += bytes;
    }

    fn count_out(&mut self, no: RoutesNo) {
        let (bytes, counter) = self.counted(no);
        *counter -= bytes;
    }

    /// What the account takes, and where that is counted.
    fn counted(&mut self, no: RoutesNo) -> (usize, &mut usize) {
        let entry = self.entry(no);
        let bytes = bytes(&entry.account, entry.known.as_ref());
        let is_pinned = entry.place.is_none();
        (bytes, if is_pinned { &mut self.pinned_bytes } else { &mut self.cached_bytes })
    }

    /// The accounts of which something is known.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&AccountId, &Known)> {
        let entries = self.entries.iter().flatten();
        entries.filter_map(|entry| Some((&entry.account, entry.known.as_ref()?)))
    }
}

fn index(no: RoutesNo) -> usize {
    usize::try_from(no.0).unwrap_or(usize::MAX)
}

/// What an account of which this is known takes.
fn bytes(account: &AccountId, known: Option<&Known>) -> usize {
    let routes = known.map_or(0, |known| known.routes.size_bytes());
    KNOWN_BYTES + shared_text(account.len()) + routes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Action {
        Get(u8),
        Peek(u8),
        Outdate(u8),
        /// What is known is a text of so many bytes.
        Put(u8, usize),
        Pin(u8),
        Unpin(u8),
    }

    fn action() -> impl Strategy<Value = Action> {
        let account = 0u8..8;
        prop_oneof![
            2 => account.clone().prop_map(Action::Get),
            1 => account.clone().prop_map(Action::Peek),
            1 => account.clone().prop_map(Action::Outdate),
            4 => (account.clone(), 0usize..400).prop_map(|(n, bytes)| Action::Put(n, bytes)),
            1 => account.clone().prop_map(Action::Pin),
            1 => account.prop_map(Action::Unpin),
        ]
    }

    fn account(n: u8) -> AccountId {
        AccountId::new(n.to_string())
    }

    fn routes(bytes: usize) -> Arc<Routes> {
        Arc::new(Routes::refused("x".repeat(bytes), 1.0))
    }

    /// A list of accounts, the last used last.
    #[derive(Debug, Default)]
    struct Model {
        pinned: Vec<(u8, Option<Arc<Routes>>)>,
        cached: Vec<(u8, Arc<Routes>)>,
        cache_bytes: usize,
    }

    impl Model {
        fn is_large(&self, routes: &Routes) -> bool {
            routes.size_bytes() > self.cache_bytes / CACHE_PARTS
        }

        fn pinned(&mut self, n: u8) -> Option<&mut Option<Arc<Routes>>> {
            self.pinned.iter_mut().find_map(|(m, known)| (*m == n).then_some(known))
        }

        fn take_cached(&mut self, n: u8) -> Option<Arc<Routes>> {
            let at = self.cached.iter().position(|(m, _)| *m == n)?;
            Some(self.cached.remove(at).1)
        }

        fn find(&self, n: u8) -> Option<Arc<Routes>> {
            let pinned = self.pinned.iter().find(|(m, _)| *m == n).and_then(|(_, r)| r.clone());
            pinned.or_else(|| self.cached.iter().find(|(m, _)| *m == n).map(|(_, r)| r.clone()))
        }

        fn bytes_of(n: u8, routes: Option<&Routes>) -> usize {
            let name = shared_text(account(n).len());
            KNOWN_BYTES + name + routes.map_or(0, Routes::size_bytes)
        }

        fn cached_bytes(&self) -> usize {
            self.cached.iter().map(|(n, routes)| Self::bytes_of(*n, Some(routes))).sum()
        }

        fn bytes(&self) -> usize {
            let pinned = self.pinned.iter().map(|(n, r)| Self::bytes_of(*n, r.as_deref()));
            self.cached_bytes() + pinned.sum::<usize>()
        }

        fn insert(&mut self, n: u8, routes: Arc<Routes>) -> Vec<(u8, Arc<Routes>)> {
            self.cached.push((n, routes));
            let mut dropped = Vec::new();
            while self.cached_bytes() > self.cache_bytes {
                dropped.push(self.cached.remove(0));
            }
            dropped
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn known_routes_drop_what_was_not_used_for_longest_and_never_what_is_pinned(
            actions in proptest::collection::vec(action(), 1..100),
            cache_bytes in prop_oneof![Just(0usize), Just(1_000), Just(3_000), Just(1 << 20)],
        ) {
            let mut known = KnownRoutes::new(cache_bytes, Seeded::new(1));
            let mut model = Model { cache_bytes, ..Model::default() };
            for action in actions {
                let (mut dropped, mut expected) = (Dropped::new(), Vec::new());
                match action {
                    Action::Get(n) => {
                        if let Some(routes) = model.take_cached(n) {
                            model.cached.push((n, routes));
                        }
                        known.get(&account(n));
                    }
                    Action::Peek(n) => {
                        known.peek(&account(n));
                    }
                    Action::Outdate(n) => {
                        known.outdate(&account(n));
                        let found = known.peek(&account(n));
                        prop_assert!(found.is_none_or(|known| !known.holds(0)));
                    }
                    Action::Put(n, bytes) => {
                        let new = routes(bytes);
                        dropped = known.put(&account(n), Known::new(Arc::clone(&new), 0, Tick(0)));
                        let is_large = model.is_large(&new);
                        if let Some(pinned) = model.pinned(n) {
                            expected.extend(pinned.replace(new).map(|old| (n, old)));
                        } else {
                            expected.extend(model.take_cached(n).map(|old| (n, old)));
                            if is_large {
                                model.pinned.push((n, Some(new)));
                            } else {
                                expected.extend(model.insert(n, new));
                            }
                        }
                    }
                    Action::Pin(n) => {
                        let no = known.pin(&account(n));
                        prop_assert_eq!(known.account(no), &account(n));
                        if model.pinned(n).is_none() {
                            let cached = model.take_cached(n);
                            model.pinned.push((n, cached));
                        }
                    }
                    Action::Unpin(n) => {
                        dropped = known.unpin(&account(n));
                        let at = model.pinned.iter().position(|(m, _)| *m == n);
                        if let Some((n, Some(routes))) = at.map(|at| model.pinned.remove(at)) {
                            if model.is_large(&routes) {
                                expected.push((n, routes));
                            } else {
                                expected.extend(model.insert(n, routes));
                            }
                        }
                    }
                }
                let dropped: Vec<_> =
                    dropped.into_iter().map(|(account, known)| (account, known.routes)).collect();
                let expected: Vec<_> =
                    expected.into_iter().map(|(n, routes)| (account(n), routes)).collect();
                prop_assert_eq!(dropped, expected);
                for n in 0..8 {
                    let found = known.peek(&account(n)).map(|known| Arc::clone(&known.routes));
                    prop_assert_eq!(found, model.find(n), "account {}", n);
                }
                prop_assert_eq!(known.bytes(), model.bytes());
                prop_assert!(known.cached_bytes <= cache_bytes);
            }
        }
    }
}
