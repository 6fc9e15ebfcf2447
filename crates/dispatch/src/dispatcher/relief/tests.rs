//! Who gives way, against a naive account of who holds what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::super::{Effect, Input, OperatorInput, Settings};
use crate::dispatcher::Dispatcher;
use crate::fixture;
use crate::lane::{DELIVERY_BYTES, LEAVING_BYTES, Origin, SharedEvent};
use walhook_core::attempt::DeliveryId;
use walhook_core::event::{AccountId, EndpointId, Event, Item};
use walhook_core::id::JobId;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{Blocked, DeferReason, Persisted, QueueId};
use walhook_core::tick::Tick;

const LIMIT: usize = 512 << 10;
const ACCOUNTS: usize = 4;

/// A delivery in memory, as a scan of all queues shows it.
#[derive(Debug, Clone)]
struct Held {
    account: AccountId,
    event: *const SharedEvent,
    event_bytes: usize,
    counted: usize,
    commit: Lsn,
    may_leave: bool,
}

fn scan(dispatcher: &Dispatcher) -> Vec<Held> {
    let mut all = Vec::new();
    for (_, queue) in dispatcher.queues.iter() {
        let Some(pending) = queue.pending() else { continue };
        let idle: BTreeSet<DeliveryId> = pending.idle().map(|pending| pending.id).collect();
        for delivery in pending.idle().chain(pending.sent()) {
            all.push(Held {
                account: queue.id().account.clone(),
                event: Arc::as_ptr(&delivery.held),
                event_bytes: delivery.held.event.size_bytes(),
                counted: delivery.counted,
                commit: delivery.held.event.position.commit_lsn(),
                may_leave: idle.contains(&delivery.id)
                    && !matches!(delivery.origin, Origin::Retry { .. }),
            });
        }
    }
    all
}

/// What each account holds: its deliveries, and each of their events once.
fn holdings(all: &[Held]) -> BTreeMap<AccountId, usize> {
    let mut seen = BTreeSet::new();
    let mut holdings = BTreeMap::new();
    for held in all {
        let event = if seen.insert(held.event) { held.event_bytes } else { 0 };
        *holdings.entry(held.account.clone()).or_default() += held.counted + event;
    }
    holdings
}

struct World {
    dispatcher: Dispatcher,
    now: Tick,
    commit: u64,
    left: usize,
    in_flight: Vec<DeliveryId>,
}

impl World {
    fn new() -> Self {
        let settings = Settings { memory_limit: LIMIT, slice: 4, ..fixture::settings() };
        let (mut dispatcher, now) = (fixture::dispatcher(settings), Tick(60_000_000));
        dispatcher.enter(now);
        Self { dispatcher, now, commit: 2_000, left: 0, in_flight: vec![] }
    }

    /// An event comes, for as many endpoints as its account's number says. Then checks who gave way for it.
    fn arrive(&mut self, account: usize, key: u64, row_bytes: usize) -> Result<(), TestCaseError> {
        if !self.dispatcher.wants_input() {
            return Ok(());
        }
        let name = format!("a{account}");
        let blocked = self.blocked();
        self.commit += 100;
        let event = fixture::event(&name, fixture::position(self.commit, self.commit - 10), &[key]);
        let row = Bytes::from(vec![b' '; row_bytes]);
        let items = fixture::transaction(self.commit, [Arc::new(Event { row, ..event })]);
        let now = self.now;
        let progress = Item::Progress { wal_end: Lsn(self.commit + 50) };
        for item in items.into_iter().chain([progress]) {
            self.dispatcher.handle_item(item, now);
        }
        while let Some(look_up) = self.dispatcher.poll_lookup(now) {
            let routes = |account: &AccountId| {
                let n: usize = account.as_str()[1..].parse().unwrap();
                let ids: Vec<String> = (0..=n).map(|e| format!("{account}-{e}")).collect();
                fixture::routes(account, ids.iter().map(String::as_str))
            };
            self.dispatcher.handle_lookup(look_up.answered(fixture::snapshot(), routes), now);
        }
        self.check(&blocked)
    }

    /// The queues of which all that comes joins the table.
    fn blocked(&self) -> BTreeSet<QueueId> {
        let all = self.dispatcher.queues.all_deferred();
        let blocked = all.filter(|(.., deferred)| *deferred.backlog().blocked() == Blocked::All);
        blocked.map(|(_, queue, _)| queue.clone()).collect()
    }

    /// Walks back what left: before each delivery left, nobody held more than its account, and no delivery of the
    /// account was newer.
    fn check(&mut self, blocked: &BTreeSet<QueueId>) -> Result<(), TestCaseError> {
        let mut all = scan(&self.dispatcher);
        let after = holdings(&all);
        let counted = |account: &AccountId| self.dispatcher.queues.bytes_of(account);
        prop_assert!(after.iter().all(|(account, bytes)| counted(account) == *bytes), "{after:?}");
        let stays = self.dispatcher.bytes_to_stay();
        let may_leave = all.iter().any(|held| held.may_leave);
        prop_assert!(stays < LIMIT / 4 * 3 + LIMIT / 64 || !may_leave, "{stays} bytes stay");

        let leaving: Vec<_> = self.dispatcher.outbox.leaving_mut().collect();
        let new = leaving.len() - self.left.min(leaving.len());
        self.left = leaving.len();
        for leaving in leaving.into_iter().rev().take(new) {
            let queue = &leaving.row.id.queue;
            let commit = leaving.held.event.position.commit_lsn();
            let never_came_in = commit == Lsn(self.commit) && blocked.contains(queue);
            if leaving.row.reason != DeferReason::Overflow || never_came_in {
                continue;
            }
            let account = queue.account.clone();
            let newer = all.iter().filter(|h| h.account == account && h.may_leave);
            prop_assert!(newer.clone().all(|held| held.commit <= commit), "not the newest left");
            all.push(Held {
                account: account.clone(),
                event: Arc::as_ptr(&leaving.held),
                event_bytes: leaving.held.event.size_bytes(),
                counted: leaving.counted - (LEAVING_BYTES - DELIVERY_BYTES),
                commit,
                may_leave: true,
            });
            let before = holdings(&all);
            let able = |name: &AccountId| all.iter().any(|h| h.account == *name && h.may_leave);
            let most = before.iter().filter(|(name, _)| able(name)).map(|(_, bytes)| *bytes).max();
            prop_assert_eq!(Some(before[&account]), most, "{} gave way: {:?}", account, before);
        }
        Ok(())
    }

    fn send(&mut self) {
        let dispatcher = &mut self.dispatcher;
        let sent = std::iter::from_fn(|| dispatcher.poll_attempt(self.now)).take(3);
        self.in_flight.extend(sent.map(|dispatch| dispatch.attempt.first().id));
        self.left = self.dispatcher.outbox.leaving_mut().count();
    }

    fn answer(&mut self) {
        if let Some(id) = self.in_flight.pop() {
            self.dispatcher.handle_outcome(id, &fixture::answered(204), self.now);
        }
    }

    fn store(&mut self) {
        self.now = self.now + Duration::from_millis(100);
        self.dispatcher.enter(self.now);
        if self.dispatcher.poll_persist(self.now).is_some() {
            self.dispatcher.handle_persisted(&Persisted::default(), self.now);
        }
        self.left = self.dispatcher.outbox.leaving_mut().count();
    }
}

#[derive(Debug, Clone)]
enum Step {
    Arrive { account: usize, key: u64, row_bytes: usize },
    Send,
    Answer,
    Store,
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![4 => 0usize..500, 1 => 5_000usize..20_000];
    // A whale, and some that are smaller.
    let account = prop_oneof![3 => Just(0usize), 1 => 1..ACCOUNTS];
    prop_oneof![
        12 => (account, 0u64..20, size)
            .prop_map(|(account, key, row_bytes)| Step::Arrive { account, key, row_bytes }),
        1 => Just(Step::Send),
        1 => Just(Step::Answer),
        1 => Just(Step::Store),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn account_that_holds_most_gives_way_and_its_newest_first(
        steps in prop::collection::vec(step(), 300..600),
    ) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Arrive { account, key, row_bytes } => world.arrive(account, key, row_bytes)?,
                Step::Send => world.send(),
                Step::Answer => world.answer(),
                Step::Store => world.store(),
            }
        }
    }
}

/// So many events of the account come, with bodies of 360 bytes.
fn burst(world: &mut World, account: &str, endpoints: usize, events: usize) {
    for _ in 0..events {
        world.commit += 100;
        let (commit, now) = (world.commit, world.now);
        let event = fixture::event(account, fixture::position(commit, commit - 10), &[commit]);
        let event = Arc::new(Event { row: Bytes::from(vec![b' '; 360]), ..event });
        for item in fixture::transaction(commit, [event]) {
            world.dispatcher.handle_item(item, now);
        }
        let Some(look_up) = world.dispatcher.poll_lookup(now) else { continue };
        let routes = |account: &AccountId| {
            let ids: Vec<String> = (0..endpoints).map(|e| format!("{account}-{e}")).collect();
            fixture::routes(account, ids.iter().map(String::as_str))
        };
        world.dispatcher.handle_lookup(look_up.answered(fixture::snapshot(), routes), now);
    }
}

fn world(memory_limit: usize) -> World {
    let mut world = World::new();
    let settings = Settings { memory_limit, slice: 256, lane_max: 1 << 20, ..fixture::settings() };
    world.dispatcher = fixture::dispatcher(settings);
    world
}

#[test]
fn burst_of_one_account_is_not_deferred_while_there_is_memory() {
    let mut world = world(256 << 20);
    burst(&mut world, "whale", 1, 100_000);
    assert_eq!(world.dispatcher.counters().deferred, [0; DeferReason::ALL.len()]);
    assert_eq!(world.dispatcher.queued(), 100_000);
}

/// Events of an account with 40 endpoints come while there is room, and nothing can be stored. Returns how many.
fn fill(world: &mut World) -> usize {
    let came = (0..100_000).take_while(|_| {
        burst(world, "whale", 40, 1);
        world.dispatcher.wants_input()
    });
    came.count()
}

#[test]
fn all_that_leaves_memory_at_once_finds_room_on_the_way() {
    let limit = 4 << 20;
    let mut world = world(limit);
    assert!(fill(&mut world) > 50);
    let before = world.dispatcher.queued();
    let pause = |id: String| OperatorInput::Pause {
        job: JobId(1),
        endpoint: EndpointId::new(id),
        reason: String::new(),
    };
    for endpoint in 0..40 {
        let pause = pause(format!("whale-{endpoint}"));
        world.dispatcher.handle_operator(pause, world.now);
    }
    while world.dispatcher.deferral.clearing.is_ready() {
        world.dispatcher.clear_next(world.now);
    }
    let (queued, pending) = (world.dispatcher.queued(), world.dispatcher.memory.pending());
    assert!(before > 2_000 && queued == 0, "{before} were queued, and {queued} are");
    assert!(pending <= limit, "{pending} bytes are pending, and {limit} allowed");
}

#[test]
fn events_that_become_rows_at_once_find_room_on_the_way() {
    let limit = 4 << 20;
    let mut world = world(limit);
    // Nobody answers the look-up.
    while world.dispatcher.wants_input() {
        world.commit += 100;
        let commit = world.commit;
        let event = fixture::event("whale", fixture::position(commit, commit - 10), &[commit]);
        for item in fixture::transaction(commit, [Arc::new(event)]) {
            world.dispatcher.handle_item(item, world.now);
        }
        world.dispatcher.poll_lookup(world.now);
    }
    world.now = world.now + Duration::from_secs(2);
    world.dispatcher.fan_out(world.now);
    let (rows, pending) =
        (world.dispatcher.routing.shelves.rows(), world.dispatcher.memory.pending());
    assert!(rows > 2_000, "{rows} events became rows");
    assert!(pending <= limit, "{pending} bytes are pending, and {limit} allowed");
}

#[test]
fn ten_thousand_short_queues_of_one_account_count_as_what_they_are() {
    let mut world = world(16 << 20);
    burst(&mut world, "small", 1, 1_000);
    // 200 endpoints, each with far fewer deliveries than the small account's one.
    burst(&mut world, "whale", 200, 250);
    let small = world.dispatcher.queues.bytes_of(&AccountId::new("small"));
    let whale = world.dispatcher.queues.bytes_of(&AccountId::new("whale"));
    assert!(world.dispatcher.counters().deferred[DeferReason::Overflow.index()] > 0);
    let of = |leaving: &&mut crate::dispatcher::outbox::Leaving| {
        leaving.row.id.queue.account.as_str() == "small"
    };
    assert_eq!(world.dispatcher.outbox.leaving_mut().filter(of).count(), 0);
    assert!(whale > small, "{whale} and {small} bytes are held");
}

#[test]
fn queue_that_is_looked_after_is_not_forgotten_where_many_are_idle() {
    // What is kept takes more than it may all the time.
    let mut world = world(1 << 20);
    for account in 0..400 {
        burst(&mut world, &format!("a{account}"), 8, 1);
    }
    let mut sent = Vec::new();
    while let Some(dispatch) = world.dispatcher.poll_attempt(world.now) {
        sent.push(dispatch.attempt.first().id);
        let delivery = sent.pop().unwrap();
        // Each fails, leaves for the table with all that waits, and has its health noted then.
        world.now = world.now + Duration::from_millis(1);
        let outcome = fixture::answered(if sent.is_empty() { 503 } else { 500 });
        world.dispatcher.handle(world.now, Input::Outcome { delivery, outcome });
    }
    let (kept, idle) = (world.dispatcher.kept_bytes(), world.dispatcher.queues.idle());
    assert!(idle < 800, "{idle} idle queues are kept, and {kept} bytes");
}

/// What is in flight cannot give way. All of it comes back then, and nothing comes that would have room made.
#[test]
fn what_was_in_flight_while_the_stream_stands_still_gives_way() {
    let mut world = world(1 << 20);
    let settings = Settings { memory_limit: 1 << 20, fast_slots: 4_096, ..fixture::settings() };
    world.dispatcher = fixture::dispatcher(settings);
    let mut sent = Vec::new();
    for n in 0..4_000 {
        burst(&mut world, &format!("a{n}"), 1, 1);
        let now = world.now;
        while let Some(effect) = world.dispatcher.poll(now) {
            if let Effect::Send(dispatch) = effect {
                sent.push(dispatch.attempt.first().id);
            }
        }
        if !world.dispatcher.wants_input() {
            break;
        }
    }
    assert!(!world.dispatcher.wants_input() && sent.len() > 100);
    let overflow =
        |world: &World| world.dispatcher.counters().deferred[DeferReason::Overflow.index()];
    let before = overflow(&world);
    world.dispatcher.handle(world.now, Input::Slots { fast: 0, slow: 0 });
    for delivery in sent {
        world.dispatcher.handle(world.now, Input::Unsent(delivery));
    }
    while world.dispatcher.poll(world.now).is_some() {}
    let again = world.dispatcher.deadline().unwrap();
    assert!(again.since(world.now) <= Duration::from_millis(50), "it is tried again soon");
    world.now = again.max(world.now);
    while world.dispatcher.poll(world.now).is_some() {}
    assert!(overflow(&world) > before);
}

#[test]
fn room_that_could_not_be_made_is_made_of_what_comes_later() {
    let mut world = world(1 << 20);
    world.dispatcher.memory.note_relief((1 << 20) / 8 * 7, 0);
    let came = (0..10_000).take_while(|_| {
        burst(&mut world, "whale", 1, 1);
        world.dispatcher.counters().deferred[DeferReason::Overflow.index()] == 0
            && world.dispatcher.wants_input()
    });
    assert!(came.count() > 100);
    assert!(world.dispatcher.wants_input(), "the stream stands still before room is made");
}
