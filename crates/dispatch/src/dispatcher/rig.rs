//! A dispatcher and the little around it that a test of one behaviour needs: a stream of single events,
//! look-ups that are answered at once, state transactions that succeed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::{
    Dispatch, Dispatcher, EndpointChanged, Ordering, Replay, ReplayInput, Settings, Start,
};
use crate::retry::RetryPolicy;
use crate::settle::SettlePolicy;
use walhook_core::attempt::{Answer, DeliveryId, Outcome};
use walhook_core::endpoint::{Endpoint, Routes, Secret};
use walhook_core::event::{AccountId, EndpointId, Event, Item, Operation, RowKeys};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{PersistBatch, Persisted};
use walhook_core::position::{EventId, Position, WalPosition};
use walhook_core::tick::Tick;

pub(super) fn settings() -> Settings {
    Settings {
        memory_limit: 64 << 20,
        queue_max: 100,
        slice: 256,
        lane_max: 2_048,
        fast_slots: 32,
        slow_slots: 32,
        ordering: Ordering::Row,
        settle: SettlePolicy {
            quick_attempts: 2,
            retry: RetryPolicy::new(Duration::from_secs(1), Duration::from_secs(60)).unwrap(),
            retry_for: Duration::from_secs(600),
        },
        disable_after: Duration::from_secs(3_600),
        max_hold: Duration::from_secs(30),
        max_retained: 1 << 30,
        notifies: true,
        state_max: u64::MAX,
    }
}

/// The event of the transaction that commits there, of a row of its own.
pub(super) fn event(account: &str, commit: u64) -> Arc<Event> {
    let position = Position::Wal(WalPosition {
        commit_lsn: Lsn(commit),
        change_lsn: Lsn(commit - 10),
        relation: 1,
        n: 0,
    });
    Arc::new(Event {
        id: EventId::derive(1, &position, "t", 0),
        position,
        event_type: "t".into(),
        account: AccountId::new(account),
        operation: Operation::Insert,
        commit_time_us: 0,
        keys: RowKeys::from_slice(&[commit]),
        row: Bytes::from_static(b"\"data\":{}"),
    })
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
        let start = Start { frontier: Lsn(1_000), ..Start::default() };
        let dispatcher = Dispatcher::new(settings, start, SmallRng::seed_from_u64(1));
        Self {
            dispatcher,
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
        for item in [
            Item::Begin { commit_lsn: Lsn(commit) },
            Item::Event(Arc::clone(&event)),
            Item::Commit { end_lsn: Lsn(commit + 10) },
            Item::Progress { wal_end: Lsn(commit + 50) },
        ] {
            self.dispatcher.handle_item(item, now);
        }
        self.look_up();
        event
    }

    pub(super) fn look_up(&mut self) {
        let Some(accounts) = self.dispatcher.poll_lookup(self.now) else { return };
        let removed = self.removed;
        let routes = |account: AccountId| {
            if removed {
                return (account, Routes::new(Vec::new(), 1.0));
            }
            let endpoint = Endpoint {
                id: EndpointId::new(account.as_str()),
                account: account.clone(),
                url: String::new(),
                event_types: vec!["*".into()],
                secrets: vec![Secret::new("s")],
                enabled: true,
                headers: vec![],
                max_in_flight: None,
                rate_per_second: None,
                invalid: None,
            };
            (account, Routes::new(vec![Arc::new(endpoint)], 1.0))
        };
        let answers = accounts.into_iter().map(routes).collect();
        self.dispatcher.handle_lookup(&"9:9:".parse().unwrap(), answers, self.now);
    }

    /// All requests that may be sent now.
    pub(super) fn send(&mut self) -> Vec<Dispatch> {
        self.dispatcher.fan_out(self.now);
        std::iter::from_fn(|| self.dispatcher.poll_attempt(self.now)).collect()
    }

    /// A replay, which has begun, sends an event again, to the account's endpoint.
    pub(super) fn replay(&mut self, job: i64, event: &Arc<Event>) {
        assert!(self.dispatcher.wants_replay());
        let endpoint = EndpointId::new(event.account.as_str());
        let replay = Replay { job, event: Arc::clone(event), endpoint };
        self.dispatcher.handle_replay(ReplayInput::Deliver(replay), self.now);
        self.look_up();
    }

    pub(super) fn answer(&mut self, delivery: DeliveryId, status: u16) {
        let answer = Answer { status, retry_after: None, excerpt: String::new() };
        let outcome = Outcome::new(Ok(answer), Duration::from_millis(1));
        self.dispatcher.handle_outcome(delivery, &outcome, self.now);
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
