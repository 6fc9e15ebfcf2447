//! One lane's queues against a naive model: a list of deliveries, scanned. And handles against one: a set of
//! names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::clock::Reading;
use crate::fixture;
use crate::lane::{Moment, New, Removed, SharedEvent, Source};
use crate::route::{Router, RoutesNo};
use crate::schedule::{LaneId, Pool};
use walhook_core::event::RowKeys;
use walhook_core::id::{DeadLetterId, JobId, ReplayId};
use walhook_core::tick::Tick;

/// The queues of one account, by their endpoints.
struct Lane {
    queues: Queues,
    account: AccountId,
}

const LANE: LaneId = LaneId(0);

/// Routes that nobody looks at.
fn pinned() -> RoutesNo {
    Router::new(0, Seeded::new(1)).pin(&AccountId::new("1"))
}

impl Lane {
    fn new(account: AccountId) -> Self {
        let mut lane = Self { queues: Queues::new(1), account };
        lane.no(&id(0));
        lane
    }

    fn no(&mut self, endpoint: &EndpointId) -> QueueNo {
        let no = self.queues.intern(&self.account, endpoint);
        if self.queues.lane_id(no).is_none() {
            self.queues.add_lane(no, LANE, pinned());
        }
        no
    }

    fn push(&mut self, endpoint: &EndpointId, new: New, keys: RowKeys) {
        let no = self.no(endpoint);
        self.queues.push(no, new, keys);
    }

    fn refresh(&mut self, endpoint: &EndpointId, now: Tick) {
        let no = self.no(endpoint);
        self.queues.refresh(no, now);
    }

    fn take_turn(&mut self, pool: Pool, now: Tick) -> Option<EndpointId> {
        let no = self.queues.take_turn(LANE, pool, now)?;
        Some(self.queues.id(no).endpoint.clone())
    }

    fn queue_mut(&mut self, endpoint: &EndpointId) -> Option<&mut Queue> {
        let no = self.no(endpoint);
        self.queues.pending_mut(no)
    }

    fn remove(&mut self, endpoint: &EndpointId, id: DeliveryId) -> Removed {
        let no = self.no(endpoint);
        self.queues.remove(no, id)
    }

    fn pending(&self) -> usize {
        self.queues.lanes().map(super::Lane::pending).sum()
    }
}

fn at_moment(now: Tick) -> Moment {
    Moment { now, below: Reading::at(now) }
}

fn held() -> Arc<SharedEvent> {
    Arc::new(SharedEvent::new(Arc::new(fixture::event("a", fixture::position(1, 1), &[]))))
}

#[derive(Debug, Clone)]
enum Action {
    Push {
        endpoint: u8,
        keys: Vec<u64>,
    },
    Send(Pool),
    /// The endpoint is slow from now on, or quick. That it becomes slow shows without anything being told.
    Turn {
        endpoint: u8,
        slow: bool,
    },
    Deliver(usize),
    Fail(usize),
    Due(usize),
    Die(usize),
    Bury(usize),
    GiveUp(u8, bool),
}

fn action() -> impl Strategy<Value = Action> {
    let keys = proptest::collection::btree_set(0u64..4, 0..3).prop_map(|k| k.into_iter().collect());
    prop_oneof![
        6 => (0u8..3, keys).prop_map(|(endpoint, keys)| Action::Push { endpoint, keys }),
        6 => prop_oneof![Just(Pool::Fast), Just(Pool::Slow)].prop_map(Action::Send),
        3 => (0u8..3, any::<bool>()).prop_map(|(endpoint, slow)| Action::Turn { endpoint, slow }),
        4 => any::<usize>().prop_map(Action::Deliver),
        2 => any::<usize>().prop_map(Action::Fail),
        2 => any::<usize>().prop_map(Action::Due),
        2 => any::<usize>().prop_map(Action::Die),
        2 => any::<usize>().prop_map(Action::Bury),
        1 => (0u8..3, any::<bool>()).prop_map(|(endpoint, dead)| Action::GiveUp(endpoint, dead)),
    ]
}

#[derive(Debug, Clone, PartialEq)]
struct Modelled {
    id: u64,
    endpoint: u8,
    keys: Vec<u64>,
    in_flight: bool,
    backing_off: bool,
    dying: bool,
}

fn id(endpoint: u8) -> EndpointId {
    EndpointId::new(endpoint.to_string())
}

/// The oldest delivery to the endpoint that nothing older with one of its keys holds back.
fn sendable(model: &[Modelled], endpoint: u8) -> Option<usize> {
    let shares = |a: &Modelled, b: &Modelled| a.keys.iter().any(|k| b.keys.contains(k));
    model.iter().enumerate().position(|(at, m)| {
        m.endpoint == endpoint
            && !m.in_flight
            && !m.backing_off
            && !m.dying
            && !model[..at].iter().any(|older| older.endpoint == endpoint && shares(older, m))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn lane_sends_what_a_naive_scan_would_send(actions in proptest::collection::vec(action(), 1..120)) {
        let mut lane = Lane::new(AccountId::new("a"));
        let mut model: Vec<Modelled> = Vec::new();
        let mut is_slow = [false; 3];
        let mut next = 0;
        let now = Tick(0);
        let pick = |model: &[Modelled], n: usize, wanted: fn(&Modelled) -> bool| {
            let all: Vec<usize> = (0..model.len()).filter(|at| wanted(&model[*at])).collect();
            (!all.is_empty()).then(|| all[n % all.len()])
        };
        for action in actions {
            match action {
                Action::Push { endpoint, keys } => {
                    let source = Source::Retry { dead_letter: DeadLetterId(1), job: JobId(1) };
                    let new = New { id: DeliveryId(next), held: held(), source, waits: None, now };
                    lane.push(&id(endpoint), new, RowKeys::from_slice(&keys));
                    lane.refresh(&id(endpoint), now);
                    let m = Modelled { id: next, endpoint, keys, in_flight: false, backing_off: false, dying: false };
                    model.push(m);
                    next += 1;
                }
                Action::Turn { endpoint, slow } => {
                    let Some(queue) = lane.queue_mut(&id(endpoint)) else { continue };
                    let health = queue.health_mut();
                    is_slow[usize::from(endpoint)] = slow;
                    if slow {
                        health.request_given_up();
                        continue;
                    }
                    while health.pool(now) == Pool::Slow {
                        health.request_started(now);
                        health.request_ended(now, Duration::ZERO);
                    }
                    lane.refresh(&id(endpoint), now);
                }
                Action::Send(pool) => {
                    let belongs = |endpoint: u8| is_slow[usize::from(endpoint)] == (pool == Pool::Slow);
                    let Some(endpoint) = lane.take_turn(pool, now) else {
                        for endpoint in (0..3).filter(|endpoint| belongs(*endpoint)) {
                            let in_flight = model.iter().filter(|m| m.endpoint == endpoint && m.in_flight).count();
                            let limit = lane.queue_mut(&id(endpoint)).map_or(1, |q| q.health().limit());
                            let full = in_flight >= limit as usize;
                            // Whoever became slow has its turn first where it was quick.
                            let comes = pool == Pool::Slow && lane.queue_mut(&id(endpoint)).is_some_and(|q| q.has_turn());
                            prop_assert!(full || comes || sendable(&model, endpoint).is_none(), "endpoint {endpoint} was forgotten");
                        }
                        continue;
                    };
                    let n: u8 = endpoint.parse().unwrap();
                    prop_assert!(belongs(n), "{n} is sent from {pool:?}");
                    let queue = lane.queue_mut(&endpoint).unwrap();
                    let first = queue.first_ready().unwrap().id;
                    let at = sendable(&model, n).unwrap();
                    prop_assert_eq!(first.0, model[at].id);
                    queue.start(first, &at_moment(now), None);
                    model[at].in_flight = true;
                    lane.refresh(&endpoint, now);
                }
                Action::Deliver(n) => {
                    if let Some(at) = pick(&model, n, |m| m.in_flight) {
                        let m = model.remove(at);
                        lane.remove(&id(m.endpoint), DeliveryId(m.id));
                        lane.refresh(&id(m.endpoint), now);
                    }
                }
                Action::Fail(n) => {
                    if let Some(at) = pick(&model, n, |m| m.in_flight) {
                        (model[at].in_flight, model[at].backing_off) = (false, true);
                        let endpoint = id(model[at].endpoint);
                        lane.queue_mut(&endpoint).unwrap().back_off(DeliveryId(model[at].id), now);
                        lane.refresh(&endpoint, now);
                    }
                }
                Action::Due(n) => {
                    if let Some(at) = pick(&model, n, |m| m.backing_off) {
                        model[at].backing_off = false;
                        let endpoint = id(model[at].endpoint);
                        lane.queue_mut(&endpoint).unwrap().due(DeliveryId(model[at].id), &at_moment(now));
                        lane.refresh(&endpoint, now);
                    }
                }
                Action::Die(n) => {
                    if let Some(at) = pick(&model, n, |m| m.in_flight) {
                        (model[at].in_flight, model[at].dying) = (false, true);
                        let endpoint = id(model[at].endpoint);
                        lane.queue_mut(&endpoint).unwrap().die(DeliveryId(model[at].id));
                        lane.refresh(&endpoint, now);
                    }
                }
                Action::Bury(n) => {
                    if let Some(at) = pick(&model, n, |m| m.dying) {
                        let m = model.remove(at);
                        lane.remove(&id(m.endpoint), DeliveryId(m.id));
                        lane.refresh(&id(m.endpoint), now);
                    }
                }
                Action::GiveUp(endpoint, dead) => {
                    let Some(queue) = lane.queue_mut(&id(endpoint)) else { continue };
                    let idle: Vec<u64> = queue.idle().map(|pending| pending.id.0).collect();
                    let expected = model.iter().filter(|m| m.endpoint == endpoint && !m.in_flight && !m.dying);
                    prop_assert_eq!(&idle, &expected.map(|m| m.id).collect::<Vec<_>>());
                    for n in idle {
                        let at = model.iter().position(|m| m.id == n).unwrap();
                        if dead {
                            model[at].dying = true;
                            lane.queue_mut(&id(endpoint)).unwrap().die(DeliveryId(n));
                        } else {
                            model.remove(at);
                            lane.remove(&id(endpoint), DeliveryId(n));
                        }
                    }
                    lane.refresh(&id(endpoint), now);
                }
            }
            prop_assert_eq!(lane.pending(), model.len());
            for endpoint in 0..3 {
                if let Some(queue) = lane.queue_mut(&id(endpoint)) {
                    let in_flight = model.iter().filter(|m| m.endpoint == endpoint && m.in_flight).count();
                    prop_assert_eq!(queue.in_flight() as usize, in_flight);
                }
            }
        }
    }
}

#[test]
fn endpoints_of_a_lane_take_turns() {
    let mut lane = Lane::new(AccountId::new("a"));
    let now = Tick(0);
    for n in 0..6 {
        let source = Source::Retry { dead_letter: DeadLetterId(1), job: JobId(1) };
        let endpoint = id(u8::from(n >= 3));
        lane.push(
            &endpoint,
            New { id: DeliveryId(n), held: held(), source, waits: None, now },
            RowKeys::new(),
        );
        lane.refresh(&endpoint, now);
    }
    let mut turns = Vec::new();
    while let Some(endpoint) = lane.take_turn(Pool::Fast, now) {
        let queue = lane.queue_mut(&endpoint).unwrap();
        let first = queue.first_ready().unwrap().id;
        queue.start(first, &at_moment(now), None);
        lane.refresh(&endpoint, now);
        turns.push(endpoint.to_string());
    }
    assert_eq!(turns, ["0", "1", "0", "1", "0", "1"]);
}

#[test]
fn row_rate_limit_spaces_requests() {
    let mut lane = Lane::new(AccountId::new("a"));
    for n in 0..2 {
        let source = Source::Retry { dead_letter: DeadLetterId(1), job: JobId(1) };
        lane.push(
            &id(0),
            New { id: DeliveryId(n), held: held(), source, waits: None, now: Tick(0) },
            RowKeys::new(),
        );
    }
    lane.refresh(&id(0), Tick(0));
    assert!(lane.take_turn(Pool::Fast, Tick(0)).is_some());
    let queue = lane.queue_mut(&id(0)).unwrap();
    queue.start(DeliveryId(0), &at_moment(Tick(0)), Some(4.0));
    assert!(!queue.is_sendable(Tick(0)));
    assert_eq!(queue.resting_until(Tick(0)), Some(Tick(250_000)));
    assert!(queue.is_sendable(Tick(250_000)));
}

#[test]
fn queue_counts_no_attempt_and_rests_when_nothing_was_left_to_send_with() {
    let mut lane = Lane::new(AccountId::new("a"));
    for n in 0..2 {
        let source = Source::Retry { dead_letter: DeadLetterId(1), job: JobId(1) };
        lane.push(
            &id(0),
            New { id: DeliveryId(n), held: held(), source, waits: None, now: Tick(0) },
            RowKeys::new(),
        );
    }
    let mut rng = SmallRng::seed_from_u64(1);
    let queue = lane.queue_mut(&id(0)).unwrap();
    let mut now = Tick(0);
    let mut waits = Vec::new();
    for _ in 0..12 {
        queue.start(DeliveryId(0), &at_moment(now), None);
        queue.start(DeliveryId(1), &at_moment(now), None);
        let due = queue.put_off(DeliveryId(0), now, 0, &mut rng);
        // Those that fail at the same time are one fault.
        assert_eq!(queue.put_off(DeliveryId(1), now, 0, &mut rng), due);
        assert!(!queue.is_sendable(now) && queue.resting_until(now) == Some(due));
        waits.push(due.since(now));
        now = due;
        queue.due(DeliveryId(0), &at_moment(now));
        queue.due(DeliveryId(1), &at_moment(now));
        assert!(queue.is_sendable(now));
    }
    assert!((250..=500).contains(&waits[0].as_millis()), "{waits:?}");
    assert!(waits.iter().all(|wait| wait.as_millis() <= 5_000), "{waits:?}");
    assert!(waits[4..].iter().all(|wait| wait.as_millis() >= 2_500), "{waits:?}");
    assert_eq!(queue.get(DeliveryId(0)).unwrap().attempts, 0);
    // One that is sent ends it.
    queue.start(DeliveryId(0), &at_moment(now), None);
    queue.was_sent(now);
    let wait = queue.put_off(DeliveryId(0), now, 0, &mut rng).since(now);
    assert!(wait.as_millis() <= 500, "{wait:?}");
}

#[derive(Debug, Clone)]
enum Change {
    Push(u8, u8),
    Remove(usize),
    Rest(usize),
    Defer(u8, u8),
    Settle(usize),
    Keep(usize, bool),
    Sweep,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (0u8..3, 0u8..4).prop_map(|(account, endpoint)| Change::Push(account, endpoint)),
        4 => any::<usize>().prop_map(Change::Remove),
        3 => any::<usize>().prop_map(Change::Rest),
        2 => (0u8..3, 0u8..4).prop_map(|(account, endpoint)| Change::Defer(account, endpoint)),
        2 => any::<usize>().prop_map(Change::Settle),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(which, kept)| Change::Keep(which, kept)),
        2 => Just(Change::Sweep),
    ]
}

/// What is there of a queue.
#[derive(Debug, Default)]
struct There {
    deliveries: Vec<DeliveryId>,
    in_memory: bool,
    deferred: bool,
    kept: bool,
}

impl There {
    fn is_something(&self) -> bool {
        self.in_memory || self.deferred || self.kept
    }
}

proptest! {
    #[test]
    fn queues_are_one_for_each_name_and_handles_are_good_as_long_as_anything_is_there(
        changes in proptest::collection::vec(change(), 1..150),
    ) {
        let mut queues = Queues::new(1);
        let mut model: BTreeMap<QueueNo, There> = BTreeMap::new();
        let mut stale: BTreeSet<QueueNo> = BTreeSet::new();
        let mut lanes = 0..;
        let nth = |model: &BTreeMap<QueueNo, There>, n: usize| {
            (!model.is_empty()).then(|| *model.keys().nth(n % model.len()).unwrap())
        };
        for change in changes {
            match change {
                Change::Push(account, endpoint) => {
                    let (account, endpoint) = (AccountId::new(account.to_string()), id(endpoint));
                    let no = queues.intern(&account, &endpoint);
                    if queues.lane_id(no).is_none() {
                        queues.add_lane(no, LaneId(lanes.next().unwrap()), pinned());
                    }
                    let source = Source::Replay(ReplayId(1));
                    let delivery = queues.next_delivery();
                    let new = New { id: delivery, held: held(), source, waits: None, now: Tick(0) };
                    queues.push(no, new, RowKeys::new());
                    let there = model.entry(no).or_default();
                    there.deliveries.push(delivery);
                    there.in_memory = true;
                }
                Change::Remove(n) => {
                    let Some(no) = nth(&model, n) else { continue };
                    if let Some(delivery) = model.get_mut(&no).unwrap().deliveries.pop() {
                        prop_assert_eq!(queues.remove(no, delivery).pending.id, delivery);
                    }
                }
                Change::Rest(n) => {
                    let Some(no) = nth(&model, n) else { continue };
                    queues.rest_if_idle(no);
                    while queues.idle() > 0 {
                        queues.forget_idle();
                    }
                    let there = model.get_mut(&no).unwrap();
                    there.in_memory &= !there.deliveries.is_empty();
                }
                Change::Defer(account, endpoint) => {
                    let account = AccountId::new(account.to_string());
                    // Whoever does not know the account's number says so, although it may have one.
                    let (no, _) = queues.intern_in(None, &account, &id(endpoint));
                    queues.deferred_or_new(no);
                    model.entry(no).or_default().deferred = true;
                }
                Change::Settle(n) => {
                    let Some(no) = nth(&model, n) else { continue };
                    queues.forget_deferred(no);
                    model.get_mut(&no).unwrap().deferred = false;
                }
                Change::Keep(n, kept) => {
                    let Some(no) = nth(&model, n) else { continue };
                    queues.keep(no, kept);
                    model.get_mut(&no).unwrap().kept = kept;
                }
                Change::Sweep => {
                    queues.sweep();
                    stale.extend(model.iter().filter(|(_, t)| !t.is_something()).map(|(no, _)| *no));
                    model.retain(|_, there| there.is_something());
                }
            }
            let names: BTreeSet<QueueId> = model.keys().map(|no| queues.id(*no).clone()).collect();
            prop_assert_eq!(names.len(), model.len(), "two queues have one name");
            for (no, there) in &model {
                prop_assert_eq!(queues.find(queues.id(*no)), Some(*no));
                prop_assert!(queues.of_endpoint(&queues.id(*no).endpoint).contains(no));
                prop_assert_eq!(queues.pending(*no).is_some(), there.in_memory);
                prop_assert_eq!(queues.deferred(*no).is_some(), there.deferred);
            }
            prop_assert!(stale.iter().all(|no| queues.get(*no).is_none()), "a handle is another's");
            let there = |is: fn(&There) -> bool| model.values().filter(|there| is(there)).count();
            prop_assert_eq!(queues.in_memory, there(|there| there.in_memory));
            prop_assert_eq!(queues.with_rows(), there(|there| there.deferred));
            prop_assert_eq!(queues.iter().count(), model.len());
        }
    }
}
