//! Assertions that fail: the process ends, and the next one, on the same tables, does not meet them again.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::world::{World, account_for};
use super::*;
use walhook_core::persist::QueueId;

/// A thing that must never be, and what says so.
type Broken = (&'static str, fn(&mut Dispatcher));

/// One of each kind of invariant that is asserted in release too.
const KINDS: [Broken; 9] = [
    ("although something of it is there", |dispatcher| {
        // A handle of a queue that was forgotten is used as if it were not.
        let (account, endpoint) = (AccountId::new("gone"), EndpointId::new("gone"));
        let queue = dispatcher.queues.intern(&account, &endpoint);
        dispatcher.queues.sweep();
        dispatcher.queues.at(queue);
    }),
    ("a queue was forgotten", |dispatcher| {
        let (account, endpoint) = (AccountId::new("none"), EndpointId::new("none"));
        dispatcher.queues.named(&QueueId { account, endpoint });
    }),
    ("are given back", |dispatcher| dispatcher.memory.give_back(usize::MAX)),
    ("outside of a transaction", |dispatcher| _ = dispatcher.progress.reading()),
    ("inside another", |dispatcher| {
        dispatcher.progress.begin(Lsn(u64::MAX - 1), Tick(u64::MAX));
        dispatcher.progress.begin(Lsn(u64::MAX), Tick(u64::MAX));
    }),
    ("that was not handed out", |dispatcher| {
        dispatcher.outbox.handle_stored(0, Tick(u64::MAX));
        dispatcher.outbox.handle_stored(0, Tick(u64::MAX));
    }),
    ("bytes of rows are stored", |dispatcher| dispatcher.outbox.stored_row(usize::MAX)),
    ("leaves memory that was not in it", |dispatcher| {
        (0..=16).for_each(|_| dispatcher.replays.leave_memory());
    }),
    ("time goes back", |dispatcher| {
        dispatcher.handle(Tick(u64::MAX), Input::ConnectionBytes(0));
        dispatcher.handle(Tick(0), Input::ConnectionBytes(0));
    }),
];

/// Runs a world in which each of these happens once, at some moment.
fn simulate_broken(seed: u64) -> World {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut world = World::new(&mut rng, 200);
    let mut broken = KINDS.to_vec();
    let settings = settings(1 << 20);
    let mut now = Tick(0);
    let mut life = Life::new(&world, &settings, &mut rng, now);
    loop {
        if rng.random_bool(0.03)
            && let Some((says, breaks)) = broken.pop()
        {
            let result = catch_unwind(AssertUnwindSafe(|| breaks(&mut life.dispatcher)));
            let said = result.expect_err("nothing has noticed it");
            let said = said.downcast_ref::<String>().cloned().unwrap_or_else(|| {
                said.downcast_ref::<&str>().map(|said| (*said).to_owned()).unwrap_or_default()
            });
            assert!(said.contains(says), "seed {seed}: {said:?} instead of {says:?}");
            life.crash(&mut world, &mut rng);
            life = Life::new(&world, &settings, &mut rng, now);
        }
        life.poll(&mut world, &mut rng, now);
        if life.is_done(&world) {
            assert!(broken.is_empty(), "seed {seed}: {} were not met", broken.len());
            return world;
        }
        let Some((at, what)) = life.next(&world, now) else {
            panic!("seed {seed}: nothing left to happen, and not done");
        };
        now = at;
        life.handle(what, &mut world, &mut rng, now);
    }
}

#[test]
fn restart_on_the_same_tables_does_not_meet_an_assertion_again() {
    for seed in 9_000..9_004 {
        account_for(seed, &simulate_broken(seed));
    }
}
