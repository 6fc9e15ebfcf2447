//! A bounded share of seeds; `make simulate` runs as many as are wished.

use walhook_simulator::{Counts, Options, Wishes, run};

/// Small worlds: a tenth of what a seed is by default.
fn small() -> Options {
    Options { transactions: 400, accounts: 20, ..Options::default() }
}

#[test]
fn simulation_keeps_every_promise_by_seed() {
    let mut counts = Counts::required();
    for seed in 0..16 {
        match run(seed, &small(), &Wishes::default()) {
            Ok(report) => counts.merge(&report.counts),
            Err(failure) => panic!("seed {seed}{}: {failure:?}", small().arguments()),
        }
    }
    for (group, name) in [
        ("input", "items"),
        ("input", "outcome"),
        ("input", "routes"),
        ("input", "deferred-pages"),
        ("input", "stored"),
        ("command", "pause"),
        ("command", "resume"),
        ("input", "retry"),
        ("replay", "deliver"),
        ("effect", "send"),
        ("effect", "store"),
        ("effect", "flush"),
        ("deferred", "failed"),
        ("deferred", "breaker"),
        ("deferred", "behind"),
        ("dead", "endpoint-disabled"),
        ("dead", "unroutable"),
        ("fault", "crash"),
        ("fault", "takeover"),
        ("fault", "stale-write"),
        ("fault", "halt"),
        ("fault", "unchanged-toast"),
        ("fault", "evicted"),
        ("unroutable", "type"),
        ("unroutable", "value"),
    ] {
        assert!(counts.of(group, name) > 0, "{group}/{name} never happened");
    }
}
