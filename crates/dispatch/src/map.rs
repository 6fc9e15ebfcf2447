//! Maps whose order is the same in every run.
//!
//! The order of std's `HashMap` differs from process to process, so a decision that looked at it could not be
//! simulated by seed, nor be replayed. Names are kept in `BTreeMap`s, or hashed with a seed that the dispatcher
//! is given, since whoever chooses them must not be able to choose which of them collide.

#[expect(clippy::disallowed_types, reason = "with hashers of which the order is known")]
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hasher};

#[expect(clippy::disallowed_types, reason = "its hasher has no seed")]
/// A map by numbers that are ours, or hashes already: cheap, and the same in every run.
pub type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;

#[expect(clippy::disallowed_types, reason = "its hasher's seed is given")]
/// A map by names, hashed with a seed.
pub type NameMap<K, V> = HashMap<K, V, Seeded>;

/// Spreads one number.
#[derive(Debug, Clone, Copy, Default)]
pub struct NumberHasher(u64);

/// A number whose every bit depends on every bit of this one (the finalizer of SplitMix64).
#[must_use]
pub fn spread(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// The golden ratio in 64 bits: multiplying by it spreads numbers that follow each other (Knuth, volume 3,
/// section 6.4).
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        let spread = (self.0.rotate_left(5) ^ number).wrapping_mul(SPREAD);
        // The map takes its place from the low bits, and the high ones are the better ones.
        self.0 = spread ^ (spread >> 32);
    }
}

/// SipHash behind a seed.
#[derive(Debug, Clone, Copy)]
pub struct Seeded(u64);

impl Seeded {
    /// The seed is a secret of the process: with it one could choose names that collide.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
}

impl BuildHasher for Seeded {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_that_follow_each_other_are_spread_over_low_and_high_bits() {
        let hash = |number: u64| BuildHasherDefault::<NumberHasher>::default().hash_one(number);
        let places: BTreeSet<u64> = (0..1_024).map(|n| hash(n) & 1_023).collect();
        let tops: BTreeSet<u64> = (0..128).map(|n| hash(n) >> 57).collect();
        assert!(places.len() > 512, "{} places of 1,024", places.len());
        assert!(tops.len() > 48, "{} tops of 128", tops.len());
    }

    #[test]
    fn names_are_hashed_alike_with_one_seed_and_otherwise_with_another() {
        assert_eq!(Seeded::new(1).hash_one("a"), Seeded::new(1).hash_one("a"));
        assert_ne!(Seeded::new(1).hash_one("a"), Seeded::new(2).hash_one("a"));
    }
}
