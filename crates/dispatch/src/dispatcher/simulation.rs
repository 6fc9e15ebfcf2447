//! The whole dispatcher in virtual time, by seed: a stream, endpoints of every temper, look-ups and
//! state transactions that take their time, and crashes.
//!
//! A world outlives the crashes: what it committed, what its endpoints received, and what the state
//! database holds. At the end every delivery that was owed is received or a stored dead letter, and
//! none is deferred any more.
//!
//! All that a run's dispatchers asked for is one digest. With `WALHOOK_TRACE=1` each run prints its own, so that
//! two versions that are to do the same can be compared; with `WALHOOK_TRACE=all` each effect too.

mod assertions;
mod days;
mod gaps;
mod life;
mod outages;
mod replays;
mod world;

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::retry::RetryPolicy;
use crate::settle::SettlePolicy;
use life::{Happens, Life};
use walhook_core::delivery_log::Keep;
use walhook_core::position::EventId;
use world::{Trace, World, account_for};

/// Slots of each pool.
const SLOTS: u32 = 16;

/// Minutes do what days do in the field.
fn settings(memory_limit: usize) -> Settings {
    Settings {
        memory_limit,
        slice: 256,
        lane_max: 2_048,
        fast_slots: SLOTS,
        slow_slots: SLOTS,
        ordering: Ordering::Row,
        settle: SettlePolicy {
            quick_attempts: 3,
            retry: RetryPolicy::new(Duration::from_millis(200), Duration::from_secs(60)).unwrap(),
            retry_for: Duration::from_secs(600),
        },
        disable_after: Duration::from_secs(3_600),
        max_hold: Duration::from_secs(3),
        max_retained: 10_000,
        notifies: true,
        state_max: u64::MAX,
        log: Keep::All,
        log_excerpts: true,
    }
}

/// Names the seed of a run that fails.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("seed {} failed", self.0);
        }
    }
}

/// Runs a world with its crashes to the end, and checks what came of it.
fn simulate(seed: u64, transactions: u64, crashes: u32) -> World {
    simulate_with(seed, transactions, crashes, 0, SLOTS, None)
}

/// As [`simulate`], with an operator who pauses endpoints, so many slots in each pool, and where the
/// table may take so many bytes.
fn simulate_with(
    seed: u64,
    transactions: u64,
    crashes: u32,
    pauses: u32,
    slots: u32,
    bound: Option<u64>,
) -> World {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut world = World { bound, ..World::new(&mut rng, transactions) };
    world.pauses_left = if world.tempers.is_empty() { 0 } else { pauses };
    run(seed, world, rng, crashes, slots, bound)
}

fn run(
    seed: u64,
    mut world: World,
    mut rng: SmallRng,
    crashes: u32,
    slots: u32,
    bound: Option<u64>,
) -> World {
    let _named = Named(seed);
    let mut now = Tick(0);
    let mut left = crashes;
    let memory_limit = if seed.is_multiple_of(2) { 1 << 20 } else { 1 << 17 };
    let state_max = bound.unwrap_or(u64::MAX);
    // In every third world an event is routed to one endpoint after the other.
    let (slice, lane_max) = if seed.is_multiple_of(3) { (1, 4) } else { (256, 2_048) };
    let (fast_slots, slow_slots, common) = (slots, slots, settings(memory_limit));
    let settings = Settings { fast_slots, slow_slots, state_max, slice, lane_max, ..common };
    let mut life = Life::new(&world, &settings, &mut rng, now);
    let end = Tick(0) + Duration::from_secs(7 * 24 * 3600);
    loop {
        if left > 0 && rng.random_bool(0.002) {
            left -= 1;
            life.crash(&mut world, &mut rng);
            life = Life::new(&world, &settings, &mut rng, now);
        }
        world.operate(&mut rng, now);
        life.poll(&mut world, &mut rng, now);
        if life.is_done(&world) {
            break;
        }
        let Some((at, what)) = life.next(&world, now) else {
            panic!("seed {seed}: nothing left to happen, and not done");
        };
        now = at;
        assert!(now < end, "seed {seed}: not done within a week");
        life.handle(what, &mut world, &mut rng, now);
    }
    if let Some(digest) = world.trace.digest() {
        let effects = world.trace.effects;
        println!("TRACE {seed} {crashes} {slots} {bound:?} {effects} {digest:x}");
    }
    let gauges = life.dispatcher.gauges();
    assert_eq!(gauges.lanes_ready + gauges.lanes_waiting, 0, "seed {seed}");
    assert_eq!(gauges.queued_bytes, 0, "seed {seed}: memory is not given back");
    assert_eq!((gauges.deferred, gauges.backlogs), (0, 0), "seed {seed}");
    assert_eq!((gauges.unrouted, gauges.unrouted_accounts), (0, 0), "seed {seed}");
    world
}

#[test]
fn dispatcher_loses_and_invents_nothing_by_seed() {
    for seed in 0..12 {
        account_for(seed, &simulate(seed, 300, 0));
    }
}

#[test]
fn causes_of_waiting_add_up_whatever_happens_by_seed() {
    use walhook_core::waits::{Cause, Waits};
    let mut waited = Waits::default();
    for seed in 40..46 {
        let world = simulate_with(seed, 300, 1, 2, 4, None);
        world.waited.iter().for_each(|(cause, us)| waited.add_us(cause, us));
    }
    let never: Vec<Cause> = Cause::ALL.into_iter().filter(|c| waited.us(*c) == 0).collect();
    // Here a request takes as long as its outcome says, and no row limits a rate.
    assert_eq!(never, [Cause::RateLimit, Cause::Unpersisted, Cause::Bus], "{waited:?}");
}

#[test]
fn dispatcher_loses_and_invents_nothing_across_crashes_by_seed() {
    for seed in 1_000..1_024 {
        account_for(seed, &simulate(seed, 300, 6));
    }
}

#[test]
fn dispatcher_sends_nothing_to_a_paused_endpoint_and_loses_nothing_across_crashes_by_seed() {
    for seed in 2_000..2_012 {
        account_for(seed, &simulate_with(seed, 300, 4, 5, SLOTS, None));
    }
}

#[test]
fn dispatcher_loses_and_invents_nothing_where_requests_are_given_up_by_seed() {
    let mut aborts = 0;
    for seed in 3_000..3_018 {
        let world = simulate_with(seed, 300, 2, 0, 3, None);
        account_for(seed, &world);
        aborts += world.aborts;
    }
    assert!(aborts > 10, "only {aborts} requests were given up");
}

#[test]
fn simulation_is_the_same_for_the_same_seed() {
    let summary = |seed| {
        let mut rng = SmallRng::seed_from_u64(seed);
        let world = World { trace: Trace::wanted(), ..World::new(&mut rng, 200) };
        let world = run(seed, world, rng, 3, SLOTS, None);
        let mut received: Vec<_> = world.received.into_iter().collect();
        received.sort();
        (world.trace.digest().unwrap(), received, world.dead.len(), world.duplicates)
    };
    assert_eq!(summary(7), summary(7));
}
