//! What a seed decides before anything happens, and what may be taken away from it.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use walhook_core::delivery_log::Keep;
use walhook_dispatch::dispatcher::{Ordering, Settings};
use walhook_dispatch::retry::RetryPolicy;
use walhook_dispatch::settle::SettlePolicy;

use crate::faults::Fault;
use crate::plants::Plant;

/// Transactions of a seed, when nobody says otherwise.
pub const TRANSACTIONS: usize = 2_000;

/// Accounts of a seed, when nobody says otherwise.
pub const ACCOUNTS: u32 = 50;

/// What is asked of a run.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many transactions are committed.
    pub transactions: usize,
    /// How many accounts there are; at least 2.
    pub accounts: u32,
    /// Faults that are left out.
    pub without: BTreeSet<Fault>,
    /// A fault of walhook's own, planted to see whether it is found.
    pub plant: Option<Plant>,
}

impl Default for Options {
    fn default() -> Self {
        let without = BTreeSet::new();
        Self { transactions: TRANSACTIONS, accounts: ACCOUNTS, without, plant: None }
    }
}

impl Options {
    /// Whether nothing is taken away, and nothing planted.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.arguments().is_empty()
    }

    /// The arguments that ask for this.
    #[must_use]
    pub fn arguments(&self) -> String {
        let mut all = String::new();
        if self.transactions != TRANSACTIONS {
            all += &format!(" --transactions {}", self.transactions);
        }
        if self.accounts != ACCOUNTS {
            all += &format!(" --accounts {}", self.accounts);
        }
        if !self.without.is_empty() {
            let names: Vec<&str> = self.without.iter().map(|fault| fault.as_str()).collect();
            all += &format!(" --without {}", names.join(","));
        }
        if let Some(plant) = self.plant {
            all += &format!(" --plant {}", plant.as_str());
        }
        all
    }
}

/// What a seed decides.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) options: Options,
    pub(crate) settings: Settings,
    /// Between two commits, at most.
    pub(crate) pause: Duration,
    /// Bytes that the tables may take, where that is a bound.
    pub(crate) bound: Option<u64>,
    pub(crate) crashes: u32,
    pub(crate) takeovers: u32,
    pub(crate) streaming: Streaming,
}

/// What of transactions comes while they are open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streaming {
    /// The share of connections on which anything does.
    share: f64,
    /// Not on the next one.
    pauses: bool,
    /// What is held of later transactions at most.
    pub(crate) held_max_bytes: usize,
}

impl Streaming {
    fn new(plan: u64, options: &Options) -> Self {
        let mut rng = stream(plan, "streaming");
        let share = pick(&mut rng, [0.0, 0.7, 1.0, 1.0]);
        let held_max_bytes = pick(&mut rng, [2_000, 1 << 20]);
        let share = if options.without.contains(&Fault::Streamed) { 0.0 } else { share };
        Self { share, pauses: false, held_max_bytes }
    }

    /// Nothing is streamed on the next connection.
    pub(crate) fn pause(&mut self) {
        self.pauses = true;
    }

    /// The seed of what is streamed on a new connection, where anything is.
    pub(crate) fn draw(&mut self, rng: &mut SmallRng) -> Option<u64> {
        let streams = !std::mem::take(&mut self.pauses) && rng.random_bool(self.share);
        streams.then(|| rng.random())
    }
}

impl Plan {
    pub(crate) fn new(seed: u64, options: &Options) -> Self {
        let mut rng = stream(seed, "plan");
        let ordering = match seed % 5 {
            3 => Ordering::Account,
            4 => Ordering::None,
            _ => Ordering::Row,
        };
        let pause_ms = pick(&mut rng, [4, 40, 150]);
        let bound = (rng.random_bool(0.3) && !options.without.contains(&Fault::TablesFull))
            .then_some(60_000);
        let slots = pick(&mut rng, [4, 32, 256]);
        let (slice, lane_max) = if rng.random_bool(0.3) { (1, 4) } else { (256, 2_048) };
        let settings = Settings {
            memory_limit: if rng.random_bool(0.7) { 1 << 20 } else { 4 << 20 },
            slice,
            lane_max,
            fast_slots: slots,
            slow_slots: slots,
            ordering,
            settle: SettlePolicy {
                quick_attempts: rng.random_range(1..4),
                retry: retry(),
                retry_for: Duration::from_secs(600),
            },
            disable_after: Duration::from_secs(if rng.random_bool(0.3) { 300 } else { 3_600 }),
            max_hold: Duration::from_secs(3),
            max_retained: 40_000,
            notifies: true,
            state_max: bound.unwrap_or(u64::MAX),
            log: Keep::All,
            log_excerpts: true,
        };
        Self {
            seed,
            options: options.clone(),
            settings,
            pause: Duration::from_millis(pause_ms),
            bound,
            crashes: rng.random_range(1..5),
            takeovers: rng.random_range(1..4),
            streaming: Streaming::new(seed, options),
        }
    }

    pub(crate) fn has(&self, fault: Fault) -> bool {
        !self.options.without.contains(&fault)
    }

    /// Whether slots come and go, of which half stay: in every fourth seed.
    pub(crate) fn has_varying_slots(&self) -> bool {
        self.has(Fault::Slots) && self.seed % 4 == 3
    }

    /// A source of randomness of its own for each part, so that to take one away changes the others as
    /// little as possible.
    pub(crate) fn rng(&self, part: &str) -> SmallRng {
        stream(self.seed, part)
    }
}

#[expect(clippy::expect_used, reason = "the bounds are constants")]
fn retry() -> RetryPolicy {
    RetryPolicy::new(Duration::from_millis(200), Duration::from_secs(60)).expect("base below cap")
}

/// One of them.
pub(crate) fn pick<T: Copy, const N: usize>(rng: &mut SmallRng, of: [T; N]) -> T {
    let at = rng.random_range(0..N);
    #[expect(clippy::indexing_slicing, reason = "drawn below its length")]
    of[at]
}

fn stream(seed: u64, part: &str) -> SmallRng {
    let of_part = part.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    SmallRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ of_part)
}
