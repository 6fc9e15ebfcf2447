//! The shelves: which accounts have rows without an endpoint, how far each is read back, and what the tables say of
//! them. What happens to the events: see [`super::unrouted`].
//!
//! # Invariants
//!
//! - An account has a shelf while a row of it is not durably gone, a page of it is asked for or in memory, or a row
//!   that was routed waits to be removed.
//! - Its rows are those that are on their way to the table, those that no page has shown, those of its page, and
//!   those that are going: `rows` is no less than what of this is known, and what is known of an earlier leader's may
//!   be less than there is.
//! - It stands once at most in the line of those that want a page, never while it has one; and once among those of
//!   which the table says what is outdated.
//! - One request for pages is under way at most.

mod bound;
mod joined;
mod pages;
mod shelf;

use std::collections::{BTreeMap, VecDeque};

use super::super::lane::Insertion;
use super::pages::PageSize;
use walhook_core::event::{AccountId, EndpointId, Invalidation};
use walhook_core::heap::map_entry;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{
    EventKey, Joined, NO_ENDPOINT, PersistBatch, SettledRange, UnroutedAccount, UnroutedKey,
};

use bound::Bound;
use joined::Joiners;
pub(super) use pages::{Came, PageRows};
use shelf::Page;
pub(super) use shelf::{Row, Shelf};

/// What an account with a shelf takes in memory, its name and its place among those to be looked up
/// included.
const SHELF_BYTES: usize =
    map_entry(size_of::<(AccountId, Box<Shelf>)>()) + size_of::<Shelf>() + 192;

/// Rows that were routed and are not in a batch yet, at most.
const GONE_MAX: usize = 10_000;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Shelves {
    accounts: BTreeMap<AccountId, Box<Shelf>>,
    /// Those that want a page.
    line: VecDeque<AccountId>,
    /// Those that have one, and wait for nothing but room.
    going: VecDeque<AccountId>,
    page_size: PageSize,
    /// Pages that are asked for or in memory.
    pages: usize,
    /// What the request under way may bring; none: there is none.
    reserved: Option<usize>,
    /// Rows that go once the insertions up to this number have been in a batch.
    gone: VecDeque<(Insertion, UnroutedKey)>,
    /// Accounts of which the table says what is outdated.
    outdated: Vec<AccountId>,
    joiners: Joiners,
    bound: Bound,
    nowhere: EndpointId,
}

/// What there is.
impl Shelves {
    /// No account has one; pages in memory take a quarter of `memory_limit`.
    pub(super) fn new(memory_limit: usize) -> Self {
        Self {
            accounts: BTreeMap::new(),
            line: VecDeque::new(),
            going: VecDeque::new(),
            page_size: pages::page_size(memory_limit),
            pages: 0,
            reserved: None,
            gone: VecDeque::new(),
            outdated: Vec::new(),
            joiners: Joiners::default(),
            bound: Bound::default(),
            nowhere: EndpointId::new(NO_ENDPOINT),
        }
    }

    /// Goes on with what an earlier leader left: its accounts, who had joined meanwhile, and what it had `settled`
    /// ahead of its checkpoint. Whether the tables say what is outdated.
    pub(super) fn recover(
        &mut self,
        accounts: Vec<UnroutedAccount>,
        joined: Vec<Joined>,
        settled: &[SettledRange],
    ) -> bool {
        self.joiners.recover(joined);
        for UnroutedAccount { account, rows, settled } in accounts {
            if rows == 0 {
                // All was given up, and its leader ended before it was said that nothing is left.
                self.outdated.push(account);
                continue;
            }
            self.accounts.insert(account.clone(), Box::new(Shelf::recovered(rows, settled)));
            self.join_line(&account);
        }
        let mut of_accounts: BTreeMap<&AccountId, Vec<SettledRange>> = BTreeMap::new();
        for range in settled.iter().filter(|range| range.endpoint != self.nowhere) {
            if self.has(&range.account) {
                of_accounts.entry(&range.account).or_default().push(range.clone());
            }
        }
        for (account, ranges) in of_accounts {
            self.of(account).note_settled(ranges);
            self.outdate(account);
        }
        !self.outdated.is_empty()
    }

    /// Whether the account has one.
    pub(super) fn has(&self, account: &AccountId) -> bool {
        self.accounts.contains_key(account)
    }

    /// Whether no account has one.
    pub(super) fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// The endpoint of rows that have none.
    pub(super) fn nowhere(&self) -> &EndpointId {
        &self.nowhere
    }

    /// The account's shelf, which has rows.
    ///
    /// # Panics
    /// There is none.
    fn of(&mut self, account: &AccountId) -> &mut Shelf {
        match self.accounts.get_mut(account) {
            Some(shelf) => shelf,
            None => panic!("an account has rows without an endpoint, and no shelf"),
        }
    }

    /// Whether rows of the account's shelf may be older than deferred rows of it.
    pub(super) fn holds_back(&self, account: &AccountId) -> bool {
        self.accounts.get(account).is_some_and(|shelf| shelf.old > 0)
    }

    /// What they take in memory, without pages.
    pub(super) fn bytes(&self) -> usize {
        self.accounts.len() * SHELF_BYTES + self.joiners.bytes()
    }

    /// Events that have a row, or are on the way there.
    pub(super) fn rows(&self) -> u64 {
        self.accounts.values().map(|shelf| shelf.rows).sum()
    }

    /// The accounts that have some.
    pub(super) fn len(&self) -> usize {
        self.accounts.len()
    }

    /// Whether an earlier leader had settled the account's event for the endpoint.
    pub(super) fn was_settled(
        &self,
        account: &AccountId,
        endpoint: &EndpointId,
        event: &EventKey,
    ) -> bool {
        let shelf = self.accounts.get(account);
        shelf.is_some_and(|shelf| shelf.was_settled(account, endpoint, event))
    }

    /// Whether an event that commits there was committed before the endpoint joined.
    pub(super) fn keeps_out(&self, endpoint: &EndpointId, commit_lsn: Lsn) -> bool {
        self.joiners.keeps_out(endpoint, commit_lsn)
    }

    /// A transaction that commits there changes endpoints. `waits`: events may wait that are to be kept from those
    /// that have joined with it.
    pub(super) fn note_joined(&mut self, invalidation: &Invalidation, at: Lsn, waits: bool) {
        self.joiners.see(invalidation, at, waits);
    }

    /// With no row left the account has no shelf. Whether that is so from now on.
    pub(super) fn forget_if_over(&mut self, account: &AccountId) -> bool {
        let over = self.accounts.get(account).is_some_and(|shelf| shelf.is_over());
        if over {
            self.accounts.remove(account);
        }
        over
    }
}

/// Rows that come and go.
impl Shelves {
    /// The account has a shelf from now on. Its ordinals go on from `coming`; an earlier leader had `settled` these.
    pub(super) fn open(&mut self, account: &AccountId, coming: u64, settled: Vec<SettledRange>) {
        let before = self.accounts.insert(account.clone(), Box::new(Shelf::new(coming, settled)));
        assert!(before.is_none(), "an account gets a shelf that has one");
    }

    /// An event becomes a row; `is_old`: it may be older than deferred rows of the account. Returns its ordinal, which
    /// is above those before; for a shelf of an earlier leader's, above `coming`.
    pub(super) fn put(
        &mut self,
        account: &AccountId,
        event: EventKey,
        is_old: bool,
        coming: u64,
    ) -> u64 {
        let shelf = self.of(account);
        if shelf.ordinal == 0 {
            // An earlier leader's.
            shelf.ordinal = coming + 1;
        }
        shelf.ordinal += 1;
        shelf.rows += 1;
        shelf.old += u64::from(is_old);
        shelf.storing.push_back((event, is_old));
        let ordinal = shelf.ordinal;
        self.outdate(account);
        ordinal
    }

    /// A row of the account is in the batch that is handed out.
    pub(super) fn handed_out(&mut self, account: &AccountId) {
        self.of(account).in_table += 1;
        self.outdate(account);
    }

    /// The account's first row of those on their way is durable.
    pub(super) fn stored(&mut self, account: &AccountId) {
        let shelf = self.of(account);
        let stored = shelf.storing.pop_front();
        assert!(stored.is_some(), "a row is stored that was not on its way");
        shelf.unread += 1;
        self.join_line(account);
    }

    /// The row has been routed, and goes once the insertions up to this one have been in a batch.
    pub(super) fn go(&mut self, insertion: Insertion, row: UnroutedKey) {
        self.gone.push_back((insertion, row));
    }

    /// Whether so many rows are to go that no more may be routed.
    pub(super) fn is_full_of_gone(&self) -> bool {
        self.gone.len() >= GONE_MAX
    }

    /// Up to `rows` rows that go with the batch in which the insertions up to `handed_out` are, or were.
    pub(super) fn take_gone(&mut self, rows: usize, handed_out: Insertion) -> Vec<UnroutedKey> {
        let first = self.gone.iter().take(rows);
        let ready = first.take_while(|(insertion, _)| *insertion <= handed_out).count();
        let gone: Vec<UnroutedKey> = self.gone.drain(..ready).map(|(_, row)| row).collect();
        for row in &gone {
            self.taken_out(&row.account);
        }
        gone
    }

    /// The removal of a row is in the batch that is handed out.
    pub(super) fn taken_out(&mut self, account: &AccountId) {
        let shelf = self.of(account);
        shelf.in_table = shelf.in_table.saturating_sub(1);
        self.outdate(account);
    }

    /// A row of the account that was routed is durably gone; `is_old`: as it was put.
    pub(super) fn removed(&mut self, account: &AccountId, is_old: bool) {
        let shelf = self.of(account);
        assert!(shelf.going > 0, "a row is gone that was not routed");
        shelf.going -= 1;
        // What the table says of it may have been less.
        shelf.rows = shelf.rows.saturating_sub(1);
        // One that an earlier leader left may have gone on before one that was read again.
        shelf.old = shelf.old.saturating_sub(u64::from(is_old));
        self.join_line(account);
    }

    /// What the table says of the account is to be stored anew.
    pub(super) fn outdate(&mut self, account: &AccountId) {
        if let Some(shelf) = self.accounts.get_mut(account)
            && !std::mem::replace(&mut shelf.is_stale, true)
        {
            self.outdated.push(account.clone());
        }
    }

    /// What the tables are to say: of accounts, and of who joined, which may be forgotten where nothing waits in
    /// memory either.
    pub(super) fn hand_out(&mut self, batch: &mut PersistBatch, may_forget: bool) {
        let mut outdated = std::mem::take(&mut self.outdated);
        outdated.sort_unstable();
        outdated.dedup();
        for account in outdated {
            let told = self.accounts.get_mut(&account).map(|shelf| shelf.hand_out());
            let (rows, settled) = told.unwrap_or_default();
            batch.unrouted_accounts.push(UnroutedAccount { account, rows, settled });
        }
        self.joiners.hand_out(batch, !self.accounts.is_empty(), may_forget);
    }

    /// The account's rows want a page.
    fn join_line(&mut self, account: &AccountId) {
        if let Some(shelf) = self.accounts.get_mut(account)
            && shelf.unread > 0
            && !shelf.in_line
            && matches!(shelf.page, Page::None)
        {
            shelf.in_line = true;
            self.line.push_back(account.clone());
        }
    }
}

#[cfg(test)]
mod tests;
