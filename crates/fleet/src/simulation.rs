//! A leader, its workers and a bus in virtual time, by seed: frames are lost, late, and out of order across subjects;
//! processes freeze and die; the bus goes; leaders follow each other. What must hold is held against a naive account
//! of every attempt.
//!
//! `make simulate-fleet FLEET_SEEDS=0..10000` runs more seeds than a test does.

mod account;
mod bus;
mod deliveries;
mod drive;
mod nodes;
mod requests;
mod versions;
mod work;
mod world;

use world::World;

/// Seeds of one test run, where nothing else is asked for.
const SEEDS: std::ops::Range<u64> = 0..60;

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("WALHOOK_FLEET_SEEDS") else { return SEEDS };
    let (from, to) = text.split_once("..").expect("WALHOOK_FLEET_SEEDS=from..to");
    from.parse().expect("a number")..to.parse().expect("a number")
}

#[test]
fn fleet_hands_each_attempt_back_once_and_begins_none_after_its_loss_whatever_the_seed() {
    let mut sum = account::Sum::default();
    for seed in seeds() {
        let result = std::panic::catch_unwind(|| World::run(seed));
        match result {
            Ok(account) => sum.add(&account),
            Err(panic) => {
                eprintln!("seed {seed} failed: WALHOOK_FLEET_SEEDS={seed}..{}", seed + 1);
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!("{sum:?}");
    sum.check();
}
