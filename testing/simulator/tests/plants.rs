//! Faults that are planted on purpose are found: else the checkers see nothing.

use walhook_simulator::{Options, Plant, Wishes, run};

/// In so many small seeds each must show. Most do in the first; tables are seldom full where memory holds what waits.
const SEEDS: u64 = 60;

#[test]
fn simulation_finds_each_planted_fault() {
    let mut found = Vec::new();
    for plant in Plant::ALL {
        let options =
            Options { transactions: 400, accounts: 20, plant: Some(*plant), ..Options::default() };
        let failure = (0..SEEDS).find_map(|seed| {
            run(seed, &options, &Wishes::default()).err().map(|failure| (seed, failure))
        });
        match failure {
            Some((seed, failure)) => {
                assert_ne!(failure.checker, "panic", "{}: {failure:?}", plant.as_str());
                println!("{}: seed {seed}, by {}", plant.as_str(), failure.checker);
            }
            None => found.push(plant.as_str()),
        }
    }
    assert!(found.is_empty(), "not found in {SEEDS} seeds: {found:?}");
}

#[test]
fn simulation_is_the_same_twice_for_the_same_seed() {
    let options = Options { transactions: 300, accounts: 20, ..Options::default() };
    for seed in 0..3 {
        walhook_simulator::doublecheck(seed, &options).unwrap();
    }
}
