//! What comes in: the stream's items, operators' retries, and routes; and how they reach the lanes.

use std::sync::Arc;

use super::super::lane::{New, SharedEvent, Source};
use super::super::route::LookedUp;
use super::queues::QueueNo;
use super::waiting::To;
use super::{Dispatcher, EndpointChange, EndpointChanged, LookUp, LookUpAnswer, Ordering, Retry};
use walhook_core::attempt::{Asked, DeliveryId};
use walhook_core::endpoint::Routes;
use walhook_core::event::{AccountId, Event, Invalidation, Item, RowKeys, Scope, Unroutable};
use walhook_core::tick::Tick;
use walhook_core::waits::Waits;

/// The key of everything that is ordered by account.
const ACCOUNT_KEY: u64 = 0;

/// Endpoints that waiting events are routed to as a look-up's answer comes. The others have their turn
/// later, slice by slice.
const ROUTED_AT_ONCE: usize = 1_024;

impl Dispatcher {
    /// Takes the next item of the stream.
    pub(super) fn handle_item(&mut self, item: Item, now: Tick) {
        match item {
            Item::Begin { commit_lsn } => {
                self.progress.begin(commit_lsn, now);
            }
            Item::Event(event) => self.handle_event(event, now),
            Item::Unroutable(unroutable) => self.handle_unroutable(unroutable),
            Item::Invalidate(invalidation) => self.handle_invalidation(invalidation, now),
            Item::Commit { end_lsn } => {
                self.progress.commit(end_lsn);
            }
            Item::Pause => self.progress.pause(),
            Item::Resume { commit_lsn } => self.progress.resume(commit_lsn),
            Item::Progress { wal_end } => self.progress.pass(wal_end),
        }
    }

    /// Sends a dead letter again. Call only while [`Dispatcher::wants_input`] says yes.
    pub(super) fn handle_retry(&mut self, retry: Retry, now: Tick) {
        let Retry { dead_letter, job, event, endpoint } = retry;
        self.arrive(event, To::One { endpoint, asked: Asked::Retry { dead_letter, job } }, now);
    }

    /// The next accounts whose endpoints are to be looked up; answered by
    /// [`Dispatcher::handle_lookup`]. One batch of each line at a time; an empty one asks for a snapshot alone.
    pub(super) fn poll_lookup(&mut self, now: Tick) -> Option<LookUp> {
        let (line, accounts) = self.routing.router.poll_lookup(now)?;
        *self.routing.asked_at.of_mut(line) = Some(now);
        Some(LookUp { line, accounts })
    }

    /// Takes the answer to [`Dispatcher::poll_lookup`].
    pub(super) fn handle_lookup(&mut self, answer: LookUpAnswer, now: Tick) {
        let LookUpAnswer { line, snapshot, costly, put_off, answers } = answer;
        *self.routing.asked_at.of_mut(line) = None;
        self.routing.router.move_costly(line, costly, now);
        self.routing.router.put_off(line, put_off, now);
        let mut left = ROUTED_AT_ONCE;
        for LookedUp { account, routes, joined } in
            self.routing.router.handle_lookup(line, &snapshot, answers, now)
        {
            for endpoint in joined {
                self.join(&account, &endpoint);
            }
            self.handle_routes(&account, &routes, &mut left, now);
            self.handle_lane_routed(&account, &routes, now);
            self.take_failing(&account, &routes, now);
            self.unpin_if_idle(&account);
        }
        for account in self.routing.router.take_kept() {
            self.unpin_if_idle(&account);
        }
        self.note_seen(&snapshot);
        self.relieve_anew(now);
    }

    fn handle_event(&mut self, event: Arc<Event>, now: Tick) {
        let txn = self.progress.reading();
        self.outbox.note_arrival();
        self.arrive(event, To::All(txn), now);
    }

    fn handle_unroutable(&mut self, unroutable: Unroutable) {
        let txn = self.progress.reading();
        self.memory.take(unroutable.event.size_bytes());
        self.progress.add(txn);
        let Unroutable { event, reason: _, detail } = unroutable;
        self.dead_letter_unroutable(Arc::new(SharedEvent::new(event)), detail, txn);
    }

    fn handle_invalidation(&mut self, invalidation: Invalidation, now: Tick) {
        if let Scope::Endpoint { endpoints, accounts } = &invalidation.scope {
            for endpoint in endpoints {
                if self.switch_on(endpoint) {
                    self.tell(EndpointChanged {
                        endpoint: endpoint.clone(),
                        account: accounts.last().cloned(),
                        change: EndpointChange::Enabled,
                        detail: "its row was changed or removed".to_owned(),
                    });
                }
            }
        }
        self.note_joined(&invalidation);
        self.note_unseen(invalidation.xid);
        self.ask_for_rates(&invalidation.scope, now);
        self.ask_for_failing(&invalidation.scope);
        self.routing.router.handle_invalidation(invalidation, self.progress.received());
    }

    pub(super) fn ordering_keys(&self, event: &Event) -> RowKeys {
        let by_account = match self.settings.ordering {
            Ordering::None => return RowKeys::new(),
            Ordering::Account => true,
            Ordering::Row => event.keys.is_empty(),
        };
        let mut keys = event.keys.clone();
        if by_account {
            keys = RowKeys::from_slice(&[ACCOUNT_KEY]);
        }
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    pub(super) fn enqueue(
        &mut self,
        queue: QueueNo,
        held: Arc<SharedEvent>,
        (source, waits): (Source, Option<Box<Waits>>),
        keys: RowKeys,
        now: Tick,
    ) -> DeliveryId {
        let id = self.queues.next_delivery();
        let new = New { id, held, source, waits, now };
        self.memory.take(new.counted());
        self.queues.push(queue, new, keys);
        if !self.routing.starts.is_empty() {
            let held_from = self.held_from(queue);
            self.queues.in_use(queue).hold_from(held_from);
        }
        self.queues.refresh(queue, now);
        self.sync(queue);
        id
    }

    /// The account's routes have come: what waited for them goes on.
    fn handle_lane_routed(&mut self, account: &AccountId, routes: &Routes, now: Tick) {
        let Some(id) = self.queues.lane_id_of(account) else { return };
        self.sending.set_share(id, routes.share);
        self.queues.set_unrouted(id, false, now);
        self.take_rates(id, routes, now);
        self.queues.refresh_all(id, now);
        self.sync_lane(id);
    }
}
