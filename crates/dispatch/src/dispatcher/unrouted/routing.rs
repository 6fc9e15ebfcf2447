//! Rows without an endpoint are read back and routed: account by account, page by page, slice by slice.
//!
//! A page is in memory before its account is looked up, so that what the look-up tells is used at once and
//! need not be kept. While look-ups fail, few pages wait so.

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::super::lane::{DELIVERY_BYTES, SharedEvent};
use super::super::Dispatcher;
use super::super::outbox::{Body, Dying, ROWS_BYTES};
use super::super::pages::PageSize;
use super::{Shelf, Shelves};
use walhook_core::endpoint::{Endpoint, Routes};
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::persist::{
    DeadLetter, DeadReason, EventKey, Unrouted, UnroutedKey, UnroutedPage, UnroutedRefill,
};
use walhook_core::tick::Tick;

/// Accounts that are asked for at once, where memory is large enough: their pages take a sixteenth of it. And
/// so many times as many pages are in memory.
const ASKED_AT_ONCE: usize = 64;
const PAGES_TIMES: usize = 4;

/// Accounts of the line that are looked at for that.
const LOOKED_AT_ONCE: usize = 1_024;

/// Rows that were routed and are not in a batch yet, at most.
const GONE_MAX: usize = 10_000;

/// Pages that are taken on at once.
const ROUTED_AT_ONCE: usize = 64;

/// What is in memory of a shelf.
#[derive(Debug)]
pub(super) enum Page {
    None,
    /// Being read; only rows before this one are taken, since it may not show what stands in between.
    Asked(Option<EventKey>),
    Read(VecDeque<Row>),
}

/// A row in memory.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) held: Arc<SharedEvent>,
    /// The last endpoint that it was routed to.
    after: Option<EndpointId>,
    /// Some endpoint wanted it.
    wanted: bool,
}

impl Shelf {
    /// The first of the rows in memory, of which there are some.
    fn first_row(&mut self) -> &mut Row {
        match &mut self.page {
            Page::Read(rows) => rows.front_mut(),
            Page::None | Page::Asked(_) => None,
        }
        .unwrap_or_else(|| panic!("no row is in memory to be routed"))
    }

    fn take_first_row(&mut self) -> Option<Row> {
        match &mut self.page {
            Page::Read(rows) => rows.pop_front(),
            Page::None | Page::Asked(_) => None,
        }
    }
}

impl Shelves {
    /// The first of the line has what it wants, or may not have it.
    fn leave_line(&mut self) {
        let Some(account) = self.line.pop_front() else { return };
        if let Some(shelf) = self.accounts.get_mut(&account) {
            shelf.in_line = false;
        }
    }
}

/// How large pages are.
pub(super) fn page_size(memory_limit: usize) -> PageSize {
    PageSize::new(ASKED_AT_ONCE, memory_limit / 16)
}

impl Dispatcher {
    /// The pages of unrouted events to be read next; answered by [`Dispatcher::handle_unrouted`]. One batch
    /// at a time.
    pub(in super::super) fn poll_unrouted(&mut self) -> Option<Vec<UnroutedRefill>> {
        let is_caught_up = self.progress.is_caught_up();
        if self.routing.shelves.reserved > 0 || self.door.is_stopping() || !is_caught_up {
            return None;
        }
        let room = self.memory.room(self.committed_bytes());
        let size = self.routing.shelves.page_size;
        let at_most = size.at_once.min(room / size.bytes);
        let mut pages = Vec::new();
        let looks = self.looks(LOOKED_AT_ONCE);
        for _ in 0..self.routing.shelves.line.len().min(looks) {
            let shelves = &self.routing.shelves;
            if pages.len() >= at_most || shelves.pages >= size.at_once * PAGES_TIMES {
                break;
            }
            let Some(account) = shelves.line.front().cloned() else { break };
            let may_read_back = self.may_read_back(&account);
            let shelves = &mut self.routing.shelves;
            let gives_up = shelves.bound.gives_up(&account);
            let shelf = shelves.accounts.get_mut(&account);
            // Else it is in the line since an earlier shelf of the account.
            let wants = |shelf: &&mut Box<Shelf>| shelf.in_line && matches!(shelf.page, Page::None);
            let may_be_read = shelf.filter(wants).filter(|_| !gives_up);
            if may_be_read.is_some() && !may_read_back {
                shelves.line.rotate_left(1);
                continue;
            }
            if let Some(shelf) = may_be_read {
                let after = shelf.cursor.clone();
                shelf.page = Page::Asked(shelf.storing.front().cloned());
                shelves.pages += 1;
                let (rows, bytes) = (size.rows, size.text_bytes as u64);
                pages.push(UnroutedRefill { account, after, rows, bytes });
            }
            shelves.leave_line();
        }
        if pages.is_empty() {
            return None;
        }
        self.routing.shelves.reserved = pages.len() * size.bytes;
        self.memory.take(self.routing.shelves.reserved);
        Some(pages)
    }

    /// Takes the answer to [`Dispatcher::poll_unrouted`].
    pub(in super::super) fn handle_unrouted(&mut self, pages: Vec<UnroutedPage>, now: Tick) {
        self.memory.give_back(std::mem::take(&mut self.routing.shelves.reserved));
        for UnroutedPage { account, rows, end } in pages {
            let gives_up = self.routing.shelves.bound.gives_up(&account);
            let Some(shelf) = self.routing.shelves.accounts.get_mut(&account) else { continue };
            let Page::Asked(ceiling) = &mut shelf.page else { continue };
            let ceiling = ceiling.take();
            shelf.page = Page::None;
            let found = rows.len();
            let mut read = VecDeque::with_capacity(found);
            for Unrouted { event, routed_to: after } in rows {
                let key = EventKey::of(&event);
                if gives_up || ceiling.as_ref().is_some_and(|ceiling| *ceiling <= key) {
                    break;
                }
                self.memory.take(event.size_bytes() + DELIVERY_BYTES);
                shelf.cursor = Some(key);
                let wanted = after.is_some();
                read.push_back(Row { held: Arc::new(SharedEvent::new(event)), after, wanted });
            }
            shelf.unread = shelf.unread.saturating_sub(read.len() as u64);
            if read.is_empty() {
                self.routing.shelves.pages -= 1;
                if found == 0 && end && ceiling.is_none() && shelf.going == 0 && !gives_up {
                    self.count_anew(&account, now);
                } else if shelf.storing.front() != ceiling.as_ref() {
                    // What bounded the page was stored while the page was asked for.
                    self.routing.shelves.join_line(&account);
                }
                continue;
            }
            shelf.page = Page::Read(read);
            self.route_shelf(&account, None, now);
        }
    }

    /// Rows are counted, but none is where it was looked for: it stands before the others (in another cluster
    /// positions began anew), or somebody has removed them.
    fn count_anew(&mut self, account: &AccountId, now: Tick) {
        let shelf = self.routing.shelves.of(account);
        if shelf.cursor.take().is_some() {
            self.routing.shelves.join_line(account);
        } else if shelf.storing.is_empty() {
            (shelf.rows, shelf.in_table, shelf.unread, shelf.old) = (0, 0, 0, 0);
            self.routing.shelves.outdate(account);
            self.outbox.touch();
            self.clear_shelf(account, now);
        }
    }

    /// Goes on with pages that waited for room. Call before [`Dispatcher::poll_attempt`].
    pub(in super::super) fn route_shelves(&mut self, now: Tick) {
        for _ in 0..self.routing.shelves.going.len().min(ROUTED_AT_ONCE) {
            let Some(account) = self.routing.shelves.going.pop_front() else { return };
            self.route_shelf(&account, None, now);
        }
    }

    /// Whether what becomes of rows may be queued for the state database.
    fn may_route_rows(&self) -> bool {
        let leaving = self.outbox.leaving_bytes();
        let limit = self.settings.memory_limit;
        !self.door.is_stopping()
            && self.routing.shelves.gone.len() < GONE_MAX
            && leaving < 2 * ROWS_BYTES
            && (self.committed_bytes() < limit || leaving < limit / 8)
    }

    /// Routes the account's rows that are in memory, by these routes or what is known.
    pub(in super::super) fn route_shelf(
        &mut self,
        account: &AccountId,
        routes: Option<&Arc<Routes>>,
        now: Tick,
    ) {
        loop {
            let may_route = self.may_route_rows();
            let Some(shelf) = self.routing.shelves.accounts.get_mut(account) else { return };
            let Page::Read(rows) = &mut shelf.page else { return };
            if rows.is_empty() {
                shelf.page = Page::None;
                self.routing.shelves.pages -= 1;
                self.routing.shelves.join_line(account);
                self.clear_shelf(account, now);
                return;
            }
            if !may_route {
                if !self.routing.shelves.going.contains(account) {
                    self.routing.shelves.going.push_back(account.clone());
                }
                return;
            }
            let Some(routes) = routes.cloned().or_else(|| self.routing.router.get(account, now))
            else {
                self.routing.router.want(account);
                return;
            };
            self.route_row(account, &routes, now);
        }
    }

    /// Takes the account's first row in memory on, by one slice.
    fn route_row(&mut self, account: &AccountId, routes: &Routes, now: Tick) {
        let row = self.routing.shelves.of(account).first_row();
        let held = Arc::clone(&row.held);
        let event = Arc::clone(&held.event);
        let key = EventKey::of(&event);
        let after = |endpoint: &Arc<Endpoint>| {
            row.after.as_ref().is_some_and(|after| endpoint.id <= *after)
        };
        let from = routes.endpoints.partition_point(after);
        let to = routes.endpoints.len().min(from.saturating_add(self.settings.slice));
        let slice = routes.endpoints.get(from..to).unwrap_or_default();
        let commit_lsn = event.position.commit_lsn();
        let is_owed = |endpoint: &&Arc<Endpoint>| {
            endpoint.enabled
                && endpoint.wants(&event.event_type)
                && !self.routing.shelves.joiners.keeps_out(&endpoint.id, commit_lsn)
        };
        let mut owed: Vec<EndpointId> =
            slice.iter().filter(is_owed).map(|endpoint| endpoint.id.clone()).collect();
        let shelf = self.routing.shelves.of(account);
        let row = shelf.first_row();
        row.wanted |= !owed.is_empty();
        row.after = slice.last().map(|endpoint| endpoint.id.clone()).or(row.after.take());
        let row = if to >= routes.endpoints.len() { shelf.take_first_row() } else { None };
        owed.retain(|endpoint| !shelf.was_settled(account, endpoint, &key));
        let keys = self.ordering_keys(&event);
        let name = UnroutedKey { account: account.clone(), event: key };
        for endpoint in owed {
            let queue = self.queues.intern(account, &endpoint);
            self.begin_subscription(queue, event.position);
            self.defer_routed(queue, Arc::clone(&held), &keys, name.clone());
            self.look_after(queue, now);
        }
        let Some(row) = row else {
            self.memory.let_go(held);
            return;
        };
        self.routing.shelves.of(account).going += 1;
        self.door.reports.routed_later();
        self.outbox.touch();
        if let Some(why) = &routes.refused {
            drop(held);
            self.dead_letter_unrouted(row, name, why.clone());
            return;
        }
        if !row.wanted {
            self.door.reports.unwanted();
        }
        self.routing.shelves.gone.push_back((self.outbox.insertions(), name));
        drop(held);
        self.free(row.held, DELIVERY_BYTES);
    }

    /// The row's event becomes a dead letter without endpoint: the database refuses to read its account's.
    fn dead_letter_unrouted(&mut self, Row { held, .. }: Row, row: UnroutedKey, detail: String) {
        self.door.reports.died();
        self.door.reports.refused();
        let letter = DeadLetter {
            event: Arc::clone(&held.event),
            endpoint: None,
            reason: DeadReason::Unroutable,
            detail,
            attempts: 0,
            last_status: None,
            history: Vec::new(),
            replay: None,
        };
        let insertion = self.outbox.insertions();
        self.outbox.die(Dying { letter, body: Body::Unrouted { row, insertion, held } });
    }
}
