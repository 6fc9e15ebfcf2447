//! Rows without an endpoint are read back and routed: account by account, page by page, slice by slice.
//!
//! A page is in memory before its account is looked up, so that what the look-up tells is used at once and
//! need not be kept. While look-ups fail, few pages wait so.

use std::sync::Arc;

use super::super::super::lane::{DELIVERY_BYTES, SharedEvent};
use super::super::Dispatcher;
use super::super::outbox::{Body, Dying, ROWS_BYTES};
use super::super::shelves::{Came, PageRows};
use walhook_core::endpoint::{Endpoint, Routes};
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::persist::{
    DeadLetter, DeadReason, EventKey, UnroutedKey, UnroutedPage, UnroutedRefill,
};
use walhook_core::tick::Tick;

/// Accounts of the line that are looked at for one request.
const LOOKED_AT_ONCE: usize = 1_024;

/// Pages that are taken on at once.
const ROUTED_AT_ONCE: usize = 64;

impl Dispatcher {
    /// The pages of unrouted events to be read next; answered by [`Dispatcher::handle_unrouted`]. One batch
    /// at a time.
    pub(in super::super) fn poll_unrouted(&mut self) -> Option<Vec<UnroutedRefill>> {
        if self.door.is_stopping() || !self.progress.is_caught_up() {
            return None;
        }
        let room = self.memory.room(self.committed_bytes());
        let at_most = self.routing.shelves.pages_at_most(room);
        let mut pages = Vec::new();
        let looks = self.looks(LOOKED_AT_ONCE);
        for _ in 0..self.routing.shelves.in_line().min(looks) {
            if pages.len() >= at_most {
                break;
            }
            let Some((account, wants)) = self.routing.shelves.first_in_line() else { break };
            if !wants {
                self.routing.shelves.drop_first();
            } else if self.may_read_back(account) {
                pages.extend(self.routing.shelves.ask_first());
            } else {
                self.routing.shelves.put_off_first();
            }
        }
        if pages.is_empty() {
            return None;
        }
        self.memory.take(self.routing.shelves.begin(pages.len()));
        Some(pages)
    }

    /// Takes the answer to [`Dispatcher::poll_unrouted`].
    pub(in super::super) fn handle_unrouted(&mut self, pages: Vec<UnroutedPage>, now: Tick) {
        self.memory.give_back(self.routing.shelves.end());
        for page in pages {
            let account = page.account.clone();
            match self.routing.shelves.take_page(page) {
                Came::Nothing => {}
                Came::Rows(bytes) => {
                    self.memory.take(bytes);
                    self.route_shelf(&account, None, now);
                }
                Came::End => {
                    self.outbox.touch();
                    self.clear_shelf(&account, now);
                }
            }
        }
    }

    /// Goes on with pages that waited for room. Call before [`Dispatcher::poll_attempt`].
    pub(in super::super) fn route_shelves(&mut self, now: Tick) {
        for _ in 0..self.routing.shelves.waiting_for_room().min(ROUTED_AT_ONCE) {
            let Some(account) = self.routing.shelves.next_for_room() else { return };
            self.route_shelf(&account, None, now);
        }
    }

    /// Whether what becomes of rows may be queued for the state database.
    fn may_route_rows(&self) -> bool {
        let leaving = self.outbox.leaving_bytes();
        let limit = self.settings.memory_limit;
        !self.door.is_stopping()
            && !self.routing.shelves.is_full_of_gone()
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
            match self.routing.shelves.page_rows(account) {
                PageRows::None => return,
                PageRows::Through => {
                    self.clear_shelf(account, now);
                    return;
                }
                PageRows::Some => {}
            }
            if !self.may_route_rows() {
                self.routing.shelves.wait_for_room(account);
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
        let shelves = &self.routing.shelves;
        let row = shelves.first_row(account);
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
                && !shelves.keeps_out(&endpoint.id, commit_lsn)
        };
        let mut owed: Vec<EndpointId> =
            slice.iter().filter(is_owed).map(|endpoint| endpoint.id.clone()).collect();
        let wanted = !owed.is_empty();
        owed.retain(|endpoint| !shelves.was_settled(account, endpoint, &key));
        let (after, is_through) =
            (slice.last().map(|endpoint| endpoint.id.clone()), to >= routes.endpoints.len());
        let row = self.routing.shelves.advance(account, after, wanted, is_through);
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
        self.door.reports.routed_later();
        self.outbox.touch();
        if let Some(why) = &routes.refused {
            drop(held);
            self.dead_letter_unrouted(row.held, name, why.clone());
            return;
        }
        if !row.wanted {
            self.door.reports.unwanted();
        }
        self.routing.shelves.go(self.outbox.insertions(), name);
        drop(held);
        self.free(row.held, DELIVERY_BYTES);
    }

    /// The row's event becomes a dead letter without endpoint: the database refuses to read its account's.
    fn dead_letter_unrouted(&mut self, held: Arc<SharedEvent>, row: UnroutedKey, detail: String) {
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
        self.outbox.die(Dying { letter, body: Body::Unrouted { row, insertion, held } }, false);
    }
}
