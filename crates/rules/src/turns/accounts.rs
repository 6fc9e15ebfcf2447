//! Which accounts a transaction may have events of.

use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

/// So many accounts are known one by one: a quarter of a mebibyte.
const ONE_BY_ONE: usize = 16_384;

/// Bits of the hashes of more than that: 128 KiB.
const BITS: u32 = 20;

/// The accounts that a transaction may have events of. More may seem to be among them; none that is goes missing.
///
/// Memory: bounded, however many they are.
#[derive(Debug, Default)]
pub struct Accounts {
    known: Known,
    /// The one that was added last: rows of one account mostly come one after the other.
    last: Option<u64>,
}

#[derive(Debug)]
enum Known {
    /// By their hashes.
    Few(HashSet<u64, Fixed>),
    /// By a bit of each hash.
    Many(Box<[u64]>),
}

/// The same in every process.
type Fixed = BuildHasherDefault<DefaultHasher>;

impl Default for Known {
    fn default() -> Self {
        Self::Few(HashSet::default())
    }
}

impl Accounts {
    /// No account.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// One more.
    pub fn add(&mut self, account: &str) {
        let hash = hash(account);
        if self.last.replace(hash) == Some(hash) {
            return;
        }
        match &mut self.known {
            Known::Few(hashes) => {
                hashes.insert(hash);
                if hashes.len() > ONE_BY_ONE {
                    let mut bits = vec![0; 1 << (BITS - u64::BITS.ilog2())].into_boxed_slice();
                    for hash in hashes.iter() {
                        set(&mut bits, *hash);
                    }
                    self.known = Known::Many(bits);
                }
            }
            Known::Many(bits) => set(bits, hash),
        }
    }

    /// Whether the account may be one of them.
    #[must_use]
    pub fn may_have(&self, account: &str) -> bool {
        match &self.known {
            Known::Few(hashes) => hashes.contains(&hash(account)),
            Known::Many(bits) => {
                let (word, bit) = place(hash(account));
                bits.get(word).is_none_or(|word| word & bit != 0)
            }
        }
    }

    /// What they take in memory, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        match &self.known {
            Known::Few(hashes) => 16 * hashes.capacity(),
            Known::Many(bits) => 8 * bits.len(),
        }
    }
}

fn hash(account: &str) -> u64 {
    Fixed::default().hash_one(account)
}

/// The word, and the bit in it, of a hash.
fn place(hash: u64) -> (usize, u64) {
    let at = hash >> (u64::BITS - BITS);
    let word = usize::try_from(at / u64::from(u64::BITS)).unwrap_or(usize::MAX);
    (word, 1 << (at % u64::from(u64::BITS)))
}

fn set(bits: &mut [u64], hash: u64) {
    let (word, bit) = place(hash);
    if let Some(word) = bits.get_mut(word) {
        *word |= bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_lose_none_however_many_they_are() {
        let mut accounts = Accounts::none();
        assert!(!accounts.may_have("a1"));
        let name = |n: u32| format!("a{n}");
        for n in 0..100_000 {
            accounts.add(&name(n));
            accounts.add(&name(n));
            assert!(accounts.memory_bytes() <= 1 << 20, "at {n}");
        }
        assert!((0..100_000).all(|n| accounts.may_have(&name(n))));
        let others = (200_000..300_000).filter(|n| accounts.may_have(&name(*n))).count();
        assert!(others < 20_000, "{others} of 100,000 others are taken for some of them");
    }

    #[test]
    fn accounts_know_a_few_exactly() {
        let mut accounts = Accounts::none();
        ["a", "b", "a", "b"].iter().for_each(|account| accounts.add(account));
        assert!(accounts.may_have("a") && accounts.may_have("b") && !accounts.may_have("c"));
    }
}
