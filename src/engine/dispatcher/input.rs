//! What comes in: the stream's items, operators' retries, and routes; and how they reach the lanes.

use std::sync::Arc;

use super::super::attempt::DeliveryId;
use super::super::endpoint::Routes;
use super::super::event::{
    AccountId, EndpointId, Event, Invalidation, Item, RowKeys, Scope, Unroutable,
};
use super::super::lane::{DELIVERY_BYTES, Held, New, Source};
use super::super::persist::{EventKey, QueueId};
use super::super::route::{LookedUp, Snapshot};
use super::super::tick::Tick;
use super::super::tracker::TxnSeq;
use super::{Dispatcher, EndpointChange, EndpointChanged, Ordering, Retry};

/// The key of everything that is ordered by account.
const ACCOUNT_KEY: u64 = 0;

/// An event that waits for its account's routes.
#[derive(Debug)]
pub(super) struct Parked {
    held: Arc<Held>,
    to: To,
}

/// Which of the account's endpoints an event is for.
#[derive(Debug)]
pub(super) enum To {
    /// All that want it; the transaction counts it as one delivery until it is routed.
    All(TxnSeq),
    /// One, on an operator's wish.
    One { endpoint: EndpointId, dead_letter: Option<i64>, job: i64 },
}

impl Dispatcher {
    /// Takes the next item of the stream.
    pub fn handle_item(&mut self, item: Item, now: Tick) {
        match item {
            Item::Begin { commit_lsn } => {
                debug_assert!(self.reading.is_none(), "a transaction begins inside another");
                self.reading = Some(self.tracker.open(commit_lsn, now));
            }
            Item::Event(event) => self.handle_event(event, now),
            Item::Unroutable(unroutable) => self.handle_unroutable(unroutable),
            Item::Invalidate(invalidation) => self.handle_invalidation(invalidation),
            Item::Commit { end_lsn } => {
                if let Some(txn) = self.reading.take() {
                    self.tracker.close(txn, end_lsn);
                }
            }
            Item::Progress { wal_end } => self.tracker.progress(wal_end),
        }
    }

    /// Sends a dead letter again. Call only while [`Dispatcher::wants_input`] says yes.
    pub fn handle_retry(&mut self, retry: Retry, now: Tick) {
        let Retry { dead_letter, job, event, endpoint } = retry;
        self.arrive(event, To::One { endpoint, dead_letter: Some(dead_letter), job }, now);
    }

    /// The next accounts whose endpoints are to be looked up; answered by
    /// [`Dispatcher::handle_lookup`]. One batch at a time; an empty one asks for a snapshot alone.
    pub fn poll_lookup(&mut self, now: Tick) -> Option<Vec<AccountId>> {
        self.router.poll_lookup(now)
    }

    /// Takes the answer to [`Dispatcher::poll_lookup`].
    pub fn handle_lookup(
        &mut self,
        snapshot: &Snapshot,
        answers: Vec<(AccountId, Routes)>,
        now: Tick,
    ) {
        for LookedUp { account, routes, joined } in
            self.router.handle_lookup(snapshot, answers, now)
        {
            for endpoint in joined {
                self.join(QueueId { account: account.clone(), endpoint });
            }
            for Parked { held, to } in self.parked.remove(&account).into_iter().flatten() {
                self.bytes = self.bytes.saturating_sub(DELIVERY_BYTES);
                let txn = if let To::All(txn) = &to { Some(*txn) } else { None };
                self.route(held, to, &routes, now);
                if let Some(txn) = txn {
                    self.tracker.complete(txn);
                }
            }
            self.handle_lane_routed(&account, routes.weight, now);
        }
        let (seen, unseen) = self.unseen.drain(..).partition(|(xid, _)| snapshot.sees(*xid));
        self.unseen = unseen;
        let seen: Vec<(u32, TxnSeq)> = seen;
        seen.into_iter().for_each(|(_, txn)| self.tracker.complete(txn));
    }

    fn handle_event(&mut self, event: Arc<Event>, now: Tick) {
        debug_assert!(self.reading.is_some(), "an event outside of a transaction");
        let Some(txn) = self.reading else { return };
        self.durable.touch();
        self.arrive(event, To::All(txn), now);
    }

    /// Routes an event, or parks it behind what waits for the same account's routes.
    pub(super) fn arrive(&mut self, event: Arc<Event>, to: To, now: Tick) {
        self.bytes += event.size_bytes();
        let account = event.account.clone();
        let held = Arc::new(Held { event });
        let waiting = self.parked.contains_key(&account);
        let routes = if waiting { None } else { self.router.get(&account, now) };
        if let Some(routes) = routes {
            self.route(held, to, &routes, now);
            return;
        }
        if let To::All(txn) = &to {
            self.tracker.add(*txn, 1);
        }
        self.bytes += DELIVERY_BYTES;
        self.router.want(&account);
        self.parked.entry(account).or_default().push_back(Parked { held, to });
    }

    fn handle_unroutable(&mut self, unroutable: Unroutable) {
        debug_assert!(self.reading.is_some(), "an event outside of a transaction");
        let Some(txn) = self.reading else { return };
        self.bytes += unroutable.event.size_bytes();
        self.tracker.add(txn, 1);
        self.die_unroutable(unroutable, txn);
    }

    fn handle_invalidation(&mut self, invalidation: Invalidation) {
        if let Scope::Endpoint { endpoints, accounts } = &invalidation.scope {
            for endpoint in endpoints {
                if self.disabled.remove(endpoint).is_some() {
                    self.durable.enable(endpoint.clone());
                    self.tell(EndpointChanged {
                        endpoint: endpoint.clone(),
                        account: accounts.last().cloned(),
                        change: EndpointChange::Enabled,
                        detail: "its row was changed or removed".to_owned(),
                    });
                }
            }
        }
        if let Some(txn) = self.reading
            && self.unseen.last() != Some(&(invalidation.xid, txn))
        {
            self.tracker.add(txn, 1);
            self.unseen.push((invalidation.xid, txn));
        }
        self.router.handle_invalidation(invalidation, self.tracker.received());
    }

    /// Queues an event for the endpoints that it is for.
    fn route(&mut self, held: Arc<Held>, to: To, routes: &Routes, now: Tick) {
        let event = Arc::clone(&held.event);
        match to {
            To::All(txn) => {
                let takers =
                    routes.endpoints.iter().filter(|e| e.enabled && e.wants(&event.event_type));
                for endpoint in takers {
                    if self.was_settled(&event, &endpoint.id) {
                        continue;
                    }
                    self.tracker.add(txn, 1);
                    let keys = self.ordering_keys(&event);
                    let (held, weight) = (Arc::clone(&held), routes.weight);
                    let account = event.account.clone();
                    let queue = QueueId { account, endpoint: endpoint.id.clone() };
                    self.begin_join(&queue, event.position);
                    if let Some(reason) = self.why_defer(&queue, &keys) {
                        self.defer_arrival(&queue, held, txn, &keys, reason, weight);
                    } else {
                        self.enqueue(&endpoint.id, held, Source::Stream(txn), keys, weight, now);
                    }
                }
            }
            To::One { endpoint, dead_letter, job } if self.is_paused(&endpoint) => {
                self.refuse_paused(&event, endpoint, dead_letter, job);
            }
            To::One { endpoint, dead_letter, job } => {
                let source = Source::Retry { dead_letter, job };
                let keys = RowKeys::new();
                self.enqueue(&endpoint, Arc::clone(&held), source, keys, routes.weight, now);
            }
        }
        self.let_go(held);
        self.relieve(now);
    }

    /// Whether an earlier leader has settled this delivery ahead of its checkpoint.
    fn was_settled(&self, event: &Event, endpoint: &EndpointId) -> bool {
        !self.recovered.is_empty()
            && self.recovered.contains(&event.account, endpoint, &EventKey::of(event))
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
        endpoint: &EndpointId,
        held: Arc<Held>,
        source: Source,
        keys: RowKeys,
        weight: f64,
        now: Tick,
    ) -> DeliveryId {
        let id = self.next_delivery();
        self.bytes += DELIVERY_BYTES;
        let account = held.event.account.clone();
        let lane_id = self.lane(&account, weight);
        if let Some(lane) = self.lanes.get_mut(&lane_id) {
            lane.push(endpoint, New { id, held, source, now }, keys);
            if !self.joins.is_empty()
                && let Some(in_memory) = lane.queue_mut(endpoint)
            {
                let queue = QueueId { account, endpoint: endpoint.clone() };
                in_memory.hold_from(self.joins.held_from(&queue));
            }
            lane.refresh(endpoint, now);
        }
        self.sync(lane_id);
        id
    }

    /// A handle for a delivery, above all earlier ones.
    pub(super) fn next_delivery(&mut self) -> DeliveryId {
        self.next_id += 1;
        DeliveryId(self.next_id - 1)
    }

    /// The account's routes have come: what waited for them goes on.
    fn handle_lane_routed(&mut self, account: &AccountId, weight: f64, now: Tick) {
        let Some(id) = self.lane_of.get(account).copied() else { return };
        self.scheduler.set_weight(id, weight);
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        lane.unrouted = false;
        let endpoints: Vec<EndpointId> = lane.endpoints().cloned().collect();
        for endpoint in &endpoints {
            lane.refresh(endpoint, now);
        }
        self.sync(id);
    }
}
