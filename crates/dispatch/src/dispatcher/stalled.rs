//! Events that wait for routes that do not come: where memory is short, or the frontier has been held back for too
//! long, they become rows, as deferred deliveries or without an endpoint (see [`super::unrouted`]).

use std::time::Duration;

use super::super::lane::LEAVING_BYTES;
use super::super::route::LookUpLine;
use super::Dispatcher;
use super::outbox::ROWS_BYTES;
use walhook_core::event::AccountId;
use walhook_core::persist::DeferReason;
use walhook_core::tick::Tick;

/// A look-up that is not answered for so long is not waited for where memory is short.
const STALL: Duration = Duration::from_secs(1);

/// Where nothing that waits can become rows, that is looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Dispatcher {
    /// Whether look-ups of a line are not answered.
    pub(super) fn is_stalled(&self, now: Tick) -> bool {
        self.routing.asked_at.each().any(|at| is_stall(*at, now))
    }

    /// When look-ups that are not answered by then are not waited for any more.
    pub(super) fn stall_deadline(&self, now: Tick) -> Option<Tick> {
        let short = self.committed_bytes() >= self.settings.memory_limit / 4 * 3;
        let asked_at = self.routing.asked_at.each().flatten();
        let stalls = asked_at.map(|at| *at + STALL).filter(|at| *at > now);
        stalls.min().filter(|_| short && !self.routing.waiting.is_empty())
    }

    /// Makes room while look-ups are not answered: what waits for them becomes rows, of the account that
    /// holds most first.
    pub(super) fn relieve_of_unrouted(&mut self, now: Tick) {
        // Of costly accounts alone, each has waited for that long itself.
        let are_all_stalled = is_stall(*self.routing.asked_at.of(LookUpLine::Usual), now);
        if now < self.routing.look_at {
            return;
        }
        let moved = if are_all_stalled { now } else { now - STALL };
        let stands = self.routing.waiting.not_moved_since(moved);
        let waits = stands.filter(|(_, account)| self.waits_for_routes(account));
        let mut accounts: Vec<(usize, AccountId)> =
            waits.map(|(bytes, account)| (bytes, account.clone())).collect();
        if accounts.is_empty() {
            // To look again costs a look at all of them.
            self.routing.look_at = now + LOOK_EVERY;
        }
        accounts.sort_unstable_by(|(a, x), (b, y)| b.cmp(a).then_with(|| x.cmp(y)));
        for (_, account) in accounts {
            if self.memory.is_relieved(self.bytes_to_stay()) {
                return;
            }
            self.shelve_waiting(&account, now);
        }
    }

    /// What has held the frontier back for too long, and cannot be routed, becomes rows.
    pub(super) fn shelve_overdue(&mut self, now: Tick) {
        let overdue = self.routing.waiting.overdue();
        let accounts: Vec<AccountId> =
            overdue.filter(|account| self.waits_for_routes(account)).cloned().collect();
        for account in accounts {
            self.shelve_waiting(&account, now);
        }
    }

    fn waits_for_routes(&self, account: &AccountId) -> bool {
        self.routing.shelves.has(account) || !self.routing.router.holds(account)
    }

    /// All that waits of an account's becomes rows. An event that has come to some of its endpoints goes on
    /// by the routes that were known last, as deferred deliveries.
    fn shelve_waiting(&mut self, account: &AccountId, now: Tick) {
        while self.routing.waiting.first(account).is_some_and(|first| first.after.is_some()) {
            let Some(routes) = self.routing.router.last(account) else { return };
            let leaving = self.outbox.leaving_bytes();
            let left = (2 * ROWS_BYTES).saturating_sub(leaving) / LEAVING_BYTES;
            if left == 0 {
                return;
            }
            self.route_next(account, &routes, left, Some(DeferReason::Held), now);
        }
        // Making room for what was routed just now may have made rows of the others.
        let shelved = self.routing.waiting.take_stream(account, now);
        for (held, txn) in shelved {
            self.shelve(held, txn);
        }
        self.read_on(account);
        self.unpin_if_idle(account);
    }
}

/// Whether what was asked for at that moment is not waited for any more.
fn is_stall(asked_at: Option<Tick>, now: Tick) -> bool {
    asked_at.is_some_and(|at| now.since(at) >= STALL)
}
