//! Replays beside endpoints of every temper, with crashes, pauses, a bound of the tables, and an operator
//! who cancels: each reads on, and what it counts is what there is.

use std::collections::{BTreeMap, BTreeSet};

use super::world::{Change, World, account_for};
use super::*;
use walhook_core::event::Event;
use walhook_core::id::ReplayId;
use walhook_core::persist::{QueueId, ReplayCounts, RowKey};

/// Deliveries after which the position is stored.
const STORE_EVERY: usize = 40;

/// What a replay sends again, and how far it is.
struct Plan {
    replay: ReplayId,
    pairs: Vec<(Arc<Event>, EndpointId)>,
    /// Everything before this has ended, or is deferred.
    position: usize,
    /// Where the operator cancels it.
    cancelled_at: Option<usize>,
    ended: bool,
    /// When it began, and came to its end.
    took: (Option<Tick>, Option<Tick>),
}

impl Plan {
    fn all(world: &World, replay: ReplayId) -> Self {
        let table = world.table(world.txns.len());
        let events = world.txns.iter().flat_map(|txn| &txn.changes).filter_map(|c| match c {
            Change::Row(event) => Some(event),
            Change::Endpoint { .. } => None,
        });
        let pairs = events.flat_map(|event| {
            let of = |(account, enabled): &(u32, bool)| {
                *enabled && account.to_string() == event.account.as_str()
            };
            let endpoints = table.iter().filter(move |(_, row)| of(row));
            endpoints.map(|(id, _)| (Arc::clone(event), EndpointId::new(id.as_str())))
        });
        let (pairs, took) = (pairs.collect(), (None, None));
        Self { replay, pairs, position: 0, cancelled_at: None, ended: false, took }
    }
}

/// What one life knows of the replay that it carries out.
struct Feeder {
    /// The next pair, and how many were fed, those of earlier lives included.
    next: usize,
    fed: i64,
    there: BTreeSet<(EndpointId, RowKey)>,
}

impl Feeder {
    /// As the pipeline's task does: with the counts that are stored, from the position that is.
    fn begin(life: &mut Life, world: &World, plan: &mut Plan, now: Tick) -> Self {
        let counts = world.replays.get(&plan.replay).copied().unwrap_or_default();
        life.dispatcher.handle_replay(ReplayInput::Start(plan.replay, counts), now);
        plan.took.0.get_or_insert(now);
        let rows = world.deferred.iter().flat_map(|(queue, rows)| {
            let of_it = rows.keys().filter(|key| key.replay == Some(plan.replay));
            of_it.map(|key| (queue.endpoint.clone(), key.clone()))
        });
        Self { next: plan.position, fed: counts.total(), there: rows.collect() }
    }

    /// Feeds what may be. True: the replay is over.
    fn feed(&mut self, life: &mut Life, world: &mut World, plan: &mut Plan, now: Tick) -> bool {
        let stored = world.replays.get(&plan.replay).map_or(0, ReplayCounts::total);
        while life.dispatcher.wants_replay() {
            if plan.cancelled_at == Some(self.next) {
                life.dispatcher.handle_replay(ReplayInput::End(plan.replay), now);
                return true;
            }
            let lot_ends = self.next - plan.position >= STORE_EVERY;
            if lot_ends || self.next == plan.pairs.len() {
                if stored < self.fed {
                    return false;
                }
                plan.position = self.next;
            }
            let Some((event, endpoint)) = plan.pairs.get(self.next) else {
                life.dispatcher.handle_replay(ReplayInput::End(plan.replay), now);
                return true;
            };
            self.next += 1;
            let event_key = walhook_core::persist::EventKey::of(event);
            let key = RowKey { event: event_key, replay: Some(plan.replay) };
            if self.there.contains(&(endpoint.clone(), key)) {
                continue;
            }
            self.fed += 1;
            let (event, endpoint) = (Arc::clone(event), endpoint.clone());
            let replay = Replay { replay: plan.replay, event, endpoint };
            life.dispatcher.handle_replay(ReplayInput::Deliver(replay), now);
        }
        false
    }
}

/// Rows that were removed, and when that is told.
type Untold = (Tick, Vec<(QueueId, RowKey)>);

/// As the job of the pipeline does for a replay that was cancelled: the dispatcher hears which rows these are before
/// they are gone, and once more after a while.
fn discard(life: &mut Life, world: &mut World, replay: ReplayId, now: Tick) -> Untold {
    let mut gone: Vec<(QueueId, RowKey)> = Vec::new();
    for (queue, rows) in &world.deferred {
        let of_it = rows.keys().filter(|key| key.replay == Some(replay));
        gone.extend(of_it.map(|key| (queue.clone(), key.clone())));
    }
    life.dispatcher.handle_operator(OperatorInput::RowsBeingRemoved(gone.clone()), now);
    for (queue, key) in &gone {
        world.deferred.get_mut(queue).unwrap().remove(key);
        if let Some(counted) = world.backlog.get_mut(queue) {
            counted.rows = counted.rows.saturating_sub(1);
        }
    }
    world.deferred.retain(|_, rows| !rows.is_empty());
    world.discarded.extend(gone.iter().cloned());
    world.late.entry(replay).or_default().dropped += i64::try_from(gone.len()).unwrap();
    (now + Duration::from_millis(300), gone)
}

fn waiting(world: &World, replay: ReplayId) -> i64 {
    let late = world.late.get(&replay).map_or(0, ReplayCounts::total);
    world.replays.get(&replay).map_or(0, |counts| counts.deferred) - late
}

/// Runs a world, then its replays one after the other, all with crashes, and waits until nothing waits.
fn replayed(seed: u64, crashes: u32, pauses: u32, bound: Option<u64>) -> (World, Vec<Plan>) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut world = World { bound, ..World::new(&mut rng, 120) };
    let state_max = bound.unwrap_or(u64::MAX);
    let settings = Settings { state_max, ..settings(1 << 20) };
    let mut now = Tick(0);
    let mut life = Life::new(&world, &settings, &mut rng, now);
    let mut plans: Vec<Plan> =
        (100..103).map(|replay| Plan::all(&world, ReplayId(replay))).collect();
    plans[1].cancelled_at = Some(plans[1].pairs.len() / 2);
    let (mut at, mut feeder, mut left) = (0, None, crashes);
    let (mut begun, mut untold) = (false, None);
    let end = Tick(0) + Duration::from_secs(7 * 24 * 3600);
    loop {
        begun |= life.is_done(&world);
        if begun && left > 0 && rng.random_bool(0.002) {
            left -= 1;
            life.crash(&mut world, &mut rng);
            life = Life::new(&world, &settings, &mut rng, now);
            (feeder, untold) = (None, None);
        }
        if begun && at == 0 {
            world.pauses_left = if world.tempers.is_empty() { 0 } else { pauses };
        }
        world.operate(&mut rng, now);
        let caught_up = life.next_txn == world.txns.len();
        if begun
            && caught_up
            && let Some(plan) = plans.get_mut(at)
        {
            let feeds = feeder.get_or_insert_with(|| Feeder::begin(&mut life, &world, plan, now));
            if feeds.feed(&mut life, &mut world, plan, now) {
                (plan.ended, plan.took.1) = (true, Some(now));
                (at, feeder) = (at + 1, None);
            }
        }
        if at > 1 && untold.is_none() && waiting(&world, ReplayId(101)) > 0 {
            untold = Some(discard(&mut life, &mut world, ReplayId(101), now));
        }
        if let Some((_, rows)) = untold.take_if(|(at, _)| *at <= now) {
            life.dispatcher.handle_operator(OperatorInput::RowsRemoved(rows), now);
        }
        life.poll(&mut world, &mut rng, now);
        if at == plans.len() && life.is_done(&world) {
            return (world, plans);
        }
        let (next, what) = match life.next(&world, now) {
            Some(next) => next,
            None if begun => (now + Duration::from_millis(10), Happens::Wake),
            None => panic!("seed {seed}: nothing left to happen, and not done"),
        };
        // The feeder looks every now and then.
        let looks = now + Duration::from_millis(100);
        (now, _) = if feeder.is_some() && next > looks {
            life.plan(next, what, &mut rng);
            (looks, ())
        } else {
            life.handle(what, &mut world, &mut rng, next);
            (next, ())
        };
        assert!(now < end, "seed {seed}: not done within a week");
    }
}

fn check(seed: u64, world: &World, plans: &[Plan], crashes: u32) {
    account_for(seed, world);
    let letters: BTreeMap<_, _> = world.replayed.iter().collect();
    for plan in plans {
        let replay = plan.replay;
        let counts = world.replays.get(&replay).copied().unwrap_or_default();
        let late = world.late.get(&replay).copied().unwrap_or_default();
        assert_eq!(waiting(world, replay), 0, "seed {seed}: {counts:?}, {late:?}");
        let fed = i64::try_from(plan.cancelled_at.unwrap_or(plan.pairs.len())).unwrap();
        let again = i64::try_from(STORE_EVERY + 16).unwrap() * i64::from(crashes);
        if plan.cancelled_at.is_none() {
            let total = counts.total();
            assert!((fed..=fed + again).contains(&total), "seed {seed}: {total} of {fed}");
        }
        let (Some(began), Some(ended)) = plan.took else { panic!("it did not run") };
        // Some are dead for hours, and the world has endpoints that hang for 15 s each.
        let took = ended.since(began);
        assert!(took < Duration::from_secs(600), "seed {seed}: {replay} was held up for {took:?}");
    }
    // Without a dead end on the way everything of a replay arrives.
    let changed = world.changed();
    for (event, endpoint) in &plans[2].pairs {
        let fast = matches!(world.tempers[endpoint.as_str()], super::world::Temper::Fast);
        if fast && !changed.contains(endpoint.as_str()) && world.bound.is_none() {
            let key = (event.id, endpoint.to_string());
            assert!(letters.contains_key(&key), "seed {seed}: {key:?} was not sent again");
        }
    }
}

fn run(seeds: std::ops::Range<u64>, crashes: u32, pauses: u32, bound: Option<u64>) {
    let mut deferred = 0;
    for seed in seeds {
        let (world, plans) = replayed(seed, crashes, pauses, bound);
        check(seed, &world, &plans, crashes);
        deferred += world.replays.values().map(|counts| counts.deferred).sum::<i64>();
    }
    assert!(deferred > 100, "only {deferred} deliveries were deferred: nothing was tried");
}

#[test]
fn replays_read_on_and_count_what_becomes_of_each_delivery_by_seed() {
    run(0..6, 0, 0, None);
}

#[test]
fn replays_read_on_and_count_what_there_is_across_crashes_and_pauses_by_seed() {
    run(1_000..1_008, 4, 5, None);
}

#[test]
fn replays_read_on_and_count_what_there_is_at_the_bound_of_the_tables_by_seed() {
    run(2_000..2_006, 3, 0, Some(60_000));
}
