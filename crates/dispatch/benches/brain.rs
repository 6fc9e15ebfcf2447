//! The dispatcher alone: what a delivery costs it, by the number of accounts.
//!
//! `cargo bench -p walhook-dispatch --bench brain -- 10 1000 100000 1000000`
//!
//! Each account has one endpoint, which takes everything; look-ups and state transactions are answered at once. An
//! account's turn comes at random. Printed are microseconds of CPU a delivery (user and system, of this process
//! alone), the memory that is resident at the end, when nothing is pending, by account, and what a delivery takes
//! while it is queued.

#![expect(clippy::print_stdout, reason = "a bench prints")]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a bench that fails says where")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use walhook_core::attempt::{DeliveryId, Meaning, Outcome};
use walhook_core::delivery_log::Keep;
use walhook_core::endpoint::{Endpoint, Routes, Secret};
use walhook_core::event::{AccountId, EndpointId, Event, Item, Operation, RowKeys};
use walhook_core::lsn::Lsn;
use walhook_core::position::{EventId, Position, WalPosition};
use walhook_core::tick::Tick;
use walhook_dispatch::dispatcher::{Dispatcher, Effect, Input, Ordering, Settings, Start};
use walhook_dispatch::retry::RetryPolicy;
use walhook_dispatch::settle::SettlePolicy;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Requests that are not answered yet.
const IN_FLIGHT: usize = 32;

/// Transactions that come with one batch.
const BATCH: usize = 64;

/// Bytes of a row in a body.
const ROW: usize = 360;

fn main() {
    // Each in a process of its own: what an allocator has kept is not given back.
    if let Ok(what) = std::env::var(ONE) {
        return match what.parse() {
            Ok(accounts) => delivered(accounts),
            Err(_) => queued(),
        };
    }
    let given: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let accounts = if given.is_empty() { vec![10, 1_000, 100_000] } else { given };
    println!(
        "{:>9}  {:>10}  {:>11}  {:>13}",
        "accounts", "deliveries", "us/delivery", "bytes/account"
    );
    let all = accounts.into_iter().map(|accounts| accounts.to_string());
    for what in all.chain(["queued".to_owned()]) {
        let this = std::env::current_exe().unwrap();
        let status = std::process::Command::new(this).env(ONE, what).status().unwrap();
        assert!(status.success());
    }
}

/// Set for a process that measures one thing.
const ONE: &str = "BRAIN_MEASURES";

fn delivered(accounts: usize) {
    let deliveries = (2 * accounts).max(400_000);
    let mut brain = Brain::new();
    let before = resident();
    // Each account's routes are known before it counts.
    brain.run(&(0..accounts).collect::<Vec<_>>());
    let mut rng = SmallRng::seed_from_u64(1);
    let turns: Vec<usize> = (0..deliveries).map(|_| rng.random_range(0..accounts)).collect();
    let began = cpu();
    brain.run(&turns);
    let us = (cpu() - began).as_secs_f64() * 1e6 / deliveries as f64;
    let bytes = resident().saturating_sub(before) / accounts;
    println!("{accounts:>9}  {deliveries:>10}  {us:>11.2}  {bytes:>13}");
}

fn queued() {
    let mut brain = Brain::new();
    let (queued, before) = (200_000, resident());
    brain.deaf = true;
    brain.run(&vec![0; queued]);
    let bytes = (resident() - before) / queued;
    let counted = brain.dispatcher.gauges().queued_bytes / queued;
    println!("queued with a row of {ROW} bytes: {bytes} bytes a delivery, counted as {counted}");
}

struct Brain {
    dispatcher: Dispatcher,
    now: Tick,
    commit: u64,
    row: Bytes,
    event_type: Arc<str>,
    in_flight: VecDeque<DeliveryId>,
    /// Nothing is answered.
    deaf: bool,
}

impl Brain {
    fn new() -> Self {
        let retry = RetryPolicy::new(Duration::from_secs(10), Duration::from_secs(3_600)).unwrap();
        let settings = Settings {
            memory_limit: 1 << 30,
            slice: 256,
            lane_max: 2_048,
            fast_slots: 256,
            slow_slots: 1_024,
            ordering: Ordering::Row,
            settle: SettlePolicy {
                quick_attempts: 2,
                retry,
                retry_for: Duration::from_secs(3_600),
            },
            disable_after: Duration::from_secs(86_400),
            max_hold: Duration::from_secs(3_600),
            max_retained: 1 << 40,
            notifies: false,
            state_max: u64::MAX,
            log: Keep::All,
            log_excerpts: true,
        };
        Self {
            dispatcher: Dispatcher::new(settings, Start::default(), SmallRng::seed_from_u64(1)),
            now: Tick(60_000_000),
            commit: 1_000,
            row: Bytes::from(vec![b' '; ROW]),
            event_type: "subscriber.updated".into(),
            in_flight: VecDeque::new(),
            deaf: false,
        }
    }

    /// One event comes for each of these accounts, and is delivered.
    fn run(&mut self, accounts: &[usize]) {
        for batch in accounts.chunks(BATCH) {
            let mut items = Vec::with_capacity(3 * BATCH);
            for account in batch {
                self.commit += 200;
                let commit_lsn = Lsn(self.commit);
                items.push(Item::Begin { commit_lsn });
                items.push(Item::Event(self.event(*account)));
                items.push(Item::Commit { end_lsn: Lsn(self.commit + 100) });
            }
            self.now = self.now + Duration::from_micros(50 * BATCH as u64);
            self.hand(Input::Items(items));
            self.answer(IN_FLIGHT);
        }
        for _ in 0..100 {
            self.answer(0);
            self.now = self.now + Duration::from_millis(100);
            self.poll();
        }
        assert!(self.deaf || self.dispatcher.gauges().queued_bytes == 0, "something is left");
    }

    fn event(&self, account: usize) -> Arc<Event> {
        let (commit_lsn, change_lsn) = (Lsn(self.commit), Lsn(self.commit - 100));
        let position = Position::Wal(WalPosition { commit_lsn, change_lsn, relation: 1, n: 0 });
        Arc::new(Event {
            id: EventId::derive(1, &position, &self.event_type, 0),
            position,
            event_type: Arc::clone(&self.event_type),
            account: AccountId::new(format!("account-{account}")),
            operation: Operation::Update,
            commit_time_us: 0,
            keys: RowKeys::from_slice(&[self.commit]),
            // As the decoder makes it: a piece of its own.
            row: Bytes::copy_from_slice(&self.row),
        })
    }

    fn answer(&mut self, left: usize) {
        while self.in_flight.len() > left && !self.deaf {
            let Some(delivery) = self.in_flight.pop_front() else { break };
            let outcome = Outcome::new(Meaning::Delivered, Duration::from_millis(1));
            self.hand(Input::Outcome { delivery, outcome });
        }
    }

    fn hand(&mut self, input: Input) {
        self.dispatcher.handle(self.now, input);
        self.poll();
    }

    fn poll(&mut self) {
        while let Some(effect) = self.dispatcher.poll(self.now) {
            match effect {
                Effect::Send(dispatch) => {
                    self.in_flight.push_back(dispatch.attempt.first().id);
                }
                Effect::LookUp(look_up) => {
                    let answer = look_up.answered("1000:1000:".parse().unwrap(), routes);
                    self.dispatcher.handle(self.now, Input::Routes(Box::new(answer)));
                }
                Effect::Store(_) => {
                    self.dispatcher.handle(self.now, Input::Stored(Box::default()));
                }
                Effect::Flush(_)
                | Effect::Settled(_)
                | Effect::Report(_)
                | Effect::StateFull { .. }
                | Effect::Abort(_)
                | Effect::ReadDeferred(_)
                | Effect::ReadUnrouted(_) => {}
            }
        }
    }
}

fn routes(account: &AccountId) -> Routes {
    let endpoint = Endpoint {
        id: EndpointId::new(format!("endpoint-of-{account}")),
        account: account.clone(),
        url: format!("https://hooks.example.com/{account}"),
        event_types: vec!["*".into()],
        secrets: vec![Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")],
        enabled: true,
        headers: vec![],
        max_in_flight: None,
        rate_per_second: None,
        invalid: None,
    };
    Routes::new(vec![Arc::new(endpoint)], 1.0)
}

/// CPU time of this process so far.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(10 * ticks)
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4_096
}
