//! Events that cannot be routed, since their account's endpoints cannot be looked up: stored as rows
//! without an endpoint, when they have waited in memory for as long, or take as much of it, as anything
//! may.
//!
//! ```text
//! stream ─► fan_out's Waiting ─► shelf (rows of `unrouted`) ─► page ─► rows of `deferred`, or nothing
//! ```
//!
//! An account that has such rows has a *shelf*. The row, the settled range of (account, no endpoint) and
//! the frontier are stored in one state transaction; only then does the tracker count the event as settled.
//! So what is read again after a crash is recognised by that range, whatever is known of routes by then.
//!
//! Order: while an account has a shelf, its later events go behind it: into it while its routes are not
//! known, else they wait in memory until it is empty. The rows are read back from the first on, and routed
//! as they come; each delivery becomes a deferred row, in the state transaction that says how far its event
//! has been routed, and that removes it at last. From there they are sent like all that is deferred.
//!
//! Who gets an event: the endpoints of the moment when it is routed, but for those that had it before
//! a crash, as the settled ranges said (they are kept with the shelf), and those that joined
//! after it was committed (see [`joined`]).
//!
//! Rows on the shelf of an earlier leader can be older than deferred rows of their account: that leader
//! had settled the one and not the other. So while such a row is left nothing deferred of the account is
//! read back.

mod bound;
mod joined;
mod routing;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::super::lane::{DELIVERY_BYTES, Insertion, LEAVING_BYTES, SharedEvent};
use super::super::settled::Recovered;
use super::super::tracker::TxnSeq;
use super::Dispatcher;
use super::outbox::{Leaves, Leaving};
use super::pages::PageSize;
use walhook_core::event::{AccountId, EndpointId, Event};
use walhook_core::heap::map_entry;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{
    Defer, DeferReason, EventKey, Joined, NO_ENDPOINT, PersistBatch, QueueId, Routed, RowId,
    RowKey, SettledRange, Tried, UnroutedAccount, UnroutedKey,
};
use walhook_core::tick::Tick;

use bound::Bound;
use joined::Joiners;
use routing::Page;

/// What an account with a shelf takes in memory, its name and its place among those to be looked up
/// included.
const SHELF_BYTES: usize =
    map_entry(size_of::<(AccountId, Box<Shelf>)>()) + size_of::<Shelf>() + 192;

/// The shelves of all accounts.
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
    /// What the request under way may bring; 0: there is none.
    reserved: usize,
    /// Rows that go once the insertions up to this number have been in a batch.
    gone: VecDeque<(Insertion, UnroutedKey)>,
    /// Accounts of which the table says what is outdated.
    outdated: Vec<AccountId>,
    joiners: Joiners,
    bound: Bound,
    nowhere: EndpointId,
}

/// One account's.
#[derive(Debug)]
struct Shelf {
    /// Rows that are not durably gone, those on their way to the table included.
    rows: u64,
    /// Of these, what the table has once the batch that was handed out last is stored.
    in_table: u64,
    /// Of these, the durable ones that no page has shown.
    unread: u64,
    /// Not durable yet, in the order of the stream.
    storing: VecDeque<EventKey>,
    /// Routed, and not durably gone.
    going: u64,
    /// So many may be older than deferred rows of the account: an earlier leader's, and those that were read
    /// again.
    old: u64,
    page: Page,
    in_line: bool,
    /// The last row that a page showed.
    cursor: Option<EventKey>,
    /// What the table says of it is outdated.
    is_stale: bool,
    /// Of the last event that became a row.
    ordinal: u64,
    settled: Option<Box<Settled>>,
}

/// Deliveries of an account's events that an earlier leader had settled.
#[derive(Debug)]
struct Settled {
    ranges: Vec<SettledRange>,
    lookup: Recovered,
}

impl Shelf {
    fn new(ordinal: u64, ranges: Vec<SettledRange>) -> Self {
        let mut shelf = Self {
            rows: 0,
            in_table: 0,
            unread: 0,
            storing: VecDeque::new(),
            going: 0,
            old: 0,
            page: Page::None,
            in_line: false,
            cursor: None,
            is_stale: false,
            ordinal,
            settled: None,
        };
        shelf.note_settled(ranges);
        shelf
    }

    fn note_settled(&mut self, mut ranges: Vec<SettledRange>) {
        if !ranges.is_empty() {
            ranges.extend(self.settled.take().into_iter().flat_map(|settled| settled.ranges));
            let lookup = Recovered::from_ranges(ranges.iter().cloned());
            self.settled = Some(Box::new(Settled { ranges, lookup }));
        }
    }

    fn was_settled(&self, account: &AccountId, endpoint: &EndpointId, key: &EventKey) -> bool {
        let settled = self.settled.as_ref();
        settled.is_some_and(|settled| settled.lookup.contains(account, endpoint, key))
    }

    fn is_over(&self) -> bool {
        // The table may have said less than there is.
        self.rows == 0
            && self.storing.is_empty()
            && self.going == 0
            && matches!(self.page, Page::None)
    }
}

impl Shelves {
    /// No account has one; pages in memory take a quarter of `memory_limit`.
    pub(super) fn new(memory_limit: usize) -> Self {
        Self {
            accounts: BTreeMap::new(),
            line: VecDeque::new(),
            going: VecDeque::new(),
            page_size: routing::page_size(memory_limit),
            pages: 0,
            reserved: 0,
            gone: VecDeque::new(),
            outdated: Vec::new(),
            joiners: Joiners::default(),
            bound: Bound::default(),
            nowhere: EndpointId::new(NO_ENDPOINT),
        }
    }

    pub(super) fn has(&self, account: &AccountId) -> bool {
        self.accounts.contains_key(account)
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

    /// What the pages that are being read may bring.
    pub(super) fn reserved(&self) -> usize {
        self.reserved
    }

    /// Events that have a row, or are on the way there.
    pub(super) fn rows(&self) -> u64 {
        self.accounts.values().map(|shelf| shelf.rows).sum()
    }

    /// The accounts that have some.
    pub(super) fn len(&self) -> usize {
        self.accounts.len()
    }

    /// What the table says of the account is to be stored anew.
    fn outdate(&mut self, account: &AccountId) {
        if let Some(shelf) = self.accounts.get_mut(account)
            && !std::mem::replace(&mut shelf.is_stale, true)
        {
            self.outdated.push(account.clone());
        }
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

impl Dispatcher {
    /// Goes on with the rows that an earlier leader left.
    pub(super) fn recover_shelves(
        &mut self,
        accounts: Vec<UnroutedAccount>,
        joined: Vec<Joined>,
        settled: &[SettledRange],
    ) {
        self.routing.shelves.joiners.recover(joined);
        for UnroutedAccount { account, rows, settled } in accounts {
            if rows == 0 {
                // All was given up, and its leader ended before it was said that nothing is left.
                self.routing.shelves.outdated.push(account);
                self.outbox.touch();
                continue;
            }
            let shelf =
                Shelf { rows, in_table: rows, unread: rows, old: rows, ..Shelf::new(0, settled) };
            self.routing.shelves.accounts.insert(account.clone(), Box::new(shelf));
            self.routing.shelves.join_line(&account);
        }
        if self.routing.shelves.accounts.is_empty() {
            return;
        }
        let mut of_accounts: BTreeMap<&AccountId, Vec<SettledRange>> = BTreeMap::new();
        for range in settled.iter().filter(|range| &*range.endpoint != NO_ENDPOINT) {
            if self.routing.shelves.has(&range.account) {
                of_accounts.entry(&range.account).or_default().push(range.clone());
            }
        }
        for (account, ranges) in of_accounts {
            if let Some(shelf) = self.routing.shelves.accounts.get_mut(account) {
                shelf.note_settled(ranges);
                self.routing.shelves.outdate(account);
                self.outbox.touch();
            }
        }
    }

    /// Whether an earlier leader has made a row of the event.
    pub(super) fn was_shelved(&self, event: &Event) -> bool {
        self.progress.was_settled(event, &self.routing.shelves.nowhere)
    }

    /// The event becomes a row without an endpoint. The transaction waits for it, and the memory budget
    /// counts it as a delivery.
    pub(super) fn shelve(&mut self, held: Arc<SharedEvent>, txn: TxnSeq) {
        let event = Arc::clone(&held.event);
        let account = event.account.clone();
        // Above all ordinals of an earlier shelf, and never next to one.
        self.queues.skip_deliveries(1);
        if !self.routing.shelves.has(&account) {
            self.queues.skip_deliveries(2);
            let ranges = self.progress.settled_of(&account);
            let ranges =
                ranges.into_iter().filter(|range| &*range.endpoint != NO_ENDPOINT).collect();
            let shelf = Shelf::new(self.queues.coming_delivery().0, ranges);
            self.routing.shelves.accounts.insert(account.clone(), Box::new(shelf));
        }
        let is_old = self.progress.may_be_known(event.position.commit_lsn());
        let key = EventKey::of(&event);
        let shelf = self.routing.shelves.of(&account);
        if shelf.ordinal == 0 {
            // An earlier leader's.
            shelf.ordinal = self.queues.coming_delivery().0 + 1;
        }
        shelf.ordinal += 1;
        shelf.rows += 1;
        shelf.old += u64::from(is_old);
        shelf.storing.push_back(key.clone());
        let ordinal = shelf.ordinal;
        self.queues.skip_deliveries_to(ordinal);
        self.door.reports.unrouted();
        let endpoint = self.routing.shelves.nowhere.clone();
        let queue = QueueId { account: account.clone(), endpoint };
        let id = RowId { queue, key: RowKey { event: key, replay: None }, event: event.id };
        self.memory.take(LEAVING_BYTES - DELIVERY_BYTES);
        let bytes = LEAVING_BYTES + event.size_bytes();
        let row = Defer { id, event, reason: DeferReason::Unrouted, tried: Tried::default() };
        let (txn, kind, counted) = (Some(txn), Leaves::Unrouted, LEAVING_BYTES);
        self.outbox.leave(Leaving { row, held, txn, ordinal, kind, counted, bytes, routed: None });
        self.routing.shelves.outdate(&account);
    }

    /// The row is in the batch that is handed out.
    pub(super) fn shelved_handed_out(&mut self, account: &AccountId) {
        self.routing.shelves.of(account).in_table += 1;
        self.routing.shelves.outdate(account);
    }

    /// The row is durable.
    pub(super) fn shelved_stored(&mut self, account: &AccountId) {
        let shelf = self.routing.shelves.of(account);
        shelf.storing.pop_front();
        shelf.unread += 1;
        self.routing.shelves.join_line(account);
    }

    /// What is to be stored of the shelves. Call after the batch's rows are handed out. Returns the rows
    /// that go.
    pub(super) fn hand_out_shelves(&mut self, batch: &mut PersistBatch) -> Vec<UnroutedKey> {
        let handed_out = self.outbox.handed_out();
        let mut gone = Vec::new();
        while gone.len() < self.outbox.rows_max()
            && self
                .routing
                .shelves
                .gone
                .front()
                .is_some_and(|(insertion, _)| *insertion <= handed_out)
            && let Some((_, row)) = self.routing.shelves.gone.pop_front()
        {
            let shelf = self.routing.shelves.of(&row.account);
            shelf.in_table = shelf.in_table.saturating_sub(1);
            self.routing.shelves.outdate(&row.account);
            batch.routed.push(Routed { row: row.clone(), to: None });
            gone.push(row);
        }
        // Of a row that goes nothing else need be said.
        batch.routed.sort_by(|a, b| (&a.row, a.to.is_some()).cmp(&(&b.row, b.to.is_some())));
        batch.routed.dedup_by(|a, b| a.row == b.row);
        self.hand_out_unrouted_purges(batch);
        let mut outdated = std::mem::take(&mut self.routing.shelves.outdated);
        outdated.sort_unstable();
        outdated.dedup();
        for account in outdated {
            let mut of_account = (0, Vec::new());
            if let Some(shelf) = self.routing.shelves.accounts.get_mut(&account) {
                shelf.is_stale = false;
                let settled = shelf.settled.as_ref().map(|settled| settled.ranges.clone());
                of_account = (shelf.in_table, settled.unwrap_or_default());
            }
            let (rows, settled) = of_account;
            batch.unrouted_accounts.push(UnroutedAccount { account, rows, settled });
        }
        let is_needed = !self.routing.shelves.accounts.is_empty();
        self.routing.shelves.joiners.hand_out(batch, is_needed, self.routing.waiting.is_empty());
        gone
    }

    /// The row's dead letter is in the batch that is handed out.
    pub(super) fn unrouted_died(&mut self, row: &UnroutedKey, batch: &mut PersistBatch) {
        let shelf = self.routing.shelves.of(&row.account);
        shelf.in_table = shelf.in_table.saturating_sub(1);
        self.routing.shelves.outdate(&row.account);
        batch.routed.push(Routed { row: row.clone(), to: None });
    }

    /// These rows are durably gone.
    pub(super) fn handle_rows_routed(&mut self, gone: Vec<UnroutedKey>, now: Tick) {
        if !gone.is_empty() {
            self.touch_starts();
        }
        for UnroutedKey { account, event } in gone {
            let is_old = self.progress.may_be_known(event.position.commit_lsn());
            let shelf = self.routing.shelves.of(&account);
            assert!(shelf.going > 0, "a row is gone that was not routed");
            shelf.going -= 1;
            // What the table says of it may have been less.
            shelf.rows = shelf.rows.saturating_sub(1);
            // One that an earlier leader left may have gone on before one that was read again.
            shelf.old = shelf.old.saturating_sub(u64::from(is_old));
            self.routing.shelves.join_line(&account);
            self.clear_shelf(&account, now);
        }
    }

    /// Whether an event that commits there was committed before the endpoint joined.
    pub(super) fn joined_after(&self, endpoint: &EndpointId, commit_lsn: Lsn) -> bool {
        self.routing.shelves.joiners.keeps_out(endpoint, commit_lsn)
    }

    /// The stream shows that these endpoints have joined their accounts.
    pub(super) fn note_joined(&mut self, endpoints: &[EndpointId]) {
        if self.routing.shelves.accounts.is_empty() && self.routing.waiting.is_empty() {
            return;
        }
        let at = self.progress.received();
        for endpoint in endpoints {
            self.routing.shelves.joiners.note(endpoint, at);
        }
    }

    /// With no row left, what waited behind the shelf goes on.
    fn clear_shelf(&mut self, account: &AccountId, now: Tick) {
        let over = self.routing.shelves.accounts.get(account).is_some_and(|shelf| shelf.is_over());
        if !over {
            return;
        }
        self.routing.shelves.accounts.remove(account);
        self.resume_waiting(account, now);
        self.unpin_if_idle(account);
    }
}

#[cfg(test)]
mod tests;
