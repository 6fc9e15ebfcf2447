//! A dispatcher and the little around it that a test of one behaviour needs: a stream of single events,
//! look-ups that are answered at once, state transactions that succeed.

use std::sync::Arc;
use std::time::Duration;

use super::{Dispatch, Dispatcher, EndpointChanged, Replay, ReplayInput, Settings};
use crate::fixture;
use walhook_core::attempt::DeliveryId;
use walhook_core::endpoint::Routes;
use walhook_core::event::{AccountId, EndpointId, Event, Item};
use walhook_core::id::ReplayId;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{PersistBatch, Persisted};
use walhook_core::tick::Tick;

pub(super) fn settings() -> Settings {
    Settings { fast_slots: 32, slow_slots: 32, notifies: true, ..fixture::settings() }
}

/// The event of the transaction that commits there, of a row of its own.
pub(super) fn event(account: &str, commit: u64) -> Arc<Event> {
    Arc::new(fixture::event(account, fixture::position(commit, commit - 10), &[commit]))
}

pub(super) struct Rig {
    pub(super) dispatcher: Dispatcher,
    pub(super) now: Tick,
    /// What was to be made durable so far.
    pub(super) stored: Vec<PersistBatch>,
    next_commit: u64,
    /// The accounts have no endpoint any more.
    pub(super) removed: bool,
}

impl Rig {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            dispatcher: fixture::dispatcher(settings),
            now: Tick(60_000_000),
            stored: Vec::new(),
            next_commit: 2_000,
            removed: false,
        }
    }

    pub(super) fn wait(&mut self, duration: Duration) {
        self.now = self.now + duration;
    }

    /// An account's transaction comes with one event, which is routed to the account's one endpoint, of the
    /// same name.
    pub(super) fn commit(&mut self, account: &str) -> Arc<Event> {
        let (commit, now) = (self.next_commit, self.now);
        self.next_commit += 100;
        let event = event(account, commit);
        let items = fixture::transaction(commit, [Arc::clone(&event)]);
        let progress = Item::Progress { wal_end: Lsn(commit + 50) };
        items.into_iter().chain([progress]).for_each(|i| self.dispatcher.handle_item(i, now));
        self.look_up();
        event
    }

    pub(super) fn look_up(&mut self) {
        let Some(accounts) = self.dispatcher.poll_lookup(self.now) else { return };
        let routes = |account: AccountId| {
            let ids = (!self.removed).then_some(account.as_str());
            (account.clone(), fixture::routes(&account, ids))
        };
        let answers: Vec<(AccountId, Routes)> = accounts.into_iter().map(routes).collect();
        self.dispatcher.handle_lookup(&fixture::snapshot(), answers, self.now);
    }

    /// All requests that may be sent now.
    pub(super) fn send(&mut self) -> Vec<Dispatch> {
        self.dispatcher.fan_out(self.now);
        std::iter::from_fn(|| self.dispatcher.poll_attempt(self.now)).collect()
    }

    /// A replay, which has begun, sends an event again, to the account's endpoint.
    pub(super) fn replay(&mut self, replay: ReplayId, event: &Arc<Event>) {
        assert!(self.dispatcher.wants_replay());
        let endpoint = EndpointId::new(event.account.as_str());
        let replay = Replay { replay, event: Arc::clone(event), endpoint };
        self.dispatcher.handle_replay(ReplayInput::Deliver(replay), self.now);
        self.look_up();
    }

    pub(super) fn answer(&mut self, delivery: DeliveryId, status: u16) {
        self.dispatcher.handle_outcome(delivery, &fixture::answered(status), self.now);
    }

    /// Makes durable what is to be, until nothing is.
    pub(super) fn store(&mut self) {
        for _ in 0..10 {
            self.wait(Duration::from_millis(100));
            let Some(batch) = self.dispatcher.poll_persist(self.now) else { return };
            self.dispatcher.handle_persisted(&Persisted::default(), self.now);
            self.stored.push(batch);
        }
    }

    pub(super) fn changes(&mut self) -> Vec<EndpointChanged> {
        std::iter::from_fn(|| self.dispatcher.poll_endpoint_change()).collect()
    }
}
