//! The table of scenarios.

use std::time::Duration;

use super::disturbance::{
    Backlog, Crowd, Dead, Disturbance, Million, Nothing, Past, RolledBack, Soak, Stopped, Weights,
    Whales,
};

/// What is to be reached. Of small accounts where nothing else is said, while it is disturbed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// The p99 is at most so many ms above that of the calm.
    Beyond(f64),
    /// The p99 is at most so many ms.
    P99(f64),
    /// No latency is above so many ms.
    Max(f64),
    /// The p99 is that of the calm again within so many seconds of its beginning.
    CalmWithin(f64),
    /// No account that is owed something gets nothing for so many seconds.
    Standstill(f64),
    /// Of the slots that could be used while the disturbance waits, at least this share is.
    Conserves(f64),
    /// This [`Fact`](super::outcome::Fact) is at most so much.
    Fact(&'static str, f64),
    /// Memory in the last quarter of the time is at most this much of that in the second.
    Flat(f64),
}

/// One of them.
#[derive(Debug)]
pub struct Scenario {
    /// By which it is chosen.
    pub name: &'static str,
    /// What happens, in a line.
    pub about: &'static str,
    /// What is to be reached.
    pub goals: &'static [Goal],
    pub(super) disturbance: Box<dyn Disturbance>,
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The usual whale; others differ from it.
const WHALE: Whales = Whales {
    whales: 1,
    rows: 200_000,
    updates: 0,
    delay: ms(50),
    endpoints: 1,
    per_second: Some(10_000.0),
};

/// A transaction of a million rows.
const MILLION: Million =
    Million { transactions: 1, rows: 1_000_000, per_second: 50_000, delay: ms(50) };

const BESIDE_A_WHALE: &[Goal] = &[Goal::Beyond(2.0), Goal::Conserves(0.95)];

/// All of them, in the order of the documentation.
#[must_use]
#[rustfmt::skip]
pub fn all() -> Vec<Scenario> {
    let new = |name, about, goals, disturbance: Box<dyn Disturbance>| Scenario { name, about, goals, disturbance };
    vec![
        new("steady", "nothing disturbs: what differs is noise", &[Goal::Beyond(2.0)], Box::new(Nothing)),
        new("whale-50ms", "a whale of 200,000 rows whose endpoint takes 50 ms", BESIDE_A_WHALE,
            Box::new(WHALE)),
        new("whale-5s", "the same with an endpoint that takes 5 s", BESIDE_A_WHALE,
            Box::new(Whales { delay: ms(5_000), ..WHALE })),
        new("whales-20", "20 whales of 10,000 rows each", BESIDE_A_WHALE,
            Box::new(Whales { whales: 20, ..WHALE })),
        new("endpoints-10000", "one account with 10,000 endpoints, 20 events to each", BESIDE_A_WHALE,
            Box::new(Whales { rows: 20, endpoints: 10_000, per_second: Some(2.0), ..WHALE })),
        new("keys-100000", "one account with 100,000 order keys, each changed twice", BESIDE_A_WHALE,
            Box::new(Whales { rows: 100_000, updates: 1, ..WHALE })),
        new("dead-from-start", "300 more endpoints that are dead when their first event comes", &[Goal::Beyond(2.0)],
            Box::new(Dead { accounts: 300, per_second: 150.0, from_start: true })),
        new("dying", "300 more endpoints that die at once", &[Goal::P99(200.0), Goal::CalmWithin(5.0)],
            Box::new(Dead { accounts: 300, per_second: 150.0, from_start: false })),
        new("million", "a transaction of a million rows, streamed", &[Goal::P99(50.0), Goal::Max(500.0)],
            Box::new(MILLION)),
        new("millions-20", "20 transactions of a million rows each, of 20 accounts, open at once and streamed",
            &[Goal::P99(50.0), Goal::Max(500.0)], Box::new(Million { transactions: 20, ..MILLION })),
        new("rolled-back", "transactions of 1 GB, streamed and rolled back, one behind the other", &[Goal::Beyond(10.0)],
            Box::new(RolledBack { bytes: 1_000_000_000, per_second: 50_000 })),
        new("accounts-1k", "a thousand more accounts begin to commit", &[Goal::Beyond(2.0)],
            Box::new(Crowd { accounts: 1_000, per_second: 1_000.0 })),
        new("accounts-10k", "ten thousand more", &[Goal::Beyond(2.0)],
            Box::new(Crowd { accounts: 10_000, per_second: 1_000.0 })),
        new("accounts-100k", "a hundred thousand more", &[Goal::Beyond(2.0)],
            Box::new(Crowd { accounts: 100_000, per_second: 3_000.0 })),
        new("weights", "weights 1:3:1, the third 8 times slower, more than their slots carry",
            &[Goal::Fact("% that a share of slot-seconds is off", 5.0)], Box::new(Weights)),
        new("drain", "100,000 deferred deliveries of 20 accounts drain when their endpoints are back",
            &[Goal::Beyond(3.0)], Box::new(Backlog { accounts: 20, rows: 100_000, per_second: 10_000.0 })),
        new("replay", "30,000 deliveries are sent again", &[Goal::Beyond(3.0)], Box::new(Past::of(30_000))),
        new("stopped", "walhook is stopped for ten minutes while all go on to commit", &[],
            Box::new(Stopped { lasts: Duration::from_secs(600) })),
        new("saturated", "20 whales whose endpoints answer at once, written as fast as it goes: no CPU is left", &[],
            Box::new(Whales { whales: 20, rows: 1_000_000, delay: ms(0), per_second: None, ..WHALE })),
        new("soak", "three whales that come and go, for MINUTES",
            &[Goal::Beyond(2.0), Goal::Standstill(1.0), Goal::Flat(1.1)],
            Box::new(Soak { rows: 20_000, per_second: 10_000.0 })),
    ]
}

/// The one of this name.
#[must_use]
pub fn named(name: &str) -> Option<Scenario> {
    all().into_iter().find(|scenario| scenario.name == name)
}
